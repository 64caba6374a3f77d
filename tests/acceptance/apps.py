"""The applications that can be tried: five small ones with planted defects, and what else runs on loopback."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import http.server
import json
import pathlib
import threading
from typing import Any

from tests.acceptance import judge
from tests.acceptance.cases import HERE
from tests.acceptance.running import Application

APPS = HERE / "applications"

# application -> defect -> the features that it breaks; `?defect=NAME` switches it on.
DEFECTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "form": {
        "wrong_total": ("form.total",),
        "discount_ignored": ("form.total",),
        "cents_lost": ("form.total",),
        "mail_unchecked": ("form.checks",),
        "negative_accepted": ("form.checks",),
        "error_stays": ("form.checks",),
        "dead_button": ("form.orders", "form.checks"),
        "console_exception": ("form.orders", "form.checks"),
        "not_kept": ("form.orders",),
        "keyboard_dead": ("form.orders",),
    },
    "table": {
        "case_matters": ("table.filter",),
        "filter_ignored": ("table.filter",),
        "stale_count": ("table.filter",),
        "nan_shown": ("table.filter",),
        "wrong_sort": ("table.order",),
        "state_lost": ("table.order", "table.filter"),
        "page_short": ("table.pages",),
        "next_dead": ("table.pages",),
        "price_rounded": ("table.pages", "table.order"),
        "last_row_missing": ("table.download",),
    },
    "chart": {
        "wrong_total": ("chart.tiles",),
        "wrong_mean": ("chart.tiles",),
        "worst_for_best": ("chart.tiles",),
        "sign_lost": ("chart.table",),
        "stale_chart": ("chart.bars",),
        "axes_swapped": ("chart.bars",),
        "bar_missing": ("chart.bars",),
        "tip_off_by_one": ("chart.tip",),
        "keyboard_dead": ("chart.tip",),
        "toggle_dead": ("chart.running",),
    },
    "game": {
        "always_x": ("game.turns",),
        "overwrites": ("game.turns",),
        "keyboard_dead": ("game.turns",),
        "diagonal_missed": ("game.end",),
        "wrong_winner": ("game.end",),
        "draw_missed": ("game.end",),
        "plays_on": ("game.end",),
        "score_stuck": ("game.score",),
        "undo_dead": ("game.undo",),
        "again_dead": ("game.undo", "game.score"),
    },
    "upload": {
        "quotes_ignored": ("upload.rows",),
        "heading_counted": ("upload.rows", "upload.means"),
        "last_row_lost": ("upload.rows", "upload.means"),
        "size_wrong": ("upload.rows",),
        "blank_is_zero": ("upload.means",),
        "wrong_mean": ("upload.means",),
        "empty_accepted": ("upload.refused",),
        "any_accepted": ("upload.refused",),
        "ragged_accepted": ("upload.refused",),
        "remove_dead": ("upload.remove",),
    },
}


# ---- what is true, from the files that the pages read


def _order_total(plan: str, months: int) -> float:
    price = {"Small": 9.5, "Large": 24.0}[plan]
    return price * months * (0.9 if months >= 12 else 1.0)


def _read(name: str) -> Any:
    return json.loads((APPS / name).read_text())


def _products(word: str = "", category: str = "", sort: str = "", down: bool = False) -> list[dict]:
    found = [p for p in _read("products.json") if word.lower() in p["name"].lower()]
    found = [p for p in found if category in ("", p["category"])]
    return sorted(found, key=lambda p: p[sort], reverse=down) if sort else found


def _product_column(column: str, page: int = 0, **chosen) -> list:
    return [p[column] for p in _products(**chosen)[10 * page : 10 * page + 10]]


def _product_csv(**chosen) -> list[list]:
    head = ["name", "category", "price", "stock"]
    # as JavaScript writes numbers: 12.5 for 12.50 and 12 for 12.0
    return [
        head,
        *(
            [f"{p[c]:g}" if c == "price" and p[c] == int(p[c]) else p[c] for c in head]
            for p in _products(**chosen)
        ),
    ]


def _sales(region: str, running: bool = False) -> list[int]:
    out, total = [], 0
    for value in _read("sales.json")[region].values():
        total += value
        out.append(total if running else value)
    return out


ORACLES: Mapping[str, Callable[..., Any]] = {
    "order.total": _order_total,
    "products.count": lambda **chosen: len(_products(**chosen)),
    "products.mean": lambda **chosen: (lambda p: sum(x["price"] for x in p) / len(p))(
        _products(**chosen)
    ),
    "products.column": _product_column,
    "products.csv": _product_csv,
    "sales.values": _sales,
    "sales.total": lambda region: sum(_sales(region)),
    "sales.mean": lambda region: sum(_sales(region)) / len(_sales(region)),
    "sales.count": lambda region: len(_sales(region)),
}


# ---- running them


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def small(name: str, defect: str = "") -> Iterator[Application]:
    """One of the five, with a defect or none.

    Raises:
      KeyError: No such application or defect.
    """
    if defect and defect not in DEFECTS[name]:
        raise KeyError(f"{name} has no defect {defect!r}; it has {', '.join(DEFECTS[name])}")
    with serving_folder(APPS) as url:
        yield Application(name, f"{url}/{name}.html", ORACLES, f"defect={defect}" if defect else "")


@contextlib.contextmanager
def serving_folder(folder: pathlib.Path) -> Iterator[str]:
    """Files of a folder on a free port of loopback."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _console(defect: str = ""):
    from tests.acceptance.console_app import console  # imports JAX

    return console(defect)


STUDY = HERE.parents[1] / "scaling" / "studies" / "complete_journey"


def _trials() -> list[dict]:
    return [json.loads(line) for line in (STUDY / "trials.jsonl").read_text().splitlines()]


def _best_measured() -> str:
    from scaling.law import decisions

    return decisions.measured_sentence("auc", decisions.best_measured(_trials(), "auc", True))


REPORT_ORACLES: Mapping[str, Callable[..., Any]] = {
    "trials.count": lambda **like: sum(
        all(str(r.get(k)) == str(v) for k, v in like.items()) for r in _trials()
    ),
    "trials.auc": lambda **like: [
        r["auc"] for r in _trials() if all(str(r.get(k)) == str(v) for k, v in like.items())
    ],
    "best.numbers": lambda: [n for n, _ in judge.numbers(_best_measured())],
}


@contextlib.contextmanager
def _report(defect: str = "") -> Iterator[Application]:
    """The report of the committed study."""
    if defect:
        raise KeyError("no defect is planted in the report")
    with serving_folder(STUDY) as url:
        yield Application("report", f"{url}/report.html", REPORT_ORACLES)


APPLICATIONS: dict[str, Callable[..., contextlib.AbstractContextManager[Application]]] = {
    **{name: functools.partial(small, name) for name in DEFECTS},
    "console": _console,
    "report": _report,
}


def defects_of(name: str) -> Mapping[str, tuple[str, ...]]:
    """Defect -> the features that it breaks, of an application."""
    if name == "report":
        return {}
    if name == "console":
        from tests.acceptance.console_app import DEFECTS as own

        return own
    return DEFECTS[name]
