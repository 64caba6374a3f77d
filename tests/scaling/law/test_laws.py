"""Laws and decisions from the rows of a planted study, and what happens where rows are missing."""

import json

import numpy as np
import pytest

from scaling.law import decisions, fit, laws
from scaling.plan.grades import LADDER
from scaling.plan.rows import base_rows, kinds_apart

POINTS = (10_000, 30_000, 90_000, 270_000, 810_000)
FLOPS = 6  # forward FLOPs per block parameter and event: enough to order options


def truth(n, d, h):
    return 0.80 - 0.5 * n**-0.3 - 2.2 * d**-0.27 - 0.12 * h**-0.5


def row(grade, seed, examples, history=20, kind="pass", **more):
    rung = LADDER[grade]
    blocks, width = more.get("blocks", rung.blocks), more.get("width", rung.width)
    n = blocks * 16 * width**2
    run = f"{grade}-{blocks}x{width}-{history}-{more.get('variant', '')}"
    parent = run if kind == "cooldown" else None
    return {
        "run": run, "member": seed, "parent": parent, "kind": kind, "grade": grade, "seed": seed, "examples": examples,
        "history": history, "blocks": blocks, "width": width, "n_blocks": n, "lr": 1e-3, "variant": "",
        "flops_per_example": FLOPS * n * history, **more,
    }  # fmt: skip


def scored(rows, noise=0.0005, seed=0):
    """The planted law, noise that a run shares, noise of its own; a constant rate is 0.01 worse than a cooldown."""
    rng, own = np.random.default_rng(seed), {}
    for r in rows:
        shared = own.setdefault((r["run"], r["member"]), noise * rng.normal())
        drop = 0.01 * (r["kind"] == "pass") + r.pop("drop", 0.0)
        auc = (
            truth(r["n_blocks"], r["examples"], r["history"]) - drop + shared + noise * rng.normal()
        )
        r |= dict(auc=auc, logloss=0.9 - 0.6 * auc)
    return rows


def study_rows(kinds=("pass", "cooldown"), grades=("-1", "0", "1", "2", "3"), **keys):
    rows = [
        row(g, s, n, kind=k, **keys)
        for g in grades
        for s in range(3)
        for n in POINTS
        for k in kinds
    ]
    for h in (10, 50, 100):
        rows += [row("0", s, n, h, k) for s in range(3) for n in POINTS[:3] for k in kinds]
    rows += [
        row("1", s, n, kind="cooldown", blocks=b)
        for b in (1, 3, 4)
        for s in (0, 1)
        for n in POINTS[:2]
    ]
    return rows


@pytest.fixture(scope="module")
def rows():
    out = study_rows()
    out += [row("0", s, n, kind="independent") for s in range(3) for n in POINTS[::2]]
    out += [row(g, 0, 30_000, kind="rate", lr=lr, drop=0.004 * abs(np.log(lr / 1e-3)))
            for g in ("0", "1") for lr in (5e-4, 1e-3, 2e-3)]  # fmt: skip
    out += [row("0", s, n, kind="cooldown", variant="model.norm=layer", drop=0.02)
            for s in range(3) for n in POINTS]  # fmt: skip
    return scored(out)


def test_every_axis_has_its_law_and_only_comparable_rows(rows):
    found = {a: laws.axis_laws(rows, a, "auc") for a in laws.CONTROLS}
    assert (
        len(found["examples"]) == 5
    )  # a law for each rung at history 20; three points elsewhere are too few
    assert [f["sizes"] for f in found["n_blocks"]] == [5] * 5
    assert [f["label"] for f in found["history"]][0].startswith("grade 0, examples 90 k")
    assert {f["sizes"] for f in found["blocks"]} == {4} and not found["width"]
    assert all(f["headline"] == (i == 0) for axis in found.values() for i, f in enumerate(axis))
    head = found["examples"][0]
    assert head["intervals"]["a"][0] < 0.27 < head["intervals"]["a"][1]
    assert head["points"] == 15  # cooldowns alone: no pass, no variant, no independent run


