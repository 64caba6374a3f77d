"""An own log's model over HTTP: from user, time and candidates alone the score that the evaluator's data give.

Held-out impressions are asked again with the log's rows replayed as events up to each; ids come as text, integers and floats.
"""

import jax
import numpy as np
import polars as pl
import pytest

from recjax import embedding, models
from recjax.data.loading.batches import Part
from recjax.data.loading.loader import PreparedData
from recjax.data.logs import prepare as logs
from recjax.data.logs import served
from recjax.data.logs.values import as_id
from recjax.data.store.prepared import Prepared
from recjax.serving import artifact
from recjax.serving.own_log import Known, OwnLog, spelled
from recjax.serving.scorer import Scorer
from recjax.serving.service import RELOAD, Limits
from recjax.trees import Trees
from tests.serving.client import serving

ROWS, START = 600, 1_709_251_200
LIMITS = Limits((1,), (8,), deadline_ms=60_000)

SHOWN = """user, item, time = "uid", "iid", "ts"
labels = ["click"]
scene, page, session_gap, utc_offset = "tab", "page", "40m", 5.5
user_columns, user_table = ["age", "plan"], "users.csv"
item_columns, item_table = ["cat", "tags", "cost", "vec"], "items.parquet"
context_columns = ["device", "query", "load"]
dense, vectors = {"cost": "log1p", "load": "identity"}, ["vec"]
indicators, multi = ["cost", "vec"], {"tags": "|"}
buckets, hashed = {"age": [18, 30]}, {"query": 50}
crosses = [("device", "age"), ("device", "os")]
movelines = {"moves": []}
min_count = 1
"""

EVENTS = """user, item, time = "uid", "iid", "ts"
action, labels = "event", {"buy": ["4", 5]}
history = {"bought": [4.0, 5], "seen": [1]}
item_columns, user_columns = ["price", "cat"], ["plan"]
dense = {"price": "log1p"}
min_count, negatives_per_positive = 1, 3
"""


def shown_log(folder) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    user, item = rng.integers(40, size=ROWS), rng.integers(30, size=ROWS)
    frame = pl.DataFrame(
        {
            "uid": user, "iid": item, "ts": START + np.cumsum(rng.integers(1, 1500, ROWS)),
            "click": rng.integers(0, 2, ROWS), "tab": rng.integers(0, 3, ROWS), "page": np.arange(ROWS) // 3,
            "age": [[15, 18, 44, None][u % 4] for u in user], "cat": [f"c{i % 5}" for i in item],
            "device": rng.choice(["phone", "tv"], ROWS), "os": rng.choice(["a", "b"], ROWS),
            "query": [f"q{q}" for q in rng.integers(0, 99, ROWS)], "load": rng.normal(size=ROWS).round(3),
        }
    )  # fmt: skip
    frame = frame.unique(["uid", "page"], maintain_order=True)
    frame.write_csv(folder / "log.csv")
    pl.DataFrame({"uid": range(38), "plan": [f"p{u % 3}" for u in range(38)]}).write_csv(
        folder / "users.csv"
    )
    items = {"iid": [float(i) for i in range(28)], "tags": [["x", "y"][: i % 3] for i in range(28)]}
    items |= {"cost": [None if i % 7 == 0 else 1.5 * i for i in range(28)]}
    items |= {"vec": [None if i % 5 == 0 else [0.1 * i, -1.0] for i in range(28)]}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    (folder / "mapping.py").write_text(SHOWN)
    return frame


def event_rows(folder) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    user, item = rng.integers(40, size=ROWS), rng.integers(30, size=ROWS)
    frame = pl.DataFrame(
        {
            "uid": user, "iid": item, "ts": START + np.cumsum(rng.integers(0, 900, ROWS)),
            "event": rng.choice([1, 2, 4, 5], ROWS), "price": (rng.random(ROWS) * 30).round(2),
            "cat": [f"c{i % 5}" for i in item], "plan": [f"p{u % 3}" for u in user],
        }
    )  # fmt: skip
    frame.write_csv(folder / "log.csv")
    (folder / "mapping.py").write_text(EVENTS)
    return frame


LIGHTSUAN = dict(name="lightsuan", head_norm="rms", head_activation="silu", blocks=1, width=16)
LIGHTSUAN |= dict(heads=2, local=3, dilation=2, head=(8,))
DIN = dict(name="din", head=(8,))


