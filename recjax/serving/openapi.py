"""The OpenAPI document of the service, made from the schema of the artifact it serves, and a page to read it.

The page needs nothing from other hosts, so it also works where serving machines reach none.
"""

import html
import json
from typing import Any

from recjax.serving.bodies import Bodies

_FAULTS = {
    "400": "The body is no JSON.",
    "401": "The bearer token is missing or wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not sent as application/json.",
    "422": "A field is missing, unknown or of a wrong type or size; `detail` says which.",
    "429": "Too many requests are waiting; see Retry-After.",
    "503": "No artifact is loaded yet; see Retry-After.",
    "504": "The deadline passed.",
}


def document(
    bodies: Bodies, outputs: dict[str, Any], *, version: str, token: bool
) -> dict[str, Any]:
    """OpenAPI 3.1.

    Args:
      bodies: Of the model served.
      outputs: Output -> its shape and dtype, as in the artifact's manifest.
      version: The artifact's stamp.
      token: A bearer token is asked for.
    """
    schemas = bodies.json_schemas()
    schemas["Scores"] = _scores(outputs)
    schemas["Problem"] = _record(title="string", status="integer", detail="string")
    stored = {"type": "object", "additionalProperties": {"type": "integer"}}
    paths = {
        "/v1/score": {"post": _post("score", "Logits and probabilities", "ScoreRequest", "Scores")},
        "/v1/artifact/reload": {"post": _post("reload", "Load the artifact again", "", "")},
        "/healthz": {"get": _get("healthz", "The process answers")},
        "/readyz": {"get": _get("readyz", "An artifact is loaded and warm")},
        "/metrics": {"get": _get("metrics", "Prometheus metrics")},
    }
    if bodies.appended:
        schemas["Stored"] = {"type": "object", "properties": {"stored": stored}}
        summary = "Append events of one user"
        paths["/v1/events"] = {"post": _post("events", summary, "EventsRequest", "Stored")}
    doc = {
        "openapi": "3.1.0",
        "info": {"title": "recjax", "version": version[:12]},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if token:
        doc["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        doc["security"] = [{"token": []}]
    return doc


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


def _post(name: str, summary: str, body: str, answer: str) -> dict[str, Any]:
    out = _get(name, summary, answer)
    if body:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
        out["requestBody"] = {"required": True, "content": content}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    out["responses"] |= {s: {"description": d, "content": problem} for s, d in _FAULTS.items()}
    return out


def _get(name: str, summary: str, answer: str = "") -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "Done."}
    if answer:
        schema = {"$ref": f"#/components/schemas/{answer}"}
        ok["content"] = {"application/json": {"schema": schema}}
    return {"operationId": name, "summary": summary, "responses": {"200": ok}}


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
