"""HyperPAVE: zero-shot product attribute-value extraction as link prediction on a hypergraph of text.

J. Gong and H. Eldardiry, "Multi-Label Zero-Shot Product Attribute-Value Extraction", WWW 2024, arXiv
2402.08802. [P] is the paper's abstract or a summary that quotes its body, [C] the authors' code (gjiaying/HyperPAVE), [ours] a choice of this
file. The body of the paper was not found: sizes and rates are the code's or ours. An *aspect* is an
attribute with its value, "color is red".

    x_i   = LayerNorm(W_text f(text_i) + t_type)                     frozen text encoder f        [ours]
    h_r   = x + GELU(D^-1 H_r B^-1 H_r^T x Theta_r + b_r)            for each kind r of hyperedge [C, ours]
    h     = sum_r w_r h_r                                            fusion, weights of FUSION    [C]
    h_i   = sum_s W_s^nbr mean_{j in N_s(i)} h_j + b_s + W_s^self h_i   two layers, ReLU between  [C]
    s     = kappa cos(z_p, z_a) + beta_attribute                     [P: cosine; C: dot; ours: kappa, beta]
    loss  = mean cross-entropy of training links and sampled others                               [C]

Kinds of hyperedge [P]: also-view and also-buy (products), P-A (a product and its aspects), C-P-A (a
category, its products and their aspects).

Deviations. Text is frozen (no BERT to fine-tune: `features` is "text" or "id"; the code's default silently
fell back to ids [C bug]). Theta per kind, residual and GELU, learned fusion that starts at the code's
weights, scaled cosine with a bias per attribute *name*: `share_theta=True, plain=True, fusion="fixed",
score="dot"` is the code, but that a C-P-A hyperedge counts an aspect once per product there and once here (the
specification reads as a set): its weight in a category's mean differs. Attention over hyperedges is in neither source's equations and off. P-A and C-P-A
hyperedges and SAGE edges carry training links only (the code built them from all labels), less those that
the step asks for. A product to be extracted reads its category and writes to nothing but behaviour lists, so
where there are none its score does not depend on which other new products are in the batch. The code's unused two-layer convolution with a
64-wide bottleneck is left out; its normalisation is `normalise="symmetric"`.

A batch (recjax.data.sets.product_graph) is a graph: it has no tables, and `logits [B, C]` are products x aspects.
"""

from collections.abc import Mapping
import functools
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recjax.layers.hypergraph import (
    NORMALISATIONS,
    Edges,
    HeteroSAGE,
    HypergraphConv,
    Incidence,
    take,
)
from recjax.metrics import classification, ranking
from recjax.models.parts import building
from recjax.schema import Schema, SchemaError
from recjax.system import Export, Objective, Select, System, bce, mean, weights_of

TYPES = ("product", "aspect", "category")
KINDS = ("view", "buy", "pa", "cpa")
RELATIONS = (
    ("product_category", "product", "category"),
    ("category_product", "category", "product"),
    ("product_aspect", "product", "aspect"),
    ("aspect_product", "aspect", "product"),
)
# Weights of the kinds in what becomes of each node type; a type that is absent stays as it is. [C]
FUSION: dict[str, dict[str, dict[str, float]]] = {
    "user": {"product": {"view": 0.5, "buy": 0.5}},
    "inventory": {
        "product": {"pa": 0.5, "cpa": 0.5},
        "aspect": {"pa": 0.5, "cpa": 0.5},
        "category": {"cpa": 1.0},
    },
    "all": {
        "product": {"view": 0.4, "buy": 0.4, "pa": 0.1, "cpa": 0.1},
        "aspect": {"pa": 0.5, "cpa": 0.5},
        "category": {"cpa": 1.0},
    },
    "view": {"product": {"view": 1.0}},
    "none": {},
}


