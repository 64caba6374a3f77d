"""What a run tells Weights & Biases and MLflow: through stand-ins of their libraries, and MLflow's own where it is installed."""

import json
import sys
import types

import pytest

from recjax import configs
from recjax.runtime.run import Run
from recjax.runtime.trackers import open_trackers
from tests import messages


class FakeWandB(types.ModuleType):
    """Keeps what it is told, by run; as the service does, it takes up the run whose id it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.runs: dict[str, list] = {}

    def init(self, name, config, **asked):
        own = asked["id"] or f"new{len(self.runs)}"
        rows = self.runs.setdefault(own, [config])
        log = lambda values, step: rows.append((step, values))  # noqa: E731
        return types.SimpleNamespace(id=own, log=log, finish=lambda: rows.append("finished"))


def config(*names):
    c = configs.base()
    c.train.log_to = names
    return c


def test_a_run_goes_on_in_the_tracker_where_it_goes_on_here(tmp_path, monkeypatch):
    wandb = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (1, 2):
        with Run(tmp_path / "run", config("wandb")) as run:
            run.begin(step - 1)
            run.log(step, "train", {"loss": 0.5 / step, "note": "no number"}, split="a")
    told, *rest = wandb.runs["new0"]
    assert told["train.batch"] == 512 and list(wandb.runs) == ["new0"]
    assert rest == [(1, {"train/a/loss": 0.5}), "finished", (2, {"train/a/loss": 0.25}), "finished"]
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"wandb": "new0"}
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_the_key_no_tracker_is_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    with Run(tmp_path / "run", configs.base()) as run:
        run.begin(0)
        run.log(1, "train", {"loss": 1.0})
    assert not (tmp_path / "run" / "trackers.json").exists()


def test_unknown_and_absent_trackers_are_named_before_training(tmp_path, monkeypatch):
    with messages.raises(ValueError, "train.log_to", "'comet'", "wandb", "mlflow"):
        open_trackers(("comet",), "run", {}, {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        Run(tmp_path / "run", config("wandb")) as run,
        messages.raises(ValueError, "recjax[wandb]"),
    ):
        run.begin(0)


# its database library warns of its own future
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_parameters_and_metrics(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    try:
        mlflow.MlflowClient().search_experiments()
    except Exception as e:  # the small package has no store of its own
        pytest.skip(f"mlflow has no local store here: {e}")
    for step in (1, 2):
        with Run(tmp_path / "run", config("mlflow")) as run:
            run.begin(step - 1)
            run.log(step, "train", {"loss": 0.5 / step})
    own = json.loads((tmp_path / "run" / "trackers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient()
    kept = client.get_run(own)
    assert kept.data.params["train.batch"] == "512" and kept.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(own, "train/loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
