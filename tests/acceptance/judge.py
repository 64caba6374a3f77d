"""The deterministic judge: each check is true, false or unknown, and a case Pass, Fail, Uncertain or BLOCKED.

Rules (specification 8.4): a required false or a hard violation is a Fail, all true a Pass, anything else Uncertain; a case that
acts and changes nothing is a Fail; a number on screen is right if it is the true one at the precision in which it is shown.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import re
from typing import Any

from tests.acceptance.cases import Case
from tests.acceptance.driver import Session

PASS, FAIL, UNCERTAIN, BLOCKED = "Pass", "Fail", "Uncertain", "BLOCKED"
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclasses.dataclass
class Verdict:
    """Of one case.

    Attributes:
      result: PASS, FAIL, UNCERTAIN or BLOCKED.
      reason: The first check that decided, in words.
      checks: (what was checked, True | False | None, what was found).
      recovered: A probe succeeded where the case had failed.
      belief: P(the software is at fault) after the probes; None where none was needed.
      seconds: It took.
    """

    result: str
    reason: str
    checks: list[tuple[str, bool | None, str]] = dataclasses.field(default_factory=list)
    recovered: bool = False
    belief: float | None = None
    seconds: float = 0.0


def kleene(values: Sequence[bool | None]) -> str:
    """Any false: Fail. All true: Pass. Else Uncertain.

    Raises:
      ValueError: Nothing was checked.
    """
    if not values:
        raise ValueError("a case without a check cannot be judged; give it an assert")
    if any(v is False for v in values):
        return FAIL
    return PASS if all(values) else UNCERTAIN


def numbers(text: str) -> list[tuple[float, int]]:
    """(value, decimals shown) of every number in a text; "1,234.50" has two decimals."""
    out = []
    for found in NUMBER.findall(text):
        plain = found.replace(",", "").replace("−", "-")
        mantissa, _, exponent = plain.lower().partition("e")
        decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
        out.append((float(plain), max(decimals, 0)))
    return out


def agrees(shown: float, decimals: int, true: float, atol: float = 0.0) -> bool:
    """|shown - true| <= half a unit of the last digit shown, plus atol; a NaN agrees with nothing."""
    return abs(shown - true) <= 0.5 * 10**-decimals * (1 + 1e-9) + atol


class Judge:
    """Judges the page of a session.

    Args:
      session: On the page, its steps done.
      oracles: name -> function that computes the truth from files, never from the page.
      effect: Whether a step changed what can be seen, or sent a request; None where there was no step.
      regions: css -> text before the steps, of `changed` and `unchanged`.
    """

    def __init__(
        self,
        session: Session,
        oracles: Mapping[str, Any],
        effect: bool | None,
        regions: Mapping[str, str],
    ):
        self.session, self.oracles, self.effect, self.regions = session, oracles, effect, regions

    def check(self, spec: Mapping[str, Any]) -> tuple[str, bool | None, str]:
        """One check: its text, its truth, what was found."""
        ((kind, how),) = spec.items()
        try:
            truth, found = getattr(self, f"_{kind}")(how)
        except LookupError as e:  # searched for and not there
            truth, found = False, str(e.args[0]) if e.args else "not found"
        except Exception as e:
            truth, found = None, f"could not be measured: {str(e).splitlines()[0]}"
        return f"{kind} {how}", truth, found

    def verdict(self, case: Case) -> Verdict:
        """Of the page as it is now."""
        checks = [self.check(c) for c in case.checks]
        checks += [(name, *getattr(self, f"_hard_{name}")()) for name in case.hard]
        if case.acts and self.effect is not None:
            found = "changed" if self.effect else "nothing changed"
            checks.append(("it has an effect", self.effect, found))
        result = kleene([truth for _, truth, _ in checks])
        wanted = {FAIL: False, UNCERTAIN: None}.get(result, True)
        reason = next((f"{what}: {found}" for what, truth, found in checks if truth is wanted), "")
        return Verdict(result, "" if result == PASS else reason, checks)

    # ---- what is on the page

    def _one(self, where):
        found = self.session.find(where)
        if not found.count():
            raise LookupError(f"{where} is not on the page")
        return found.first

    def _text_of(self, where) -> str:
        # an element of SVG has no innerText
        text = self._one(where).evaluate("e => e.innerText ?? e.textContent")
        return " ".join(text.split())

    def _visible(self, where):
        found = self.session.find(where)
        shown = [i for i in range(min(found.count(), 20)) if found.nth(i).is_visible()]
        return bool(shown), f"{len(shown)} shown"

    def _hidden(self, where):
        shown = self._visible(where)[0]
        return not shown, "shown" if shown else "not shown"

    def _text(self, how):
        text = self._text_of(how["at"])
        tests = {
            "is": lambda t: text == t,
            "contains": lambda t: t in text,
            "lacks": lambda t: t not in text,
            "matches": lambda t: re.search(t, text) is not None,
        }
        return all(test(str(how[k])) for k, test in tests.items() if k in how), text[:300]

    def _value(self, how):
        value = self._one(how["at"]).input_value()
        return value == str(how["is"]), value

    def _attribute(self, how):
        value = self._one(how["at"]).get_attribute(how["name"])
        return value == how["is"], str(value)

    def _count(self, how):
        found = self.session.find(how["at"])
        shown = sum(found.nth(i).is_visible() for i in range(found.count()))
        want = self._truth(how)
        return shown == want, f"{shown}, {want} expected"

    def _number(self, how):
        """The only number of an element, against a value or an oracle."""
        text = self._text_of(how["at"])
        found = numbers(text)
        if len(found) != 1:
            return False, f"{text[:100]!r} holds {len(found)} numbers"
        want = self._truth(how)
        return agrees(*found[0], want, how.get("atol", 0.0)), f"{text[:100]!r}, {want} is true"

    def _numbers(self, how):
        """Every number of a region, in order: none may stand there that the oracle does not know."""
        text = self._text_of(how["at"])
        found, want = numbers(text), list(self._truth(how))
        right = len(found) == len(want) and all(
            agrees(*f, w, how.get("atol", 0.0)) for f, w in zip(found, want, strict=True)
        )
        return right, f"{[f for f, _ in found]}, {want} is true"

    # ---- tables

    def _cells(self, table: str) -> tuple[list[str], list[list[str]]]:
        """Headings and shown rows."""
        self._one(table)
        head, body = self.session.page.evaluate(
            """css => { const t = document.querySelector(css), text = e => e.innerText.trim().replace(/\\s+/g, ' ');
            return [[...t.querySelectorAll('thead th')].map(text), [...t.querySelectorAll('tbody tr')].filter(r => r.offsetParent !== null)
            .map(r => [...r.children].map(text))] }""",
            table,
        )
        return [h.rstrip(" ▲▼") for h in head], body

    def _rows(self, how):
        found = len(self._cells(how["table"])[1])
        want = self._truth(how)
        return found == want, f"{found} rows, {want} expected"

    def _column_cells(self, how) -> list[str]:
        head, body = self._cells(how["table"])
        if how["column"] not in head:
            raise LookupError(f"no column {how['column']!r}; there are {', '.join(head)}")
        return [row[head.index(how["column"])] for row in body]

    def _column(self, how):
        """A column equals a list: texts to the letter, numbers at the precision shown."""
        found, want = self._column_cells(how), list(self._truth(how))
        right = len(found) == len(want)
        for cell, true in zip(found, want, strict=False):
            if isinstance(true, str):
                right &= cell == true
            else:
                shown = numbers(cell)
                right &= len(shown) == 1 and agrees(*shown[0], true, how.get("atol", 0.0))
        return right, f"{found[:12]}, {want[:12]} is true"

    def _sorted(self, how):
        cells = self._column_cells(how)
        values = [numbers(c)[0][0] for c in cells] if how.get("numeric", True) else cells
        want = sorted(values, reverse=how["order"] == "desc")
        return values == want and len(values) > 1, f"{values[:12]}"

    def _download(self, how):
        """The last downloaded CSV: its name and its rows, of texts or numbers."""
        if not self.session.downloads:
            raise LookupError("nothing was downloaded")
        name, text = self.session.downloads[-1]
        rows = list(csv.reader(io.StringIO(text)))
        want = [[str(x) for x in row] for row in self._truth(how)]
        named = re.fullmatch(how.get("name", ".*"), name) is not None
        return (
            named and rows == want,
            f"{name}: {len(rows)} rows, {len(want)} expected; the last {rows[-1:]}",
        )

    # ---- what became of it

    def _changed(self, how):
        now, before = self.region(how["region"]), self.regions.get(how["region"])
        return now != before, now[:200]

    def _unchanged(self, how):
        changed, now = self._changed(how)
        return not changed, now

    def region(self, css: str) -> str:
        found = self.session.page.locator(css)
        return "" if not found.count() else found.first.evaluate("e => e.innerHTML")

    def _url(self, how):
        url = self.session.page.url
        return re.search(how["matches"], url) is not None, url

    def _no_overflow(self, how):
        wide = self.session.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return wide <= 0, f"{wide} pixels too wide"

    def _loads_within(self, how):
        took = self.session.page.evaluate("performance.getEntriesByType('navigation')[0].duration")
        return took <= how["ms"], f"{took:.0f} ms"

    def _hard_no_console_error(self):
        # A refused favicon is the browser's own doing.
        errors = [e for e in self.session.console if "favicon" not in e]
        return not errors, "; ".join(errors)[:300]

    def _hard_no_http_5xx(self):
        bad = [n["url"] for n in self.session.network if n["status"] >= 500]
        return not bad, ", ".join(bad)

    def _hard_no_broken_image(self):
        broken = self.session.page.evaluate(
            "[...document.images].filter(i => i.complete && !i.naturalWidth && i.offsetParent !== null).map(i => i.src)"
        )
        return not broken, ", ".join(broken)[:300]

    def _hard_loopback_only(self):
        return not self.session.refused, ", ".join(self.session.refused)[:300]

    def _truth(self, how: Mapping[str, Any]):
        """`is`, or what the oracle says."""
        if "oracle" not in how:
            return how["is"]
        if how["oracle"] not in self.oracles:
            raise KeyError(f"no oracle {how['oracle']!r}")
        return self.oracles[how["oracle"]](**how.get("args", {}))


def regions_of(case: Case) -> list[str]:
    """The css of its `changed` and `unchanged` checks."""
    return [c[k]["region"] for c in case.checks for k in ("changed", "unchanged") if k in c]
