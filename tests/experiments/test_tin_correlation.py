"""The correlation command on a small planted world, and what TIN learns of recency on the whole one (slow)."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments import tin_correlation
from experiments.compare import entry
from recjax.metrics import correlation
from recjax.training.loop import train
from tests.messages import raises

P = "experiments/tin_planted.py"


def test_the_command_measures_learns_and_draws(tmp_path):
    models = [entry(P + ":runlocal"), entry(P + ":runlocal model.tr_mode=none")]
    found = tin_correlation.run(
        models, tmp_path, field="category", split="test", pool=["train", "test"],
        positions=4, least=5, categories=3, targets=2,
    )  # fmt: skip
    assert (tmp_path / "correlation.png").stat().st_size > 10_000
    saved = json.loads((tmp_path / "correlation.json").read_text())
    assert np.shape(saved["grids"]["measured"]) == (3, 4, 3)
    same = np.asarray(found["same_category"]["measured"])
    assert same[0] > 3 * same[3], "the planted recency is measured"
    assert set(found["agreement"]) == {m.name for m in models}
    assert all(np.isfinite(v) for v in found["agreement"].values())
    with raises(ValueError, "--field=user"):
        tin_correlation.run(models, tmp_path, field="user", split="test", pool=["test"])


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "model.tr_mode=repo"])
def test_recency_is_learnt(options, tmp_path):
    """Section 6, test 2; `python -m pytest -m slow tests/experiments/test_tin_correlation.py`."""
    config = entry(f"{P} {options}").of_seed(0)
    summary = train(config, tmp_path)
    assert summary["test"]["auc"] >= 0.76
    grid = tin_correlation.learned(tmp_path, "test", "category", 10, 0)
    same = correlation.diagonal(grid.value, grid.events)
    assert spearmanr(same, np.exp(-np.arange(10) / 2)).statistic >= 0.95
    assert same[-1] / same.max() <= 0.25
    other = ~np.eye(len(grid.value), dtype=bool)[:, None].repeat(10, 1) & (grid.events > 0)
    assert grid.value[other].mean() / same.max() <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("options", "most"), [("model.time=none", 0.69), ("model.attention=mean", 0.66)])  # fmt: skip
def test_without_its_parts_it_falls(options, most, tmp_path):
    """Section 6, test 1: the negative controls; without attention the learnt curve is flat."""
    summary = train(entry(f"{P} {options}").of_seed(0), tmp_path)
    assert summary["test"]["auc"] <= most
    grid = tin_correlation.learned(tmp_path, "test", "category", 10, 0)
    same = correlation.diagonal(grid.value, grid.events)
    assert spearmanr(same, np.exp(-np.arange(10) / 2)).statistic < 0.95
