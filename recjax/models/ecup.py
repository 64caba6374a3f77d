"""ECUP: uplift of several treatments over the whole chain impression -> click -> conversion.

Huang et al., "Entire Chain Uplift Modeling with Context-Enhanced Learning for Intelligent Marketing", WWW Companion
2024, doi 10.1145/3589335.3648320 (arXiv 2402.03379, which two bibliographies mark as withdrawn by its authors; the
reason was not found). [P] is the abstract and Figure 4, [R1] and [R2] two unofficial ports whose comments number the
equations, [ours] a choice of this file.

Treatment-enhanced network (TENet), two treatment-aware units with parameters of their own [P]:

    A = softmax(E Wq (E Wk)^T / sqrt(a)),  E_att = A (E Wv) Wp                    # eq. 9-11 [R1], E: B x F x d
    u = ReLU(Wt e_t + b),  U = [E_att ; u] Wo + b                                 # eq. 12-14 [R1]; "hadamard" [R2]
    E_r = sigmoid(U2) * E + (1 - sigmoid(U2)) * tanh(U1),  E_te = [E_r ; e_t]     # eq. 15 [P], 16 [R1]

Task-enhanced network (TAENet) inside the entire-chain network, tasks k = click, conversion:

    p_k = MHA(query e_k, key = value = stop_gradient(E_te))                       # eq. 5 [R1, P]
    delta_k^l = gamma sigmoid(MLP_l(p_k))                                         # eq. 6 [R1]; one a unit: ours, of [P]'s product
    x_l^k = ReLU(W_l x_{l-1}^k + b_l) * delta_k^l,  W_l shared by the tasks [P]   # eq. 7; after the ReLU: ours
    pCTCVR = pCTR pCVR                                                            # [P]
    loss = BCE(pCTR, click) + w BCE(pCTCVR, conversion) over all impressions      # [inferred from Figure 4; w = 1 ours]

Only the arm that was given is trained on. At serving every arm is evaluated in one `vmap`, and the effect of arm t is
the difference to arm 0. The following is an identity, not the paper's, and a test holds it:

    tau_ctcvr = tau_ctr pCVR(0) + pCTR(t) (pCVR(t) - pCVR(0))

Deviations. The ports' separate CTCVR tower and their conversion loss on clicked rows are not followed: both undo the
chain. A number is embedded per field, not mixed in one map [ours]. gamma = 2 and the last map of every gate starts at
zero, so each gate starts at exactly 1 [ours; gamma's value was not found]. A history is one more field, its mean [ours].
The paper's data are a randomised trial and it has no propensities: `propensity` adds cross-fitted ones for logs
[ours], and without them `recjax.metrics.uplift.report` refuses to judge arms that are not comparable. `tenet=False,
taenet=False` is the ESMM-style S-learner; `recjax.models.meta_learners` has S-, T-, X-learner and TARNet.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.inputs import Inputs
from recjax.layers.tabular import FieldVectors
from recjax.models.parts import building
from recjax.models.parts.arms import Arms, Propensity, arms_of, tables_of
from recjax.schema import Schema
from recjax.system import System

TASKS = ("ctr", "cvr")


class TreatmentAwareUnit(nn.Module):
    """Self-attention among fields, which no treatment changes; then its fusion with the treatment."""

    width: int
    attention: int
    fuse: str
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.qkv = [nn.Dense(self.attention, use_bias=False, **types) for _ in range(3)]
        self.wp = nn.Dense(self.width, use_bias=False, **types)
        self.wt = nn.Dense(self.width, **types)
        self.wo = nn.Dense(self.width, **types)

    def attend(self, fields: jax.Array) -> jax.Array:
        """[N, F, d] -> [N, F, d]  # eq. 9-11."""
        q, k, v = (w(fields) for w in self.qkv)
        scores = jnp.einsum("nfa,nga->nfg", q, k) / self.attention**0.5
        weights = nn.softmax(scores.astype(jnp.float32)).astype(v.dtype)
        return self.wp(jnp.einsum("nfg,nga->nfa", weights, v))

    def blend(self, attended: jax.Array, treatment: jax.Array) -> jax.Array:
        """[N, F, d], [N, d] -> [N, F, d]  # eq. 12-14."""
        u = nn.relu(self.wt(treatment))[:, None]
        u = jnp.broadcast_to(u, attended.shape)
        parts = attended * u if self.fuse == "hadamard" else jnp.concatenate([attended, u], -1)
        return self.wo(parts)


def enhance(fields: jax.Array, weights: jax.Array, aware: jax.Array) -> jax.Array:
    """Bit by bit, sigmoid(weights) of the fields and the rest of the treatment-aware ones  # eq. 15."""
    keep = nn.sigmoid(weights)
    return keep * fields + (1 - keep) * aware


class TaskGates(nn.Module):
    """TAENet: a task's embedding asks the fields, and scales every shared layer's units."""

    widths: tuple[int, ...]
    width: int
    heads: int
    gamma: float
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, fields: jax.Array) -> dict[str, list[jax.Array]]:
        """E_te [N, F + 1, d] -> {task: gates [N, n_l] of each layer}."""
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        tasks = self.param("tasks", nn.initializers.normal(0.1), (2, self.width), self.param_dtype)
        query = jnp.broadcast_to(tasks.astype(self.dtype), (fields.shape[0], 2, self.width))
        ask = nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.width, **types)
        prior = ask(query, jax.lax.stop_gradient(fields))  # [N, 2, d]  # eq. 5
        gates = []
        for i, n in enumerate(self.widths):
            hidden = nn.relu(nn.Dense(self.width, name=f"hidden_{i}", **types)(prior))
            zero = nn.initializers.zeros
            last = nn.Dense(n, kernel_init=zero, bias_init=zero, name=f"gate_{i}", **types)
            gates.append(self.gamma * nn.sigmoid(last(hidden)))  # eq. 6
        return {task: [g[:, k] for g in gates] for k, task in enumerate(TASKS)}


