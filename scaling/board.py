"""The board of distillation: five kinds of model, n seeds each, on the same data, with paired differences.

    python -m scaling.board --config=experiments/suan_complete_journey.py --workdir=runs/board-cj --seeds=5 \
        --config.data.train=train_matched --config.data.counters=False --config.train.examples=300000
    python -m scaling.board --config=experiments/suan_kuairand.py --workdir=runs/board-kuairand --seeds=5

  teacher       SUAN of the teacher's grade
  suan          SUAN of the student's grade
  suan_above    SUAN one grade higher
  lightsuan     the student, undistilled
  distilled     the student, taught by its own seed's teacher (offline; --teachers=all: by all seeds' together)

Every run is a directory, so the same command goes on where it stopped. Writes board.json and board.md: metrics on every
test split as mean and spread over seeds, parameters, time of one request on the cores of this process, and for AUC the
distilled student minus each other kind, with two intervals: test groups drawn with replacement, and Student's t over seeds.
"""

from collections.abc import Mapping
from typing import Any

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict
import numpy as np

from recjax import command, configs
from recjax.data import open_data
from recjax.evaluation import kept_scores
from recjax.metrics.comparison import paired_bootstrap
from recjax.runtime.run import plain, set_up, write_json, write_text
from recjax.training.inference import teach, train_and_keep
from scaling.cache import cached
from scaling.choice import latency
from scaling.distillation import light, paired
from scaling.plan.grades import LADDER

ROLES = ("teacher", "suan", "suan_above", "lightsuan", "distilled")


