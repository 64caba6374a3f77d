"""The report holds its numbers, loads nothing, escapes what it is given and survives missing stages."""

import base64
import hashlib
from html.parser import HTMLParser
import json
import re

import numpy as np
import pytest

from scaling.law import fit, rivals
from scaling.report import charts, page
from scaling.report.context import Context

EVIL = "<script>alert('x')</script>"


def trials():
    rng = np.random.default_rng(0)
    sizes = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    rows = [
        {
            "run": f"suan-{grade}-s{seed}", "member": seed, "parent": None, "kind": "pass", "grade": grade,
            "examples": n, "auc": 0.73 + 0.01 * grade - 2 * n**-0.35 + 0.001 * rng.normal(), "logloss": 0.3,
        }
        for grade in (0, 1, 2) for n in sizes for seed in range(3)
    ]  # fmt: skip
    rows.append({"run": EVIL, "kind": "rate", "grade": 0, "examples": 10_000, "auc": 0.99})
    rows.append(
        {
            "run": "nan",
            "kind": "pass",
            "grade": 0,
            "examples": 10_000,
            "auc": None,
            "undefined": "diverged",
        }
    )
    return rows


def context():
    rows = trials()
    x, y = fit.points(rows, "examples", "auc", kind="pass", grade=1)
    law = rivals.fit_judged(x, y)
    rows[0] = {k: v for k, v in rows[0].items() if k not in ("auc", "logloss")} | {
        "metrics": {"auc": rows[0]["auc"], "logloss": rows[0]["logloss"]}
    }
    return {
        "title": f"SUAN on <b>Journey</b> {EVIL}",
        "trials": rows,
        "fits": [{"label": "grade 1", **law.to_json(), "needed": [law.needed(0.7), law.needed(0.99)]}],
        "grades": {g: {"blocks": b, "n_blocks": n} for g, b, n in ((0, 1, 26240), (1, 2, 52480), (2, 4, 416640))},
        "distillation": {
            "rows": [
                {"model": "SUAN-2", "role": "teacher", "auc": [0.741, 0.742, 0.743], "p50_ms": 9.13},
                {"model": "LightSUAN-1", "role": "undistilled", "auc": [0.721, 0.722, 0.723], "p50_ms": 2.17},
                {"model": "LightSUAN-1", "role": "distilled", "auc": [0.731, 0.732, 0.733], "p50_ms": 2.17},
            ],
            "paired": dict(difference=0.0102, low=0.0071, high=0.0133, level=0.95, seeds=3),
        },
        "latency": {
            "candidates": 100, "hardware": "2 CPU cores",
            "rows": [{"model": "SUAN-2", "p50_ms": 9.13, "p95_ms": 11.2, "p99_ms": 14.81},
                     {"model": "LightSUAN-1", "p50_ms": 2.17, "p95_ms": 2.9, "p99_ms": 3.64}],
        },
        "data": {"name": "journey", "splits": {"train": 1450054, "test": 129093}, "rate": 0.2, "note": EVIL},
        "grade_law_command": "python -m scaling.run --config.grades=0,1,2,3,4",
        "commands": [{"why": "A longer history", "command": "python -m scaling.run --config.history=100"}],
    }  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes that load something, and visible text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "br", "line", "circle", "path", "input"):
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "new"
    path = page.write_report(str(folder), Context(**context()))
    found = sorted(p.name for p in folder.rglob("*") if p.is_file())
    assert found == ["grid.svg", "law-0.svg", "report.html"]  # the temporary files are gone
    return open(path, encoding="utf-8").read()


def test_the_numbers_are_there(written):
    text = " ".join("".join(Page(written).text).split())
    law = context()["fits"][0]
    mean = np.mean(
        [
            r["auc"]
            for r in trials()
            if r["kind"] == "pass" and r["grade"] == 2 and r["examples"] == 100_000
        ]
    )
    for expected in (
        f"{law['E']:.4f}", f"{law['intervals']['a'][0]:.4f}", f"{law['holdout']['observed']:.4f}", law["law"], f"{mean:.4f}",
        "1,450,054", "129,093", "0.7320", "± 0.0010 · 3", "+0.0102", "over 3 seeds", "14.81", "scoring 100 candidates",
        "beyond the ceiling", "416,640", "3 grades cannot support a grade law", "--config.grades=0,1,2,3,4",
        "--config.history=100", "47 trials", "diverged", "broken power", "2 CPU cores",
    ):  # fmt: skip
        assert expected in text, expected
    assert "0.9900 ±" not in text  # a trial of the rates is not in the grid


def test_the_grid_reads_nested_metrics(written):
    cells = page.grade_grid([page.flat(r) for r in context()["trials"]], "auc")["cells"]
    assert cells[0, 10_000]["seeds"] == 3
    assert len(cells) == 15


def test_it_loads_nothing(written):
    shown = Page(written)
    assert shown.loads == []
    assert not {"link", "img", "iframe", "object"} & set(shown.tags)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", written)


def test_only_its_own_script_may_run(written):
    script = written.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in written
    assert written.count("<script>") == 1


def test_every_tag_is_closed(written):
    shown = Page(written)
    assert shown.open == []  # every tag is closed


