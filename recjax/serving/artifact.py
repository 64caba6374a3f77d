"""The artifact: everything serving needs, in one directory, without the model's source.

    manifest.json               what is here: functions and their inputs, sha256 of every file, one version stamp
    schema.json  config.json    of the run
    functions/<name>.stablehlo  programs (jax.export) for cpu, cuda and tpu, with symbolic sizes (see program.py)
    parameters.npz              dense, state and frozen leaves by name; no pickle anywhere
    tables/<path>.npz           rows, quantised row by row (see quantize.py)
    vocab/<id space>.parquet    value, id
    derived.npz                 whatever was computed from the quantised rows (codes, item vectors); optional
    snapshot/                   counters and histories as of a time (see counters.py, events.py); optional
    check.npz                   made-up inputs and what the model answered: `Scorer.verify` compares

The directory appears by one rename and its bytes depend on the numbers and the config only, not on the mesh. It is
data: loading runs no Python from it. `jax.export` promises six months of compatibility, so the parameters and the
config stay beside the programs and a newer JAX can export them again.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import polars as pl

from recjax.data.store.event_log import EventLog
from recjax.embedding import lanes
from recjax.schema import NUM_RESERVED, Schema
from recjax.serving import files, program, quantize, snapshot
from recjax.serving.counters import Counters
from recjax.serving.events import Past
from recjax.serving.files import ArtifactError
from recjax.trees import Params, Trees

if TYPE_CHECKING:
    from recjax.system import System

FORMAT = 1
Source = str | os.PathLike | pl.DataFrame
Vocabularies = Mapping[str, Source] | Callable[[str], Source]
PLATFORMS = ("cpu", "cuda", "tpu")
# Sizes of the made-up batch in check.npz.
_CHECK = {"b": 2, "c": 3}
_CHECK_IDS = 16


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A loaded artifact; arrays stay on the host.

    Attributes:
      path: Where it was loaded from.
      manifest: manifest.json.
      schema: Of the batches its functions read.
      config: Of the run that made it.
      parameters: "dense/...", "state/...", "frozen/..." -> array.
      tables: Table path -> its quantised rows.
      functions: Name -> `jax.export.Exported`; call it with (parameters, rows, inputs).
      derived: Name -> array.
      counters: Causal counters as of the snapshot's time; None without a snapshot.
      past: List -> histories as of then.
      own: Of an own log's model, for `recjax.serving.own_log`: "mapping", and "known" of users and items; None for others.
    """

    path: pathlib.Path
    manifest: dict[str, Any]
    schema: Schema
    config: dict[str, Any]
    parameters: dict[str, np.ndarray]
    tables: dict[str, quantize.Rows]
    functions: dict[str, Any]
    derived: dict[str, np.ndarray]
    counters: Counters | None = None
    past: dict[str, Past] = dataclasses.field(default_factory=dict)
    own: dict[str, Any] | None = None

    @property
    def stamp(self) -> str:
        """The version of everything in it, rows, programs and what was derived from them alike."""
        return self.manifest["stamp"]

    @property
    def metadata(self) -> dict[str, Any]:
        return self.manifest["metadata"]

    def vocabulary(self, space: str) -> pl.DataFrame:
        """Columns value and id of an id space's vocabulary."""
        if space not in self.manifest["vocab"]:
            have = ", ".join(self.manifest["vocab"]) or "none"
            raise ArtifactError(
                f"{self.path} has no vocabulary for id space {space!r} (there is {have}); "
                "score encoded batches, or export with vocab={...}"
            )
        return files.read_frame(self.path / self.manifest["vocab"][space], ("value", "id"))

    @functools.cached_property
    def check(self) -> dict[str, np.ndarray]:
        """ "<function>/in/<leaf>", "<function>/rows/<table>" and "<function>/out/<output>" of a made-up batch."""
        return files.read_arrays(self.path / "check.npz")


# ------------------------------------------------------------------------------------------------------ writing


