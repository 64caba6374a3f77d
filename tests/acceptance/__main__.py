"""python -m tests.acceptance run|defects|generate|agent|label|agree|gate"""

import argparse
import json
import pathlib
import sys
import time

from tests.acceptance import agent, apps, bench, driver, generate, label, planted, running, scores
from tests.acceptance import cases as case_files
from tests.acceptance.cases import CaseError
from tests.acceptance.judge import FAIL, PASS


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _chosen(app: str, feature: str) -> list[case_files.Case]:
    own = [c for c in case_files.read_all(app) if c.feature.startswith(feature)]
    if not own:
        raise CaseError(f"no feature of {app} begins with --feature={feature}")
    return own


def run(args) -> int:
    """The cases of applications, with evidence; 1 if one failed."""
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows, began = [], time.monotonic()
    with driver.browser() as browser:
        for repeat in range(args.repeat):
            for name in args.app:
                own = _chosen(name, args.feature)
                with apps.APPLICATIONS[name]() as app:
                    found = running.run_cases(
                        app, own, browser, out if repeat == 0 else None, tell=_tell
                    )
                rows += running.rows(name, own, found, repeat)
        version = browser.version
    running.write_rows(out / "results.jsonl", rows)
    facts = {"browser": version, "command": sys.argv, "files": driver.manifest(out)}
    (out / "manifest.json").write_text(json.dumps(facts, indent=1))
    print(bench.leaderboard(rows))
    slow = sorted(rows, key=lambda r: -r["seconds"])[:5]
    print(
        f"\n{time.monotonic() - began:.0f} s; slowest: "
        + ", ".join(f"{r['case']} {r['seconds']:.1f} s" for r in slow)
    )
    return int(any(r["result"] == FAIL for r in rows))


def defects(args) -> int:
    """Recall of planted defects and false fails; 1 if below the targets. --own tries a defect's own features only."""
    found = {}
    with driver.browser() as browser:
        for name in args.app:
            own, seen = case_files.read_all(name), {}
            for defect in ("", *apps.defects_of(name)):
                broken = apps.defects_of(name).get(defect, ())
                tried = [c for c in own if not defect or not args.own or c.feature in broken]
                with apps.APPLICATIONS[name](defect=defect) as app:
                    seen[defect] = running.run_cases(app, tried, browser, probing=not defect)
                _tell(
                    f"{name} {defect or 'as it is'}: {sum(v.result == FAIL for v in seen[defect].values())} fail"
                )
            clean = seen.pop("")
            found[name] = planted.measured(own, clean, seen, apps.defects_of(name))
    print(planted.table(found))
    total = sum(m["defects"] for m in found.values())
    recall = sum(m["defects"] * m["recall"] for m in found.values()) / total
    false = sum(m["cases"] * m["false_fails"] for m in found.values()) / sum(
        m["cases"] for m in found.values()
    )
    print(f"\nrecall {recall:.3f} of {total} planted defects, false fails {false:.3f}")
    return int(recall < 0.90 or false > 0.02)


def generated(args) -> int:
    """Prints cases from the feature manifests."""
    for name in args.app:
        print(generate.proposed(name))
    return 0


def try_by_agent(args) -> int:
    """An agent tries the cases; prints its verdicts beside the deterministic ones."""
    endpoint = agent.Endpoint.of_environment()
    for name in args.app:
        own = _chosen(name, args.feature)
        words = {c.id: f"Task: {c.task} Expected Result: {c.expected}" for c in own}
        with driver.browser() as browser, apps.APPLICATIONS[name]() as app:
            verdicts = running.run_cases(app, own, browser, probing=False)
            session = driver.Session(browser, app.url)
            session.do({"goto": app.start("")})
            report = agent.explore(session, words, endpoint.ask)
            session.close()
        for c in own:
            said, evidence = report.verdicts[c.id]
            final = agent.settled(verdicts[c.id].result, said, c.kind == "visual")
            print(
                f"{name} {c.id}: {final} (judge {verdicts[c.id].result}, agent {said}: {evidence})"
            )
        print(f"{name}: ended by {report.ended} after {len(report.steps)} steps")
    return 0


