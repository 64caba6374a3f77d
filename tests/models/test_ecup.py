"""ECUP: exact properties, chain bias, audit, decisions, propensities, and recovery on its planted trial."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from recjax import configs, models
from recjax.data.worlds import ecup as worlds
from recjax.evaluation.evaluator import Evaluator
from recjax.metrics import uplift
from recjax.models import ecup
from recjax.models.parts.arms import Arms, arms_of, tables_of
from recjax.runtime import mesh as meshes
from recjax.schema import Feature, IdSpace, Schema, SchemaError
from recjax.serving import artifact, batch_scoring
from recjax.serving.export import export_run
from recjax.serving.scorer import Scorer
from recjax.system import parameter_counts
from recjax.training.loop import train
from recjax.training.opening import open_run
from recjax.trees import Params
from tests.models.worlds import perturbed

SCHEMA = Schema(
    (IdSpace("treatment", 6), IdSpace("city", 9), IdSpace("item", 12)),
    (
        Feature("city", "profile", "city"),
        Feature("age", "profile"),
        Feature("spent", "profile"),
        Feature("item", "candidate", "item"),
        Feature("price", "candidate"),
        Feature("seen", "history", "item", list="views"),
        Feature("treatment", "treatment", "treatment"),
        Feature("click", "label"),
        Feature("conversion", "label"),
    ),
    groups=("uid",),
)
SMALL = dict(width=4, attention=3, hidden=(8, 6), dropout=0.0)
N, C, L = 6, 2, 3
IDS = arms_of("test", SCHEMA, 0)


def batch(seed=0, n=N):
    """A batch whose unique ids are all of each space's."""
    r = np.random.default_rng(seed)
    mask = np.arange(L) >= r.integers(0, L, (n, 1))
    click = r.integers(0, 2, (n, C)).astype(np.float32)
    return {
        "ids": {s.name: np.arange(s.rows, dtype=np.int32)[None] for s in SCHEMA.id_spaces},
        "pos": {
            "city": r.integers(3, 9, n).astype(np.int32),
            "item": r.integers(3, 12, (n, C)).astype(np.int32),
            "seen": (r.integers(3, 12, (n, L)) * mask).astype(np.int32),
            "treatment": np.array(IDS)[np.arange(n) % 3].astype(np.int32),
        },
        "dense": {
            "age": r.normal(size=n).astype(np.float32),
            "spent": r.normal(size=n).astype(np.float32),
            "price": r.normal(size=(n, C)).astype(np.float32),
        },
        "mask": {"views": mask},
        "age": {"views": np.zeros((n, L), np.int32)},
        "label": {"click": click, "conversion": click * r.integers(0, 2, (n, C))},
        "weight": np.ones((n, C), np.float32),
        "valid": np.ones((n, C), bool),
        "group": {"uid": np.arange(n, dtype=np.int32)},
        "row": np.arange(n * C, dtype=np.int32).reshape(n, C),
    }


def rows_of(system, scale=0.5):
    """Rows of the fixed unique ids."""
    rng = np.random.default_rng(1)
    shape = {t.path: (1, SCHEMA.space(t.id_space).rows, t.dim) for t in system.tables}
    rows = {k: (scale * rng.normal(size=s)).astype(np.float32) for k, s in shape.items()}
    for x in rows.values():
        x[:, 0] = 0
    return rows


def arms(**options) -> Arms:
    """The record behind a system, so that tests reach its parts."""
    name = options.pop("model", "ecup")
    module = __import__(f"recjax.models.{name}", fromlist=["x"])
    make = module.ECUP if name == "ecup" else module.MetaLearner
    if name != "ecup":
        options = {"width": 4, "hidden": (8, 6), "dropout": 0.0, **options}
    else:
        options = {**SMALL, **options}
    return Arms(
        SCHEMA,
        make(schema=SCHEMA, arms=3, **options),
        tables_of(SCHEMA, {}, 4),
        arms_of(name, SCHEMA, 0),
    )


