"""Scores batches and raw requests with an artifact: NumPy gathers the rows, one compiled program does the rest.

Shapes are rounded up to a few buckets of (requests, candidates); the number of unique ids follows from the two
(the worst case), so the number of compilations is bounded by their product. Larger inputs are scored in pieces,
which is right because no candidate's score depends on the others.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import numpy as np

from recjax.data.loading.batches import Assembler, Layout, Part, unique_ids
from recjax.evaluation.probability import probability, probability_names
from recjax.schema import Feature, Schema
from recjax.serving import program
from recjax.serving.artifact import Artifact, ArtifactError
from recjax.serving.requests import Encoder, RequestError, Vocabulary

REQUESTS = (1, 8, 64, 512)
CANDIDATES = (1, 16, 128, 1024)
Flat = dict[str, np.ndarray]


class Scorer:
    """One function of an artifact, ready to be called from several threads.

    Args:
      artifact: From `artifact.load`.
      function: Its name; "" takes "score", or the only one there is.
      requests, candidates: Bucket sizes.

    Attributes:
      schema: The features the function reads; nothing else need be in a batch or a request.
      history: list -> L, the events it keeps.
      compiled: The buckets used so far; one compilation each.

    Raises:
      ArtifactError: There is no such function, or it was not exported for this platform.
    """

    def __init__(
        self,
        artifact: Artifact,
        function: str = "",
        *,
        requests: Sequence[int] = REQUESTS,
        candidates: Sequence[int] = CANDIDATES,
    ):
        self.artifact = artifact
        self.function = _chosen(artifact, function)
        _check_platform(artifact)
        about = artifact.manifest["functions"][self.function]
        self._inputs, self.outputs = about["inputs"], about["outputs"]
        self._tables = {t: artifact.manifest["tables"][t]["id_space"] for t in about["rows"]}
        read = [n.removeprefix("ids/") for n in self._inputs if n.startswith("ids/")]
        self._spaces = tuple(dict.fromkeys([*self._tables.values(), *read]))
        self._symbols = {name: symbol for symbol, name in artifact.manifest["sizes"].items()}
        self._buckets = {"b": tuple(sorted(requests)), "c": tuple(sorted(candidates))}
        self._parameters = jax.device_put({n: artifact.parameters[n] for n in about["parameters"]})
        self._program = jax.jit(artifact.functions[self.function].call)
        self._assemblers: dict[tuple[int, int], Assembler] = {}
        self._shapes: dict[tuple[int, ...], dict] = {}
        self._worst: dict[tuple[int, int], Mapping[str, int]] = {}
        self.schema = _read_schema(artifact.schema, self._inputs)
        self.history = _history(self.schema, self._inputs)
        self.compiled: set[tuple[tuple[str, int], ...]] = set()

    @property
    def logits(self) -> list[str]:
        """Outputs that are logits of some objective, [B, C]."""
        names = dict.fromkeys(o["output"] for o in self.artifact.manifest["objectives"])
        return [n for n in names if self.outputs.get(n, {}).get("shape") == ["b", "c"]]

    def probability(self, logits: np.ndarray, corrected: bool = True) -> np.ndarray:
        """Probabilities; `corrected` for negatives the training data left out, if the artifact says so."""
        return probability(
            logits, self.artifact.metadata.get("keep_prob") or 1.0 if corrected else 1.0
        )

    # --- raw requests

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Raw columns to parts; raises ArtifactError when the artifact has no vocabulary for some id feature."""
        spaces = dict.fromkeys(f.id_space for f in self.schema.features if f.kind == "id")
        frames = {s: self.artifact.vocabulary(s) for s in spaces}
        tables = {
            s: Vocabulary(f["value"].to_arrow(), f["id"].to_numpy()) for s, f in frames.items()
        }
        return Encoder(self.schema, tables, self.history)

    def score_requests(
        self, requests: Sequence[Mapping[str, Any]], corrected: bool = True
    ) -> list[Flat]:
        """Scores JSON-like requests in raw values (see `recjax.serving.requests`).

        Returns:
          For each request {output: [C]} and, beside every logit, "probability" (or "<output>/probability").
        """
        if not requests:
            return []
        part = self.encoder.encode(self.encoder.columns(requests))
        out = self.score_part(part)
        out |= {
            p: self.probability(out[n], corrected)
            for n, p in probability_names(self.logits).items()
        }
        cuts = np.cumsum(part.counts)[:-1]
        split = {n: np.split(x, cuts) if self.by_candidate(n) else list(x) for n, x in out.items()}
        return [{n: x[i] for n, x in split.items()} for i in range(len(requests))]

    def by_candidate(self, output: str) -> bool:
        """True for outputs with a value a candidate (and for probabilities)."""
        return output not in self.outputs or self.outputs[output]["shape"][:2] == ["b", "c"]

    def score_part(self, part: Part, **more: Mapping[str, np.ndarray]) -> Flat:
        """Outputs of encoded impressions: [rows, ...] where an output has candidates, else [requests, ...].

        Args:
          part: The impressions.
          **more: Further parts of the batch, {name: [requests, ...]}, such as another function's outputs.
        """
        counts = np.ones(part.rows, np.int64) if part.counts is None else part.counts
        requests, candidates = (
            self._round("b", len(counts)),
            self._round("c", int(counts.max(initial=1))),
        )
        whole = Part(part.columns, part.timelines, part.counts, slots=requests)
        batch = self._assembler(requests, candidates).build([whole])
        extra = {
            key: {n: _pad(x, (requests, *x.shape[1:]), x.dtype) for n, x in arrays.items()}
            for key, arrays in more.items()
        }
        out = self.score({**dict(batch), **extra})
        return {
            n: x[batch["valid"]] if self.by_candidate(n) else x[: len(counts)]
            for n, x in out.items()
        }

    def _round(self, axis: str, size: int) -> int:
        """The bucket of a size; past the largest, a multiple of that."""
        largest = self._buckets[axis][-1]
        return next((b for b in self._buckets[axis] if b >= size), -(-size // largest) * largest)

    # --- encoded batches

    def score(self, batch: Mapping[str, Any]) -> Flat:
        """Outputs of a batch laid out as `recjax.inputs` says, of any size and any number of shards.

        Returns:
          {output: array}: logits [B, C] and whatever else the function returns.
        """
        flat = _flatten(batch)
        for name in (*self._inputs, *(f"ids/{s}" for s in self._spaces)):
            if name not in flat:
                raise RequestError(
                    f"the batch has no {name!r}; function {self.function!r} reads it"
                )
        inputs = {n: np.asarray(flat[n]) for n in self._inputs if not n.startswith("ids/")}
        ids = {s: np.asarray(flat[f"ids/{s}"]) for s in self._spaces}
        sizes = self._sizes(inputs)
        if any(len(x) > 1 for x in ids.values()):
            return self._pieces(*self._one_shard(inputs, ids), sizes)
        used = {s: x[0][x[0] < self.artifact.schema.space(s).rows] for s, x in ids.items()}
        for f in self._id_features(inputs):
            _check_below(f, inputs[f"pos/{f.name}"], len(used[f.id_space]))
        return self._pieces(inputs, used, sizes)

    def _sizes(self, inputs: Flat) -> dict[str, int]:
        """Requests and candidates; raises RequestError where leaves disagree with each other or the program."""
        sizes: dict[str, int] = {}
        for name, x in inputs.items():
            want = self._inputs[name]["shape"]
            sizes |= {
                s: n
                for s, n in zip(want, x.shape, strict=False)
                if s in ("b", "c") and s not in sizes
            }
            if [sizes.get(s, s) for s in want] != list(x.shape):
                raise RequestError(
                    f"batch leaf {name!r} has shape {x.shape}, the program takes {want} with {sizes}"
                )
        return sizes

    def _one_shard(self, inputs: Flat, ids: Flat) -> tuple[Flat, Flat]:
        """Device shards have lists of their own; serving has one."""
        flat = dict(inputs)
        for f in self._id_features(inputs):
            pos = inputs[f"pos/{f.name}"]
            shards, u = ids[f.id_space].shape
            start = np.repeat(np.arange(shards) * u, len(pos) // shards)
            flat[f"pos/{f.name}"] = pos + start.reshape(-1, *[1] * (pos.ndim - 1))
        return self._unique_again(flat, {s: x.reshape(-1) for s, x in ids.items()})

    def _id_features(self, inputs: Flat) -> list[Feature]:
        return [f for f in self.schema.features if f"pos/{f.name}" in inputs]

    def _unique_again(self, inputs: Flat, ids: Flat) -> tuple[Flat, Flat]:
        """Lists of just the ids that the positions of these inputs point to."""
        inputs, out = dict(inputs), {}
        for space, known in ids.items():
            features = [f for f in self._id_features(inputs) if f.id_space == space]
            names = [f"pos/{f.name}" for f in features]
            raw = [known[inputs[n]].astype(np.intp) for n in names]
            inputs |= {n: np.empty(x.shape, np.int32) for n, x in zip(names, raw, strict=True)}
            rows = self.artifact.schema.space(space).rows
            for f, x in zip(features, raw, strict=True):
                _check_below(f, x, rows)
            out[space] = unique_ids(raw, rows, [inputs[n] for n in names]).astype(np.int32)
        return inputs, out

    def _pieces(self, inputs: Flat, ids: Flat, sizes: dict[str, int]) -> Flat:
        """Splits what is larger than the largest bucket, along requests, then along candidates."""
        for axis, size in sizes.items():
            largest = self._buckets[axis][-1]
            if size <= largest:
                continue
            outs = []
            for at in range(0, size, largest):
                piece = {
                    n: self._cut(n, x, axis, slice(at, at + largest)) for n, x in inputs.items()
                }
                outs.append(self._pieces(piece, ids, {**sizes, axis: min(largest, size - at)}))
            return {n: self._join(n, [out[n] for out in outs], axis) for n in outs[0]}
        return self._fitting(inputs, ids, sizes)

    def _cut(self, name: str, x: np.ndarray, axis: str, piece: slice) -> np.ndarray:
        return x[tuple(piece if s == axis else slice(None) for s in self._inputs[name]["shape"])]

    def _join(self, name: str, parts: list[np.ndarray], axis: str) -> np.ndarray:
        shape = self.outputs[name]["shape"]
        return np.concatenate(parts, shape.index(axis)) if axis in shape else parts[0]

    def _fitting(self, inputs: Flat, ids: Flat, sizes: dict[str, int]) -> Flat:
        """Scores what fits into a bucket."""
        bucket = self._bucket({axis: self._round(axis, n) for axis, n in sizes.items()})
        if any(
            len(x) > bucket[self._symbols[f"ids/{s}"]] for s, x in ids.items()
        ):  # lists of a larger batch
            inputs, ids = self._unique_again(inputs, ids)
        full = inputs | {f"ids/{s}": x[None] for s, x in ids.items()}
        shapes = self._shapes_of(bucket)
        padded = {n: _pad(full[n], *shapes[n]) for n in self._inputs}
        out = self._call(self._rows(ids, bucket), padded, bucket)
        trim = {n: tuple(slice(sizes.get(s)) for s in d["shape"]) for n, d in self.outputs.items()}
        return {n: x[trim[n]] for n, x in out.items()}

    def _shapes_of(self, bucket: Mapping[str, int]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of every input."""
        key = tuple(bucket.values())
        if key not in self._shapes:
            self._shapes[key] = {
                n: (program.concrete(d["shape"], bucket), np.dtype(d["dtype"]))
                for n, d in self._inputs.items()
            }
        return self._shapes[key]

    def _bucket(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Every symbol's size: given requests and candidates, and the most unique ids such a batch can have."""
        if not self._spaces:
            return dict(sizes)
        key = sizes.get("b", 1), sizes.get("c", 1)
        if key not in self._worst:
            self._worst[key] = self._assembler(*key).layout.worst()
        worst = self._worst[key]
        return dict(sizes) | {self._symbols[f"ids/{s}"]: worst[s] for s in self._spaces}

    def _assembler(self, requests: int, candidates: int) -> Assembler:
        key = requests, candidates
        if key not in self._assemblers:
            self._assemblers[key] = Assembler(
                Layout(self.schema, requests, self.history, candidates)
            )
        return self._assemblers[key]

    def _rows(self, ids: Flat, bucket: Mapping[str, int]) -> Flat:
        """{table: float32 [1, u, d]}: rows of the ids, zeros in the unused slots."""
        out = {}
        for table, space in self._tables.items():
            rows = self.artifact.tables[table]
            out[table] = np.zeros(
                (1, bucket[self._symbols[f"ids/{space}"]], rows.values.shape[1]), np.float32
            )
            out[table][0, : len(ids[space])] = rows.take(ids[space])
        return out

    def _call(self, rows: Flat, inputs: Flat, bucket: Mapping[str, int]) -> Flat:
        self.compiled.add(tuple(sorted(bucket.items())))
        return jax.tree.map(np.asarray, self._program(self._parameters, rows, inputs))

    # --- before traffic

    def warm(self, requests: Sequence[int] = (), candidates: Sequence[int] = ()) -> None:
        """Compiles buckets (all of them by default), after `verify`."""
        self.verify()
        for b in requests or self._buckets["b"]:
            for c in candidates or self._buckets["c"]:
                bucket = self._bucket({"b": self._round("b", b), "c": self._round("c", c)})
                zeros = {n: _pad(None, *x) for n, x in self._shapes_of(bucket).items()}
                self._call(
                    self._rows({s: np.zeros(0, np.int32) for s in self._spaces}, bucket),
                    zeros,
                    bucket,
                )

    def verify(self, tolerance: float = 0.0) -> float:
        """Runs the program on the artifact's made-up batch and compares with what the model answered.

        Args:
          tolerance: Largest difference, relative to the largest answer. 0: 1e-4 on CPU; 2e-2 on accelerators,
            whose matrix units round their inputs.

        Returns:
          The difference found.

        Raises:
          ArtifactError: It is larger: this machine does not compute what was exported.
        """
        tolerance = tolerance or (1e-4 if jax.default_backend() == "cpu" else 2e-2)
        mine = {
            n.split("/", 1)[1]: x
            for n, x in self.artifact.check.items()
            if n.split("/", 1)[0] == self.function
        }
        rows = {t: mine[f"rows/{t}"] for t in self._tables}
        out = self._program(self._parameters, rows, {n: mine[f"in/{n}"] for n in self._inputs})
        worst = 0.0
        for name, x in out.items():
            expected = np.asarray(mine[f"out/{name}"], np.float64)
            scale = max(np.abs(expected).max(initial=0), 1e-6)
            off = np.abs(np.asarray(x, np.float64) - expected).max(initial=0) / scale
            worst = float(np.maximum(worst, off))  # unlike max(), keeps a NaN
        if not worst <= tolerance:
            raise ArtifactError(
                f"function {self.function!r} of {self.artifact.path} is off by {worst:.2g} (relative) on this machine, "
                f"more than {tolerance:g}; do not serve it, export it again with the jax that is installed here"
            )
        return worst


def _flatten(batch: Mapping[str, Any]) -> Flat:
    """`program.flatten`, several times faster on a batch of arrays and dicts of arrays."""
    out: Flat = {}
    for key, value in batch.items():
        if not isinstance(value, Mapping):
            out[key] = value
            continue
        for name, x in value.items():
            if not hasattr(x, "shape"):
                return program.flatten(batch)
            out[f"{key}/{name}"] = x
    return out


def _chosen(artifact: Artifact, function: str) -> str:
    names = list(artifact.functions)
    if not function:
        function = "score" if "score" in names or len(names) > 1 else names[0]
    if function not in names:
        raise ArtifactError(
            f"{artifact.path} has no function {function!r}; it has {', '.join(names)}"
        )
    return function


def _check_platform(artifact: Artifact) -> None:
    backend = jax.default_backend()
    platform = {"gpu": "cuda"}.get(backend, backend)
    if platform not in artifact.manifest["platforms"]:
        raise ArtifactError(
            f"{artifact.path} was exported for {', '.join(artifact.manifest['platforms'])}, this process runs on "
            f"{platform}; set JAX_PLATFORMS, or export with platforms that include it"
        )


def _check_below(feature: Feature, x: np.ndarray, stop: int) -> None:
    """The program does not look: what is out of bounds would be somebody else's row."""
    if (
        x.size and x.view(f"u{x.dtype.itemsize}").max() >= stop
    ):  # a negative one is a huge unsigned one
        raise RequestError(
            f"feature {feature.name!r} points past its list of unique ids; build the batch again"
        )


def _read_schema(schema: Schema, inputs: Mapping[str, Any]) -> Schema:
    """The schema with the features some leaf of `inputs` belongs to; a list read for its ages keeps one."""
    read = {n.split("/", 1)[1] for n in inputs if n.startswith(("pos/", "dense/"))}
    for name in schema.lists:
        members = [f.name for f in schema.features if f.list == name]
        if {f"mask/{name}", f"age/{name}"} & set(inputs) and not read.intersection(members):
            read.add(members[0])
    return schema.without(f.name for f in schema.features if f.name not in read)


def _history(schema: Schema, inputs: Mapping[str, Any]) -> dict[str, int]:
    """list -> its fixed length, from any leaf that has it."""
    out = {}
    for name in schema.lists:
        leaves = [f"{kind}/{name}" for kind in ("mask", "age")]
        leaves += [
            f"{kind}/{f.name}"
            for f in schema.features
            if f.list == name
            for kind in ("pos", "dense")
        ]
        out[name] = next(inputs[leaf]["shape"][1] for leaf in leaves if leaf in inputs)
    return out


def _pad(x: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`x` in the front corner of zeros of `shape`."""
    if x is not None and x.shape == shape:
        return np.asarray(x, dtype)
    out = np.zeros(shape, dtype)
    if x is not None:
        out[tuple(slice(n) for n in x.shape)] = x
    return out
