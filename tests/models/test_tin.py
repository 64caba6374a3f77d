"""TIN: the exact properties and golden numbers of its specification (section 6)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.models import tin
from recjax.schema import SchemaError
from recjax.serving import artifact
from recjax.serving.scorer import Scorer
from tests.messages import raises
from tests.models.worlds import SCHEMA, close, far, make, world

W = world(b=4, c=3, n=6)
SHARED = ("past_item", "past_category", "past_hour")


@functools.cache
def model(**options):
    return make(models.build(SCHEMA, dict(name="tin", head=(8,), **options)), W)


def kernel(width, seed=0):
    return np.random.default_rng(seed).normal(size=(width, width)).astype(np.float32)


# ---- TR: the two readings agree where they should ------------------------------------------------


def pooled(m, x):
    """The interest of `inner`, or the product block of `repo`: the MLP's input is caught on its way."""
    caught = {}

    def catch(next_fun, args, kwargs, context):
        if context.module.name == "top":
            caught["x"] = args[0]
        return next_fun(*args, **kwargs)

    from flax import linen as nn

    with nn.intercept_methods(catch):
        m.system.outputs(m.params(x.batch()), x.batch())
    return np.asarray(caught["x"])


def test_inner_equals_repo_with_the_identity():
    inner, repo = model(tr_mode="inner"), model(tr_mode="repo")
    width = inner.dense["time"].shape[1]
    eye = np.eye(width, dtype=np.float32)
    ones = np.full(width, np.sqrt(1 + 1e-3), np.float32)
    dense = {
        **repo.dense,
        "time": inner.dense["time"],
        "interest": dict(kernel=eye, bias=np.zeros(width, np.float32)),
        "pooled": dict(scale=ones, bias=np.zeros(width, np.float32)),
    }
    a = pooled(inner, W)[..., :width]
    b = pooled(repo.replace(dense=dense, tables=inner.tables), W)[..., 2 * width : 3 * width]
    close(a, b, 1e-5)
    dense["interest"] = dict(kernel=kernel(width), bias=np.zeros(width, np.float32))
    other = pooled(repo.replace(dense=dense, tables=inner.tables), W)
    assert far(a, other[..., 2 * width : 3 * width]), "control: another W"


def test_heads_split_the_width_and_one_head_is_the_plain_product():
    m = model()
    e, v = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(4, 6, 16), (4, 3, 16)]))
    module = tin.TIN(SCHEMA, history="views")
    z = module.attention_logits(jnp.asarray(e), jnp.asarray(v))
    close(z[:, 0], np.einsum("bld,bcd->bcl", e, v) / 4, 1e-5)
    two = tin.TIN(SCHEMA, history="views", heads=2).attention_logits(jnp.asarray(e), jnp.asarray(v))
    want = np.stack(
        [np.einsum("bld,bcd->bcl", e[..., h], v[..., h]) for h in (slice(8), slice(8, 16))], 1
    )
    close(two, want / np.sqrt(8), 1e-5)
    with raises(ValueError, "heads=5", "16"):
        models.build(SCHEMA, dict(name="tin", heads=5))
    assert far(model(heads=2).logits(W), m.logits(W))


# ---- masks and positions -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(time="interval"), dict(tr_mode="repo")], ids=str)
def test_padding_never_matters(options):
    m = model(**options)
    want = m.logits(W)
    wild = {f: np.where(W.mask, W.raw[f], 7).astype(np.int32) for f in SHARED}
    np.testing.assert_array_equal(
        m.logits(W.replace(**wild, age=np.where(W.mask, W.age, 99))), want
    )
    close(m.logits(W.padded(2)), want, 1e-6)
    shown = W.replace(mask=np.ones_like(W.mask), **wild)
    assert far(m.logits(shown), want), "control: unmasked, the same ids matter"


def test_positions_belong_to_the_slots_and_swapping_items_matters_only_with_them():
    full = world(b=4, c=3, n=6, lengths=6)
    swapped = full.replace(**{f: full.raw[f][:, ::-1] for f in SHARED})
    assert far(model().logits(swapped), model().logits(full))
    close(model(time="none").logits(swapped), model(time="none").logits(full), 1e-5)
    by_age = model(time="interval")
    both = swapped.replace(age=full.age[:, ::-1])  # (item, time) pairs together
    close(by_age.logits(both), by_age.logits(full), 1e-5)
    assert far(by_age.logits(swapped), by_age.logits(full))


