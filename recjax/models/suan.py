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
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.batch import part
from recjax.inputs import Inputs, embed
from recjax.layers import fields
from recjax.layers.attention import (
    Layout,
    PairBias,
    Pairs,
    attend,
    masked_softmax,
    merge_heads,
    split_heads,
)
from recjax.layers.mlp import MLP, Logits, ReluFFN, SwiGLU
from recjax.layers.norm import make_norm
from recjax.models.parts import building
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


@dataclasses.dataclass(frozen=True)
class FullPattern:
    """Every behaviour sees all before it and itself (FIG-M, left); not `causal`: all behaviours."""

    causal: bool = True

    def layouts(self, n: int) -> tuple[Layout, ...]:
        allowed = np.ones((n, n), bool)
        return (Layout(None, np.tril(allowed) if self.causal else allowed),)

    def keys(self, n: int) -> np.ndarray:
        """Behaviours that a candidate at position n sees."""
        return np.arange(n)

    def attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, pairs: tuple[Pairs, ...]
    ) -> jax.Array:
        """[B, H, n, dh] x 3 -> [B, H, n, dh]; `pairs` follow `layouts`."""
        return attend(q, k, v, *pairs[0])


class SelfAttention(nn.Module):
    """Multi-head self-attention; candidates share the behaviours' keys. No projection biases."""

    width: int
    heads: int
    pattern: Any
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.query, self.key, self.value, self.out = (_linear(self, self.width) for _ in range(4))

    def behaviours(self, x: jax.Array, pairs: tuple[Pairs, ...]):
        """x [B, n, D] -> [B, n, D], and K, V [B, H, m, dh] of what candidates see."""
        q, k, v = (split_heads(f(x), self.heads) for f in (self.query, self.key, self.value))
        out = self.out(merge_heads(self.pattern.attend(q, k, v, pairs)))
        keys = self.pattern.keys(x.shape[1])
        if len(keys) < x.shape[1]:
            k, v = k[:, :, keys], v[:, :, keys]
        return out, k, v

    def candidates(self, x: jax.Array, k: jax.Array, v: jax.Array, pairs: Pairs) -> jax.Array:
        """x [B, C, D] -> [B, C, D]: each sees K, V and itself, the last slot of `pairs`."""
        q, own_k, own_v = (
            split_heads(f(x), self.heads) for f in (self.query, self.key, self.value)
        )
        seen = jnp.einsum("bhcd,bhmd->bhcm", q, k, preferred_element_type=jnp.float32)
        own = (q * own_k).sum(-1, keepdims=True, dtype=jnp.float32)
        logits = jnp.concatenate([seen, own], axis=-1) / math.sqrt(q.shape[-1])
        weights = masked_softmax(logits if pairs.bias is None else logits + pairs.bias, pairs.mask)
        weights = weights.astype(v.dtype)
        out = jnp.einsum("bhcm,bhmd->bhcd", weights[..., :-1], v) + weights[..., -1:] * own_v
        return self.out(merge_heads(out))


class CrossAttention(nn.Module):
    """Sequence rows ask, profile tokens answer. No mask: a missing field has an id of its own."""

    width: int
    heads: int
    scale: str = "dh"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.query, self.key, self.value, self.out = (_linear(self, self.width) for _ in range(4))

    def __call__(self, x: jax.Array, profile: jax.Array) -> jax.Array:
        """x [B, T, D], profile [B, n2, d] -> [B, T, D]."""
        q = split_heads(self.query(x), self.heads)
        k, v = (split_heads(f(profile), self.heads) for f in (self.key, self.value))
        logits = jnp.einsum("bhtd,bhpd->bhtp", q, k, preferred_element_type=jnp.float32)
        size = q.shape[-1] if self.scale == "dh" else profile.shape[1]
        weights = jax.nn.softmax(logits / math.sqrt(size), axis=-1).astype(v.dtype)
        return self.out(merge_heads(jnp.einsum("bhtp,bhpd->bhtd", weights, v)))


