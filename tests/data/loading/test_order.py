"""Orders of epochs: permutations of the same requests, of their own for each epoch, partition and block."""

import numpy as np
import pytest

from recjax.data.loading.order import Order

BLOCKS, SIZE = 6, 12
EDGES = SIZE * np.arange(BLOCKS + 1)


def epoch(number, partition=0, seed=1):
    return Order(partition, np.arange(BLOCKS), EDGES, seed=seed).requests(number, 0, EDGES[-1])


def places(requests):
    """[blocks, size]: which block comes when, and the places within each."""
    requests = requests.reshape(BLOCKS, SIZE)
    assert (requests // SIZE == requests[:, :1] // SIZE).all(), "a block's requests stay together"
    return requests[:, 0] // SIZE, requests % SIZE


def test_every_epoch_has_every_request_once_and_the_first_is_the_stored_order():
    np.testing.assert_array_equal(epoch(0), np.arange(EDGES[-1]))
    for number in (1, 2):
        np.testing.assert_array_equal(np.sort(epoch(number)), np.arange(EDGES[-1]))


@pytest.mark.parametrize("other", [dict(number=2), dict(partition=1), dict(seed=2)])
def test_epochs_partitions_and_seeds_permute_blocks_and_requests_each_in_its_own_way(other):
    (blocks, within), (others, its) = (places(epoch(**(dict(number=1) | k))) for k in ({}, other))
    assert (blocks != others).any()
    own, theirs = np.argsort(blocks), np.argsort(others)
    assert (within[own] != its[theirs]).any(1).all()


def test_blocks_of_an_epoch_are_permuted_unlike_each_other():
    _, within = places(epoch(1))
    assert len(np.unique(within, axis=0)) == BLOCKS
