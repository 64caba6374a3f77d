"""recjax from Python: the functions behind the commands, in one place.

    import polars as pl
    import recjax

    data = recjax.prepare(pl.read_csv("log.csv"), dict(user="user", item="item", time="time", labels=["click"]), "data")
    run = recjax.train("din", "runs/din", data=data)
    print(run.summary["test"]["auc"])
    print(run.evaluate(splits=["validation"]))
    artifact = run.export("artifacts/din")
    answer = recjax.load(artifact).score(
        {"time": 1_700_000_000, "profile": {"user_id": "3"}, "context": {"hour": 9, "weekday": 3},
         "history": {"history": []}, "candidates": [{"item": "7"}, {"item": "9"}]}
    )

Everything that a command would write is written: the same directories can be read, resumed and served by the commands.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
import tempfile
from typing import Any, cast

from ml_collections import ConfigDict

from recjax import configs
from recjax.data import open_data
from recjax.data.loading.loader import PreparedData
from recjax.data.logs import prepare as logs
from recjax.runtime.run import read_json
from recjax.serving import artifact as artifacts
from recjax.serving import batch_scoring, export
from recjax.serving.scorer import Scorer
from recjax.training import inference, loop

HISTORY = 50


def prepare(
    log: Any, mapping: str | os.PathLike | Mapping[str, Any], out: str | os.PathLike, **options: Any
) -> PreparedData:
    """Prepares a log and opens it; returns at once what was prepared before from the same log and mapping.

    Args:
      log: A polars or pandas frame, or the path (or quoted pattern) of log files.
      mapping: What the columns mean: a mapping file, or its names and values (`recjax.data.logs.mapping.LogMapping`).
      out: Folder that holds prepared data sets.
      **options: Of `recjax.data.logs.prepare.prepare`, such as `strict`.

    Raises:
      DataError: The log is not as the mapping says; the message names the column or the rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        source: Any = log
        file: Any = mapping
        if hasattr(log, "columns"):
            source = pathlib.Path(folder) / "log.parquet"
            log.to_parquet(source) if hasattr(log, "to_parquet") else log.write_parquet(source)
        if isinstance(mapping, Mapping):
            file = pathlib.Path(folder) / "mapping.py"
            file.write_text("".join(f"{name} = {value!r}\n" for name, value in mapping.items()))
        path = logs.prepare(out, source=os.fspath(source), mapping=os.fspath(file), **options)
    return cast(PreparedData, open_data(_data_config(path)))


def _data_config(path: str | os.PathLike) -> ConfigDict:
    section = configs.base().data
    section.name, section.dir = "logs", os.fspath(path)
    return section


def config(model: str, **options: Any) -> ConfigDict:
    """A config (`recjax.configs`) of a model on prepared data, to change and to train.

    Args:
      model: A file of recjax.models, such as "din", or a dotted path to a model of your own.
      **options: Of the model.
    """
    c = configs.base()
    c.data.name = "logs"
    c.model.update(name=model, table=dict(dim=8, optimizer="lazy_adam", lr=1e-2), **options)
    c.train.min_steps = 500  # batch and epochs follow the log's size
    c.eval.final = ("validation", "test")
    return c


def train(
    config_or_model: ConfigDict | str, workdir: str | os.PathLike, data: PreparedData | None = None
) -> "Run":
    """Trains to the end and returns the run; resumes an interrupted one and leaves a finished one alone.

    Args:
      config_or_model: A config, of `config` or of an experiment file, or a model's name.
      workdir: The run directory.
      data: From `prepare`, in place of the config's own.

    Raises:
      ValueError: A config or data error, in one sentence.
    """
    c = config(config_or_model) if isinstance(config_or_model, str) else config_or_model
    c = ConfigDict(c.to_dict())
    if data is not None:
        c.data.name, c.data.dir = data.identity["name"], os.fspath(data.prepared.path)
        c.eval.final = tuple(s for s in c.eval.final if s in data.splits)
    loop.train(c, os.fspath(workdir))
    return Run(pathlib.Path(workdir))


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: Its directory.
    """

    workdir: pathlib.Path

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: the metrics of each final split, parameters, speed, versions."""
        return read_json(self.workdir / "summary.json")

    def evaluate(
        self,
        splits: Sequence[str] = ("test",),
        data: PreparedData | str = "",
        *,
        best: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """split -> metrics, with figures of new users, cold items and history lengths under "slices".

        Args:
          splits: Of the data.
          data: Other prepared data than the run's own, whose values are translated to its ids.
          best: The best checkpoint rather than the newest.
        """
        folder = data if isinstance(data, str) else os.fspath(data.prepared.path)
        return inference.evaluate(
            os.fspath(self.workdir), folder, splits, best=best, wanted=["default"]
        )

    def export(self, out: str | os.PathLike, **options: Any) -> str:
        """Exports an artifact, replacing what lies at `out`; returns its directory (options: `export.export_run`)."""
        export.export_run(os.fspath(self.workdir), out, **options)
        return os.fspath(out)

    def predict(self, requests: Any) -> Any:
        """A polars frame of raw requests (`recjax.serving.requests`) with the columns logit and probability."""
        import polars as pl

        with tempfile.TemporaryDirectory() as folder:
            source, out = pathlib.Path(folder) / "in.parquet", pathlib.Path(folder) / "out.parquet"
            frame = requests if isinstance(requests, pl.DataFrame) else pl.from_pandas(requests)
            frame.write_parquet(source)
            artifact = self.export(pathlib.Path(folder) / "artifact", rows_format="float32")
            batch_scoring.score(artifact, os.fspath(source), os.fspath(out))
            return pl.read_parquet(out)


@dataclasses.dataclass(frozen=True)
class Served:
    """An artifact, loaded."""

    scorer: Scorer

    def score(self, request: Mapping[str, Any]) -> dict[str, list]:
        """Outputs and probabilities of one JSON-like request (`recjax.serving.requests`), a number each candidate."""
        (answer,) = self.scorer.score_requests([request])
        return {name: x.tolist() for name, x in answer.items()}


def load(artifact: str | os.PathLike, function: str = "") -> Served:
    """Loads an exported artifact, which must be trusted: it holds compiled programs.

    Args:
      artifact: Its directory.
      function: Of the artifact; "" takes "score", or the only one.

    Raises:
      ArtifactError: It is absent, damaged, or of another platform.
    """
    return Served(Scorer(artifacts.load(artifact), function))
