"""Click-through-rate models at scale in JAX: `recjax.api` says how to use it from Python.

`recjax.prepare`, `recjax.config`, `recjax.train` and `recjax.load` are those of `recjax.api`, imported when first asked for: the
commands and the contracts need none of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recjax.api import Run, config, load, prepare, train

__all__ = ["Run", "config", "load", "prepare", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from recjax import api

        return getattr(api, name)
    raise AttributeError(f"module 'recjax' has no attribute {name!r}")
