"""What is written loads and answers as the model did; what is damaged, half-written or foreign is refused."""

import dataclasses
import hashlib
import json
import os
import shutil
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from recjax import models
from recjax.serving import artifact
from recjax.serving.artifact import ArtifactError
from recjax.serving.scorer import Scorer
from recjax.system import Export
from tests import fakes, messages
from tests.models import worlds
from tests.serving.conftest import eager, export, system_and_trees, vocabularies


@pytest.mark.parametrize("kind", sorted(fakes.SYSTEMS))
def test_exported_equals_eager(kind, tmp_path):
    made = export(tmp_path / "a", kind)
    scorer = Scorer(artifact.load(made.path), requests=[8], candidates=[4])
    assert scorer.verify() < 1e-5
    batch = made.batch if kind == "graph" else fakes.batch_at(7, 5, 2)
    want, got = eager(made, batch), scorer.score(batch)
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-6, rtol=1e-5)
    assert np.std(got["logits"]) > 1e-3


SMALL = {
    "suan": {"blocks": 1},
    "dcnv2": {"layers": 1},
    "wukong": {"layers": 1, "mlp": (8,)},
    "hstu": {"layers": 1},
    "sim": {"search": "hard", "keep": 3},
    "eta": {"keep": 3},
    "twin": {"keep": 3},
}
RIVALS = ["dcnv2", "mmoe", "wukong", "hstu", "can", "sim", "eta", "twin"]


@pytest.mark.parametrize("name", ["suan", "din", "logistic", *RIVALS])
def test_models_export_with_symbolic_sizes(name, tmp_path):
    pytest.importorskip(f"recjax.models.{name}", reason="not written yet")
    small = SMALL.get(name, {})
    system = models.build(worlds.SCHEMA, {"name": name, **small})
    model = worlds.make(system, worlds.world())
    options = dict(batch=worlds.world().batch(), config={}, rows_format="float32")
    artifact.export_artifact(tmp_path / "a", system, model.trees, **options)
    scorer = Scorer(artifact.load(tmp_path / "a"), requests=[4], candidates=[8])
    scorer.verify()  # at another size than the bucket's
    for b, c in ((1, 1), (5, 9)):
        world = worlds.world(b, c, seed=b)
        want, got = model.outputs(world), scorer.score(world.batch())
        for output in want:
            # SUAN differs from itself by 1.4e-6 of its range when its batch is cut in pieces: float32 rounding.
            scale = max(1, np.abs(want[output]).max())
            np.testing.assert_allclose(got[output], want[output], atol=4e-6 * scale)


def test_an_accelerator_is_lowered_for_from_here(tmp_path):
    made = export(tmp_path / "a", "pages", platforms=artifact.PLATFORMS)
    program = artifact.load(made.path).functions["score"]
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert len(program.serialize()) > 1000


def test_an_artifact_for_another_platform_is_not_scored(tmp_path):
    made = export(tmp_path / "a", "pages", platforms=("tpu",))
    with messages.raises(ArtifactError, "tpu", "cpu"):
        Scorer(artifact.load(made.path))


def test_only_what_is_read_travels(tmp_path):
    made = export(tmp_path / "a", "teacher_student")
    about = made.manifest["functions"]["score"]
    assert not any(
        n.startswith(("label", "weight", "row", "group", "ids")) for n in about["inputs"]
    )
    assert all("student" in n for n in about["parameters"])
    assert sorted(made.manifest["tables"]) == ["student/item", "student/user"]
    assert about["inputs"]["pos/item"] == {"shape": ["b", "c"], "dtype": "int32"}
    assert about["cadence"] == "request"


