"""A page on loopback where somebody labels what was seen, without being told what the judge said."""

from collections.abc import Mapping, Sequence
import html
import http.server
import json
import pathlib
from typing import Any
import urllib.parse

from tests.acceptance.judge import FAIL, PASS

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Label {done} of {total}</title>
<style>body{{font:16px system-ui;max-width:70rem;margin:1rem auto}}img{{max-width:49%;border:1px solid #999}}button{{font-size:1.2rem}}</style>
<h1>{case}</h1><p><b>Task:</b> {task}</p><p><b>Expected:</b> {expected}</p><p>{done} of {total} are labelled.</p>
<form method="post"><input type="hidden" name="key" value="{key}"><button name="label" value="Pass">Pass</button> <button name="label" value="Fail">Fail</button></form>
{pictures}</html>"""


def key_of(row: Mapping[str, Any]) -> str:
    return f"{row['app']}/{row['case']}"


def read_labels(path: pathlib.Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.exists() else {}


def serve(
    rows: Sequence[Mapping[str, Any]], folder: pathlib.Path, port: int = 0
) -> http.server.ThreadingHTTPServer:
    """A server that asks for the labels of rows and keeps them in <folder>/labels.json; its `serve_forever` runs it.

    Args:
      rows: Of results.jsonl.
      folder: Of the run; screenshots are read from evidence/<app>/<case>.
      port: Of loopback; 0: a free one.
    """
    path, todo = folder / "labels.json", {key_of(r): r for r in rows}

    class Asks(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            labels = read_labels(path)
            left = [k for k in todo if k not in labels]
            if self.path.startswith("/evidence/"):
                file = (folder / urllib.parse.unquote(self.path[1:])).resolve()
                if (
                    folder.resolve() not in file.parents
                    or file.suffix != ".png"
                    or not file.is_file()
                ):
                    return self.send_error(404)
                return self._send(file.read_bytes(), "image/png")
            if not left:
                return self._send(b"<!doctype html><title>Done</title><h1>All are labelled</h1>")
            row = todo[left[0]]
            shots = sorted((folder / "evidence" / row["app"] / row["case"]).glob("*.png"))
            pictures = "".join(
                f'<img src="/{s.relative_to(folder)}" alt="{s.stem}">' for s in shots
            )
            text = {k: html.escape(str(row[k])) for k in ("case", "task", "expected")}
            page = PAGE.format(
                done=len(todo) - len(left),
                total=len(todo),
                key=html.escape(left[0]),
                pictures=pictures,
                **text,
            )
            return self._send(page.encode())

        def do_POST(self):
            length = min(int(self.headers.get("content-length", 0)), 4096)
            form = urllib.parse.parse_qs(self.rfile.read(length).decode())
            key, label = form.get("key", [""])[0], form.get("label", [""])[0]
            if key not in todo or label not in (PASS, FAIL):
                return self.send_error(400)
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(read_labels(path) | {key: label}, indent=1))
            temporary.replace(path)
            self.send_response(303)
            self.send_header("location", "/")
            self.end_headers()

        def _send(self, data: bytes, kind: str = "text/html; charset=utf-8"):
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return http.server.ThreadingHTTPServer(("127.0.0.1", port), Asks)