def models_of(
    base: Mapping[str, Any], teacher: str, student: str, options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Role -> model config; the distilled student's is the student's own."""
    grades = list(LADDER)
    above = grades[min(grades.index(student) + 1, len(grades) - 1)]
    suan = lambda grade: {**base, **LADDER[grade].options()}  # noqa: E731
    return {
        "teacher": suan(teacher),
        "suan": suan(student),
        "suan_above": suan(above),
        "lightsuan": light(base, student, options),
        "distilled": light(base, student, options),
    }


def config_of(
    base: ConfigDict, role: str, model: Mapping[str, Any], soft: Mapping[str, float], seed: int,
    teachers: tuple[str, ...],
) -> ConfigDict:  # fmt: skip
    config = ConfigDict(base.to_dict())
    config.seed = seed
    if role == "distilled":
        model = dict(name="distillation_offline", student=model, **soft)
        config.data.teachers = teachers
    config.model = ConfigDict(model)
    return config


def train_all(
    base: ConfigDict, models: Mapping[str, Any], soft: Mapping[str, float], seeds: int,
    together: bool, root: epath.Path,
) -> dict[str, list[dict]]:  # fmt: skip
    """Role -> summaries by seed. Teachers first: students read what they answered."""
    out: dict[str, list[dict]] = {role: [] for role in ROLES}
    runs = tuple(str(root / f"teacher-{seed}") for seed in range(seeds))
    for role in ROLES:
        for seed in range(seeds):
            logging.info("%s, seed %d of %d", role, seed, seeds)
            teachers = runs if together else (runs[seed],)
            config = config_of(base, role, models[role], soft, seed, teachers)
            place = root / f"{role}-{seed}"
            out[role].append(train_and_keep(config, place))
            if role == "teacher":
                teach(place, base.data.train, examples=base.train.examples)
    return out


def differences(root: epath.Path, seeds: int, split: str) -> dict[str, dict]:
    """Other role -> AUC of the distilled student minus its, paired, over groups of the rows that all were judged on."""
    runs = {role: [root / f"{role}-{s}" for s in range(seeds)] for role in ROLES}
    rows = {r: [kept_scores.load(each, split) for each in folders] for r, folders in runs.items()}
    kept_scores.check(rows, split)
    first = rows["distilled"][0]
    groups = first[kept_scores.group_key(first) or "row"]
    logits = {role: np.stack([r["logit"] for r in each]) for role, each in rows.items()}
    return {
        role: paired_bootstrap(
            logits[role], logits["distilled"], first["label"], groups, weights=first["weight"]
        )._asdict()
        for role in ROLES[:-1]
    }


def table(board: Mapping[str, Any]) -> str:
    """The board as Markdown."""
    lines = []
    for split, roles in board["splits"].items():
        names = list(next(iter(roles.values())))
        lines += [f"## {split}", "", f"| model | {' | '.join(names)} | parameters | p50 ms |"]
        lines += ["|---" * (len(names) + 3) + "|"]
        for role, metrics in roles.items():
            cells = [
                f"{m['mean']:.4f}" + ("" if m["sd"] is None else f" ± {m['sd']:.4f}")
                for m in metrics.values()
            ]
            cells += [f"{board['parameters'][role]:,}", str(board["latency"][role]["p50_ms"])]
            lines.append(f"| {role} | {' | '.join(cells)} |")
        lines += ["", "| AUC, distilled minus | difference | 95 % over groups | over seeds |"]
        lines += ["|---|---|---|---|"]
        for role, d in board["differences"][split].items():
            s = d["over_seeds"]
            own = "one seed" if s["low"] is None else f"{s['low']:+.4f} to {s['high']:+.4f}"
            lines.append(
                f"| {role} | {d['difference']:+.4f} | {d['low']:+.4f} to {d['high']:+.4f} | {own} |"
            )
        lines.append("")
    return "\n".join(lines)


def run(
    base: ConfigDict, workdir: str, *, teacher: str, student: str, options: Mapping[str, Any],
    soft: Mapping[str, float], seeds: int, together: bool, candidates: int,
) -> dict[str, Any]:  # fmt: skip
    """All stages; returns the content of board.json."""
    root = epath.Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    data, splits = open_data(base.data), [s for s in base.eval.final if s.startswith("test")]
    models = models_of(base.model.to_dict(), teacher, student, options)
    summaries = train_all(base, models, soft, seeds, together, root)
    names = ("auc", f"gauc_{data.schema.groups[0]}", "logloss", "ece")
    board: dict[str, Any] = {
        "teacher": teacher, "student": student, "soft": dict(soft), "seeds": seeds,
        "splits": {s: {r: _spread(summaries[r], s, names) for r in ROLES} for s in splits},
        "parameters": {r: summaries[r][0]["n_dense"] + summaries[r][0]["n_embedding"] for r in ROLES},
        "block_parameters": {r: summaries[r][0]["n_blocks"] for r in ROLES},
    }  # fmt: skip
    board["latency"] = cached(
        root / f"latency-{candidates}.json",
        lambda: {role: latency(data, models[role], candidates) for role in ROLES},
    )
    board["differences"] = {s: differences(root, seeds, s) for s in splits}
    for s, found in board["differences"].items():
        auc = {r: {s: {"auc": m["auc"]["values"]}} for r, m in board["splits"][s].items()}
        for role, d in found.items():
            d["over_seeds"] = paired({"undistilled": auc[role], "distilled": auc["distilled"]}, s)
    board = plain(board)
    write_json(root / "board.json", board)
    write_text(root / "board.md", table(board))
    return board


def _spread(summaries: list[dict], split: str, names: tuple[str, ...]) -> dict[str, dict]:
    values = {
        n: np.array([s[split][n] for s in summaries], float)
        for n in names
        if n in summaries[0][split]
    }
    return {
        n: {"mean": x.mean(), "sd": x.std(ddof=1) if len(x) > 1 else None, "values": x}
        for n, x in values.items()
    }


def main(_) -> None:
    set_up()
    run(
        _CONFIG.value,
        _WORKDIR.value,
        teacher=_TEACHER.value,
        student=_STUDENT.value,
        options=dict(local=_LOCAL.value, dilation=_DILATION.value),
        soft=dict(temperature=_TEMPERATURE.value, weight=_WEIGHT.value),
        seeds=_SEEDS.value,
        together=_TEACHERS.value == "all",
        candidates=_CANDIDATES.value,
    )
    print((epath.Path(_WORKDIR.value) / "board.md").read_text())


if __name__ == "__main__":
    _CONFIG = configs.define_flag("experiment of a SUAN")
    _WORKDIR = flags.DEFINE_string("workdir", None, "of the board")
    _SEEDS = flags.DEFINE_integer("seeds", 5, "of every kind", 1)
    _TEACHER = flags.DEFINE_enum("teacher", "3", list(LADDER), "grade")
    _STUDENT = flags.DEFINE_enum("student", "1", list(LADDER), "grade")
    _LOCAL = flags.DEFINE_integer("local", 16, "k of the student", 1)
    _DILATION = flags.DEFINE_integer("dilation", 4, "r of the student", 1)
    _TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "of the soft term")
    _WEIGHT = flags.DEFINE_float("weight", 0.3, "of the soft term; tuned by scaling.distill")
    _TEACHERS = flags.DEFINE_enum("teachers", "own", ("own", "all"), "who teaches a seed's student")
    _CANDIDATES = flags.DEFINE_integer("candidates", 100, "of the requests timed", 1)
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
