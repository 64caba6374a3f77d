"""Which device holds which rows, and how rows travel: the plan.

    p = plan(system.tables, schema, mesh, measure(host_batches, schema, mesh.size), rules)
    print(p)
    batch = p.route(host_batch)       # NumPy; adds what the all-to-all exchange needs

Three rules. `replicated`: every device holds the table; for small ones. `row`: contiguous blocks of rows, one per
device (the vocabulary has spread hot ids over them); looked up either by `all_gather`, exact whatever the batch, or
by `all_to_all`, which moves only the rows asked for, in buckets whose capacity comes from the data. `column`: every
device holds d / n columns of every row; balanced whatever the ids, at 4 bytes an id more for each device.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import re
import statistics
from typing import TypedDict

from absl import logging
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from recjax.batch import Array, Batch
from recjax.embedding import lanes
from recjax.embedding.optimizers import OPTIMIZERS
from recjax.schema import Schema, SchemaError, Table

RULES = ("replicated", "row", "row:all_gather", "row:all_to_all", "column")
LAYOUTS = (
    "packed",
    "unpacked",
)  # rules too: how a device stores its rows (recjax.embedding.lanes)
INT32 = np.iinfo(np.int32).max
MARGIN = 1 << 24  # of 32-bit numbers, for the fillers that follow a table's last id
SMALL = 20_480  # rows up to which a table is replicated
MAX_OVERFLOW = 1e-4  # chance per step that a bucket overflows
NEXT = 1.5  # the next bucket of a step whose ids do not fit


class Exchange(TypedDict, total=False):
    """`Batch.exchange`: what devices tell each other about ids. Sizes: S shards of n devices, c slots of a bucket.

    Attributes:
      need: Id space -> the fullest bucket that a process of the run has; on the host, before `Plan.route`.
      send: Id space -> int32 [S, n, c], the rows that each shard asks of each owner, in the owner's numbering; unused
        slots hold the block size, one past the owner's last row.
      starts: Id space -> int32 [S, n + 1], where the owners' parts begin among the shard's ids.
      asked: Id space -> int32 [n * n, c], what each owner is asked for; on devices, after `exchange_ids`.
      everyone: Id space -> int32 [n, U], all shards' ids; likewise.
    """

    need: dict[str, int]
    send: dict[str, Array]
    starts: dict[str, Array]
    asked: dict[str, Array]
    everyone: dict[str, Array]


class CapacityError(ValueError):
    """A batch asks one owner for more rows than the largest bucket holds; nothing was dropped or updated."""


@dataclasses.dataclass(frozen=True)
class Skew:
    """How the unique ids of a device's shard fall on the owners of an id space.

    Attributes:
      slots: U of the batches it was measured on.
      unique: Mean number of unique ids of a shard.
      mean: Mean count of the fullest owner's bucket.
      deviation: Standard deviation of a bucket's count.
    """

    slots: int
    unique: float
    mean: float
    deviation: float

    @classmethod
    def uniform(cls, slots: int, owners: int) -> "Skew":
        """What a perfect bijection gives: binomial counts."""
        mean = slots / owners
        return cls(slots, slots, mean, math.sqrt(mean * (1 - 1 / owners)))

    def capacity(self, slots: int, owners: int, chance: float) -> int:
        """Bucket size that overflows with at most `chance` per step, for shards of `slots` unique ids.

        A normal tail over owners^2 buckets a step, in multiples of 8.
        """
        scale = 1.0 if slots == self.slots else slots / max(self.unique, 1.0)
        z = -statistics.NormalDist().inv_cdf(chance / owners**2)
        size = self.mean * scale + z * self.deviation * math.sqrt(scale) + 1
        return min(-(-math.ceil(size) // 8) * 8, slots)


def measure(batches: Iterable[Batch], schema: Schema, owners: int) -> dict[str, Skew]:
    """Skew of every id space over host batches; with several processes, the worst of theirs."""
    out = {}
    batches = [b for b in batches if "ids" in b]
    for space in schema.id_spaces if batches else ():
        ids = [np.asarray(b["ids"][space.name]) for b in batches]  # each [S, U], U by its level
        counts = np.concatenate([np.diff(_starts(x, space.rows, owners)) for x in ids])  # [k S, n]
        deviation = max(counts.std(0).max(), math.sqrt(counts.mean() * (1 - 1 / owners)))
        found = [ids[0].shape[1], counts.sum(1).mean(), counts.mean(0).max(), deviation]
        slots, *rest = _worst(found)
        out[space.name] = Skew(int(slots), *rest)
    return out


def _worst(numbers: list[float]) -> list[float]:
    if jax.process_count() == 1:
        return numbers
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.asarray(numbers, np.float32)).max(0).tolist()


def _starts(ids: np.ndarray, rows: int, owners: int) -> np.ndarray:
    """Ascending unique ids [S, U] -> where each owner's bucket starts, [S, n + 1]."""
    edges = np.arange(owners + 1, dtype=np.int64) * -(-rows // owners)
    return np.stack([np.searchsorted(s, edges) for s in ids])


def _fullest(starts: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {s: int(np.diff(x).max()) for s, x in starts.items()}


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one table lies (`rule`), how its rows travel (`exchange`), why, and how many rows a physical row holds."""

    rule: str
    exchange: str = ""
    reason: str = ""
    parts: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Placement of every table on a mesh.

    Attributes:
      mesh: One axis.
      tables: Declarations.
      rows: id space -> rows.
      placed: table path -> Placement.
      skew: id space -> Skew, where known.
      overflow: id space -> batches so far that needed the next bucket.
    """

    mesh: Mesh
    tables: tuple[Table, ...]
    rows: Mapping[str, int]
    placed: Mapping[str, Placement]
    skew: Mapping[str, Skew]
    overflow: Counter = dataclasses.field(default_factory=Counter)

    @property
    def devices(self) -> int:
        return self.mesh.size

    @property
    def axis(self) -> str:
        return self.mesh.axis_names[0]

    def block(self, space: str) -> int:
        """Rows of an id space that one owner holds."""
        return self.rows[space] // self.devices

    def parts(self, table: Table) -> int:
        """K: logical rows in a stored row (1: not packed)."""
        return self.placed[table.path].parts

    def spaces(self, *exchanges: str) -> list[str]:
        """Id spaces that have a table with one of these exchanges."""
        found = (t.id_space for t in self.tables if self.placed[t.path].exchange in exchanges)
        return list(dict.fromkeys(found))

    def spec(self, path: str, ndim: int) -> P:
        """How one array of a table (rows or optimizer state) is split."""
        wide = P(None, self.axis) if ndim == 2 else P()
        return {"replicated": P(), "row": P(self.axis), "column": wide}[self.placed[path].rule]

    def specs(self, values: dict) -> dict:
        """`spec` of every leaf of {path: {"rows": ..., ...}}, or of arrays right under a path."""
        return {p: jax.tree.map(lambda x, p=p: self.spec(p, x.ndim), v) for p, v in values.items()}

    def shardings(self, values: dict) -> dict:
        return jax.tree.map(
            lambda s: NamedSharding(self.mesh, s),
            self.specs(values),
            is_leaf=lambda s: isinstance(s, P),
        )

    def place(self, values: dict) -> dict:
        """Tables from wherever they are onto the mesh."""
        return jax.device_put(values, self.shardings(values))

    def capacities(self, space: str, slots: int) -> list[int]:
        """Bucket sizes to try, smallest first."""
        skew = self.skew.get(space) or Skew.uniform(slots, self.devices)
        first = skew.capacity(slots, self.devices, MAX_OVERFLOW)
        return [first, min(math.ceil(first * NEXT), slots)]

    def need(self, batch: Batch) -> dict[str, int]:
        """The fullest bucket of this process's share of a batch, by id space: what `route` takes a capacity for.

        Of several processes each has its own; they agree on the largest (`agreed`).
        """
        spaces = self.spaces("all_to_all") if "ids" in batch else []
        return _fullest({s: self._starts(batch, s) for s in spaces})

    def agreed(self, batch: Batch, need: Mapping[str, int]) -> Batch:
        """The batch, to be routed with room for the largest `need` of all processes."""
        return {**batch, "exchange": Exchange(need=dict(need))} if need else batch

    def _starts(self, batch: Batch, space: str) -> np.ndarray:
        return _starts(batch["ids"][space], self.rows[space], self.devices)

    def route(self, batch: Batch) -> Batch:
        """The host batch with what each shard asks of each owner: `send` and `starts` of its `Exchange`.

        So devices know a row as (owner, row of the owner), and a vocabulary may pass 32-bit ids: `ids` then come as
        int64 and go on saturated, good for nothing but telling padding.

        A batch that does not fit takes the next capacity (another shape, hence a program of its own) and is counted.

        Raises:
          CapacityError: It does not fit the last one either.
        """
        spaces = self.spaces("all_to_all")
        if not spaces or "ids" not in batch:
            return batch
        starts = {s: self._starts(batch, s) for s in spaces}
        need = batch.get("exchange", {}).get("need") or _fullest(starts)
        send = {
            s: self._buckets(s, np.asarray(batch["ids"][s]), starts[s], need[s]) for s in spaces
        }
        starts = {s: x.astype(np.int32) for s, x in starts.items()}
        ids = {
            s: x if x.dtype == np.int32 else np.minimum(x, INT32).astype(np.int32)
            for s, x in batch["ids"].items()
        }
        return {**batch, "ids": ids, "exchange": Exchange(send=send, starts=starts)}

    def route_shapes(self, batch: Batch) -> Batch:
        """What `route` makes of a batch that is only shapes."""
        spaces, n = self.spaces("all_to_all"), self.devices
        if not spaces:
            return batch
        size = {s: self.capacities(s, batch["ids"][s].shape[1])[0] for s in spaces}
        send = {s: jax.ShapeDtypeStruct((n, n, c), np.int32) for s, c in size.items()}
        starts = {s: jax.ShapeDtypeStruct((n, n + 1), np.int32) for s in spaces}
        return {**batch, "exchange": Exchange(send=send, starts=starts)}

    def _buckets(self, space: str, ids: np.ndarray, starts: np.ndarray, need: int) -> np.ndarray:
        n, block = self.devices, self.block(space)
        counts = np.diff(starts)
        sizes = self.capacities(space, ids.shape[1])
        fits = [c for c in sizes if c >= need]
        if not fits:
            raise CapacityError(
                f"id space {space!r}: one device asks {need} rows of one owner and the largest bucket holds "
                f"{sizes[-1]}; spread the ids over rows (recjax.data.store.vocabulary.spread), or look these tables up with "
                "--config.embedding.placement=(('.*', 'row:all_gather'),)"
            )
        if fits[0] != sizes[0]:
            self.overflow[space] += 1
            logging.log_every_n_seconds(
                logging.WARNING, "id space %r: %d batches took the next exchange bucket", 60, space, self.overflow[space]
            )  # fmt: skip
        slot = np.arange(fits[0])
        take = np.minimum(starts[:, :-1, None] + slot, ids.shape[1] - 1).reshape(len(ids), -1)
        local = np.take_along_axis(ids, take, 1).reshape(len(ids), n, fits[0])
        local = local - (np.arange(n, dtype=np.int64) * block)[:, None]
        return np.where(slot < counts[..., None], local, block).astype(np.int32)

    def bytes_per_device(self, table: Table) -> int:
        """Of rows and optimizer state."""
        shape = jax.ShapeDtypeStruct((self.rows[table.id_space], table.dim), table.dtype)
        args = shape, table.accumulator
        state = {} if table.frozen else jax.eval_shape(OPTIMIZERS[table.optimizer].init, *args)
        rule = self.placed[table.path].rule
        whole = rule == "replicated"

        def split(x) -> int:
            return 1 if whole or (rule == "column" and x.ndim == 1) else self.devices

        return sum(x.size * x.dtype.itemsize // split(x) for x in [shape, *jax.tree.leaves(state)])

    def traffic(self, table: Table) -> int | None:
        """Bytes a device exchanges for a table each training step (as `hlo.collectives` counts them); None: unknown.

        Ids that several tables share are counted for each.
        """
        n, skew, placed = self.devices, self.skew.get(table.id_space), self.placed[table.path]
        if n == 1 or (skew is None and placed.exchange != "sum"):
            return 0 if n == 1 else None
        width, trained = (
            table.dim * np.dtype(jax.numpy.dtype(table.dtype)).itemsize,
            not table.frozen,
        )
        back = 4 * table.dim * trained
        if placed.exchange == "sum":
            return 2 * 4 * (table.dim + 1) * self.rows[table.id_space] * trained
        if placed.exchange == "gather":
            return n * skew.slots * (4 + back) * trained
        if placed.exchange == "all_to_all":
            return n * self.capacities(table.id_space, skew.slots)[0] * (4 + width + back)
        if placed.exchange == "columns":
            return n * skew.slots * 4 + skew.slots * (width + back)
        return n * skew.slots * (4 + width + back)

    def __str__(self) -> str:
        """One line a table: bytes per device and expected traffic per device and step."""
        lines = [f"{'table':24} {'rows':>13} {'dim':>4} {'optimizer':16} {'placement':16} "
                 f"{'MB/device':>10} {'MB/step':>8}  why"]  # fmt: skip
        for t in self.tables:
            p, traffic = self.placed[t.path], self.traffic(t)
            moved = "?" if traffic is None else f"{traffic / 1e6:.3g}"
            where = f"{p.rule}:{p.exchange}" if p.rule == "row" else p.rule
            where += f" x{p.parts}" if p.parts > 1 else ""
            lines.append(
                f"{t.path:24} {self.rows[t.id_space]:13,} {t.dim:4} {t.optimizer:16} {where:16} "
                f"{self.bytes_per_device(t) / 1e6:10.4g} {moved:>8}  {p.reason}"
            )
        total = sum(self.bytes_per_device(t) for t in self.tables)
        return "\n".join(
            [*lines, f"{total / 1e6:.4g} MB of tables on each of {self.devices} devices"]
        )


def plan(
    tables: Sequence[Table],
    schema: Schema,
    mesh: Mesh,
    skew: Mapping[str, Skew] | None = None,
    rules: Sequence[tuple[str, str]] = (),
) -> Plan:
    """Places every table.

    Args:
      tables: Declarations.
      schema: Its id spaces give the rows.
      mesh: One axis.
      skew: From `measure`. Without it rows travel by all_gather, which needs no capacity.
      rules: (regex over table paths, one of RULES or LAYOUTS); the first match of each kind wins, before the
        planner's own choice, which packs narrow tables where the mesh is of TPUs.

    Raises:
      SchemaError: An unknown rule, a rule that matches no table, or one that the table's shape does not allow.
    """
    skew = dict(skew or {})
    for pattern, rule in rules:
        if rule not in RULES + LAYOUTS:
            raise SchemaError(
                f"embedding.placement: unknown rule {rule!r}; use one of {', '.join(RULES + LAYOUTS)}"
            )
        if tables and not any(re.search(pattern, t.path) for t in tables):
            raise SchemaError(
                f"embedding.placement: {pattern!r} matches no table; there are {[t.path for t in tables]}"
            )
    rows = {s.name: s.rows for s in schema.id_spaces}
    tpu = _platform(mesh) == "tpu"
    placed = {}
    for t in tables:
        given = [rule for pattern, rule in rules if re.search(pattern, t.path)]
        where = next((rule for rule in given if rule in RULES), "")
        layout = next((rule for rule in given if rule in LAYOUTS), "packed" if tpu else "unpacked")
        found = _place(t, rows[t.id_space], mesh.size, skew.get(t.id_space), where, tpu)
        _check_ids(t, rows[t.id_space], mesh.size, found)
        k = _parts(t, rows[t.id_space], mesh.size, found) if layout == "packed" else 1
        placed[t.path] = dataclasses.replace(found, parts=k)
    return Plan(mesh, tuple(tables), rows, placed, skew)


def _check_ids(t: Table, rows: int, n: int, placed: Placement) -> None:
    most = INT32 - MARGIN
    if rows > most and placed.exchange != "all_to_all":
        raise SchemaError(
            f"table {t.path!r}: {rows:,} rows pass 32-bit ids; only 'row:all_to_all', over measured batches, looks "
            "such tables up (as owner and row of the owner)"
        )
    if rows > n * most:
        raise SchemaError(
            f"table {t.path!r}: {rows // n:,} rows a device pass 32-bit numbers; use {-(-rows // most)} devices or more"
        )


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _parts(t: Table, rows: int, n: int, placed: Placement) -> int:
    """K of a table to be packed. Columns stay apart, and a dense sum over a small table wants its rows apart."""
    if placed.rule == "column" or placed.exchange == "sum" or rows <= SMALL:
        return 1
    return lanes.parts(t.dim, rows // n if placed.rule == "row" else rows)


def _place(
    t: Table, rows: int, n: int, skew: Skew | None, given: str, tpu: bool = False
) -> Placement:
    if n == 1:
        return Placement("replicated", "", "one device")
    if given == "column" and t.dim % n or given.startswith("row") and rows % n:
        size = f"width {t.dim}" if given == "column" else f"{rows} rows"
        raise SchemaError(
            f"table {t.path!r}: {size} does not divide over {n} devices; choose another rule than {given!r}"
        )
    rule, reason = (given.partition(":")[0], "asked for") if given else _choose(t, rows, n, tpu)
    if rule == "column":
        return Placement(rule, "columns", reason)
    if rule == "row":
        fast = "all_to_all" if skew is not None else "all_gather"
        return Placement(rule, given.partition(":")[2] or fast, reason)
    # A dense sum over a table that is larger than the batch's ids would cost O(vocabulary).
    small = skew is None or rows <= n * skew.slots
    return Placement(rule, "sum" if small and rows <= SMALL else "gather", reason)


def _choose(t: Table, rows: int, n: int, tpu: bool) -> tuple[str, str]:
    if rows <= SMALL:
        return "replicated", f"at most {SMALL:,} rows"
    # a TPU stores fewer than 128 columns in 128 lanes
    if rows < INT32 - MARGIN and t.dim % n == 0 and t.dim >= (lanes.LANES if tpu else 8) * n:
        return "column", f"width is at least 8 x {n} devices"
    if rows % n:
        return "replicated", f"rows do not divide over {n} devices"
    return "row", "large"
