"""Planted worlds: each part of SUAN finds its signal, and SUAN without it does not."""

import numpy as np

from recjax import models
from tests.models.worlds import SCHEMA, auc, train, world

SMALL = dict(
    name="suan", blocks=1, heads=1, head=(), gate_pool="causal", abs_pos=False, table=dict(dim=8)
)
TRAIN = 2048


def heldout_auc(w, steps, **options):
    """AUC on requests that training never drew."""
    m = train(models.build(SCHEMA, {**SMALL, **options}), w.select(slice(TRAIN)), steps=steps)
    test = w.select(slice(TRAIN, None))
    return auc(m.logits(test).ravel(), test.raw["click"].ravel())


def requests(n, lengths, seed=0):
    return world(b=TRAIN + 512, c=1, n=n, seed=seed, lengths=lengths)


def test_time_bias_finds_recency():
    """One event, minutes or days ago: only its age tells clicks."""
    w = requests(2, 1)
    recent = np.random.default_rng(1).integers(0, 2, len(w.mask))
    seconds = np.where(recent, 300, 300_000)[:, None]
    w = w.replace(
        age=np.where(w.mask, seconds, 0).astype(np.int32), click=recent[:, None].astype(np.float32)
    )
    assert heldout_auc(w, 400) > 0.9
    assert 0.4 < heldout_auc(w, 400, time_bias=False) < 0.6


def test_afnet_finds_profile_times_behaviour():
    """A click when two parities agree; the head is linear, so only AFNet can multiply."""
    w = requests(2, 1)
    same = (w.raw["age_group"] + w.raw["past_category"][:, -1]) % 2
    w = w.replace(click=same[:, None].astype(np.float32))
    assert heldout_auc(w, 200) > 0.8
    assert 0.4 < heldout_auc(w, 200, af_net=False) < 0.6


def test_target_awareness_finds_a_match():
    """A click when the candidate's category is among the last events' categories."""
    w = requests(3, 3)
    rng = np.random.default_rng(1)
    match = rng.integers(0, 2, len(w.mask))
    seen = w.raw["past_category"][np.arange(len(w.mask)), rng.integers(0, 3, len(w.mask))]
    other = rng.integers(1, 12, len(w.mask))
    w = w.replace(category=np.where(match, seen, other)[:, None].astype(np.int32))
    label = (w.raw["past_category"] == w.raw["category"]).any(1)
    w = w.replace(click=label[:, None].astype(np.float32))
    aware, blind = heldout_auc(w, 200), heldout_auc(w, 200, target_aware=False)
    assert aware > 0.8 and aware > blind + 0.15