def _rows(out: str) -> list[dict]:
    path = pathlib.Path(out) / "results.jsonl"
    if not path.exists():
        raise CaseError(
            f"{path} does not exist; run the cases first: python -m tests.acceptance run --out={out}"
        )
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask_labels(args) -> int:
    """A page where somebody labels."""
    server = label.serve(
        [r for r in _rows(args.out) if r["repeat"] == 0], pathlib.Path(args.out), args.port
    )
    _tell(f"label at http://127.0.0.1:{server.server_port}; Ctrl-C ends")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0


def agree(args) -> int:
    """Agreement of verdicts with labels."""
    labels = label.read_labels(pathlib.Path(args.out) / "labels.json")
    rows = [r for r in _rows(args.out) if r["repeat"] == 0 and label.key_of(r) in labels]
    if not rows:
        raise CaseError(
            f"{args.out}/labels.json has no label; python -m tests.acceptance label --out={args.out}"
        )
    pairs = [(r["feature"], r["result"] == PASS, labels[label.key_of(r)] == PASS) for r in rows]
    found = scores.agreement(pairs)
    print(
        json.dumps(found, indent=1)
        if found["sufficient"]
        else f"insufficient: {found['cases']} labels with {found['fails']} Fails; {scores.SUFFICIENT[0]} with {scores.SUFFICIENT[1]} are needed"
    )
    return 0


def gate(args) -> int:
    """0 if a release may go out: score, coverage, flaky share, and every feature acted on."""
    rows, bad = _rows(args.out), []
    for name in dict.fromkeys(r["app"] for r in rows):
        s = scores.summary([r for r in rows if r["app"] == name])
        heavy = [
            r["case"]
            for r in rows
            if r["app"] == name and r["feature_weight"] >= 3 and r["result"] == FAIL
        ]
        for wrong, why in (
            (s["score"] < args.min_score, f"score {s['score']:.3f} is below {args.min_score}"),
            (s["coverage"] < 0.98, f"coverage {s['coverage']:.3f} is below 0.98"),
            (s["flaky"] > 0.02, f"{s['flaky']:.3f} of its cases are flaky"),
            (bool(heavy), f"cases of its weightiest features fail: {', '.join(heavy)}"),
            (
                bool(idle := case_files.without_acting(case_files.read_all(name))),
                f"nobody acts on {', '.join(idle)}",
            ),
        ):
            if wrong:
                bad.append(f"{name}: {why}")
    print("\n".join(bad) or "accepted")
    return int(bool(bad))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (
        ("run", run), ("defects", defects), ("generate", generated), ("agent", try_by_agent), ("label", ask_labels),
        ("agree", agree), ("gate", gate),
    ):  # fmt: skip
        one = commands.add_parser(name, help=function.__doc__)
        one.set_defaults(function=function)
        known = list(apps.APPLICATIONS)
        if name in ("run", "defects", "generate", "agent"):
            one.add_argument(
                "--app", action="append", choices=known, help="one or several; default: all"
            )
            one.set_defaults(known=known)
        if name in ("run", "agent"):
            one.add_argument("--feature", default="", help="only features that begin so")
        if name in ("run", "label", "agree", "gate"):
            one.add_argument(
                "--out", default="runs/acceptance", help="folder of results and evidence"
            )
        if name == "run":
            one.add_argument("--repeat", type=int, default=1)
        if name == "defects":
            one.add_argument(
                "--own",
                action="store_true",
                help="with a defect, only cases of features that it breaks",
            )
        if name == "label":
            one.add_argument("--port", type=int, default=0)
        if name == "gate":
            one.add_argument("--min-score", type=float, default=0.95)
    args = parser.parse_args(argv)
    if "known" in args:
        args.app = args.app or args.known
        if args.command != "generate" and driver.missing():
            _tell(f"error: {driver.missing()}")
            return 1
    try:
        return args.function(args)
    except (CaseError, agent.AgentError) as e:
        _tell(f"error: {e}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
