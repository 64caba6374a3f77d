"""What the gates of small planted runs know; the requirements on the whole world are slow."""

import numpy as np
import pytest

from experiments import aw_moe_gates, compare
from recjax.train import train

P = "experiments/aw_moe_planted.py"


def test_probe_and_cosine():
    r = np.random.default_rng(0)
    taste = (r.random(400) < 0.5).astype(float)
    gate = np.stack([taste * 2 - 1 + r.normal(0, 0.1, 400), r.normal(size=400)], 1)
    assert aw_moe_gates.probe(gate, taste) > 0.99
    assert aw_moe_gates.probe(r.normal(size=(400, 2)), taste) < 0.6
    assert aw_moe_gates.cosine(gate, gate) == pytest.approx(1)
    assert aw_moe_gates.cosine(gate, -gate) == pytest.approx(-1)


def test_the_command_reads_a_comparison(tmp_path):
    for options in ("", " model.contrast=0"):
        e = compare.entry(f"{P}:runlocal{options}")
        for seed in range(2):
            train(e.of_seed(seed), tmp_path / e.name / f"seed-{seed}")
    found = aw_moe_gates.run(tmp_path)
    assert set(found["runs"]) == {"aw_moe_planted+runlocal", "aw_moe_planted+runlocal+model.contrast=0"}  # fmt: skip
    one = found["runs"]["aw_moe_planted+runlocal"]["seed-0"]
    assert sum(one["load"]) == pytest.approx(1, abs=1e-3) and 0 <= one["entropy"] <= np.log(4)
    assert len(found["contrast_raises_cosine"]["aw_moe_planted+runlocal"]["by_seed"]) == 2


@pytest.mark.slow
def test_the_gate_learns_the_taste_and_the_prior_cannot(tmp_path):
    """`python -m pytest -m slow tests/experiments/test_aw_moe_gates.py`; five seeds: see the experiment's docstring."""
    entries = compare.entries([f"{P}:din", P, f"{P} model.gate=prior model.pooling=mean"])
    found = compare.run(entries, tmp_path, 1, splits=["test"], resamples=20)
    auc = {k: m["test"]["auc"]["mean"] for k, m in found["models"].items()}
    din, gated, prior = auc.values()
    assert gated >= din - 0.002
    assert prior < gated - 0.05, "control: nothing personal is left"
    assert aw_moe_gates.run(tmp_path)["runs"]["aw_moe_planted"]["seed-0"]["probe"] >= 0.95