@functools.cache
def prepared(**options):
    """(record, dense, state, rows) with nothing neutral."""
    a = arms(**options)
    rows = rows_of(a)
    dense, state = jax.eval_shape(a.init, jax.random.key(0), rows, batch())
    dense = perturbed(dense, 0)
    state = jax.tree_util.tree_map_with_path(
        lambda p, x: np.full(x.shape, float(p[-1].key == "var"), x.dtype), state
    )
    return a, dense, state, rows


@functools.cache
def compiled(**options):
    a = arms(**options)
    return jax.jit(lambda d, r, s, b: a.outputs(Params(d, r, s), b))


def outputs(b=None, dense=None, **options):
    a, own, state, rows = prepared(**options)
    return jax.tree.map(
        np.asarray, compiled(**options)(own if dense is None else dense, rows, state, b or batch())
    )


EVERY = [
    {},
    dict(fuse="hadamard"),
    dict(tenet=False, taenet=False),
    *({"model": "meta_learners", "kind": k} for k in ("s", "t", "x", "tarnet")),
]
every_model = pytest.mark.parametrize("options", EVERY, ids=str)


# ---- exact --------------------------------------------------------------------------------------------------


def test_the_chain_never_exceeds_its_first_step():
    out = outputs()
    assert (0 < out["ctcvr_arms"]).all() and (out["ctcvr_arms"] < out["ctr_arms"]).all()
    extreme = ecup.product_logit(jnp.array([-60.0, 60.0, 0.0]), jnp.array([0.0, 60.0, -60.0]))
    assert np.isfinite(extreme).all()
    z = jnp.array([-3.0, 0.5, 4.0]), jnp.array([1.0, -2.0, 5.0])
    p = jax.nn.sigmoid(z[0]) * jax.nn.sigmoid(z[1])
    np.testing.assert_allclose(jax.nn.sigmoid(ecup.product_logit(*z)), p, rtol=1e-5)


@every_model
def test_effects_are_differences_to_the_control_and_differ(options):
    out = outputs(**options)
    assert out["uplift_ctcvr"].shape == (N, C, 2)
    if options.get("kind") != "x":
        for task in ("ctr", "ctcvr"):
            p = out[f"{task}_arms"]
            np.testing.assert_array_equal(p[..., 0] - p[..., 0], 0)
            np.testing.assert_allclose(out[f"uplift_{task}"], p[..., 1:] - p[..., :1], atol=1e-7)
    assert np.abs(out["uplift_ctr"]).max() > 1e-3
    assert np.std(out["uplift_ctr"][..., 0]) > 1e-4


def test_decomposition_identity():
    out = outputs()
    p, chain = out["ctr_arms"].astype(float), out["ctcvr_arms"].astype(float)
    cvr = chain / p
    for t in (1, 2):
        tau = p[..., t] - p[..., 0]
        want = tau * cvr[..., 0] + p[..., t] * (cvr[..., t] - cvr[..., 0])
        np.testing.assert_allclose(chain[..., t] - chain[..., 0], want, atol=1e-6)


@every_model
def test_vmap_over_arms_equals_a_loop_and_the_given_arm(options):
    a, dense, state, rows = prepared(**options)
    b = batch()
    out = outputs(**options)
    for t in range(3):
        given = {**b, "pos": {**b["pos"], "treatment": np.full(N, IDS[t], np.int32)}}
        own = outputs(given, **options)
        p = 1 / (1 + np.exp(-own["logits"].astype(float)))
        np.testing.assert_allclose(p, out["ctr_arms"][..., t], atol=1e-6)
        p = 1 / (1 + np.exp(-own["ctcvr"].astype(float)))
        np.testing.assert_allclose(p, out["ctcvr_arms"][..., t], atol=1e-6)


