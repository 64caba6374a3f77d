"""From logits to probabilities, and what their columns are called."""

from collections.abc import Sequence
import math

import numpy as np


def probability(logits: np.ndarray, keep_prob: float = 1.0) -> np.ndarray:
    """Sigmoid, corrected for negatives kept with probability `keep_prob`: p / (p + (1 - p) / keep_prob).

    That multiplies the odds by keep_prob, hence log(keep_prob) is added to the logit. float32, same shape.
    """
    x = np.asarray(logits, np.float64) + math.log(keep_prob)
    return (0.5 * (1 + np.tanh(x / 2))).astype(np.float32)


def probability_names(logits: Sequence[str]) -> dict[str, str]:
    """Logit output -> name of its probability: "logits" -> "probability", "buy" -> "buy/probability"."""
    return {n: "probability" if n == "logits" else f"{n}/probability" for n in logits}
