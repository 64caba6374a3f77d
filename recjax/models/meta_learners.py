"""S-, T- and X-learner and TARNet on click and conversion: what ECUP is compared with.

S. Künzel et al., "Metalearners for estimating heterogeneous treatment effects using machine learning", PNAS 2019,
arXiv 1706.03461; U. Shalit et al., "Estimating individual treatment effect: generalization bounds and algorithms",
ICML 2017, arXiv 1606.03976 (TARNet: no balancing term).

    s       one MLP of the fields and the arm's embedding -> click, click-and-conversion
    t       one MLP for each arm
    tarnet  a shared MLP, then a head (the last width) for each arm
    x       the T-learner's mu_t, and effects fitted to imputed ones:
            tau1_t ~ Y - mu_0(x) on arm t,  tau0_t ~ mu_t(x) - Y on the control,  tau_t = g tau0_t + (1 - g) tau1_t

Deviations: click and click-and-conversion are two heads of one network, each trained on all impressions (no product).
The X-learner's two stages are trained together, the second on stop_gradient(mu), and g is an option, a half by
default, where the paper takes the propensity: in a trial any constant is allowed.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers.mlp import MLP
from recjax.layers.tabular import FieldVectors
from recjax.models.parts import building
from recjax.models.parts.arms import Arms, Propensity, arms_of, tables_of
from recjax.schema import Schema
from recjax.system import System

KINDS = ("s", "t", "x", "tarnet")
TASKS = ("ctr", "ctcvr")


class MetaLearner(nn.Module):
    """The model; fields up to `norm` are the options of `build`.

    Attributes:
      arms: R + 1.
      kind: Of `KINDS`.
      width: Of embeddings.
      hidden: Widths of an MLP.
      dropout: After each of its layers.
      g: Weight of the control's imputed effects, of the X-learner.
      norm: "batchnorm" or "identity", of numbers.
    """

    schema: Schema
    arms: int
    kind: str = "s"
    width: int = 16
    hidden: tuple[int, ...] = (128, 64, 32)
    dropout: float = 0.1
    g: float = 0.5
    norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.fields = FieldVectors(self.schema, self.width, self.norm, **types)
        networks = {"s": 1, "t": self.arms, "x": self.arms, "tarnet": self.arms}[self.kind]
        own = self.hidden[-1:] if self.kind == "tarnet" else self.hidden
        self.own = [MLP(own, dropout=self.dropout, **types) for _ in range(networks)]
        self.heads = [nn.Dense(2, **types) for _ in range(networks)]
        if self.kind == "s":
            self.treatment = nn.Embed(self.arms, self.width, **types)
        if self.kind == "tarnet":
            self.trunk = MLP(self.hidden[:-1], dropout=self.dropout, **types)
        if self.kind == "x":
            # For each arm, of the treated and of the control: effects on click and on conversion.
            effect = [(MLP(self.hidden, **types), nn.Dense(2, **types)) for _ in range(self.sides)]
            self.effect_mlp, self.effect_head = zip(*effect, strict=True)

    @property
    def sides(self) -> int:
        return 2 * (self.arms - 1)

    def prepare(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Fields [N, F, d]."""
        return {"fields": self.fields(inputs, train=train)}

    def arm(self, ready: Mapping[str, Any], arm: jax.Array, *, train: bool = False):
        """Logits {"ctr", "ctcvr"}, float32 [N], under the arms int [N]."""
        x = flat(ready["fields"])
        if self.kind == "s":
            x = jnp.concatenate([x, self.treatment(arm)], axis=-1)
            z = self.heads[0](self.own[0](x, train=train))
        else:
            x = self.trunk(x, train=train) if self.kind == "tarnet" else x
            every = [
                h(m(x, train=train)) for m, h in zip(self.own, self.heads, strict=True)
            ]  # R + 1 times [N, 2]
            z = jnp.take_along_axis(jnp.stack(every), arm[None, :, None], 0)[0]
        z = z.astype(jnp.float32)
        return {task: z[:, i] for i, task in enumerate(TASKS)}

    def __call__(self, inputs: Inputs, arm: jax.Array, *, train: bool = False):
        ready = self.prepare(inputs, train=train)
        if self.kind == "x":
            self._effects(ready)
        return self.arm(ready, arm, train=train)

    def _effects(self, ready) -> jax.Array:
        """tau1_t, tau0_t of every arm, [2, R, N, 2]."""
        x = flat(ready["fields"])
        pairs = zip(self.effect_mlp, self.effect_head, strict=True)
        each = jnp.stack([h(m(x, train=False)).astype(jnp.float32) for m, h in pairs])
        return each.reshape(2, self.arms - 1, *each.shape[1:])

    def extra(self, ready, arm, click, conversion) -> jax.Array:
        """Squared errors of the imputed effects, [N]; nothing of it reaches the first stage or the fields."""
        if self.kind != "x":
            return jnp.zeros(arm.shape[0])
        ready = jax.lax.stop_gradient(ready)
        y = jnp.stack([click, conversion], -1)  # [N, 2]
        mu = jnp.stack([self._levels(ready, t) for t in range(self.arms)])  # [R + 1, N, 2]
        mu = jax.lax.stop_gradient(mu)
        treated, control = self._effects(ready)
        wrong1 = ((treated - (y - mu[0])) ** 2).sum(-1)  # [R, N]
        wrong0 = ((control - (mu[1:] - y)) ** 2).sum(-1)
        own = (arm == jnp.arange(1, self.arms)[:, None]).astype(jnp.float32)
        return (own * wrong1).sum(0) + (arm == 0) * wrong0.sum(0)

    def _levels(self, ready, t: int) -> jax.Array:
        z = self.arm(ready, jnp.full(ready["fields"].shape[0], t))
        return nn.sigmoid(jnp.stack([z[task] for task in TASKS], -1))

    def effects(self, ready) -> dict[str, jax.Array]:
        """Effects [N, R] by task: the X-learner's own, else differences of levels."""
        if self.kind != "x":
            every = jnp.stack([self._levels(ready, t) for t in range(self.arms)])
            tau = every[1:] - every[:1]
        else:
            treated, control = self._effects(ready)
            tau = self.g * control + (1 - self.g) * treated
        return {task: tau[..., i].T for i, task in enumerate(TASKS)}


def flat(fields: jax.Array) -> jax.Array:
    """[N, F, d] -> [N, F d]."""
    return fields.reshape(fields.shape[0], -1)


INTERNAL = ("schema", "arms", "dtype", "param_dtype")
COUNTS_AS = building.counting("", "own_|heads_|trunk/|effect_")


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    control: int = 0,
    weight: float = 1.0,
    propensity: bool = False,
    **options,
) -> System:
    """A meta-learner as a system; the arguments and outputs of `recjax.models.ecup.build`, options of `MetaLearner`."""
    accepted = building.module_options(MetaLearner, INTERNAL)
    more = ("table", "compute_dtype", "param_dtype", "control", "weight", "propensity")
    building.check_options("meta_learners", options, accepted, more)
    building.check_choice("meta_learners", "kind", options.get("kind", "s"), KINDS)
    ids = arms_of("meta_learners", schema, control)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    module = MetaLearner(schema=schema, arms=len(ids), **dtypes, **options)
    net = Propensity(len(ids)) if propensity else None
    tables = tables_of(schema, table, module.width)
    return Arms(schema, module, tables, ids, weight, net, COUNTS_AS).system()