class HyperPAVE(nn.Module):
    """The model; fields up to `norm` are the options of `build`.

    Attributes:
      width: d.
      hyperedges: Key of `FUSION`: "user" (also-view, also-buy; the code's default), "inventory" (P-A, C-P-A),
        "all", "view", or "none" (SAGE alone).
      fusion: "learned" weights, or "fixed" ones.
      share_theta: One Theta for all kinds, as in the code.
      plain: No residual and no GELU, as in the code.
      normalise: "row" or "symmetric".
      attention: Weigh a node's hyperedges by attention (with "row").
      sage_layers: 0 leaves SAGE out.
      score: "cosine" or "dot".
      kappa: Initial scale of the cosine, learned.
      attribute_bias: A bias per attribute name; a name that training never saw has none.
      features: "text", or "id": an embedding per node in place of its text, the control that cannot be
        inductive.
      identity: Theta and W^self start as identities, W^nbr at zero and W_text orthogonal: training begins near
        the cosine of the texts' (smoothed) vectors, rather than at random.
      norm: LayerNorm on the encoded text.
    """

    schema: Schema
    width: int = 128
    hyperedges: str = "inventory"
    fusion: str = "learned"
    share_theta: bool = False
    plain: bool = False
    normalise: str = "row"
    attention: bool = False
    sage_layers: int = 2
    score: str = "cosine"
    kappa: float = 10.0
    attribute_bias: bool = True
    features: str = "text"
    identity: bool = True
    norm: bool = True
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        normal = nn.initializers.normal
        if self.features == "text":
            init = nn.initializers.orthogonal() if self.identity else nn.initializers.lecun_normal()
            self.text = nn.Dense(self.width, use_bias=False, kernel_init=init, **types)
            self.type = self.param("type", normal(0.02), (len(TYPES), self.width), self.param_dtype)
        else:
            size = {kind: self.schema.space(kind).size for kind in TYPES}
            self.ids = {k: nn.Embed(n, self.width, **types) for k, n in size.items()}
        self.layer_norm = nn.LayerNorm(**types) if self.norm else lambda x: x
        weights = FUSION[self.hyperedges]
        self.used = tuple(k for k in KINDS if any(k in w for w in weights.values()))
        conv = functools.partial(
            HypergraphConv, self.width, self.normalise, self.attention, self.identity, **types
        )
        shared = conv() if self.share_theta and self.used else None
        self.convs = {k: shared if self.share_theta else conv() for k in self.used}
        if self.fusion == "learned":
            self.mix = {
                kind: self.param(f"mix_{kind}", log_weights(w), (len(w),), self.param_dtype)
                for kind, w in weights.items()
            }
        self.sage = [
            HeteroSAGE(self.width, RELATIONS, self.identity, **types)
            for _ in range(self.sage_layers)
        ]
        if self.score == "cosine":
            scale = nn.initializers.constant(float(np.log(self.kappa)))
            self.log_kappa = self.param("log_kappa", scale, (), jnp.float32)
        if self.attribute_bias:
            names = self.schema.space("attribute").size
            self.beta = self.param("attribute", nn.initializers.zeros, (names,), jnp.float32)

    def __call__(self, batch: Mapping[str, Any]) -> jax.Array:
        """Logits of each row's candidates, float32 [B, C]."""
        z, _ = self.nodes(batch)
        scores = self.match(take(z["product"], batch["product"]), z["aspect"], batch["attribute"])
        return jnp.take_along_axis(scores, batch["aspect"], axis=1)

    def match(self, product: jax.Array, aspect: jax.Array, attribute: jax.Array) -> jax.Array:
        """Logits of products [B, d] with aspects [A, d] of the named attributes [A], float32 [B, A]."""
        product, aspect = product.astype(jnp.float32), aspect.astype(jnp.float32)
        if self.score == "cosine":
            product, aspect = _unit(product) * jnp.exp(self.log_kappa), _unit(aspect)
        logits = product @ aspect.T
        return logits + take(self.beta, attribute) if self.attribute_bias else logits

    def encode(self, kind: str, x: jax.Array) -> jax.Array:
        """Text vectors [N, F] (or ids [N]) of one node type -> [N, d]."""
        if self.features == "id":
            return self.layer_norm(self.ids[kind](x))
        return self.layer_norm(self.text(x) + self.type[TYPES.index(kind)].astype(self.dtype))

    def nodes(self, batch: Mapping[str, Any]) -> tuple[dict[str, jax.Array], jax.Array]:
        """Final node vectors by type, and what new products of each category read of it.

        Returns:
          {type: [N_type, d]} and [C, 1 + sage_layers, d]: the category's C-P-A hyperedge, then its node's
          vector before each SAGE layer.
        """
        source = batch["x"] if self.features == "text" else batch["id"]
        x = {kind: self.encode(kind, source[kind]) for kind in TYPES}
        h, held = self.hyper(x, batch["hyper"])
        edges = {name: Edges(**batch["sage"][name]) for name, _, _ in RELATIONS}
        seen = [held[: len(h["category"])]]
        for i, layer in enumerate(self.sage):
            seen.append(h["category"])
            h = layer(h, edges)
            h = h if i == self.sage_layers - 1 else {k: nn.relu(v) for k, v in h.items()}
        return h, jnp.stack(seen, axis=1)

    def hyper(self, x: dict[str, jax.Array], incidences: Mapping[str, Any]):
        """Hypergraph convolutions and their fusion. Nodes are numbered products, aspects, categories."""
        whole = jnp.concatenate([x[kind] for kind in TYPES])
        parts, held = {}, jnp.zeros_like(x["category"])
        for kind in self.used:
            incidence = Incidence(**incidences[kind])
            edge = self.convs[kind].edges(whole, incidence)
            held = edge if kind == "cpa" else held
            out = self._after(whole, self.convs[kind].read(whole, edge, incidence))
            cuts = np.cumsum([len(x[t]) for t in TYPES])[:-1]
            parts[kind] = dict(zip(TYPES, jnp.split(out, cuts), strict=True))
        return {t: self.fuse(t, x[t], {k: p[t] for k, p in parts.items()}) for t in TYPES}, held

    def _after(self, x: jax.Array, convolved: jax.Array) -> jax.Array:
        return convolved if self.plain else x + nn.gelu(convolved)

    def fuse(self, kind: str, x: jax.Array, parts: Mapping[str, jax.Array]) -> jax.Array:
        """Weighted sum of what the hyperedge kinds make of one node type."""
        weights = FUSION[self.hyperedges].get(kind)
        if weights is None:
            return x
        given = jnp.asarray(list(weights.values()))
        mix = nn.softmax(self.mix[kind]) if self.fusion == "learned" else given / given.sum()
        return cast(jax.Array, sum(mix[i] * parts[k] for i, k in enumerate(weights)))

    def extract(
        self, text: jax.Array, context: jax.Array, aspects: jax.Array, attribute: jax.Array
    ) -> jax.Array:
        """Logits of new products, from their text and what `nodes` made of the catalogue.

        A new product has its hyperedges to itself, save its category's, of which it reads; in SAGE its only
        neighbour is its category.

        Args:
          text: [B, F].
          context: [1 + sage_layers, d], of the products' category.
          aspects: [A, d], final vectors.
          attribute: int32 [A].

        Returns:
          float32 [B, A].
        """
        x = self.encode("product", text)
        parts = {}
        for kind in self.used:
            conv = self.convs[kind]
            read = context[0] + conv.bias.astype(x.dtype) if kind == "cpa" else conv.alone(x)
            parts[kind] = self._after(x, jnp.broadcast_to(read, x.shape))
        h = self.fuse("product", x, parts)
        for i, layer in enumerate(self.sage):
            means = {"category_product": jnp.broadcast_to(context[1 + i], h.shape)}
            h = layer.update("product", h, means)
            h = h if i == self.sage_layers - 1 else nn.relu(h)
        return self.match(h, aspects, attribute)


