"""Click-through-rate models at scale in JAX: `recjax.api` says how to use it from Python.

`recjax.prepare`, `recjax.config`, `recjax.train` and `recjax.load` are those of `recjax.api`, imported when first asked for: the
commands, the contracts and the data plane need none of it.
"""

import importlib
from typing import Any

API = ("Run", "config", "load", "prepare", "train")


def __getattr__(name: str) -> Any:
    if name in API:
        return getattr(importlib.import_module("recjax.api"), name)
    raise AttributeError(f"module 'recjax' has no attribute {name!r}")
