"""What may change about a run without making it another, and the committed studies that depend on it."""

from pathlib import Path

from etils import epath
import pytest

from recjax import configs
from recjax.runtime.identity import USES, Use, keys, may, without
from recjax.runtime.run import flat, plain
from scaling.plan import counts, study, sweep
from scaling.plan import rows as trial_rows
from tests.models import worlds

STUDIES = Path(__file__).resolve().parents[2] / "scaling" / "studies"


def test_every_key_is_one_that_configs_have():
    known = {*flat(plain(configs.base())), *configs.base()}
    for key in USES:
        if not key.startswith(tuple(f"{f}." for f in configs.FREE)):
            assert key.removesuffix(".") in known, key


def test_a_key_has_its_own_uses_and_its_section_s():
    assert may("opt.lr", Use.MEMBER) and may("opt.lr", Use.RECIPE)
    assert may("opt.schedule", Use.RECIPE) and not may("opt.schedule", Use.MEMBER)
    assert not may("model.norm", Use.RECIPE | Use.FREE | Use.PLACE) and not may(
        "optional", Use.RECIPE
    )
    assert "eval.final" in keys(Use.LATE) and not {"opt.", "eval."} & set(keys(Use.RECIPE))
    assert without({"data.dir": "x", "seed": 1}, Use.PLACE) == {"seed": 1}


@pytest.mark.parametrize("name", sorted(p.parent.name for p in STUDIES.glob("*/sweep.json")))
def test_finished_trials_of_committed_studies_keep_their_hashes(name, monkeypatch):
    """Else the same command would train them again."""
    monkeypatch.setattr(counts, "count", lambda *_: {})  # counts are no part of a trial's identity
    rows = trial_rows.read(STUDIES / name)
    config = study.saved(epath.Path(STUDIES / name))
    (data,) = {r["data"] for r in rows}
    other = lambda _: (worlds.SCHEMA, data)  # noqa: E731
    trials = study.trials(
        study.Plan.of(config.sweep), config.experiment, worlds.SCHEMA, data, other
    )
    assert len(rows) > 10 and {r["trial"] for r in rows} <= {t.run for t in trials}
    known, runs = {t.run: t for t in trials}, {}
    for r in rows:
        runs.setdefault(r["parent"] or r["run"], {})[r["member"]] = known[r["trial"]]
    for run, members in runs.items():  # a run of several is named after all of them
        if len(members) > 1 or run in known:
            assert sweep.run_name([members[m] for m in sorted(members)]) == run
