"""The board of TARQ's runs: its figures by hand, and what it says of folders it cannot use."""

import json

import numpy as np
import pytest

from experiments import tarq_board
from tests.messages import raises


def test_hit_rate_is_the_share_of_theirs_in_ours():
    ours = [np.array([1, 2, 3, 4]), np.array([5, 6, 7, 8])]
    theirs = [np.array([4, 3, 9, 1]), np.array([1, 2, 3, 4])]
    assert tarq_board.hit_rate(ours, theirs) == pytest.approx((3 / 4 + 0) / 2)
    assert tarq_board.hit_rate(ours, ours) == 1.0


def test_figures_and_their_table():
    summary = {
        "test": {"auc": 0.7, "teacher/auc": 0.8, "quantisation": 0.1, "codes/utilisation/0": 0.5}
    }
    figures = tarq_board.figures(summary, "test")
    assert figures == {"auc": 0.7, "teacher": 0.8, "quantisation": 0.1, "used 0": 0.5}
    assert tarq_board.figures({"test": {"auc": 0.6}}, "test") == {"auc": 0.6}
    text = tarq_board.table(
        {"tarq": {"auc": [0.7, 0.72], "hr": [0.5, 0.5]}, "towers": {"auc": [0.6]}}
    )
    assert "| tarq | 0.7100 ± 0.0141 | 0.5000 ± 0.0000 |" in text
    assert "| towers | 0.6000 |  |" in text


def test_a_folder_without_the_reference_says_so(tmp_path):
    with raises(ValueError, "experiments.compare"):
        tarq_board.board(tmp_path, "test", 5, 3)
    run = tmp_path / "tarq" / "seed-0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "config.json").write_text(json.dumps({"model": {"name": "tarq"}}))
    with raises(ValueError, "seed-0", "model.variant=target_att"):
        tarq_board.board(tmp_path, "test", 5, 3)
