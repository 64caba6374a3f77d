"""HyperPAVE: leakage, induction, fusion, negatives, metrics, export, and its planted world."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from recjax import configs, models
from recjax.data.sets.product_catalog import Catalog, GraphError, disjoint_split
from recjax.data.sets.product_graph import Data, Options
from recjax.data.worlds import hyperpave as worlds
from recjax.metrics import classification, ranking
from recjax.models import hyperpave
from recjax.serving import artifact
from recjax.serving.scorer import Scorer
from recjax.system import parameter_counts
from recjax.training.loop import train
from recjax.training.opening import open_run
from recjax.trees import Params, Trees
from tests.messages import raises
from tests.models.worlds import perturbed

SMALL = worlds.World(products=60, aspects=12, unseen=3, dim=8, links=2, listed=4)


def data(world=SMALL, **options):
    return Data(worlds.catalog(world), Options(**options), {"name": "test", "config": {}})


def batch_of(d, split="test", index=0, size=16):
    return next(iter(d.batches(split, size, start=index)))


@functools.cache
def model(**options):
    """(system, params with nothing neutral) on the small world; text is the only thing it is tied to."""
    d = data()
    options = {"width": 8, "hyperedges": "all", **options}
    system = models.build(d.schema, {"name": "hyperpave", **options})
    return system, parameters(system, batch_of(d))


def parameters(system, batch):
    return perturbed(jax.eval_shape(system.init, jax.random.key(0), {}, batch)[0])


@functools.cache
def compiled(**options):
    system, dense = model(**options)
    run = jax.jit(lambda p, b: system.outputs(Params(p), b)["logits"])
    return functools.partial(run, dense)


def logits(batch, **options):
    inputs = {k: v for k, v in batch.items() if k not in ("label", "group", "row")}
    return np.asarray(compiled(**options)(inputs))


def scores(d, split="test", size=16, **options):
    """{(product, aspect): logit} of a split."""
    out = {}
    for b in d.batches(split, size):
        z, keep = logits(b, **options), b["valid"]
        pairs = zip(
            np.broadcast_to(b["group"]["product"][:, None], z.shape)[keep],
            b["group"]["aspect"][keep],
            z[keep],
            strict=True,
        )
        out |= {(int(p), int(a)): float(s) for p, a, s in pairs}
    return out


def changed(d, **fields):
    return Data(dataclasses.replace(d.catalog, **fields), d.options, d.identity)


# ---- leakage and induction ----------------------------------------------------------------------------------


def test_held_out_labels_change_no_logit_bit_for_bit():
    d = data()
    links = d.catalog.links.copy()
    held = np.flatnonzero(~d.catalog.trained)
    links[held, 1] = (links[held, 1] + 5) % 12
    flipped = changed(d, links=links)
    assert not np.array_equal(batch_of(d)["label"]["linked"], batch_of(flipped)["label"]["linked"])
    np.testing.assert_array_equal(logits(batch_of(d)), logits(batch_of(flipped)))


def test_shuffled_hyperedges_leave_new_products_readers():
    """The control moves members, not who may write: else held-out products would see each other."""
    d = data(shuffle=True)
    b = batch_of(d)
    category = batch_of(data())["hyper"]["cpa"]
    for kind in ("pa", "cpa"):
        own, moved = batch_of(data())["hyper"][kind], b["hyper"][kind]
        writers = [set(h["node"][h["writes"] > 0].tolist()) for h in (own, moved)]
        products = [{n for n in w if n < len(b["x"]["product"])} for w in writers]
        assert products[0] == products[1], kind
    assert (category["writes"] == 0).any(), "some products are new"
    pa = [batch_of(x)["hyper"]["pa"] for x in (data(), d)]
    assert not np.array_equal(pa[0]["edge"], pa[1]["edge"]) or not np.array_equal(
        pa[0]["node"], pa[1]["node"]
    )


def test_asked_links_carry_no_message():
    d = data()
    b = batch_of(d, "train")
    asked = set(zip(b["product"], b["aspect"][:, 0], strict=True))
    real = {(p, a) for (p, a), v in zip(asked, [True] * len(asked), strict=True) if v}
    sage = b["sage"]["product_aspect"]
    carried = set(zip(sage["source"], sage["target"], strict=True))
    filled = b["valid"][:, 0]
    real = set(zip(b["product"][filled], b["aspect"][filled, 0], strict=True))
    assert real and carried and not real & carried
    pa = b["hyper"]["pa"]
    members = {(n, e) for n, e in zip(pa["node"], pa["edge"], strict=True)}
    owner = {n: e for n, e in members if n < len(b["x"]["product"])}
    offset = len(b["x"]["product"])
    assert not any((offset + a, owner[p]) in members for p, a in real)


def test_a_split_that_leaks_is_refused():
    c = worlds.catalog(SMALL)
    with raises(ValueError, "held-out", "link"):
        dataclasses.replace(c, split=np.zeros_like(c.split))


def test_disjoint_split():
    rng = np.random.default_rng(0)
    links = np.unique(np.stack([rng.integers(0, 80, 300), rng.integers(0, 30, 300)], 1), axis=0)
    split, chosen = disjoint_split(links, np.repeat([0, 1], 15), 80, share=0.2)
    assert 1 <= chosen[:15].sum() and 1 <= chosen[15:].sum()
    holders = np.unique(links[chosen[links[:, 1]], 0])
    assert set(np.flatnonzero(split > 0)) == set(holders)
    assert abs((split == 1).sum() - (split == 2).sum()) <= 1


def test_a_score_depends_on_the_neighbourhood_alone():
    """Other new products may be removed; products outside the lists and the category may be, too."""
    d = data()
    every = scores(d)
    c = d.catalog
    product = int(next(iter(every))[0])
    keep = (c.split == 0) | (np.arange(len(c.split)) == product)
    split = np.where(keep, c.split, 1)  # the other new ones go to validation, so not into the graph
    lists = {"view": c.lists["view"][~np.isin(c.lists["view"], np.flatnonzero(~keep)).any(1)]}
    alone = scores(changed(d, split=split, lists=lists))
    mine = {k: v for k, v in scores(changed(d, lists=lists)).items() if k[0] == product}
    for pair, value in mine.items():
        assert alone[pair] == pytest.approx(value, abs=1e-5)
    assert any(abs(alone[k] - every[k]) > 1e-4 for k in mine)  # its lists did matter


def test_products_of_another_category_do_not_matter():
    d = data()
    c = d.catalog
    n, a = len(c.split), len(c.attribute)
    other = worlds.catalog(dataclasses.replace(SMALL, seed=1))
    both = Catalog(
        x={
            "product": np.concatenate([c.x["product"], other.x["product"]]),
            "aspect": np.concatenate([c.x["aspect"], other.x["aspect"]]),
            "category": np.concatenate([c.x["category"], other.x["category"] + 1]),
        },
        names={k: [*v, *(f"other {x}" for x in other.names[k])] for k, v in c.names.items()},
        category=np.r_[c.category, other.category + 1],
        aspect_category=np.r_[c.aspect_category, other.aspect_category + 1],
        attribute=np.r_[c.attribute, other.attribute],
        links=np.concatenate([c.links, other.links + [n, a]]),
        split=np.r_[c.split, other.split],
        chosen=np.r_[c.chosen, other.chosen],
        lists={"view": np.concatenate([c.lists["view"], other.lists["view"] + n])},
    )
    together = scores(Data(both, d.options, d.identity), attribute_bias=False)
    for pair, value in scores(d, attribute_bias=False).items():
        assert together[pair] == pytest.approx(value, abs=1e-5)
    assert any(p >= n for p, _ in together)


def test_an_unseen_aspect_changes_no_other_score():
    d = data()
    c = d.catalog
    more = changed(
        d,
        x={**c.x, "aspect": np.concatenate([c.x["aspect"], np.ones((1, 8), np.float32)])},
        names={**c.names, "aspect": [*c.names["aspect"], "new"]},
        aspect_category=np.r_[c.aspect_category, 0],
        attribute=np.r_[c.attribute, 0],
        chosen=np.r_[c.chosen, True],
    )
    old, new = scores(d), scores(more)
    for pair, value in old.items():
        assert new[pair] == pytest.approx(value, abs=1e-5)
    assert len(new) == len(old) * 13 // 12


def test_candidates_are_independent():
    b = batch_of(data())
    order = np.random.default_rng(0).permutation(b["aspect"].shape[1])
    got = logits({**b, "aspect": b["aspect"][:, order]})
    np.testing.assert_allclose(got, logits(b)[:, order], atol=1e-6)
    assert np.std(got) > 1e-3


# ---- fusion and options -------------------------------------------------------------------------------------


def test_fusion_weights_sum_to_one():
    for weights in hyperpave.FUSION.values():
        for kinds in weights.values():
            assert sum(kinds.values()) == pytest.approx(1)
    weights = hyperpave.FUSION["all"]["product"]
    start = np.asarray(hyperpave.log_weights(weights)(None, (4,), np.float32))
    np.testing.assert_allclose(np.exp(start) / np.exp(start).sum(), [0.4, 0.4, 0.1, 0.1], atol=1e-6)


def test_with_every_hyperedge_a_singleton_it_is_x_theta_plus_b():
    d = data()
    options = dict(hyperedges="all", width=8, share_theta=True, plain=True, fusion="fixed")
    module = hyperpave.HyperPAVE(schema=d.schema, **options)
    system, dense = model(**options)
    b = batch_of(d)
    n = sum(len(x) for x in b["x"].values())
    alone = dict(
        node=np.arange(n), edge=np.arange(n), writes=np.ones(n), weight=np.ones(n, np.float32)
    )

    def run(module):
        x = {t: module.encode(t, b["x"][t]) for t in hyperpave.TYPES}
        return module.hyper(x, dict.fromkeys(hyperpave.KINDS, alone))[0], x

    h, x = jax.jit(lambda p: module.apply({"params": p}, method=run))(dense)
    conv = dense[next(k for k in dense if k.startswith("conv"))]
    for t in hyperpave.TYPES:
        want = x[t] @ conv["theta"]["kernel"] + conv["bias"]
        np.testing.assert_allclose(h[t], want, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(hyperedges="user", score="dot", attribute_bias=False),
        dict(hyperedges="inventory", attention=True, norm=False, identity=False),
        dict(hyperedges="none", fusion="fixed"),
        dict(hyperedges="view", sage_layers=0, normalise="symmetric"),
        dict(features="id", share_theta=True, plain=True),
    ],
    ids=str,
)
def test_options_train_a_step(options):
    d = data()
    system = models.build(d.schema, {"name": "hyperpave", "width": 8, **options})
    b = batch_of(d, "train")
    dense = parameters(system, b)
    grads = jax.jit(jax.grad(lambda p: system.loss(Params(p), b, None)[0]))(dense)
    sizes = [float(np.abs(g).max()) for g in jax.tree.leaves(grads)]
    assert np.isfinite(sizes).all() and max(sizes) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hyperedges="behaviour"), "hyperedges='behaviour'"),
        (dict(attention=True, normalise="symmetric"), "attention=True"),
        (dict(table=dict(dim=8)), "tables"),
        (dict(depth=3), "'depth'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        models.build(data().schema, {"name": "hyperpave", **options})


# ---- negatives and metrics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("supervise", ["links", "products"])
def test_negatives_are_no_positives_and_the_hard_ones_share_the_attribute(supervise):
    c = worlds.catalog(SMALL)
    attribute = np.arange(12) % 3
    d = Data(
        dataclasses.replace(
            c, attribute=attribute, names={**c.names, "attribute": ["a", "b", "c"]}
        ),
        Options(supervise=supervise, negatives=4),
        {},
    )
    graph = d.categories["train"][0]
    positive = {tuple(x) for x in graph.links}
    hard = 0
    for b in d.batches("train", 16, epochs=5):
        keep = b["valid"][:, 0]
        for p, row, valid in zip(
            b["product"][keep], b["aspect"][keep], b["valid"][keep], strict=True
        ):
            assert (p, row[0]) in positive
            assert not any((p, a) in positive for a in row[1:][valid[1:]])
            names = attribute[graph.aspects[row]]
            others = [
                a for a in range(len(graph.aspects))
                if attribute[graph.aspects[a]] == names[0] and (p, a) not in positive
            ]  # fmt: skip
            if others:
                assert (names[3:] == names[0]).all()
                hard += 1
    assert hard > 20


def test_isolated_aspects_carry_no_messages_whether_or_not_they_are_asked_for():
    def carried(isolate):
        batches = list(data(isolate=isolate).batches("train", 16, epochs=40))
        neighbours = [np.unique(b["sage"]["product_aspect"]["target"]) for b in batches]
        aspects = len(batches[0]["attribute"])  # as many as there are, and a target that fills up
        return [n[n < aspects] for n in neighbours], [
            b["aspect"][b["valid"][:, 0], 0] for b in batches
        ]

    (all_of_them, asked), (some, asked_too) = carried(0.0), carried(0.5)
    assert all(map(np.array_equal, asked, asked_too))
    assert sum(map(len, some)) == pytest.approx(0.5 * sum(map(len, all_of_them)), rel=0.15)
    with pytest.raises(GraphError, match="isolate"):
        data(isolate=1.0)


def test_golden_metrics():
    scores, labels, groups = np.array([3.0, 2.0, 1.0]), np.array([1, 0, 1]), np.zeros(3)
    assert ranking.mean_average_precision(scores, labels, groups) == pytest.approx(5 / 6)
    assert ranking.recall(scores, labels, groups, 1) == pytest.approx(1 / 2)
    got = hyperpave.f1(np.array([1, 1, 0, 0]) > 0, np.array([1, 0, 1, 0]) > 0, np.arange(4) % 2)
    assert got == {"micro_f1": 0.5, "macro_f1": pytest.approx((2 / 3 + 0) / 2)}
    cut = hyperpave.best_threshold(np.array([3.0, 2.0, 1.0, 0.0]), np.array([1, 1, 0, 0]))
    assert cut == pytest.approx(1.5)


# ---- the loop, resume, export -------------------------------------------------------------------------------


def config(seed=0, epochs=200, **keys):
    c = configs.base()
    c.seed = seed
    c.data.name = "worlds.hyperpave"
    c.data.prepare = dict(seed=seed, supervise="products")
    c.model.name = "hyperpave"
    c.model.hyperedges = "view"
    c.model.plain = True  # a residual would pass on the text, which is nearly noise here
    c.opt.lr = 1e-3
    c.train.batch = c.eval.batch = 256
    c.train.epochs = epochs
    c.eval.every = 20
    c.eval.use_best = True
    for key, value in keys.items():
        c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


def test_convolutions_are_the_blocks():
    counts = parameter_counts(*model())
    convolutions = sum(
        x.size
        for k, v in model()[1].items()
        if k[:4] in ("conv", "mix_", "sage")
        for x in jax.tree.leaves(v)
    )
    assert counts["n_blocks"] == convolutions and 0 < counts["n_head"] < 100


def test_functions_of_the_artifact_agree_with_the_graph(tmp_path):
    """A new product without lists: "extract" on what "catalog" made equals "score" on the whole graph."""
    d = changed(data(), lists={})
    system, dense = model()
    b = batch_of(d)
    example = hyperpave.serving_batch(d.schema, b, 8)
    artifact.export_artifact(
        tmp_path / "a", system, Trees(dense), batch=example, config={}, platforms=("cpu",)
    )
    loaded = artifact.load(tmp_path / "a")
    cadence = {n: f["cadence"] for n, f in loaded.manifest["functions"].items()}
    assert cadence == {"score": "request", "catalog": "item", "extract": "request"}
    want = Scorer(loaded).score(b)["logits"]
    np.testing.assert_allclose(want, logits(b), atol=1e-5)
    made = Scorer(loaded, "catalog").score(b)
    served = Scorer(loaded, "extract")
    served.verify()
    text = b["x"]["product"][b["product"]]
    got = served.score({**made, "dense": {"text": text}, "attribute": b["attribute"]})["logits"]
    keep = b["valid"]
    np.testing.assert_allclose(got[keep], want[keep], atol=1e-4)
    one = served.score({**made, "dense": {"text": text[:1]}, "attribute": b["attribute"]})
    np.testing.assert_allclose(one["logits"], got[:1], atol=1e-5)


def test_resume_is_bit_for_bit(tmp_path, monkeypatch):
    from tests.test_contracts import interrupted, leaves

    keys = dict(
        epochs=12, eval__every=0, eval__use_best=False, train__checkpoint_every=5,
        data__prepare=dict(dataclasses.asdict(SMALL)),
    )  # fmt: skip
    whole = train(config(**keys), tmp_path / "whole")
    interrupted(config(**keys), tmp_path / "cut", monkeypatch)
    resumed = train(config(**keys), tmp_path / "cut")
    a, b = leaves(tmp_path / "whole"), leaves(tmp_path / "cut")
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)
    assert whole["test"] == resumed["test"]
    assert {"map", "map_unseen", "map_seen", "recall@5", "macro_f1"} <= whole["test"].keys()


# ---- the planted world --------------------------------------------------------------------------------------


def test_the_oracle_is_where_it_was():
    oracle = worlds.oracle(worlds.World(seed=0))
    for name, (value, spread) in worlds.ORACLE.items():
        assert abs(oracle[name] - value) < 3 * spread + 0.005, name


def text_cosine(d, split="test"):
    """mAP on the unseen aspects, no training."""
    rows = {k: [] for k in ("logit", "label", "product")}
    for b in d.batches(split, 256):
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (
            b["x"]["product"][b["product"]], b["x"]["aspect"] + 1e-9))  # fmt: skip
        keep = b["valid"] & (b["group"]["unseen"] > 0)
        rows["logit"].append((x @ y.T)[keep])
        rows["label"].append(b["label"]["linked"][keep])
        groups = np.broadcast_to(b["group"]["product"][:, None], keep.shape)
        rows["product"].append(groups[keep])
    return ranking.mean_average_precision(*(np.concatenate(v) for v in rows.values()))


VARIANTS = {
    "hyperedges": {},
    "SAGE only": dict(model__hyperedges="none"),
    "shuffled": dict(data__prepare__shuffle=True),
}


@pytest.mark.slow
def test_hyperedges_carry_what_text_only_hints_at(tmp_path):
    """Five paired seeds: margins over text, SAGE alone and shuffled hyperedges (section 6 of the specification)."""
    got = {name: [] for name in VARIANTS}
    for seed in range(5):
        for name, keys in VARIANTS.items():
            summary = train(config(seed, **keys), tmp_path / name / str(seed))["test"]
            got[name].append(summary["map_unseen"])
    got["text cosine"] = [text_cosine(data(worlds.World(seed=s))) for s in range(5)]
    mean = {name: np.mean(values) for name, values in got.items()}
    for name, values in got.items():
        print(f"{name:12s} {mean[name]:.3f} +- {np.std(values, ddof=1):.3f}", np.round(values, 3))
    full = np.array(got["hyperedges"])
    assert mean["hyperedges"] >= mean["text cosine"] + 0.10
    assert mean["hyperedges"] >= mean["SAGE only"] + 0.03
    assert (full > got["SAGE only"]).all() and (full > got["shuffled"]).all()
    assert mean["shuffled"] <= mean["text cosine"] + 0.03


@pytest.mark.slow
def test_node_ids_know_nothing_of_unseen_aspects(tmp_path):
    """AUC on unseen aspects, their untrained vectors drawn again 40 times: 0.5 within 0.05."""
    train(config(0, model__features="id"), tmp_path)
    _, d, system, trees, _ = open_run(tmp_path, best=True)
    b = batch_of(d, "test", size=256)
    table = np.array(trees.dense["ids_aspect"]["embedding"])
    unseen = np.flatnonzero(d.catalog.unseen) + 3
    run = jax.jit(lambda p: system.outputs(Params(p), b)["logits"])
    keep = b["valid"] & (b["group"]["unseen"] > 0)
    rng, areas = np.random.default_rng(0), []
    for _ in range(40):
        table[unseen] = rng.normal(size=(len(unseen), table.shape[1])) * table.std()
        dense = {**trees.dense, "ids_aspect": {"embedding": table}}
        z = np.asarray(run(dense))
        areas.append(classification.auc(z[keep], b["label"]["linked"][keep]))
    print("AUC of node ids on unseen aspects", np.mean(areas), "+-", np.std(areas, ddof=1))
    assert abs(np.mean(areas) - 0.5) <= 0.05


@pytest.mark.slow
def test_random_labels_teach_nothing(tmp_path):
    test = train(config(0, data__prepare__shuffled_labels=True), tmp_path)["test"]
    print("random labels", {k: test[k] for k in ("map", "prevalence", "auc_unseen", "auc")})
    assert abs(test["auc_unseen"] - 0.5) <= 0.05 and test["map"] < test["prevalence"] + 0.1
