"""TARQ: target attention for pre-ranking, from a personalised codebook instead of from every candidate.

"Equip Pre-ranking with Target Attention by Residual Quantization" (Taobao), arXiv 2509.16931, SIGIR 2026. The body of
the paper was not available to us and the authors released one file, the losses and metrics (zyody/tarq_sigir2026)
[code]; the network is of second-hand summaries [2nd] or our consistent reconstruction [ours]. What was found of its
results: offline AUC 0.799, 0.014 above two towers; codes in use 59 % without and 98 % with alignment [2nd].

    H = X + MHA(X, X, X),  h_user = MHA(x_user, H, H)           history  [2nd; residual, one encoder for all: ours]
    v_user = MLP([x_user; h_user]),  v_item = MLP(x_item)       two towers                       [2nd]
    c = Enc(x_item),  h_tar = MHA(c, H, H),  teacher = MLP([h_tar; c])   exact target attention  [2nd; form: ours]
    z = residual codes of c in X^0 .. X^{L-1}                   recjax.layers.residual_quantizer [code]
    T^l = MHA(X^l, H, H),  h_rq = sum_l T^l[z_l]                personalised codebook            [code: shapes, sum]
    s = v_user . v_item + u_item . h_rq / sqrt(D) + b,  u_item = W v_item                        [ours]
    L = BCE(s) + BCE(teacher) + vq (L_vq + L_rec) + distill ||h_rq - sg(h_tar)||^2 + align A      [code; weights: ours]

Attending from the L K code vectors costs the same for ten candidates and for a hundred thousand; a candidate then costs
L look-ups. A sum of attentions is the attention of the sum only where attention is linear; the gap is what distillation
trains away. A, the codebook alignment [code], takes v = c and v' = sg(h_tar) through the levels of both spaces:

    p = softmax_k(-||v - x^l_k||^2),  p' = softmax_k(-||v' - T^l_k||^2),  A += KL(p||p') + KL(p'||p)
    v -= x^l_z,  v' -= T^l_z         one z, that of the original space

The code's 1e-8 inside logarithms is replaced by log-softmaxes (the same limit, never negative). align = 0.01 where the
code has 1.0: in the specification's prototype 1.0 made both distributions uniform, with all codes in use and none of
them any good (watch `quantisation`, ||c - c^||^2 / ||c||^2). L_rec and L_vq are RQ-VAE's, mean over rows of squared norms
[ours]; the code's sample-corrected and positive-unlabelled click losses are left out: their bodies are not in the file.

readout="low_rank" reads u_item . h_rq through `rank` dimensions, u_item = A v_item and B h_rq, and "scalar" as w . h_rq,
which no longer knows the item beside its codes [ours]; both make serving's tables that much smaller. `variant` is also
the two rivals, "two_tower" and "target_attention" (the teacher alone), as systems of their own.

What is the item's is `item_features` (candidate ids and vectors; default: all of them) and nothing else, so v_item,
u_item and codes are computed once an item: for the whole catalogue at export, from the quantised rows
(recjax.serving.catalogue). Candidate features that depend on the request (counters, displays) are not read. Attention has
no biases, so an empty history gives zero tables, and s is the towers' alone.

Functions: "item" (cadence item), "request" (request), "candidates" (candidate; reads both), "score" (all three at once).
`python -m recjax.serving.prerank` serves them.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.batch import Batch, part
from recjax.inputs import Inputs, embed
from recjax.layers import fields
from recjax.layers import residual_quantizer as rq
from recjax.layers.attention import masked_softmax
from recjax.layers.mlp import MLP, MaskedBatchNorm
from recjax.models.parts import building
from recjax.models.parts.tarq_attention import (
    HistoryAttention,
    alignment,
    dot,
    look_up,
    read_tables,
)
from recjax.schema import Feature, Schema, SchemaError
from recjax.system import Export, Objective, Select, System, bce, mean, weights_of
from recjax.trees import Params

CHOICES = {
    "variant": ("tarq", "two_tower", "target_attention"),
    "readout": ("full", "low_rank", "scalar"),
    "codebook": ("gradient", "ema"),
    "codebook_init": ("normal", "kmeans"),
    "dense_norm": ("batchnorm", "identity"),
}
USER = ("profile", "context")  # roles that x_user is made of


# ---- the model -----------------------------------------------------------------------------------


class TARQ(nn.Module):
    """The model; fields up to `dense_norm` are options of `build`.

    Attributes:
      variant: "tarq", or a rival: "two_tower", "target_attention" (the exact teacher alone).
      width: D, of the history, the codes and the towers' vectors.
      heads: Of every attention.
      levels, codes: L and K.
      tower, encoder, teacher_head: Hidden widths: of both towers; of Enc (and Dec); of the teacher.
      readout: Of h_rq: "full", "low_rank" or "scalar".
      rank: Of "low_rank".
      share_attention: Student and teacher attend with the same weights.
      linear: Linear attention in student and teacher (of which the student is then exact).
      codebook: "gradient" or "ema".
      codebook_init: "normal" (N(0, 0.3^2)) or "kmeans" (of the first 8,192 encoded candidates).
      reset_after: Steps after which an unused code starts anew; 0: never, so that alignment's effect can be seen.
      align_sg_item: No gradient of A to c.
      align_rows: A of the first so many rows of a batch [ours: the tables are what a step costs]; 0: of all.
      history: The list attended to; "" for the schema's first.
      item_features: Candidate ids and vectors that are the item's own; () for all of them.
      event_features: Features of the list that are read; () for all of them.
      dense_norm: "batchnorm" or "identity", of the user's numbers.
      item_width: Of x_item; from `build`.
    """

    schema: Schema
    variant: str = "tarq"
    width: int = 64
    heads: int = 2
    levels: int = 3
    codes: int = 128
    tower: tuple[int, ...] = (64,)
    encoder: tuple[int, ...] = (64,)
    teacher_head: tuple[int, ...] = (64,)
    readout: str = "full"
    rank: int = 8
    share_attention: bool = False
    linear: bool = False
    codebook: str = "gradient"
    codebook_init: str = "normal"
    reset_after: int = 0
    align_sg_item: bool = False
    align_rows: int = 0
    history: str = ""
    item_features: tuple[str, ...] = ()
    event_features: tuple[str, ...] = ()
    dense_norm: str = "batchnorm"
    item_width: int = 0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    @property
    def has_teacher(self) -> bool:
        return self.variant != "two_tower"

    @property
    def has_towers(self) -> bool:
        return self.variant != "target_attention"

    @property
    def quantizer_options(self) -> dict[str, Any]:
        return dict(
            width=self.width,
            levels=self.levels,
            size=self.codes,
            update=self.codebook,
            kmeans=self.codebook_init == "kmeans",
            reset_after=self.reset_after,
            param_dtype=self.param_dtype,
        )

    def setup(self):
        dense: Any = functools.partial(nn.Dense, **self.types)
        attend: Any = functools.partial(HistoryAttention, self.width, self.heads, **self.types)
        self.event = dense(self.width)
        self.self_attention = attend()
        if self.has_towers:
            self._set_up_towers(dense, attend)
        if self.has_teacher:
            self.encode_mlp = MLP(self.encoder, **self.types)
            self.encode_out = dense(self.width)
            self.teacher_attention = attend(self.linear)
            self.teacher_mlp = MLP(self.teacher_head, **self.types)
            self.teacher_out = dense(1)
        if self.variant == "tarq":
            self._set_up_student(dense, attend)

    def _set_up_towers(self, dense, attend):
        self.user_attention = attend()
        if self.schema.select(*USER):
            self.user_query = dense(self.width)
            if self.dense_norm == "batchnorm":
                self.user_norm = MaskedBatchNorm(**self.types)
        else:
            init = nn.initializers.normal(1.0)
            self.user_query = self.param("user_query", init, (self.width,), self.param_dtype)
        self.user_mlp, self.item_mlp = (MLP(self.tower, **self.types) for _ in range(2))
        self.user_out, self.item_out = dense(self.width), dense(self.width)
        self.bias = self.param("bias", nn.initializers.zeros, (), jnp.float32)

    def _set_up_student(self, dense, attend):
        self.quantizer = rq.ResidualQuantizer(**self.quantizer_options)
        self.decode_mlp = MLP(self.encoder, **self.types)
        self.decode_out = dense(self.item_width)
        if not self.share_attention:
            self.student_attention = attend(self.linear)
        size = {"full": self.width, "low_rank": self.rank, "scalar": 1}[self.readout]
        if self.readout != "scalar":
            self.item_read = dense(size, use_bias=False)
        if self.readout != "full":
            init = nn.initializers.lecun_normal()
            self.read = self.param("read", init, (self.width, size), self.param_dtype)

    # ---- parts -------------------------------------------------------------------------------------

    def events(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """H [B, n, D] and the mask."""
        every = self.schema.select("history", list=self.history)
        own = [f for f in every if not self.event_features or f.name in self.event_features]
        x = self.event(values(inputs, own).astype(self.dtype))
        mask = inputs.mask[self.history]
        return x + self.self_attention(x, x, mask), mask

    def user(self, inputs: Inputs, h: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """v_user [B, D]."""
        parts = self._user_parts(inputs, train)
        if parts:
            query = self.user_query(jnp.concatenate(parts, -1))
        else:
            query = jnp.broadcast_to(self.user_query.astype(self.dtype), (h.shape[0], self.width))
        parts.append(self.user_attention(query[:, None], h, mask)[:, 0])
        return self.user_out(self.user_mlp(jnp.concatenate(parts, -1), train=train))

    def _user_parts(self, inputs: Inputs, train: bool) -> list[jax.Array]:
        """Ids, then normalised numbers, [B, *] each."""
        parts = [x.astype(self.dtype) for x in inputs.ids(*USER)]
        numbers = inputs.numbers(*USER)
        if numbers is not None and self.dense_norm == "batchnorm":
            valid = fields.valid_of(inputs)
            valid = None if valid is None else valid.any(1)
            numbers = self.user_norm(numbers.astype(jnp.float32), train=train, valid=valid)
        return parts if numbers is None else [*parts, numbers.astype(self.dtype)]

    def item(self, inputs: Inputs) -> jax.Array:
        """x_item [B, C, *]."""
        own = [self.schema.feature(name) for name in self.item_features]
        return values(inputs, own).astype(self.dtype)

    def item_vector(self, x: jax.Array) -> jax.Array:
        """v_item [B, C, D]."""
        return self.item_out(self.item_mlp(x, train=False))

    def encode(self, x: jax.Array) -> jax.Array:
        """c [B, C, D]."""
        return self.encode_out(self.encode_mlp(x, train=False))

    def decode(self, vectors: jax.Array) -> jax.Array:
        """x^ [B, C, *]."""
        return self.decode_out(self.decode_mlp(vectors.astype(self.dtype), train=False))

    def teach(self, c: jax.Array, h: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """h_tar [B, C, D] and the teacher's logits, float32 [B, C]."""
        h_tar = self.teacher_attention(c, h, mask)
        x = self.teacher_mlp(jnp.concatenate([h_tar, c], -1), train=False)
        return h_tar, self.teacher_out(x).astype(jnp.float32)[..., 0]

    @property
    def student(self) -> HistoryAttention:
        return self.teacher_attention if self.share_attention else self.student_attention

    @property
    def code_vectors(self) -> jax.Array:
        """All codes as queries, [L K, D]."""
        return self.quantizer.codebooks.astype(self.dtype).reshape(-1, self.width)

    def personalise(self, h: jax.Array, mask: jax.Array) -> jax.Array:
        """T [B, L, K, D]."""
        tables = self.student(self.code_vectors, h, mask)
        return tables.reshape(h.shape[0], self.levels, self.codes, self.width)

    def attend_codes(self, codes: jax.Array, h: jax.Array, mask: jax.Array) -> jax.Array:
        """h_rq [B, C, D] from the codes int [B, C, L] that are asked for alone: cheaper where C < K."""
        books = self.quantizer.codebooks.astype(self.dtype)
        chosen = jnp.stack([b[codes[..., i]] for i, b in enumerate(books)], axis=2)
        found = self.student(chosen.reshape(h.shape[0], -1, self.width), h, mask)
        return found.reshape(*codes.shape, self.width).sum(2)

    def projection(self) -> jax.Array:
        """What h_rq is read through, [D, R], 1 / sqrt(D) included."""
        whole = jnp.eye(self.width) if self.readout == "full" else self.read
        return (whole / math.sqrt(self.width)).astype(self.dtype)

    def item_readout(self, v_item: jax.Array) -> jax.Array:
        """u_item [B, C, R]; ones for "scalar"."""
        if self.readout == "scalar":
            return jnp.ones((*v_item.shape[:2], 1), v_item.dtype)
        return self.item_read(v_item)

    # ---- whole passes ------------------------------------------------------------------------------

    def __call__(
        self, inputs: Inputs, *, train: bool = False, tables: int = 0
    ) -> dict[str, jax.Array]:
        """Logits and everything the losses need.

        Args:
          inputs: Embedded batch.
          train: Batch statistics, moving averages of codebooks.
          tables: Rows of the batch to personalise all L K codes for, even where fewer are asked for.

        Returns:
          logits float32 [B, C]; of "tarq" also teacher [B, C], codes int32 [B, C, L], [B, C, *]: x, c, vectors (c^), decoded
          (x^), h_tar, h_rq; vq [B, C]; codebooks; T of the asked rows as "tables".
        """
        h, mask = self.events(inputs)
        x = self.item(inputs)
        if self.variant == "target_attention":
            return {"logits": self.teach(self.encode(x), h, mask)[1]}
        v_user, v_item = self.user(inputs, h, mask, train), self.item_vector(x)
        logits = dot("bd,bcd->bc", v_user, v_item) + self.bias
        if self.variant == "two_tower":
            return {"logits": logits}
        c = self.encode(x)
        found = self.quantizer(c, train=train, valid=fields.valid_of(inputs))
        h_tar, teacher = self.teach(c, h, mask)
        out = {"teacher": teacher, "codes": found.codes, "x": x, "c": c, "h_tar": h_tar}
        asked = found.codes.shape[1]  # a symbol in an export
        many = not isinstance(asked, int) or asked >= self.codes
        if many or tables:
            rows = slice(None if many else tables)
            out["tables"] = self.personalise(h[rows], mask[rows])
        whole = many or tables >= len(h)
        h_rq = (
            look_up(out["tables"], found.codes)
            if whole
            else self.attend_codes(found.codes, h, mask)
        )
        out |= {"h_rq": h_rq, "vectors": found.vectors}
        out["decoded"] = self.decode(rq.straight_through(c, found.vectors))
        out["codebooks"] = self.quantizer.codebooks
        out["vq"] = rq.vq_loss(found, out["codebooks"])
        read = dot("bcr,bcr->bc", self.item_readout(v_item), h_rq @ self.projection())
        return {"logits": logits + read, **out}

    def serve_item(self, inputs: Inputs) -> dict[str, jax.Array]:
        """What is stored of items: vector [B, C, D], codes [B, L, C], readout [B, R, C] (exact: query and code)."""
        x = self.item(inputs)
        if self.variant == "target_attention":
            c = self.encode(x)
            return {"query": c @ self.teacher_attention.kernels["q"], "code": c}
        out = {"vector": self.item_vector(x)}
        if self.variant == "tarq":
            codes = rq.quantize(self.encode(x), self.quantizer.codebooks).codes
            small = jnp.uint8 if self.codes <= 256 else jnp.int32
            out["codes"] = codes.astype(small).swapaxes(1, 2)
            if self.readout != "scalar":
                out["readout"] = self.item_readout(out["vector"]).swapaxes(1, 2)
        return out

    def serve_request(self, inputs: Inputs) -> dict[str, jax.Array]:
        """What a request costs once: user [B, D] and tables [B, L, R, K] (exact: the encoded history)."""
        h, mask = self.events(inputs)
        if self.variant == "target_attention":
            return {"events": h, "mask": mask}
        out = {"user": self.user(inputs, h, mask, False)}
        if self.variant == "tarq":
            read = self.student.read(self.code_vectors, h, mask, self.projection())
            read = read.reshape(h.shape[0], -1, self.levels, self.codes)
            out["tables"] = read.swapaxes(1, 2)  # codes last: a row of floats stays in the cache
        return out

    def serve_candidates(self, request: Mapping, item: Mapping) -> jax.Array:
        """Logits float32 [B, C] of stored items."""
        if self.variant == "target_attention":
            return self._exact(request, item)
        logits = dot("bd,bcd->bc", request["user"], item["vector"]) + self.bias
        if self.variant == "two_tower":
            return logits
        return logits + read_tables(request["tables"], item["codes"], item.get("readout"))

    def _exact(self, request: Mapping, item: Mapping) -> jax.Array:
        """The teacher's logits; the items' queries are projected already."""
        attention, events = self.teacher_attention, request["events"]
        split = attention.split
        key, value = (split(events @ attention.kernels[n]) for n in ("k", "v"))
        logits = jnp.einsum("bhqd,bhnd->bhqn", split(item["query"]), key) / math.sqrt(key.shape[-1])
        seen = request["mask"][:, None, None]
        weights = jnp.where(seen, logits, 0.0) if self.linear else masked_softmax(logits, seen)
        h_tar = jnp.einsum("bhqn,bhnd->bqhd", weights.astype(value.dtype), value)
        h_tar = h_tar.reshape(*h_tar.shape[:2], self.width) @ attention.kernels["o"]
        x = self.teacher_mlp(jnp.concatenate([h_tar, item["code"]], -1), train=False)
        return self.teacher_out(x).astype(jnp.float32)[..., 0]


