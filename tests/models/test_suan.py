"""SUAN: the numbered checks of its specification, each with a control that must fail."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import models
from recjax.layers.attention import Pairs
from recjax.models import suan
from recjax.models.parts.suan_block import (
    AlignmentGate,
    CrossAttention,
    FullPattern,
    SelfAttention,
    UnifiedAttentionBlock,
    block_flops,
    block_parameters,
)
from recjax.schema import SchemaError
from tests.messages import raises
from tests.models.worlds import SCHEMA, close, far, finite, jit, key, make, perturbed, world

W = world(b=4, c=3, n=8)
SMALL = dict(name="suan", blocks=1, head=(8,), head_activation="silu", head_norm="none")


@functools.cache
def build(**options):
    return models.build(SCHEMA, {**SMALL, **options})


@functools.cache
def model(**options):
    return make(build(**options), W)


# --- The block alone: behaviours [B, n, D], one candidate, profile [B, n2, d].
B, N, WIDTH, DIM = 2, 6, 8, 4
VALID = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
CAUSAL = (Pairs(VALID[:, None, None] & np.tril(np.ones((N, N), bool)), None),)
SEEN = Pairs(np.append(VALID, np.ones((B, 1), bool), 1)[:, None, None], None)


def rows(seed=0, c=1):
    rng = np.random.default_rng(seed)
    shapes = (B, N, WIDTH), (B, c, WIDTH), (B, 3, DIM)
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


@functools.cache
def block(**options):
    """(module, params, jitted apply)."""
    module = UnifiedAttentionBlock(WIDTH, 2, **options)
    params = jit(module.init)(key(0), *rows(), CAUSAL, SEEN, VALID)["params"]
    apply = jit(lambda p, b, c, e: module.apply({"params": p}, b, c, e, CAUSAL, SEEN, VALID))
    return module, perturbed(params), apply


def test_self_attention_is_causal():
    x, _, _ = rows()
    module = SelfAttention(WIDTH, 2, FullPattern())
    pairs = (Pairs(np.tril(np.ones((1, 1, N, N), bool)), None),)

    @jit
    def run(x):
        params = module.init(key(0), x, pairs, method="behaviours")
        return module.apply(params, x, pairs, method="behaviours")[0]

    before, j, changed = run(x), 3, x.copy()  # JAX may still be reading x
    changed[:, j] += 1.0
    after = run(changed)
    np.testing.assert_array_equal(after[:, :j], before[:, :j])
    assert far(after[:, j:], before[:, j:])


@pytest.mark.parametrize("gate_pool", ["full", "behaviour", "causal"])
def test_only_the_causal_gate_makes_a_causal_block(gate_pool):
    _, params, apply = block(gate_pool=gate_pool)
    b, c, e = rows()
    before, _ = apply(params, b, c, e)
    changed = b.copy()  # JAX may still be reading b
    changed[:, 4] += 1.0
    after, _ = apply(params, changed, c, e)
    if gate_pool == "causal":
        close(after[:, :4], before[:, :4], 1e-6)
    else:  # documents the conflict: attention is causal, the block is not
        assert far(after[:, 2:4], before[:, 2:4])


@pytest.mark.parametrize("gate_pool", ["full", "behaviour", "causal"])
def test_behaviours_depend_on_the_candidate_with_the_full_gate_only(gate_pool):
    _, params, apply = block(gate_pool=gate_pool)
    b, c, e = rows()
    assert far(apply(params, b, c, e)[0], apply(params, b, c + 1, e)[0]) == (gate_pool == "full")


def test_the_causal_gate_of_a_candidate_is_the_full_one():
    _, params, full = block(gate_pool="full")
    close(full(params, *rows())[1], block(gate_pool="causal")[2](params, *rows())[1])
    assert far(full(params, *rows())[1], block(gate_pool="behaviour")[2](params, *rows())[1])


def test_the_gate_is_one_for_all_rows_unless_causal():
    seen = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, AlignmentGate) and context.method_name == "__call__":
            seen.append(args[0].shape[1])
        return call(*args, **kwargs)

    for gate_pool in ("full", "behaviour", "causal"):
        module, params, _ = block(gate_pool=gate_pool)
        with nn.intercept_methods(spy):
            jax.eval_shape(
                lambda p, m=module: m.apply({"params": p}, *rows(), CAUSAL, SEEN, VALID), params
            )
    assert seen == [1, 1, 1, 1, N, 1]  # behaviours, candidate, for each


@pytest.mark.parametrize("residual", ["normalised", "raw"])
def test_the_released_residual_makes_the_block_scale_invariant(residual):
    _, params, apply = block(residual=residual)
    b, c, e = rows()
    once, scaled = apply(params, b, c, e), apply(params, 5 * b, 5 * c, e)
    if residual == "normalised":
        close(once, scaled, 2e-5)
    else:
        assert far(once, scaled, 0.1)


def test_gate_weights_sum_to_one_and_equal_branches_share_alike():
    gate = AlignmentGate(WIDTH)
    x, y = rows(0)[0], rows(1)[0]
    params = perturbed(gate.init(key(0), x, x, y))["params"]
    own, cross = gate.apply({"params": params}, x, method="weights")
    close(own + cross, np.ones_like(own))
    assert far(own, 0.5 * np.ones_like(own))
    params["to_cross"] = params["to_self"]
    close(gate.apply({"params": params}, x, x, y), (x + y) / 2)


def test_cross_attention_to_one_token_and_in_any_order():
    x, _, e = rows()
    cross = CrossAttention(WIDTH, 2)
    params = perturbed(cross.init(key(0), x, e))
    run = jit(cross.apply)
    close(run(params, x, e), run(params, x, e[:, ::-1]))
    one = run(params, x, e[:, :1])
    p = params["params"]
    want = e[:, :1] @ p["value"]["kernel"] @ p["out"]["kernel"]
    close(one, np.broadcast_to(want, one.shape))
    assert far(run(params, x, e), one)


@pytest.mark.parametrize(
    "width, dim, want",
    [(40, 8, 26_240), (80, 16, 104_160), (160, 32, 415_040), (320, 64, 1_656_960)],
)
def test_parameters_of_a_block(width, dim, want):
    module = UnifiedAttentionBlock(width, 2)
    shapes = (B, N, width), (B, 1, width), (B, 3, dim)
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    tree = jax.eval_shape(lambda *a: module.init(key(0), *a, CAUSAL, SEEN, VALID), *args)
    assert sum(x.size for x in jax.tree.leaves(tree)) == block_parameters(width, dim) == want


def test_flops_of_a_block_agree_with_the_compiler():
    width, dim, n, n2 = 128, 16, 63, 4
    module = UnifiedAttentionBlock(width, 2)
    args = [jnp.ones((1, t, w)) for t, w in ((n, width), (1, width), (n2, dim))]
    pairs = (Pairs(np.tril(np.ones((1, 1, n, n), bool)), None),)
    seen, valid = Pairs(np.ones((1, 1, 1, n + 1), bool), None), np.ones((1, n), bool)
    params = jit(module.init)(key(0), *args, pairs, seen, valid)
    compiled = jit(module.apply).lower(params, *args, pairs, seen, valid).compile()
    want = block_flops(width, dim, n + 1, n2, pairs=n * n + n + 1)
    assert compiled.cost_analysis()["flops"] == pytest.approx(want, rel=0.1)
    dense = block_flops(width, dim, n + 1, n2)
    assert (
        dense - want == 4 * width * n
    )  # the behaviours' scores against the candidate, never computed


# --- The whole model.
@pytest.mark.parametrize("gate_pool", ["full", "causal"])
def test_padding_is_inert(gate_pool):
    m = model(gate_pool=gate_pool, max_history=12)
    want = m.logits(W)
    close(m.logits(W.padded(3)), want)
    garbage = W.raw["past_item"] + np.where(W.mask, 0, 7).astype(np.int32)
    close(m.logits(W.replace(past_item=garbage, age=W.age + np.where(W.mask, 0, 99))), want)
    assert far(m.logits(W.replace(past_item=W.raw["past_item"] + 7 * W.mask)), want)


def test_a_history_too_long_for_the_tables_is_refused():
    with pytest.raises(ValueError, match="max_history=4"):
        make(build(max_history=4), W)


@pytest.mark.parametrize("gate_pool", ["full", "behaviour", "causal"])
def test_an_empty_history_is_finite(gate_pool):
    m, empty = model(gate_pool=gate_pool), world(b=4, c=3, n=8, lengths=0)
    (loss, _, _), grads = m.loss_and_grads(empty)
    assert np.isfinite(loss) and finite(grads) and finite(m.logits(empty))


def test_order_matters_through_the_biases_alone():
    """Without biases, positions and a causal mask a block does not know the order."""
    w = world(b=4, c=3, n=8, lengths=8)
    order = np.random.default_rng(0).permutation(8)
    history = {f.name: w.raw[f.name][:, order] for f in SCHEMA.select("history")}
    shuffled = w.replace(**history, age=w.age[:, order])
    blind = dict(causal=False, abs_pos=False)
    close(
        model(**blind, attention_bias=False).logits(w),
        model(**blind, attention_bias=False).logits(shuffled),
    )
    for sees in (
        dict(blind),
        dict(abs_pos=False, attention_bias=False),
        dict(causal=False, attention_bias=False),
    ):
        assert far(model(**sees).logits(w), model(**sees).logits(shuffled))


def test_time_gaps_matter_through_the_time_bias_alone():
    w = W.replace(age=np.where(W.mask, W.age // 7, 0).astype(np.int32))
    assert far(model(gate_pool="causal").logits(W), model(gate_pool="causal").logits(w))
    blind = model(gate_pool="causal", time_bias=False)
    close(blind.logits(W), blind.logits(w))


def test_only_the_candidate_s_row_is_read_out():
    m = model(blocks=2)

    def logits(kill):
        def last(call, args, kwargs, context):
            outs = call(*args, **kwargs)
            if (
                context.module.name == "layers_1"
                and context.method_name == "__call__"
                and kill is not None
            ):
                outs = tuple(jnp.zeros_like(x) if i == kill else x for i, x in enumerate(outs))
            return outs

        batch = W.batch()
        params = m.params(batch)
        with nn.intercept_methods(last):
            return jit(lambda b: m.system.outputs(params, b)["logits"])(batch)

    want = logits(None)
    close(logits(0), want)
    assert far(logits(1), want)


@pytest.mark.parametrize("gate_pool, blocks", [("causal", 1), ("causal", 3), ("behaviour", 2)])
def test_candidates_scored_together_equal_one_by_one(gate_pool, blocks):
    m = model(gate_pool=gate_pool, blocks=blocks)
    together = m.logits(W)
    for c in range(3):
        close(m.logits(W.of_candidates([c])), together[:, [c]])
    close(m.logits(W.of_candidates([2, 0, 1])), together[:, [2, 0, 1]])


def test_the_full_gate_unfolded_mixes_candidates():
    """Why "full" is folded to one candidate per row: side by side, they enter each other's mean."""
    m = model(gate_pool="full", blocks=2)
    module = suan.SUAN(
        SCHEMA, **{k: v for k, v in SMALL.items() if k not in ("name", "blocks")}, blocks=2
    )

    @jit
    def encode(batch):
        inputs = suan.embed(SCHEMA, m.rows(batch), batch)
        return module.apply({"params": m.dense, **m.state}, inputs, method="encode")

    assert far(encode(W.batch())[:, :1], encode(W.of_candidates([0]).batch()), 0.01)
    close(m.logits(W)[:, :1], m.logits(W.of_candidates([0])))  # folded