def test_same_numbers_same_bytes_whatever_the_mesh(tmp_path, exported, run_python):
    """Rows sharded over 8 devices in another process give the files that one device gives here."""
    source = """
    import sys, jax
    from jax.sharding import NamedSharding, PartitionSpec as P
    from recjax.serving import artifact
    from tests.serving import conftest
    mesh = jax.make_mesh((8,), ("data",))
    split = NamedSharding(mesh, P("data"))
    real = conftest.system_and_trees
    def sharded(kind):
        system, trees, batch = real(kind)
        tables = jax.device_put(trees.tables, split)
        dense = jax.device_put(trees.dense, NamedSharding(mesh, P()))
        trees = trees.replace(tables=tables, dense=dense)
        assert len(trees.tables["item"]["rows"].sharding.device_set) == 8
        return system, trees, batch
    conftest.system_and_trees = sharded
    conftest.export(sys.argv[1], metadata={"keep_prob": 0.25})
    """
    other = tmp_path / "other"
    run_python(textwrap.dedent(source), str(other))
    mine, theirs = (artifact.load(p).manifest for p in (exported.path, other))
    assert b".py" not in (exported.path / "functions/score.stablehlo").read_bytes()
    assert mine["files"] == theirs["files"]
    assert mine["stamp"] == theirs["stamp"]


def test_bfloat16_parameters_and_derived_values_round_trip(tmp_path):
    system, trees, batch = system_and_trees("pages")
    trees = trees.replace(dense=jax.tree.map(lambda x: x.astype(jnp.bfloat16), trees.dense))
    seen = {}

    def derive(given):
        seen.update(given.tables)
        return {"norms": np.linalg.norm(given.tables["item"]["rows"], axis=1)}

    artifact.export_artifact(
        tmp_path / "a", system, trees, batch=batch, config={}, platforms=("cpu",), derive=derive
    )
    loaded = artifact.load(tmp_path / "a")
    assert {x.dtype.name for x in loaded.parameters.values()} == {"bfloat16"}
    kernel = trees.dense["logits"]["kernel"]
    np.testing.assert_array_equal(loaded.parameters["dense/logits/kernel"], np.asarray(kernel))
    rows = loaded.tables["item"].dequantized()
    np.testing.assert_array_equal(loaded.derived["norms"], np.linalg.norm(rows, axis=1))
    assert not np.array_equal(rows, np.asarray(trees.tables["item"]["rows"]))  # control: quantised


def test_int8_stays_close(tmp_path):
    made = export(tmp_path / "a", rows_format="int8")
    scorer = Scorer(artifact.load(made.path), requests=[8], candidates=[4])
    batch = fakes.batch_at(3, 8, 4)
    error = np.abs(scorer.score(batch)["logits"] - eager(made, batch)["logits"]).max()
    assert 1e-5 < error < 0.05
    assert scorer.verify() < 1e-5  # the stored answers are the quantised rows' own


# --- what is refused


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported.path, tmp_path / "copy")


FILES = [
    "parameters.npz",
    "tables/item.npz",
    "functions/score.stablehlo",
    "vocab/user.parquet",
    "schema.json",
]


def test_the_copy_loads(copy):
    assert artifact.load(copy).schema == fakes.SCHEMA


@pytest.mark.parametrize("name", FILES)
def test_tampered_truncated_and_missing_files_are_refused(copy, name):
    file = copy / name
    data = file.read_bytes()
    middle = len(data) // 2
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(ArtifactError, match=f"{file.name} does not match its checksum"):
        artifact.load(copy)
    file.write_bytes(data[:-3])
    with pytest.raises(
        ArtifactError, match=f"{file.name} holds {len(data) - 3} bytes where {len(data)}"
    ):
        artifact.load(copy)
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{file.name} is missing; copy or export"):
        artifact.load(copy)


def rewrite(copy, stamped=True, **changes):
    file = copy / "manifest.json"
    manifest = json.loads(file.read_text()) | changes
    if stamped:
        manifest["stamp"] = artifact._stamp(manifest)
    file.write_text(json.dumps(manifest))


