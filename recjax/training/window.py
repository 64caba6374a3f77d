"""What the steps of one logging window add up on the devices, read by the host once a window.

Beside the sums of the loss these are norms of gradients and updates, learning rates, and the steps that were not
finite: how many, which was the first, and what in it was not. Such a step changes nothing (`recjax.training.step`), so
the trees that a checkpoint gets are finite whenever the host comes to look.
"""

from collections.abc import Iterable, Mapping
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recjax.system import Sums
from recjax.training.optim import square
from recjax.trees import Tree


class Window(NamedTuple):
    """Sums over the finite steps of a window, and what is known of the others.

    Attributes:
      sums: name -> (numerator, denominator).
      steps: Of the window, int32 [].
      bad: Steps that were not finite, int32 [].
      first: The number of the first of them, counted from 1; 0: there is none. int32 [].
      parts: part -> whether it was not finite in that step, bool []; the parts are those of `finite`.
    """

    sums: Sums
    steps: jax.Array
    bad: jax.Array
    first: jax.Array
    parts: dict[str, jax.Array]

    def add(self, step: jax.Array, sums: Sums, ok: dict[str, jax.Array]) -> "Window":
        """The window with one more step, number `step` from 0: its sums, and which of its parts are finite."""
        good = all_of(ok.values())
        first = ~good & (self.bad == 0)
        return Window(
            jax.tree.map(lambda total, new: total + jnp.where(good, new, 0), self.sums, sums),
            self.steps + 1,
            self.bad + ~good,
            jnp.where(first, step + 1, self.first),
            {name: jnp.where(first, ~ok[name], before) for name, before in self.parts.items()},
        )

    def ratios(self) -> dict[str, float]:
        """name -> numerator / denominator, on the host."""
        sums = jax.device_get(self.sums)
        return {k: float(n) / max(float(d), 1e-9) for k, (n, d) in sums.items()}

    def fault(self) -> str:
        """What was not finite in the first bad step, for a reader; "" when all steps were finite."""
        bad, first, parts = jax.device_get((self.bad, self.first, self.parts))
        if not bad:
            return ""
        names = [name for name in sorted(parts, key=_loss_first) if parts[name]]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"step {first} is not finite: {', '.join(names[:3])}{more}"


def _loss_first(name: str) -> tuple[bool, str]:
    return name != "loss", name


def finite(loss: jax.Array, dense: Tree, rows: Mapping[str, jax.Array], state: Tree) -> dict:
    """{part: bool []}: whether these are finite.

    Args:
      loss: [], the part "loss".
      dense: Gradients and changes; a part is a top-level module, "dense/<name>".
      rows: Gradients; a part is a table, "tables/<path>".
      state: After the step; a part is a collection, "state/<name>".
    """
    every = lambda tree: all_of([jnp.isfinite(square(x)) for x in jax.tree.leaves(tree)])  # noqa: E731
    trees = {"dense": dense, "tables": rows, "state": state}
    parts = {f"{tree}/{name}": x for tree, named in trees.items() for name, x in named.items()}
    return {"loss": jnp.isfinite(loss), **{name: every(x) for name, x in parts.items()}}


def all_of(ok: Iterable[jax.Array]) -> jax.Array:
    """Whether all are true, bool []."""
    return functools.reduce(jnp.logical_and, ok, jnp.bool_(True))


def norms(name: str, dense: Tree, rows: Mapping[str, jax.Array]) -> Sums:
    """{"<name>/dense": (norm, 1), "<name>/rows": (norm, 1)} of sums of squares by leaf and by table."""
    parts = {"dense": jax.tree.leaves(dense), "rows": list(rows.values())}
    return {f"{name}/{k}": (jnp.sqrt(sum(v)), jnp.float32(1)) for k, v in parts.items() if v}