class ECUP(nn.Module):
    """The model; fields up to `norm` are the options of `build`.

    Attributes:
      arms: R + 1.
      width: d, of embeddings and treatments; divisible by `heads`.
      attention: a, width of a treatment-aware unit's attention.
      hidden: Widths of the shared layers.
      heads: Of the task's attention.
      gamma: Of the gates; with 2 they start at 1.
      dropout: After each shared layer.
      fuse: "concat" or "hadamard".
      gate: "after" or "before" the ReLU: the same numbers, since gates are positive.
      tenet, taenet: False leaves one out.
      norm: "batchnorm" or "identity", of numbers.
    """

    schema: Schema
    arms: int
    width: int = 16
    attention: int = 8
    hidden: tuple[int, ...] = (128, 64, 32)
    heads: int = 2
    gamma: float = 2.0
    dropout: float = 0.1
    fuse: str = "concat"
    gate: str = "after"
    tenet: bool = True
    taenet: bool = True
    norm: str = "batchnorm"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.fields = FieldVectors(self.schema, self.width, self.norm, **types)
        self.treatment = nn.Embed(self.arms, self.width, **types)
        if self.tenet:
            unit = (self.width, self.attention, self.fuse)
            self.units = [TreatmentAwareUnit(*unit, **types) for _ in range(2)]
        if self.taenet:
            self.gates = TaskGates(self.hidden, self.width, self.heads, self.gamma, **types)
        self.shared = [nn.Dense(n, **types) for n in self.hidden]
        self.drop = nn.Dropout(self.dropout)
        self.towers = {task: nn.Dense(1, **types) for task in TASKS}

    def prepare(self, inputs: Inputs, *, train: bool = False) -> dict[str, Any]:
        """What no treatment changes: fields [N, F, d] and both units' attention."""
        fields = self.fields(inputs, train=train)
        attended = [unit.attend(fields) for unit in self.units] if self.tenet else []
        return {"fields": fields, "attended": attended}

    def arm(self, ready: Mapping[str, Any], arm: jax.Array, *, train: bool = False):
        """Logits {"ctr", "ctcvr", "cvr"}, float32 [N], under the arms int [N]."""
        fields, treatment = ready["fields"], self.treatment(arm)
        if self.tenet:
            aware, weights = (
                u.blend(x, treatment) for u, x in zip(self.units, ready["attended"], strict=True)
            )
            fields = enhance(fields, weights, jnp.tanh(aware))
        fields = jnp.concatenate([fields, treatment[:, None]], axis=1)  # E_te  # eq. 16
        gates = self.gates(fields) if self.taenet else {}
        z = {task: self._tower(fields, task, gates.get(task), train) for task in TASKS}
        return {**z, "ctcvr": product_logit(z["ctr"], z["cvr"])}

    def _tower(self, fields, task, gates, train):
        x = fields.reshape(fields.shape[0], -1)
        for i, layer in enumerate(self.shared):  # eq. 7
            x = layer(x)
            if gates is None:
                x = nn.relu(x)
            else:
                x = nn.relu(x) * gates[i] if self.gate == "after" else nn.relu(x * gates[i])
            x = self.drop(x, deterministic=not train)
        return self.towers[task](x)[:, 0].astype(jnp.float32)

    def __call__(self, inputs: Inputs, arm: jax.Array, *, train: bool = False):
        return self.arm(self.prepare(inputs, train=train), arm, train=train)


def product_logit(a: jax.Array, b: jax.Array) -> jax.Array:
    """The logit of sigmoid(a) sigmoid(b), without leaving the logarithm."""
    log_p = jnp.minimum(nn.log_sigmoid(a) + nn.log_sigmoid(b), -1e-7)
    return log_p - jnp.log(-jnp.expm1(log_p))


INTERNAL = ("schema", "arms", "dtype", "param_dtype")
COUNTS_AS = building.counting("units_|gates/", "shared_|towers_")


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
    """ECUP as a system.

    Args:
      schema: With a treatment and two labels, click first (a trial: recjax.data.sets.trials).
      table: To `Schema.tables`; its dim is `width`.
      compute_dtype: Of activations.
      param_dtype: Of dense parameters.
      control: Place of the control in the treatment's vocabulary, 0 the first.
      weight: w of the conversion loss.
      propensity: For logs that no lot decided: weigh rows by share(arm) / e(arm | x).
      **options: Fields of `ECUP`.

    Returns:
      A system with the outputs "logits" (click) and "ctcvr" [B, C] under the given arm, probabilities of every
      arm and effects; the function "arms" serves the latter without reading a treatment.
    """
    accepted = building.module_options(ECUP, INTERNAL)
    more = ("table", "compute_dtype", "param_dtype", "control", "weight", "propensity")
    building.check_options("ecup", options, accepted, more)
    ids = arms_of("ecup", schema, control)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    module = ECUP(schema=schema, arms=len(ids), **dtypes, **options)
    building.check_choice("ecup", "fuse", module.fuse, ("concat", "hadamard"))
    building.check_choice("ecup", "gate", module.gate, ("after", "before"))
    building.check_choice("ecup", "norm", module.norm, ("batchnorm", "identity"))
    if module.width % module.heads:
        raise ValueError(
            f"model 'ecup': width {module.width} is no multiple of {module.heads} heads"
        )
    net = Propensity(len(ids)) if propensity else None
    tables = tables_of(schema, table, module.width)
    return Arms(schema, module, tables, ids, weight, net, COUNTS_AS).system()
