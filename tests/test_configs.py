"""Keys of the config: what may be set, and what a misspelt one is told."""

from absl import flags
import pytest

from recjax import configs
from tests.messages import raises


def test_every_section_but_the_free_ones_knows_its_keys():
    c = configs.base()
    for key, value in (("opt.lr", 0.5), ("seed", 3), ("model.new", (8,)), ("data.prepare.isolate", 0.3),
                       ("opt.args.b2", 0.99), ("data.name", "x"), ("model", dict(name="ecup", table=dict(lr=0.1)))):  # fmt: skip
        configs.assign(c, key, value)
    assert (c.opt.lr, c.seed, c.data.prepare.isolate, c.opt.args.b2, c.data.name) == (
        0.5, 3, 0.3, 0.99, "x")  # fmt: skip
    assert c.model.to_dict() == dict(name="ecup", table=dict(lr=0.1))
    configs.assign(c, "model.table.lr", 1)
    assert c.model.table.lr == 1.0 and isinstance(c.model.table.lr, float)
    with raises(KeyError, "train.bacth", "train.batch"):
        configs.assign(c, "train.bacth", 2)
    with raises(KeyError, "tran.batch", "train.batch"):
        configs.assign(c, "tran.batch", 2)
    with raises(KeyError, "model.tabel.lr", "model.table.lr"):
        configs.assign(c, "model.tabel.lr", 2)
    with raises(TypeError, "train.batch='many'", "512"):
        configs.assign(c, "train.batch", "many")
    with raises(KeyError, "opt.lr.x") as of_a_number:
        configs.assign(c, "opt.lr.x", 1)
    with raises(KeyError, "nothing") as like_none:
        configs.assign(c, "nothing", 1)
    assert not any("?" in str(e.value) for e in (of_a_number, like_none))  # nothing to suggest
    assert configs.check(c).is_locked


def parsed(*overrides):
    values, argv = flags.FlagValues(), ["x", "--config=experiments/tarq_planted.py", *overrides]
    holder = configs.define_flag(flag_values=values, sys_argv=argv)
    values(argv)
    return holder.value


def test_a_command_sets_options_that_the_experiment_does_not_name():
    c = parsed("--config.model.readout=low_rank", "--config.model.head=(8,4)", "--config.model.table.lr=0.1",
               "--config.data.prepare.noise=0.5", "--config.train.batch=32")  # fmt: skip
    assert (c.model.readout, c.model.head, c.model.table.lr) == ("low_rank", (8, 4), 0.1)
    assert (c.data.prepare.noise, c.train.batch) == (0.5, 32)
    assert configs.check(c) is c
    with pytest.raises(KeyError, match="bacth"):
        parsed("--config.train.bacth=32")
    with pytest.raises(flags.IllegalFlagValueError, match="many"):
        parsed("--config.train.batch=many")


WRONG = [
    ("opt.clip", -1.0), ("opt.lr", -1.0), ("opt.lr", float("nan")), ("train.keep", 0), ("train.log_every", 0),
    ("data.workers", -1), ("train.epochs", -1), ("train.epochs", 0), ("train.batch", 0), ("train.examples", -5),
    ("opt.warmup_steps", -3), ("opt.weight_decay", float("inf")), ("data.history", -1), ("data.history", {"clicks": -1}),
    ("eval.at_examples", (100, 0)), ("eval.splits", (1,)), ("train.microbatches", True), ("data.candidates", 0),
    ("opt.group_lr.head", -1e-3), ("train.on_non_finite", "ignore"), ("data.length_buckets", (8, -2)), ("seed", -1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_that_cannot_be_meant_is_refused_by_name(key, value):
    c = configs.base()
    with c.ignore_type():
        configs.assign(c, key, value)
    with pytest.raises(ValueError, match=key.removesuffix(".head")):
        configs.check(c)


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.batch", 64.0), ("train.batch", "64"), ("eval.use_best", "False"), ("eval.use_best", 0),
     ("eval.splits", "validation"), ("data.name", 3), ("train.epochs", True), ("data.counters", "no")],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(key, value):
    c = configs.base()
    with c.ignore_type(), c.unlocked():
        section, name = key.split(".")
        c[section][name] = value
    with pytest.raises(ValueError, match=f"{key}={value!r}"):
        configs.check(c)


def test_values_that_are_meant_pass():
    c = configs.base()
    for key, value in (("opt.lr", 1), ("opt.clip", 0), ("data.history", 0), ("opt.group_lr.head", 0.1), ("eval.at_examples", (1, 2))):  # fmt: skip
        configs.assign(c, key, value)
    with c.ignore_type():
        configs.assign(c, "data.history", {"clicks": 3})
    assert configs.check(c) is c


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("eval.use_best=true", "eval.use_best", True),
        ("eval.use_best=no", "eval.use_best", False),
        ("eval.use_best=Off", "eval.use_best", False),
        ("model.flag=False", "model.flag", False),
        ("model.flag=null", "model.flag", None),
        ("model.flag=None", "model.flag", None),
        ("model.head=[8,4]", "model.head", (8, 4)),
        ("model.head=(8,4)", "model.head", (8, 4)),
        ("model.time=none", "model.time", "none"),
        ("data.name=12", "data.name", "12"),
        ("opt.lr=1e-3", "opt.lr", 1e-3),
    ],
)
def test_one_parser_reads_what_a_command_line_means(assignment, key, value):
    c = configs.base()
    configs.assign_text(c, assignment)
    for name in key.split("."):
        c = c[name]
    assert c == value and type(c) is type(value)


@pytest.mark.parametrize(
    "bad", ["eval.use_best", "eval.use_best=maybe", "train.batch=many", "tran.batch=2"]
)
def test_assignments_that_mean_nothing_are_refused(bad):
    with pytest.raises(ValueError, match=bad.partition("=")[0]):
        configs.assign_text(configs.base(), bad)


def test_a_misspelt_argument_lists_those_that_the_file_takes():
    assert configs.arguments("", "runlocal") == set()
    assert configs.arguments("decisive,width=8", "runlocal", "decisive", "width=") == {
        "decisive",
        "width=8",
    }
    with pytest.raises(ValueError, match="'runlocla'.*decisive, runlocal.*'runlocal'"):
        configs.arguments("runlocla", "decisive", "runlocal")
    for bad in ("width", "height=8"):
        with pytest.raises(ValueError, match=bad):
            configs.arguments(bad, "width=")
