"""Hillstrom's e-mail challenge: 64,000 customers, a men's, a women's or no e-mail by lot, then visit and conversion.

    python -m recjax.data.published --name=hillstrom --source=FOLDER --out=DIR

The builder is a subclass of TFDS's `Hillstrom` and has its documentation. Format: TFDS's parser and the file itself, one
CSV with the columns below; any of the usual names is taken. TFDS ships no checksum, and none is published.

Protocol. Labels are `visit`, which comes first, and `conversion`; nobody converts without a visit. `spend` is an outcome
and therefore no feature. `history_segment` is `history` in classes; both are kept, as are all other columns. The trial
has no times, so splits are random: see `recjax.data.sets.trials`.
"""

import os
import pathlib

from tensorflow_datasets.recommendation.hillstrom import hillstrom as tfds_hillstrom

from recjax.data.sets.published import Published
from recjax.data.sets.trials import Trial, prepare_trial

TRIAL = Trial(
    treatment="segment",
    control="No E-Mail",
    labels=("visit", "conversion"),
    ids=("history_segment", "zip_code", "channel", "mens", "womens", "newbie"),
    dense={"recency": "log1p", "history": "log1p"},
)


class Hillstrom(Published, tfds_hillstrom.Hillstrom):
    """Hillstrom's challenge as blocks of rows; what it says of the data is TFDS's."""

    name = "hillstrom"
    FOLDER = "hillstrom"
    HOMEPAGE = "https://blog.minethatdata.com/2008/03/minethatdata-e-mail-analytics-and-data.html"
    LICENSE = "None stated; published for a public challenge."

    def about(self) -> dict[str, str]:
        return self.about_tfds(tfds_hillstrom.Hillstrom)


def prepare(out_dir: str | os.PathLike, *, source: str = "", **options) -> pathlib.Path:
    """Prepares the trial and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder with the CSV file; "" means $RECJAX_DATA/hillstrom.
      **options: seed, block_size, fractions (`recjax.data.sets.trials.prepare_trial`).

    Raises:
      DataError: The file is missing or not as described.
    """
    return prepare_trial(Hillstrom, out_dir, source, TRIAL, {"train": "*illstrom*.csv"}, **options)
