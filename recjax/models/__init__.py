"""Models as systems, one file each, most of them a paper's; `build` finds the file by name. What they share is in `parts`.

A model file ends in

    build(schema, *, table={}, compute_dtype="float32", **its own options) -> System

where `table` goes to `Schema.tables` (dim, owner, optimizer, lr, l2, init_scale).
"""

from collections.abc import Mapping
import importlib
import inspect
import pkgutil
from typing import Any

from recjax.models.parts import building
from recjax.schema import Schema
from recjax.system import System

# What saved configs may still say: names of models, and options of one model.
RENAMED = {"distil": "distillation_online", "distil_offline": "distillation_offline"}
RENAMED_OPTIONS = {"tarq": {"distil": "distill"}}


def build(schema: Schema, cfg_model: Mapping[str, Any]) -> System:
    """The system a model config describes.

    Args:
      schema: Of the batches.
      cfg_model: `name` (a file of recjax.models, or a dotted module path: trusted code) and its
        options.

    Raises:
      ValueError: no such model, or an option it does not take; the message lists those it does.
    """
    options = building.plain(with_new_names(cfg_model))
    name = options.pop("name", "")
    make = _module(name).build
    parameters = inspect.signature(make).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        accepted = {
            p.name: building.like(p.annotation, p.default)
            for p in parameters
            if p.kind is p.KEYWORD_ONLY
        }
        building.check_options(name, options, accepted)
    return make(schema, **options)


def with_new_names(cfg_model: Mapping[str, Any]) -> dict[str, Any]:
    """A model config as it is written today, of one that may be older than a renaming."""
    name = cfg_model.get("name", "").removeprefix(f"{__name__}.")
    options = RENAMED_OPTIONS.get(name, {})
    new = {options.get(k, k): v for k, v in cfg_model.items()}
    return new | {"name": RENAMED.get(name, name)} if name else new


def _module(name: str):
    if "." in name:
        return importlib.import_module(name)
    files = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)
    if name not in files:
        raise ValueError(
            f"model.name={name!r} is unknown; use one of {', '.join(files)}, or a dotted path"
        )
    return importlib.import_module(f"{__name__}.{name}")
