"""Batches against a naive loop, and every way they can be asked for wrongly."""

from concurrent.futures import ThreadPoolExecutor
import dataclasses

import numpy as np
import pytest

from recjax.data.loading import batches
from recjax.data.loading.batches import Assembler, Part, widen
from recjax.data.loading.layout import BatchError, Layout, capacity_levels
from recjax.data.loading.transport import ALIGN, Spec, pack, unpack
from recjax.schema import Feature, IdSpace, Schema
from tests.messages import raises

SCHEMA = Schema(
    (IdSpace("user", 40), IdSpace("item", 200), IdSpace("tag", 30)),
    (
        Feature("user", "profile", "user"),
        Feature("hour", "context"),
        Feature("item", "candidate", "item"),
        Feature("tags", "candidate", "tag", multi=3, combiner="mean"),
        Feature("price", "candidate", transform="log1p"),
        Feature("picture", "candidate", vector=2),
        Feature("seen", "history", "item", list="views"),
        Feature("seen_tags", "history", "tag", list="views", multi=2, combiner="sum"),
        Feature("dwell", "history", list="views"),
        Feature("look", "history", vector=3, list="views"),
        Feature("bought", "history", "item", list="buys"),
        Feature("next", "target", "item", list="later"),
        Feature("click", "label"),
    ),
    groups=("visit",),
)
HISTORY = {"views": 6, "buys": 3, "later": 2}
EVENTS = 60


