"""Collects the scores of an evaluation on the host, for exact metrics of a split and of its slices."""

from collections.abc import Mapping, Sequence
import math
from typing import TYPE_CHECKING, Any
import warnings

from absl import logging
import numpy as np

from recjax.metrics.classification import (
    BINS,
    CHANNELS,
    Array,
    Metrics,
    UndefinedMetric,
    as_columns,
    bin_of,
    channels,
    compute,
    gauc,
    tie_blocks,
)

if TYPE_CHECKING:  # a data set of one's own need not bring TFDS
    from recjax.data.loading.slices import Slice


class Collector:
    """Keeps every scored row for exact metrics; beyond `max_rows` says so and keeps a histogram.

    (logit, label, weight) are float32, (row, group keys) int32: 20 bytes a row with one group.
    """

    def __init__(self, max_rows: int = 10_000_000, bins: int = BINS):
        self.max_rows, self.exact, self.count = max_rows, True, 0
        self._bins = bins
        self._blocks: list[dict[str, Array]] = []
        self._hist, self._bad = np.zeros((bins, len(CHANNELS))), 0

    def add(
        self, logits, labels, weights, row=None, groups: Mapping[str, Any] | None = None
    ) -> None:
        """Adds [B, C] or [B] rows, dropping zero weights; group keys are [B] or of the full shape."""
        z = np.asarray(logits, np.float32)
        used = np.asarray(weights) > 0
        wide = {
            "label": labels,
            "weight": weights,
            "row": np.full(z.shape, -1) if row is None else row,
        }
        wide |= {f"group/{k}": g for k, g in (groups or {}).items()}
        block = {"logit": z[used]}
        for name, x in wide.items():
            x = np.asarray(x)
            x = np.broadcast_to(x.reshape(x.shape + (1,) * (z.ndim - x.ndim)), z.shape)
            block[name] = x[used].astype(np.float32 if name in ("label", "weight") else np.int32)
        self.count += len(block["logit"])
        self._blocks.append(block)
        if self.exact and self.count > self.max_rows:
            logging.warning(
                "more than %d rows: exact metrics give way to a histogram, GAUC is lost",
                self.max_rows,
            )
            self.exact = False
        if not self.exact:
            self._fold()

    def _fold(self) -> None:
        for b in self._blocks:
            good = np.isfinite(b["logit"])
            z, y, w = (b[k][good].astype(np.float64) for k in ("logit", "label", "weight"))
            index, values = bin_of(z, self._bins), channels(np, z, y, w)
            self._hist += np.stack([np.bincount(index, v, self._bins) for v in values.T], axis=-1)
            self._bad += int((~good).sum())
        self._blocks.clear()

    def rows(self) -> dict[str, Array]:
        """Every row: logit, label, weight, row, group/<key>; RuntimeError once they were folded."""
        if not self.exact:
            raise RuntimeError(
                f"{self.count} rows were scored, {self.max_rows} can be kept; lower eval.examples, "
                "or raise max_rows"
            )
        if not self._blocks:
            return {k: np.zeros(0, np.float32) for k in ("logit", "label", "weight", "row")}
        return {k: np.concatenate([b[k] for b in self._blocks]) for k in self._blocks[0]}

    def compute(self) -> Metrics:
        """As `compute`, with gauc_<key>, gauc_<key>_groups, gauc_<key>_covered, and `exact`."""
        if not self.exact:
            return compute({"hist": self._hist, "bad": self._bad}) | {"exact": False}
        rows = self.rows()
        out = _exact(rows["logit"], rows["label"], rows["weight"]) | {"exact": True}
        for name in (k for k in rows if k.startswith("group/")):
            key = "gauc_" + name.removeprefix("group/")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UndefinedMetric)
                g = gauc(rows["logit"], rows["label"], rows[name], rows["weight"])
            out |= {key: g.value, f"{key}_groups": g.groups, f"{key}_covered": g.covered}
            if math.isnan(g.value):
                out.setdefault("undefined", f"no {name} holds both classes")
        return out


class SliceCollector:
    """A `Collector` for every part of every slice; rows are told apart by their place in the split."""

    def __init__(self, slices: Sequence["Slice"], max_rows: int = 2_000_000):
        self._slices = slices
        self._collectors = {s.name: [Collector(max_rows) for _ in s.values] for s in slices}

    def add(self, logits, labels, weights, row, groups: Mapping[str, Any] | None = None) -> None:
        """As `Collector.add`; `row` [B, C] is needed."""
        weights, row = np.asarray(weights), np.asarray(row)
        for s in self._slices:
            code = np.where(weights > 0, s.code[row], -1)
            for part in np.unique(code[code >= 0]):
                mine = weights * (code == part)
                self._collectors[s.name][part].add(logits, labels, mine, row, groups)

    def compute(self) -> dict[str, dict[str, Metrics]]:
        """Slice -> part -> metrics as `Collector.compute`; parts without a row are left out."""
        return {
            s.name: {
                value: c.compute()
                for value, c in zip(s.values, self._collectors[s.name], strict=True)
                if c.count
            }
            for s in self._slices
        }


def _exact(logits: Array, labels: Array, weights: Array) -> Metrics:
    """`compute`, exactly: the distinct logits are the bins."""
    z, y, w = as_columns(logits, labels, weights)
    good = np.isfinite(z)
    columns = channels(np, z[good], y[good], w[good]).T
    blocks = tie_blocks(z[good], *columns) if good.any() else [np.zeros(0)] * len(CHANNELS)
    return compute({"hist": np.stack(blocks, axis=-1), "bad": int((~good).sum())})
