"""Tables in huge pages: asked for where Linux gives them, and never a number changed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.embedding import huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_mib() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("AnonHugePages")) // 1024


def test_a_large_table_moves_to_huge_pages_and_keeps_its_numbers():
    if not SETTING.exists() or "[madvise]" not in SETTING.read_text():
        pytest.skip("transparent huge pages are not on request here")
    rows = jax.jit(lambda: jnp.arange(24 << 20, dtype=jnp.float32).reshape(-1, 16))()  # 96 MiB
    before, copy = huge_mib(), np.array(rows)
    huge_pages.use({"item": {"rows": rows}})
    if huge_mib() == before:
        pytest.skip("this kernel has no MADV_COLLAPSE, or no huge page free")
    assert huge_mib() - before >= 64
    np.testing.assert_array_equal(rows, copy)


def test_small_arrays_and_traced_ones_are_left_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda *a: asked.append(a))
    huge_pages.use({"rows": jnp.ones((8, 8)), "acc": np.ones(8), "step": 3})
    jax.jit(lambda x: huge_pages.use(x) or x)(jnp.ones((1 << 23, 2)))
    assert not asked
    huge_pages.use({"rows": jnp.ones((1 << 23, 2))})  # the control: 64 MiB
    assert len(asked) == 1 and asked[0][0] % 4096 == 0 and asked[0][1] >= (64 << 20) - 8192