def test_without_cooldowns_the_passes_are_fitted():
    found = laws.axis_laws(scored(study_rows(kinds=("pass",))[:75]), "examples", "auc")
    assert len(found) == 5 and found[0]["points"] == 15


def test_other_data_has_laws_of_its_own(rows):
    apart = scored(
        [
            row("0", s, n, kind=f"natural{k}", variant="data.train=train")
            for k in ("", " cooldown")
            for s in range(3)
            for n in POINTS
        ]
    )
    assert kinds_apart([*rows, *apart]) == ["natural cooldown"]
    found = laws.axis_laws([*rows, *apart], "examples", "auc", "natural cooldown")
    assert [(f["label"], f["points"], f["headline"]) for f in found] == [
        ("natural cooldown: grade 0, history 20", 15, False)
    ]
    assert len(laws.axis_laws([*rows, *apart], "examples", "auc")) == 5
    assert not any(r["variant"] for r in base_rows(rows, "cooldown"))


def test_the_joint_law_and_its_held_out_sizes(rows):
    law = laws.joint_law(rows, "auc", draws=30)
    assert law.axes == ("n_blocks", "examples", "history")
    at = dict(n_blocks=1e5, examples=3e6, history=50)
    low, high = law.interval(at)
    assert low < truth(1e5, 3e6, 50) < high and high - low < 0.02
    held = laws.joint_holdout(rows, "auc", "examples", draws=30)
    assert held["left_out"] == 810_000 and len(held["cells"]) == 5
    assert held["rmse"] < 0.002 and sum(c["inside"] for c in held["cells"]) >= 4
    biggest = laws.joint_holdout(rows, "auc", "n_blocks", draws=30)
    assert {c["n_blocks"] for c in biggest["cells"]} == {2 * 16 * 56**2}


def test_independent_runs_are_set_against_both_kinds_of_point(rows):
    found = laws.agreement(rows, "auc")
    assert len(found) == 6
    assert all(r["agrees"] for r in found if r["kind"] == "cooldown")
    assert not any(r["agrees"] for r in found if r["kind"] == "pass")  # 0.01 below, planted


def test_rates_are_judged_by_what_the_used_one_loses(rows):
    zero = next(r for r in laws.rates(rows, "auc") if r["grade"] == "0")
    assert zero["best"] == zero["used"] == zero["rule"] == 1e-3
    assert zero["used_cost"]["value"] == 0 and not zero["at_edge"]
    other = [dict(r, lr=2e-3) if r["kind"] == "cooldown" else r for r in rows]
    assert laws.rates(other, "auc")[0]["used_cost"]["value"] > 0.001
    assert laws.rates(other, "auc")[0]["multiple"] == 0.5


@pytest.mark.parametrize("best_of_large, loss", [(2e-3, 0.0), (5e-4, 0.04)])
def test_a_rule_tuned_at_small_grades_is_checked_at_large_ones(best_of_large, loss):
    """Used: 1e-3 everywhere. Small grades want twice that; the large one wants `best_of_large`."""
    best = {"-1": 2e-3, "0": 2e-3, "1": best_of_large}
    tried, used = [], []
    for grade, optimum in best.items():
        for seed in range(3):
            used.append(dict(row(grade, seed, 30_000), lr=1e-3))
            for lr in (5e-4, 1e-3, 2e-3, 4e-3):
                value = 0.7 - 0.01 * np.log2(lr / optimum) ** 2 + 1e-4 * seed
                tried.append(dict(row(grade, seed, 10_000), kind="rate", lr=lr, auc=value))
    *small, large = laws.rates([*tried, *scored(used)], "auc")
    assert [r["tuned"] for r in (*small, large)] == [True, True, False]
    assert large["multiple"] == 2.0 and large["rule"] == 2e-3
    assert large["rule_cost"]["value"] == pytest.approx(loss) and large["rule_cost"]["seeds"] == 3
    assert large["rule_cost"]["high"] == pytest.approx(loss, abs=1e-9)
    assert small[0]["used_cost"]["value"] == pytest.approx(0.01)


