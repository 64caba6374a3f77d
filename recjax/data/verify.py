"""Checks every file of prepared data against the SHA-256 it was written with: python -m recjax.data.verify --data=DIR"""

from absl import flags

from recjax import command
from recjax.data.store.prepared import Prepared


def main(_) -> None:
    data = Prepared(_DATA.value)
    checked = data.verify()
    print(f"{data.path}: {checked} files are as they were written" if checked else f"{data.path}: prepared by an earlier version, without checksums; sizes agree")  # fmt: skip


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "Prepared directory.", required=True)
    command.run(main)
