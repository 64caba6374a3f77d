"""What schemathesis is told of this service; it loads the file by SCHEMATHESIS_HOOKS."""

import schemathesis

# What JSON Schema cannot say of a body, and the service does.
BEYOND_THE_SCHEMA = (
    "columns are of one length",
    "not before the request",
    "send events when they have happened",
    "is not finite for this request",
    "so send",
)


@schemathesis.check
def what_the_schema_allows_is_accepted(ctx, response, case):
    """schemathesis's own check of this would call the faults above findings."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code in (400, 405, 413, 415, 422):
        detail = response.json()["detail"]
        assert any(known in detail for known in BEYOND_THE_SCHEMA), detail


@schemathesis.check
def what_is_refused_says_what_to_do(ctx, response, case):
    if response.status_code >= 400:
        assert ";" in response.json()["detail"], response.text