def test_a_variant_is_compared_where_both_were_measured(rows):
    own, layer = laws.ablations(rows, "auc")
    assert (own["variant"], layer["variant"]) == (laws.AS_RELEASED, "model.norm=layer")
    assert [d["examples"] for d in layer["deltas"]] == sorted(POINTS, key=str)
    assert all(d["high"] < 0 for d in layer["deltas"])
    assert len(layer["laws"]) == 1 and len(own["laws"]) == 1


def test_a_study_says_what_it_cannot_fit():
    found = laws.fit_all(scored([row("0", s, n) for s in range(2) for n in POINTS[:2]]), draws=3)
    assert "1 values of 'n_blocks'" in found["joint"]["auc"]["why"]
    assert not any(found["axes"].values())
    json.dumps(found, allow_nan=False)


# ---------------------------------------------------------------------------------------- decisions


@pytest.fixture(scope="module")
def law(rows):
    return laws.joint_law(rows, "auc", draws=60)


def test_options_are_what_was_measured(rows):
    found = decisions.options(rows)
    assert [(o.grade, o.history) for o in found] == [
        ("-1", 20), ("0", 10), ("0", 20), ("0", 50), ("0", 100), ("1", 20), ("2", 20), ("3", 20),
    ]  # fmt: skip


def test_the_cheapest_reaches_the_target_and_nothing_is_cheaper(law, rows):
    choices = decisions.options(rows)
    target = truth(5e4, 2e6, 20)
    found = decisions.cheapest(law, choices, target)
    costs = [r["flops"]["value"] for r in found]
    assert costs == sorted(costs)
    first = found[0]
    o = next(o for o in choices if (o.grade, o.history) == (first["grade"], first["history"]))
    reached = decisions.expected(law, o, first["examples"]["value"])
    assert reached["value"] == pytest.approx(target)
    brute = min(
        (o.train_flops(d), o.grade, o.history)
        for o in choices
        for d in np.geomspace(1e4, 1e9, 2000)
        if truth(o.n_blocks, d, o.history) >= target
    )
    assert first["flops"]["value"] == pytest.approx(brute[0], rel=0.15)
    assert decisions.cheapest(law, choices, 0.95) == []
    assert "No measured grade" in decisions.cheapest_sentence("auc", 0.95, [])


def test_doubling_names_what_is_worth_most(law, rows):
    choices = decisions.options(rows)
    o = next(o for o in choices if (o.grade, o.history) == ("0", 20))
    found = decisions.doubling(law, choices, o, 90_000)
    gains = {r["axis"]: r for r in found}
    n = o.n_blocks
    wanted = {
        "n_blocks": truth(2 * n, 9e4, 20) - truth(n, 9e4, 20),
        "examples": truth(n, 1.8e5, 20) - truth(n, 9e4, 20),
        "history": truth(n, 9e4, 40) - truth(n, 9e4, 20),
    }
    for axis, want in wanted.items():
        assert gains[axis]["value"] == pytest.approx(want, abs=1.5e-3)
        assert gains[axis]["low"] < gains[axis]["value"] < gains[axis]["high"]
    assert found[0]["axis"] == max(wanted, key=wanted.get) == "examples"
    assert gains["examples"]["extra_flops"] == pytest.approx(o.train_flops(90_000))
    assert "More examples first" in decisions.doubling_sentence("auc", found)
    vague = [dict(found[0], low=-1.0), dict(found[1], high=1.0)]
    assert "does not decide" in decisions.doubling_sentence("auc", vague)


def test_a_larger_budget_prefers_a_larger_model(law, rows):
    choices = [o for o in decisions.options(rows) if o.history == 20]
    small, large = (decisions.best_split(law, choices, f) for f in (3e10, 3e14))
    assert int(small["grade"]) < int(large["grade"])
    assert large["beyond"] > 1  # and says that it is a guess


