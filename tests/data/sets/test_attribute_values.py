"""Readers of attribute-value sets, on made-up files and on the publishers' own."""

import gzip
import json

import numpy as np
import pytest

from recjax import configs
from recjax.data import open_data
from recjax.data.sets import attribute_values, text
from recjax.data.sets.attribute_values import SourceError, read
from tests.messages import raises

MAVE = {
    "id": "B0002H0A3S",
    "category": "Guitar Strings",
    "paragraphs": [
        {"text": "D'Addario EJ16 Phosphor Bronze", "source": "title"},
        {"text": "For six strings.", "source": "description"},
    ],
    "attributes": [
        {"key": "Material", "evidences": [{"value": "Phosphor Bronze", "pid": 0, "begin": 15, "end": 30}]},
        {"key": "Strings", "evidences": [{"value": "six", "pid": 1, "begin": 4, "end": 7}]},
    ],
}  # fmt: skip


def write(path, records):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as f:
        f.writelines(json.dumps(r) + "\n" for r in records)


def test_mave_record(tmp_path):
    other = {**MAVE, "id": "2", "attributes": [{"key": "Gauge", "evidences": []}]}
    wrong = {**MAVE, "id": "3", "attributes": [
        {"key": "Brand", "evidences": [{"value": "D'Addario", "pid": 0, "begin": 1, "end": 9}]}]}  # fmt: skip
    write(tmp_path / "mave_train_positives.jsonl.gz", [MAVE, other, wrong])
    products, report = read(tmp_path, "mave")
    assert [p.values for p in products] == [
        (("Material", "Phosphor Bronze"), ("Strings", "six"), ("Brand", "D'Addario"))
    ]
    assert products[0].text == "D'Addario EJ16 Phosphor Bronze\nFor six strings."
    assert report == dict(records=3, products=1, evidences=3, misplaced=1)


def test_extractgpt_record(tmp_path):
    (tmp_path / "oa-mine").mkdir()
    record = {"input": "Red shoe", "category": "Shoes",
              "target_scores": {"Color": {"Red": 1}, "Size": {"n/a": 1}}}  # fmt: skip
    for name in ("train", "test"):
        write(tmp_path / "oa-mine" / f"{name}.jsonl", [record])
    products, report = read(tmp_path, "oa-mine")
    assert [(p.values, p.test) for p in products] == [
        ((("Color", "Red"),), False),
        ((("Color", "Red"),), True),
    ]
    assert report["products"] == 2


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("nosuch", None, ["nosuch", "mave"]),
        ("mave", None, ["*positives*"]),
        ("mave", "{", ["line 1", "JSON"]),
        ("mave", "{}", ["line 1", "MAVE"]),
        ("oa-mine", None, ["oa-mine/train.jsonl"]),
    ],
)
def test_bad_files_are_named(tmp_path, name, line, words):
    if line is not None:
        (tmp_path / "positives.jsonl").write_text(line + "\n")
    with raises(SourceError, *words):
        read(tmp_path, name)


def test_mave_format_of_wdc_pave(real_data):
    """WDC-PAVE's records, exactly MAVE's format: 9,256 positives of 1,420 offers."""
    products, report = read(real_data("wdc-pave"), "mave")
    assert report == dict(records=9256, products=1420, evidences=9256, misplaced=20)
    assert sum(p.test for p in products) == 354
    assert len({p.category for p in products}) == 5


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("oa-mine", (1943, 4177, 1749, 1031)), ("ae-110k", (2092, 978, 454, 224))],
)
def test_extractgpt_sets(name, sizes, real_data):
    """Products, distinct training and test triples, and test triples that never occur in train."""
    products, _ = read(real_data("extractgpt-ave"), name)
    triples = [
        {(p.category, *v) for p in products if p.test == t for v in p.values} for t in (0, 1)
    ]
    train, test = triples
    assert (len(products), len(train), len(test), len(test - train)) == sizes


def config(real_data, **prepare):
    c = configs.base()
    c.data.name = "product_graph"
    c.data.source = str(real_data("extractgpt-ave"))
    c.data.prepare = dict(set="oa-mine", text="hashed", limit=40, **prepare)
    return c.data


def test_zero_shot_split_of_real_products(real_data):
    data = open_data(config(real_data))
    c = data.catalog
    held = np.isin(c.links[:, 1], np.flatnonzero(c.chosen))
    assert held.any() and (c.split[c.links[held, 0]] > 0).all()
    for split in ("validation", "test"):
        for b in data.batches(split, 32):
            p = len(b["x"]["product"])
            asked = b["product"][b["valid"].any(1)]
            pa = b["hyper"]["pa"]
            for i in asked:  # alone in its P-A hyperedge, silent in its category's
                (edge,) = pa["edge"][pa["node"] == i]
                assert (pa["edge"] == edge).sum() == 1
            assert not np.isin(b["sage"]["product_aspect"]["source"], asked).any()
            cpa = b["hyper"]["cpa"]
            assert (cpa["writes"][np.isin(cpa["node"], asked) & (cpa["node"] < p)] == 0).all()


def test_published_split_keeps_the_publishers_test_file(real_data):
    data = open_data(config(real_data, split="published"))
    products = [
        p for p in attribute_values.read(real_data("extractgpt-ave"), "oa-mine")[0] if p.values
    ]
    test = {p.text for p in products if p.test}
    names = data.catalog.names["product"]
    assert {n for n, s in zip(names, data.catalog.split, strict=True) if s == 2} <= test
    assert not data.catalog.chosen.any() and (data.catalog.unseen == 2).any()


@pytest.mark.parametrize("key", ["txt", "supervize"])
def test_unknown_option_is_named(key, real_data):
    with raises(ValueError, f"data.prepare.{key}"):
        open_data(config(real_data, **{key: 1}))


def test_hashed_vectors_know_spelling():
    a, b, c = text.encoder("hashed")(["Color is red", "color is  RED", "material is leather"])
    np.testing.assert_allclose(a @ b, 1, atol=1e-5)
    assert a @ c < 0.6
    with raises(text.TextError, "use one of"):
        text.encoder("bert")


def test_wordllama_needs_no_network():
    pytest.importorskip("wordllama", reason="the extra `text` is not installed")
    encode = text.encoder("wordllama")
    shirt, red, tea = encode(["a red cotton shirt", "color is red", "flavor is green tea"])
    assert shirt.shape == (256,) and shirt @ red > shirt @ tea
