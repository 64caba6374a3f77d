"""NIF against its own parts: a generator for each seed, which all variants of stage 2 share, compared seed by seed.

    python -m experiments.nif_board --config=experiments/nif_planted.py --seeds=6 --workdir=runs/nif_board

Variants (the first is the baseline; `--variants` chooses, `--extra="name key=value ..."` adds):

    none        AMEN without a flow, begun from the generator's encoders and tables as the others are (gen2disc)
    nif         with the flow
    shuffled    with another user's flow: must not help
    scratch     without flow and without the generator's weights (AMEN-24)
    fresh       with the flow, without the generator's weights
    codes       with the flow of a generator that was trained to name quantised items, begun as the others

So `nif` against `none` is what the flow gives, and `none` against `scratch` what the pre-trained weights give. Ablations of the
generator are boards of their own (`--generator=model.div_weight=0`; of K: `--generator=model.slots=1 --set=model.slots=1`). Finished
runs are skipped; the same command goes on. results.json and the printed table are experiments.compare's.
"""

from collections.abc import Callable, Sequence
import dataclasses

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from experiments import compare
from recjax import command, configs
from recjax.runtime.run import set_up
from recjax.training.loop import train

# name -> (flow, whether the generator's weights are AMEN's beginning, whose flow)
VARIANTS = {
    "none": ("none", True, "generators"),
    "nif": ("nif", True, "generators"),
    "shuffled": ("shuffled", True, "generators"),
    "scratch": ("none", False, "generators"),
    "fresh": ("nif", False, "generators"),
    "codes": ("nif", True, "generators-codes"),
}


@dataclasses.dataclass(frozen=True)
class Variant(compare.Entry):
    """Stage 2, begun from the generator of its seed.

    Attributes:
      root: Folder of generators/seed-N, and of generators-codes/seed-N.
      rules: (run, flow, weights, begin) -> init_from.
      weights: Whether AMEN begins from the generator's weights.
      whose: The folder whose runs make the flow.
    """

    root: epath.Path = epath.Path()
    rules: Callable[[str, bool, bool, str], tuple] | None = None
    weights: bool = True
    whose: str = "generators"

    def of_seed(self, seed: int) -> ConfigDict:
        c = super().of_seed(seed)
        c.needs = ()
        run, begin = (str(self.root / w / f"seed-{seed}") for w in (self.whose, "generators"))
        c.init_from = self.rules(run, c.model.flow != "none", self.weights, begin)
        return c


def variants(
    file: str,
    arg: str,
    names: Sequence[str],
    extra: Sequence[str],
    common: Sequence[str],
    root: epath.Path,
) -> list[Variant]:
    """The competitors; ValueError for a name that is none of `VARIANTS`."""
    unknown = sorted(set(names) - set(VARIANTS))
    if unknown:
        raise ValueError(f"--variants={unknown[0]}: the variants are {', '.join(VARIANTS)}")
    rules = configs.module_of(file).from_generator
    texts: list[tuple[str, str, Sequence[str]]] = [(n, n, ()) for n in names]
    texts += [(f"nif-{'-'.join(own)}", "nif", own) for own in (e.split() for e in extra)]
    out = []
    for name, base, own in texts:
        c = configs.load(file, arg)
        flow, weights, whose = VARIANTS[base]
        c.model.flow = flow
        for assignment in (*common, *own):
            configs.assign_text(c, assignment)
        out.append(Variant(name, configs.check(c), None, root, rules, weights, whose))
    return out


def train_generators(
    file: str,
    arg: str,
    seeds: int,
    common: Sequence[str],
    own: Sequence[str],
    codes: bool,
    root: epath.Path,
) -> None:
    """Stage 1 of every seed; of the overrides for all only what says where the data lies is taken, and its `own`."""
    for seed in range(seeds):
        for kind, folder in (("flow", "generators"), ("codes", "generators-codes"))[: 1 + codes]:
            c = configs.load(file, ",".join(filter(None, [kind, arg])))
            for assignment in (*(a for a in common if a.startswith("data.")), *own):
                configs.assign_text(c, assignment)
            if kind == "codes":
                dense, c.needs = str(root / "generators" / f"seed-{seed}"), ()
                c.init_from = tuple((dense, *rule[1:]) for rule in c.init_from)
            c.seed = seed
            logging.info("generator %d of %d: %s", seed + 1, seeds, kind)
            train(configs.check(c), root / folder / f"seed-{seed}")


def main(_) -> None:
    set_up()
    file, _, arg = _CONFIG.value.partition(":")
    root, codes = epath.Path(_WORKDIR.value), "codes" in _VARIANTS.value
    for seeds in range(1, _SEEDS.value + 1):  # seed by seed: what is finished can be read
        train_generators(file, arg, seeds, _SET.value, _GENERATOR.value, codes, root)
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
    _GENERATOR = flags.DEFINE_multi_string("generator", [], "key=value for the generators alone")
    _SPLIT = flags.DEFINE_list("split", ["test"], "splits to compare on")
    command.run(main)