def test_a_changed_manifest_is_refused(copy):
    rewrite(copy, stamped=False, metadata={"keep_prob": 1.0})
    with messages.raises(ArtifactError, "changed"):
        artifact.load(copy)
    (copy / "manifest.json").write_text('{"format": 1, "st')
    with messages.raises(ArtifactError, "manifest.json"):
        artifact.load(copy)


def test_foreign_versions_are_refused(copy):
    rewrite(copy, format=99)
    with messages.raises(ArtifactError, "99", "export"):
        artifact.load(copy)
    rewrite(copy, format=artifact.FORMAT, calling_convention=1000)
    with messages.raises(ArtifactError, "1000", "jax", "export"):
        artifact.load(copy)


def test_a_manifest_cannot_point_outside(copy):
    (copy.parent / "secret").write_text("x")
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    rewrite(copy, files={"../secret": entry})
    with messages.raises(ArtifactError, "secret"):
        artifact.load(copy)


def test_nothing_and_an_empty_folder_are_refused(tmp_path):
    with messages.raises(ArtifactError, tmp_path / "none"):
        artifact.load(tmp_path / "none")
    (tmp_path / "half").mkdir()
    with messages.raises(ArtifactError, tmp_path / "half"):
        artifact.load(tmp_path / "half")


def test_a_crash_leaves_nothing_that_loads(tmp_path, monkeypatch):
    """Killed anywhere before the rename: no clean-up runs, and neither the name nor the remains load."""
    monkeypatch.setattr(artifact.files.shutil, "rmtree", lambda *a, **k: None)

    def killed(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "a", "pages")
    (remains,) = tmp_path.iterdir()
    assert (remains / "parameters.npz").exists()  # it did get far
    for path in (tmp_path / "a", remains):
        with pytest.raises(ArtifactError):
            artifact.load(path)