def test_zero_gates_leave_the_network_as_it_is_without_them():
    a, dense, state, rows = prepared()
    zeroed = jax.tree_util.tree_map_with_path(
        lambda p, x: np.zeros_like(x) if any("gate_" in str(k) for k in p) else x, dense
    )
    bare = {"model": {k: v for k, v in dense["model"].items() if k != "gates"}}
    want = outputs(dense=bare, taenet=False)
    got = outputs(dense=zeroed)
    np.testing.assert_allclose(got["ctcvr_arms"], want["ctcvr_arms"], atol=1e-6)
    assert np.abs(outputs()["ctcvr_arms"] - want["ctcvr_arms"]).max() > 1e-3


def test_every_gate_starts_at_one():
    fields = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    module = ecup.TaskGates((8, 6), 4, 2, 2.0)
    gates = module.apply(jax.jit(module.init)(jax.random.key(0), fields), fields)
    for task in ecup.TASKS:
        assert [g.shape for g in gates[task]] == [(5, 8), (5, 6)]
        assert all((g == 1).all() for g in gates[task])


def test_enhancing_gate():
    r = np.random.default_rng(0)
    fields, aware = r.normal(size=(2, 3, 4)), r.normal(size=(2, 3, 4))
    ones, zeros = np.full(fields.shape, 200.0), np.full(fields.shape, -200.0)
    np.testing.assert_allclose(ecup.enhance(fields, ones, aware), fields, atol=1e-6)
    np.testing.assert_allclose(ecup.enhance(fields, zeros, aware), aware, atol=1e-6)


def test_gate_before_the_relu_is_the_same():
    _, dense, _, _ = prepared()
    np.testing.assert_allclose(
        outputs(dense=dense, gate="before")["ctcvr_arms"], outputs()["ctcvr_arms"], atol=1e-6
    )


def test_no_gradient_flows_through_the_gates_fields():
    """d gates / d E_te is 0; the task embeddings learn, from the second step on."""
    fields = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    module = ecup.TaskGates((8, 6), 4, 2, 2.0)
    start = jax.jit(module.init)(jax.random.key(0), fields)["params"]
    target = np.random.default_rng(1).normal(size=8)

    def loss(p, x):
        gates = module.apply({"params": p}, x)
        return sum((g * target[: g.shape[-1]]).sum() for gs in gates.values() for g in gs)

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
    g0, of_fields = grad(start, fields)
    assert (np.asarray(of_fields) == 0).all()
    assert (np.asarray(g0["tasks"]) == 0).all()
    later = jax.tree.map(lambda p, g: p - 0.1 * g, start, g0)
    g1, of_fields = grad(later, fields)
    assert np.abs(g1["tasks"]).max() > 1e-6 and (np.asarray(of_fields) == 0).all()


def test_permuting_features_with_their_parameters_changes_nothing():
    a, dense, _, rows = prepared()
    b = batch()
    order = ("age", "spent", "price")
    moved = ("price", "age", "spent")
    features = {f.name: f for f in SCHEMA.features}
    numbers = iter(moved)
    schema = dataclasses.replace(
        SCHEMA,
        features=tuple(features[next(numbers)] if f.name in order else f for f in SCHEMA.features),
    )
    module = dataclasses.replace(a.module, schema=schema)
    other = dataclasses.replace(a, schema=schema, module=module)
    index = [order.index(n) for n in moved]
    fields = dense["model"]["fields"]
    mine = jax.tree.map(np.copy, dense)
    mine["model"]["fields"] |= {k: fields[k][index] for k in ("v", "c")}
    d, ids = 4, 3  # fields: city, item, seen, then the numbers, then the treatment
    kernel = mine["model"]["shared_0"]["kernel"].reshape(7, d, -1)
    kernel[ids : ids + 3] = kernel[ids : ids + 3][index]
    mine["model"]["shared_0"]["kernel"] = kernel.reshape(7 * d, -1)
    state = prepared()[2]
    got = jax.jit(lambda p: other.outputs(Params(p, rows, state), b)["ctcvr_arms"])(mine)
    np.testing.assert_allclose(got, outputs()["ctcvr_arms"], atol=1e-6)


