"""MT-LIFT: two months of coupons of Meituan food delivery, five arms by lot, click and conversion.

    python -m recjax.data.published --name=mt_lift --source=MT-LIFT --out=DIR

Format, from the publisher's README (github.com/MTDJDSP/MT-LIFT): train.csv (8.64 GB) and test.csv (1.85 GB) with the 102
columns click, conversion, treatment (0 to 4) and f0 to f98. What the features are is not said; all are read as numbers,
and missing ones as 0. The README gives no checksum.

Protocol. Arm 0 is taken for the control: the README does not say so, the paper (arXiv 2402.03379) and its ports do. The
test is the publisher's; validation is a seeded draw from train.csv, see `recjax.data.sets.trials`. Both files are held in memory
as float32: 5.5 M rows of 102 numbers, 2.3 GB and as much again while they are written.
"""

import os
import pathlib

from recjax.data.sets.published import Published
from recjax.data.sets.trials import Trial, prepare_trial

TRIAL = Trial(
    treatment="treatment",
    control=0,
    labels=("click", "conversion"),
    dense={f"f{i}": "identity" for i in range(99)},
)


class MtLift(Published):
    """MT-LIFT as blocks of rows."""

    name = "mt_lift"
    HOMEPAGE = "https://github.com/MTDJDSP/MT-LIFT"
    DESCRIPTION = (
        "Two months of randomised coupons of food delivery in the Meituan app: five treatments, 99 features, click and "
        "conversion in the space of impressions."
    )
    CITATION = """@inproceedings{huang2024,
  title={Entire Chain Uplift Modeling with Context-Enhanced Learning for Intelligent Marketing},
  author={Huang, Yinqiu and Wang, Shuli and Gao, Min and Wei, Xue and Li, Changhao and Luo, Chuan and Zhu, Yinhua and
    Xiao, Xiong and Luo, Yi},
  booktitle={Companion Proceedings of the ACM Web Conference 2024},
  doi={10.1145/3589335.3648320},
  year={2024}
}"""
    LICENSE = "None stated."


def prepare(out_dir: str | os.PathLike, *, source: str = "", **options) -> pathlib.Path:
    """Prepares the trial and returns its directory.

    Args:
      out_dir: Folder that holds prepared data sets.
      source: Folder or archive with train.csv and test.csv.
      **options: seed, block_size, fractions (`recjax.data.sets.trials.prepare_trial`).

    Raises:
      DataError: A file or column is missing.
    """
    files = {"train": "train.csv", "test": "test.csv"}
    return prepare_trial(MtLift, out_dir, source, TRIAL, files, **options)