def test_permuting_items_with_their_positions_changes_nothing():
    """Slots hold positions, so the pairs are permuted by permuting slots and rows of the table alike."""
    full, m = world(b=4, c=3, n=6, lengths=6), model()
    order = np.array([3, 0, 5, 1, 4, 2])
    swapped = full.replace(**{f: full.raw[f][:, order] for f in SHARED})
    table = np.asarray(m.dense["time"]).copy()
    table[6 - np.arange(6)] = np.asarray(m.dense["time"])[6 - order]
    close(m.replace(dense={**m.dense, "time": table}).logits(swapped), m.logits(full), 1e-5)


def test_a_history_of_three_has_positions_three_two_one_and_the_target_zero():
    three = world(b=2, c=2, n=6, lengths=3)
    m = make(models.build(SCHEMA, dict(name="tin", head=(8,))), three)
    base = m.logits(three)
    for index in range(7):
        table = np.asarray(m.dense["time"]).copy()
        table[index] += 1.0
        moved = far(m.replace(dense={**m.dense, "time": table}).logits(three), base)
        assert moved == (index in (0, 1, 2, 3)), index
    # the most recent event takes row 1: a history of one knows no other
    one = three.replace(mask=three.mask & (np.arange(6) == 5))
    table = np.asarray(m.dense["time"]).copy()
    table[2:] += 1.0
    close(m.replace(dense={**m.dense, "time": table}).logits(one), m.logits(one), 1e-6)


def test_the_history_is_cut_to_the_most_recent():
    m = model(max_len=3)
    assert m.dense["time"].shape[0] == 4
    recent = W.replace(mask=W.mask & (np.arange(6) >= 3))
    close(m.logits(W), m.logits(recent), 1e-6)
    assert far(model().logits(W), model().logits(recent))


def test_interval_buckets():
    hour = 3600
    age = jnp.asarray([0, hour - 1, hour, 3 * hour - 1, 3 * hour, 7 * hour, 2**31 - 1], jnp.int32)
    np.testing.assert_array_equal(tin.interval_buckets(age), [1, 1, 2, 2, 3, 4, 20])
    many = np.random.default_rng(0).integers(0, 2**31 - 1, 5000)
    want = np.clip(1 + np.floor(np.log2(1 + many / hour)), 1, 32)
    np.testing.assert_array_equal(tin.interval_buckets(jnp.asarray(many, jnp.int32)), want)


def test_an_empty_history_gives_no_interest():
    empty = W.replace(mask=np.zeros_like(W.mask))
    for mode in ("inner", "repo", "none"):
        m = model(tr_mode=mode)
        width = m.dense["time"].shape[1]
        x = pooled(m, empty)
        assert not x[..., :width].any(), mode
        assert far(pooled(m, W)[..., :width], x[..., :width])


# ---- the top -------------------------------------------------------------------------------------


def test_the_affine_map_is_the_released_codes_batch_norm():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    params = {"params": {"scale": np.array([1.0, 2.0, 0.5]), "bias": np.array([0.0, 1.0, -1.0])}}
    want = x * np.array([1.0, 2.0, 0.5]) / np.sqrt(1.001) + np.array([0.0, 1.0, -1.0])
    close(tin.Affine().apply(params, x), want, 1e-6)


def test_the_item_bias_is_a_number_per_item_and_starts_at_zero():
    m = model()
    bias = next(t for t in m.system.tables if t.owner == "bias")
    assert (bias.id_space, bias.dim, bias.init_scale) == ("item", 1, 0.0)
    rows = np.zeros_like(m.tables["bias/item"]["rows"])
    without = m.replace(tables={**m.tables, "bias/item": {"rows": rows}}).logits(W)
    item = np.asarray(m.tables["bias/item"]["rows"])[W.raw["item"], 0]
    close(m.logits(W) - without, item, 1e-5)
    assert "bias/item" not in {t.path for t in model(item_bias=False).system.tables}


