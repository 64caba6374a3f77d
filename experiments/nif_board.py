"""NIF against its own parts: a generator for each seed, which all variants of stage 2 share, compared seed by seed.

    python -m experiments.nif_board --config=experiments/nif_planted.py --seeds=6 --workdir=runs/nif_board

Variants (the first is the baseline; `--variants` chooses, `--extra="name key=value ..."` adds):

    none        AMEN without a flow, begun from the generator's encoders and tables as the others are (gen2disc)
    nif         with the flow
    shuffled    with another user's flow: must not help
    scratch     without flow and without the generator's weights (AMEN-24)
    fresh       with the flow, without the generator's weights

So `nif` against `none` is what the flow gives, and `none` against `scratch` what the pre-trained weights give. Finished runs
are skipped; the same command goes on. results.json and the printed table are experiments.compare's.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
from pathlib import Path

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from experiments import compare
from recjax import configs
from recjax.run import set_up
from recjax.train import train

# name -> (flow, whether the generator's weights are AMEN's beginning)
VARIANTS = {
    "none": ("none", True),
    "nif": ("nif", True),
    "shuffled": ("shuffled", True),
    "scratch": ("none", False),
    "fresh": ("nif", False),
}


@dataclasses.dataclass(frozen=True)
class Variant(compare.Entry):
    """Stage 2, begun from the generator of its seed.

    Attributes:
      generators: Folder of the generators' runs.
      rules: (run, flow, weights) -> init_from.
    """

    generators: epath.Path = epath.Path()
    rules: object = None
    weights: bool = True

    def of_seed(self, seed: int) -> ConfigDict:
        c = super().of_seed(seed)
        c.needs = ()
        run = str(self.generators / f"seed-{seed}")
        c.init_from = self.rules(run, c.model.flow != "none", self.weights)
        return c


def variants(
    file: str, arg: str, names: Sequence[str], extra: Sequence[str], common: Sequence[str], root
) -> list[Variant]:
    """The competitors; ValueError for a name that is none of `VARIANTS`."""
    unknown = sorted(set(names) - set(VARIANTS))
    if unknown:
        raise ValueError(f"--variants={unknown[0]}: the variants are {', '.join(VARIANTS)}")
    rules = module_of(file).from_generator
    texts = [(n, n, ()) for n in names]
    texts += [(f"nif-{'-'.join(own)}", "nif", own) for own in (e.split() for e in extra)]
    out = []
    for name, base, own in texts:
        c = configs.load(file, arg)
        flow, weights = VARIANTS[base]
        c.model.flow = flow
        for assignment in (*common, *own):
            compare.override(c, assignment)
        out.append(Variant(name, configs.check(c), None, root / "generators", rules, weights))
    return out


def module_of(file: str):
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_generators(file: str, arg: str, seeds: int, common: Sequence[str], root) -> None:
    """Stage 1 of every seed; only what says where the data lies is taken from the overrides."""
    for seed in range(seeds):
        c = configs.load(file, ",".join(filter(None, ["flow", arg])))
        for assignment in (a for a in common if a.startswith("data.")):
            compare.override(c, assignment)
        c.seed = seed
        logging.info("generator %d of %d", seed + 1, seeds)
        train(configs.check(c), root / "generators" / f"seed-{seed}")


def main(_) -> None:
    set_up()
    file, _, arg = _CONFIG.value.partition(":")
    root = epath.Path(_WORKDIR.value)
    for seeds in range(1, _SEEDS.value + 1):  # seed by seed: what is finished can be read
        train_generators(file, arg, seeds, _SET.value, root)
        competitors = variants(file, arg, _VARIANTS.value, _EXTRA.value, _SET.value, root)
        found = compare.run(competitors, root, seeds, splits=_SPLIT.value)
    print(compare.table(found))


if __name__ == "__main__":
    _CONFIG = flags.DEFINE_string("config", None, "FILE[:ARG] of stage 2", required=True)
    _WORKDIR = flags.DEFINE_string("workdir", None, "directory of the comparison", required=True)
    _SEEDS = flags.DEFINE_integer("seeds", 3, "seeds 0 .. n - 1", lower_bound=1)
    _VARIANTS = flags.DEFINE_list("variants", ["none", "nif", "shuffled"], "baseline first")
    _EXTRA = flags.DEFINE_multi_string("extra", [], 'a further variant of nif, "key=value ..."')
    _SET = flags.DEFINE_multi_string("set", [], "key=value for every config")
    _SPLIT = flags.DEFINE_list("split", ["test"], "splits to compare on")
    app.run(main)