def log_weights(weights: Mapping[str, float]):
    """Initialiser whose softmax gives the weights."""

    def init(rng, shape, dtype):
        del rng
        return jnp.log(jnp.asarray(list(weights.values()), dtype)).reshape(shape)

    return init


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))


INTERNAL = ("schema", "dtype", "param_dtype")


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    **options,
) -> System:
    """HyperPAVE as a system.

    Args:
      schema: Of `recjax.data.sets.product_graph`.
      table: There are none; it must be empty.
      compute_dtype: Of activations.
      param_dtype: Of parameters.
      **options: Fields of `HyperPAVE`.

    Returns:
      A system with the output "logits" [B, C] and the functions "score" (a whole graph), "catalog" (aspect
      vectors and category context, when the catalogue changes) and "extract" (new products against them).
    """
    accepted = building.module_options(HyperPAVE, INTERNAL)
    building.check_options(
        "hyperpave", options, accepted, ("table", "compute_dtype", "param_dtype")
    )
    if table:
        raise SchemaError("hyperpave has no embedding tables: leave model.table out")
    dtypes: dict[str, Any] = dict(
        dtype=jnp.dtype(compute_dtype), param_dtype=jnp.dtype(param_dtype)
    )
    module = HyperPAVE(schema=schema, **dtypes, **options)
    check(module)
    return system(schema, module)


def check(module: HyperPAVE) -> None:
    """Raises ValueError on options that are unknown or contradict each other."""
    choices = dict(
        hyperedges=FUSION,
        fusion=("learned", "fixed"),
        normalise=NORMALISATIONS,
        score=("cosine", "dot"),
        features=("text", "id"),
    )
    for option, values in choices.items():
        building.check_choice("hyperpave", option, getattr(module, option), values)
    if module.attention and module.normalise != "row":
        raise ValueError("model 'hyperpave': attention=True needs normalise='row'")