def test_the_frontier_drops_what_is_slower_and_no_better(law, rows):
    ms = {"0": 1.0, "1": 2.0, "2": 5.0, "-1": 3.0}
    found = decisions.frontier(law, decisions.options(rows), ms, 810_000)
    assert [(r["grade"], r["best"]) for r in found] == [
        ("0", True),
        ("1", False),
        ("-1", False),
        ("2", True),
    ]  # each at its longest history: 100 for grade 0, and 20 for the others
    same = decisions.frontier(
        law, decisions.options(rows), {f"{g}/20": v for g, v in ms.items()}, 810_000
    )
    assert [(r["grade"], r["best"]) for r in same] == [
        ("0", True),
        ("1", True),
        ("-1", False),
        ("2", True),
    ]


def test_the_whole_section_is_json_and_speaks(rows):
    found = decisions.answers(rows, latency_ms={"0": 1.0}, draws=20)
    measured, expected, doubling, target = found["sentences"][:4]
    assert measured.startswith("Best of what was measured: grade 3 at history 20 after 810 k")
    assert expected.endswith("; a measured cell.") and "the law expects auc" in expected
    assert doubling.count("extrapolated, 2.0 x outside") == 3 and "extrapolated" in target
    assert len(found["frontier"]) == 1
    json.dumps(found, allow_nan=False)


def test_the_headline_was_measured_and_long_histories_of_all_the_data_were_not(rows):
    """Without a largest-data point at history 100, the law's favourite there is no headline."""
    law, choices = laws.joint_law(rows, "auc", draws=10), decisions.options(rows)
    best = decisions.best_measured(rows, "auc", True)
    cells = {(r["grade"], r["history"], r["examples"]) for r in rows if r["kind"] == "cooldown"}
    assert (best["grade"], best["history"], best["examples"]) in cells and best["seeds"] == 3
    far = next(o for o in choices if (o.grade, o.history) == ("0", 100))
    corner = decisions.expected(law, far, 810_000)
    assert corner["where"].startswith("extrapolated") and corner["beyond"] > 4
    assert corner["where"] in decisions.sentence("auc", corner)
    lucky = dict(row("4", 0, 810_000, kind="cooldown"), auc=0.9)
    best = decisions.best_measured([*rows, lucky], "auc", True)
    assert best["grade"] == "3" and best["single"] == 0.9
    assert "A cell of one seed has 0.9000" in decisions.measured_sentence("auc", best)


def test_a_diverged_and_a_failed_trial_are_named_beside_the_answer(rows):
    broken = [dict(r) for r in rows]
    own = [r for r in broken if r["kind"] == "cooldown" and not r["variant"]]
    own[3]["auc"], own[7]["auc"] = None, 0.2
    found = decisions.answers(broken, draws=10)
    assert found["sentences"][-1].count("was set aside") == 2
    grade = laws.axis_laws(broken, "examples", "auc")
    aside = [n["text"] for f in grade for n in f["notes"] if n["kind"] == "set aside"]
    assert len(aside) == 1 and "its auc is undefined" in aside[0]
    lines = decisions.advice(broken, "auc")
    assert sum(line.startswith("note: run ") for line in lines) >= 2
    with pytest.raises(fit.FitError, match="'recall'"):
        decisions.answers(rows, "recall")
    with pytest.raises(ValueError, match="'sharpness'"):
        decisions.answers([r | {"sharpness": 1.0} for r in rows], "sharpness")


def test_latency_files_of_either_form(tmp_path):
    (tmp_path / "a.json").write_text('{"0": 1.5}')
    (tmp_path / "b.json").write_text(
        '{"rows": [{"grade": "0", "p50_ms": 1.5}, {"model": "other"}]}'
    )
    assert (
        decisions.read_latency(tmp_path / "a.json")
        == decisions.read_latency(tmp_path / "b.json")
        == {"0": 1.5}
    )
    (tmp_path / "c.json").write_text('{"rows": [{"model": "other", "p50_ms": 1.5}]}')
    with pytest.raises(ValueError, match="c.json.*distill/latency"):
        decisions.read_latency(tmp_path / "c.json")


def test_too_few_rows_are_refused():
    with pytest.raises(fit.FitError):
        decisions.answers(scored([row("0", 0, n) for n in POINTS]))
