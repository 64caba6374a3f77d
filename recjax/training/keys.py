"""Random keys of a run: one named stream for each use, so that no two uses ever share a key.

All come from the seed's key by `jax.random.fold_in` of the name's own number and of further numbers, such as the
step's. JAX makes `split(key)[i]` equal `fold_in(key, i)`: numbers folded in by hand, or a split here and a step's
number there, meet sooner or later, and then the noise of one is the noise of the other.
"""

import zlib

import jax
import numpy as np

NAMES = ("tables_init", "dense_init", "loss", "after_step", "stochastic_rounding")


def stream(key: jax.Array, name: str, *numbers: jax.Array | int) -> jax.Array:
    """The key of one use.

    Args:
      key: Of the seed, `jax.random.key(config.seed)`; an argument of the compiled step, so that runs that differ only
        in their seed share a program.
      name: One of `NAMES`.
      numbers: Of this use: for "loss" the step, and the microbatch where there are several.
    """
    if name not in NAMES:
        raise ValueError(
            f"there is no stream {name!r} of random keys; use one of {', '.join(NAMES)}"
        )
    key = jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key