def make_part(seed: int, requests: int, candidates: int = 1, slots: int = 0) -> Part:
    """Random columns; two requests reach past the front of the timeline, some have no history."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, candidates + 1, requests) if candidates > 1 else None
    of = np.arange(requests) if counts is None else np.repeat(np.arange(requests), counts)
    n = len(of)
    per_request = {
        "time": rng.integers(10**9, 10**9 + 1000, requests),
        "user": rng.integers(3, 40, requests).astype(np.int32),
        "hour": rng.random(requests).astype(np.float32),
        "visit": rng.integers(9, size=requests).astype(np.int32),
    }
    for name in HISTORY:
        end = rng.integers(0, EVENTS + 1, requests)
        end[: min(2, requests)] = [0, 4][: min(2, requests)]
        per_request[f"{name}/end"] = end
        per_request[f"{name}/count"] = (rng.random(requests) * (np.minimum(end, 12) + 1)).astype(
            np.int32
        )
    columns = {name: x[of] for name, x in per_request.items()} | {
        "item": rng.integers(0, 200, n).astype(np.int32),
        "tags": rng.integers(0, 30, (n, 3)).astype(np.int32),
        "price": rng.random(n).astype(np.float32),
        "picture": rng.random((n, 2)).astype(np.float32),
        "click": rng.integers(0, 2, n).astype(np.float32),
        "weight": rng.random(n).astype(np.float32),
        "row": np.arange(100, 100 + n).astype(np.int32),
    }
    timelines = {
        name: {"time": np.sort(rng.integers(10**9 - 5000, 10**9, EVENTS))}
        | {f.name: _events(rng, f) for f in SCHEMA.features if f.list == name}
        for name in HISTORY
    }
    return Part(columns, timelines, counts, slots)


def _events(rng: np.random.Generator, f: Feature) -> np.ndarray:
    width = f.multi or f.vector
    shape = (EVENTS, width) if width else (EVENTS,)
    rows = SCHEMA.space(f.id_space).size if f.kind == "id" else 0
    return (
        rng.integers(0, rows, shape).astype(np.int32)
        if rows
        else rng.random(shape).astype(np.float32)
    )


def naive(layout: Layout, parts: list[Part]) -> dict:
    """The batch, one number at a time, with raw ids under "pos"."""
    kinds = {
        f.name: "label" if f.role == "label" else "pos" if f.kind == "id" else "dense"
        for f in layout.schema.features
    }
    out: dict = {"pos": {}, "dense": {}, "label": {}, "mask": {}, "age": {}, "group": {}}
    for f in layout.schema.features:
        out[kinds[f.name]][f.name] = np.zeros(
            layout.shape(f), np.int64 if f.kind == "id" else np.float32
        )
    b, c = layout.batch_size, layout.candidates
    for name, length in layout.history.items():
        out["mask"][name], out["age"][name] = (
            np.zeros((b, length), bool),
            np.zeros((b, length), np.int64),
        )
    out |= {"weight": np.zeros((b, c)), "valid": np.zeros((b, c), bool), "row": np.full((b, c), -1)}
    out["group"]["visit"] = np.zeros(b)
    lo = 0
    for part in parts:
        counts = [1] * part.rows if part.counts is None else part.counts
        row = 0
        for request, count in enumerate(counts):
            slot = lo + request
            out["group"]["visit"][slot] = part.columns["visit"][row]
            for f in layout.schema.features:
                if f.axes == "B":
                    out[kinds[f.name]][f.name][slot] = part.columns[f.name][row]
            for name, length in layout.history.items():
                end, n = (
                    int(part.columns[f"{name}/end"][row]),
                    int(part.columns[f"{name}/count"][row]),
                )
                mine = list(range(end - n, end))
                mine = mine[:length] if name == "later" else mine[-length:] if n else []
                for place, event in zip(range(length - len(mine), length), mine, strict=True):
                    out["mask"][name][slot, place] = True
                    age = part.columns["time"][row] - part.timelines[name]["time"][event]
                    out["age"][name][slot, place] = min(age, 2**31 - 1)
                    for f in layout.schema.features:
                        if f.list == name:
                            out[kinds[f.name]][f.name][slot, place] = part.timelines[name][f.name][
                                event
                            ]
            for candidate in range(count):
                for f in layout.schema.features:
                    if f.axes == "BC":
                        out[kinds[f.name]][f.name][slot, candidate] = part.columns[f.name][row]
                out["weight"][slot, candidate] = part.columns["weight"][row]
                out["row"][slot, candidate] = part.columns["row"][row]
                out["valid"][slot, candidate] = True
                row += 1
        lo += part.slots or part.requests
    return out


def raw(layout: Layout, batch: dict) -> dict:
    """The batch with positions turned back into ids."""
    out = dict(batch, pos={})
    for f in layout.id_features():
        lists = batch["ids"][f.id_space]
        pos = batch["pos"][f.name].reshape(len(lists), -1)
        out["pos"][f.name] = np.take_along_axis(lists, pos, axis=1).reshape(layout.shape(f))
    del out["ids"]
    return out


def assert_same(got, want, path=""):
    if isinstance(want, dict):
        assert set(got) == set(want), path
        for key in want:
            assert_same(got[key], want[key], f"{path}/{key}")
    else:
        np.testing.assert_array_equal(got, np.asarray(want).astype(got.dtype), err_msg=path)


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("bitmap", [True, False])
def test_equals_a_naive_loop(candidates, shards, bitmap, monkeypatch):
    if not bitmap:
        monkeypatch.setattr(batches, "BITMAP_ROWS", 0)
    layout = Layout(SCHEMA, 24, HISTORY, candidates, shards)
    parts = [
        make_part(1, 9, candidates),
        make_part(2, 5, candidates, slots=8),
        make_part(3, 0, candidates, slots=7),
    ]
    batch = Assembler(layout).build(parts)
    assert_same(raw(layout, batch), naive(layout, parts))
    for space, lists in batch["ids"].items():
        rows = SCHEMA.space(space).rows
        assert (np.diff(lists, axis=1) > 0).all(), "ascending, filling included"
        slots = np.arange(lists.shape[1])
        assert ((lists < rows) | (lists == rows + slots)).all()
        for f in layout.id_features(space):
            assert (
                np.take_along_axis(lists, batch["pos"][f.name].reshape(shards, -1), 1) < rows
            ).all()


def test_dtypes_and_shapes_are_those_of_the_contract():
    batch = Assembler(Layout(SCHEMA, 8, HISTORY, 2, 2)).build([make_part(0, 8, 2)])
    assert batch["pos"]["seen_tags"].shape == (8, 6, 2) and batch["dense"]["look"].shape == (
        8,
        6,
        3,
    )
    assert batch["label"]["click"].shape == batch["valid"].shape == (8, 2)
    kinds = {
        "ids": "i4",
        "pos": "i4",
        "dense": "f4",
        "mask": "?",
        "age": "i4",
        "label": "f4",
        "group": "i4",
    }
    for key, kind in kinds.items():
        assert {x.dtype for x in batch[key].values()} == {np.dtype(kind)}, key
    assert [batch[k].dtype for k in ("weight", "valid", "row")] == [
        np.dtype(k) for k in ("f4", "?", "i4")
    ]


def test_ages_saturate():
    part = make_part(0, 4)
    columns = dict(part.columns, time=np.array([2**40, 2**40, 10**9, 10**9]))
    columns["views/end"], columns["views/count"] = np.full(4, 10), np.array([3, 0, 3, 0], np.int32)
    age = Assembler(Layout(SCHEMA, 4, HISTORY)).build([dataclasses.replace(part, columns=columns)])[
        "age"
    ]["views"]
    assert (age[0, -3:] == 2**31 - 1).all() and (age[0, :-3] == 0).all() and (age[1] == 0).all()
    want = 10**9 - part.timelines["views"]["time"][7:10]
    np.testing.assert_array_equal(age[2, -3:], want)


def test_served_rows_need_no_labels_and_no_future():
    part = make_part(5, 4, candidates=3)
    absent = ("click", "weight", "row", "visit", "later/end", "later/count")
    columns = {k: v for k, v in part.columns.items() if k not in absent}
    layout = Layout(SCHEMA, 6, HISTORY, 3)
    served = Assembler(layout).build([dataclasses.replace(part, columns=columns, slots=6)])
    full = Assembler(layout).build([dataclasses.replace(part, slots=6)])
    for key in ("item", "tags", "seen", "bought"):
        np.testing.assert_array_equal(
            raw(layout, served)["pos"][key], raw(layout, full)["pos"][key]
        )
    assert not served["mask"]["later"].any() and not served["label"]["click"].any()
    np.testing.assert_array_equal(served["weight"], served["valid"])


# --------------------------------------------------------------------------------------- capacities


def test_overflow_goes_to_the_next_level_and_then_raises():
    layout = Layout(SCHEMA, 16, HISTORY, 1, 2)
    parts = [make_part(7, 16)]
    need = Assembler(layout).need(parts)
    exact, worst = dict(need), layout.worst()
    short = dict(need, item=need["item"] - 1)
    assembler = Assembler(layout, [short, exact, worst])
    batch, level = assembler.open(assembler.packed(parts))
    assert level == 1 and batch["ids"]["item"].shape == (2, need["item"])
    assert (
        Assembler(layout, [exact, worst]).open(Assembler(layout, [exact, worst]).packed(parts))[1]
        == 0
    )
    assert_same(raw(layout, batch), naive(layout, parts))
    with raises(BatchError, "'item'", f"{need['item']} unique", need["item"] - 1):
        Assembler(layout, [short]).build(parts)


def test_levels_leave_headroom_and_end_at_the_worst_case():
    layout = Layout(SCHEMA, 64, HISTORY)
    levels = capacity_levels(layout, {"user": 10, "item": 100, "tag": 20})
    assert levels[0] == {"user": 16, "item": 120, "tag": 24} and levels[-1] == layout.worst()
    assert layout.worst() == {"user": 40, "item": 200, "tag": 32}, (
        "never more than the table, or the positions"
    )
    assert Layout(SCHEMA, 4, HISTORY).worst()["user"] == 4
    assert len({tuple(level.items()) for level in levels}) == len(levels)


def test_widened_lists_keep_positions_and_stay_ascending():
    assembler = Assembler(Layout(SCHEMA, 16, HISTORY, 1, 2))
    ids = assembler.build([make_part(7, 16)])["ids"]["item"]
    wide = widen(ids, ids.shape[1] + 5, SCHEMA.space("item").rows)
    np.testing.assert_array_equal(wide[:, : ids.shape[1]], ids)
    assert wide.dtype == np.int32 and (np.diff(wide, axis=1) > 0).all()


# ------------------------------------------------------------------------------------------ packing


def test_packing_round_trip_copies_nothing_and_aligns():
    fields = {
        ("a", "x"): (np.int32, (3, 5)),
        ("a", "y"): (np.bool_, (7,)),
        ("b",): (np.float32, (2, 1)),
    }
    rng = np.random.default_rng(0)
    tree = {
        "a": {"x": rng.integers(9, size=(3, 5), dtype=np.int32), "y": rng.random(7) < 0.5},
        "b": rng.random((2, 1)).astype(np.float32),
    }
    spec = Spec.of(fields)
    buffer = pack(tree, spec)
    opened = unpack(buffer, spec)
    assert_same(opened, tree)
    for leaf in (opened["a"]["x"], opened["a"]["y"], opened["b"]):
        assert np.shares_memory(leaf, buffer) and leaf.ctypes.data % ALIGN == 0


def test_a_packed_batch_is_one_aligned_buffer():
    assembler = Assembler(Layout(SCHEMA, 16, HISTORY))
    buffer = assembler.packed([make_part(1, 16)])
    assert buffer.dtype == np.uint8 and buffer.ndim == 1 and buffer.flags.c_contiguous
    batch, _ = assembler.open(buffer)
    assert np.shares_memory(batch["ids"]["item"], buffer)
    np.testing.assert_array_equal(
        assembler.open(buffer.copy())[0]["pos"]["seen"], batch["pos"]["seen"]
    )


def test_threads_do_not_disturb_each_other():
    assembler = Assembler(Layout(SCHEMA, 64, HISTORY, 1, 4))
    parts = [[make_part(seed, 64)] for seed in range(8)]
    alone = [assembler.packed(p) for p in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(assembler.packed, parts * 5))
    for got, want in zip(together, alone * 5, strict=True):
        assert_same(assembler.open(got)[0], assembler.open(want)[0])


# ------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("bad", [200, -1])
@pytest.mark.parametrize("where", ["item", "seen"])
def test_an_id_outside_its_vocabulary_is_named(bad, where):
    part = make_part(0, 8)
    column = part.timelines["views"] if where == "seen" else part.columns
    column[where][:] = bad
    assert SCHEMA.space("item").rows == 200
    with raises(BatchError, f"'{where}'", f"id {bad}", "'item'", "200 rows"):
        Assembler(Layout(SCHEMA, 8, HISTORY)).build([part])


def test_errors_name_the_culprit():
    with raises(BatchError, "10", "4"):
        Layout(SCHEMA, 10, HISTORY, shards=4)
    with raises(BatchError, "'buys'", "history"):
        Layout(SCHEMA, 8, {"views": 3, "later": 2})
    assembler, part = Assembler(Layout(SCHEMA, 8, HISTORY, 2)), make_part(0, 8, 2)
    with raises(BatchError, "8", "12", "slots"):
        Assembler(Layout(SCHEMA, 12, HISTORY, 2)).build([part])
    with raises(BatchError, "3", "2", "candidates"):
        assembler.build([make_part(0, 8, 3)])
    missing = {k: v for k, v in part.columns.items() if k != "price"}
    with raises(BatchError, "'price'"):
        assembler.build([dataclasses.replace(part, columns=missing)])
    with raises(BatchError, "'views'", "timeline"):
        assembler.build([dataclasses.replace(part, timelines={})])
    part.columns["buys/end"][-1] = EVENTS + 1
    with raises(BatchError, "'buys'", "61", "60", "prepare"):
        assembler.build([part])


def test_times_until_far_future_events_saturate_too():
    part = make_part(0, 4)
    columns = dict(part.columns, time=np.full(4, -(2**40)))
    columns["later/end"], columns["later/count"] = np.full(4, 10), np.full(4, 2, np.int32)
    columns["views/count"] = np.zeros(4, np.int32)
    batch = Assembler(Layout(SCHEMA, 4, HISTORY)).build(
        [dataclasses.replace(part, columns=columns)]
    )
    mask, age = batch["mask"]["later"], batch["age"]["later"]
    assert mask.sum() == 8 and (age[mask] == -(2**31)).all() and not age[~mask].any()


@pytest.mark.parametrize("rows", [1, 2, 300, 1 << 40, 1 << 62])
@pytest.mark.parametrize("count", [0, 1, 2, 257])
def test_sorted_unique_ids_are_numpys(rows, count):
    """Also where id and place do not fit one int64 together."""
    ids = np.random.default_rng(count).integers(0, rows, count)
    ids[: count // 2] = ids[-1:]  # many repetitions of one
    got, inverse = batches._unique_by_sorting(ids, rows)
    want, places = np.unique(ids, return_inverse=True)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(inverse, places)
