"""The experiment config: every key, its default and what it means.

An experiment file starts from `base()` and assigns. Unknown keys are errors, on the command line too.
"""

import ast
from collections.abc import Mapping
import difflib
import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
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
    # Which impressions come first, and so are the nested subsets: 0 is the stored permutation, any other a draw of its own
    c.data.draw = 0
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
    # Where rows, batch and epochs give fewer steps, the batch becomes smaller and then the epochs more (recjax.training.sizing)
    c.train.min_steps = 0
    c.train.microbatches = 1  # gradient accumulation, exact
    c.train.log_every = 100
    c.train.checkpoint_every = 2000  # steps
    c.train.keep = 2
    # A step whose loss, gradients or state are not finite changes nothing. "stop" ends the run there; "skip" counts it and
    # goes on.
    c.train.on_non_finite = "stop"
    c.train.log_to = ()  # wandb, mlflow: where the event file's numbers go besides
    c.train.profile = ""  # "10:20": a profiler trace of those steps, in the workdir's profile/

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


# What values make sense beside their type; the rest is checked by whoever reads the key.
ABOVE_ZERO = (
    "data.candidates", "train.batch", "train.epochs", "train.microbatches", "train.log_every", "train.checkpoint_every",
    "train.keep", "eval.batch", "eval.at_examples", "data.length_buckets",
)  # fmt: skip
NOT_BELOW_ZERO = (
    "seed", "data.workers", "data.draw", "data.shuffle_seed", "data.history", "opt.lr", "opt.group_lr", "opt.warmup_steps",
    "opt.weight_decay", "opt.clip", "train.min_steps", "train.recent", "train.recent_days", "train.examples", "eval.every", "eval.examples",
)  # fmt: skip
ONE_OF = {"train.on_non_finite": ("stop", "skip")}
TEXTS = ("data.teachers", "train.log_to", "eval.splits", "eval.final", "needs")


def check(config: ConfigDict) -> ConfigDict:
    """Checks the keys of a config, their types and ranges; returns it.

    Raises:
      KeyError: A key that `base` does not know; the message has the nearest one it does.
      ValueError: A value of another type than the key has, or one that cannot be meant.
    """

    def walk(known, given, prefix=""):
        for key in given:
            name = f"{prefix}{key}"
            if key not in known:
                raise _unknown(name, known, prefix.count("."))
            if isinstance(known[key], ConfigDict) and known[key].is_locked:
                walk(known[key], given[key], f"{name}.")
            elif name != "data.history":  # one number, or one for each list
                _check_type(name, given[key], known[key])
            _check_range(name, given[key])

    walk(base(), config)
    return config


def _check_type(name: str, value: Any, like: Any) -> None:
    if not same_type(value, like):
        raise ValueError(f"{name}={value!r} must be {TYPE_WORDS[type(like)]}, such as {like!r}")
    if name in TEXTS and not all(isinstance(x, str) for x in value):
        raise ValueError(f"{name}={value!r} must hold texts only")


TYPE_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple of values, (a,) for a single one",
    ConfigDict: "a section of keys",
    dict: "a mapping",
}


def same_type(value: Any, like: Any) -> bool:
    """Whether a value may stand where `like` is the default: True is no number, and a whole number is a float too."""
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(like, bool) and isinstance(value, bool)
    if isinstance(like, float):
        return isinstance(value, int | float)
    if isinstance(like, tuple | list):
        return isinstance(value, tuple | list)
    if isinstance(like, Mapping | ConfigDict):
        return isinstance(value, Mapping | ConfigDict)
    return not isinstance(like, int | str) or isinstance(value, type(like))


def _check_range(name: str, value: Any) -> None:
    if value not in ONE_OF.get(name, (value,)):
        raise ValueError(f"{name}={value!r} must be one of {', '.join(ONE_OF[name])}")
    if name not in (*ABOVE_ZERO, *NOT_BELOW_ZERO):
        return
    for x in _numbers(value):
        if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
            raise ValueError(f"{name}={value!r} must be a finite number")
        if x < 0 or (x == 0 and name in ABOVE_ZERO):
            bound = "above 0" if name in ABOVE_ZERO else "0 or more"
            raise ValueError(f"{name}={value!r} must be {bound}")


def _numbers(value: Any) -> list:
    if isinstance(value, Mapping | ConfigDict):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else [value]


def arguments(arg: str, *known: str) -> set[str]:
    """The words of a config file's argument, FILE:word,word; every `get_config(arg)` begins with it.

    Args:
      arg: As given, "" for none.
      known: Words that the file takes; one that ends in "=" takes a value.

    Raises:
      ValueError: A word that the file does not take; the message lists those it does.
    """
    words = {w for w in arg.split(",") if w}
    stems = {w: w.partition("=")[0] + "=" * ("=" in w) for w in words}
    for word in sorted(w for w in words if stems[w] not in known):
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"the config file does not know its argument {word!r}: {takes}{hint}")
    return words


def assign_text(config: ConfigDict, assignment: str) -> None:
    """Sets a key from "a.b=value", as every command takes it.

    The value is read as JSON or a Python literal (true, null, [8, 4] and True, None, (8, 4) alike) unless the key holds a
    text; what is neither stays a text. Where the key holds True or False, yes, no, on and off are understood.

    Raises:
      ValueError: It is no assignment, names no key, or the value is of another type than the key has.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"{assignment!r} is no assignment; write key=value")
    try:
        assign(config, key, value_of(text, _held(config, key)))
    except (KeyError, TypeError) as e:
        raise ValueError(f"{assignment!r}: {e.args[0]}") from e


SPOKEN = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def value_of(text: str, like: Any = None) -> Any:
    """The value that a text on a command line means, where the key holds `like` (None: not known)."""
    if isinstance(like, str):
        return text
    if isinstance(like, bool):
        return SPOKEN.get(text.lower(), text)
    for read in (json.loads, ast.literal_eval):
        try:
            return _hashable(read(text))
        except (ValueError, SyntaxError):
            continue
    return text


def _held(config: ConfigDict, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, ConfigDict) else None
    return config


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _hashable(v) for k, v in value.items()}
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value


def define_flag(what: str = "experiments/<name>.py[:arg]", **more: Any) -> flags.FlagHolder:
    """--config=FILE[:ARG] of a command, and --config.KEY=VALUE; options of `FREE` sections need not stand in the file."""
    # The sections that `base` locks stay locked: a misspelt key of theirs is refused.
    return config_flags.DEFINE_config_file(
        "config", None, what, lock_config=False, accept_new_attributes=True, **more
    )


def load(path: str, arg: str = "") -> ConfigDict:
    """`get_config(arg)` of an experiment file. Such files are code: load only ones you trust."""
    module = module_of(path)
    return module.get_config(arg) if arg else module.get_config()


def module_of(path: str) -> ModuleType:
    """The module that a config file is."""
    if not Path(path).exists():
        raise FileNotFoundError(
            f"config file {path} does not exist; give a path from the current folder"
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