def system(schema: Schema, module: HyperPAVE) -> System:
    """The module's functions; see `build`."""

    def init(rng, rows, batch):
        return module.init(rng, batch)["params"], {}

    def outputs(params, batch):
        return {"logits": module.apply(params.variables, batch)}

    def loss(params, batch, rng):
        logits = outputs(params, batch)["logits"]
        total = bce(logits, batch["label"]["linked"], weights_of(batch))
        return mean(*total), (params.state, {"loss": total})

    def catalog(params, batch):
        made: Any = module.apply(params.variables, batch, method="nodes")
        z, context = made
        return {"aspects": z["aspect"], "context": context[0]}

    def extract(params, batch):
        given = batch["dense"]["text"], batch["context"], batch["aspects"], batch["attribute"]
        return {"logits": module.apply(params.variables, *given, method="extract")}

    exports = {"score": Export(outputs, "request"), "catalog": Export(catalog, "item")}
    if module.features == "text":
        exports["extract"] = Export(extract, "request")
    return System(
        schema=schema,
        tables=(),
        init=init,
        loss=loss,
        outputs=outputs,
        objectives=(Objective("logits", "linked"),),
        select=Select("map"),
        counts_as=building.counting("convs_|mix_|sage_", "log_kappa|attribute"),
        exports=exports,
        measure=measure,
    )


def serving_batch(
    schema: Schema, batch: Mapping[str, Any], width: int, sage_layers: int = 2
) -> dict[str, Any]:
    """`batch` with the leaves that "extract" reads, as an example to export with.

    Args:
      schema: Names the width of the text.
      batch: A graph.
      width: `HyperPAVE.width`.
      sage_layers: `HyperPAVE.sage_layers`.
    """
    extra = {
        "dense": {"text": np.zeros((1, schema.feature("text").vector), np.float32)},
        "context": np.zeros((1 + sage_layers, width), np.float32),
        "aspects": np.zeros((len(batch["attribute"]), width), np.float32),
    }
    return {**batch, **extra}


# ---- metrics ------------------------------------------------------------------------------------------------


def measure(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Multi-label ranking figures of a split: over all aspects, and over seen and unseen ones alone.

    Args:
      rows: Columns logit, label, group/product, group/aspect and group/unseen of every scored pair.

    Returns:
      For each of "", "_seen" (a training link), "_unseen" (none) and "_pure" (held out on purpose): map (mean over
      products with a true aspect), auc, recall@5, recall@10, prevalence; micro_f1 and macro_f1 at logit > 0 (the code's threshold), and over all aspects
      threshold, the logit of the largest micro_f1 on these very rows.
    """
    out: dict[str, float] = {}
    for name, mine in subsets(rows["group/unseen"]).items():
        part = [rows[k][mine] for k in ("logit", "label", "group/product", "group/aspect")]
        out |= {f"{k}{name}": v for k, v in figures(*part).items()}
    out["threshold"] = best_threshold(rows["logit"], rows["label"])
    return out


def subsets(unseen: np.ndarray) -> dict[str, np.ndarray]:
    """Which pairs count in each list of candidates, by the suffix of its metrics."""
    return {"": unseen >= 0, "_seen": unseen == 0, "_unseen": unseen > 0, "_pure": unseen == 1}


def figures(logits, labels, product, aspect, threshold: float = 0.0) -> dict[str, float]:
    """Ranking and thresholded figures of pairs [N]."""
    given = logits, labels, product
    if not 0 < labels.sum() < len(labels):
        nothing = ("map", "auc", "recall@5", "recall@10", "prevalence", "micro_f1", "macro_f1")
        return dict.fromkeys(nothing, float("nan"))
    return {
        "map": ranking.mean_average_precision(*given),
        "auc": classification.auc(logits, labels),
        "recall@5": ranking.recall(*given, 5),
        "recall@10": ranking.recall(*given, 10),
        "prevalence": float(labels.mean()),
        **f1(logits > threshold, labels > 0, aspect),
    }


def f1(predicted: np.ndarray, true: np.ndarray, aspect: np.ndarray) -> dict[str, float]:
    """Micro-F1 over pairs, and macro-F1 over the aspects that are true of something or predicted."""
    code = np.unique(aspect, return_inverse=True)[1]
    hit, said, real = (np.bincount(code, x) for x in (predicted & true, predicted, true))
    named = said + real > 0
    each = 2 * hit[named] / (said + real)[named]
    return {
        "micro_f1": float(2 * hit.sum() / max((said + real).sum(), 1)),
        "macro_f1": float(each.mean()) if named.any() else 0.0,
    }


def best_threshold(logits: np.ndarray, labels: np.ndarray) -> float:
    """The logit above which predicting maximises micro-F1 (chosen on validation)."""
    order = np.argsort(-logits, kind="stable")
    hits = np.cumsum(labels[order])
    score = 2 * hits / (np.arange(1, len(order) + 1) + max(labels.sum(), 1))
    best = int(score.argmax())
    following = logits[order][min(best + 1, len(order) - 1)]
    return float((logits[order][best] + following) / 2)
