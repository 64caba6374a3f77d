"""Attribute values of a product that nobody trained on, with a trained HyperPAVE.

    python -m experiments.hyperpave_extract --run=runs/hyperpave_oa_mine --title="Crocs Women's Ballet Flat, Navy, 4 M US" --category=Shoes

Prints every aspect above the validation threshold (best first), at most --top, and marks values that no training product
has. Without --category: the one whose training titles are nearest in text. --timing=300 asks so many times more and prints how long a
title takes: its text's embedding, and the score of every aspect of the category.
"""

import pathlib
import sys

from absl import flags
import jax
import numpy as np

from recjax import command
from recjax.data.sets import text as texts
from recjax.runtime.run import read_json, set_up
from recjax.serving.bench import percentile, times
from recjax.training.opening import open_run


class ExtractError(ValueError):
    """The run or the category cannot be used; the message says what to do."""


class Extractor:
    """A trained run, ready for titles.

    Args:
      run: Workdir of a `recjax.train` run of hyperpave.
    """

    def __init__(self, run: str):
        summary = pathlib.Path(run) / "summary.json"
        if not summary.exists():
            raise ExtractError(
                f"{run} has no summary.json; train first: python -m recjax.train "
                f"--config=experiments/hyperpave_oa_mine.py --config.data.source=FOLDER --workdir={run}"
            )
        self.threshold = read_json(summary)["validation"]["threshold"]
        best = bool(list(pathlib.Path(run).glob("checkpoints/best*")))
        self.config, self.data, self.system, self.trees, _ = open_run(run, best=best)
        self.encode = texts.encoder(self.config.data.prepare.get("text", "wordllama"))
        fns = {n: jax.jit(self.system.exports[n].fn) for n in ("catalog", "extract")}
        params = self.trees.params({})
        self._call = lambda name, batch: fns[name](params, batch)
        self._catalogs: dict = {}

    @property
    def categories(self) -> list[str]:
        return list(self.data.catalog.names["category"])

    def nearest_category(self, title: str) -> str:
        """The category whose training titles' mean vector is nearest."""
        c, x = self.data.catalog, self.encode([title])[0]
        means = [
            c.x["product"][(c.category == i) & (c.split == 0)].mean(0)
            for i in range(len(self.categories))
        ]
        return self.categories[int(np.argmax(texts.unit(np.nan_to_num(means)) @ x))]

    def __call__(self, title: str, category: str) -> list[dict]:
        """Aspects of the category, best first: attribute, value, logit, unseen."""
        if category not in self.categories:
            raise ExtractError(
                f"--category={category!r} is unknown; use one of {', '.join(self.categories)}"
            )
        number = self.categories.index(category)
        if number not in self._catalogs:  # only when the catalogue changes
            part, graph = self.data.standing(number)
            self._catalogs[number] = part, graph["attribute"], self._call("catalog", graph)
        part, attribute, made = self._catalogs[number]
        batch = {"dense": {"text": self.encode([title])}, "attribute": attribute, **made}
        logits = np.asarray(self._call("extract", batch)["logits"])[0, : len(part.aspects)]
        names = self.data.catalog.names["aspect"]
        out = []
        for i in np.argsort(-logits):
            a = part.aspects[i]
            attribute_name, _, value = names[a].partition("|")[2].partition(": ")
            unseen = bool(self.data.catalog.unseen[a])
            out.append(
                dict(attribute=attribute_name, value=value, logit=float(logits[i]), unseen=unseen)
            )
        return out


def main(_) -> None:
    set_up()
    try:
        extractor = Extractor(_RUN.value)
        category = _CATEGORY.value or extractor.nearest_category(_TITLE.value)
        found = extractor(_TITLE.value, category)
    except (ExtractError, texts.TextError) as e:
        sys.exit(f"error: {e}")
    kept = [f for f in found if f["logit"] > extractor.threshold][: _TOP.value]
    how = "" if _CATEGORY.value else " (nearest by text)"
    print(f"{category}{how}: {len(kept)} of {len(found)} aspects above {extractor.threshold:.2f}")
    for f in kept:
        print(
            f"{f['logit']:7.2f}  {f['attribute']}: {f['value']}{'   [unseen]' if f['unseen'] else ''}"
        )
    if _TIMING.value:
        timed = times(
            lambda title: extractor(title, category), [_TITLE.value] * (_TIMING.value + 10)
        )
        p50, p99 = percentile(timed, 50), percentile(timed, 99)
        print(f"a title: p50 {p50} ms, p99 {p99} ms; {1000 * p50 / len(found):.1f} us an aspect")


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", "runs/hyperpave_oa_mine", "workdir of a trained run")
    _TITLE = flags.DEFINE_string("title", None, "of the product")
    _CATEGORY = flags.DEFINE_string("category", "", "of the product")
    _TOP = flags.DEFINE_integer("top", 20, "aspects to print at most", lower_bound=1)
    _TIMING = flags.DEFINE_integer("timing", 0, "calls to time", lower_bound=0)
    flags.mark_flag_as_required("title")
    command.run(main)
