"""TARQ: the exact properties and golden numbers of its specification (section 6)."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from recjax import configs, models
from recjax.inputs import embed
from recjax.layers import residual_quantizer as rq
from recjax.metrics.ranking import kept_share
from recjax.models import tarq
from recjax.models.parts import tarq_attention
from recjax.schema import SchemaError
from recjax.training.loop import train
from recjax.trees import Params
from tests.messages import raises
from tests.models.worlds import SCHEMA, close, far, jit, make, world

W = world(b=4, c=3, n=6)
EMPTY = world(b=4, c=3, n=6, lengths=0)
SIZES = dict(width=8, levels=2, codes=6, tower=(8,), encoder=(8,), teacher_head=(8,), rank=3)
RNG = np.random.default_rng(0)


@functools.cache
def model(**options):
    return make(models.build(SCHEMA, dict(name="tarq", **SIZES, **options)), W)


def module_of(**options):
    return tarq.TARQ(
        SCHEMA, **SIZES, history="views", item_features=("item", "category"), item_width=16, **options
    )  # fmt: skip


def passed(m, w, module, **how):
    """Everything a pass over the module gives, un-jitted."""
    batch = w.batch()
    inputs = embed(SCHEMA, m.rows(batch), batch)
    return module.apply({"params": m.dense, **m.state}, inputs, **how)


@functools.cache
def served(**options):
    """item, request and candidates of a model, compiled once."""
    exports = model(**options).system.exports
    return {k: jit(e.fn) for k, e in exports.items() if k != "score"}


def through_parts(w, candidates=None, **options):
    """Logits of the three functions; `candidates`: which, in which order, of stored items."""
    m, batch, fns = model(**options), w.batch(), served(**options)
    params = m.params(batch)
    item, request = fns["item"](params, batch), fns["request"](params, batch)
    if candidates is not None:
        last = ("codes", "readout")  # their axis of candidates
        item = {k: x[..., candidates] if k in last else x[:, candidates] for k, x in item.items()}
    out = fns["candidates"](params, {**batch, "item": item, "request": request})["logits"]
    return np.asarray(out), item, request


# ---- 1: what is served is what was trained -------------------------------------------------------


VARIANTS = [{}, dict(readout="low_rank"), dict(readout="scalar"), dict(variant="two_tower"),
            dict(variant="target_attention")]  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_parts_give_the_whole(options):
    m = model(**options)
    whole, outs = m.logits(W), m.outputs(W)
    parts, item, _ = through_parts(W, **options)
    close(parts, whole, 1e-5)
    order = np.array([2, 0])
    close(through_parts(W, order, **options)[0], whole[:, order], 1e-5)
    if "codes" in outs:
        np.testing.assert_array_equal(np.swapaxes(item["codes"], 1, 2), outs["codes"])
        assert item["codes"].dtype == jnp.uint8
        wrong = served(**options)["candidates"](
            Params(m.dense, {}, m.state),
            {**W.batch(), "item": {**item, "codes": (item["codes"] + 1) % 6},
             "request": through_parts(W, **options)[2]},
        )  # fmt: skip
        assert far(wrong["logits"], whole, 1e-4), "control: other codes"


def test_items_know_no_request_and_requests_no_item():
    other = world(b=4, c=3, n=6, seed=9)
    own = {f: W.raw[f] for f in ("item", "category")}
    _, item, request = through_parts(W)
    _, same, moved = through_parts(other.replace(**own))
    close(same, item, 1e-6)
    assert far(moved["tables"], request["tables"]) and far(moved["user"], request["user"])
    changed = {f: W.raw[f] % 7 + 3 for f in own}
    _, there, again = through_parts(W.replace(**changed))
    close(again, request, 1e-6)
    assert far(there["vector"], item["vector"])
    # what depends on the request is not read
    close(model().logits(W.replace(count=W.raw["count"] + 5)), model().logits(W), 1e-6)


def test_the_table_and_the_codes_that_are_asked_for_agree():
    m, module = model(), module_of()
    few, all_codes = passed(m, W, module), passed(m, W, module, tables=4)
    assert "tables" not in few and all_codes["tables"].shape == (4, 2, 6, 8)
    close(few["h_rq"], all_codes["h_rq"], 1e-5)
    close(few["logits"], all_codes["logits"], 1e-5)
    some = passed(m, W, module, tables=2)
    close((some["tables"], some["h_rq"]), (all_codes["tables"][:2], few["h_rq"]), 1e-5)
    functions = tarq.Functions(module, tarq.Weights(), "click", None)
    a, b = (dict((k, v) for k, _, v in functions.terms(out))["align"] for out in (some, all_codes))
    close(a, b[:2], 1e-5)


def test_an_empty_history_falls_back_to_the_towers():
    m = model()
    out = through_parts(EMPTY)[2]
    assert not np.asarray(out["tables"]).any() and np.asarray(through_parts(W)[2]["tables"]).any()
    towers = model(variant="two_tower")
    dense = {k: m.dense[k] for k in towers.dense}
    close(towers.replace(dense=dense, tables=m.tables).logits(EMPTY), m.logits(EMPTY), 1e-5)
    assert far(towers.replace(dense=dense, tables=m.tables).logits(W), m.logits(W))


def test_padding_never_matters():
    m = model()
    past = [f.name for f in SCHEMA.select("history")]
    wild = {f: np.where(W.mask, W.raw[f], 7).astype(np.int32) for f in past}
    np.testing.assert_array_equal(m.logits(W.replace(**wild)), m.logits(W))
    assert far(m.logits(W.replace(**wild, mask=np.ones_like(W.mask))), m.logits(W))


# ---- 3 and 4: when a sum of attentions is the attention of the sum -------------------------------


def attention(linear):
    a = tarq_attention.HistoryAttention(8, 2, linear)
    h, mask = (
        RNG.normal(size=(3, 5, 8)).astype(np.float32),
        np.arange(5) >= np.array([[0], [2], [5]]),
    )
    params = a.init(jax.random.key(0), h, h, mask)
    return lambda q: np.asarray(a.apply(params, q, h, mask))


def test_linear_attention_of_a_sum_is_the_sum_of_attentions():
    parts = RNG.normal(size=(4, 3, 7, 8)).astype(np.float32)  # L = 4
    for linear in (True, False):
        attend = attention(linear)
        together, apart = attend(parts.sum(0)), sum(attend(p) for p in parts)
        relative = np.abs(together - apart).max() / np.abs(together).max()
        assert (relative < 1e-5) if linear else (relative > 1e-2)
        assert not together[2].any(), "no event seen"


def test_folding_the_projection_into_the_values_changes_nothing():
    a = tarq_attention.HistoryAttention(8, 2)
    h, q = (RNG.normal(size=s).astype(np.float32) for s in [(3, 5, 8), (7, 8)])
    mask, project = np.ones((3, 5), bool), RNG.normal(size=(8, 3)).astype(np.float32)
    params = a.init(jax.random.key(0), h, h, mask)
    whole = a.apply(params, np.broadcast_to(q, (3, 7, 8)), h, mask)
    close(a.apply(params, q, h, mask), whole, 1e-5)
    folded = a.apply(params, q, h, mask, project, method="read")
    close(folded, np.swapaxes(whole @ project, 1, 2), 1e-5)


def test_with_every_item_its_own_code_the_student_is_the_teacher():
    options = dict(levels=1, codes=12, width=8)
    sizes = {**SIZES, **options}
    m = make(models.build(SCHEMA, dict(name="tarq", **sizes)), W)
    module = tarq.TARQ(SCHEMA, **sizes, history="views", item_features=("item", "category"), item_width=16)  # fmt: skip
    out = passed(m, W, module)
    assert far(out["h_rq"], out["h_tar"]), "control: random codebook and weights"
    dense = {**m.dense, "student_attention": m.dense["teacher_attention"]}
    dense["quantizer"] = {"codebooks": np.asarray(out["c"]).reshape(1, 12, 8)}
    perfect = passed(m.replace(dense=dense), W, module)
    close(perfect["h_rq"], perfect["h_tar"], 1e-5)
    close(perfect["vectors"], perfect["c"], 1e-6)
    w = RNG.normal(size=8)
    scores = [np.asarray(perfect[k] @ w).ravel() for k in ("h_rq", "h_tar")]
    assert kept_share(*scores, k=5) == 1.0
    apart = [np.asarray(out[k] @ w).ravel() for k in ("h_rq", "h_tar")]
    assert kept_share(*apart, k=5) < 1.0


# ---- 5: alignment --------------------------------------------------------------------------------


def spaces(b=3, c=2, levels=2, size=5, width=4, seed=0):
    rng = np.random.default_rng(seed)
    books = rng.normal(size=(levels, size, width)).astype(np.float32)
    v = rng.normal(size=(b, c, width)).astype(np.float32)
    return books, v, rq.quantize(v, books).codes, rng


def test_rotated_spaces_are_aligned_and_unrelated_ones_are_not():
    books, v, codes, rng = spaces()
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0].astype(np.float32)
    turned = np.broadcast_to(books @ rotation, (3, *books.shape))
    a = tarq_attention.alignment(v, v @ rotation, books, turned, codes)
    np.testing.assert_allclose(a, 0, atol=1e-5)
    tables = rng.normal(size=(3, *books.shape)).astype(np.float32)
    apart = np.asarray(tarq_attention.alignment(v, rng.normal(size=v.shape), books, tables, codes))
    assert (apart > 0.1).all() and a.shape == apart.shape == (3, 2)


def test_alignment_is_symmetric_in_the_two_spaces():
    books, v, codes, rng = spaces(b=1)
    table, h = rng.normal(size=books.shape).astype(np.float32), rng.normal(size=v.shape)
    one = tarq_attention.alignment(v, h, books, table[None], codes)
    close(tarq_attention.alignment(h, v, table, books[None], codes), one, 1e-5)


def test_requests_without_events_are_not_aligned():
    """Their tables are zero: A would ask for uniform codes and nothing else."""
    m = model(align=1.0)
    b = W.batch()
    empty = {**b, "mask": {k: np.zeros_like(x) for k, x in b["mask"].items()}}

    def align(batch):
        sums = m.system.loss(m.params(batch), batch, jax.random.key(0))[1][1]
        return sums["loss/align"]

    assert float(align(b)[0]) > 0
    assert [float(x) for x in align(empty)] == [0.0, 0.0]


def test_gradients_of_alignment():
    books, v, codes, rng = spaces()
    tables = rng.normal(size=(3, *books.shape)).astype(np.float32)
    h = rng.normal(size=v.shape).astype(np.float32)

    def a(v, books, tables):
        return tarq_attention.alignment(v, h, books, tables, codes).sum()

    check_grads(a, (v, books, tables), order=1, modes=["rev"], atol=0.05, rtol=0.05, eps=1e-2)
    to_teacher = jax.grad(lambda h: tarq_attention.alignment(v, h, books, tables, codes).sum())(h)
    assert not np.asarray(to_teacher).any()


@pytest.mark.parametrize("stopped", [False, True])
def test_which_parts_each_loss_trains(stopped):
    """distil: the student alone; align: codebooks, the student and, unless stopped, the encoder; neither: the teacher."""
    m = model()
    module = module_of(align_sg_item=stopped)
    batch = W.batch()
    inputs = embed(SCHEMA, m.rows(batch), batch)
    functions = tarq.Functions(module, tarq.Weights(), "click", None)

    @functools.partial(jit, static_argnums=1)
    def grads(dense, name):
        def term(dense):
            out = module.apply({"params": dense, **m.state}, inputs, tables=4)
            return {k: v.sum() for k, _, v in functions.terms(out)}[name]

        return jax.grad(term)(dense)

    def trained(name):
        found = grads(m.dense, name)
        return {k for k, g in found.items() if max(np.abs(x).max() for x in jax.tree.leaves(g)) > 1e-7}  # fmt: skip

    history = {"event", "self_attention"}
    encoder = {"encode_mlp", "encode_out"}
    assert trained("distil") == {"student_attention", "quantizer", *history}
    align = {"student_attention", "quantizer", *history}
    assert trained("align") == (align if stopped else align | encoder)
    if not stopped:
        assert trained("vq") == {"quantizer", *encoder}
        assert trained("reconstruction") == {"decode_mlp", "decode_out", *encoder}


# ---- 6: cost -------------------------------------------------------------------------------------


def attention_rows(fn, *args):
    """Query rows a request of each attention that `fn` runs, by tracing alone."""
    rows = []

    def note(next_fun, args, kwargs, context):
        if context.method_name == "weights":
            rows.append(args[0].shape[-2])
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(fn, *args)
    return rows


def test_attention_queries_do_not_grow_with_the_candidates():
    m = model()
    for n in (10, 1_000, 10_000):
        w = world(b=1, c=n, n=6)
        batch = w.batch()
        params = m.params(batch)
        rows = attention_rows(m.system.exports["request"].fn, params, batch)
        assert sorted(rows) == [1, 6, 2 * 6], "user, history, L K codes"
        exact = model(variant="target_attention")
        params = params.replace(dense=exact.dense)
        assert n in attention_rows(exact.system.exports["score"].fn, params, batch)


def float_operations(jaxpr):
    """Additions and multiplications of floats in a program."""
    total = 0
    for eqn in jaxpr.eqns:
        out = eqn.outvars[0].aval
        inner = [getattr(v, "jaxpr", v) for v in eqn.params.values() if hasattr(v, "eqns")]
        total += sum(float_operations(j) for j in inner)
        if out.dtype != jnp.float32:
            continue
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * out.size * np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
        elif eqn.primitive.name in ("add", "mul"):
            total += out.size
    return total


def test_a_candidate_costs_look_ups_and_two_products():
    def each(width, levels, n=1_000):
        zeros = lambda *shape, dtype=np.float32: np.zeros(shape, dtype)  # noqa: E731
        request = zeros(1, width), zeros(1, levels, width, 16)
        item = zeros(1, n, width), zeros(1, levels, n, dtype=np.uint8), zeros(1, width, n)

        def score(request, item):
            towers = tarq_attention.dot("bd,bcd->bc", request[0], item[0])
            return towers + tarq_attention.read_tables(request[1], item[1], item[2])

        return float_operations(jax.make_jaxpr(score)(request, item).jaxpr) / n

    per_width = {levels: (each(32, levels) - each(16, levels)) / 16 for levels in (2, 4)}
    for levels, cost in per_width.items():  # L - 1 additions and two multiply-adds, at least
        assert levels + 2 <= cost <= 2 * (levels + 2)
    assert per_width[4] - per_width[2] == pytest.approx(2, abs=0.1)


# ---- losses, hooks and figures -------------------------------------------------------------------


def test_the_loss_is_the_sum_of_its_parts():
    m = model()
    (total, _, sums), _ = m.loss_and_grads(W)
    value = {k: float(n / d) for k, (n, d) in sums.items()}
    want = value["loss"] + value["loss/teacher"]
    want += 0.1 * (value["loss/vq"] + value["loss/reconstruction"])
    want += 0.05 * value["loss/distil"] + 0.01 * value["loss/align"]
    assert float(total) == pytest.approx(want, rel=1e-5)
    codes, errors = (np.asarray(m.outputs(W)[k]) for k in ("codes", "errors"))
    used = np.mean([len(np.unique(codes[..., i])) / 6 for i in range(2)])
    assert value["codes/utilisation"] == pytest.approx(used)
    found = tarq.measure(6, {"codes": codes.reshape(-1, 2), "errors": errors.reshape(-1, 4)})
    assert found["quantisation"] == pytest.approx(value["quantisation"], rel=1e-4)
    assert found["imitation"] == pytest.approx(value["imitation"], rel=1e-4)
    assert found["codes/utilisation/1"] == len(np.unique(codes[..., 1])) / 6


def test_codebooks_without_gradient_have_their_hook():
    assert model().system.after_step is None and "codes" not in model().state
    system = models.build(SCHEMA, dict(name="tarq", codebook="ema", codebook_init="kmeans", reset_after=9, **SIZES))  # fmt: skip
    m = make(system, W)
    assert "quantizer" not in m.dense and system.after_step is not None
    (_, state, _), _ = m.loss_and_grads(W)
    trees = m.replace(state=state).trees
    changed = jit(system.after_step)(trees, jax.random.key(0))
    assert jax.tree.structure(changed) == jax.tree.structure(trees)
    assert state["codes"]["quantizer"]["seen"] == 12


def test_students_may_share_the_teachers_weights_and_rivals_are_its_parts():
    assert "student_attention" in model().dense
    assert "student_attention" not in model(share_attention=True).dense
    m, exact = model(), model(variant="target_attention")
    dense = {k: m.dense[k] for k in exact.dense}
    teacher = m.outputs(W)["teacher"]
    close(exact.replace(dense=dense, tables=m.tables).logits(W), teacher, 1e-5)
    names = {o.name for o in m.system.objectives}
    assert names == {"", "teacher"} and len(exact.system.objectives) == 1


def test_kept_share():
    reference = np.arange(10.0)
    assert kept_share(reference, reference, 3) == 1.0
    assert kept_share(-reference, reference, 3) == 0.0
    swapped = reference.copy()
    swapped[[7, 6]] = swapped[[6, 7]]
    assert kept_share(swapped, reference, 3) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="k=11"):
        kept_share(reference, reference, 11)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(variant="exact"), "variant='exact'.*'tarq', 'two_tower'"),
        (dict(width=9), "heads=2.*width=9"),
        (dict(codes=0), "codes=0"),
        (dict(align=-1.0), "align=-1.0"),
        (dict(item_features=("count",)), "item_features.*'count'"),
        (dict(event_features=("item",)), "event_features.*'item'.*'views'"),
        (dict(lambda_d=1), "'lambda_d'"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        models.build(SCHEMA, dict(name="tarq", **options))


def test_a_schema_without_items_is_refused():
    with raises(SchemaError, "tarq", "candidate"):
        models.build(SCHEMA.without(["item", "category"]), dict(name="tarq"))


def test_bfloat16_keeps_parameters_and_distances_in_float32():
    low = models.build(SCHEMA, dict(name="tarq", compute_dtype="bfloat16", **SIZES))
    m, batch = model(), W.batch()
    args = m.rows(batch), batch
    dense, state = jax.eval_shape(low.init, jax.random.key(0), *args)
    assert {x.dtype for x in jax.tree.leaves(dense)} == {jnp.dtype("float32")}
    loss = jax.eval_shape(low.loss, Params(dense, args[0], state), batch, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(loss)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_planted_ordering(tmp_path):
    """Section 6, test 8; some 3 minutes of a core: pytest -m slow tests/models/test_tarq.py."""
    found = {}
    for variant in ("two_tower", "tarq", "target_attention"):
        config = configs.load("experiments/tarq_planted.py")
        config.model.variant = variant
        found[variant] = train(config, tmp_path / variant)["test"]
    tarq_auc = found["tarq"]["auc"]
    assert found["two_tower"]["auc"] + 0.015 <= tarq_auc
    assert tarq_auc <= found["target_attention"]["auc"] + 0.003
    assert found["tarq"]["quantisation"] <= 0.25 and found["tarq"]["imitation"] <= 0.15