def values(inputs: Inputs, features: Iterable[Feature]) -> jax.Array:
    """Ids, vectors and numbers of features of one shape, on the last axis."""
    parts = []
    for f in features:
        x = inputs.emb[f.name] if f.kind == "id" else inputs.dense[f.name]
        parts.append(x[..., None] if f.kind == "dense" else x)
    return jnp.concatenate(parts, axis=-1)


# ---- the system ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of the losses beside the two cross-entropies; `distill` is twice what the code's 1/2 makes of it."""

    vq: float = 0.1
    distill: float = 0.05
    align: float = 0.01

    def __post_init__(self):
        for f in dataclasses.fields(self):
            if not getattr(self, f.name) >= 0:
                raise ValueError(f"tarq: {f.name}={getattr(self, f.name)!r}; give 0 or more")


INTERNAL = ("schema", "item_width", "dtype", "param_dtype")
LOSSES = tuple(f.name for f in dataclasses.fields(Weights))


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    label: str = "",
    **options,
) -> System:
    """TARQ, or one of its rivals, as a system.

    Args:
      schema: Needs a history list with an id feature, a candidate id or vector, and a label.
      table: To `Schema.tables`.
      compute_dtype: Of activations; codes and distances are float32.
      param_dtype: Of dense parameters.
      label: Predicted; default: the schema's first.
      **options: Fields of `TARQ` and `Weights`.
    """
    accepted = building.module_options(TARQ, INTERNAL)
    common = ("table", "compute_dtype", "param_dtype", "label")
    building.check_options("tarq", options, accepted | building.module_options(Weights, ()), common)
    weights = Weights(**{k: options.pop(k) for k in LOSSES if k in options})
    heads = building.make_heads(schema, [label] if label else None)
    tables = building.make_tables(schema, table)
    options["history"] = fields.history_list(schema, options.get("history", ""))
    items = own_features(schema, options.get("item_features", ()))
    options["item_features"] = tuple(f.name for f in items)
    dim = building.width_of(schema, tables)
    width = sum(schema.width(f, dim) if f.kind == "id" else f.vector for f in items)
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    module = TARQ(schema=schema, item_width=width, **dtypes, **options)
    check(module)
    look = functools.partial(embed, schema, owner=tables[0].owner, dtype=module.dtype)
    return Functions(module, weights, heads["logits"], look).system(tables)


