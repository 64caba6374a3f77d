"""SUAN: a CTR model that scales, built of Unified Attention Blocks.

W. Lai et al., "Exploring Scaling Laws of CTR Model for Online Performance Improvement", RecSys
2025, doi 10.1145/3705328.3748046, arXiv 2508.15326. The full text was not available to us. What
follows stands on the authors' code [CODE], the paper's two method figures [FIG-A, FIG-M] and
second-hand summaries [SUM]; what we had to decide is marked [proposal]. No number of the paper's
tables was found, and none is claimed.

One block, [FIG-A, CODE]. Every residual starts from the *normalised* stream:

    x1  = RMS_1(x)
    x2  = RMS_2(SelfAttn(x1) + x1)           biases on relative position and time gap
    f   = AFNet(x2, E_p)                     cross-attention to profile tokens, dual alignment gate
    x3  = RMS_3(f + x2)
    out = SwiGLU(x3) + x3

and the logit is an MLP of concat(E_last, flatten(E_p), e_other), E_last the candidate's row.

Differences from the released code, which does not run as it is:
  * Cross-attention is scaled by sqrt(dh); the code's sqrt(number of profile tokens) is
    `cross_scale="n2"`.
  * The gate's mean counts valid positions only, and a query that sees no key gets zeros: the code's
    additive -1e9 makes such rows uniform over all keys, the future included.
  * Time gaps are seconds between events (and to the request); the code passes the hour of day.
  * The target is projected (the code's Ele.me class); zero-filled (its industrial class) is
    `target="zero_fill"`.
  * BatchNorm on the logit is off (`logit_bn`), and its decay is 0.99, not 0.999.
  * The code's embedding of a coarse time is off unless `time_emb` names two fields of the data.

`gate_pool="full"` (paper figure, code) averages over all positions, so every behaviour row depends
on the candidate: candidates are folded into the batch, [B * C, 1]. "behaviour" and "causal"
[proposal] leave the behaviours independent of the candidate: they are encoded once, and all
candidates are scored beside each other, each at logical position n and seeing the behaviours and
itself. In the first block "causal" gives a candidate exactly the gate of "full".
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.batch import part
from recjax.inputs import Inputs, embed
from recjax.layers import fields
from recjax.layers.attention import (
    PairBias,
    Pairs,
)
from recjax.layers.mlp import MLP, Logits
from recjax.models.parts import building
from recjax.models.parts.suan_block import FullPattern, UnifiedAttentionBlock, linear
from recjax.schema import Schema, SchemaError
from recjax.system import Export, System, pointwise

CHOICES = {
    "gate_pool": ("full", "behaviour", "causal"),
    "residual": ("normalised", "raw"),
    "norm": ("rms", "layer"),
    "ffn": ("swiglu", "relu"),
    "cross_scale": ("dh", "n2"),
    "target": ("projected", "zero_fill"),
    "dense_norm": ("batchnorm", "identity"),
}


class Positions(nn.Module):
    """Learned absolute positions P_abs, N(0, 0.02), aligned to the target at the end."""

    width: int
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, length: int, n: int) -> jax.Array:
        """[n + 1, D]: the last n + 1 of `length` rows."""
        init = nn.initializers.normal(0.02)
        return self.param("table", init, (length, self.width), self.param_dtype)[length - n - 1 :]


class SUAN(nn.Module):
    """The model; fields up to `remat` are the options of `build`.

    Attributes:
      blocks: l.
      heads: H; divides the width.
      width: D; 0 is n1 * d, and any other width puts a Dense(D) after the field concatenation.
      dropout: After self-attention, AFNet and FFN (released: 0).
      gate_pool: See the module docstring.
      residual: "normalised" (figure and code) or "raw" (textbook pre-norm).
      norm: "rms" or "layer".
      ffn: "swiglu" or "relu" (as many weights).
      af_net: False leaves the profile to the head.
      alignment: False replaces the gate's mixture by the cross-attention alone.
      cross_scale: "dh", or "n2" as in the code.
      target: "projected" or "zero_fill".
      target_aware: False keeps the candidate out of the sequence; the last behaviour is read out
        [proposal].
      causal: False lets behaviours see later ones.
      attention_bias: Position and time bias.
      time_bias: False leaves the position bias alone.
      time_buckets: w_time has one entry more.
      per_head_bias: Own bias tables per head (released: shared).
      per_block_bias: Own bias tables per block (released: shared).
      abs_pos: Learned absolute positions [CODE only].
      time_emb: (history id field, context id field) of a coarse time such as the hour of the week,
        projected and added to behaviours and target [CODE only; there with the hour of day]; () for
        none.
      max_history: Longest history the bias and position tables hold; 0: the batch's L, then fixed.
      history: The behaviours' list; "" for the schema's first.
      head: Widths of the MLP.
      head_norm: "batch", "rms", "layer" or "none".
      head_activation: "dice", "prelu", "relu", "silu", ...
      logit_bn: BatchNorm on the logit [CODE].
      dense_norm: "batchnorm" or "identity", of dense features.
      remat: Recompute each block in the backward pass.
    """

    schema: Schema
    blocks: int = 2
    heads: int = 2
    width: int = 0
    dropout: float = 0.0
    gate_pool: str = "full"
    residual: str = "normalised"
    norm: str = "rms"
    ffn: str = "swiglu"
    af_net: bool = True
    alignment: bool = True
    cross_scale: str = "dh"
    target: str = "projected"
    target_aware: bool = True
    causal: bool = True
    attention_bias: bool = True
    time_bias: bool = True
    time_buckets: int = 128
    per_head_bias: bool = False
    per_block_bias: bool = False
    abs_pos: bool = True
    time_emb: tuple[str, ...] = ()
    max_history: int = 0
    history: str = ""
    head: tuple[int, ...] = (1024, 512, 256)
    head_norm: str = "batch"
    head_activation: str = "dice"
    logit_bn: bool = False
    dense_norm: str = "batchnorm"
    remat: bool = False
    dim: int = 8
    outputs: tuple[str, ...] = ("logits",)
    pattern: Any = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def events(self) -> str:
        return fields.history_list(self.schema, self.history)

    @property
    def concat_width(self) -> int:
        """n1 * d, where no field has vectors of its own."""
        own = self.schema.select("history", kind="id", list=self.events)
        return sum(self.schema.width(f, self.dim) for f in own)

    @property
    def model_width(self) -> int:
        """D."""
        return self.width or self.concat_width

    @property
    def attention_pattern(self):
        return self.pattern or FullPattern(self.causal)

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.model_width != self.concat_width:
            self.behaviour_projection = linear(self, self.model_width, use_bias=True)
        if self.target == "projected" and self.target_aware:
            self.target_projection = linear(self, self.model_width, use_bias=True)
        if self.time_emb:
            self.time_projection = linear(self, self.model_width, use_bias=True)
        if self.abs_pos:
            self.positions = Positions(self.model_width, self.param_dtype)
        if self.attention_bias:
            self.biases = [
                PairBias(
                    self.heads if self.per_head_bias else 1,
                    self.time_buckets,
                    self.time_bias,
                    self.param_dtype,
                )
                for _ in range(self.blocks if self.per_block_bias else 1)
            ]
        # 7 is `train`; 0 is the module itself.
        block = (
            nn.remat(UnifiedAttentionBlock, static_argnums=(7,))
            if self.remat
            else UnifiedAttentionBlock
        )
        own = building.module_options(UnifiedAttentionBlock, ("width", "pattern"))
        options = {name: getattr(self, name) for name in own}
        self.layers = [
            block(width=self.model_width, pattern=self.attention_pattern, **options)
            for _ in range(self.blocks)
        ]
        self.other = fields.OtherFeatures(self.schema, self.dense_norm, **types)
        self.mlp = MLP(self.head, self.head_norm, self.head_activation, **types)
        self.read_out = Logits(self.outputs, self.logit_bn, **types)

    def __call__(self, inputs: Inputs, *, train: bool = False) -> dict[str, jax.Array]:
        """Logits {output: [B, C]}."""
        c = inputs.candidates
        if self.gate_pool == "full":
            inputs = fields.fold_candidates(self.schema, inputs)
        last = self.encode(inputs, train=train)
        return {k: x.reshape(-1, c) for k, x in self._head(last, inputs, train).items()}

    def encode(self, inputs: Inputs, *, train: bool = False) -> jax.Array:
        """E_last, [B, C, D]."""
        behaviours, profile = self._behaviours(inputs), self._profile(inputs)
        b, n, width = behaviours.shape
        candidates = self._targets(inputs) if self.target_aware else behaviours[:, :0]
        valid = inputs.mask[self.events]
        pairs, candidate_pairs = self._behaviour_pairs(inputs), self._candidate_pairs(inputs)
        for i, block in enumerate(self.layers):
            j = i % len(pairs)
            behaviours, candidates = block(
                behaviours, candidates, profile, pairs[j], candidate_pairs[j], valid, train
            )
        if self.target_aware:
            return candidates
        return jnp.broadcast_to(behaviours[:, -1:], (b, inputs.candidates, width))

    def prefix(self, inputs: Inputs) -> dict[str, jax.Array]:
        """What scoring needs of a history, {name: [B, ...]}. Not with gate_pool "full".

        It depends on the events and the profile; time biases between events do not change as time
        passes, so it holds until the next event.
        """
        behaviours, profile = self._behaviours(inputs), self._profile(inputs)
        pairs, valid = self._behaviour_pairs(inputs), inputs.mask[self.events]
        caches = {}
        for i, block in enumerate(self.layers):
            behaviours, cache = block.prefix(behaviours, profile, pairs[i % len(pairs)], valid)
            caches |= {f"block_{i}/{k}": x for k, x in cache.items()}
        return caches

    def score_candidates(
        self, cache: Mapping[str, jax.Array], inputs: Inputs
    ) -> dict[str, jax.Array]:
        """Logits {output: [B, C]} from `prefix` of the same history, its mask and its ages.

        Every candidate stands at logical position n at the request's time [FIG-M; positions
        inferred].
        """
        candidates, profile = self._targets(inputs), self._profile(inputs)
        pairs = self._candidate_pairs(inputs)
        for i, block in enumerate(self.layers):
            own = {k: cache[f"block_{i}/{k}"] for k in ("key", "value", "total", "count")}
            candidates = block.score(candidates, own, profile, pairs[i % len(pairs)])
        return self._head(candidates, inputs, False)

    def _head(self, last: jax.Array, inputs: Inputs, train: bool) -> dict[str, jax.Array]:
        parts = [last, self.other(inputs, train=train)]
        profile = self._profile(inputs)
        if profile is not None:
            flat = profile.reshape(profile.shape[0], -1)
            parts.insert(1, fields.per_candidate(flat, inputs.candidates))
        valid = fields.valid_of(inputs)
        x = self.mlp(jnp.concatenate(parts, axis=-1), train=train, valid=valid)
        return self.read_out(x, train=train, valid=valid)

    def _profile(self, inputs: Inputs) -> jax.Array | None:
        """E_p, [B, n2, d]."""
        return fields.stack_ids(self.schema, inputs, "profile")

    def _behaviours(self, inputs: Inputs) -> jax.Array:
        """[B, n, D]."""
        own = self.schema.select("history", kind="id", list=self.events)
        x = self._project(jnp.concatenate([inputs.emb[f.name] for f in own], axis=-1))
        if self.time_emb:
            x = x + self.time_projection(inputs.emb[self.time_emb[0]])
        if self.abs_pos:
            n = x.shape[1]
            x = x + self.positions(self._length(n), n)[:-1].astype(x.dtype)
        return x

    def _targets(self, inputs: Inputs) -> jax.Array:
        """[B, C, D]."""
        if self.target == "projected":
            own = self.schema.select("candidate", kind="id")
            x = self.target_projection(jnp.concatenate([inputs.emb[f.name] for f in own], axis=-1))
        else:
            x = self._project(fields.candidate_as_event(self.schema, inputs, self.events))
        if self.time_emb:
            x = x + self.time_projection(inputs.emb[self.time_emb[1]])[:, None]
        if self.abs_pos:
            n = inputs.mask[self.events].shape[1]
            x = x + self.positions(self._length(n), n)[-1].astype(x.dtype)
        return x

    def _project(self, x: jax.Array) -> jax.Array:
        return x if self.model_width == self.concat_width else self.behaviour_projection(x)

    def _length(self, n: int) -> int:
        """T of the position tables."""
        if self.max_history and n > self.max_history:
            raise ValueError(
                f"a history of {n} events does not fit max_history={self.max_history}; raise it"
            )
        return (self.max_history or n) + 1

    def _behaviour_pairs(self, inputs: Inputs) -> list[tuple[Pairs, ...]]:
        """Per block (or once for all): the pairs of each layout."""
        valid, age = inputs.mask[self.events], inputs.age[self.events]
        n = valid.shape[1]
        masks, gaps, distances = [], [], []
        for keys, allowed in self.attention_pattern.layouts(n):
            at_keys = lambda x, keys=keys: x[:, None] if keys is None else x[:, keys]  # noqa: E731
            masks.append((at_keys(valid) & allowed)[:, None])
            gaps.append(at_keys(age) - age[:, :, None])  # t_i - t_j, in integers
            distance = np.arange(n)[:, None] - (np.arange(n)[None] if keys is None else keys)
            distances.append(np.where(allowed, distance, 0))
        return self._with_biases(masks, distances, gaps, n)

    def _candidate_pairs(self, inputs: Inputs) -> list[Pairs]:
        """Per block (or once for all): what a candidate at position n sees, itself last."""
        valid, age = inputs.mask[self.events], inputs.age[self.events]
        b, n = valid.shape
        keys = self.attention_pattern.keys(n)
        itself = jnp.ones((b, 1), bool)
        mask = jnp.concatenate([valid[:, keys], itself], axis=1)[:, None, None]
        gap = jnp.concatenate([age[:, keys], jnp.zeros((b, 1), age.dtype)], axis=1)[:, None]
        distance = np.append(n - keys, 0)[None]
        return [p[0] for p in self._with_biases([mask], [distance], [gap], n)]

    def _with_biases(self, masks, distances, gaps, n: int) -> list[tuple[Pairs, ...]]:
        if not self.attention_bias:
            return [tuple(Pairs(m, None) for m in masks)]
        return [
            tuple(
                Pairs(m, bias(d, g, self._length(n)))
                for m, d, g in zip(masks, distances, gaps, strict=True)
            )
            for bias in self.biases
        ]


INTERNAL = ("schema", "dim", "outputs", "pattern", "dtype", "param_dtype")


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    labels: Iterable[str] | None = None,
    **options,
) -> System:
    """SUAN as a system.

    Args:
      schema: Needs a history list with ids, a candidate id, a label; profile ids unless
        af_net=False.
      table: To `Schema.tables`; its dim is d.
      compute_dtype: Of activations; softmax, norm statistics and the loss stay float32.
      param_dtype: Of dense parameters.
      labels: One output each, "logits" for the first; default: the schema's first.
      **options: Fields of `SUAN`.
    """
    accepted = building.module_options(SUAN, INTERNAL)
    building.check_options(
        "suan", options, accepted, ("table", "compute_dtype", "param_dtype", "labels")
    )
    return make_system(schema, table, compute_dtype, param_dtype, labels, None, options)


def make_system(schema, table, compute_dtype, param_dtype, labels, pattern, options) -> System:
    """`build` with an attention pattern (LightSUAN's)."""
    heads = building.make_heads(schema, labels)
    tables = building.make_tables(schema, table)
    module = SUAN(
        schema=schema,
        dim=building.width_of(schema, tables),
        outputs=tuple(heads),
        pattern=pattern,
        dtype=jnp.dtype(compute_dtype),
        param_dtype=jnp.dtype(param_dtype),
        **options,
    )
    check(module)
    owner = tables[0].owner
    system = pointwise(
        schema,
        module,
        tables,
        heads=heads,
        compute_dtype=module.dtype,
        owner=owner,
        counts_as=building.counting(r"layers_\d+/", "(mlp|read_out)/"),
    )
    return dataclasses.replace(system, exports={**system.exports, **cache_exports(module, owner)})


def check(module: SUAN) -> None:
    """Raises ValueError or SchemaError on options that contradict each other or the schema."""
    for option, choices in CHOICES.items():
        building.check_choice("suan", option, getattr(module, option), choices)
    schema, width = module.schema, module.model_width
    if width % module.heads or width < 4:
        raise ValueError(
            f"suan: width {width} must be at least 4 and a multiple of heads={module.heads}"
        )
    if not schema.select("candidate", kind="id"):
        raise SchemaError("suan needs a candidate id feature; the schema has none")
    if module.af_net and not schema.select("profile", kind="id"):
        raise SchemaError(
            "suan's AFNet needs a profile id feature; the schema has none: set af_net=False"
        )
    if module.target == "zero_fill" and not any(fields.matched_fields(schema, module.events)):
        raise SchemaError(
            "target='zero_fill' needs a candidate field in an id space of the history; "
            "use 'projected'"
        )
    if module.time_emb:
        roles = [schema.feature(name).role for name in module.time_emb]
        if roles != ["history", "context"]:
            raise SchemaError(f"time_emb wants (history field, context field), got roles {roles}")


def cache_exports(module: SUAN, owner: str) -> dict[str, Export]:
    """The prefix cache as artifact functions; none where behaviours depend on the candidate.

    `prefix` (cadence event) reads history and profile and returns the cache. `candidates` (cadence
    candidate) reads it from batch["cache"], beside the history's mask and ages and the other
    features; no history ids.
    """
    if module.gate_pool == "full" or not module.target_aware:
        return {}
    schema = module.schema
    no_history = schema.without(f.name for f in schema.features if f.role == "history")
    only_history = schema.without(
        f.name for f in schema.features if f.role not in ("history", "profile")
    )

    def prefix(params, batch):
        inputs = embed(only_history, params.rows, batch, owner=owner, dtype=module.dtype)
        return module.apply(params.variables, inputs, method=SUAN.prefix)

    def candidates(params, batch):
        inputs = embed(no_history, params.rows, batch, owner=owner, dtype=module.dtype)
        return module.apply(
            params.variables, part(batch, "cache"), inputs, method=SUAN.score_candidates
        )

    return {
        "prefix": Export(prefix, "event"),
        "candidates": Export(candidates, "candidate", {"cache": "prefix"}),
    }