@every_model
def test_parameters_count_as_blocks_or_head(options):
    name = options.get("model", "ecup")
    kind = {k: v for k, v in options.items() if k != "model"}
    system = models.build(SCHEMA, dict(name=name, propensity=True, **kind))
    rows = rows_of(arms(**options))
    rows = {
        p: np.zeros((*x.shape[:-1], t.dim))
        for (p, x), t in zip(rows.items(), system.tables, strict=True)
    }
    dense = jax.eval_shape(system.init, jax.random.key(0), rows, batch())[0]
    counts = parameter_counts(system, dense)
    plain = not kind.get("taenet", True) or name != "ecup"
    assert counts["n_head"] and bool(counts["n_blocks"]) != plain


@every_model
def test_candidates_are_independent(options):
    b = batch()
    other = jax.tree.map(np.copy, b)
    other["pos"]["item"][:, 1] = 3 + (b["pos"]["item"][:, 1] - 2) % 9
    other["dense"]["price"][:, 1] += 1
    a, c = outputs(b, **options), outputs(other, **options)
    np.testing.assert_allclose(a["uplift_ctcvr"][:, 0], c["uplift_ctcvr"][:, 0], atol=1e-7)
    assert np.abs(a["uplift_ctcvr"][:, 1] - c["uplift_ctcvr"][:, 1]).max() > 1e-5


def test_an_arm_that_training_never_had_counts_for_nothing():
    a, dense, state, rows = prepared()
    b = batch()
    weightless = {**b, "weight": b["weight"] * (np.arange(N) != 0)[:, None]}
    unknown = {**b, "pos": {**b["pos"], "treatment": np.r_[1, b["pos"]["treatment"][1:]]}}
    key = jax.random.key(0)
    loss = jax.jit(lambda b: a.loss(Params(dense, rows, state), b, key)[1][1]["loss/ctcvr"])
    np.testing.assert_allclose(loss(unknown), loss(weightless), rtol=1e-6)
    assert not np.allclose(loss(b), loss(weightless), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (dict(), dict(fuse="sum"), "fuse='sum'"),
        (dict(), dict(width=5), "width 5.*2 heads"),
        (dict(), dict(control=9), "model.control=9.*3"),
        (dict(), dict(depth=9), "'depth'"),
        (dict(without=["treatment"]), {}, "treatment"),
        (dict(without=["conversion"]), {}, "two labels"),
        (dict(), dict(table=dict(dim=3)), "model.table.dim"),
    ],
)
def test_bad_options(change, options, message):
    schema = SCHEMA.without(change.get("without", []))
    with pytest.raises((ValueError, SchemaError), match=message):
        models.build(schema, {"name": "ecup", **options})


# ---- figures ------------------------------------------------------------------------------------------------

GOLDEN = (
    np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
    np.array([1, 0] * 4),
    np.array([1, 0, 1, 0, 0, 0, 0, 1]),
)


def test_qini_golden_case():
    assert uplift.qini(*GOLDEN) == pytest.approx(0.265625)


def test_the_qini_of_a_constant_score_is_zero_when_ties_are_broken_at_random():
    rng = np.random.default_rng(0)
    t, y = rng.integers(0, 2, 2_000), rng.integers(0, 2, 2_000)
    shuffled = [uplift.qini(rng.random(2_000), t, y) for _ in range(100)]
    assert abs(np.mean(shuffled)) < 0.01
    assert uplift.qini(np.zeros(2_000), t, y) == pytest.approx(0, abs=1e-12)