def own_features(schema: Schema, names: Iterable[str]) -> list[Feature]:
    """Features of the item alone, in schema order; raises SchemaError on one that is not a candidate's id or vector."""
    usable = [f for f in schema.select("candidate") if f.kind != "dense"]
    for name in names:
        if name not in {f.name for f in usable}:
            raise SchemaError(
                f"tarq: item_features names {name!r}; the candidate's ids and vectors are "
                f"{', '.join(f.name for f in usable) or 'none'}"
            )
    chosen = [f for f in usable if not tuple(names) or f.name in names]
    if not chosen:
        raise SchemaError("tarq needs a candidate feature that is an id or a vector; there is none")
    return chosen


def check(module: TARQ) -> None:
    """Raises ValueError (SchemaError) on options that contradict each other or the schema."""
    for option, choices in CHOICES.items():
        building.check_choice("tarq", option, getattr(module, option), choices)
    events = [f.name for f in module.schema.select("history", list=module.history)]
    for name in module.event_features:
        if name not in events:
            raise SchemaError(
                f"tarq: event_features names {name!r}; the list {module.history!r} has {', '.join(events)}"
            )
    if module.heads < 1 or module.width % module.heads:
        raise ValueError(f"tarq: heads={module.heads} does not divide width={module.width}")
    if module.align_rows < 0:
        raise ValueError(f"tarq: align_rows={module.align_rows}; give 0 (all) or more")
    for option in ("levels", "codes", "rank"):
        if getattr(module, option) < 1:
            raise ValueError(f"tarq: {option}={getattr(module, option)}; give at least 1")


