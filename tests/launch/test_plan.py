"""launch.plan: what it says, its FLOP counter, and the 2.0e9-row table on two TPU slices."""

import importlib.util
import json
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from launch import plan
from launch.chips import CHIPS
from recjax import configs
from recjax.layers.attention import Pairs
from recjax.models.parts import suan_block
from recjax.runtime import flops
from recjax.runtime import mesh as meshes
from tests.messages import raises

REPO = Path(__file__).resolve().parents[2]
CONFIG = "experiments/suan_planet.py"
SMALL = (
    "--config.data.prepare.item=100000", "--config.data.history=16", "--config.train.batch=64",
    "--config.train.microbatches=1", "--config.model.blocks=1", "--config.model.remat=False",
    "--config.embedding.placement=(('item','row:all_to_all'),('item','packed'))",
)  # fmt: skip
KEYS = {
    "table_shard_bytes", "argument_bytes", "temp_bytes", "hbm_bytes", "fits", "flops", "analytic_flops",
    "collectives", "step_seconds_bound",
}  # fmt: skip


def command(*args):
    run = [sys.executable, "-m", "launch.plan", f"--config={CONFIG}", *args]
    return subprocess.run(run, cwd=REPO, capture_output=True, text=True)


def test_eight_cpu_devices(tmp_path):
    out = tmp_path / "plan.json"
    done = command("--topology=cpu:8", "--json", f"--out={out}", *SMALL)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    assert KEYS <= found.keys() and found["chips"] == 8
    rows = 100_352  # 100,003 ids in whole blocks
    assert found["table_shard_bytes"] > rows // 8 * 65 * 4
    assert found["argument_bytes"] > found["table_shard_bytes"]
    # The compiler counts elementwise work too, a sixth at this size.
    assert 0.9 < found["flops"] / found["analytic_flops"] < 1.25
    moved = {c["kind"]: c["bytes"] for c in found["collectives"]}
    assert moved["all-to-all"] > 0 and sum(moved.values()) < 4 * found["ideal_bytes"]
    assert any("row:all_to_all x2" in line for line in found["placement"])


@pytest.mark.parametrize(
    "topology, words",
    [
        ("v9:4x4", ["'v9:4x4'", "v5p:4x4x8"]),
        ("v5p", ["'v5p'"]),
        ("cuda", ["'cuda'", "GPU"]),
    ],
)
def test_topologies_that_are_none(topology, words):
    if topology == "cuda" and any(d.platform == "gpu" for d in jax.devices()):
        pytest.skip("there is a GPU")
    with raises(plan.PlanError, *words):
        plan.devices_of(topology)


def test_missing_libtpu_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises(plan.PlanError, "recjax[tpu]"):
        plan.devices_of("v5p:4x4x8")


def test_the_command_prints_one_sentence_for_a_bad_topology():
    done = command("--topology=v5p:4x4x")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "'v5p:4x4x'" in done.stderr


def test_abstract_data_cannot_be_trained_on():
    data = plan.open_data(configs.load(str(REPO / CONFIG)).data)
    with pytest.raises(ValueError, match="shapes without examples"):
        data.batches("train", 8)


def test_flops_of_products_loops_and_recomputation():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert flops.of(lambda a, b: a @ b, a, b) == 2 * 3 * 4 * 5
    loop = lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0.0, None, 7)[1]  # noqa: E731
    assert flops.of(loop, a, b) == 7 * 2 * 3 * 4 * 5
    squares = lambda f: jax.grad(lambda a: (jnp.sin(f(a) @ b) ** 2).sum())  # noqa: E731
    once = flops.of(squares(lambda a: a), a)
    again = flops.of(squares(jax.checkpoint(lambda a: jnp.tanh(a @ jnp.ones((4, 4))))), a)
    assert again > once


def test_flops_of_a_suan_block_are_the_formula():
    b, n, d, dim, fields = 2, 12, 16, 8, 3
    block = suan_block.UnifiedAttentionBlock(width=d, heads=2, gate_pool="full")
    pairs = (Pairs(jnp.ones((b, 1, n, n), bool), None),)
    candidate = Pairs(jnp.ones((b, 1, 1, n + 1), bool), None)
    args = (
        jnp.ones((b, n, d)), jnp.ones((b, 1, d)), jnp.ones((b, fields, dim)), pairs, candidate,
        jnp.ones((b, n), bool),
    )  # fmt: skip
    params = block.init(jax.random.key(0), *args)
    counted = flops.of(lambda p: block.apply(p, *args), params, products_only=True) / b
    # behaviours see n keys each, the candidate n and itself (a row-wise product, not a matrix product); each side
    # makes a gate of its own and projects the profile again
    formula = suan_block.block_flops(d, dim, n + 1, fields, pairs=n * n + n, gate_rows=2)
    formula += 4 * fields * dim * d
    assert counted == pytest.approx(formula, rel=0.02)


@pytest.mark.slow  # minutes: pytest -m slow tests/launch/test_plan.py
@pytest.mark.parametrize("topology", ["v5p:4x4x8", "v6e:16x16"])
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_two_billion_rows_take_little_more_than_themselves(topology, dim):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install 'recjax[tpu]'")
    config = configs.load(str(REPO / CONFIG))
    config.model.table.dim = dim
    devices, chip = plan.devices_of(topology)
    step = plan.abstract_step(config, meshes.make(devices))
    memory = plan.compiled(step).memory_analysis()
    shard = sum(step.plan.bytes_per_device(t) for t in step.plan.tables)
    assert shard > 2.0e9 * (dim + 1) * 4 / len(devices)
    missed = (topology, dim) == ("v5p:4x4x8", 32)  # the exchange's buffers, against a small shard
    assert memory.temp_size_in_bytes <= (0.07 if missed else 0.05) * shard
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < CHIPS[topology[:3]].hbm_bytes
    assert memory.alias_size_in_bytes >= shard  # in place