def test_figures_by_arm():
    rng = np.random.default_rng(0)
    n = 40_000
    arm, effect = rng.integers(0, 3, n), rng.random((n, 2)) * [0.2, 0.4]
    level = 0.2 + np.take_along_axis(np.c_[np.zeros(n), effect], arm[:, None], 1)[:, 0]
    y = (rng.random(n) < level).astype(float)
    columns = dict(
        arm=arm, label=y, uplift_ctr=effect, covariates=rng.normal(size=(n, 3)),
        propensity=np.ones(n),
    )  # fmt: skip
    out = uplift.report(columns, {"ctr": "label"}, False)
    for t, true in ((1, 0.1), (2, 0.2)):
        assert abs(out[f"ate_ctr/{t}"] - true) < 3 * out[f"ate_se_ctr/{t}"]
        assert out[f"tau_ctr/{t}"] == pytest.approx(true, abs=0.002)
    assert out["qini_ctr/2"] > out["qini_ctr/1"] > 0 and out["uplift@10_ctr/2"] > 0.3
    assert out["qini_ctr/1"] < out["qini_ctr"] < out["qini_ctr/2"]
    for predicted, seen in uplift.calibration(effect[arm != 1, 1], arm[arm != 1] == 2, y[arm != 1]):
        assert seen == pytest.approx(predicted, abs=0.06)
    low, high = uplift.interval(effect, arm, y, n=20)
    assert 0 < low < out["qini_ctr"] < high
    low, high = uplift.interval(effect, rng.permutation(arm), y, n=20)
    assert low < 0 < high


def test_arms_that_are_not_comparable_are_not_judged():
    rng = np.random.default_rng(0)
    n = 4_000
    arm = rng.integers(0, 2, n)
    columns = dict(
        arm=arm, label=rng.integers(0, 2, n), uplift_ctr=rng.random((n, 1)),
        covariates=rng.normal(size=(n, 2)) + 0.3 * arm[:, None], propensity=np.where(arm, 0.6, 0.4),
    )  # fmt: skip
    out = uplift.report(columns, {"ctr": "label"}, False)
    assert out["imbalance"] > 0.2 and np.isnan(out["qini_ctr"]) and np.isnan(out["ate_ctr/1"])
    assert "model.propensity" in out["undefined"]
    assert np.isfinite(uplift.report(columns, {"ctr": "label"}, True)["qini_ctr"])


def test_rows_of_an_arm_that_training_never_had_are_no_control_group():
    rng = np.random.default_rng(0)
    n = 20_000
    arm = rng.integers(0, 3, n)
    y = (rng.random(n) < 0.2 + 0.1 * arm).astype(float)
    columns = dict(arm=arm, label=y, uplift_ctr=rng.random((n, 2)), propensity=np.ones(n),
                   covariates=rng.normal(size=(n, 2)))  # fmt: skip
    lost = (arm == 2) & (rng.random(n) < 0.5)
    out = uplift.report({**columns, "arm": np.where(lost, -1, arm)}, {"ctr": "label"}, False)
    rest = uplift.report({k: v[~lost] for k, v in columns.items()}, {"ctr": "label"}, False)
    assert out["unknown_arms"] == lost.sum() and rest["unknown_arms"] == 0
    assert {k: v for k, v in out.items() if k != "unknown_arms"} == {
        k: v for k, v in rest.items() if k != "unknown_arms"
    }


def test_a_row_weighs_the_same_whatever_batch_it_is_in():
    """share(t) is of the split, as its audit inverts it; arm 1 is three times as likely in the first half."""
    arm = np.array([0, 1, 1, 1, 1, 0, 0, 0])
    e = np.array([0.25, 0.75, 0.75, 0.75, 0.25, 0.75, 0.75, 0.75])
    np.testing.assert_allclose(uplift.inverse(np.full(8, 0.5), e), np.where(e > 0.5, 2 / 3, 2))
    assert uplift.inverse(np.ones(2), np.array([0.0, 1.0])).tolist() == [10.0, 1.0]
    y = np.r_[np.ones(4), np.zeros(4)]  # the half decides, the arm does nothing
    columns = dict(
        arm=arm, label=y, uplift_ctr=np.zeros((8, 1)), propensity=e, covariates=y[:, None]
    )
    assert abs(uplift.report(columns, {"ctr": "label"}, True)["ate_ctr/1"]) < 1e-12


