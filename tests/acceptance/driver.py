"""A browser that does the steps of a case and keeps what it saw.

Debian's Chromium through Playwright: `apt-get install chromium`, `pip install 'recjax[acceptance]'`. RECJAX_CHROMIUM names another
executable. Every case has a fresh profile, one viewport, one locale and time zone, no animation, and no network beyond loopback.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
from typing import Any
import urllib.parse

FLAGS = (
    "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--force-device-scale-factor=1", "--hide-scrollbars",
)  # fmt: skip
VIEWPORT = {"width": 1280, "height": 800}
QUIET_MS, MOST_MS, STEP_MS = 60, 3000, 1500
LOOPBACK = {"127.0.0.1", "localhost", "::1", ""}


def chromium() -> str:
    """The browser's executable; "" where there is none."""
    own = os.environ.get("RECJAX_CHROMIUM", "")
    return own or shutil.which("chromium") or shutil.which("chromium-browser") or ""


def missing() -> str:
    """Why no browser can be driven here; "" if one can."""
    try:
        import playwright  # noqa: F401
    except ModuleNotFoundError:
        return "playwright is not installed: pip install 'recjax[acceptance]'"
    return (
        ""
        if chromium()
        else "no chromium on the path: apt-get install chromium, or set RECJAX_CHROMIUM"
    )


@contextlib.contextmanager
def browser():
    """A headless Chromium, `playwright.sync_api.Browser`."""
    from playwright.sync_api import sync_playwright

    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_playwright() as p:
        running = p.chromium.launch(executable_path=chromium(), args=[*FLAGS, *root])
        try:
            yield running
        finally:
            running.close()


class StepFailed(Exception):
    """A step could not be done as a person would do it: nothing to click, hidden, switched off."""


@dataclasses.dataclass
class Seen:
    """The page at one moment: what the effect rule compares."""

    url: str
    dom: str
    tree: str
    requests: int

    def same(self, other: "Seen") -> bool:
        return (self.url, self.dom, self.tree, self.requests) == (
            other.url, other.dom, other.tree, other.requests,
        )  # fmt: skip


