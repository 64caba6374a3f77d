"""How good is the acceptance system itself? Every defect is planted, the cases are tried, and what they say is compared with the truth.

A defect is found if a case fails; it is localised if a failing case belongs to a feature that the defect breaks. A false fail
is a case that fails on the application as it is. Labels are planted, not human.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.acceptance import scores
from tests.acceptance.cases import Case
from tests.acceptance.judge import FAIL, PASS, Verdict


def measured(
    cases: Sequence[Case],
    clean: Mapping[str, Verdict],
    broken: Mapping[str, Mapping[str, Verdict]],
    breaks: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    """Figures of one application.

    Args:
      cases: All that were tried.
      clean: {case: verdict} without a defect.
      broken: {defect: {case: verdict}}.
      breaks: {defect: the features it breaks}.
    """  # fmt: skip
    feature = {c.id: c.feature for c in cases}
    failed = {d: [c for c, v in vs.items() if v.result == FAIL] for d, vs in broken.items()}
    found = [d for d, cs in failed.items() if cs]
    localised = [d for d in found if any(feature[c] in breaks[d] for c in failed[d])]
    stray = {d: [c for c in failed[d] if feature[c] not in breaks[d]] for d in found}
    # A feature of a build is labelled broken or whole; what the cases say of it is their score.
    pairs = []
    for d, vs in [("", clean), *broken.items()]:
        for f in dict.fromkeys(feature.values()):
            own = [vs[c].result == PASS for c in feature if feature[c] == f and c in vs]
            if not own:  # was not tried
                continue
            pairs.append((f"{d}:{f}", all(own), f not in breaks.get(d, ())))
    return dict(
        defects=len(broken),
        recall=len(found) / len(broken),
        missed=sorted(set(broken) - set(found)),
        localised=len(localised) / max(len(found), 1),
        strayed=sum(map(len, stray.values())),
        false_fails=sum(v.result == FAIL for v in clean.values()) / len(clean),
        flaky=sum(v.recovered for v in clean.values()) / len(clean),
        cases=len(clean),
        pairs=pairs,
    )


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table, a row an application, and agreement over all of them."""
    lines = [
        "| application | cases | defects | recall | localised | false fails | missed |",
        "|---|---|---|---|---|---|---|",
    ]
    for app, m in found.items():
        lines.append(
            f"| {app} | {m['cases']} | {m['defects']} | {m['recall']:.2f} | {m['localised']:.2f} | {m['false_fails']:.3f} | "
            f"{', '.join(m['missed']) or 'none'} |"
        )
    pairs = [(f"{app}{name}", v, h) for app, m in found.items() for name, v, h in m["pairs"]]
    a = scores.agreement(pairs)
    show: Callable[[str], str] = lambda k: "none" if a[k] is None else f"{a[k]:.3f}"  # noqa: E731
    lines.append("")
    lines.append(
        f"Features of all builds ({a['cases']}, of which {a['fails']} broken by a planted defect): accuracy {show('accuracy')}, kappa "
        f"{show('kappa')}, Pearson {show('pearson')}, precision and recall of broken ones {show('defect_precision')} and {show('defect_recall')}."
    )
    return "\n".join(lines)