def test_decisions():
    tau = np.array([[0.01, 0.03], [0.02, 0.021], [0.004, -0.01]])
    np.testing.assert_array_equal(uplift.decide(tau, 100.0, np.array([0.5, 1.0])), [2, 1, 0])
    np.testing.assert_array_equal(uplift.decide(tau, 0.0, np.array([0.5, 1.0])), [0, 0, 0])


def test_audit_repairs_spoilt_nuisances():
    """mu1 x 1.1 and CVR x 0.8 on purpose: the plug-in is .103 / .129, doubly robust within .005 of truth."""
    drawn = worlds.draw(worlds.World(), 400_000)
    shares = [worlds.CONTROL, *[(1 - worlds.CONTROL) / 4] * 4]
    for a, bad in ((0, 0.103), (4, 0.129)):
        mu1 = np.minimum(1.1 * drawn.ctr[:, a], 1)
        true = drawn.ctcvr[:, a] / drawn.ctr[:, a]
        mu2 = mu1 * 0.8 * true
        args = drawn.click, drawn.conversion, drawn.arm == a, shares[a]
        robust, plug_in = uplift.audit(mu1, mu2, *args)
        assert plug_in == pytest.approx(bad, abs=0.002)
        assert robust == pytest.approx(true.mean(), abs=0.005)


# ---- the loop: chain bias, propensities, resume, export -----------------------------------------------------


def config(cache_dir, *, people=4_000, **keys):
    c = configs.base()
    c.data.name = "worlds.ecup"
    c.data.prepare = dict(people=people)
    c.model.name = "ecup"
    c.model.norm = "identity"
    c.opt.lr = 1e-3
    c.train.batch, c.eval.batch = 2048, 8192
    c.train.log_every = 1000
    for key, value in keys.items():
        c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


TINY = dict(model__hidden=(16,), model__width=4, train__batch=500)


def test_chain_bias(cache_dir, tmp_path):
    """The coupon's effect is +0.05 over the chain; among clicked rows it looks like -0.20."""
    prepare = dict(people=100_000, chain=True)
    keys = dict(model__hidden=(16,), model__width=4, model__dropout=0.0, train__batch=1000)
    c = config(cache_dir, train__epochs=4, opt__lr=1e-2, opt__schedule="cosine", **keys)
    c.data.prepare = prepare
    test = train(c, tmp_path)["test"]
    assert test["tau_ctcvr/1"] == pytest.approx(0.05, abs=0.01)
    drawn = worlds.draw(worlds.World(**prepare))
    clicked = drawn.click
    naive, _ = uplift.effect(drawn.arm[clicked] == 1, drawn.conversion[clicked])
    assert naive < -0.15
    rates = [  # a conversion model of each arm that learns from its clicks alone, asked about the same people
        LogisticRegression()
        .fit(drawn.x[own], drawn.conversion[own])
        .predict_proba(drawn.x[clicked])
        for own in (clicked & (drawn.arm == t) for t in (0, 1))
    ]
    difference = rates[1] - rates[0]  # measured -0.128; the raw rates differ by -0.19
    assert difference[:, 1].mean() < -0.08


def test_propensities_repair_a_confounded_log(cache_dir, tmp_path):
    """x1 draws people to higher arms and clicks: the raw effect is too large, weighing repairs most of it."""
    keys = dict(train__epochs=5, opt__lr=3e-3, model__propensity=True)
    c = config(cache_dir, **keys, **TINY)
    c.data.prepare = dict(people=20_000, confounded=0.25)
    test = train(c, tmp_path)["test"]
    drawn = worlds.whole(worlds.World(**c.data.prepare))
    raw = uplift.imbalance(drawn.x, drawn.arm)
    assert raw > uplift.MOST_IMBALANCE  # without propensities it is not judged
    assert test["imbalance"] < 0.5 * raw and test["qini_ctcvr"] is not None
    own = (drawn.arm == 0) | (drawn.arm == 4)
    naive, _ = uplift.effect(drawn.arm[own] == 4, drawn.click[own])
    truth = worlds.TRUTH["ctr"][4] - worlds.TRUTH["ctr"][0]
    assert abs(test["ate_ctr/4"] - truth) < 0.5 * abs(naive - truth)


