"""What the gates of small planted runs know; the requirements on the whole world are slow."""

import numpy as np
import pytest

from experiments import aw_moe_gates, compare
from recjax.training.loop import train

P = "experiments/aw_moe_planted.py"


def test_probe_and_cosine():
    r = np.random.default_rng(0)
    taste = (r.random(400) < 0.5).astype(float)
    gate = np.stack([taste * 2 - 1 + r.normal(0, 0.1, 400), r.normal(size=400)], 1)
    assert aw_moe_gates.probe(gate, taste) > 0.99
    assert aw_moe_gates.probe(r.normal(size=(400, 2)), taste) < 0.6
    assert aw_moe_gates.cosine(gate, gate) == pytest.approx(1)
    assert aw_moe_gates.cosine(gate, -gate) == pytest.approx(-1)


def test_figures_of_a_run(tmp_path):
    train(compare.entry(f"{P}:runlocal").of_seed(0), tmp_path)
    one = aw_moe_gates.figures(tmp_path)
    assert sum(one["load"]) == pytest.approx(1, abs=1e-3) and 0 <= one["entropy"] <= np.log(4)
    assert all(0 <= one[k] <= 1 for k in ("probe", "probe_cut")) and abs(one["cosine"]) <= 1


def test_runs_with_and_without_the_contrast_are_paired_by_seed(tmp_path, monkeypatch):
    cosines = {"a": (0.5, 0.6, 0.7), "a+model.contrast=0": (0.4, 0.45, 0.6)}
    for name in cosines:
        for seed in range(3):
            place = tmp_path / name / f"seed-{seed}"
            place.mkdir(parents=True)
            (place / "config.json").write_text('{"model": {"name": "aw_moe"}}')
    monkeypatch.setattr(aw_moe_gates, "figures", lambda p: {"cosine": cosines[p.parent.name][int(p.name[-1])]})  # fmt: skip
    rise = aw_moe_gates.run(tmp_path)["contrast_raises_cosine"]
    assert set(rise) == {"a"}
    assert rise["a"]["by_seed"] == pytest.approx([0.1, 0.15, 0.1])
    assert rise["a"]["p_one_sided"] < 0.02


@pytest.mark.slow
def test_the_gate_learns_the_taste(tmp_path):
    """`python -m pytest -m slow tests/experiments/test_aw_moe_gates.py`; five seeds: see the experiment's docstring."""
    e = compare.entry(P)
    summary = train(e.of_seed(0), tmp_path)
    assert summary["test"]["auc"] >= 0.83, "DIN of the same size: 0.846"
    assert aw_moe_gates.figures(tmp_path)["probe"] >= 0.95


@pytest.mark.slow
def test_histories_of_others_say_nothing(tmp_path):
    summary = train(compare.entry(f"{P} data.prepare.label=shuffled").of_seed(0), tmp_path)
    assert summary["test"]["auc"] < 0.57
    assert aw_moe_gates.figures(tmp_path)["probe"] < 0.95, "control: the gate had nothing to learn"
