"""Does a model weigh the past as the data says? Measured and learned correlation, side by side (TIN's figures 1 and 5).

    python -m experiments.tin_correlation --workdir=runs/compare/tin

trains DIN, TIN, SASRec and BST (`:decisive`, seed 0; into the folders that experiments.compare uses, so finished runs are
taken as they are) and draws, for the departments of The Complete Journey, how much an event of a department at a position
tells about the purchase of a candidate of a department: as mutual information on the data, and as each model has learnt
it (recjax/metrics/correlation.py). Writes correlation.png and correlation.json (every grid, and each model's rank correlation with
the measurement over all cells of at least `--least` events), and prints the latter.

Any config whose model exports "correlation" can be drawn: `--config=FILE[:ARG]`, with `--field` a candidate id that the
history has too.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from absl import flags, logging
from etils import epath
import jax
import numpy as np
from scipy.stats import spearmanr

from experiments.boards import pyplot
from experiments.compare import Entry, entry
from recjax import command, embedding
from recjax.batch import Batch
from recjax.inputs import raw_ids
from recjax.layers.fields import matched_fields
from recjax.metrics import correlation
from recjax.runtime import mesh as meshes
from recjax.runtime.run import set_up, write_json
from recjax.schema import Schema, SchemaError
from recjax.training.loop import train
from recjax.training.opening import open_run, placement

CONFIGS = [f"experiments/{name}_complete_journey.py:decisive" for name in ("din", "tin", "sasrec", "bst")]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Grid:
    """Correlation of (event category, position, target category), and the events behind each cell.

    Attributes:
      value: [size, P, size]; NaN where there are no events.
      events: [size, P, size].
    """

    value: np.ndarray
    events: np.ndarray


def event_field(schema: Schema, field: str) -> str:
    """The history field of the same id space as candidate field `field`."""
    for name in schema.lists:
        own = schema.select("history", kind="id", list=name)
        for event, candidate in zip(own, matched_fields(schema, name), strict=True):
            if candidate is not None and candidate.name == field:
                return event.name
    raise SchemaError(f"--field={field} is no candidate id that a history field shares")


def columns(schema: Schema, batch: Batch, field: str, positions: int):
    """Of a batch's real rows: events [N, P], mask [N, P], target [N], label [N]; candidate 0 of each request."""
    past = event_field(schema, field)
    real = batch["valid"][:, 0]
    events = np.asarray(raw_ids(schema, batch, past))[real, -positions:]
    mask = batch["mask"][schema.feature(past).list][real, -positions:]
    target = np.asarray(raw_ids(schema, batch, field))[real, 0]
    return events, mask, target, batch["label"][schema.labels[0]][real, 0]


def measured(data: Any, splits: Sequence[str], field: str, positions: int, examples: int) -> Grid:
    """CTC in bits, over all rows of the splits together (the authors pool training and test rows)."""
    parts = []
    for split in splits:
        for batch in data.batches(split, 4096, examples=examples):
            parts.append(columns(data.schema, batch, field, positions))
    events, mask, target, label = (np.concatenate(x) for x in zip(*parts, strict=True))
    size = data.schema.space(data.schema.feature(field).id_space).size
    seen = correlation.position_counts(events, mask, target, np.ones(len(target)), size)
    bits = correlation.ctc(events, mask, target, label, size)
    return Grid(np.where(seen > 0, bits, np.nan), seen)


def learned(run: epath.PathLike, split: str, field: str, positions: int, examples: int) -> Grid:
    """Mean of the model's function "correlation" over the events of each cell."""
    config, data, system, trees, _ = open_run(run)
    if "correlation" not in system.exports:
        raise ValueError(f"{run}: model {config.model.name!r} exports no function 'correlation'")
    event_field(data.schema, field)
    mesh = meshes.make()
    plan = placement(system, config, mesh)
    size = data.schema.space(data.schema.feature(field).id_space).size

    @jax.jit
    def of_batch(trees, batch):
        rows = embedding.gather(system.tables, trees.tables, batch, plan)
        return system.exports["correlation"].fn(trees.params(rows), batch)["correlation"]

    total = seen = np.zeros(())
    for batch in data.batches(split, config.eval.batch, examples=examples, shards=mesh.size):
        cor = of_batch(trees, meshes.put(mesh, plan.route(batch)))
        cor = np.asarray(cor, np.float64)[batch["valid"][:, 0], 0, -positions:]
        events, mask, target, _ = columns(data.schema, batch, field, positions)
        args = events[:, -cor.shape[1] :], mask[:, -cor.shape[1] :], target
        total = total + correlation.position_counts(*args, cor, size)
        seen = seen + correlation.position_counts(*args, np.ones(len(target)), size)
    with np.errstate(invalid="ignore"):
        return Grid(total / seen, seen)


def agreement(measure: Grid, model: Grid, least: int) -> float:
    """Spearman's rank correlation over the cells that both know from at least `least` events."""
    both = (measure.events >= least) & (model.events >= least)
    if both.sum() < 3:
        return float("nan")
    return float(spearmanr(measure.value[both], model.value[both]).statistic)