def test_resume_is_bit_for_bit(cache_dir, tmp_path, monkeypatch):
    from tests.test_contracts import interrupted, leaves

    c = config(cache_dir, people=6_000, train__checkpoint_every=5, **TINY)
    whole = train(c, tmp_path / "whole")
    interrupted(c, tmp_path / "cut", monkeypatch)
    resumed = train(c, tmp_path / "cut")
    a, b = leaves(tmp_path / "whole"), leaves(tmp_path / "cut")
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)
    assert whole["test"] == resumed["test"] and "qini_ctcvr" in whole["test"]


def test_export_and_score(cache_dir, tmp_path):
    """ "score" reads the given arm, "arms" none; recjax.score writes both beside the rows."""
    import pyarrow.parquet as pq

    c = config(cache_dir, people=2_000, **TINY)
    train(c, tmp_path / "run")
    _, data, system, trees, _ = open_run(tmp_path / "run")
    b = next(iter(data.batches("test", 64)))
    folder = tmp_path / "artifact"
    manifest = export_run(tmp_path / "run", folder, snapshot=False)
    assert "pos/treatment" in manifest["functions"]["score"]["inputs"]
    assert not any("treatment" in n for n in manifest["functions"]["arms"]["inputs"])
    scorer = Scorer(artifact.load(folder), "arms")
    scorer.verify()
    got = scorer.score(b)
    want = system.outputs(trees.params({}), b)
    np.testing.assert_allclose(got["uplift_ctcvr/4"], want["uplift_ctcvr"][..., 3], atol=1e-5)
    person = {f"x{i + 1}": 0.1 * i for i in range(20)}
    one = scorer.score_requests([person])[0]
    assert one["ctcvr/4"].shape == (1,) and one["uplift_ctr/1"] != 0
    given = [person | {"treatment": f"arm {t}"} for t in range(5)]
    by_arm = [r["probability"][0] for r in Scorer(artifact.load(folder)).score_requests(given)]
    np.testing.assert_allclose(by_arm, [one[f"ctr/{t}"][0] for t in range(5)], atol=1e-5)
    prepared_dir = str(worlds.prepare(cache_dir, people=2_000))
    for function, column in (("score", "ctcvr/probability"), ("arms", "uplift_ctcvr/2")):
        out = tmp_path / f"{function}.parquet"
        rows = batch_scoring.score(str(folder), prepared_dir, str(out), function=function)
        table = pq.read_table(out)
        assert rows == 1_000 and np.std(table[column].to_numpy()) > 0


# ---- recovery -----------------------------------------------------------------------------------------------


def judged(c, workdir):
    """(summary of the test split, its uplift columns by row)."""
    summary = train(c, workdir)["test"]
    config_, data, system, trees, _ = open_run(workdir, best=c.eval.use_best)
    kept = {}

    def keep(columns):
        kept.update(columns)
        return {}

    evaluator = Evaluator(dataclasses.replace(system, measure=keep), meshes.make())
    evaluator(trees, data.batches("test", c.eval.batch))
    order = np.argsort(kept["row"])
    return summary, {k: v[order] for k, v in kept.items()}


