"""A teacher's logits, once for each impression: python -m recjax.teach --run=runs/suan --split=train_matched

Any run of the library with an output "logits" (a pair's is its student's; --output=teacher takes the other side). The
answers go to <run>/logits/<data hash>/<split>.npy, and students are trained on them by

    python -m recjax.train --config=experiments/distill_complete_journey.py:offline \
        --config.data.teachers="('runs/suan',)" --config.data.train=train_matched --workdir=runs/student

What was answered already is not asked again, nor after SIGTERM or Ctrl-C. A run has one file a split: asked for another
output or of another checkpoint, it begins anew, and students get the latest answers.
"""

from absl import flags

from recjax import command
from recjax.runtime.run import set_up
from recjax.training.inference import teach


def main(_) -> None:
    set_up()
    print(
        teach(
            _RUN.value,
            _SPLIT.value,
            examples=_EXAMPLES.value,
            output=_OUTPUT.value,
            data_dir=_DATA.value,
            best=_BEST.value,
        )
    )


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "workdir of the teacher", required=True)
    _SPLIT = flags.DEFINE_string("split", "train", "whose impressions")
    _EXAMPLES = flags.DEFINE_integer("examples", 0, "only the first so many; 0: all")
    _OUTPUT = flags.DEFINE_string("output", "logits", "of the teacher")
    _DATA = flags.DEFINE_string("data", "", "prepared directory in place of the run's own")
    _BEST = flags.DEFINE_bool("best", False, "the best checkpoint rather than the newest")
    command.run(main)
