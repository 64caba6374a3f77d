"""Tables in huge pages on the CPU: rows are read and written at random, and 4 KiB pages miss the TLB at every one.

At 10 M x 16 the sparse step takes half the time in them. Linux gives them to whoever asks where
/sys/kernel/mm/transparent_hugepage/enabled says `madvise`, which is the common default; where it says `always` nothing
changes, and where the kernel does not know the request (before 6.1) tables stay as they are.
"""

import ctypes
from typing import Any

import jax

SMALLEST = 32 << 20  # bytes of an array that misses the caches often enough
PAGE = 4096
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # linux/mman.h


def use(values: Any) -> None:
    """Asks for huge pages under every large CPU array of a tree; copies nothing a reader could see.

    Donated arrays keep their memory from step to step, so once is enough.
    """
    for x in jax.tree.leaves(values):
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
            _advise(x)


def _advise(x: jax.Array) -> None:
    for shard in x.addressable_shards:
        if shard.device.platform == "cpu" and shard.data.nbytes >= SMALLEST:
            start, size = shard.data.unsafe_buffer_pointer(), shard.data.nbytes
            first = -(-start // PAGE) * PAGE
            _madvise(first, (start + size - first) // PAGE * PAGE)


def _madvise(address: int, size: int) -> None:
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):  # not Linux
        return
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):  # refused: an error code, and nothing has changed
        call(address, size, advice)
