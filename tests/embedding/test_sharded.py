"""8 fake devices equal one, for every lookup path and optimizer; bytes exchanged; checkpoints on other meshes."""

import json

import jax
import numpy as np
import pytest

from recjax import embedding
from recjax.embedding.placement import Skew
from recjax.runtime import mesh as meshes
from recjax.schema import SchemaError, Table
from tests.embedding import worlds
from tests.messages import raises

PATHS = ("row:all_to_all", "row:all_gather", "column", "replicated")


def on_mesh(run_python, *args):
    # LLVM's slow passes change the speed of what is compiled, not what it computes or exchanges
    flags = "--xla_force_host_platform_device_count=8 --xla_llvm_disable_expensive_passes=true"
    done = run_python("tests.embedding.on_mesh", *args, env={"XLA_FLAGS": flags}, timeout=900)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(run_python):
    """What tests/embedding/on_mesh.py prints: one process for all tests of this file."""
    return on_mesh(run_python)


@pytest.mark.parametrize("path", PATHS)
def test_eight_devices_equal_one_for_every_optimizer(found, path):
    result = found["parity"][path]
    assert result["first_read"] == 0.0  # a lookup is exact
    assert result["read"] < 1e-5 and result["tables"] < 1e-5
    assert result["padding"] == 0.0


def test_packed_blocks_hold_the_same_bits(found):
    assert found["packed"]["parts"] == 8  # 128 lanes, width 16
    assert found["packed"]["first_read"] and found["packed"]["moved"] > 0.01
    # XLA:CPU fuses the two programs otherwise, and contracts lazy Adam's sums of products otherwise: one last bit
    assert set(found["packed"]["differ"]) <= {"lazy_adam/item"}
    assert found["packed"]["far"] < 3e-7


@pytest.mark.parametrize("path", PATHS)
def test_no_collective_grows_with_the_vocabulary(found, path):
    moved = found["parity"][path]["collectives"]
    assert moved
    # 32,768 rows x 16 x 4 bytes = 2 MiB; a batch has 8 x 64 ids of five tables
    assert max(size for _, size in moved) < 8 * 64 * 16 * 4 * 5 + 1


def test_tables_share_exchanges(found):
    kinds = [k for k, _ in found["parity"]["row:all_to_all"]["collectives"]]
    # ids of both spaces, rows of each of two widths, their gradients: not one for each of seven tables
    assert kinds.count("all-to-all") == 5, kinds


def test_fifty_training_steps_on_eight_devices_equal_one(found):
    assert len(found["training"]) == 2
    for name, far in found["training"].items():
        assert max(far.values()) < 1e-5, (name, far)


@pytest.mark.slow  # a few minutes of compilation
def test_fifty_training_steps_for_every_path_and_optimizer(run_python):
    every = on_mesh(run_python, "training", "all")["training"]
    assert len(every) == 20
    for name, far in every.items():
        assert max(far.values()) < 1e-5, (name, far)


def test_all_to_all_moves_little_more_than_the_unique_rows(found):
    t = found["traffic"]
    assert t["ratio"] <= 2.3, t  # rows forward, gradients back, ids once
    assert t["ratio"] > 2.0  # the control: fewer bytes than the rows cannot be right
    assert t["planned"] == sum(b for _, b in t["collectives"])
    assert max(t["worst"]) <= t["capacity"], t


def test_overflow_takes_the_next_bucket_and_then_raises(found):
    o = found["overflow"]
    assert o["capacities"][0] < o["capacities"][1] < 64
    assert o["counted"] == {"item": 1}
    assert o["tables"] < 1e-5
    assert "id space 'item': one device asks" in o["message"] and "row:all_gather" in o["message"]


def test_checkpoints_restore_on_any_mesh_bit_for_bit(found):
    assert found["checkpoints"]["devices"] == [8, 4, 2, 1, 8, 8]
    assert found["checkpoints"]["same"] == [True] * 6


# ---- the plan, without devices ------------------------------------------------------------------------------


SCHEMA = worlds.schema(("item", 1_000_000), ("shop", 5_000))


def placed(table, devices=8, rules=(), skew=None, platform="cpu"):
    mesh = worlds.Mesh(devices, platform)
    p = embedding.plan((table,), SCHEMA, mesh, skew, rules).placed[table.path]
    return p.rule, p.exchange