def draw(grids: dict[str, Grid], names: dict[int, str], targets: Sequence[int], out: epath.Path):
    """One row of heat maps a target category, one column a grid; each scaled to [0, 1] as the authors' are."""
    plt = pyplot()
    shape = len(targets), len(grids)
    figure, axes = plt.subplots(*shape, figsize=(3.2 * shape[1], 2.6 * shape[0]), squeeze=False)
    shown = list(names)
    for row, target in zip(axes, targets, strict=True):
        for axis, (title, grid) in zip(row, grids.items(), strict=True):
            axis.imshow(correlation.min_max(grid.value[shown][:, :, target]), vmin=0, vmax=1)
            axis.set_title(f"{title}: {names[target]}", fontsize=7)
            axis.set_xticks(range(grid.value.shape[1]), range(1, grid.value.shape[1] + 1))
            axis.set_yticks(range(len(shown)), list(names.values()) if axis is row[0] else [])
            axis.tick_params(labelsize=5)
    axes[-1][0].set_xlabel("position before the request", fontsize=7)
    figure.tight_layout()
    temporary = out.with_name(f".{out.name}")
    figure.savefig(str(temporary), dpi=130, format="png")
    plt.close(figure)
    temporary.replace(out)


def run(
    competitors: Sequence[Entry],
    workdir: epath.PathLike,
    *,
    field: str,
    split: str,
    pool: Sequence[str],
    positions: int = 10,
    categories: int = 10,
    targets: int = 3,
    examples: int = 0,
    least: int = 100,
) -> dict:
    """Trains what is not trained, measures, draws and writes; returns correlation.json's content."""
    root, grids, data = epath.Path(workdir), {}, None
    for e in competitors:
        place = root / e.name / "seed-0"
        train(e.of_seed(0), place)
        data = data or open_run(place).data
        logging.info("what %s has learnt", e.name)
        grids[e.name] = learned(place, split, field, positions, examples)
    measure = measured(data, pool, field, positions, examples)
    grids = {"measured": measure, **grids}
    often = np.argsort(-measure.events.sum((0, 1)))
    shown = {int(i): str(i) for i in np.sort(often[:categories])}
    if data.vocabulary_hash(data.schema.feature(field).id_space):
        words = data.vocabulary(data.schema.feature(field).id_space)
        words = dict(zip(words["id"].to_list(), words["value"].to_list(), strict=True))
        shown = {i: str(words.get(i, i)) for i in shown}
    draw(grids, shown, [int(i) for i in often[:targets]], root / "correlation.png")
    found = dict(
        field=field,
        split=split,
        pool=list(pool),
        least=least,
        agreement={k: agreement(measure, g, least) for k, g in grids.items() if g is not measure},
        same_category={k: correlation.diagonal(g.value, g.events) for k, g in grids.items()},
        names=shown,
        grids={k: g.value[list(shown)][:, :, list(shown)] for k, g in grids.items()},
    )
    write_json(root / "correlation.json", found, indent=None)
    return found


def main(_) -> None:
    pyplot()  # before the hours of training
    set_up()
    found = run(
        [entry(t, _SET.value) for t in _CONFIG.value],
        _WORKDIR.value,
        field=_FIELD.value,
        split=_SPLIT.value,
        pool=_POOL.value,
        positions=_POSITIONS.value,
        examples=_EXAMPLES.value,
        least=_LEAST.value,
    )
    print(
        "| | rank correlation with the measurement | same category at positions 1, 2, 5, 10 (of 1) |"
    )
    print("|---|---|---|")
    for name, same in found["same_category"].items():
        curve = np.asarray(same)[[0, 1, 4, 9]] / same[0] if len(same) > 9 else np.asarray(same)
        value = found["agreement"].get(name)
        shown = "" if value is None else f"{value:.3f}"
        print(f"| {name} | {shown} | {', '.join(f'{x:.2f}' for x in curve)} |")
    print(f"drawn in {_WORKDIR.value}/correlation.png")


if __name__ == "__main__":
    _CONFIG = flags.DEFINE_multi_string("config", CONFIGS, "FILE[:ARG] key=value ...")
    _SET = flags.DEFINE_multi_string("set", [], "key=value for every config")
    _WORKDIR = flags.DEFINE_string("workdir", "runs/compare/tin", "folder of runs and results")
    _FIELD = flags.DEFINE_string("field", "department", "candidate id field")
    _SPLIT = flags.DEFINE_string("split", "test_matched", "rows the models are asked about")
    _POOL = flags.DEFINE_list("pool", ["train_matched", "validation_matched", "test_matched"], "rows measured")  # fmt: skip
    _POSITIONS = flags.DEFINE_integer("positions", 10, "events before the request", lower_bound=1)
    _EXAMPLES = flags.DEFINE_integer("examples", 0, "prefix of each split; 0: all")
    _LEAST = flags.DEFINE_integer("least", 100, "events of a cell that counts")
    command.run(main)
