"""Hypergraph convolution and SAGE against hand-computed numbers, dense matrices and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.layers.hypergraph import Edges, HeteroSAGE, HypergraphConv, Incidence

X = np.array([[1, 0], [0, 1], [2, 2], [4, -2]], np.float32)
H = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], np.float32)


def incidence(h, *, order=None, pad=0, weight=None):
    """COO of a dense incidence matrix, entries in any order, followed by padding."""
    node, edge = np.nonzero(h)
    order = np.arange(len(node)) if order is None else order
    node, edge = node[order], edge[order]
    n, e = h.shape
    return Incidence(
        node=np.r_[node, np.full(pad, n)].astype(np.int32),
        edge=np.r_[edge, np.full(pad, e)].astype(np.int32),
        writes=np.r_[np.ones(len(node)), np.zeros(pad)].astype(np.float32),
        weight=np.ones(e, np.float32) if weight is None else weight,
    )


def conv(x, inc, theta=None, bias=None, **options):
    width = x.shape[1] if theta is None else theta.shape[1]
    module = HypergraphConv(width, **options)
    params = module.init(jax.random.key(0), x, inc)["params"]
    params["theta"]["kernel"] = np.eye(x.shape[1], dtype=np.float32) if theta is None else theta
    params["bias"] = np.zeros(width, np.float32) if bias is None else bias
    return np.asarray(module.apply({"params": params}, x, inc))


def random_hypergraph(seed=0, n=12, e=7):
    rng = np.random.default_rng(seed)
    h = (rng.random((n, e)) < 0.3).astype(np.float32)
    h[:, 0] = rng.permutation(n) < 5
    h[~h.any(1), 1] = 1
    return rng.normal(size=(n, 4)).astype(np.float32), h[:, h.any(0)]


def test_golden():
    np.testing.assert_allclose(conv(X, incidence(H)), [[1, 1], [1, 1], [2, 0.5], [3, 0]], atol=1e-6)
    propagation = conv(np.eye(4, dtype=np.float32), incidence(H))
    np.testing.assert_allclose(propagation.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(propagation[2], [1 / 6, 1 / 6, 5 / 12, 1 / 4], atol=1e-6)


def test_golden_symmetric():
    out = conv(X, incidence(H), normalise="symmetric")
    want = [[0.804738] * 2, [0.804738] * 2, [2.483249, 0.361929], [2.707107, -0.292893]]
    np.testing.assert_allclose(out, want, atol=1e-6)


def test_equals_the_dense_matrices():
    x, h = random_hypergraph()
    rng = np.random.default_rng(1)
    theta, bias = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    w = rng.uniform(0.5, 2, h.shape[1]).astype(np.float32)
    d = np.diag(1 / (h * w).sum(1))
    want = d @ h @ np.diag(w) @ np.diag(1 / h.sum(0)) @ h.T @ x @ theta + bias
    np.testing.assert_allclose(conv(x, incidence(h, weight=w), theta, bias), want, atol=1e-5)
    d = np.sqrt(d)
    want = d @ h @ np.diag(w) @ np.diag(1 / h.sum(0)) @ h.T @ d @ x @ theta + bias
    got = conv(x, incidence(h, weight=w), theta, bias, normalise="symmetric")
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"normalise": "symmetric"}, {"attention": True}])
def test_a_singleton_gives_x_theta_plus_b(options):
    rng = np.random.default_rng(2)
    theta, bias = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    out = conv(X, incidence(np.eye(4)), theta, bias, **options)
    np.testing.assert_allclose(out, X @ theta + bias, atol=1e-5)


def test_constant_features_stay_constant():
    x, h = random_hypergraph()
    np.testing.assert_allclose(conv(np.full_like(x, 3.0), incidence(h)), 3.0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"normalise": "symmetric"}, {"attention": True}])
def test_relabelling_nodes_and_reordering_edges_change_nothing(options):
    x, h = random_hypergraph()
    rng = np.random.default_rng(3)
    nodes, edges = rng.permutation(len(x)), rng.permutation(h.shape[1])
    moved = h[nodes][:, edges]
    entries = rng.permutation(int(h.sum()))
    want = conv(x, incidence(h), **options)
    got = conv(x[nodes], incidence(moved, order=entries), **options)
    np.testing.assert_allclose(got, want[nodes], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"normalise": "symmetric"}, {"attention": True}])
def test_padding_changes_nothing_bit_for_bit(options):
    x, h = random_hypergraph()
    np.testing.assert_array_equal(
        conv(x, incidence(h), **options), conv(x, incidence(h, pad=9), **options)
    )


def test_a_reader_changes_nobody():
    x, h = random_hypergraph()
    inc = incidence(h)
    writes = np.where(inc.node == 3, 0, inc.writes).astype(np.float32)
    other = x.copy()
    other[3] += 100
    a, b = (conv(v, inc._replace(writes=writes)) for v in (x, other))
    np.testing.assert_array_equal(
        a, b
    )  # a row-normalised convolution holds nothing of the node itself
    assert not np.array_equal(conv(x, inc), conv(other, inc))


def test_attention_weights_sum_to_one():
    """A node whose hyperedges all hold the same keeps it, whatever the attention."""
    x, h = random_hypergraph()
    out = conv(np.ones_like(x), incidence(h), attention=True)
    np.testing.assert_allclose(out, 1, atol=1e-6)
    assert not np.allclose(conv(x, incidence(h), attention=True), conv(x, incidence(h)), atol=1e-4)


RELATIONS = (("ab", "a", "b"), ("cb", "c", "b"), ("ba", "b", "a"))


def sage_case():
    rng = np.random.default_rng(4)
    x = {k: rng.normal(size=(n, 3)).astype(np.float32) for k, n in (("a", 4), ("b", 5), ("c", 2))}
    edges = {
        "ab": Edges(np.array([0, 1, 2, 4]), np.array([0, 0, 3, 5])),  # the last is padding
        "cb": Edges(np.array([0, 1, 1]), np.array([1, 1, 3])),
        "ba": Edges(np.array([0, 1, 2]), np.array([0, 0, 1])),
    }
    return {k: x[k] for k in "ab"} | {"c": x["c"]}, edges


def test_sage_equals_a_loop():
    x, edges = sage_case()
    relations = (*RELATIONS, ("ac", "a", "c"))
    edges["ac"] = Edges(np.zeros(0, np.int32), np.zeros(0, np.int32))
    layer = HeteroSAGE(6, relations)
    params = layer.init(jax.random.key(0), x, edges)["params"]
    params = jax.tree.map(lambda p: np.random.default_rng(p.size).normal(size=p.shape), params)
    got = layer.apply({"params": params}, x, edges)
    for name, kind in (("a", "a"), ("b", "b")):
        for i in range(len(x[kind])):
            want = np.zeros(6)
            for r, source, target in relations:
                if target != name:
                    continue
                pairs = zip(*edges[r], strict=True)
                near = [x[source][s] for s, t in pairs if t == i and s < len(x[source])]
                own = x[kind][i] @ params[f"maps_{r}_self"]["kernel"]
                nbr = params[f"maps_{r}_neighbours"]
                m = np.mean(near, axis=0) if near else np.zeros(3)
                want += m @ nbr["kernel"] + nbr["bias"] + own
            np.testing.assert_allclose(got[kind][i], want, atol=1e-4)


def test_a_node_without_neighbours_of_a_type_gets_its_self_term():
    x, edges = sage_case()
    edges["ac"] = Edges(np.zeros(0, np.int32), np.zeros(0, np.int32))
    layer = HeteroSAGE(6, (*RELATIONS, ("ac", "a", "c")))
    params = layer.init(jax.random.key(0), x, edges)["params"]
    got = layer.apply({"params": params}, x, edges)["a"][3]  # no edge points to it; biases are 0
    np.testing.assert_allclose(got, x["a"][3] @ params["maps_ba_self"]["kernel"], atol=1e-5)


def test_identity_start():
    x, edges = sage_case()
    edges["ac"] = Edges(np.zeros(0, np.int32), np.zeros(0, np.int32))
    layer = HeteroSAGE(3, (*RELATIONS, ("ac", "a", "c")), identity=True)
    got = layer.apply(layer.init(jax.random.key(0), x, edges), x, edges)
    for kind in "abc":
        np.testing.assert_allclose(got[kind], x[kind], atol=1e-6)
    module = HypergraphConv(2, identity=True)
    inc = incidence(H)
    got = module.apply(module.init(jax.random.key(0), jnp.asarray(X), inc), X, inc)
    np.testing.assert_allclose(got, [[1, 1], [1, 1], [2, 0.5], [3, 0]], atol=1e-6)


def test_cost_is_linear_in_the_incidences():
    """Memory and arithmetic of the compiled gradient, ten times the incidences for ten times the cost."""
    from experiments.hyperpave_bench import compiled

    small, large = (compiled(n, 16)[0] for n in (10_000, 100_000))
    memory = [p.memory_analysis().temp_size_in_bytes for p in (small, large)]
    work = [p.cost_analysis()["flops"] for p in (small, large)]
    assert 8 < memory[1] / memory[0] < 12 and 8 < work[1] / work[0] < 12
    assert memory[1] < 20_000 * 10_000 * 4 / 10  # a tenth of a dense incidence matrix
