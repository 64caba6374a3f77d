"""From raw logs to batches. Nothing here imports JAX.

`open_data(config.data)` gives the object the training loop reads: `.schema`, `.identity`, `.splits`,
`.vocabulary(space)`, `.vocabulary_hash(space)` and `.batches(split, batch_size, ...)`, a resumable sequence of batches
(layout: recjax.inputs).
"""

import importlib


def open_data(config):
    """Opens `config.name`: a module of this package, or a dotted path.

    A module with its own `open_data(config)` is asked; any other is a preparation module whose result the Grain
    loader reads.
    """
    name = config.name if "." in config.name else f"recjax.data.{config.name}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name != name:
            raise
        raise ValueError(f"data.name={config.name!r}: there is no module {name}; give a set of recjax.data or a dotted path") from e
    if hasattr(module, "open_data"):
        return module.open_data(config)
    from recjax.data import loader

    return loader.open_data(config)
