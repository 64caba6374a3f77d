"""What the noise of a sweep's points is made of: variances that a size, a run and a point have, by restricted likelihood.

All runs of a study read the same data in the same order and are judged on the same test set, so the points of one size share
noise; the points of one run share its seed. Patterson & Thompson (1971): the likelihood of what the law's parameters leave.
"""

from collections.abc import Sequence
import dataclasses
from typing import cast

import numpy as np
from scipy import linalg, optimize

Array = np.ndarray
PARTS = ("size", "run", "point")
ENOUGH = 4.0
TREND = 0.5  # prior standard deviation of the slope and curvature of the log variance, over a standard deviation of log size


@dataclasses.dataclass(frozen=True)
class Components:
    """Variances of the effects of `PARTS`, and how a point's own noise varies.

    Attributes:
      variances: Of PARTS.
      groups: The matrices [n, n] of which points share a size's and a run's effect.
      noise: Variance of each point's own noise over `variances[2]`, [n].
    """

    variances: Array
    groups: tuple[Array, Array]
    noise: Array

    def parts(self) -> list[Array]:
        """The covariance that each effect gives the points, [n, n] each."""
        size, run = self.groups
        return [
            self.variances[0] * size,
            self.variances[1] * run,
            self.variances[2] * np.diag(self.noise),
        ]

    def covariance(self) -> Array:
        return cast(Array, sum(self.parts()))

    def root(self) -> Array:
        """The inverse Cholesky factor of the covariance."""
        return inverse_root(self.covariance())


def inverse_root(covariance: Array) -> Array:
    low = np.linalg.cholesky(covariance)
    return linalg.solve_triangular(low, np.eye(len(low)), lower=True)


def sharing(labels: Array) -> Array:
    """[n, n]: 1 where two points have the same label. All zero where no two have: that is the point's own noise."""
    same = (labels[:, None] == labels[None]).astype(float)
    return same if same.sum() > len(labels) else np.zeros_like(same)


def relative_noise(at: Array, cell: Array, y: Array) -> Array:
    """Variance of each point's noise over that of a middling point: a parabola in log size, from the replicates of a cell.

    Args:
      at: Log size of each point, [n].
      cell: Which points are replicates of each other, [n].
      y: Values, [n].
    """
    found = []
    for c in np.unique(cell):
        own = cell == c
        dof = own.sum() - 1
        if dof:  # E log(chi2_k / k) is about -1 / k
            found.append((at[own][0], np.log(max(y[own].var(ddof=1), 1e-14)) + 1 / dof, dof))
    if len({f[0] for f in found}) < 3:
        return np.ones(len(at))
    x, log_variance, dof = (np.array(v, float) for v in zip(*found, strict=True))
    middle, spread, powers = x.mean(), x.std(), (1, 2) if len(set(x)) > 4 else (1,)
    columns = lambda v: np.column_stack([((v - middle) / spread) ** k for k in powers])  # noqa: E731
    # The log variance of k degrees of freedom has variance 2 / k; few of them must not invent a trend.
    weight = np.sqrt(dof / 2)[:, None]
    table = np.column_stack([np.ones_like(x), columns(x)]) * weight
    prior = np.diag([0.0] + [1 / TREND] * len(powers))
    c, *_ = np.linalg.lstsq(
        np.r_[table, prior], np.r_[log_variance * weight[:, 0], np.zeros(len(prior))], rcond=None
    )
    line = columns(at) @ c[1:]
    return np.exp(np.clip(line - line.mean(), -4, 4))


def estimate(
    rest: Array, jacobian: Array, groups: Sequence[Array], noise: Array, prior: float = 0.8
) -> Components:
    """The variances of largest restricted likelihood.

    Args:
      rest: Residuals of the law, [n].
      jacobian: Its derivatives, [n, P].
      groups: Of sizes and of runs; one of zeros has no variance.
      noise: As `relative_noise` gives it.
      prior: Power of the sizes' standard deviation that multiplies the likelihood (Chung et al. 2013) where it is small: few sizes
        often have a likelihood that is largest at no variance at all, where there is some. It ends at `ENOUGH` times
        the points' variance, because few sizes hardly tell a large variance from a larger one.
    """
    u, s, _ = np.linalg.svd(jacobian, full_matrices=False)
    x = u[:, s > 1e-9 * s[0]]
    shared = [i for i, g in enumerate(groups) if g.any()]
    dof = len(rest) - x.shape[1]

    def evaluate(ratios: Array) -> tuple[float, float]:
        """(minus log likelihood, the points' variance) where effects have these log variances over the points'."""
        v = np.diag(noise) + sum(np.exp(r) * groups[i] for r, i in zip(ratios, shared, strict=True))
        low = np.linalg.cholesky(v)
        both = linalg.solve_triangular(
            low, np.column_stack([x, rest]), lower=True, check_finite=False
        )
        q, r = np.linalg.qr(both)
        scale = max(r[-1, -1] ** 2 / dof, 1e-300)
        determinant = np.log(np.diag(low)).sum() + np.log(abs(np.diag(r)[:-1])).sum()
        small = -np.log1p(ENOUGH * np.exp(-ratios[0])) if 0 in shared else 0.0
        prior_of = 0.5 * prior * small
        return determinant + 0.5 * dof * np.log(scale) - prior_of, scale

    ratios = np.empty(0)
    if shared:
        starts = [np.full(len(shared), v) for v in (-0.5, -4.0)]
        options = dict(maxiter=200, xatol=2e-2, fatol=1e-3)
        bounds = [(-12.0, 12.0)] * len(shared)
        tried = [optimize.minimize(lambda r: evaluate(r)[0], s, method="Nelder-Mead", bounds=bounds, options=options)
                 for s in starts]  # fmt: skip
        ratios = min(tried, key=lambda f: f.fun).x
    scale = evaluate(ratios)[1]
    variances = np.zeros(3)
    variances[2] = scale
    variances[shared] = scale * np.exp(ratios)
    return Components(variances, cast(tuple[Array, Array], tuple(groups)), noise)