class AlignmentGate(nn.Module):
    """Dual alignment attention: mixes two branches per channel [FIG-A, CODE]."""

    width: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.squeeze = _linear(self, self.width // 4)
        self.to_self, self.to_cross = _linear(self, self.width), _linear(self, self.width)

    def weights(self, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
        """mean [B, rows, D] -> w_self, w_cross [B, rows, D], summing to 1."""
        h = nn.relu(self.squeeze(mean))
        w = nn.sigmoid((self.to_self(h) - self.to_cross(h)).astype(jnp.float32))  # softmax of two
        return w.astype(self.dtype), (1 - w).astype(self.dtype)

    def __call__(self, mean: jax.Array, own: jax.Array, cross: jax.Array) -> jax.Array:
        w_self, w_cross = self.weights(mean)
        return w_self * own + w_cross * cross


def _linear(module, features: int, use_bias: bool = False) -> nn.Dense:
    init = nn.initializers.glorot_uniform()  # TF's default [CODE]
    types = dict(dtype=module.dtype, param_dtype=module.param_dtype)
    return nn.Dense(features, use_bias=use_bias, kernel_init=init, **types)


class Rows(NamedTuple):
    """Rows halfway through a block, [B, rows, D]: residual stream, RMS_2 of it, cross-attention."""

    stream: jax.Array
    x2: jax.Array
    cross: jax.Array | None

    @property
    def total(self) -> jax.Array:
        """E_sum = E_self + E_cross, float32."""
        return self.x2.astype(jnp.float32) + (0.0 if self.cross is None else self.cross)


class UnifiedAttentionBlock(nn.Module):
    """See the module docstring. Behaviours and candidates pass through side by side."""

    width: int
    heads: int
    pattern: Any = FullPattern()
    gate_pool: str = "full"
    residual: str = "normalised"
    norm: str = "rms"
    ffn: str = "swiglu"
    af_net: bool = True
    alignment: bool = True
    cross_scale: str = "dh"
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.norm1, self.norm2, self.norm3 = (make_norm(self.norm, **types) for _ in range(3))
        self.attention = SelfAttention(self.width, self.heads, self.pattern, **types)
        if self.af_net:
            self.cross = CrossAttention(self.width, self.heads, self.cross_scale, **types)
            if self.alignment:
                self.gate = AlignmentGate(self.width, **types)
        self.feed_forward = (SwiGLU if self.ffn == "swiglu" else ReluFFN)(**types)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, behaviours, candidates, profile, pairs, candidate_pairs, valid, train=False):
        """One block over both.

        Args:
          behaviours: [B, n, D].
          candidates: [B, C, D]; C <= 1 with gate_pool "full".
          profile: [B, n2, d].
          pairs: Of the behaviours, as the pattern lays them out.
          candidate_pairs: [B, ., 1, m + 1]: the m behaviours a candidate sees, and itself.
          valid: bool [B, n].
          train: Static.

        Returns:
          behaviours [B, n, D], candidates [B, C, D].
        """
        b, k, v = self._behaviour_rows(behaviours, profile, pairs, train)
        c = self._candidate_rows(candidates, k, v, profile, candidate_pairs, train)
        total, count = _pool(b, valid)
        if self.gate_pool == "full":
            count = count + candidates.shape[1]
            mean_b = mean_c = (total + c.total.sum(1, keepdims=True)) / jnp.maximum(count, 1)
        else:
            mean_b, mean_c = self._behaviour_mean(b, valid), self._candidate_mean(c, total, count)
        return self._finish(b, mean_b, train), self._finish(c, mean_c, train)

    def prefix(self, behaviours, profile, pairs, valid) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The behaviours' half of the block, and all of it that candidates need."""
        b, k, v = self._behaviour_rows(behaviours, profile, pairs, False)
        total, count = _pool(b, valid)
        cache = {"key": k, "value": v, "total": total, "count": count}
        return self._finish(b, self._behaviour_mean(b, valid), False), cache

    def score(self, candidates, cache, profile, candidate_pairs) -> jax.Array:
        """The candidates' half, [B, C, D] -> [B, C, D]."""
        c = self._candidate_rows(
            candidates, cache["key"], cache["value"], profile, candidate_pairs, False
        )
        return self._finish(c, self._candidate_mean(c, cache["total"], cache["count"]), False)

    def _behaviour_rows(self, x, profile, pairs, train):
        x1 = self.norm1(x)
        attended, k, v = self.attention.behaviours(x1, pairs)
        return self._rows(x, x1, attended, profile, train), k, v

    def _candidate_rows(self, x, k, v, profile, pairs, train) -> Rows:
        x1 = self.norm1(x)
        return self._rows(x, x1, self.attention.candidates(x1, k, v, pairs), profile, train)

    def _rows(self, x, x1, attended, profile, train) -> Rows:
        stream = self._add(x, x1, attended, train)
        x2 = self.norm2(stream)
        return Rows(stream, x2, self.cross(x2, profile) if self.af_net else None)

    def _add(self, raw, normalised, update, train):
        """The residual; "raw" is textbook pre-norm."""
        start = normalised if self.residual == "normalised" else raw
        return start + self.drop(update, deterministic=not train)

    def _behaviour_mean(self, b: Rows, valid) -> jax.Array:
        """What gates behaviour rows, [B, 1 or n, D]."""
        if self.gate_pool == "causal":
            sums = jnp.cumsum(b.total * valid[..., None], axis=1)
            return sums / jnp.maximum(jnp.cumsum(valid, axis=1)[..., None], 1)
        total, count = _pool(b, valid)
        return total / jnp.maximum(count, 1)

    def _candidate_mean(self, c: Rows, total, count) -> jax.Array:
        """What gates candidate rows, [B, 1 or C, D]; "causal": behaviours and the candidate."""
        if self.gate_pool == "causal":
            return (total + c.total) / (count + 1)
        return total / jnp.maximum(count, 1)

    def _finish(self, rows: Rows, mean, train) -> jax.Array:
        stream, x2, cross = rows
        if self.af_net:
            f = self.gate(mean.astype(self.dtype), x2, cross) if self.alignment else cross
            stream = self._add(stream, x2, f, train)
        elif self.residual == "normalised":
            stream = x2
        x3 = self.norm3(stream)
        return self._add(stream, x3, self.feed_forward(x3), train)


def _pool(b: Rows, valid) -> tuple[jax.Array, jax.Array]:
    """Sum [B, 1, D] of E_sum over valid behaviours, and their number [B, 1, 1]."""
    return (b.total * valid[..., None]).sum(1, keepdims=True), valid.sum(1)[:, None, None]


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
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.model_width != self.concat_width:
            self.behaviour_projection = _linear(self, self.model_width, use_bias=True)
        if self.target == "projected" and self.target_aware:
            self.target_projection = _linear(self, self.model_width, use_bias=True)
        if self.time_emb:
            self.time_projection = _linear(self, self.model_width, use_bias=True)
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
    system = pointwise(schema, module, tables, heads=heads, compute_dtype=module.dtype, owner=owner)
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


def block_parameters(width: int, dim: int) -> int:
    """Parameters of one block, 15.75 D^2 + 2 d D + 10 D, for D divisible by 4.

    4 D^2 self-attention, 2 D^2 + 2 d D cross-attention, 0.75 D^2 gate, 9 D^2 + 7 D FFN, 3 D norms.
    """
    return 63 * width * width // 4 + 2 * dim * width + 10 * width


def block_flops(
    width: int,
    dim: int,
    tokens: int,
    profile_tokens: int,
    pairs: int | None = None,
    gate_rows: int = 1,
) -> int:
    """Forward FLOPs of one block for one example, two per multiply-add; matrix products only.

    Args:
      width: D.
      dim: d.
      tokens: T = n + 1 (n + C with candidates side by side).
      profile_tokens: n2.
      pairs: (query, key) pairs computed; default T^2, the masked dense form.
      gate_rows: Rows the gate is computed for: 1, or T with gate_pool "causal".
    """
    pairs = tokens**2 if pairs is None else pairs
    projections = 2 * tokens * (4 + 2 + 9) * width**2
    cross = 4 * profile_tokens * dim * width + 4 * tokens * profile_tokens * width
    return int(projections + cross + 4 * width * pairs + 1.5 * gate_rows * width**2)
