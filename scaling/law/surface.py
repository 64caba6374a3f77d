"""The numerics of the law in several sizes: loss = E + sum_k A_k x_k^-a_k (+ C x_1^-a_1 x_2^-a_2), for many losses at once.

Variable projection (Golub & Pereyra 1973) with Kaufman's Jacobian (1975): for given exponents the law is linear in (E, A, C),
so only the exponents are searched, by Levenberg-Marquardt. All M losses of a bootstrap take each step together.
"""

import dataclasses
import itertools

import numpy as np

Array = np.ndarray
LOWEST, HIGHEST = 0.01, 3.0  # exponents; beyond them a curve is a logarithm, or a step
STARTS = {1: (0.05, 0.2, 0.5, 1.0), 2: (0.1, 0.3, 0.8), 3: (0.15, 0.5), 4: (0.15, 0.5)}  # by axes
EDGE = 1.02  # an exponent within this factor of its bound lies on it


@dataclasses.dataclass(frozen=True)
class Surface:
    """The form of a law: log sizes [n, K] about their middle, and whether the first two sizes interact."""

    logs: Array
    cross: bool = False

    def at(self, logs: Array) -> "Surface":
        return dataclasses.replace(self, logs=logs)

    def powers(self, t: Array) -> Array:
        """x_k^-a_k, [M, n, K], for log exponents t [M, K]."""
        return np.exp(-np.exp(t)[:, None, :] * self.logs)

    def basis(self, t: Array) -> Array:
        """Columns that E, A and C multiply, [M, n, 1 + K (+ 1)]."""
        powers = self.powers(t)
        columns = [np.ones_like(powers[..., :1]), powers]
        return np.concatenate(columns + [powers[..., :1] * powers[..., 1:2]] * self.cross, -1)

    def values(self, c: Array, t: Array) -> Array:
        """The law, [M, n], with linear parameters c [M, 1 + K (+ 1)]."""
        return (self.basis(t) @ c[..., None])[..., 0]

    def slopes(self, c: Array, t: Array) -> Array:
        """d law / d t, [M, n, K]."""
        axes = t.shape[1]
        terms = c[:, None, 1 : 1 + axes] * self.powers(t)
        if self.cross:
            terms[..., :2] += c[:, None, -1:] * self.basis(t)[..., -1:]
        return -np.exp(t)[:, None, :] * self.logs * terms

    def jacobian(self, c: Array, t: Array) -> Array:
        """d law / d (linear parameters, t) of one law, [n, parameters]."""
        return np.concatenate([self.basis(t[None])[0], self.slopes(c[None], t[None])[0]], -1)


def solve(
    surface: Surface, y: Array, root: Array, start: Array, steps: int = 60
) -> tuple[Array, Array, Array]:
    """Generalised least squares of each loss y [M, n] from its start [M, K]; a negative floor is held at 0.

    Args:
      root: [n, n], the inverse Cholesky factor of the losses' covariance.
      steps: At most so many.

    Returns:
      (linear parameters [M, P], log exponents [M, K], weighted sums of squares [M]).
    """
    c, t, cost = _descend(surface, y @ root.T, root, start, 0, steps)
    below = c[:, 0] < 0
    if below.any():
        kept, t[below], cost[below] = _descend(surface, y[below] @ root.T, root, t[below], 1, steps)
        c[below] = np.concatenate([np.zeros((len(kept), 1)), kept], 1)
    return c, t, cost


def search(surface: Surface, y: Array, root: Array) -> tuple[Array, Array, float]:
    """`solve` of one loss y [n] from a grid of starts: (linear [P], log exponents [K], sum of squares)."""
    axes = surface.logs.shape[1]
    starts = np.log(list(itertools.product(STARTS[axes], repeat=axes)))
    _, t, cost = solve(surface, np.tile(y, (len(starts), 1)), root, starts, steps=8)
    best = np.argsort(cost)[:2]
    c, t, cost = solve(surface, np.tile(y, (len(best), 1)), root, t[best])
    i = int(np.argmin(cost))
    return c[i], t[i], float(cost[i])


def on_bound(t: float) -> str:
    """ "lower" or "upper" where a log exponent lies on a bound of its search, else ""."""
    if t <= np.log(LOWEST * EDGE):
        return "lower"
    return "upper" if t >= np.log(HIGHEST / EDGE) else ""


def _descend(surface: Surface, w: Array, root: Array, t: Array, first: int, steps: int):
    """Levenberg-Marquardt of whitened losses w [M, n]; basis columns before `first` are left out."""
    t, low, high = t.copy(), np.log(LOWEST), np.log(HIGHEST)
    damping = np.full(len(t), 1e-3)
    q, c, rest, cost = _project(surface, w, root, t, first)
    active = np.arange(len(t))
    for _ in range(steps):
        step = _step(
            surface, root, t[active], q[active], c[active], rest[active], damping[active], first
        )
        new = np.clip(t[active] + step, low, high)
        q1, c1, r1, cost1 = _project(surface, w[active], root, new, first)
        better = cost1 <= cost[active]
        moved, gained = abs(new - t[active]).max(1), cost[active] - cost1
        i = active[better]
        t[i], q[i], c[i], rest[i], cost[i] = (
            new[better],
            q1[better],
            c1[better],
            r1[better],
            cost1[better],
        )
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 8)
        done = (moved < 1e-6) | (better & (gained <= 1e-8 * cost1)) | (damping[active] > 1e6)
        active = active[~done]
        if not len(active):
            break
    return c, t, cost


def _project(surface: Surface, w: Array, root: Array, t: Array, first: int):
    """(orthonormal basis [M, n, P], linear parameters, residuals [M, n], their squares' sum) at exponents t."""
    q, r = np.linalg.qr(root @ surface.basis(t)[..., first:])
    along = (w[:, None, :] @ q)[:, 0]
    diagonal = np.arange(r.shape[-1])
    r[:, diagonal, diagonal] += np.where(abs(r[:, diagonal, diagonal]) < 1e-12, 1e-12, 0)
    c = np.linalg.solve(r, along[..., None])[..., 0]
    rest = w - (q @ along[..., None])[..., 0]
    return q, c, rest, (rest**2).sum(1)


def _step(surface, root, t, q, c, rest, damping, first) -> Array:
    """The damped Gauss-Newton step in t, [M, K]."""
    full = np.concatenate([np.zeros((len(c), first)), c], 1)
    j = root @ surface.slopes(full, t)
    j -= q @ (q.transpose(0, 2, 1) @ j)  # Kaufman: what the linear parameters cannot follow
    square = j.transpose(0, 2, 1) @ j
    axes = np.arange(t.shape[1])
    trace = square[:, axes, axes]
    square[:, axes, axes] += damping[:, None] * trace + 1e-12 * trace.max(1, keepdims=True) + 1e-300
    step = np.linalg.solve(square, (rest[:, None, :] @ j).transpose(0, 2, 1))[..., 0]
    return np.clip(step, -1.5, 1.5)
