"""Every experiment file trains in its `runlocal` size: a file with `get_config` is an experiment."""

from pathlib import Path

import pytest

from recjax import configs
from recjax.training.loop import train

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
FILES = sorted(p for p in FOLDER.glob("*.py") if "def get_config" in p.read_text())
SWEEPS = sorted(FOLDER.parent.glob("scaling/configs/[a-z]*.py"))


FOLDERS = {
    "kuairand": "kuairand-pure",
    "hillstrom": "hillstrom",
    "oa-mine": "extractgpt-ave",
    "ae-110k": "extractgpt-ave",
    "mave": "wdc-pave",
    "next_item": "amazon-sequences",
}


def source_of(config, real_data) -> str:
    name = config.data.prepare.get("set", config.data.name)
    return str(real_data(FOLDERS[name])) if name in FOLDERS else ""


@pytest.mark.parametrize("file", [*FILES, *SWEEPS], ids=lambda p: p.stem)
def test_a_misspelt_argument_is_refused(file):
    with pytest.raises(ValueError, match="'runlocla'.*runlocal"):
        configs.load(str(file), "runlocla")


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_runlocal(file, tmp_path, real_data):
    config = configs.load(str(file), "runlocal")
    config.data.source = source_of(config, real_data)
    summary = train(config, tmp_path)
    assert summary["examples"] <= 4096
    assert summary["test"]["logloss"] is not None and summary["test"]["evaluated"] > 0


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_docstring_carries_the_command_and_the_full_config_is_valid(file):
    assert f"--config=experiments/{file.name}" in file.read_text()
    config = configs.load(str(file))
    configs.check(config)
    with pytest.raises(AttributeError, match="bacth"):
        config.train.bacth = 1


def test_several_labels_at_once(tmp_path, real_data):
    config = configs.load(str(FOLDER / "suan_kuairand.py"), "multi,runlocal")
    config.data.source = str(real_data("kuairand-pure"))
    summary = train(config, tmp_path)
    assert {"auc", "long_view/auc", "like/auc", "follow/auc"} <= summary["test"].keys()


def test_the_control_with_codes_begins_from_a_dense_generator(tmp_path):
    summary = train(configs.load(str(FOLDER / "nif_planted.py"), "codes,runlocal"), tmp_path)
    assert (tmp_path / "needs/0/summary.json").exists()
    assert 0 < summary["validation_flow"]["nce_loss"] < 20
    assert 0 <= summary["test_flow"]["hr10"] <= 1
