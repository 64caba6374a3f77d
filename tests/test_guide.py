"""docs/add_your_own_model.md, taken at its word: its files are written out and its command is run."""

import functools
import importlib
import json
from pathlib import Path
import re
import shlex

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from recjax import configs, models
from recjax.data import open_data
from recjax.data.store.writing import write_prepared
from recjax.inputs import Inputs
from recjax.schema import NUM_RESERVED, Feature, IdSpace, Schema
from scaling.law import laws
from scaling.plan import study, sweep
from tests.messages import raises

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "add_your_own_model.md"
ITEMS, LENGTH, SEGMENTS = 50, 10, 5
SCHEMA = Schema(
    id_spaces=(IdSpace("item", ITEMS + NUM_RESERVED), IdSpace("segment", SEGMENTS + NUM_RESERVED)),
    features=(
        Feature("item", "candidate", id_space="item"),
        Feature("price", "candidate"),
        Feature("segment", "profile", id_space="segment"),
        Feature("past_item", "history", id_space="item", list="purchases"),
        Feature("bought", "label"),
    ),
    groups=("visit",),
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.M | re.S)


def planted(tmp_path: Path) -> Path:
    """Prepared data in which a user buys the items that its own (constant) past holds."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(SEGMENTS), LENGTH)
    timeline = {"purchases": [{"time": np.arange(len(users)), "past_item": users + NUM_RESERVED}]}

    def split(n):
        user, item = rng.integers(SEGMENTS, size=n), rng.integers(SEGMENTS, size=n)
        return {
            "time": np.full(n, 1_000, np.int64),
            "purchases/end": (user + 1) * LENGTH,
            "purchases/count": np.full(n, LENGTH),
            "item": item + NUM_RESERVED,
            "price": rng.random(n, np.float32),
            "segment": np.full(n, NUM_RESERVED),
            "bought": (rng.random(n) < np.where(item == user, 0.9, 0.1)).astype(np.float32),
            "visit": np.arange(n) // 4,
        }

    splits = {"train": split(20_000), "validation": split(1_000), "test": split(1_000)}
    return write_prepared(tmp_path / "prepared", "planted", SCHEMA, timeline, splits)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A user's folder with the guide's files in it, and the data."""
    folder = tmp_path_factory.mktemp("guide")
    for code in blocks("python"):
        path = folder / re.match(r"# file: (\S+)\n", code)[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    return folder


def test_the_guide_s_files_and_command_train_a_model(project, run_python):
    words = shlex.split(blocks("bash")[0])
    assert words[:3] == ["python", "-m", "recjax.train"]
    ours = [f"--config.data.dir={planted(project)}", "--config.opt.lr=0.01"]
    run_python("recjax.train", *words[3:], *ours, devices=1, cwd=project, timeout=200)
    summary = json.loads((project / "runs/attention/summary.json").read_text())
    # Knowing who buys what gives 0.83; the candidate without the history 0.5.
    assert 0.7 < summary["test"]["auc"] < 0.86


def test_a_misspelt_model_option_is_named(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    config = configs.load(str(project / "mymodels/attention_complete_journey.py"))
    config.model.widht = 64
    with raises(ValueError, "'widht'", "width"):
        models.build(SCHEMA, config.model)


def test_the_model_ignores_masked_events_and_other_candidates(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    model = importlib.import_module("mymodels.attention").Attention(width=8)
    keys = iter(jax.random.split(jax.random.key(0), 9))
    normal = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    mask = jnp.arange(6) >= jnp.array([[2], [6]])  # the second user has no history
    emb = {"item": normal(2, 3, 4), "segment": normal(2, 4), "past_item": normal(2, 6, 4)}
    inputs = Inputs(emb, {"price": normal(2, 3)}, {"purchases": mask}, {}, SCHEMA)
    params = jax.jit(functools.partial(model.init, train=False))(next(keys), inputs)
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits = lambda **changed: apply(params, inputs.replace(emb=emb | changed))["logits"]  # noqa: E731
    base, noise = logits(), normal(2, 6, 4)
    assert base.shape == (2, 3) and np.isfinite(base).all()

    masked = logits(past_item=emb["past_item"] + noise * ~mask[..., None])
    np.testing.assert_allclose(masked, base, atol=1e-6)
    assert (
        abs(logits(past_item=emb["past_item"] + noise) - base).max() > 1e-3
    )  # unmasked ones count

    other = logits(item=emb["item"].at[:, 1].add(1.0))
    np.testing.assert_allclose(other[:, [0, 2]], base[:, [0, 2]], atol=1e-6)
    assert abs(other - base)[:, 1].max() > 1e-3


def test_the_guide_s_model_is_swept_and_has_a_law(project, monkeypatch):
    """A model that recjax knows nothing of: a ladder of its own, counted, trained, fitted."""
    monkeypatch.syspath_prepend(project)
    experiment = configs.load(str(project / "mymodels/attention_complete_journey.py"))
    experiment.data.dir = str(planted(project / "swept"))
    experiment.eval.examples, experiment.train.batch = 500, 256
    experiment.eval.splits = experiment.eval.final = ("test",)
    ladder = {"narrow": {"width": 8}, "wide": {"width": 24}}
    points = (512, 1024, 1536, 2048)
    plan = study.Plan.of(ConfigDict(dict(ladder=ladder, seeds=(0,), examples=points)))
    data = open_data(experiment.data)
    trials = study.trials(plan, experiment, data.schema, data.identity["hash"])
    rows = sweep.run_sweep(trials, project / "sweep")
    assert {(r["grade"], r["examples"]) for r in rows} == {(g, n) for g in ladder for n in points}
    size = {r["grade"]: r["n_blocks"] for r in rows}
    assert size["wide"] == 3 * size["narrow"]  # projections of the candidate and of events
    found = laws.fit_all(rows, draws=10)
    assert {f["where"]["grade"] for f in found["axes"]["examples"]} == set(ladder)
