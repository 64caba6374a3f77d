"""--shard of every command that splits its work among processes."""

import pytest

from recjax.evaluation import score_files


def test_a_shard_is_written_as_its_number_of_how_many():
    assert score_files.parse_shard("1/4") == (1, 4)
    for wrong in ("4/4", "1", "a/b", "-1/2", "0/0", ""):
        with pytest.raises(score_files.ScoredError, match="--shard"):
            score_files.parse_shard(wrong)
