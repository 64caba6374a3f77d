"""Laws, decisions and report of a finished sweep again, from its trials.jsonl and sweep.json: python -m scaling.refit --sweep=DIR

Trains nothing and needs no run directory, so it serves for a study of which only the rows were kept. The report's section on the
data is written where the prepared data are at hand.
"""

import sys

from absl import app, flags, logging
from etils import epath

from recjax.data import open_data
from recjax.runtime.run import set_up
from scaling import report, stages
from scaling.plan import rows, study


def refit(root: epath.Path) -> str:
    """Writes fit.json, laws.json, decisions.json and report.html anew; returns the report's path.

    Raises:
      FileNotFoundError: There is no trials.jsonl or no sweep.json.
    """
    about = stages.About.of(study.saved(root))
    stages.law_stage(rows.read(root), root, about.metrics, about.directions)
    try:
        data = stages.data_report(open_data(about.data))
    except (ImportError, OSError, ValueError) as e:
        logging.warning("the report says nothing of the data, which could not be opened: %s", e)
        data = None
    return stages.report_stage(about, root, data)


def main(_) -> None:
    report.require()
    set_up()
    try:
        path = refit(epath.Path(_SWEEP.value))
    except (ValueError, OSError) as e:
        sys.exit(f"error: {e}")
    logging.info("report: %s", path)


if __name__ == "__main__":
    _SWEEP = flags.DEFINE_string("sweep", None, "sweep directory")
    flags.mark_flag_as_required("sweep")
    app.run(main)
