"""The experiment config: every key, its default and what it means.

An experiment file starts from `base()` and assigns. Unknown keys are errors, on the command line too.
"""

import difflib
import importlib.util
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

# Sections that accept what their readers do; what a reader does not know, it refuses by name.
FREE = ("model", "data.prepare", "opt.args", "opt.group_lr")


def base() -> ConfigDict:
    """A locked ConfigDict with every key the trainer reads; `FREE` sections may hold more."""
    c = ConfigDict()
    c.seed = 0

    c.data = ConfigDict()
    c.data.name = "complete_journey"  # a module of recjax.data, or a dotted path to your own
    c.data.dir = ""  # a prepared directory; "" prepares into the cache
    c.data.source = ""  # the publisher's files; "" for sets that come in a package
    c.data.prepare = ConfigDict()  # options of the module's prepare()
    c.data.history = 50  # events of history a request sees: a reading option, not a preparation one
    c.data.counters = True  # causal counters as dense features
    c.data.length_buckets = ()  # shorter history lengths: a batch holds requests of one, padded to it only
    c.data.candidates = 1  # C: candidates of a request grouped in one row of the batch
    # Vectors that rows begin from (python -m recjax.data.vectors): (id space, name, "frozen" | "trained", scale)
    c.data.vectors = ()
    c.data.workers = 0  # reader processes; the stream is the same for any number
    c.data.train = (
        "train"  # the split to train on; "train_matched" has popularity-matched negatives
    )
    c.data.teachers = ()  # runs whose logits (python -m recjax.teach) the training batches carry
    c.data.shuffle_seed = (
        0  # order of the second and later epochs; the first is the stored permutation
    )

    c.model = ConfigDict()
    c.model.name = ""

    c.opt = ConfigDict()
    c.opt.name = "adam"
    c.opt.args = ConfigDict()
    c.opt.lr = 1e-3
    c.opt.group_lr = ConfigDict()  # overrides by System.groups name
    c.opt.schedule = "constant"  # of dense and row rates alike
    c.opt.warmup_steps = 0
    c.opt.weight_decay = 0.0
    c.opt.clip = 0.0  # joint norm of a group's dense and row gradients; 0 is off

    c.embedding = ConfigDict()
    # (regex over table paths, replicated | row | row:all_gather | row:all_to_all | column); the rest is planned
    c.embedding.placement = ()
    c.embedding.schedule = ()  # (regex over table paths, schedule) where a table's is not opt.schedule

    c.train = ConfigDict()
    c.train.batch = 512
    c.train.recent = 0  # only the latest so many impressions of the training split; 0 is all
    c.train.recent_days = 0.0  # only its last so many days; 0 is all
    c.train.online = ""  # "1d": train a day, evaluate the next, go on
    c.train.examples = 0  # prefix of the training permutation (of `recent`, if set); 0 is all
    c.train.epochs = 1
    c.train.microbatches = 1  # gradient accumulation, exact
    c.train.log_every = 100
    c.train.checkpoint_every = 2000  # steps
    c.train.keep = 2

    c.eval = ConfigDict()
    c.eval.batch = 2048
    c.eval.every = 0  # steps between evaluations; 0 is none before the end
    c.eval.at_examples = ()  # evaluate when this many training examples were seen
    c.eval.splits = ("validation",)
    c.eval.final = ("validation", "test")
    c.eval.examples = 0  # prefix of each split; 0 is all
    c.eval.use_best = False  # final evaluation of the best checkpoint by System.select

    c.needs = ()  # configs (files) run first, into workdir/needs/<i>
    c.init_from = ()  # (run, source regex, target): parameters and rows of earlier runs
    # A run that goes on here with later data, whose preparation `extends` that run's: everything but the step count and
    # the metrics comes from its last checkpoint; rows that mean a new value begin anew (recjax.data.store.growth).
    c.continue_from = ""
    c.lock()
    for section in FREE:
        c[section].unlock()
    return c


def assign(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key in place; keys of `FREE` sections may be new.

    Raises:
      KeyError: The config has no such key or section; the message has the nearest.
      TypeError: The value is of another type than the one that stands there.
    """
    *sections, last = key.split(".")
    node, free = config, key.startswith(tuple(f"{f}." for f in FREE))
    for i, name in enumerate(sections):
        if not isinstance(node.get(name), ConfigDict):
            raise _unknown(key, node, i)
        node = node[name]
    if last not in node and not free:
        raise _unknown(key, node, len(sections))
    try:
        with node.unlocked():
            node[last] = value
    except TypeError as e:
        raise TypeError(f"{key}={value!r}: the config has {node[last]!r} there") from e


def _unknown(key: str, known: ConfigDict, level: int) -> KeyError:
    """`known` has no part number `level` of the dotted key."""
    parts = key.split(".")
    others = [k for k in known if k != parts[level]]  # itself, where a value is taken for a section
    near = difflib.get_close_matches(parts[level], others, n=1)
    hint = f"; did you mean {'.'.join([*parts[:level], *near, *parts[level + 1 :]])}?"
    return KeyError(f"unknown config key {key}{hint * len(near)}")


def check(config: ConfigDict) -> ConfigDict:
    """Raises KeyError naming a key that `base` does not know and the nearest one it does."""

    def walk(known, given, prefix=""):
        for key in given:
            if key not in known:
                raise _unknown(f"{prefix}{key}", known, prefix.count("."))
            if isinstance(known[key], ConfigDict) and known[key].is_locked:
                walk(known[key], given[key], f"{prefix}{key}.")

    walk(base(), config)
    return config


def define_flag(what: str = "experiments/<name>.py[:arg]", **more: Any) -> flags.FlagHolder:
    """--config=FILE[:ARG] of a command, and --config.KEY=VALUE; options of `FREE` sections need not stand in the file."""
    # The sections that `base` locks stay locked: a misspelt key of theirs is refused.
    return config_flags.DEFINE_config_file(
        "config", None, what, lock_config=False, accept_new_attributes=True, **more
    )


def load(path: str, arg: str = "") -> ConfigDict:
    """`get_config(arg)` of an experiment file. Such files are code: load only ones you trust."""
    if not Path(path).exists():
        raise FileNotFoundError(
            f"config file {path} does not exist; give a path from the current folder"
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg) if arg else module.get_config()