@dataclasses.dataclass(frozen=True)
class Functions:
    """The system's functions."""

    module: TARQ
    weights: Weights
    label: str
    look: Callable[..., Inputs]  # (rows, batch)

    def system(self, tables) -> System:
        objectives = [Objective("logits", self.label)]
        hook = None
        if self.module.variant == "tarq":
            objectives.append(Objective("teacher", self.label, "teacher"))
            quantizer = rq.ResidualQuantizer(**self.module.quantizer_options)
            hook = rq.after_step(quantizer, ("quantizer",))
        tarq = self.module.variant == "tarq"
        return System(
            schema=self.module.schema,
            tables=tables,
            init=self.init,
            loss=self.loss,
            outputs=self.outputs,
            objectives=tuple(objectives),
            select=Select(),
            counts_as=building.counting(
                r"\w+_attention/", r"(teacher|user|item)_(mlp|out|read)/|read|bias"
            ),
            exports={
                "score": Export(self.score, "request"),
                "item": Export(self.part("serve_item"), "item"),
                "request": Export(self.part("serve_request"), "request"),
                "candidates": Export(
                    self.candidates, "candidate", {"item": "item", "request": "request"}
                ),
            },
            after_step=hook,
            measure=functools.partial(measure, self.module.codes) if tarq else None,
            kept=("codes", "errors") if tarq else (),
        )

    def apply(self, params: Params, batch: Batch, **how):
        return self.module.apply(params.variables, self.look(params.rows, batch), **how)

    def init(self, rng, rows, batch):
        variables = dict(self.module.init(rng, self.look(rows, batch), train=False))
        return variables.pop("params", {}), variables

    def loss(self, params: Params, batch: Batch, rng: jax.Array):
        how: dict[str, Any] = dict(train=True, mutable=list(params.state), rngs={"dropout": rng})
        if self.module.variant == "tarq" and self.weights.align > 0:
            how["tables"] = self.module.align_rows or len(batch["valid"])
        out, changed = self.apply(params, batch, **how)
        weights, labels = weights_of(batch), batch["label"][self.label]
        sums = {"loss": bce(out["logits"], labels, weights)}
        total = mean(*sums["loss"])
        if self.module.variant == "tarq":
            sums["loss/teacher"] = bce(out["teacher"], labels, weights)
            total = total + mean(*sums["loss/teacher"])
            # Without events the tables are zero and A asks for nothing but uniform codes, its trivial optimum [ours].
            seen = batch["mask"][self.module.history].any(-1, keepdims=True)
            for name, weight, term in self.terms(out):
                w = (weights * seen if name == "align" else weights)[: len(term)]
                sums[f"loss/{name}"] = (term * w).sum(), w.sum()
                total = total + weight * mean(*sums[f"loss/{name}"])
            sums |= self.monitor(out, batch["valid"])
        return total, ({**params.state, **changed}, sums)

    def terms(self, out: Mapping[str, jax.Array]) -> list[tuple[str, float, jax.Array]]:
        """Name, weight and value [B, C] (or of the first rows) of the losses beside the cross-entropies."""
        stop, w = jax.lax.stop_gradient, self.weights
        terms = [
            ("vq", w.vq, out["vq"]),
            ("reconstruction", w.vq, squared(out["decoded"] - stop(out["x"]))),
            (
                "distil",
                w.distill,
                squared(out["h_rq"] - stop(out["h_tar"])),
            ),  # saved runs spell it so
        ]
        if w.align > 0:
            c = stop(out["c"]) if self.module.align_sg_item else out["c"]
            rows = slice(len(out["tables"]))
            args = out["h_tar"][rows], out["codebooks"], out["tables"], out["codes"][rows]
            terms.append(("align", w.align, alignment(c[rows], *args)))
        return terms

    def monitor(self, out: Mapping[str, jax.Array], valid: jax.Array) -> dict:
        """The released code's figures of a batch, averaged over levels [code], and the relative errors [ours]."""
        counts = rq.code_counts(out["codes"], self.module.codes, valid)
        found = {f"codes/{k}": (v.mean(), jnp.ones(())) for k, v in rq.usage(counts).items()}
        error = (errors(out) * valid[..., None]).sum((0, 1))
        return found | {"quantisation": (error[0], error[1]), "imitation": (error[2], error[3])}

    def outputs(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """logits, and of "tarq" teacher, codes [B, C, L] and errors [B, C, 4]."""
        out = self.apply(params, batch, train=False)
        if self.module.variant != "tarq":
            return out
        return {k: out[k] for k in ("logits", "teacher", "codes")} | {"errors": errors(out)}

    def score(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        return {"logits": self.apply(params, batch, train=False)["logits"]}

    def part(self, method: str):
        """An exported method of the module."""

        return lambda params, batch: self.apply(params, batch, method=method)

    def candidates(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        args = part(batch, "request"), part(batch, "item")
        logits: Any = self.module.apply(params.variables, *args, method="serve_candidates")
        return {"logits": logits}


def squared(x: jax.Array) -> jax.Array:
    """Squared norm over the last axis, float32."""
    return jnp.square(x.astype(jnp.float32)).sum(-1)


def errors(out: Mapping[str, jax.Array]) -> jax.Array:
    """||c - c^||^2, ||c||^2, ||h_rq - h_tar||^2, ||h_tar||^2: float32 [B, C, 4]."""
    c, h_tar = out["c"], out["h_tar"]
    parts = (c - out["vectors"], c, out["h_rq"] - h_tar, h_tar)
    return jnp.stack([squared(x) for x in parts], -1)


def measure(size: int, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of a split: share of the codes in use and perplexity per level, over all its rows, and the two relative errors."""
    out: dict[str, float] = {}
    for level, codes in enumerate(columns["codes"].T):
        counts = np.bincount(codes, minlength=size)
        p = counts[counts > 0] / max(counts.sum(), 1)
        out[f"codes/utilisation/{level}"] = float((counts > 0).mean())
        out[f"codes/perplexity/{level}"] = float(np.exp(-(p * np.log(p)).sum()))
    totals = columns["errors"].astype(np.float64).sum(0)
    for name, (error, whole) in {"quantisation": totals[:2], "imitation": totals[2:]}.items():
        out[name] = float(error / max(whole, 1e-30))
    return out
