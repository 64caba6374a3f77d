"""docs/your_own_logs.md, taken at its word: from a CSV file to an answer over HTTP.

pytest tests/experiments/test_walk.py            the same steps on a small log with a small model
pytest -m slow tests/experiments/test_walk.py    the commands of the page as they stand there; minutes
"""

import json
import pathlib
import re
import shlex

import numpy as np
import polars as pl
import pytest

import recjax
from recjax.data.logs.sources import list_files
from recjax.data.logs.suggest import suggest
from recjax.data.worlds import shop
from recjax.serving.service import Limits
from recjax.training.sizing import fit
from tests.serving.client import serving

REPO = pathlib.Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "your_own_logs.md").read_text()
LIMITS = Limits((1,), (16,), deadline_ms=60_000)


def commands() -> list[list[str]]:
    """The page's commands, without those of the shell."""
    block = re.search(r"<!-- walk -->\n```bash\n(.*?)```", PAGE, re.S)[1]
    return [shlex.split(line, comments=True)[2:] for line in block.splitlines()]


def answers(artifact) -> list[dict]:
    """What the service says to the page's curl calls, in order."""
    calls = re.findall(r"curl localhost:8000(\S+) .*? -d '(.*?)'", PAGE, re.S)
    assert [path for path, _ in calls] == ["/v1/score", "/v1/events"]
    out = []
    with serving(artifact, LIMITS) as (client, _):
        for path, body in [*calls, calls[0]]:
            answer = client.post(path, json=json.loads(body))
            assert answer.status_code == 200, answer.text
            out.append(answer.json())
    return out


def check(answered: list[dict]) -> None:
    before, stored, after = answered
    first, second = (np.array(x["outputs"]["logits"]) for x in (before, after))
    assert first.shape == (3,) and len(np.unique(first)) == 3
    assert stored["stored"] == {"log": 1, "history": 1}
    assert np.abs(first - second).max() > 1e-4  # the click is in the history and the counters


@pytest.mark.slow
def test_the_page_s_commands_as_they_stand(tmp_path, run_python):
    """The best AUC is known: the documented commands come near it, and beat popularity."""
    (tmp_path / "experiments").symlink_to(REPO / "experiments")
    made = commands()
    assert [c[0].rpartition(".")[2] for c in made[-2:]] == ["export", "serve"]
    for module, *args in made[:-1]:
        if module.endswith("boosted_trees"):
            pytest.importorskip("lightgbm", reason="needs the bench extra")
        run_python(module, *args, devices=1, cwd=tmp_path, timeout=1200)
    auc = _auc(tmp_path / "runs/mine/evaluation-test.json")
    log, probability = shop.shop()
    assert 0.68 < auc < shop.best_auc(log, probability) < 0.74
    rivals = [_auc(tmp_path / "runs" / name / "summary.json") for name in ("popularity", "trees")]
    assert auc > max(rivals) and rivals[0] < 0.6
    assert pl.read_parquet(tmp_path / "scores.parquet").height == 4_000
    check(answers(tmp_path / "artifacts/mine"))


def _auc(file: pathlib.Path) -> float:
    """Of the test split, the only one in the file."""
    return float(re.search(r'"auc": ([0-9.]+)', file.read_text())[1])


def test_the_same_steps_on_a_small_log(tmp_path):
    log, _ = shop.shop(rows=2_000)
    log.write_csv(tmp_path / "shop.csv")
    (tmp_path / "mapping.py").write_text(suggest(list_files(str(tmp_path / "shop.csv"))))
    data = recjax.prepare(str(tmp_path / "shop.csv"), tmp_path / "mapping.py", tmp_path / "data")
    config = recjax.config("din", head=(8,))
    config.train.min_steps = 8
    run = recjax.train(config, tmp_path / "run", data)
    assert (run.summary["batch"], run.summary["epochs"], run.summary["step"]) == (128, 1, 13)
    check(answers(run.export(tmp_path / "artifact")))


def test_the_world_s_best_auc_is_that_of_its_probabilities():
    log, probability = shop.shop(rows=20_000)
    assert 0.70 < shop.best_auc(log, probability) < 0.76
    wrong = np.roll(probability, 1)  # somebody else's
    assert abs(shop.best_auc(log, wrong) - 0.5) < 0.05
    assert shop.auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.2, 0.9])) == 0.875


@pytest.mark.parametrize(
    ("rows", "want"),
    [
        (10_000_000, (512, 8, 1)),
        (256_000, (512, 8, 1)),
        (255_000, (256, 4, 1)),
        (64_000, (128, 2, 1)),
        (32_000, (128, 2, 2)),
        (1_000, (128, 2, 8)),
    ],
)
def test_batch_and_epochs_follow_the_rows(rows, want):
    assert fit(rows, 512, 8, 1, 500) == want


def test_what_must_divide_the_batch_still_does():
    assert fit(1_000, 512, 1, 3, 500, parts=256) == (256, 1, 8)
    assert fit(1_000, 480, 1, 1, 500, parts=160) == (480, 1, 8)
    assert fit(1_000, 100, 4, 1, 1) == (100, 4, 1)
