"""CCN: the exact properties and golden numbers of its specification (section 7); its rivals; the planted result (slow)."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import ccn_board
from experiments.boards import config_of
from recjax import models
from recjax.inputs import embed
from recjax.layers import pairs as losses
from recjax.models import ccn, dihn
from recjax.schema import Feature, SchemaError
from recjax.serving import artifact
from recjax.serving.scorer import Scorer
from recjax.system import parameter_counts, pointwise
from recjax.training.loop import train
from tests.messages import raises
from tests.models.worlds import SCHEMA, close, far, finite, jit, make, world

PAGES = dataclasses.replace(
    SCHEMA,
    features=(
        *SCHEMA.features,
        Feature("scene", "context", "hour"),
        Feature("trigger_item", "trigger", "item"),
        Feature("trigger_category", "trigger", "category"),
        Feature("shown_item", "history", "item", list="shown"),
        Feature("shown_category", "history", "category", list="shown"),
        Feature("shown_click", "history", list="shown"),
    ),
)
W = world(b=4, c=3, n=6, schema=PAGES)
SMALL = dict(name="ccn", width=8, heads=2, head=(8,))
TAU = 0.2


@functools.cache
def model(**options):
    return make(models.build(PAGES, {**SMALL, **options}), W)


def outputs(m, w=W):
    return {k: np.asarray(v) for k, v in m.outputs(w).items()}


def unit(rng, *shape):
    z = rng.normal(size=shape)
    return jnp.asarray(z / np.linalg.norm(z, axis=-1, keepdims=True), jnp.float32)


def terms(z, label, real=None, classes="both"):
    """(L_att, L_rep) of pages."""
    label = jnp.asarray(label, jnp.float32)
    real = jnp.ones(label.shape, bool) if real is None else jnp.asarray(real)
    q, pairs = losses.similarity(jnp.asarray(z), TAU), losses.page_pairs(label, real)
    return losses.attraction(q, pairs, classes)[0], losses.repulsion(q, pairs)[0]


# ---- pairs ---------------------------------------------------------------------------------------


def test_pair_counts_of_every_page_up_to_twelve_items():
    """Every (n, k), k = 0 and k = n included, in pages with filling slots in random places."""
    rng = np.random.default_rng(0)
    sizes = [(n, k) for n in range(1, 13) for k in range(n + 1)]
    real, label = np.zeros((len(sizes), 12), bool), rng.integers(0, 2, (len(sizes), 12))
    for row, (n, k) in enumerate(sizes):
        at = rng.permutation(12)[:n]
        real[row, at] = True
        label[row, at] = np.arange(n) < k
    pairs = losses.page_pairs(jnp.asarray(label, jnp.float32), jnp.asarray(real))
    n, k = np.array(sizes).T
    want = k * (k - 1) // 2, (n - k) * (n - k - 1) // 2, k * (n - k)
    for found, count in zip(pairs, want, strict=True):
        found = np.asarray(found)
        np.testing.assert_array_equal(found.sum((1, 2)), count)
        assert not (found & found.swapaxes(1, 2)).any(), "an unordered pair is there once"
        assert not np.diagonal(found, axis1=1, axis2=2).any()
        assert not found[~(real[:, :, None] & real[:, None])].any(), "padding"
    total = sum(np.asarray(p).astype(int) for p in pairs)
    assert total.max() == 1, "no pair is of two classes"
    np.testing.assert_array_equal(total.sum((1, 2)), n * (n - 1) // 2)


def test_pairs_of_two_pages_are_only_in_the_control():
    rng = np.random.default_rng(1)
    z, label = unit(rng, 3, 4, 8), jnp.asarray(rng.integers(0, 2, (3, 4)), jnp.float32)
    real = jnp.ones((3, 4), bool)
    page, batch = (ccn.Collaboration(scope=s) for s in ("page", "batch"))
    turned = jnp.stack([z[0], *jnp.roll(z[1:], 3, -1)])  # a rotation of each page on its own
    close(page(turned, label, real)[0], page(z, label, real)[0], 1e-6)
    assert far(batch(turned, label, real)[0], batch(z, label, real)[0])
    sums = batch(z, label, real)[1]
    assert sum(float(n) for _, n in sums.values()) == 12 * 11 / 2


def test_the_skip_above_rule_keeps_what_was_seen():
    label = jnp.asarray([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]], jnp.float32)
    position = jnp.asarray(
        [[0, 1, 2, 5, 4, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]], jnp.float32
    )
    real = jnp.asarray([[1] * 6, [1] * 6, [1, 1, 0, 1, 1, 0]], bool)
    want = [[1, 1, 1, 0, 1, 1], [0] * 6, [1, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(losses.above_last_click(label, position, real), want)


# ---- losses --------------------------------------------------------------------------------------


def test_golden_numbers():
    label = [[1, 1, 0, 0, 0, 1]]
    close(terms(np.eye(6, dtype=np.float32)[None], label), (np.log(2), np.log(2)), 1e-6)
    same = np.broadcast_to(np.eye(6, dtype=np.float32)[0], (1, 6, 6))
    np.testing.assert_allclose(terms(same, label), (0.0067, 5.0067), atol=1e-4)
    poles = same * np.array([1, 1, -1, -1, -1, 1], np.float32)[None, :, None]
    np.testing.assert_allclose(terms(poles, label), (0.0067, 0.0067), atol=1e-4)


@pytest.mark.parametrize(
    ("label", "attract", "repel"),
    [([[0, 0, 0]], True, False), ([[1, 1, 1]], True, False), ([[1, 0, 0]], True, True),
     ([[1, 0, 1]], True, True)],
)  # fmt: skip
def test_a_missing_class_gives_zero_and_no_nan(label, attract, repel):
    z = unit(np.random.default_rng(2), 1, 3, 4)
    found = terms(z, label)
    grads = [jax.grad(lambda z, i=i: terms(z, label)[i])(z) for i in (0, 1)]
    assert finite((found, grads))
    assert [float(x) > 0 for x in found] == [attract, repel]
    assert [bool(np.asarray(g).any()) for g in grads] == [attract, repel]
    # the class that is there keeps its weight 1/2
    q = losses.similarity(z, TAU)
    pairs = losses.page_pairs(jnp.asarray(label, jnp.float32), jnp.ones((1, 3), bool))
    mask = np.asarray(pairs.co_click | pairs.co_non_click)
    want = 0.5 * np.log1p(np.exp(-np.asarray(q)))[mask].mean()
    assert float(found[0]) == pytest.approx(want, rel=1e-5)


def test_a_batch_without_any_pair_is_zero():
    z = unit(np.random.default_rng(3), 2, 3, 4)
    label, real = jnp.ones((2, 3)), jnp.asarray([[1, 0, 0], [0, 0, 0]], bool)
    for loss in ("decoupled", "supcon"):
        term = ccn.Collaboration(loss=loss)
        value, grad = jax.value_and_grad(lambda z, t=term: t(z, label, real)[0])(z)
        assert float(value) == 0 and not np.asarray(grad).any()


def cosines(z):
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    return np.asarray(jnp.einsum("bad,bcd->bac", z, z))


def test_a_step_raises_collaborative_cosines_and_lowers_the_others():
    label, z = [[1, 0, 0, 1, 0]], jnp.eye(5)[None]  # from where every pair can only obey
    pairs = losses.page_pairs(jnp.asarray(label, jnp.float32), jnp.ones((1, 5), bool))
    both = np.asarray(pairs.co_click | pairs.co_non_click)
    for index, mask, sign in ((0, both, 1), (1, np.asarray(pairs.mono_click), -1)):

        def loss(v, index=index):
            return terms(v / jnp.linalg.norm(v, axis=-1, keepdims=True), label)[index]

        change = cosines(z - 0.01 * jax.grad(loss)(z)) - cosines(z)
        assert (sign * change[mask]).min() > 0


def test_symmetries():
    rng = np.random.default_rng(5)
    z, label = unit(rng, 4, 6, 8), rng.integers(0, 2, (4, 6))
    real = np.arange(6) < np.array([6, 5, 4, 6])[:, None]
    base = terms(z, label, real)
    order = rng.permutation(6)
    close(terms(z[:, order], label[:, order], real[:, order]), base, 1e-6)
    close(terms(z, 1 - label, real), base, 1e-6)
    assert far(terms(z, 1 - label, real, "cc_only")[0], terms(z, label, real, "cc_only")[0])
    twice = (jnp.concatenate([z, z]), np.tile(label, (2, 1)), np.tile(real, (2, 1)))
    close(terms(*twice), base, 1e-6)
    s, y = jnp.asarray(rng.normal(size=(4, 6))), jnp.asarray(label, jnp.float32)
    bce = optax.sigmoid_binary_cross_entropy
    assert far(bce(s, y).mean(), bce(s, 1 - y).mean()), "the click loss is not label-swap invariant"


def test_attraction_classes():
    z, label = unit(np.random.default_rng(6), 1, 5, 8), [[1, 1, 0, 0, 0]]
    loss = np.log1p(np.exp(-np.asarray(losses.similarity(z, TAU))[0]))
    cc, cn = loss[0, 1], [loss[2, 3], loss[2, 4], loss[3, 4]]
    want = dict(both=0.5 * cc + 0.5 * np.mean(cn), cc_only=cc, unbalanced=np.mean([cc, *cn]))
    for classes, value in want.items():
        assert float(terms(z, label, classes=classes)[0]) == pytest.approx(value, rel=1e-5)


def test_supcon_is_its_formula():
    rng = np.random.default_rng(7)
    z, label = unit(rng, 2, 4, 6), np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    real = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    q = np.asarray(losses.similarity(z, TAU), np.float64)
    anchors = []
    for page in range(2):
        for a in np.flatnonzero(real[page]):
            rest = [b for b in np.flatnonzero(real[page]) if b != a]
            p = [b for b in rest if label[page, b] == label[page, a]]
            n = [b for b in rest if label[page, b] != label[page, a]]
            if p and n:
                e = np.exp(q[page, a])
                anchors.append(-np.mean([np.log(e[b] / (e[b] + e[n].sum())) for b in p]))
    assert len(anchors) == 6, "the lone click of page 1 has no positive"
    found, _ = losses.supcon(jnp.asarray(q, jnp.float32), jnp.asarray(label), jnp.asarray(real))
    assert float(found) == pytest.approx(np.mean(anchors), rel=1e-5)


def test_the_optimum_is_two_antipodal_points():
    label = [[1, 0, 0, 1, 0, 1]]
    adam = optax.adam(0.05)

    def normed(v):
        return v / jnp.linalg.norm(v, axis=-1, keepdims=True)

    @jit
    def run(v):
        def step(carry, _):
            v, moments = carry
            grads = jax.grad(lambda v: sum(terms(normed(v), label)))(v)
            updates, moments = adam.update(grads, moments)
            return (optax.apply_updates(v, updates), moments), None

        return jax.lax.scan(step, (v, adam.init(v)), length=400)[0][0]

    c = cosines(run(unit(np.random.default_rng(8), 1, 6, 8)))[0]
    same = np.equal.outer(label[0], label[0])
    assert c[same].min() > 0.95 and c[~same].max() < -0.95


# ---- the network ---------------------------------------------------------------------------------


def test_z_is_of_unit_norm_and_the_trigger_changes_it():
    m = model()
    out = outputs(m)
    close(np.linalg.norm(out["z"], axis=-1), np.ones((4, 3)), 1e-5)
    other = W.replace(trigger_item=W.raw["trigger_item"] % 7 + 3)
    changed = outputs(m, other)
    assert far(changed["z"], out["z"]) and far(changed["logits"], out["logits"])


def test_another_candidate_changes_nothing_exactly():
    for options in ({}, dict(prototypes="shown")):
        m = model(**options)
        names = [f.name for f in PAGES.select("candidate")]
        swapped = W.replace(**{n: W.raw[n][:, [0, 2, 1]] for n in names})
        a, b = outputs(m), outputs(m, swapped)
        for name in ("z", "logits"):
            np.testing.assert_array_equal(a[name][:, 0], b[name][:, 0])
            np.testing.assert_array_equal(a[name][:, 1], b[name][:, 2])
        assert far(a["logits"][:, 1], a["logits"][:, 2])


def trigger_gradient(stop: bool, **options):
    """d sum(logits) / d e_g's inputs, with h stopped or not."""
    m, batch = model(**options), W.batch()
    inputs = embed(PAGES, m.rows(batch), batch)
    module = ccn.CCN(schema=PAGES, width=8, heads=2, head=(8,), history="views", **options)

    def catch(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        own = context.module.name == "condition_mlp" and context.method_name == "__call__"
        return jax.lax.stop_gradient(out) if stop and own else out

    def total(of_trigger):
        with nn.intercept_methods(catch):
            changed = inputs.replace(emb={**inputs.emb, **of_trigger})
            return module.apply({"params": m.dense, **m.state}, changed)["logits"].sum()

    names = [f.name for f in PAGES.select("trigger")]
    return jit(jax.grad(total))({n: inputs.emb[n] for n in names})


def test_the_trigger_reaches_the_logit_only_through_the_condition():
    assert far(trigger_gradient(False), jax.tree.map(jnp.zeros_like, trigger_gradient(False)))
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(trigger_gradient(True)))
    ablated = trigger_gradient(True, trigger_in_head=True)
    assert any(np.asarray(g).any() for g in jax.tree.leaves(ablated)), "control: e_g in the head"