def export_artifact(
    path: str | os.PathLike,
    system: "System",
    trees: Trees,
    *,
    batch: Any,
    config: Mapping[str, Any],
    vocab: Vocabularies | None = None,
    metadata: Mapping[str, Any] | None = None,
    rows_format: str = "int8",
    platforms: Sequence[str] = PLATFORMS,
    functions: Sequence[str] | None = None,
    derive: Callable[[Trees], Mapping[str, Any]] | None = None,
    log: EventLog | None = None,
    until: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes an artifact; returns its manifest.

    Args:
      path: A local directory that does not exist yet.
      system: Its `exports` are written.
      trees: Addressable from this process; the optimizer's is not read.
      batch: One batch (recjax/inputs.py) of the training stream, for dtypes and history lengths; its values
        are not stored.
      config: JSON values.
      vocab: Id space -> parquet file or frame with columns value and id: a mapping, or a function. Those of the id
        spaces that some function reads go in.
      metadata: JSON values. `keep_prob` is the probability with which unbought exposures were kept.
      rows_format: float32, float16 or int8 (a scale per row).
      platforms: To lower for; none of them need be present.
      functions: Names among `system.exports`; None takes all.
      derive: Trees, with tables {path: {"rows": dequantised [V, d]}} -> {name: array}, stored as derived.npz.
      log: Of the data set: counters and histories go into the artifact.
      until: Seconds; only events up to then. None: all.
      overwrite: Replace an artifact that lies at `path`; a folder of anything else is left alone.

    Raises:
      ArtifactError: Naming what cannot be exported and why.
    """
    path = pathlib.Path(path)
    if path.exists() and not overwrite:
        raise ArtifactError(f"{path} exists; give another path, or overwrite=True to replace it")
    old = [p.name for p in path.iterdir()] if path.is_dir() else [path.name] * path.exists()
    if old and "manifest.json" not in old:
        raise ArtifactError(
            f"{path} holds files and is no artifact, so it is not replaced; give another path"
        )
    exports = _chosen(system, functions)
    metadata = json.loads(_json(dict(metadata or {}), "metadata"))
    # The manifest is written last and the folder renamed after it, so a crash leaves nothing that loads.
    with files.published(path) as out:
        manifest = _write(
            out,
            system,
            trees,
            exports,
            batch,
            config,
            vocab or {},
            rows_format,
            tuple(platforms),
            derive,
        )
        if log is not None:
            manifest["snapshot"] = snapshot.write(out, system.schema, batch, log, until)
        manifest |= {"metadata": metadata, "files": out.files}
        manifest["stamp"] = _stamp(manifest)
        out.text("manifest.json", json.dumps(manifest, indent=1))
    return manifest


def _chosen(system: "System", functions: Sequence[str] | None) -> dict[str, Any]:
    names = list(system.exports) if functions is None else list(functions)
    for name in names:
        if name not in system.exports:
            raise ArtifactError(
                f"the system exports no function {name!r}; it has {', '.join(system.exports)}"
            )
    if not names:
        raise ArtifactError("the system exports no function; give System.exports at least one")
    return {name: system.exports[name] for name in names}


def _write(
    out: files.Writer, system, trees, exports, batch, config, vocab, rows_format, platforms, derive
) -> dict:
    """Everything but the manifest, which it returns."""
    held = (_host(getattr(trees, k), k) for k in ("dense", "state", "frozen"))
    params = Params(next(held), {}, *held)
    programs, batch = _programs(exports, system, params, batch, platforms)
    tables = _quantized_tables(system, trees.tables, programs, rows_format)
    vocab = _vocabularies(system.schema, programs, vocab)
    used = sorted({n for p in programs.values() for n in p.parameters})
    parameters = program.flatten(params)
    manifest = {
        "format": FORMAT,
        "made_by": {
            "recjax": version_of("recjax"),
            "jax": jax.__version__,
            "experiment": config.get("name", ""),
        },
        "schema_sha256": hashlib.sha256(system.schema.to_json().encode()).hexdigest(),
        "platforms": list(platforms),
        "calling_convention": max(p.version for p in programs.values()),
        "sizes": {str(d): name for name, d in program.symbols(system.schema).items()},
        "functions": {n: _describe(n, e.cadence, programs[n]) for n, e in exports.items()},
        "objectives": [dataclasses.asdict(o) for o in system.objectives],
        "parameters": {n: _shape(parameters[n]) for n in used},
        "tables": {
            t.path: _describe_table(t, tables[t.path]) for t in system.tables if t.path in tables
        },
        "vocab": {space: f"vocab/{space}.parquet" for space in vocab},
        "schema": out.text("schema.json", system.schema.to_json()),
        "config": out.text("config.json", _json(config, "config")),
    }
    for name, p in programs.items():
        out.bytes(manifest["functions"][name]["file"], p.serialized)
    out.arrays("parameters.npz", {n: parameters[n] for n in used})
    for table, rows in tables.items():
        scale = {} if rows.scale is None else {"scale": rows.scale}
        out.arrays(manifest["tables"][table]["file"], {"rows": rows.values, **scale})
    for space, source in vocab.items():
        out.frame(f"vocab/{space}.parquet", _vocabulary(system.schema, space, source))
    if derive is not None:
        whole: Any = {table: {"rows": t.dequantized()} for table, t in tables.items()}
        made = derive(Trees(params.dense, whole, params.state, params.frozen))
        out.arrays("derived.npz", {k: np.asarray(v) for k, v in made.items()})
    out.arrays("check.npz", _answers(system, params, tables, exports, programs, batch))
    return manifest


def _vocabularies(schema: Schema, programs: Mapping[str, program.Program], given: Vocabularies):
    """Of `given`, those of the id spaces that a program reads, by their features' positions or the ids themselves."""
    read = {n.partition("/")[::2] for p in programs.values() for n in p.inputs}
    spaces = {name for kind, name in read if kind == "ids"}
    spaces |= {schema.feature(name).id_space for kind, name in read if kind == "pos"}
    of = given if callable(given) else given.get
    found = {space: of(space) for space in sorted(spaces)}
    return {space: x for space, x in found.items() if x is not None}


def _host(tree: Any, name: str) -> Any:
    def fetch(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            raise ArtifactError(
                f"{name} lies on several hosts; restore the checkpoint in one process and export there"
            )
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


def _programs(exports, system, params: Params, batch: Any, platforms: tuple):
    """The programs, those that read others' outputs last, and the batch with room for those outputs."""
    programs: dict[str, program.Program] = {}
    for name, e in sorted(exports.items(), key=lambda item: bool(item[1].reads)):
        for key, source in e.reads.items():
            if source not in programs:
                raise ArtifactError(
                    f"function {name!r} reads {source!r}, which is not exported; export both"
                )
            batch = {**batch, key: programs[source].outputs}
        programs[name] = _trace(name, e.fn, system, params, batch, platforms)
    return {name: programs[name] for name in exports}, batch


def _trace(
    name: str, fn: Callable, system, params: Params, batch: Any, platforms: tuple
) -> program.Program:
    try:
        return program.trace(fn, system.schema, system.tables, params, batch, platforms)
    except ArtifactError:
        raise
    except Exception as e:  # a model may fail in any way when its sizes become symbols
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ArtifactError(
            f"function {name!r} cannot be exported with symbolic sizes: {reason}"
        ) from e


def _quantized_tables(
    system, tables: Mapping[str, Any], programs, rows_format: str
) -> dict[str, quantize.Rows]:
    """The tables some function reads, in the system's order."""
    used = {path for p in programs.values() for path in p.rows}
    out = {}
    for t in system.tables:
        if t.path not in used:
            continue
        rows = lanes.logical(_host(tables[t.path]["rows"], f"table {t.path!r}"), t.dim)
        if (
            rows.ndim != 2
            or rows.shape[1] != t.dim
            or len(rows) < system.schema.space(t.id_space).size
        ):
            raise ArtifactError(
                f"table {t.path!r} has shape {rows.shape}, the schema asks for width {t.dim}"
            )
        try:
            out[t.path] = quantize.quantize(rows, rows_format)
        except ValueError as e:
            raise ArtifactError(f"table {t.path!r}: {e}") from e
    return out


def _describe(name: str, cadence: str, p: program.Program) -> dict[str, Any]:
    return {
        "file": f"functions/{name}.stablehlo",
        "cadence": cadence,
        "parameters": list(p.parameters),
        "rows": {n: _shape(x) for n, x in p.rows.items()},
        "inputs": {n: _shape(x) for n, x in p.inputs.items()},
        "outputs": {n: _shape(x) for n, x in p.outputs.items()},
    }


def _describe_table(t, rows: quantize.Rows) -> dict[str, Any]:
    file = f"tables/{t.path}.npz"
    return {
        "file": file,
        "id_space": t.id_space,
        "format": rows.format,
        "shape": list(rows.values.shape),
    }


def _shape(x: Any) -> dict[str, Any]:
    return {
        "shape": [s if isinstance(s, int) else str(s) for s in x.shape],
        "dtype": jnp.dtype(x.dtype).name,
    }


def _vocabulary(schema: Schema, space: str, source: Any) -> pl.DataFrame:
    frame = source if isinstance(source, pl.DataFrame) else pl.read_parquet(source)
    missing = {"value", "id"} - set(frame.columns)
    if missing:
        raise ArtifactError(
            f"vocabulary {space!r} has no column {sorted(missing)[0]!r}; it needs value and id"
        )
    frame = frame.select("value", pl.col("id").cast(pl.Int64)).drop_nulls("value").sort("id")
    ids = frame["id"].to_numpy()
    if len(ids) and (
        ids.min() < NUM_RESERVED
        or ids.max() >= schema.space(space).rows
        or len(np.unique(ids)) < len(ids)
    ):
        raise ArtifactError(
            f"vocabulary {space!r} has ids that are reserved, doubled or past its {schema.space(space).rows} rows; "
            "export with the vocabulary the run was trained on"
        )
    return frame


def _answers(system, params: Params, tables, exports, programs, batch) -> dict[str, np.ndarray]:
    """Inputs, rows and answers of every function on a made-up batch: the model itself, on the quantised rows."""
    dims = program.symbols(system.schema)
    sizes = {str(d): _CHECK.get(name, _CHECK_IDS) for name, d in dims.items()}
    inputs = program.sample_inputs(program.input_specs(system.schema, dims, batch), sizes)
    rows = {t.path: np.zeros((1, _CHECK_IDS, t.dim), np.float32) for t in system.tables}
    rows |= {n: t.take(np.arange(_CHECK_IDS) % len(t.values))[None] for n, t in tables.items()}
    out = {}
    for name, export in exports.items():
        answer = jax.jit(program.flat_function(export.fn, params, batch))
        outputs = answer(program.flatten(params), rows, inputs)
        out |= {f"{name}/in/{leaf}": inputs[leaf] for leaf in programs[name].inputs}
        out |= {f"{name}/rows/{table}": rows[table] for table in programs[name].rows}
        out |= {f"{name}/out/{leaf}": np.asarray(x) for leaf, x in outputs.items()}
    return out


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise ArtifactError(f"{what} holds something JSON cannot: {e}; pass plain values") from e


def _stamp(manifest: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in manifest.items() if k != "stamp"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return "unknown"


# ------------------------------------------------------------------------------------------------------ loading


def load(path: str | os.PathLike) -> Artifact:
    """Loads an artifact after checking its version, every checksum and that this JAX can run it.

    Raises:
      ArtifactError: It is absent, damaged, half-written, or made by something this version cannot read.
    """
    path = pathlib.Path(path)
    manifest = _read_manifest(path)
    files.check(path, manifest)
    _check_jax(path, manifest)
    try:
        return _read(path, manifest)
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ArtifactError(f"{path} cannot be read ({reason}); export it again") from e


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        what = "is half-written or no artifact" if path.is_dir() else "does not exist"
        raise ArtifactError(
            f"{path} {what} (no manifest.json); give the path of a finished export, or export again"
        )
    try:
        manifest = json.loads(file.read_bytes())
        version, stamp = manifest["format"], manifest["stamp"]
    except (KeyError, TypeError, ValueError) as e:
        raise ArtifactError(f"{file} is damaged; copy or export the artifact again") from e
    if version != FORMAT:
        raise ArtifactError(
            f"{path} has artifact format {version}, this recjax reads {FORMAT}; "
            "export it again with this version, or serve it with the one that made it"
        )
    if stamp != _stamp(manifest):
        raise ArtifactError(
            f"{file} was changed after the export; copy or export the artifact again"
        )
    return manifest


def _check_jax(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    low = jax.export.minimum_supported_calling_convention_version
    high = jax.export.maximum_supported_calling_convention_version
    version = manifest["calling_convention"]
    if not low <= version <= high:
        raise ArtifactError(
            f"{path} was exported by jax {manifest['made_by']['jax']} (calling convention {version}); jax "
            f"{jax.__version__} runs {low} to {high}: serve with that jax, or export again from the run with this one"
        )


def _read(path: pathlib.Path, manifest: dict[str, Any]) -> Artifact:
    stored = files.read_arrays(path / "parameters.npz")
    return Artifact(
        path=path,
        manifest=manifest,
        schema=Schema.from_json((path / manifest["schema"]).read_text()),
        config=json.loads((path / manifest["config"]).read_text()),
        parameters={
            n: stored[n].view(jnp.dtype(p["dtype"])) for n, p in manifest["parameters"].items()
        },
        tables={t: _read_rows(path / d["file"]) for t, d in manifest["tables"].items()},
        functions={n: _read_program(path / f["file"]) for n, f in manifest["functions"].items()},
        derived=files.read_arrays(path / "derived.npz")
        if "derived.npz" in manifest["files"]
        else {},
        **snapshot.read(path, manifest.get("snapshot")),
    )


def _read_program(file: pathlib.Path) -> jax.export.Exported:
    try:
        return program.read(file.read_bytes())
    except ValueError as e:
        raise ArtifactError(f"{file} is refused: {e}; export the artifact again") from e


def _read_rows(file: pathlib.Path) -> quantize.Rows:
    arrays = files.read_arrays(file)
    return quantize.Rows(arrays["rows"], arrays.get("scale"))