def recover(cache_dir, tmp_path, people, epochs, names=("ecup", "s")):
    """{name: (summary, columns)} of a planted trial, and the truth of its test split."""
    out = {}
    for name in names:
        c = config(cache_dir, people=people, train__epochs=epochs)
        c.eval.every = max(1, people // 2048 // 2)
        c.eval.use_best = True
        if name != "ecup":
            c.model.name, c.model.kind = "meta_learners", name
        out[name] = judged(c, tmp_path / name)
    drawn = worlds.whole(worlds.World(people=people))
    test = drawn.rows(worlds.parts(worlds.World(people=people))["test"])
    return out, test


def spearman(a, b):
    rank = lambda x: np.argsort(np.argsort(x))  # noqa: E731
    return float(np.corrcoef(rank(a), rank(b))[0, 1])


@pytest.mark.slow
def test_recovery_at_200k(cache_dir, tmp_path):
    """ECUP against an S-learner of equal size, one run each, 200,000 people (section 6 of the specification)."""
    out, test = recover(cache_dir, tmp_path, 200_000, 6)
    truth = test.ctcvr[:, 1:] - test.ctcvr[:, :1]
    figures = {}
    for name, (summary, columns) in out.items():
        tau = columns["uplift_ctcvr"]
        rho = [spearman(tau[:, t], truth[:, t]) for t in range(4)]
        error = [worlds.pehe(tau[:, t], truth[:, t]) for t in range(4)]
        figures[name] = rho, error, summary["qini_ctcvr"]
        print(name, "Spearman", np.round(rho, 3), "PEHE", np.round(error, 4), figures[name][2])
    rho, error, area = figures["ecup"]
    summary, columns = out["ecup"]
    arm, y = columns["arm"].astype(int), columns["ctcvr/label"]
    best = uplift.averaged(uplift.by_arm(uplift.qini, truth, arm, y), arm)
    print("Qini of the true effects", best)
    assert rho[0] >= 0.60 and min(rho[1:]) >= 0.75
    assert all(e <= 1.05 * s for e, s in zip(error, figures["s"][1], strict=True))
    assert area >= 0.8 * best
    means = [summary[f"tau_ctcvr/{t}"] for t in (1, 2, 3, 4)]
    assert means == sorted(means)
    for t in (1, 2, 3, 4):
        true = worlds.TRUTH["ctcvr"][t] - worlds.TRUTH["ctcvr"][0]
        assert abs(means[t - 1] - true) < 3 * summary[f"ate_se_ctcvr/{t}"]
    cvr = columns["ctcvr_arms"] / columns["ctr_arms"]
    change = cvr[:, 4] - cvr[:, 0]
    assert change[test.x[:, 3] < -0.25].mean() < 0 < change[test.x[:, 3] > 1.0].mean()


@pytest.mark.slow
@pytest.mark.parametrize("control", ["null", "shuffled"])
def test_nothing_is_found_where_nothing_is(control, cache_dir, tmp_path):
    c = config(cache_dir, people=100_000, train__epochs=2)
    c.data.prepare = {"people": 100_000, control: True}
    summary, columns = judged(c, tmp_path)
    arm, y = columns["arm"].astype(int), columns["ctcvr/label"]
    low, high = uplift.interval(columns["uplift_ctcvr"], arm, y, n=100)
    print(control, "Qini", summary["qini_ctcvr"], "interval", low, high)
    assert low < 0 < high
    for t in (1, 2, 3, 4):
        assert abs(summary[f"tau_ctcvr/{t}"]) < 3 * summary[f"ate_se_ctcvr/{t}"]


def test_recovery_small(cache_dir, tmp_path):
    """The strongest arm's click effects are ordered right at 20,000 people (its control is among the slow ones)."""
    c = config(cache_dir, people=20_000, train__epochs=8, opt__lr=3e-3, **TINY)
    _, columns = judged(c, tmp_path)
    world = worlds.World(people=20_000)
    test = worlds.whole(world).rows(worlds.parts(world)["test"])
    assert spearman(columns["uplift_ctr"][:, 3], test.ctr[:, 4] - test.ctr[:, 0]) > 0.5
