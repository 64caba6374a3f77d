"""Keys of the config: what may be set, and what a misspelt one is told."""

from absl import flags
import pytest

from recjax import configs


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
    with pytest.raises(KeyError, match="unknown config key train.bacth; did you mean train.batch?"):
        configs.assign(c, "train.bacth", 2)
    with pytest.raises(KeyError, match="unknown config key tran.batch; did you mean train.batch?"):
        configs.assign(c, "tran.batch", 2)
    with pytest.raises(
        KeyError, match="unknown config key model.tabel.lr; did you mean model.table.lr?"
    ):
        configs.assign(c, "model.tabel.lr", 2)
    with pytest.raises(TypeError, match="train.batch='many': the config has 512 there"):
        configs.assign(c, "train.batch", "many")
    with pytest.raises(KeyError, match="^'unknown config key opt.lr.x'$"):
        configs.assign(c, "opt.lr.x", 1)
    with pytest.raises(KeyError, match="^'unknown config key nothing'$"):
        configs.assign(c, "nothing", 1)
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