def export(prepared, path, until, model):
    """A model that nobody trained, with rows large enough for every id to matter."""
    data = PreparedData(prepared, history=10)
    system = models.build(data.schema, dict(model, table=dict(dim=4, init_scale=1.0)))
    batch = next(iter(data.batches("train", 8)))
    tables = embedding.init(jax.random.key(0), system.tables, data.schema)
    rows = embedding.gather(system.tables, tables, batch)
    dense, state = jax.jit(system.init)(jax.random.key(1), rows, batch)
    artifact.export_artifact(
        path, system, Trees(dense, tables, state), batch=batch, config={}, vocab=prepared.vocabulary,
        rows_format="float32", platforms=("cpu",), log=served.event_log(prepared), until=until,
    )  # fmt: skip


def offline(path, prepared):
    """(request, time, item, logit) of every test impression, from the prepared columns."""
    scorer = Scorer(artifact.load(path))
    values = prepared.vocabulary("item").sort("id")
    name = dict(zip(values["id"], values["value"], strict=True))
    out = []
    for block in (prepared.block("test", i) for i in range(prepared.blocks("test"))):
        timelines = {n: prepared.timeline(n, block["partition"]) for n in prepared.schema.lists}
        logits = scorer.score_part(Part({n: x for n, x in block.items() if np.ndim(x)}, timelines))[
            "logits"
        ]
        out.append(
            pl.DataFrame(
                {
                    "request": block["request"], "ts": block["time"], "logit": np.ravel(logits),
                    "iid": [name.get(i) for i in block["item"].tolist()],
                }
            )
        )  # fmt: skip
    return pl.concat(out)


def replay(client, rows, fields, start, end):
    """Sends the log's rows of [start, end), a user at a time."""
    new = rows.filter((pl.col("ts") >= start) & (pl.col("ts") < end))
    for (user,), some in new.group_by("uid", maintain_order=True):
        columns = {name: some[column].to_list() for name, column in fields.items()}
        body = {"user": user, "events": {"log": {"time": some["ts"].to_list(), **columns}}}
        answer = client.post("/v1/events", json=body)
        assert answer.status_code == 200, answer.text


def ask(client, body):
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"]["logits"]