def test_a_failed_export_cleans_up(tmp_path, monkeypatch):
    def fails(*a, **k):
        raise OSError("disk full")

    monkeypatch.setattr(artifact.files.os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        export(tmp_path / "a", "pages")
    assert os.listdir(tmp_path) == []


def test_an_artifact_is_replaced_only_on_request(tmp_path):
    export(tmp_path / "a", "pages")
    with messages.raises(ArtifactError, "overwrite=True"):
        export(tmp_path / "a", "pages")
    before = artifact.load(tmp_path / "a").stamp
    export(tmp_path / "a", "pages", rows_format="int8", overwrite=True)
    assert artifact.load(tmp_path / "a").stamp != before
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for name in ("run", "file"):
        with pytest.raises(ArtifactError, match="is no artifact, so it is not replaced"):
            export(tmp_path / name, "pages", overwrite=True)
    assert (tmp_path / "run" / "checkpoints").is_dir() and (tmp_path / "file").exists()
    (tmp_path / "empty").mkdir()
    export(tmp_path / "empty", "pages", overwrite=True)


def test_what_cannot_be_exported_says_why(tmp_path):
    vocab = {"item": vocabulary_with(ids=[3, 3])}
    with messages.raises(ArtifactError, "'item'"):
        export(tmp_path / "a", "pages", vocab=vocab)
    with messages.raises(ArtifactError, "'rank'", "score"):
        export(tmp_path / "a", "pages", functions=["rank"])
    with messages.raises(ArtifactError, "metadata", "JSON"):
        export(tmp_path / "a", "pages", metadata={"when": object()})
    assert os.listdir(tmp_path) == []


def vocabulary_with(ids):
    return pl.DataFrame({"value": [f"v{i}" for i in range(len(ids))], "id": ids})


def test_a_function_of_fixed_size_is_refused(tmp_path):
    system, trees, batch = system_and_trees("pages")

    def fixed(params, batch):
        return {"logits": batch["dense"]["price"] + jnp.zeros((4, 3))}

    def flat(params, batch):
        return {"logits": batch["dense"]["price"].reshape(-1)}

    for fn, reason in (
        (fixed, "cannot be exported with symbolic sizes"),
        (flat, r"size .*c.*return axes \[b\]"),
    ):
        one = dataclasses.replace(system, exports={"score": Export(fn)})
        with pytest.raises(ArtifactError, match=reason):
            artifact.export_artifact(tmp_path / "a", one, trees, batch=batch, config={})


def test_loading_needs_no_model_source(exported, run_python):
    """A child process where every import of a model, of Flax or of the tests' systems fails."""
    source = """
    import sys
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.startswith(("recjax.models", "recjax.system", "flax", "optax", "tests")):
                raise ImportError(f"{name} is blocked")
    sys.meta_path.insert(0, Blocked())
    try:
        import recjax.models
    except ImportError:
        print("blocked")
    from recjax.serving import artifact, scorer
    print(scorer.Scorer(artifact.load(sys.argv[1])).verify())
    """
    done = run_python(textwrap.dedent(source), str(exported.path))
    blocked, difference = done.stdout.split()
    assert blocked == "blocked" and float(difference) < 1e-5


def test_the_id_spaces_of_an_artifact_are_those_its_functions_read(tmp_path):
    """Whatever their features' roles; a graph reads none."""
    asked = []

    def vocab(space):
        asked.append(space)
        return vocabularies()[space]

    made = export(tmp_path / "a", "pages", vocab=vocab)
    assert sorted(asked) == sorted(made.manifest["vocab"]) == ["item", "user"]
    export(tmp_path / "b", "graph", vocab=lambda space: 1 / 0)
    more = vocabularies() | {"nobody": None}
    assert set(export(tmp_path / "c", "pages", vocab=more).manifest["vocab"]) == {"item", "user"}


def restamped(path, name, data):
    """Another content of a file, with checksums that say it is the one that was exported."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256(data).hexdigest()
    manifest["files"][name] = {"bytes": len(data), "sha256": digest}
    manifest["stamp"] = artifact._stamp(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def opened(path):
    """All that serving reads of an artifact before it answers."""
    scorer = Scorer(artifact.load(path), requests=[4], candidates=[4])
    assert scorer.encoder.names
    scorer.verify()


NAMED = ("functions/score.stablehlo", "vocab/item.parquet", "parameters.npz", "check.npz")


@pytest.mark.parametrize("name", NAMED)
def test_a_damaged_file_is_named_although_its_checksum_is_right(exported, tmp_path, name):
    whole, rng, refused = (exported.path / name).read_bytes(), np.random.default_rng(0), 0
    shutil.copytree(exported.path, tmp_path / "a")
    cuts = [whole[: len(whole) // 2], b"", b"nonsense" * 100, bytes(len(whole))]
    for data in cuts + [flipped(whole, rng, 0.1) for _ in range(4)]:
        restamped(tmp_path / "a", name, data)
        try:
            opened(tmp_path / "a")
        except ArtifactError as e:
            refused += 1
            assert name in str(e) or "is off by" in str(e), e
            assert "again" in str(e)
    assert refused >= len(cuts)


def flipped(whole, rng, share):
    data = bytearray(whole)
    for at in rng.integers(0, len(data), int(share * len(data))):
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def test_a_program_may_not_call_out(exported, tmp_path):
    """An unknown target fails, a known one may end the process: neither is compiled."""

    def calls(target):
        call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((2,), jnp.float32))
        allowed = [jax.export.DisabledSafetyCheck.custom_call(target)]
        return jax.export.export(jax.jit(lambda x: call(x)), disabled_checks=allowed)(
            jnp.zeros(2)
        ).serialize()

    shutil.copytree(exported.path, tmp_path / "a")
    for target in ("xla_ffi_python_cpu_callback", "lapack_spotrf_ffi", "two words"):
        restamped(tmp_path / "a", "functions/score.stablehlo", bytes(calls(target)))
        reason = f"score.stablehlo is refused: it calls '{target}', which may run any code"
        with pytest.raises(ArtifactError, match=reason):
            artifact.load(tmp_path / "a")