class Session:
    """One fresh profile on one page.

    Attributes:
      page: Playwright's.
      console: Errors that the page raised or logged.
      network: {method, url, status} of every answer.
      downloads: Names and contents, in order.
    """

    def __init__(self, running, base: str, patience: float = 1.0):
        self.base, self.patience = base, patience
        self.console: list[str] = []
        self.network: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.downloads: list[tuple[str, str]] = []
        self._open = 0
        self._context = running.new_context(
            viewport=VIEWPORT,
            locale="en-GB",
            timezone_id="UTC",
            reduced_motion="reduce",
            accept_downloads=True,
        )
        self._context.set_default_timeout(STEP_MS * patience)
        self._context.route("**/*", self._route)
        self.page = self._context.new_page()
        self.page.on("pageerror", lambda e: self.console.append(f"uncaught: {e}"))
        self.page.on(
            "console", lambda m: self.console.append(m.text) if m.type == "error" else None
        )
        self.page.on("response", self._answered)
        self.page.on("requestfinished", lambda _: self._count(-1))
        self.page.on("requestfailed", lambda _: self._count(-1))
        self.page.on("request", lambda _: self._count(1))

    def close(self) -> None:
        self._context.close()

    def _count(self, by: int) -> None:
        self._open = max(0, self._open + by)

    def _route(self, route) -> None:
        url = route.request.url
        if urllib.parse.urlsplit(url).scheme in ("http", "https") and _host(url) not in LOOPBACK:
            self.refused.append(url)
            route.abort()
        else:
            route.continue_()

    def _answered(self, response) -> None:
        self.network.append(
            {"method": response.request.method, "url": response.url, "status": response.status}
        )

    # ---- seeing

    def seen(self) -> Seen:
        dom = re.sub(r"<script\b.*?</script>", "", self.page.content(), flags=re.S)
        values = self.page.evaluate(
            "[...document.querySelectorAll('input,select,textarea')].map(e => e.type == 'file' ? e.files.length : e.checked + '|' + e.value).join(';')"
        )
        return Seen(self.page.url, dom, f"{self.tree()}\n{values}", len(self.network))

    def tree(self) -> str:
        """The accessibility tree, as Playwright writes it."""
        # tables of thousands of cells take seconds
        return self.page.locator("body").aria_snapshot(timeout=30_000)

    def settle(self, quiet_ms: float = QUIET_MS, most_ms: float = MOST_MS) -> None:
        """Waits until no request is open and the page is the same twice; never a bare sleep."""
        end = time.monotonic() + most_ms * self.patience / 1000
        before = None
        while time.monotonic() < end:
            now = hashlib.sha256(self.page.content().encode()).hexdigest()
            if now == before and not self._open:
                return
            before = now
            self.page.wait_for_timeout(quiet_ms * self.patience)

    def find(self, where: Mapping[str, Any] | str):
        """A locator of {role, name} | {label} | {testid} | {text} | {css}, or a CSS text."""
        if isinstance(where, str):
            return self.page.locator(where)
        nth = where.get("nth")
        if "role" in where:
            name = where.get("name")
            found = self.page.get_by_role(where["role"], name=name, exact=where.get("exact", True))
        elif "label" in where:
            found = self.page.get_by_label(where["label"], exact=True)
        elif "testid" in where:
            found = self.page.get_by_test_id(where["testid"])
        elif "text" in where:
            found = self.page.get_by_text(where["text"])
        else:
            found = self.page.locator(where["css"])
        return found if nth is None else found.nth(nth)

    # ---- doing

    def do(self, step: Mapping[str, Any]) -> None:
        """One step, and what follows from it.

        Raises:
          StepFailed: A person could not have done it.
        """
        ((kind, how),) = step.items()
        try:
            getattr(self, f"_do_{kind}")(how)
        except StepFailed:
            raise
        except Exception as e:  # Playwright's: no such element, not to be seen, covered, detached
            raise StepFailed(f"{kind} {json.dumps(how)}: {str(e).splitlines()[0]}") from None
        if kind != "settle":
            self.settle()

    def _do_goto(self, path: str) -> None:
        self.page.goto(urllib.parse.urljoin(self.base, path), timeout=10_000)

    def _do_click(self, where) -> None:
        self.find(where).click()

    def _do_fill(self, how) -> None:
        self.find(how).fill(str(how["value"]))

    def _do_select(self, how) -> None:
        self.find(how).select_option(str(how["value"]))

    def _do_press(self, how) -> None:
        key = how if isinstance(how, str) else how["key"]
        if isinstance(how, str):
            self.page.keyboard.press(key)
        else:
            self.find(how).press(key)

    def _do_check(self, how) -> None:
        self.find(how).set_checked(how.get("checked", True))

    def _do_focus(self, where) -> None:
        self.find(where).focus()

    def _do_hover(self, where) -> None:
        self.find(where).hover()

    def _do_upload(self, how) -> None:
        files = [
            {"name": f["name"], "mimeType": f.get("type", "text/csv"), "buffer": f["text"].encode()}
            for f in how["files"]
        ]
        self.find(how).set_input_files(files)

    def _do_download(self, where) -> None:
        with self.page.expect_download(timeout=10_000 * self.patience) as waiting:
            self.find(where).click()
        path = waiting.value.path()
        self.downloads.append((waiting.value.suggested_filename, pathlib.Path(path).read_text()))

    def _do_viewport(self, how) -> None:
        self.page.set_viewport_size({"width": how["width"], "height": how["height"]})

    def _do_settle(self, how) -> None:
        self.settle(how.get("quiet_ms", QUIET_MS), how.get("max_ms", MOST_MS))


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or ""


class Evidence:
    """Files that show what was seen, and a manifest of their SHA-256."""

    def __init__(self, folder: pathlib.Path | None):
        self.folder = folder
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def keep(self, name: str, session: Session) -> None:
        """The page now: screenshot, DOM, accessibility tree."""
        if not self.folder:
            return
        self._write(f"{name}.png", session.page.screenshot(full_page=True))
        now = session.seen()
        self._write(f"{name}.html", now.dom.encode())
        self._write(f"{name}.tree.txt", now.tree.encode())

    def close(self, session: Session, actions: list[dict]) -> None:
        """Console, network and actions of the whole case."""
        if not self.folder:
            return
        rows = {"console": session.console, "network": session.network, "actions": actions}
        for name, value in rows.items():
            self._write(f"{name}.json", json.dumps(value, indent=1).encode())

    def _write(self, name: str, data: bytes) -> None:
        assert self.folder
        (self.folder / name).write_bytes(data)


def manifest(folder: pathlib.Path) -> dict[str, str]:
    """{file: SHA-256} of everything under a folder but the manifest itself."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    }