def prepare(folder, **options):
    log, mapping = str(folder / "log.csv"), str(folder / "mapping.py")
    return Prepared(logs.prepare(folder / "out", source=log, mapping=mapping, **options))


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(folder of the log and of the artifact "a", prepared data, rows in time order, when the test begins)."""
    folder = tmp_path_factory.mktemp("shown")
    rows = shown_log(folder).sort("ts")
    prepared = prepare(folder)
    begins = int(rows["ts"][-prepared.splits["test"]])
    export(prepared, folder / "a", begins - 1, LIGHTSUAN)
    return folder, prepared, rows, begins


def test_impressions_score_over_http_as_offline(shown):
    folder, prepared, rows, at = shown
    path = folder / "a"
    want = offline(path, prepared)
    # Item ids that no vocabulary knows are asked by the log's own id.
    asked = rows.tail(len(want))
    assert asked["ts"].to_list() == want["ts"].to_list()
    events = {"item": "iid", "click": "click", "scene": "tab", "cat": "cat", "age": "age"}
    got, bare = [], []
    with serving(path, LIMITS) as (client, service):
        for i, row in enumerate(asked.iter_rows(named=True)):
            replay(client, rows, events, at, row["ts"])
            at = row["ts"]
            item = [row["iid"], str(row["iid"]), float(row["iid"]), f"{row['iid']} "][i % 4]
            user = [row["uid"], f"{row['uid']}.0", float(row["uid"])][i % 3]
            context = {
                "scene": row["tab"],
                **{n: row[n] for n in ("device", "os", "query", "load")},
            }
            body = {"time": row["ts"], "user": user, "context": context, "candidates": {"item": [item]}}  # fmt: skip
            got += ask(client, body)
            bare += ask(client, {**body, "history": {n: [] for n in service.model.bodies.lists}})
    np.testing.assert_allclose(got, want["logit"], atol=2e-5)
    # The control: histories change the answer, or equality would show nothing.
    assert np.mean(np.abs(np.array(bare) - want["logit"].to_numpy()) > 1e-3) > 0.5


def test_drawn_negatives_and_actions_score_over_http_as_offline(tmp_path):
    rows = event_rows(tmp_path).sort("ts", maintain_order=True)
    prepared = prepare(tmp_path)
    at = int(prepared.block("test", 0)["time"].min())
    half = at + (int(rows["ts"].max()) - at) // 2
    export(prepared, tmp_path / "a", at - 1, DIN)
    export(prepared, tmp_path / "b", half, DIN)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    want = offline(tmp_path / "a", prepared)
    # A request is a user's rows of one second; its user is whoever bought then.
    owner = rows.filter(pl.col("event") >= 4)
    got, expected = [], []
    fields = {"item": "iid", "action": "event", "price": "price", "cat": "cat", "plan": "plan"}
    with serving(tmp_path / "link", LIMITS, reload_token="t") as (client, service):
        for (_, time), some in want.group_by("request", "ts", maintain_order=True):
            here = owner.filter(pl.col("ts") == time)["uid"].unique().to_list()
            if len(here) > 1:
                continue
            replay(client, rows, fields, at, time)
            at = time
            body = {"time": time, "user": here[0], "candidates": [{"item": int(i)} for i in some["iid"]]}  # fmt: skip
            got += ask(client, body)
            expected += some["logit"].to_list()
        assert service.model.counters.added > 20
        # Another artifact, with a later snapshot: what it lacks comes from the events that are stored.
        before = ask(client, body)
        (tmp_path / "new").symlink_to(tmp_path / "b")
        (tmp_path / "new").replace(tmp_path / "link")
        done = client.post(RELOAD, json={}, headers={"authorization": "Bearer t"})
        assert done.json()["changed"]
        assert 10 < service.model.counters.added < len(rows)
        np.testing.assert_allclose(ask(client, body), before, atol=2e-5)
    assert len(got) > 50
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_the_artifact_says_what_a_request_needs(shown):
    own = artifact.load(shown[0] / "a").manifest["snapshot"]["own"]
    asked = {f"context.{n}" for n in ("scene", "device", "query", "load", "os")}
    assert set(own["needs"]) == {"user", "candidates.item", *asked}


def test_what_only_the_request_knows_is_asked_for_by_name(shown):
    good = {"user": 3, "time": 1_800_000_000, "candidates": {"item": ["1"]}}
    context = {"scene": 1, "device": "tv", "os": "a", "query": "q", "load": 0.5}
    with serving(shown[0] / "a", LIMITS) as (client, _):

        def fault(path="/v1/score", **changes):
            body = {**good, "context": context, **changes}
            answer = client.post(path, json={k: v for k, v in body.items() if v is not None})
            assert answer.status_code == 422, answer.text
            return answer.json()["detail"]

        every = fault(context=None)
        assert all(f"'context.{n}'" in every for n in context)
        assert "'context.device', 'context.load'" in fault(
            context={"scene": 1, "query": "q", "os": "a"}
        )
        assert "'user'" in fault(user=None) and "'user'" in fault(user="NULL ")
        assert "'item'" in fault(candidates={"item": ["1", None]})
        assert "'load'" in fault(context={**context, "load": "much"})
        assert "context.device" in fault(context={**context, "device": [1]})
        assert "context.hour" in fault(context={**context, "hour": 3})
        event = dict(user="u", context=None, candidates=None, time=None)
        row = {"time": 1_700_000_000, "item": 1, "scene": 2}
        assert "'click'" in fault("/v1/events", events={"log": [row]}, **event)
        assert "'click'" in fault("/v1/events", events={"log": [{**row, "click": 3}]}, **event)
        assert "events.history" in fault("/v1/events", events={"history": []}, **event)
        for vec in ([1], [1, "x"], "1 2 3", [1e39, 0]):
            assert "'vec'" in fault(candidates=[{"item": 1, "vec": vec}])
        assert "'cost'" in fault(candidates=[{"item": 1, "cost": "dear"}])
        assert "candidates.item[0]" in fault(candidates={"item": [[1]]})
        assert "both have 'cost'" in fault(candidates=[{"item": 1, "cost": 2}, {"item": 2}])
        for odd in ('"\\ud800"', "1e999", "[]", "{}", '"' + 2000 * "x" + '"'):
            text = f'{{"user": {odd}, "time": 1800000000, "candidates": {{"item": ["1"]}}}}'
            headers = {"content-type": "application/json"}
            answer = client.post("/v1/score", content=text, headers=headers)
            assert answer.status_code in (400, 422), answer.text
        # A client may say more than it must, and asks with columns or rows.
        sent = {**good, "context": context, "profile": {"age": 17, "plan": "p1"}}
        ask(client, sent | {"candidates": [{"item": 1, "cat": "c1", "tags": ["x"], "cost": 3}]})
        # Nobody and nothing that is known.
        ask(client, sent | {"user": "nobody", "profile": {}, "candidates": {"item": ["new", 1.5]}})
        assert client.get("/openapi.json").status_code == 200
        described = {x["name"] for x in client.get("/v2/models/default").json()["inputs"]}
        assert {"time", "item", "os", "scene", "cat"} <= described
        assert not described & {"user_id", "hour", "weekday", "device_x_age", "cost_missing"}
        asked = [
            ("time", [1_800_000_000]),
            ("item", [1, 2]),
            *((n, [v]) for n, v in context.items()),
        ]
        tensors = [{"name": n, "shape": [len(x)], "datatype": "BYTES", "data": x} for n, x in asked]
        named = {"inputs": tensors, "parameters": {"user": "3"}}
        answer = client.post("/v2/models/default/infer", json=named)
        assert answer.status_code == 200, answer.text


def test_a_sharded_log_is_served_as_the_whole_one(shown):
    folder, prepared, _, _ = shown
    sharded = served.event_log(prepare(folder, shards=2))
    whole = served.event_log(prepared)
    assert sharded.frame.equals(whole.frame) and sharded.counters == whole.counters
    assert [k.fields for k in sharded.known.values()] == [k.fields for k in whole.known.values()]


def test_lists_are_those_of_preparation(shown):
    """Movelines and sessions, which the model above does not read: the last events of every user."""
    _, prepared, _, _ = shown
    log = served.event_log(prepared)
    name = prepared.vocabulary("scene").select("id", "value")
    name = dict(name.iter_rows())
    for listed, made in log.lists.items():
        mine = log.frame.filter(pl.col(made.where))
        timeline = prepared.timeline(listed)
        scenes = [name[i] for i in np.asarray(timeline[f"{listed}_scene"]).tolist()]
        want = sorted(zip(np.asarray(timeline["time"]).tolist(), scenes, strict=True))
        assert sorted(mine.select("time", made.fields[f"{listed}_scene"]).iter_rows()) == want
    assert len(prepared.timeline("moves")["time"]) > len(prepared.timeline("session")["time"]) > 0


def test_the_running_session(shown):
    _, prepared, _, _ = shown
    own = OwnLog(**read_own(prepared), schema=prepared.schema)
    gap = 40 * 60
    times = [0, 10, 10 + gap, 11 + 2 * gap, 20 + 2 * gap]
    events = {"time": times, "session_item": list("abcde")}
    assert own.in_session("session", events, 20 + 3 * gap)["session_item"] == ["d", "e"]
    assert own.in_session("session", events, 21 + 3 * gap)["session_item"] == []
    assert own.in_session("history", events, 21 + 3 * gap) == events
    early = {n: x[:3] for n, x in events.items()}
    assert own.in_session("session", early, 11 + gap)["session_item"] == ["a", "b", "c"]


def read_own(prepared):
    log = served.event_log(prepared)
    known = {s: log.frame.select(k.key, *k.fields) for s, k in log.known.items()}
    return {"mapping": log.mapping, "known": known}


def test_no_folder_of_this_machine_is_kept(shown):
    assert str(shown[0]) not in (shown[1].path / served.FOLDER / "mapping.json").read_text()


def test_a_column_that_varies_is_not_known(shown):
    _, prepared, _, _ = shown
    log = served.event_log(prepared)
    assert log.known["item"].fields == ("cat",) and log.known["user"].fields == ("age",)
    frame = pl.DataFrame({"item": list("aabb"), "price": [1.0, 2.0, None, None]})
    assert served.varies(frame, "item", "price") == 0.5
    assert served.varies(frame.head(1), "item", "price") == 0


def test_json_values_are_spelled_as_preparation_spells_cells():
    values = [
        17,
        17.0,
        "17",
        " 17 ",
        "17.0",
        -3,
        2**64,
        1.5,
        "1.50",
        1e-7,
        1e20,
        True,
        "TRUE",
        None,
        "NULL",
        "é ",
    ]
    want = [
        as_id(pl.Series([v]), ["NULL"])[0] if v not in (None, 2**64) else v and str(v)
        for v in values
    ]
    assert spelled(values, ["NULL"]) == want


def test_what_is_known_follows_events_and_keeps_the_latest():
    known = Known(pl.DataFrame({"item": ["a", "b"], "price": [1.0, None]}))
    assert known.read(["a", "b", "c"], "price") == [1.0, None, None]
    known.learn("a", 20, {"price": 2.0, "other": 9})
    known.learn("a", 10, {"price": 3.0})
    known.learn("c", 5, {"price": 4.0})
    assert known.read(["a", "b", "c"], "price") == [2.0, None, 4.0]
