"""What to buy next, from a finished sweep: python -m scaling.decide --sweep=DIR --target=0.70

    python -m scaling.decide --sweep=DIR --grade=2 --history=50 --examples=3e6      what to expect there
    python -m scaling.decide --sweep=DIR --target=0.70                              the cheapest training that reaches it
    python -m scaling.decide --sweep=DIR --grade=1 --history=20 --examples=1.4e6    ... and which size to double next
    python -m scaling.decide --sweep=DIR --latency=latency.json                     AUC against serving latency

    python -m scaling.decide --sweep=DIR --compare                                  a law for each of sweep.systems, and where they cross

The answers are those of `scaling.law.decisions`, from the sweep's trials.jsonl.
"""

from absl import flags

from recjax import command
from scaling.law import crossing, decisions
from scaling.plan import rows


def main(_) -> None:
    if _COMPARE.value:
        found = crossing.compare(
            rows.read(_SWEEP.value), _METRIC.value, larger_is_better=_LARGER.value
        )
        print("\n".join(found))
        return
    lines = decisions.advice(
        rows.read(_SWEEP.value),
        _METRIC.value,
        grade=_GRADE.value,
        history=_HISTORY.value,
        examples=_EXAMPLES.value,
        target=_TARGET.value,
        larger_is_better=_LARGER.value,
        latency_ms=decisions.read_latency(_LATENCY.value) if _LATENCY.value else None,
    )
    print("\n".join(lines))


if __name__ == "__main__":
    _SWEEP = flags.DEFINE_string("sweep", None, "sweep directory")
    _METRIC = flags.DEFINE_string("metric", "auc", "column of trials.jsonl")
    _TARGET = flags.DEFINE_float("target", None, "value of the metric to reach")
    _GRADE = flags.DEFINE_string("grade", "", "only this grade")
    _HISTORY = flags.DEFINE_integer("history", 0, "only this length")
    _EXAMPLES = flags.DEFINE_float("examples", 0, "to train on; default: the most measured")
    _LATENCY = flags.DEFINE_string("latency", "", "JSON of {grade: ms a request}")
    _COMPARE = flags.DEFINE_bool("compare", False, "the systems of the sweep with each other")
    _LARGER = flags.DEFINE_bool(
        "larger_is_better", None, "direction of the metric; default: by its name, if known"
    )
    flags.mark_flag_as_required("sweep")
    command.run(main)
