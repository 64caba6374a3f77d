"""AW-MoE: the exact properties and golden numbers of its specification (section 6)."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.inputs import embed
from recjax.layers.contrast import info_nce, keep_events, other_users
from recjax.layers.experts import AttentionGate, Experts
from recjax.models import aw_moe
from recjax.schema import SchemaError
from recjax.serving import artifact
from recjax.serving.scorer import Scorer
from recjax.trees import Params
from tests.models.worlds import SCHEMA, close, far, finite, jit, key, make, world

W = world(b=4, c=3, n=6)
SMALL = dict(name="aw_moe", experts=3, width=8, expert=(6,), gate_unit=(8,), activation_unit=(8,))
PAST = ("past_item", "past_category")


@functools.cache
def model(**options):
    return make(models.build(SCHEMA, {**SMALL, **options}), W)


def outputs(m, w=W):
    return {k: np.asarray(v) for k, v in m.outputs(w).items()}


def gradients(m, w=W, seed=0):
    (loss, _, sums), (dense, rows) = m.loss_and_grads(w, seed)
    return loss, sums, dense, rows


# ---- the gate (tests 1 to 5) ---------------------------------------------------------------------


@pytest.mark.parametrize("context", ["item", "user", "query", "none"])
def test_the_order_of_behaviours_does_not_matter(context):
    m = model(gate_context=context)
    order = np.array([4, 2, 0, 5, 1, 3])
    shuffled = W.replace(**{f: W.raw[f][:, order] for f in PAST}, mask=W.mask[:, order])
    close(outputs(m, shuffled), outputs(m), 1e-5)
    moved = W.replace(**{f: W.raw[f][:, order] for f in PAST})
    assert far(outputs(m, moved), outputs(m)), "control: without their mask"


def test_padding_changes_nothing_bit_for_bit():
    m = model()
    wild = {f: np.where(W.mask, W.raw[f], 7).astype(np.int32) for f in PAST}
    jax.tree.map(np.testing.assert_array_equal, outputs(m, W.replace(**wild)), outputs(m))
    shown = W.replace(**wild, mask=np.ones_like(W.mask))
    assert far(outputs(m, shown), outputs(m))


def votes(m, w):
    """w_j G_j [B, C, L, K], caught on their way to the sum."""
    found = []

    def catch(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        if isinstance(context.module, AttentionGate) and context.method_name == "__call__":
            found.append(np.asarray(out))
        return out

    batch = w.batch()
    with nn.intercept_methods(catch):
        m.system.outputs(m.params(batch), batch)
    return found[0]


def test_one_behaviour_votes_its_gate_times_its_weight_and_none_leaves_the_prior():
    m = model()
    one = W.replace(mask=np.arange(6) >= 5 + np.zeros((4, 1)))
    b0 = np.asarray(m.dense["gate_prior"])
    want = b0 + votes(m, one)[:, :, 5]
    close(outputs(m, one)["gate"], want, 1e-5)
    empty = outputs(m, W.replace(mask=np.zeros_like(W.mask)))
    close(empty["gate"], np.broadcast_to(b0, empty["gate"].shape), 0)
    assert finite(empty["logits"])
    assert far(outputs(m, one)["gate"], empty["gate"])


def test_the_vote_is_the_product_of_gate_unit_and_activation_unit():
    gate = AttentionGate(3, (8,), (8,))
    r = np.random.default_rng(0)
    h, c = r.normal(size=(2, 4, 8)), r.normal(size=(2, 3, 8))
    params = gate.init(key(0), h, c)["params"]

    def unit(name, head, x):
        p = params[name]["dense_0"]
        x = np.maximum(x @ p["kernel"] + p["bias"], 0)
        return x @ params[head]["kernel"] + params[head]["bias"]

    y = np.concatenate([h[1, 2], c[1, 0], h[1, 2] - c[1, 0], h[1, 2] * c[1, 0]])
    want = unit("gate", "votes", y) * unit("activation", "counts", y)
    close(gate.apply({"params": params}, h, c)[1, 0, 2], want, 1e-5)


def test_a_behaviour_twice_counts_twice():
    m = model()
    b0 = np.asarray(m.dense["gate_prior"])
    one = W.replace(mask=np.arange(6) >= 5 + np.zeros((4, 1)))
    copied = {f: np.repeat(W.raw[f][:, 5:], 6, 1) for f in PAST}
    two = W.replace(**copied, mask=np.arange(6) >= 4 + np.zeros((4, 1)))
    close(outputs(m, two)["gate"] - b0, 2 * (outputs(m, one)["gate"] - b0), 1e-5)


def test_one_expert_is_a_plain_network():
    m = model(experts=1, contrast=0.0)
    out = outputs(m)
    assert (out["alpha"] == 1).all()
    _, _, dense, _ = gradients(m)
    for name in ("gating", "gate_prior"):
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(dense[name]))
    assert np.asarray(dense["stack"]["kernel_0"]).any()
    changed = m.replace(dense={**m.dense, "gate_prior": np.array([3.0], np.float32)})
    close(outputs(changed)["logits"], out["logits"], 1e-6)
    linear = model(experts=1, contrast=0.0, mix="linear")
    assert np.asarray(gradients(linear)[2]["gate_prior"]).any(), "control: linear mixing needs it"


def test_stacked_experts_equal_a_loop():
    stack = Experts(4, (6, 5))
    x = np.random.default_rng(0).normal(size=(3, 2, 7)).astype(np.float32)
    p = stack.init(key(0), x)["params"]
    p = jax.tree.map(lambda a: np.random.default_rng(a.size).normal(size=a.shape), p)
    want = []
    for k in range(4):
        y = x
        for i in range(3):
            y = y @ p[f"kernel_{i}"][k] + p[f"bias_{i}"][k]
            y = np.maximum(y, 0) if i < 2 else y
        want.append(y[..., 0])
    close(stack.apply({"params": p}, x), np.stack(want, -1), 1e-4)


def test_mixing():
    for mix in ("softmax", "linear"):
        out = outputs(model(mix=mix, gate_temperature=0.5))
        close(out["alpha"], jax.nn.softmax(out["gate"] / 0.5, axis=-1), 1e-5)
    assert far(outputs(model(mix="linear"))["logits"], outputs(model())["logits"])


# ---- contrast and masking (tests 6 to 9) ---------------------------------------------------------


def test_without_the_contrast_gradients_are_cross_entropys_and_with_it_experts_keep_theirs():
    plain, some = model(contrast=0.0), model(contrast=0.5)
    _, sums, g0, _ = gradients(plain)
    assert "contrast" not in sums
    # dense features are normalised by running statistics in `outputs`, by the batch's in the loss
    plain_id, batch = model(contrast=0.0, dense_norm="identity"), W.batch()
    _, _, got, got_rows = gradients(plain_id)

    def bce(dense, rows):
        logits = plain_id.system.outputs(Params(dense, rows, plain_id.state), batch)["logits"]
        y = batch["label"]["click"]
        return (jnp.logaddexp(0.0, logits) - y * logits).mean()

    close((got, got_rows), jit(jax.grad(bce, argnums=(0, 1)))(plain_id.dense, plain_id.rows(batch)))
    _, sums, g1, _ = gradients(some)
    assert sums["contrast"][1] == 4
    for part in ("stack", "other", "unit", "unit_score"):
        close(g1[part], g0[part], 1e-7)
    assert far(g1["gating"], g0["gating"], 1e-5) and far(g1["item"], g0["item"], 1e-5)


def test_info_nce_golden_values():
    eye = np.eye(2, dtype=np.float32)
    negative = ~np.eye(2, dtype=bool)
    for tau, want in ((1.0, 0.3132617), (0.1, 4.53989e-05)):
        np.testing.assert_allclose(info_nce(eye, eye, tau, negative), want, rtol=2e-3, atol=1e-7)
    same = np.ones((4, 3), np.float32)
    for tau in (0.05, 1.0, 7.0):
        found = info_nce(same, same, tau, ~np.eye(4, dtype=bool))
        np.testing.assert_allclose(found, 1.3862944, rtol=1e-5)
    assert not np.asarray(info_nce(same, same, 1.0, np.zeros((4, 4), bool))).any(), "no negatives"
    zero = np.zeros((2, 3), np.float32)
    assert finite(jax.grad(lambda a: info_nce(a, a, 0.1, negative).sum())(zero))


def test_masking_keeps_the_share_it_says_and_at_least_one():
    mask = np.ones((5_000, 20), bool)
    mask[0] = False
    for drop in (0.3, 0.7):
        kept = np.asarray(keep_events(jax.random.key(1), mask, drop))
        n = mask.sum()
        assert abs(kept.sum() / n - (1 - drop)) < 3 * np.sqrt(drop * (1 - drop) / n)
        assert not kept[0].any() and kept[1:].any(1).all()
    all_kept = keep_events(jax.random.key(1), mask, 0.0)
    np.testing.assert_array_equal(all_kept, mask)
    one = np.asarray(keep_events(jax.random.key(1), mask, 1.0))
    assert (one[1:].sum(1) == 1).all() and not one[0].any()
    share = one[1:].mean(0)
    assert abs(share - 1 / 20).max() < 4 * np.sqrt(0.05 / 5_000), "any of them, alike"
    some = mask & (np.arange(20) >= 15)
    assert not (np.asarray(keep_events(jax.random.key(1), some, 0.9)) & ~some).any()


def test_without_masking_both_views_are_one():
    m = model(contrast=1.0, mask_prob=0.0)
    _, sums, _, _ = gradients(m)
    g = outputs(m)["gate"][:, 0]
    want = info_nce(g, g, 0.1, ~np.eye(4, dtype=bool)).sum()
    assert float(sums["contrast"][0]) == pytest.approx(float(want), rel=1e-3)
    masked = gradients(model(contrast=1.0, mask_prob=0.9))[1]
    assert far(masked["contrast"][0], sums["contrast"][0])


def test_a_user_is_no_negative_of_himself_and_stands_once():
    user, real = jnp.array([7, 8, 7, 9, 9]), jnp.array([True, True, True, True, False])
    found = np.asarray(other_users(jax.random.key(0), user, real))
    want = np.zeros((5, 5), bool)
    want[np.ix_([0, 2], [1, 3])] = True
    want[1, [0, 3]] = want[3, [0, 1]] = want[4, [0, 1]] = True
    np.testing.assert_array_equal(found, want)
    few, again = (
        np.asarray(other_users(jax.random.key(s), jnp.arange(6), jnp.ones(6, bool), 1))
        for s in (0, 3)
    )
    assert (few.sum(1) == 1).all() and not np.diagonal(few).any()
    assert (few != again).any()


def test_monitors_are_loads_and_entropy():
    alpha = jnp.array([[[1.0, 0.0]], [[0.5, 0.5]], [[0.0, 1.0]]])
    weights = jnp.array([[1.0], [1.0], [0.0]])
    found = {k: float(a / b) for k, (a, b) in aw_moe.monitors(alpha, weights).items()}
    assert found == pytest.approx({"gate_entropy": np.log(2) / 2, "load/0": 0.75, "load/1": 0.25})
    _, sums, _, _ = gradients(model())
    loads = [float(a / b) for k, (a, b) in sums.items() if k.startswith("load/")]
    assert len(loads) == 3 and sum(loads) == pytest.approx(1, abs=1e-5)


# ---- rivals and options --------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "ratio"), [("layer", 1.0), ("none", 0.1)])
def test_a_small_row_is_a_small_event_only_without_layer_norm(norm, ratio):
    m = model(event_norm=norm)
    module = aw_moe.AWMoE(
        SCHEMA, experts=3, width=8, gate="prior", history="views", event_norm=norm
    )
    dense = {**m.dense, "item": {**m.dense["item"], "bias": jnp.zeros(8)}}
    sizes = []
    for scale in (1.0, 0.1):
        rows = jax.tree.map(lambda x, by=scale: by * x, m.rows(W.batch()))
        events, mask = module.apply(
            {"params": dense}, embed(SCHEMA, rows, W.batch()), method="encode_events"
        )
        sizes.append(np.abs(np.asarray(events)[np.asarray(mask)]).mean())
    assert sizes[1] / sizes[0] == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("gate", ["pooled", "category", "prior"])
def test_rival_gates(gate):
    m = model(gate=gate)
    out = outputs(m)
    shuffled = W.replace(**{f: np.roll(W.raw[f], 1, 0) for f in PAST})
    reads_history = far(outputs(m, shuffled)["gate"], out["gate"])
    assert reads_history == (gate == "pooled")
    other = W.replace(category=W.raw["category"] % 7 + 3)
    assert far(outputs(m, other)["gate"], out["gate"]) == (gate == "category")
    assert ("gate" in m.system.exports) == (gate != "category")


def test_the_session_loss_is_a_softmax_over_the_candidates_of_a_request():
    z = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]], np.float32)
    y = np.array([[0, 1, 0], [0, 0, 0]], np.float32)
    w = np.array([[1, 1, 0], [1, 1, 1]], np.float32)
    total, count = aw_moe.session_softmax(z, y, w)
    assert count == 1 and float(total) == pytest.approx(np.log(1 + np.exp(-1)), rel=1e-5)
    (loss, _, sums), grads = model(ranking="session").loss_and_grads(W)
    assert finite(grads) and float(sums["loss"][1]) == W.raw["click"].sum()
    (other, _, _), _ = model().loss_and_grads(W)
    assert far(loss, other)


def test_mean_pooling_ignores_the_candidate():
    m = model(pooling="mean")
    assert "unit" not in m.dense and finite(outputs(m))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(gate="soft"), "gate='soft'"),
        (dict(tau=0.0), "tau"),
        (dict(experts=0), "experts"),
        (dict(user_key="nobody"), "user_key='nobody'"),
        (dict(expertss=2), "'expertss'"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises((ValueError, SchemaError), match=words):
        models.build(SCHEMA, {**SMALL, **options})


# ---- serving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["user", "query", "none"])
def test_the_gate_of_a_request_is_computed_once_and_scores_the_same(context):
    m, batch = model(gate_context=context), W.batch()
    exports = m.system.exports
    assert exports["gate"].cadence == "request" and exports["score_gated"].cadence == "candidate"
    params = m.params(batch)
    gate = exports["gate"].fn(params, batch)["gate"]

    def score(gate):
        return exports["score_gated"].fn(params, {**batch, "gate": {"gate": gate}})["logits"]

    assert gate.shape == (4, 1, 3)
    close(score(gate), m.logits(W), 1e-6)
    assert far(score(gate[::-1]), m.logits(W))
    assert "gate" not in model().system.exports, "an item gate is no request's"


def test_an_artifact_holds_gate_and_score(tmp_path):
    m = model(gate_context="user")
    batch = W.batch()
    artifact.export_artifact(
        tmp_path / "a", m.system, m.trees, batch=batch, config={"name": "aw_moe"},
        platforms=("cpu",), rows_format="float32",
    )  # fmt: skip
    loaded = artifact.load(tmp_path / "a")
    functions = loaded.manifest["functions"]
    assert {k: f["cadence"] for k, f in functions.items()} == {
        "score": "request", "gate": "request", "score_gated": "candidate"}  # fmt: skip
    assert not any("pos/item" in x for x in functions["gate"]["inputs"]), "no candidate"
    np.testing.assert_allclose(
        Scorer(loaded, "score").score(batch)["logits"], m.logits(W), atol=1e-5
    )
