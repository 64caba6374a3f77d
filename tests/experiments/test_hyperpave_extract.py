"""Attribute values by title, from a small trained run."""

import pytest

from experiments.hyperpave_extract import ExtractError, Extractor
from recjax import configs
from recjax.training.loop import train


def test_a_title_gets_aspects_of_its_category(tmp_path, real_data):
    c = configs.load("experiments/hyperpave_oa_mine.py", "runlocal")
    c.data.source = str(real_data("extractgpt-ave"))
    c.train.epochs = 20
    train(c, tmp_path)
    extractor = Extractor(str(tmp_path))
    title = "Crocs Women's Jayna Ballet Flat, Nautical Navy, 4 M US"
    assert extractor.nearest_category(title) == "Shoes"
    found = extractor(title, "Shoes")
    assert {"attribute", "value", "logit", "unseen"} == found[0].keys()
    logits = [f["logit"] for f in found]
    assert logits == sorted(logits, reverse=True) and logits[0] > extractor.threshold
    place = [f["value"] for f in found].index("Women's")
    assert place < len(found) / 4
    with pytest.raises(ExtractError, match="use one of"):
        extractor(title, "Boats")
    with pytest.raises(ExtractError, match="train first"):
        Extractor(str(tmp_path / "nothing"))