def test_a_missing_trigger_is_learned():
    gone = {f.name: np.zeros(4, np.int32) for f in PAGES.select("trigger")}
    m, none = model(), W.replace(**gone)
    dense = {**m.dense, "null_trigger": m.dense["null_trigger"] + 1}
    assert far(m.replace(dense=dense).logits(none), m.logits(none))
    np.testing.assert_array_equal(m.replace(dense=dense).logits(W), m.logits(W))


def test_an_empty_history_gives_the_learned_vector_and_padding_never_matters():
    m = model()
    past = ("past_item", "past_category")
    wild = {f: np.where(W.mask, W.raw[f], 7).astype(np.int32) for f in past}
    np.testing.assert_array_equal(m.logits(W.replace(**wild)), m.logits(W))
    assert far(m.logits(W.replace(**wild, mask=np.ones_like(W.mask))), m.logits(W))
    empty = W.replace(mask=np.zeros_like(W.mask))
    dense = {**m.dense, "attention": {**m.dense["attention"]}}
    dense["attention"]["empty"] = dense["attention"]["empty"] + 1
    assert far(m.replace(dense=dense).logits(empty), m.logits(empty))
    some = np.flatnonzero(W.mask.any(1))
    np.testing.assert_array_equal(m.replace(dense=dense).logits(W)[some], m.logits(W)[some])


