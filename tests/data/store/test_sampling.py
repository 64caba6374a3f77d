"""What a data set says about its negatives decides the correction, and a split's name only where it says nothing."""

from recjax.data.store.sampling import POPULARITY, UNIFORM, keep_probability, sampling_of


def test_the_declaration_counts_and_not_the_name():
    keep = dict(train=0.1, train_flow=0.02, test_matched=0.3)
    said = dict(
        keep=keep, sampling=dict(train=UNIFORM, train_flow=POPULARITY, test_matched=UNIFORM)
    )
    assert [keep_probability(said, s) for s in keep] == [0.1, 1.0, 0.3]
    assert keep_probability(said, "other") == 1.0 and sampling_of(said, "other") == UNIFORM


def test_data_prepared_before_there_was_a_declaration_go_by_the_name():
    old = dict(keep=dict(train=0.1, train_matched=0.02))
    assert [keep_probability(old, s) for s in ("train", "train_matched")] == [0.1, 1.0]
    assert sampling_of(old, "train_matched") == POPULARITY
    assert keep_probability({}, "train") == 1.0
