"""Other people's trials: their laws, and one sentence for each thing that is wrong with them."""

import csv
import json

import numpy as np
import pytest

from scaling import fit
from scaling.law.fit import FitError

TOKENS = np.geomspace(1e8, 3e10, 6)


def rows(seeds=2):
    rng = np.random.default_rng(0)
    return [
        dict(model=f"m{n:.0e}", n_params=n, tokens=d, run=f"{n}-{s}", split="test",
             loss=1.7 + 400 * n**-0.34 + 410 * d**-0.28 + 0.002 * rng.normal())
        for n in (1e7, 4e7, 2e8, 1e9) for s in range(seeds) for d in TOKENS
    ]  # fmt: skip


def written(path, table):
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, table[0])
        out.writeheader()
        out.writerows(table)
    return path


def test_laws_and_report_of_a_csv(tmp_path):
    path = written(tmp_path / "trials.csv", [*rows(), dict(rows()[0], loss="nan")])
    out = fit.lines(
        path, "tokens", "loss", by="model", joint=("n_params", "tokens"), report=f"{tmp_path}/out"
    )
    text = "\n".join(out)
    assert text.count("points, 6 sizes") == 4
    assert "model m1e+07: loss = " in text and "/ tokens^0.2" in text
    assert "all rows: loss = 1.7" in text and "/ n_params^0.3" in text
    assert "1 rows without a finite value" in text and "was set aside" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "model m1e+09" in page and "All sizes at once" in page


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({}, dict(by="colour"), "--by=colour: the trials have no such column; they have model, n_params"),
        ({}, dict(joint=("n_params", "flops")), "--joint=flops: the trials have no such column"),
        ({"tokens": 1e9}, {}, "1 sizes of 'tokens' cannot support a law"),
        ({"split": "dev"}, {}, "the trials mix 2 values of 'split' (dev, test): choose one with --where=split=dev"),
        ({"loss": "high"}, {}, "--y=loss: row 1 has 'high', which is no number"),
        ({}, dict(y="sharpness_of"), "--y=sharpness_of: say --lower_is_better"),
        ({}, dict(where=("split",)), "--where=split: write COLUMN=VALUE"),
        ({}, dict(where=("split=train",)), "has no row with the values of --where"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(tmp_path, change, options, message):
    table = rows()
    if "tokens" in change:
        table = [r | change for r in table]
    elif change:
        table[0] |= change
    given = dict(y="loss") | options
    with pytest.raises(FitError) as error:
        fit.lines(written(tmp_path / "trials.csv", table), "tokens", **given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_json_lines_and_the_names_of_files(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows()))
    assert fit.lines(path, "tokens", "loss")[0].startswith("loss by tokens: loss = ")
    with pytest.raises(FitError, match="neither .csv nor .jsonl"):
        fit.lines(tmp_path / "trials.xlsx", "tokens", "loss")