def test_the_scenario_is_left_out_unless_asked_for():
    other = W.replace(scene=W.raw["scene"] % 7 + 3)
    np.testing.assert_array_equal(model().logits(other), model().logits(W))
    assert far(model(scenario_id=True).logits(other), model(scenario_id=True).logits(W))
    hidden = model(scenario=("hour",))
    assert far(hidden.logits(other), hidden.logits(W))
    later = W.replace(hour=W.raw["hour"] % 7 + 3)
    np.testing.assert_array_equal(hidden.logits(later), hidden.logits(W))


@pytest.mark.parametrize(
    ("options", "user", "trigger"),
    [(dict(condition="user"), True, False), (dict(condition="trigger"), False, True),
     (dict(condition_items=False), False, False)],
)  # fmt: skip
def test_ablated_conditions(options, user, trigger):
    """Which of user and trigger z still depends on."""
    m = model(**options)
    z = outputs(m)["z"]
    others = (
        W.replace(user=W.raw["user"] % 7 + 3),
        W.replace(trigger_item=W.raw["trigger_item"] % 7 + 3),
    )
    assert [far(outputs(m, w)["z"], z) for w in others] == [user, trigger]


def test_prototypes_read_earlier_exposures_and_their_feedback():
    m = model(prototypes="shown")
    flipped = W.replace(shown_click=1.0 - np.minimum(W.raw["shown_click"], 1))
    assert far(m.logits(flipped), m.logits(W))
    np.testing.assert_array_equal(model().logits(flipped), model().logits(W))
    empty = W.replace(mask=np.zeros_like(W.mask))
    moved = empty.replace(shown_click=1.0 - np.minimum(W.raw["shown_click"], 1))
    np.testing.assert_array_equal(m.logits(moved), m.logits(empty))
    # <z_i, c+ - c-> is all that the option adds: it turns its sign when clicked and unclicked swap
    plain = model().replace(dense=m.dense, state=m.state, tables=m.tables)
    added = m.logits(W) - plain.logits(W)
    assert np.abs(added).max() > 1e-2 and np.abs(added).max() <= 2 + 1e-5
    close(m.logits(flipped) - plain.logits(W), -added, 1e-4)
    close(m.logits(empty), plain.logits(empty), 1e-5)


