"""Residual quantisation against brute force and hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.layers import residual_quantizer as rq
from recjax.trees import Trees
from tests.messages import raises

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
BOOKS = (0.7 * RNG.normal(size=(3, 16, 6))).astype(np.float32)


def brute(x, books):
    """Codes and what is left, one vector and one code at a time."""
    codes, left = [], np.asarray(x, np.float64).copy()
    for book in books.astype(np.float64):
        z = np.array(
            [min(range(len(book)), key=lambda k: ((r - book[k]) ** 2).sum()) for r in left]
        )
        left -= book[z]
        codes.append(z)
    return np.stack(codes, -1), left


def test_codes_are_the_true_argmin_and_the_rest_is_the_last_residual():
    found = rq.quantize(X, BOOKS)
    codes, left = brute(X, BOOKS)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.residuals[:, -1], left, atol=1e-5)
    np.testing.assert_allclose(X - found.vectors, found.residuals[:, -1], atol=1e-5)
    np.testing.assert_allclose(rq.dequantize(found.codes, BOOKS), found.vectors, atol=1e-5)
    pages = rq.quantize(X.reshape(8, 5, 6), BOOKS)
    np.testing.assert_array_equal(pages.codes, codes.reshape(8, 5, 3))


def test_with_a_zero_vector_the_residual_never_grows():
    def norms(books):
        return np.linalg.norm(rq.quantize(X, books).residuals, axis=-1)

    with_zero = BOOKS.copy()
    with_zero[:, 3] = 0
    assert (np.diff(norms(with_zero), axis=1) <= 1e-6).all()
    assert (np.diff(norms(BOOKS + 3), axis=1) > 0).any(), "control: far codes, no zero"


def test_straight_through_has_the_identity_as_its_jacobian():
    def through(x):
        return rq.straight_through(x, rq.quantize(x, BOOKS).vectors)

    np.testing.assert_array_equal(jax.jacobian(through)(X[0]), np.eye(6, dtype=np.float32))
    np.testing.assert_allclose(through(X), rq.quantize(X, BOOKS).vectors, atol=1e-6)
    assert not np.asarray(jax.jacobian(lambda x: rq.quantize(x, BOOKS).vectors)(X[0])).any()


def test_vq_loss_pulls_codes_to_residuals_and_a_little_the_other_way():
    found = rq.quantize(X, BOOKS)
    r = np.asarray(found.residuals)
    want = sum(1.25 * np.square(r[:, i + 1]).sum(-1) for i in range(3))
    np.testing.assert_allclose(rq.vq_loss(found, BOOKS), want, rtol=1e-4)

    def loss(x, books):
        return rq.vq_loss(rq.quantize(x, books), books).sum()

    to_x, to_books = jax.grad(loss, argnums=(0, 1))(X, BOOKS)
    np.testing.assert_allclose(to_x, 0.5 * r[:, 1:].sum(1), atol=1e-4)  # 2 beta sum of r - x
    hand = np.zeros_like(BOOKS)
    for n, codes in enumerate(np.asarray(found.codes)):
        for level, z in enumerate(codes):
            hand[level, z] -= 2 * r[n, level + 1]
    np.testing.assert_allclose(to_books, hand, atol=1e-4)


def test_usage():
    constant = rq.usage(rq.code_counts(np.zeros((50, 2), np.int32), 8))
    np.testing.assert_allclose(constant["utilisation"], 1 / 8)
    np.testing.assert_allclose(constant["entropy"], 0, atol=1e-6)
    np.testing.assert_allclose(constant["perplexity"], 1, atol=1e-6)
    np.testing.assert_allclose(constant["top"], 1)
    even = rq.usage(rq.code_counts(np.repeat(np.arange(8), 5)[:, None], 8))
    np.testing.assert_allclose(even["utilisation"], 1)
    np.testing.assert_allclose(even["entropy"], np.log(8), atol=1e-6)
    np.testing.assert_allclose(even["perplexity"], 8, rtol=1e-5)
    weights = np.r_[np.ones(4), np.zeros(4)]
    counts = rq.code_counts(np.arange(8)[:, None], 8, weights)
    np.testing.assert_array_equal(counts[0], weights)
    assert rq.usage(jnp.zeros((1, 8)))["perplexity"] == 0


def test_residual_kmeans_finds_separated_clusters_level_by_level():
    coarse = 10 * np.eye(4, dtype=np.float32)
    fine = np.array([[1, 0, 0, 0], [-1, 0, 0, 0]], np.float32)
    which = RNG.integers(0, 4, 200), RNG.integers(0, 2, 200)
    x = coarse[which[0]] + fine[which[1]]
    books = rq.residual_kmeans(jax.random.key(3), x, 2, 16, 10)
    left = np.linalg.norm(rq.quantize(x, books).residuals[:, -1], axis=-1)
    assert left.max() < 1e-3
    random = rq.quantize(x, BOOKS[:2, :, :4])
    assert np.linalg.norm(random.residuals[:, -1], axis=-1).min() > 1, "control: random codebooks"


# ---- the module ----------------------------------------------------------------------------------


def made(**options):
    q = rq.ResidualQuantizer(**{**dict(width=6, levels=2, size=16), **options})
    variables = dict(q.init(jax.random.key(0), X))
    return q, variables.pop("params", {}), variables


def trees_of(params, state):
    return Trees({"deep": {"q": params}}, state={"codes": {"deep": {"q": state["codes"]}}})


def step(q, params, state, x, valid=None):
    found, changed = q.apply(
        {"params": params, **state}, x, train=True, valid=valid, mutable=list(state)
    )
    return found, {**state, **changed}


def test_gradient_codebooks_are_parameters_and_keep_no_state():
    q, params, state = made()
    assert params["codebooks"].shape == (2, 16, 6) and not state
    assert rq.after_step(q, ("q",)) is None
    with raises(ValueError, "update='adam'"):
        made(update="adam")


def test_moving_averages_follow_a_hand_computed_step():
    q, params, state = made(update="ema", decay=0.9)
    assert not params
    before = np.asarray(state["codes"]["codebooks"])
    valid = np.arange(40) < 30
    found, state = step(q, params, state, X, valid)
    codes, residuals = np.asarray(found.codes), np.asarray(found.residuals)
    for level, z in [(0, int(codes[0, 0])), (1, int(codes[5, 1]))]:
        hit = (codes[:, level] == z) & valid
        n = 0.9 + 0.1 * hit.sum()
        m = 0.9 * before[level, z] + 0.1 * residuals[hit, level].sum(0)
        np.testing.assert_allclose(state["codes"]["codebooks"][level, z], m / n, atol=1e-5)
    unused = np.setdiff1d(np.arange(16), codes[valid, 0])
    np.testing.assert_allclose(state["codes"]["codebooks"][0, unused], before[0, unused], atol=1e-6)
    for _ in range(60):
        found, state = step(q, params, state, X)
    error = np.square(found.residuals[:, -1]).sum() / np.square(X).sum()
    first = np.square(rq.quantize(X, before).residuals[:, -1]).sum() / np.square(X).sum()
    assert error < 0.5 * first


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_codes_out_of_use_start_anew_at_recent_residuals(update):
    q, params, state = made(update=update, reset_after=2, bank=64)
    far = 100 + np.zeros((16, 6), np.float32)
    home = params if update == "gradient" else state["codes"]
    for name in {"codebooks", "sums"} & home.keys():
        home[name] = home[name].at[0, 4:].set(far[4:])
    hook, trees = rq.after_step(q, ("deep", "q")), None
    for i in range(2):
        _, state = step(q, params, state, X)
        trees = hook(trees_of(params, state), jax.random.key(i))
        params = trees.dense["deep"]["q"]
        state = {"codes": trees.state["codes"]["deep"]["q"]}
        books = (params if update == "gradient" else state["codes"])["codebooks"]
        assert (np.asarray(books[0, 4:]).max() > 50) == (i == 0), "not before two steps"
    rows = {tuple(np.round(r, 4)) for r in X}
    assert all(tuple(np.round(np.asarray(b), 4)) in rows for b in books[0, 4:])
    assert (np.asarray(state["codes"]["unused"])[0] < 2).all()


def test_kmeans_waits_for_a_full_bank_and_filling_slots_do_not_enter_it():
    q, params, state = made(kmeans=True, bank=48)
    hook = rq.after_step(q, ("deep", "q"))
    before, valid = params["codebooks"], np.arange(40) < 24
    for i in range(2):
        _, state = step(q, params, state, np.where(valid[:, None], X, 999), valid)
        trees = hook(trees_of(params, state), jax.random.key(0))
        params = trees.dense["deep"]["q"]
        state = {"codes": trees.state["codes"]["deep"]["q"]}
        assert np.array_equal(params["codebooks"], before) == (i == 0)
    assert np.abs(state["codes"]["recent"]).max() < 10
    found = rq.quantize(X[:24], params["codebooks"])
    error = np.square(found.residuals[:, -1]).sum() / np.square(X[:24]).sum()
    assert error < 0.2 < np.square(rq.quantize(X[:24], before).residuals[:, -1]).sum() / np.square(X[:24]).sum()  # fmt: skip
    again = hook(trees_of(params, state), jax.random.key(1))
    np.testing.assert_array_equal(again.dense["deep"]["q"]["codebooks"], params["codebooks"])


def test_steps_without_use_are_counted_and_end_with_a_use():
    q, params, state = made(reset_after=5)
    for _ in range(3):
        found, state = step(q, params, state, X[:1])
    used = np.asarray(found.codes)[0]
    for level, row in enumerate(np.asarray(state["codes"]["unused"])):
        assert row.tolist() == [0 if z == used[level] else 3 for z in range(16)]


def test_a_moving_average_that_starts_anew_has_the_weight_of_one_vector():
    q, params, state = made(update="ema", reset_after=1, bank=64)
    _, state = step(q, params, state, X[:1])
    dead = np.asarray(state["codes"]["unused"]) >= 1
    assert dead.any() and not dead.all()
    trees = rq.after_step(q, ("deep", "q"))(trees_of(params, state), jax.random.key(0))
    after = trees.state["codes"]["deep"]["q"]
    assert (np.asarray(after["counts"])[dead] == 1).all()
    np.testing.assert_array_equal(after["sums"][dead], after["codebooks"][dead])
