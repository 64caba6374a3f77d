"""Frozen text vectors: from an encoder whose weights come in a package, or hashed character n-grams. No network.

    vectors = encoder("wordllama")(["color is red", ...])   # float32 [N, 256], unit length

"wordllama" needs the extra `text` (256-dim token vectors inside the wheel; the mean over tokens). "hashed"
needs nothing: character 3- to 5-grams of the lower-cased text, hashed to 4,096 signed counts and projected
to 256 by a fixed random matrix. It knows spelling, not meaning. Neither stands in for the other silently.
"""

from collections.abc import Callable, Sequence
import functools
import pathlib
import zlib

import numpy as np

WIDTH = 256
BUCKETS = 4096
GRAMS = (3, 4, 5)
ENCODERS = ("wordllama", "hashed")
Encoder = Callable[[Sequence[str]], np.ndarray]


class TextError(ValueError):
    """An encoder is unknown or not installed; the message says what to do."""


def encoder(name: str) -> Encoder:
    """The text encoder `name`: texts -> float32 [N, 256] of unit length (zeros for an empty text).

    Raises:
      TextError: There is none of that name, or its package is not installed.
    """
    if name not in ENCODERS:
        raise TextError(f"text encoder {name!r} is unknown; use one of {', '.join(ENCODERS)}")
    return _wordllama() if name == "wordllama" else hashed


def hashed(texts: Sequence[str]) -> np.ndarray:
    """Character n-grams, hashed and projected."""
    counts = np.zeros((len(texts), BUCKETS), np.float32)
    for row, text in zip(counts, texts, strict=True):
        padded = f" {' '.join(text.lower().split())} "
        for n in GRAMS:
            for i in range(len(padded) - n + 1):
                code = zlib.crc32(padded[i : i + n].encode())
                row[code % BUCKETS] += 1.0 if code & 0x8000_0000 else -1.0
    return unit(counts @ _projection())


def unit(x: np.ndarray) -> np.ndarray:
    """Rows at length one; zero rows stay."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@functools.cache
def _projection() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(BUCKETS, WIDTH)).astype(np.float32) / np.sqrt(WIDTH)


@functools.cache
def _wordllama() -> Encoder:
    try:
        import wordllama
    except ImportError as e:
        raise TextError(
            "text encoder 'wordllama' is not installed; pip install 'recjax[text]', or choose 'hashed'"
        ) from e
    # Its own look-up misses the tokenizer that lies in the wheel and would download it: say where it is.
    folder = pathlib.Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    return lambda texts: unit(model.embed(list(texts), norm=True))
