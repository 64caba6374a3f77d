"""Criteo uplift: who was or was not to be shown ads, by lot, and whether they visited and converted.

    python -m recjax.data.published --name=criteo_uplift --source=FOLDER --out=DIR

The builder is a subclass of TFDS's `Criteo` and has its documentation, which describes the first release of 25,309,483 rows
though its address is that of v2.1: 13,979,592 rows, 0.85 of them treated, without the first one's leak. Format: TFDS's
parser, one CSV with f0 to f11, treatment, conversion, visit, exposure; criteo-research-uplift-v2.1.csv.gz or unpacked under
any name like it. TFDS ships no checksum; size and SHA-256 of the .gz below are those that many public downloaders of the
file verify (huggingface.co/datasets/criteo/criteo-uplift serves it), and were not checked here for want of the file.

Protocol. `treatment` is what the lot decided, and is the arm; `exposure` is what came of it, and no feature. Labels are `visit`,
then `conversion`. Features are dense; the splits are random, see `recjax.data.sets.trials`.
"""

import os
import pathlib

from tensorflow_datasets.recommendation.criteo import criteo as tfds_criteo

from recjax.data.sets.published import File, Published
from recjax.data.sets.trials import Trial, prepare_trial

TRIAL = Trial(
    treatment="treatment",
    control=0,
    labels=("visit", "conversion"),
    dense={f"f{i}": "identity" for i in range(12)},
)


class CriteoUplift(Published, tfds_criteo.Criteo):
    """Criteo's uplift trial as blocks of rows; what it says of the data is TFDS's."""

    name = "criteo_uplift"
    HOMEPAGE = "https://ailab.criteo.com/criteo-uplift-prediction-dataset/"
    LICENSE = "CC BY-NC-SA 4.0"
    FILES = (
        File(
            "criteo-research-uplift-v2.1.csv.gz",
            311_422_618,
            "2716e1bf0fd157a93b5bf86924d9088419dfbac2022c6cd90030220634f616dc",
        ),
    )

    def about(self) -> dict[str, str]:
        return self.about_tfds(tfds_criteo.Criteo)


def prepare(out_dir: str | os.PathLike, *, source: str = "", **options) -> pathlib.Path:
    """Prepares the trial and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder or archive with the CSV file.
      **options: seed, block_size, fractions (`recjax.data.sets.trials.prepare_trial`).

    Raises:
      DataError: The file is missing or not as described.
    """
    return prepare_trial(CriteoUplift, out_dir, source, TRIAL, {"train": "criteo*.csv"}, **options)