def test_what_it_is_given_is_escaped(written):
    assert EVIL not in written
    assert "&lt;script&gt;alert" in written
    chart = charts.law_chart(context()["fits"][0] | {"label": EVIL, "axis": EVIL})
    assert "<script" not in chart


def test_charts_draw_every_point_inside_the_frame(written):
    f = context()["fits"][0]
    chart = str(charts.law_chart(f))
    dots = re.findall(r'class="dot s0" cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert len(dots) == len(f["x"])
    assert all(
        charts.LEFT <= float(x) <= charts.WIDTH and 0 <= float(y) <= charts.HEIGHT for x, y in dots
    )
    heights = [float(y) for _, y in sorted(dots, key=lambda d: float(d[0]))]
    assert heights[0] > heights[-1]  # larger is drawn higher
    assert 'class="held"' in chart


def test_a_huge_interval_does_not_flatten_the_points():
    f = context()["fits"][0]
    f["curve"] = [c | {"low": 0.0, "high": 1.0} for c in f["curve"]]
    heights = [
        float(y)
        for y in re.findall(r'class="dot s0" cx="[\d.]+" cy="([\d.]+)"', str(charts.law_chart(f)))
    ]
    assert max(heights) - min(heights) > charts.HEIGHT / 4


def test_missing_stages_say_so(tmp_path):
    shown = open(page.write_report(str(tmp_path), Context()), encoding="utf-8").read()
    for words in (
        "no answer yet",
        "no report.json",
        "no law was fitted",
        "no student was distilled",
        "no latency",
    ):
        assert words in shown
    assert Page(shown).open == []


def test_a_whisker_that_leaves_the_chart_has_no_cap_inside():
    axes = charts.Axes([1, 10], [0.0, 1.0])
    line, *inside = axes.whisker(3, 0.2, 0.8, "held")
    assert all('class="held"' in end for end in inside)
    _, low, high = axes.whisker(3, -5.0, 0.8, "held")
    assert 'class="held cut"' in low and 'class="held"' in high
    f = context()["fits"][0]
    f["holdout"] = f["holdout"] | {"low": -3.0}
    assert str(charts.law_chart(f)).count('class="held cut"') == 1


def test_notes_stand_beside_the_numbers():
    f = context()["fits"][0]
    assert "Beside these numbers" not in page.law_sentence(f)
    note = dict(kind="lack of fit", text="the law misses the means", doubt=True, numbers={})
    f["notes"] = [*f["notes"], note]
    assert page.law_sentence(f).endswith(" Beside these numbers: the law misses the means.")
    assert "<strong>Lack of fit:</strong> the law misses the means." in page.render(
        Context(**context() | {"fits": [f]})
    )


def test_only_laws_that_could_have_failed_are_counted():
    f = context()["fits"][0]
    vague = f | {"headline": False, "holdout": f["holdout"] | {"decisive": False}}
    wrong = f | {"headline": False, "holdout": f["holdout"] | {"decisive": True, "inside": False}}
    assert "tested by it: none." in page.answer([vague, vague], None, "auc")[-1]
    assert (
        "3 laws were also fitted without their largest size. Sharp enough to be tested by it: 1; of these 0 have"
        in page.answer([vague, vague, wrong], None, "auc")[-1]
    )


def test_a_held_out_miss_is_loud():
    f = context()["fits"][0]
    f["holdout"] = f["holdout"] | {"inside": False}
    assert "OUTSIDE" in page.law_sentence(f)
    assert "OUTSIDE" not in page.law_sentence(context()["fits"][0])
    f["holdout"] = f["holdout"] | {"decisive": False}
    assert "proves little" in page.law_sentence(f)


def test_a_metric_that_is_undefined_in_some_seeds_is_a_mean_of_the_others():
    rows = [
        dict(model="m", role="teacher", auc=[0.6, None], gauc_user=[None, None], ece=[0.1, 0.3])
    ]
    (row,) = page.distillation_rows({"rows": rows}, "auc")["rows"]
    assert row["spread"] == dict(mean=0.6, sd=None, seeds=1)
    assert row["others"] == dict(gauc_user=None, ece=pytest.approx(0.2))
    (row,) = page.distillation_rows({"rows": [dict(rows[0], auc=[None])]}, "auc")["rows"]
    assert row["spread"] is None


def test_a_student_that_is_not_told_apart_is_not_praised():
    paired = context()["distillation"]["paired"] | {"low": -0.001}
    assert "not told apart" in page.answer([], {"paired": paired}, "auc")[0]
    assert "gains 0.0102" in page.answer([], context()["distillation"], "auc")[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.73214, "0.7321"),
        (1450054, "1,450,054"),
        (0.00012, "0.00012"),
        (True, "True"),
        ("a", "a"),
    ],
)
def test_numbers_read_well(value, text):
    assert page.number(value) == text


def test_sizes_read_well():
    assert [page.count(v) for v in (900, 300_000, 1_450_054, 5.7e8)] == [
        "900",
        "300 k",
        "1.45 M",
        "570 M",
    ]


def test_the_context_is_json(tmp_path):
    """The sweep hands over what it read from files: a JSON round trip changes nothing."""
    given = context() | {"created": "today"}
    assert page.render(Context(**json.loads(json.dumps(given)))) == page.render(Context(**given))
