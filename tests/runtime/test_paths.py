"""Any legal path is a path, not a pattern: brackets, stars, question marks, backslashes, blanks, a hyphen in front, letters of any script."""

import pytest

from recjax.runtime.run import read_json
from recjax.training import inference
from recjax.training.loop import train
from tests.runtime.test_old_runs import todays_config

ODD = "-w[1] *b?{c,d} e\\f ü"


@pytest.fixture
def config():
    c = todays_config()
    c.model = dict(name="logistic")
    return c


def test_a_run_resumes_and_is_evaluated_where_it_lies(config, tmp_path):
    """Also from data that lie in such a folder: what it ends with is what a plain path ends with."""
    plain = train(config, tmp_path / "plain")
    config.data.dir = ""
    folder = tmp_path / ODD
    once = config.copy_and_resolve_references()
    once.train.examples = (
        256  # another run that is stopped by its size: its checkpoints must be found
    )
    short = train(once, folder / "short")
    assert short["step"] == 4
    again = train(config, folder / "whole")
    assert again["test"] == plain["test"]
    assert train(config, folder / "whole")["test"] == plain["test"]  # finished: left alone
    found = inference.evaluate(str(folder / "whole"), "", ["test"], best=False, wanted=())
    assert found["test"]["auc"] == pytest.approx(plain["test"]["auc"], abs=1e-6)
    saved = [p.name for p in (folder / "whole" / "checkpoints" / "recent").iterdir()]
    assert "8" in saved and read_json(folder / "whole" / "summary.json")
