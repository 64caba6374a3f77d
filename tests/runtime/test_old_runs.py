"""Runs that an earlier version wrote: modules and models have moved since, and the names in a saved config are the old ones.

run_before_rooms.tar.gz is a run directory of the last version before the move, stopped after 4 of 8 steps: the data set
`synthetic.tin`, the model `distil` with two logistic sides, saved every second step.
"""

import json
import tarfile

from etils import epath
from ml_collections import ConfigDict
import pytest

from recjax import configs, models
from recjax.data import module_of
from recjax.runtime.run import Run, RunError
from recjax.training import inference
from recjax.training.loop import train

RUN = epath.Path(__file__).parent / "run_before_rooms.tar.gz"
END = dict(auc=0.5281602002503129, logloss=0.6832134236788944)  # what that version ended with


def todays_config() -> ConfigDict:
    """The experiment of the old run as it is written today."""
    c = configs.base()
    c.data.name = "worlds.tin"
    c.data.history = 5
    c.data.prepare = dict(train=512, validation=64, test=64)
    side = dict(name="logistic")
    c.model = ConfigDict(dict(name="distillation_online", teacher=side, student=side))
    c.train.batch = 64
    c.train.epochs = 1
    c.train.checkpoint_every = 2
    c.eval.splits = ("validation",)
    c.eval.final = ("test",)
    return c


@pytest.fixture
def old_run(tmp_path):
    with tarfile.open(RUN) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_it_is_evaluated(old_run):
    saved = json.loads((old_run / "config.json").read_text())
    assert (saved["data"]["name"], saved["model"]["name"]) == ("synthetic.tin", "distil")
    found = inference.evaluate(str(old_run), "", ["test"], best=False, wanted=())["test"]
    assert found["evaluated"] == 64 and found["teacher/auc"] == pytest.approx(found["auc"], abs=0.5)


def test_it_goes_on_to_the_same_end(old_run):
    got = train(todays_config(), str(old_run))["test"]
    assert {k: got[k] for k in END} == pytest.approx(END, rel=1e-5)
    rows = [json.loads(line) for line in (old_run / "metrics.jsonl").read_text().splitlines()]
    assert min(r["step"] for r in rows) > 4, "it began anew"


def test_another_model_or_other_data_are_still_refused(old_run):
    for change in ({"data.name": "worlds.qin"}, {"model.name": "distillation_offline"}):
        config = todays_config()
        config.update_from_flattened_dict(change)
        with pytest.raises(RunError, match=next(iter(change))):
            train(config, str(old_run))


@pytest.mark.parametrize(
    "old, module",
    [
        ("synthetic.tin", "recjax.data.worlds.tin"),
        ("recjax.data.synthetic.tin", "recjax.data.worlds.tin"),
        ("complete_journey", "recjax.data.sets.complete_journey"),
        ("recjax.data.complete_journey", "recjax.data.sets.complete_journey"),
        ("product_graph", "recjax.data.sets.product_graph"),
        ("logs", "recjax.data.logs.prepare"),
        ("recjax.data.logs", "recjax.data.logs.prepare"),
        ("launch.abstract_data", "launch.abstract_data"),
    ],
)
def test_names_of_data_sets_still_open(old, module, tmp_path):
    """And a run that has the old name in its config.json goes on under either."""
    assert module_of(old).__name__ == module
    new = module.removeprefix("recjax.data.").removeprefix("sets.").removesuffix(".prepare")
    for name in (old, new, old):
        with Run(tmp_path, ConfigDict(dict(data=dict(name=name)))):
            pass


@pytest.mark.parametrize("name, options, new", [
    ("distil", {}, "distillation_online"),
    ("distil_offline", {}, "distillation_offline"),
    ("recjax.models.nif", {}, "nif"),
    ("mymodels.distil", {}, "mymodels.distil"),
    ("tarq", {"distil": 0.5}, "tarq"),
])  # fmt: skip
def test_names_of_models_and_their_options(name, options, new):
    got = models.with_new_names(dict(name=name, **options))
    assert got == dict(name=new) | {k.replace("distil", "distill"): v for k, v in options.items()}
