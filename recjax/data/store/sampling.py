"""How a split's negatives were drawn: its data set declares it as identity["sampling"][split].

    uniform      each with one probability, identity["keep"][split] (1 where nothing is said: all were kept)
    popularity   in proportion to their item's popularity: no one probability

Data prepared before there was a declaration say it by the name of the split: "..._matched" is by popularity.
"""

from collections.abc import Mapping
from typing import Any

KINDS = UNIFORM, POPULARITY = ("uniform", "popularity")


def sampling_of(identity: Mapping[str, Any], split: str) -> str:
    """One of KINDS."""
    if "sampling" in identity:
        return identity["sampling"].get(split, UNIFORM)
    return POPULARITY if split.endswith("_matched") else UNIFORM


def keep_probability(identity: Mapping[str, Any], split: str) -> float:
    """The one probability with which a split's negatives were kept, by which probabilities can be corrected.

    Negatives by popularity have none, so probabilities of a model that was trained on them stay uncorrected: 1.
    """
    if sampling_of(identity, split) == POPULARITY:
        return 1.0
    return identity.get("keep", {}).get(split, 1.0)
