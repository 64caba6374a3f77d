"""Do the tests notice? Applies each small fault of `tests.mutants` to a copy of the tree and runs its nearest tests.

    python -m tests.mutate                      # all; an hour or two on two cores, and it resumes
    python -m tests.mutate --only=clip_rows     # one, or several with commas; prefixes do
    python -m tests.mutate --jobs=2 --again     # two at a time, nothing taken from an earlier run

The nearest tests first run without a fault, and must pass. A fault that they pass as well has survived: write the test
that it needs, or say in `Mutant.equivalent` why nothing could tell. Survivors end the command with 1.

Results are kept by the fault and the text of all files it concerns, in .pytest_cache, so an interrupted run goes on.
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import hashlib
import json
import os
from pathlib import Path
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from absl import app, flags

from tests.mutants import MUTANTS, Mutant

REPO = Path(__file__).resolve().parent.parent
RESULTS = Path(".pytest_cache", "mutants.json")
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"
# pytest's exit codes; others mean that the tests never ran: a wrong path, a wrong option, nothing collected.
OUTCOMES = {0: SURVIVED, 1: KILLED, 2: KILLED}

_ONLY = flags.DEFINE_list("only", [], "Names of mutants, or what they begin with; none: all.")
_JOBS = flags.DEFINE_integer("jobs", 1, "How many run at a time, each in a copy of the tree.", 1)
_AGAIN = flags.DEFINE_bool("again", False, "Run those with a result too.")
_TIMEOUT = flags.DEFINE_float("timeout", 900, "Seconds after which a mutant counts as killed.")


def applied(text: str, mutant: Mutant) -> str:
    """`text` with the fault in it; ValueError unless its old line stands there exactly once."""
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(
            f"mutant {mutant.name}: {mutant.old!r} stands {found} times in {mutant.file}, it must "
            "stand there once; follow the code in tests/mutants.py"
        )
    return text.replace(mutant.old, mutant.new)


def fingerprint(root: Path, mutant: Mutant) -> str:
    """Of the fault, its file and its tests: another one asks for another run."""
    files = [mutant.file, *(t.partition("::")[0] for t in mutant.tests)]
    parts = [mutant.old, mutant.new, *mutant.tests, *((root / f).read_text() for f in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def copy_tree(target: Path) -> None:
    """What git would commit, as it is now."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPO, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPO / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, target / name)


@contextlib.contextmanager
def mutated(root: Path, mutant: Mutant) -> Iterator[None]:
    """The copy with the fault in it."""
    file = root / mutant.file
    before = file.read_text()
    file.write_text(applied(before, mutant))
    try:
        yield
    finally:
        file.write_text(before)


def run_tests(root: Path, tests: Sequence[str], cache: Path, timeout: float) -> str:
    """KILLED, SURVIVED or BROKEN, by pytest's exit code; a time-out or a signal kills."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    env = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",  # two faults within a second would share one .pyc
        "JAX_COMPILATION_CACHE_DIR": str(cache),  # most programs do not hold the fault
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }
    try:
        done = subprocess.run(
            [*command, *tests], cwd=root, env=env, timeout=timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return KILLED
    outcome = KILLED if done.returncode < 0 else OUTCOMES.get(done.returncode, BROKEN)
    if outcome == BROKEN:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
    return outcome


def chosen(only: Sequence[str]) -> list[Mutant]:
    """The mutants asked for; ValueError where a name is none's."""
    unknown = [n for n in only if not any(m.name.startswith(n) for m in MUTANTS)]
    if unknown:
        raise ValueError(f"--only={','.join(unknown)}: no mutant's name begins so")
    return [m for m in MUTANTS if not only or m.name.startswith(tuple(only))]


class Runner:
    """Copies of the tree, one a job, and the results so far, which are written after each mutant."""

    def __init__(
        self, folder: Path, mutants: Sequence[Mutant], results: dict[str, dict], jobs: int
    ):
        self.cache, self.results, self.left = folder / "compiled", results, len(mutants)
        self.lock, self.trees = threading.Lock(), queue.Queue[Path]()
        for i in range(jobs):
            copy_tree(folder / str(i))
            self.trees.put(folder / str(i))
        # Of a copy: the tree itself may be edited meanwhile.
        self.keys = {m.name: fingerprint(folder / "0", m) for m in mutants}

    def run(self, mutants: Sequence[Mutant], timeout: float) -> None:
        """Mutants with the same tests, which must pass without a fault first."""
        tree = self.trees.get()
        try:
            for mutant in (None, *mutants):
                start, tests = time.monotonic(), mutants[0].tests
                with mutated(tree, mutant) if mutant else contextlib.nullcontext():
                    outcome = run_tests(tree, tests, self.cache, timeout)
                self._note(mutant, tests, outcome, time.monotonic() - start)
                if mutant is None and outcome != SURVIVED:
                    return
        finally:
            self.trees.put(tree)

    def _note(self, mutant: Mutant | None, tests: Sequence[str], outcome: str, seconds: float):
        with self.lock:
            if mutant is None:
                what = "pass" if outcome == SURVIVED else "FAIL WITHOUT A FAULT"
                print(f"{what}: {' '.join(tests)} ({seconds:.0f} s)", flush=True)
                return
            self.results[mutant.name] = dict(key=self.keys[mutant.name], outcome=outcome)
            write(self.results)
            self.left -= 1
            print(f"{outcome}: {mutant.name} ({seconds:.0f} s), {self.left} left", flush=True)


def run_all(mutants: Sequence[Mutant], results: dict[str, dict], jobs: int, timeout: float) -> None:
    """Adds an outcome to `results` for every mutant whose tests pass without it."""
    groups: dict[tuple[str, ...], list[Mutant]] = {}
    for m in mutants:
        groups.setdefault(m.tests, []).append(m)
    with tempfile.TemporaryDirectory(prefix="recjax-mutants-") as folder:
        runner = Runner(Path(folder), mutants, results, jobs)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(runner.run, g, timeout) for g in groups.values()]:
                done.result()


def write(results: dict[str, dict]) -> None:
    path = REPO / RESULTS
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1, sort_keys=True))
    temporary.replace(path)


def report(mutants: Sequence[Mutant], results: dict[str, dict]) -> int:
    """Prints who survived; how many should not have."""
    outcomes = {m.name: results.get(m.name, {}).get("outcome", BROKEN) for m in mutants}
    killed = sum(o == KILLED for o in outcomes.values())
    print(f"{len(mutants)} mutants, {killed} killed")
    bad = 0
    for m in mutants:
        if outcomes[m.name] == KILLED:
            continue
        bad += not m.equivalent
        print(f"  {outcomes[m.name]}: {m.name} in {m.file}: {m.old!r} -> {m.new!r}")
        print(f"    equivalent: {m.equivalent}" if m.equivalent else f"    {' '.join(m.tests)}")
    return bad


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected {argv[1:]}; write --only={argv[1]}")
    mutants = chosen(_ONLY.value)
    for m in mutants:
        applied((REPO / m.file).read_text(), m)  # before anything is run
    path = REPO / RESULTS
    results = json.loads(path.read_text()) if path.exists() else {}
    known = {m.name for m in mutants if results.get(m.name, {}).get("key") == fingerprint(REPO, m)}
    todo = [m for m in mutants if _AGAIN.value or m.name not in known]
    print(f"{len(mutants)} mutants, {len(mutants) - len(todo)} with a result already", flush=True)
    if todo:
        run_all(todo, results, _JOBS.value, _TIMEOUT.value)
    if report(mutants, results):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
