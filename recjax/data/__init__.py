"""From raw logs to batches. Nothing here imports JAX.

`open_data(config.data)` gives the `Data` that the training loop reads (recjax.data.loading.protocol).
"""

from collections.abc import Mapping
import importlib
import os
import pathlib
from types import ModuleType
from typing import Any

from absl import logging

from recjax.data.loading.layout import BatchError
from recjax.data.loading.protocol import Data

OWN_LOGS = "logs.prepare"
# `python -m recjax.data.published` and its like find the readers, which are in sets/.
__path__.append(str(pathlib.Path(__file__).parent / "sets"))


def open_data(
    config: Mapping[str, Any], ids_of: Any = None, process_index: int = 0, process_count: int = 1
) -> Data:
    """Opens the data a config describes, preparing it first if need be.

    A module with its own `open_data(config)` is asked (in a run of several processes with the last two arguments). Any
    other is a preparation module: its `prepare(out_dir, source=..., **options)` is called, and the loader reads what that
    made.

    Args:
      config: `name` (`logs`, a module of sets/, `worlds.<module>`, or a dotted path), `dir` (a prepared directory; "": prepare
        into $RECJAX_CACHE or ~/.cache/recjax), `source` (raw folder), `prepare` (options of the module's
        `prepare`), `history`, `candidates`, `counters` (`recjax.data.loading.loader.PreparedData`),
        `teachers` (`recjax.data.loading.taught`).
      ids_of: Opened data whose ids the batches shall have (`recjax.data.store.translate`); None: the data's own.
      process_index: Of this process.
      process_count: Processes of the run; each reads its share of every batch.

    Raises:
      BatchError: The config names no data set that exists, or no directory for several processes.
      DataError: The prepared directory is absent or damaged.
    """
    module = module_of(config.get("name", ""))
    if hasattr(module, "open_data"):
        if config.get("draw", 0):
            raise BatchError(
                f"data {config['name']!r} has an order of its own and cannot read by data.draw={config['draw']}; leave it out"
            )
        share = (process_index, process_count) if process_count > 1 else ()
        return module.open_data(config, *share)
    if process_count > 1 and not config.get("dir", ""):
        raise BatchError(
            f"{process_count} processes share one prepared directory: prepare it once, with `partitions` a multiple "
            f"of {process_count}, and give it as data.dir"
        )
    # Imported late: whoever brings an own `open_data` needs neither Grain nor TFDS.
    from recjax.data.loading.loader import PreparedData
    from recjax.data.loading.taught import Taught
    from recjax.data.store.item_vectors import with_vectors
    from recjax.data.store.prepared import Prepared
    from recjax.data.store.translate import translated

    prepared = Prepared(config.get("dir", "") or _prepare(module, config))
    if config.get("dir", ""):
        _warn_of_other_options(prepared, config.get("prepare", {}))
    prepared = with_vectors(prepared, config.get("vectors", ()))
    data = PreparedData(
        prepared if ids_of is None else translated(prepared, ids_of.prepared),
        history=config.get("history", 50),
        candidates=config.get("candidates", 1),
        counters=config.get("counters", True),
        draw=(config.get("train", "train"), config.get("draw", 0)),
        process_index=process_index,
        process_count=process_count,
    )
    teachers = config.get("teachers", ())
    return Taught(data, teachers, config.get("train", "train")) if teachers else data


def canonical_name(name: str) -> str:
    """`data.name` as it is written today: saved runs may hold the name that a module had before it moved."""
    short = name.removeprefix(f"{__name__}.")
    return f"worlds.{short.removeprefix('synthetic.')}" if short.startswith("synthetic.") else short


def module_of(name: str) -> ModuleType | None:
    """The module of a data set: of this package first, then any dotted path; None for "".

    Raises:
      BatchError: There is none of that name.
    """
    if not name:
        return None
    short = canonical_name(name)
    own = OWN_LOGS if short == "logs" else short if "." in short else f"sets.{short}"
    places = [f"{__name__}.{own}", name] if "." in name else [f"{__name__}.{own}"]
    for place in places:
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as e:
            if not f"{place}.".startswith(f"{e.name}."):  # it exists, something it imports does not
                raise
    raise BatchError(
        f"there is no data set {name!r}: cannot import {' or '.join(places)}; set data.name to 'logs', to a module "
        f"of {__name__}.sets, to worlds.<one of {__name__}.worlds>, or to a dotted path of your own"
    )


def _warn_of_other_options(prepared: Any, asked: Mapping[str, Any]) -> None:
    for name, want in asked.items():
        have = prepared.identity.get("config", {}).get(name)
        want = list(want) if isinstance(want, tuple) else want
        if want != have and (want or have):  # what is off is not always written down
            logging.warning(
                "%s was prepared with %s=%r where data.prepare says %r; what was prepared counts",
                prepared.path, name, have, want,
            )  # fmt: skip


def _prepare(module: ModuleType | None, config: Mapping[str, Any]) -> str | os.PathLike:
    """Calls the data set's `prepare`, which returns at once what was prepared before."""
    if module is None:
        raise BatchError(
            "data.name and data.dir are both empty; name a data set, or give a prepared directory"
        )
    cache = os.environ.get("RECJAX_CACHE") or pathlib.Path.home() / ".cache" / "recjax"
    options = dict(config.get("prepare", {}))
    return module.prepare(cache, source=config.get("source", ""), **options)