def test_remat_changes_no_number():
    m = model(gate_pool="causal")
    again = m.replace(system=build(gate_pool="causal", remat=True))
    (loss, _, _), grads = m.loss_and_grads(W)
    (other, _, _), other_grads = again.loss_and_grads(W)
    close((loss, grads), (other, other_grads))


KITCHEN_SINK = [
    dict(width=12, target="zero_fill", time_emb=("past_hour", "hour"), norm="layer", ffn="relu", per_head_bias=True,
         per_block_bias=True, blocks=2, residual="raw", head_norm="batch", head_activation="dice", logit_bn=True),
    dict(cross_scale="n2", dropout=0.1, dense_norm="identity", gate_pool="behaviour", target_aware=False),
    dict(af_net=False, gate_pool="causal", remat=True, dropout=0.2),
    dict(alignment=False, head_activation="prelu", head_norm="rms"),
]  # fmt: skip


@pytest.mark.parametrize("options", KITCHEN_SINK, ids=lambda o: next(iter(o)))
def test_every_option_trains_and_matters(options):
    m = model(**options)
    (loss, state, _), grads = m.loss_and_grads(W)
    assert 0.1 < loss < 5 and finite(grads)
    used = jax.tree.map(lambda g: bool(np.abs(g).max() > 0), grads[0])
    unused = [
        jax.tree_util.keystr(p) for p, u in jax.tree_util.tree_leaves_with_path(used) if not u
    ]
    # A bias before batch normalisation has no gradient but rounding; nothing else may be idle.
    assert all("bias" in p and "bias_" not in p for p in unused), unused