# ---- the system ----------------------------------------------------------------------------------


def test_both_weights_zero_is_the_plain_model_bit_for_bit():
    """Loss, state and every gradient at the same values: so every step from the same seed."""
    m = model(alpha=0.0, beta=0.0)
    module = ccn.CCN(schema=PAGES, width=8, heads=2, head=(8,), history="views")
    plain = m.replace(system=pointwise(PAGES, module, m.system.tables))
    off, bare = m.loss_and_grads(W), plain.loss_and_grads(W)
    jax.tree.map(np.testing.assert_array_equal, off, bare)
    on = m.replace(system=model().system)
    assert far(on.loss_and_grads(W)[1], off[1]), "control: the pair terms change it"
    assert m.system.forward is not None and model().system.forward is None


def test_the_loss_is_its_three_terms():
    (loss, _, sums), grads = model().loss_and_grads(W)
    found = {k: float(a / max(b, 1e-9)) for k, (a, b) in sums.items()}
    want = found["loss"] + 0.1 * found["repulsion"]
    want += 0.05 * (found["attraction/co_click"] + found["attraction/co_non_click"])
    assert float(loss) == pytest.approx(want, rel=1e-5) and finite(grads)


def test_pairs_may_have_labels_of_their_own_a_filter_and_never_weights():
    z, batch = unit(np.random.default_rng(9), 4, 3, 8), W.batch()
    real = np.ones((4, 3), bool)
    found = ccn.Collaboration().of_batch(z, batch, "click")
    close(found, ccn.Collaboration()(z, jnp.asarray(W.raw["click"]), real), 1e-6)
    heavy = {**batch, "weight": np.linspace(1, 5, 12, dtype=np.float32).reshape(4, 3)}
    close(ccn.Collaboration().of_batch(z, heavy, "click"), found, 1e-6)
    other = ccn.Collaboration(pair_label="like").of_batch(z, batch, "click")
    close(other, ccn.Collaboration()(z, jnp.asarray(W.raw["like"]), real), 1e-6)
    assert far(other[0], found[0])
    above = ccn.Collaboration(seen_filter="recency").of_batch(z, batch, "click")
    seen = losses.above_last_click(W.raw["click"], W.raw["recency"], real)
    assert not np.asarray(seen).all()
    close(above, ccn.Collaboration()(z, jnp.asarray(W.raw["click"]), seen), 1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(tau=0.0), "tau"),
        (dict(loss="triplet"), "loss='triplet'"),
        (dict(heads=3), "heads=3.*8"),
        (dict(scenario=("shop",)), "scenario='shop'"),
        (dict(prototypes="views"), "prototypes='views'"),
        (dict(pair_label="sold"), "pair_label='sold'"),
        (dict(seen_filter="place"), "seen_filter='place'"),
        (dict(history="clicks"), "history='clicks'"),
        (dict(taus=1), "'taus'"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises((ValueError, SchemaError), match=words):
        models.build(PAGES, {**SMALL, **options})


def test_a_schema_without_item_fields_is_refused():
    with raises(SchemaError, "ccn", "candidate"):
        models.build(PAGES.without(["item", "category"]), dict(SMALL))


@pytest.mark.parametrize("name", ["ccn", "dihn"])
def test_parameters_count_as_blocks_or_head(name):
    system = models.build(PAGES, dict(SMALL) if name == "ccn" else dict(name=name))
    m = make(system, W)
    counts = parameter_counts(system, m.dense)
    assert min(counts.values()) > 0 and counts["n_blocks"] + counts["n_head"] < counts["n_dense"]


def test_an_artifact_computes_the_condition_once(tmp_path):
    m, batch = model(), W.batch()
    exports = m.system.exports
    params = m.params(batch)
    h = exports["condition"].fn(params, batch)

    def score(h):
        return exports["score_conditioned"].fn(params, {**batch, "condition": h})["logits"]

    assert h["h"].shape == (4, 8)
    close(score(h), m.logits(W), 1e-6)
    assert far(score({"h": h["h"][::-1]}), m.logits(W))
    artifact.export_artifact(
        tmp_path / "a", m.system, m.trees, batch=batch, config={"name": "ccn"},
        platforms=("cpu",), rows_format="float32",
    )  # fmt: skip
    loaded = artifact.load(tmp_path / "a")
    functions = loaded.manifest["functions"]
    assert {k: f["cadence"] for k, f in functions.items()} == {
        "score": "request", "condition": "request", "score_conditioned": "candidate"}  # fmt: skip
    assert not any("pos/item" in x for x in functions["condition"]["inputs"]), "no candidate"
    found = Scorer(loaded, "score").score(batch)["logits"]
    np.testing.assert_allclose(found, m.logits(W), atol=1e-5)


def test_the_share_of_the_best_that_is_of_the_triggers_category():
    rng = np.random.default_rng(10)
    group, score, hit = rng.integers(0, 5, 90), rng.normal(size=90), rng.integers(0, 2, 90)
    best = [
        i
        for g in range(5)
        for i in sorted(np.flatnonzero(group == g), key=lambda i: -score[i])[:10]
    ]
    assert ccn.top_share(score, group, hit) == pytest.approx(hit[best].mean())
    m = model()
    same = (W.raw["category"] == W.raw["trigger_category"][:, None]).astype(np.float32)
    np.testing.assert_array_equal(outputs(m)["of_trigger"], same)
    columns = {"logit": score, "group/user_key": group, "of_trigger": hit}
    assert m.system.measure(columns) == {"top10_trigger_category": ccn.top_share(score, group, hit)}


# ---- rivals --------------------------------------------------------------------------------------


def test_din_reads_the_trigger_as_a_plain_feature():
    m = make(models.build(PAGES, dict(name="din", attention=(8,), head=(8,))), W)
    other = W.replace(trigger_item=W.raw["trigger_item"] % 7 + 3)
    assert far(m.logits(other), m.logits(W))


@functools.cache
def rival():
    small = dict(name="dihn", width=8, attention=(8,), intention=(8,), head=(8,))
    return make(models.build(PAGES, small), W)


def test_dihn_asks_the_history_of_the_triggers_category():
    m, batch = rival(), W.batch()
    module = dihn.DIHN(schema=PAGES, history="views")
    category = dihn.category_of(module)
    assert category.name == "category"
    plain = functools.partial(embed, PAGES)
    inputs = dihn.with_same_category(plain, module, category)(m.rows(batch), batch)
    want = (W.raw["past_category"] == W.raw["trigger_category"][:, None]) & W.mask
    np.testing.assert_array_equal(np.asarray(inputs.emb[dihn.SAME]) * W.mask, want)
    other = W.replace(trigger_category=W.raw["trigger_category"] % 7 + 3)
    assert far(m.logits(other), m.logits(W))
    names = [f.name for f in PAGES.select("candidate")]
    swapped = W.replace(**{n: W.raw[n][:, [0, 2, 1]] for n in names})
    close(m.logits(swapped)[:, 0], m.logits(W)[:, 0], 1e-6)


def test_dihns_intention_learns_whether_target_and_trigger_share_a_category():
    m = rival()
    (loss, _, sums), grads = m.loss_and_grads(W)
    z = outputs(m)["intention"]
    assert (z == z[:, :1]).all(), "one intention a request"
    same = (W.raw["category"] == W.raw["trigger_category"][:, None]).astype(np.float32)
    want = optax.sigmoid_binary_cross_entropy(jnp.asarray(z), same).sum()
    assert float(sums["intention"][0]) == pytest.approx(float(want), rel=1e-4)
    total = [float(a / b) for a, b in (sums["loss"], sums["intention"])]
    assert float(loss) == pytest.approx(total[0] + 0.1 * total[1], rel=1e-5) and finite(grads)
    gone = {f.name: np.zeros(4, np.int32) for f in PAGES.select("trigger")}
    (_, _, none), _ = m.loss_and_grads(W.replace(**gone))
    assert float(none["intention"][1]) == 0, "no trigger, no auxiliary label"


def test_dihn_needs_a_trigger():
    with raises(SchemaError, "dihn", "'category'", "trigger"):
        models.build(PAGES.without(["trigger_category"]), dict(name="dihn"))


# ---- the planted world (minutes: python -m pytest -m slow -n 0 -s tests/models/test_ccn.py) --------


@pytest.mark.slow
def test_pair_losses_help_on_an_unseen_scenario_and_shuffled_ones_do_not(tmp_path):
    """2,000 pages, six paired seeds, each in a world of its own (recjax/data/worlds/ccn.py)."""
    found = {name: [] for name in ("plain", "ccn", "shuffled pairs")}
    for seed in range(6):
        for name, each in found.items():
            changes = ccn_board.VARIANTS[name]
            config = config_of("experiments/ccn_planted.py", seed, "", changes)
            summary = train(config, tmp_path / f"{name}-{seed}")
            each.append(summary["test_unseen"]["auc"])
    auc = {name: np.array(each) for name, each in found.items()}
    gain, control = auc["ccn"] - auc["plain"], auc["shuffled pairs"] - auc["plain"]
    print(auc, gain.mean(), gain.std(ddof=1), control.mean(), control.std(ddof=1))
    assert (gain > 0).sum() >= 5
    assert control.mean() < gain.mean() / 2
