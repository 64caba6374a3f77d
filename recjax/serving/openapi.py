"""The OpenAPI document of the service, made from the schema of the artifact it serves, and a page to read it.

The page needs nothing from other hosts, so it also works where serving machines reach none.
"""

from collections.abc import Sequence
import html
import json
from typing import Any

from recjax.serving.bodies import Bodies

_FAULTS = {
    400: "The request is no HTTP, or its body no JSON.",
    401: "The bearer token is missing or wrong.",
    405: "The method is not for this path.",
    408: "The headers or the body did not arrive in time.",
    409: "The artifact cannot be served, or is being loaded; or a key was sent with other events before.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    422: "A field is missing, unknown or of a wrong type or size; `detail` says which.",
    429: "Too many requests are waiting; see Retry-After.",
    431: "The headers are too large.",
    500: "A fault of the service.",
    503: "No artifact is loaded yet; see Retry-After.",
    504: "The deadline passed.",
}
_ANY = (400, 405, 408, 431, 500)
_BODY = (413, 415, 422, 429)
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Events sent again with the same key are stored once.",
    "schema": {"type": "string", "maxLength": 255, "pattern": "^[!-~]*$"},
}


def document(
    bodies: Bodies, outputs: dict[str, Any], *, version: str, token: bool, reload: bool
) -> dict[str, Any]:
    """OpenAPI 3.1.

    Args:
      bodies: Of the model served.
      outputs: Output -> its shape and dtype, as in the artifact's manifest.
      version: The artifact's stamp.
      token: A bearer token is asked for.
      reload: Reloading is allowed, with a token of its own.
    """
    schemas = bodies.json_schemas()
    schemas["Scores"] = _scores(outputs)
    schemas["Problem"] = _record(title="string", status="integer", detail="string", error="string")
    schemas["Ready"] = _record(stamp="string")
    asked = ["token"] if token else []
    score = _call("score", "Logits and probabilities", "Scores", (*_BODY, 503, 504), asked)
    paths = {
        "/v1/score": {"post": score | _body("ScoreRequest")},
        "/healthz": {"get": _call("healthz", "The process answers", "text/plain")},
        "/readyz": {"get": _call("readyz", "An artifact is loaded and warm", "Ready", (503,))},
        "/metrics": {"get": _call("metrics", "Prometheus metrics", "text/plain", (), asked)},
        "/openapi.json": {
            "get": _call("openapi", "This document", "application/json", (503,), asked)
        },
        "/docs": {"get": _call("docs", "A page that shows it", "text/html", (503,), asked)},
    }
    if bodies.appended:
        counts = {"type": "object", "additionalProperties": {"type": "integer"}}
        schemas["Stored"] = _record(stamp="string")
        schemas["Stored"]["properties"]["stored"] = counts
        append = _call(
            "events", "Append events of one user", "Stored", (*_BODY, 409, 503, 504), asked
        )
        paths["/v1/events"] = {"post": append | _body("EventsRequest") | {"parameters": [_KEY]}}
    if reload:
        schemas["Reloaded"] = _record(stamp="string", changed="boolean")
        schemas["Nothing"] = {"type": "object", "additionalProperties": False}
        call = _call(
            "reload", "Load the artifact again", "Reloaded", (*_BODY, 409), ["reload_token"]
        )
        paths["/v1/artifact/reload"] = {"post": call | _body("Nothing")}
    bearer = {"type": "http", "scheme": "bearer"}
    kinds = ["token"] * token + ["reload_token"] * reload
    return {
        "openapi": "3.1.0",
        "info": {"title": "recjax", "version": version[:12]},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": dict.fromkeys(kinds, bearer)},
    }


def _record(**types: str) -> dict[str, Any]:
    properties = {name: {"type": t} for name, t in types.items()}
    return {"type": "object", "properties": properties, "required": list(types)}


def _scores(outputs: dict[str, Any]) -> dict[str, Any]:
    values = {
        n: {"description": f"{o['dtype']}, one an element of {o['shape'][1:]}"}
        for n, o in outputs.items()
    }
    out = _record(stamp="string")
    out["properties"]["outputs"] = {"type": "object", "properties": values}
    return out


def _body(schema: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": _content(schema)}}


def _content(what: str) -> dict[str, Any]:
    """Of a media type, or of a schema as JSON."""
    if "/" in what:
        return {what: {}}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{what}"}}}


def _call(
    name: str, summary: str, answer: str, faults: Sequence[int] = (), tokens: Sequence[str] = ()
) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    statuses = sorted({*_ANY, *faults, *([401] if tokens else [])})
    return {
        "operationId": name,
        "summary": summary,
        "security": [{t: []} for t in tokens],
        "responses": {
            "200": {"description": "Done.", "content": _content(answer)},
            **{str(s): {"description": _FAULTS[s], "content": problem} for s in statuses},
        },
    }


def page(doc: dict[str, Any]) -> str:
    """HTML: the calls, and the JSON schemas as they are."""
    calls = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(call['summary'])}</td></tr>"
        for path, methods in doc["paths"].items()
        for method, call in methods.items()
    )
    schemas = "".join(
        f"<h2 id={json.dumps(html.escape(name))}>{html.escape(name)}</h2>"
        f"<pre>{html.escape(json.dumps(schema, indent=1))}</pre>"
        for name, schema in doc["components"]["schemas"].items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>recjax service</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td{padding:.2rem 1rem .2rem 0}pre{background:#f5f5f5;padding:1rem;overflow:auto}</style>"
        f"<h1>recjax service</h1><p>Artifact <code>{html.escape(doc['info']['version'])}</code>. "
        "The whole document: <a href=openapi.json>openapi.json</a>.</p>"
        f"<table>{calls}</table>{schemas}</html>"
    )
