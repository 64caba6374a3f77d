"""Where else a run's numbers go: Weights & Biases or MLflow, beside metrics.jsonl and TensorBoard.

    python -m recjax.train ... --config.train.log_to=wandb,          # or mlflow, or both: wandb,mlflow
    WANDB_MODE=offline, MLFLOW_TRACKING_URI, ...                     # their own settings are read by their own libraries

A run that goes on in its directory goes on in the tracker too: its id lies in the directory's trackers.json. What a tracker
is given are the scalars of the event file, under the same names; nothing reads it back.
"""

from collections.abc import Mapping
import os
from typing import Any, Protocol


class Tracker(Protocol):
    """One service that a run tells its numbers to."""

    id: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, of a step."""

    def close(self) -> None:
        """The run has ended or was stopped; it may go on later."""


class WandB:
    """A run of Weights & Biases (`pip install wandb`)."""

    def __init__(self, name: str, config: Mapping[str, Any], known: str):
        import wandb

        self._run = wandb.init(
            name=name, config=dict(config), id=known or None, resume="allow" if known else None
        )
        self.id = self._run.id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow (`pip install mlflow`, or the smaller mlflow-skinny)."""

    def __init__(self, name: str, config: Mapping[str, Any], known: str):
        import mlflow

        self._client = mlflow.MlflowClient()
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        # MLFLOW_EXPERIMENT_NAME is read by the fluent interface only; a client is asked for the experiment by its id.
        experiment = self._client.get_experiment_by_name(_experiment())
        where = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(_experiment())
        )
        self.id = self._client.create_run(where, run_name=name).info.run_id
        for key, value in config.items():
            self._client.log_param(self.id, key, str(value)[:500])  # MLflow refuses longer ones

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self.id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self.id)


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "recjax")


TRACKERS: Mapping[str, Any] = {"wandb": WandB, "mlflow": MLflow}


def open_trackers(
    names: tuple[str, ...], run: str, config: Mapping[str, Any], known: Mapping[str, str]
) -> list[Tracker]:
    """A tracker for each name, new or going on.

    Args:
      names: Keys of `TRACKERS`.
      run: Its name.
      config: Flat, {"opt.lr": 1e-3}.
      known: name -> what that service calls the run, of those that it goes on in.

    Raises:
      ValueError: An unknown name, or a library that is not installed.
    """
    out: list[Tracker] = []
    for name in names:
        if name not in TRACKERS:
            raise ValueError(
                f"train.log_to has {name!r}; use {', '.join(TRACKERS)} (TensorBoard is always written)"
            )
        try:
            out.append(TRACKERS[name](run, config, known.get(name, "")))
        except ModuleNotFoundError as e:
            raise ValueError(
                f"train.log_to={name} needs the package {e.name}; pip install 'recjax[{name}]'"
            ) from None
    return out