def test_bias_tables_per_head_and_block():
    shapes = jax.tree.map(np.shape, model(**KITCHEN_SINK[0]).dense)
    assert shapes["biases_1"] == {"position": (2, 17), "time": (2, 129)}
    assert "biases_1" not in model(blocks=2).dense


def test_width_is_free_of_the_table_s():
    dense = model(**KITCHEN_SINK[0]).dense
    assert dense["behaviour_projection"]["kernel"].shape == (24, 12)
    assert "behaviour_projection" not in model().dense


def test_bfloat16_stays_near_float32():
    m = model(gate_pool="causal")
    low = m.replace(system=build(gate_pool="causal", compute_dtype="bfloat16"))
    (_, _, _), grads = low.loss_and_grads(W)
    assert finite(grads) and {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(low.logits(W), m.logits(W), atol=0.1)
    assert low.logits(W).dtype == np.float32


def test_one_output_per_label():
    m = make(build(labels=("like", "click")), W)
    assert set(m.outputs(W)) == {"logits", "click"}
    assert [(o.output, o.label, o.name) for o in m.system.objectives] == [
        ("logits", "like", ""),
        ("click", "click", "click"),
    ]
    assert far(m.outputs(W)["logits"], m.outputs(W)["click"])


@pytest.mark.parametrize("gate_pool", ["full", "causal"])
def test_cached_prefix_gives_the_same_logits(gate_pool):
    m = model(gate_pool=gate_pool, blocks=2)
    exports = m.system.exports
    if gate_pool == "full":
        assert set(exports) == {"score"}
        return
    assert {k: e.cadence for k, e in exports.items()} == {
        "score": "request",
        "prefix": "event",
        "candidates": "candidate",
    }
    batch = W.batch()

    def call(name, batch):
        return jit(lambda b: exports[name].fn(m.params(b), b))(batch)

    def only(*roles):
        names = [f.name for f in SCHEMA.select(*roles)]
        return {
            kind: {k: x for k, x in batch[kind].items() if k in names} for kind in ("pos", "dense")
        }

    cache = call("prefix", {**batch, **only("history", "profile")})
    assert all(x.shape[0] == 4 for x in cache.values())
    rest = {**batch, **only("profile", "context", "candidate"), "cache": cache}
    close(call("candidates", rest)["logits"], m.logits(W))
    # The control: a candidate one position later, past an empty slot, scores differently.
    later = {f.name: np.roll(W.raw[f.name], -1, 1) for f in SCHEMA.select("history")}
    shifted = W.replace(**later, mask=np.roll(W.mask, -1, 1), age=np.roll(W.age, -1, 1))
    full = world(b=4, c=3, n=8).mask[:, 0]
    assert far(m.logits(shifted)[~full], m.logits(W)[~full])


def test_options_are_checked_and_listed():
    with raises(ValueError, "'gatepool'", "gate_pool"):
        build(gatepool="full")
    with raises(ValueError, "gate_pool='none'", "'full'", "'behaviour'", "'causal'"):
        build(gate_pool="none")
    with raises(ValueError, "heads=5"):
        build(heads=5)
    with pytest.raises(SchemaError, match="af_net=False"):
        models.build(SCHEMA.without(["user", "age_group"]), SMALL)
    with pytest.raises(SchemaError, match="context field"):
        build(time_emb=("hour", "past_hour"))