def test_tables_start_at_a_tenth():
    assert {t.init_scale for t in model().system.tables} == {0.1, 0.0}
    narrow = models.build(SCHEMA, dict(name="tin", table=dict(init_scale=0.02, owner="mine")))
    assert {t.path for t in narrow.tables} >= {"mine/item", "mine/bias/item"}
    assert {t.init_scale for t in narrow.tables} == {0.02, 0.0}


# ---- learned correlation -------------------------------------------------------------------------


def test_correlation_is_exp_of_the_logit_times_the_norm_of_the_message():
    m, batch = model(), W.batch()
    cor = m.system.exports["correlation"].fn(m.params(batch), batch)
    cor = np.asarray(cor["correlation"])
    rows = {k: np.asarray(v["rows"]) for k, v in m.tables.items()}
    p = np.asarray(m.dense["time"])

    def encoded(prefix, index, when):
        fields = ("item", "category")
        e = np.concatenate([rows[f][W.raw[prefix + f][index]] for f in fields], -1)
        return e + p[when]

    for b, c, slot in [(0, 0, 5), (1, 2, 5), (2, 1, 5)]:
        e, v = encoded("past_", (b, slot), 6 - slot), encoded("", (b, c), 0)
        want = np.exp(e @ v / np.sqrt(len(e))) * np.linalg.norm(e * v)
        assert cor[b, c, slot] == pytest.approx(want, rel=1e-4)
    assert not cor[~np.broadcast_to(W.mask[:, None], cor.shape)].any()


@pytest.mark.parametrize("name", ["din", "sasrec", "bst"])
def test_rivals_have_a_correlation_too(name):
    m, batch = make(models.build(SCHEMA, dict(name=name, head=(8,))), W), W.batch()
    cor = m.system.exports["correlation"].fn(m.params(batch), batch)
    cor = np.asarray(cor["correlation"])
    mask = np.broadcast_to(W.mask[:, None], cor.shape)
    assert (cor[mask] > 0).all() and not cor[~mask].any()
    same_for_all = np.ptp(cor, axis=1).max() < 1e-6
    assert same_for_all == (name == "sasrec"), "only SASRec reads without the candidate"


def test_sasrec_and_bst_keep_padding_out():
    for name in ("sasrec", "bst"):
        m = make(models.build(SCHEMA, dict(name=name, head=(8,))), W)
        wild = {f: np.where(W.mask, W.raw[f], 7).astype(np.int32) for f in SHARED}
        np.testing.assert_array_equal(m.logits(W.replace(**wild)), m.logits(W))
        shown = W.replace(**wild, mask=np.ones_like(W.mask))
        assert far(m.logits(shown), m.logits(W))


# ---- serving -------------------------------------------------------------------------------------


def test_an_artifact_scores_as_the_model(tmp_path):
    m, batch = model(), W.batch()
    artifact.export_artifact(
        tmp_path / "a", m.system, m.trees, batch=batch, config={"name": "tin"},
        platforms=("cpu",), rows_format="float32",
    )  # fmt: skip
    loaded = artifact.load(tmp_path / "a")
    functions = loaded.manifest["functions"]
    assert {k: f["cadence"] for k, f in functions.items()} == {"score": "request", "correlation": "request"}  # fmt: skip
    np.testing.assert_allclose(Scorer(loaded).score(batch)["logits"], m.logits(W), atol=1e-5)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(time="day"), "time='day'.*'position', 'interval', 'none'"),
        (dict(tr_mode="outer"), "tr_mode='outer'"),
        (dict(max_len=0), "max_len=0"),
        (dict(widht=3), "'widht'"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        models.build(SCHEMA, dict(name="tin", **options))


def test_a_schema_without_shared_fields_is_refused():
    with raises(SchemaError, "tin", "candidate"):
        models.build(SCHEMA.without(["item", "category"]), dict(name="tin"))


def test_bfloat16_computes_close_and_keeps_its_parameters():
    low = models.build(SCHEMA, dict(name="tin", head=(8,), compute_dtype="bfloat16"))
    m = model()
    np.testing.assert_allclose(m.replace(system=low).logits(W), m.logits(W), atol=0.15)
    shapes = jax.eval_shape(low.init, jax.random.key(0), m.rows(W.batch()), W.batch())[0]
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
