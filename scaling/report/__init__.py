"""The web report of a sweep. What draws it is the extra `scaling`, which the library itself does without."""

import importlib.util


def require() -> None:
    """Ends a command that cannot write its report with one sentence, before it has trained for hours."""
    if importlib.util.find_spec("jinja2") is None:
        raise SystemExit("error: the report needs jinja2; pip install -e '.[scaling]'")
