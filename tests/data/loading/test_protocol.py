"""What the training loop asks of data: every source takes the same options, and refuses those it cannot honour."""

import inspect

import pytest

from recjax.data.loading import protocol
from recjax.data.loading.layout import BatchError
from recjax.data.loading.loader import PreparedData
from recjax.data.sets import product_graph
from tests import fakes

SOURCES = [PreparedData, product_graph.Data, fakes.Data]


def options(source) -> dict[str, object]:
    parameters = inspect.signature(source.batches).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.__module__)
def test_every_source_takes_the_options_of_the_protocol(source):
    assert options(source) == options(protocol.Data)
    for name in ("vocabulary", "vocabulary_hash"):
        assert hasattr(source, name)


def test_an_option_that_a_source_cannot_honour_is_named():
    protocol.refuse("a list", online="", recent=0, period=None, buckets=())
    with pytest.raises(BatchError, match="a list .*online='1d'"):
        protocol.refuse("a list", recent=0, online="1d")
    source = object.__new__(product_graph.Data)
    for name, value in dict(
        recent=3, recent_days=0.5, period=(0, 1), online="6h", buckets=(5,)
    ).items():
        with pytest.raises(BatchError, match=name):
            product_graph.Data.batches(source, "train", 4, **{name: value})