def test_the_planner_s_choices():
    assert placed(Table("shop", 16)) == ("replicated", "sum")
    assert placed(Table("item", 16)) == ("row", "all_gather")  # nothing measured yet
    assert placed(Table("item", 64)) == ("column", "columns")  # 64 >= 8 x 8
    assert placed(Table("item", 64), devices=16) == ("row", "all_gather")
    assert placed(Table("item", 64), devices=1)[0] == "replicated"
    assert placed(Table("item", 16), devices=5)[0] == "replicated"  # 1,001,472 rows over 5
    # A TPU stores fewer than 128 columns in 128 lanes, so there a device wants 128 of its own.
    assert placed(Table("item", 512), platform="tpu")[0] == "row"
    assert placed(Table("item", 1024), platform="tpu")[0] == "column"


def test_a_dense_sum_is_for_tables_no_larger_than_a_step_s_ids():
    """5,000 rows against 8 devices' 1,024 and 256 unique ids: a sum over the table, or what was touched."""
    for slots, exchange in ((1_024, "sum"), (256, "gather")):
        skew = {"shop": Skew.uniform(slots, 8)}
        assert placed(Table("shop", 16), skew=skew) == ("replicated", exchange)


def test_rules_come_first_and_bad_ones_are_named():
    assert placed(Table("item", 64), rules=(("shop", "row"), (".*", "row"))[1:]) == (
        "row",
        "all_gather",
    )
    with raises(SchemaError, "'rows'"):
        placed(Table("item", 64), rules=((".*", "rows"),))
    with raises(SchemaError, "'shop'"):
        placed(Table("item", 64), rules=(("shop", "row"),))
    with raises(SchemaError, "12", "8 devices"):
        placed(Table("item", 12), rules=(("item", "column"),))


def test_the_plan_is_printed_with_bytes_and_traffic():
    skew = {"item": Skew.uniform(1024, 8), "shop": Skew.uniform(256, 8)}
    tables = Table("item", 16), Table("shop", 16, optimizer="lazy_adam")
    plan = embedding.plan(tables, SCHEMA, worlds.Mesh(8), skew)
    rows = SCHEMA.space("item").rows
    assert plan.bytes_per_device(tables[0]) == rows // 8 * (16 + 1) * 4
    assert plan.bytes_per_device(tables[1]) == 5_000 * (16 * 3 + 1) * 4
    capacity = plan.capacities("item", 1024)[0]
    assert plan.traffic(tables[0]) == 8 * capacity * (4 + 2 * 16 * 4)
    assert "row:all_to_all" in str(plan) and "8 devices" in str(plan)


def test_capacity_covers_a_binomial_bucket():
    """10,000 steps of 64 buckets, each with 14,129 unique ids over 8 owners, overflow about once."""
    skew = Skew.uniform(14_129, 8)
    capacity = skew.capacity(14_129, 8, 1e-4)
    assert 1.08 < capacity / (14_129 / 8) < 1.13  # DESIGN section 5: 1.11
    draws = np.random.default_rng(0).binomial(14_129, 1 / 8, (10_000, 64))
    assert (draws > capacity).any(1).sum() <= 6  # Poisson of mean 1
    assert (draws > 14_129 / 8 * 1.05).any(1).mean() > 0.5  # the control: 5 % is not enough


def test_shards_that_are_not_devices_are_refused():
    plan = embedding.plan((Table("item", 16),), SCHEMA, worlds.Mesh(8), rules=((".*", "row"),))
    with raises(ValueError, "2 shards", "8 devices"):
        embedding.gather(plan.tables, {}, {"ids": {"item": np.zeros((2, 4), np.int32)}}, plan)


def test_one_device_needs_no_plan():
    tables = (Table("shop", 4),)
    plan = embedding.plan(tables, SCHEMA, meshes.make(jax.devices()[:1]))
    host = worlds.batch(SCHEMA, 1, 8, 0)
    assert plan.route(host) is host
    values = embedding.init(jax.random.key(0), tables, SCHEMA, plan)
    rows = embedding.gather(tables, values, host, plan)["shop"]
    np.testing.assert_array_equal(rows, embedding.gather(tables, values, host)["shop"])
