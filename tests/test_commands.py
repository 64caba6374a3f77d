"""Every command that a document, a docstring or a notebook names exists, and so does every config it is given."""

import importlib
import importlib.util
from pathlib import Path
import re
import subprocess
import sys

import pytest

REPO = Path(__file__).resolve().parent.parent
ROOMS = ("recjax", "scaling", "experiments", "launch", "tests", "docs")
FILES = sorted(
    p
    for place in (*(REPO / room for room in ROOMS), *REPO.glob("*.md"))
    for p in ([place] if place.is_file() else place.rglob("*"))
    if p.suffix in (".py", ".md", ".ipynb", ".js", ".j2")
)
OWN = "|".join(r for r in ROOMS if r != "docs")
MODULE = re.compile(rf"-m\s+((?:{OWN})(?:\.\w+)+)")
CONFIG = re.compile(rf"--config=\"?((?:{OWN})/[\w/]+\.py)")


def documented(pattern: re.Pattern) -> dict[str, str]:
    """What the pattern's group found -> the file that names it."""
    return {x: str(p.relative_to(REPO)) for p in FILES for x in pattern.findall(p.read_text())}


COMMANDS = documented(MODULE)


def test_the_documents_name_the_commands():
    assert {
        "recjax.train",
        "recjax.data.prepare",
        "scaling.run",
        "scaling.decide",
    } <= COMMANDS.keys()
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_it_runs_as_a_module(name):
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{COMMANDS[name]} names python -m {name}, which does not exist"
    assert '__name__ == "__main__"' in Path(spec.origin).read_text(), f"{name} is no command"


IMPORT = re.compile(rf"^\s*\"?from ((?:{OWN})[\w.]*) import ([\w, ]+)", re.M)
IMPORTS = [
    (p.relative_to(REPO), module, name.split(" as ")[0].strip())
    for p in FILES if p.suffix in (".ipynb", ".md")
    for module, names in IMPORT.findall(p.read_text()) for name in names.split(",")
]  # fmt: skip


@pytest.mark.parametrize("file, module, name", IMPORTS, ids=str)
def test_imports_of_documents_and_notebooks_resolve(file, module, name):
    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}")


def test_configs_of_commands_exist():
    absent = {c: by for c, by in documented(CONFIG).items() if not (REPO / c).is_file()}
    assert not absent


@pytest.mark.parametrize("name, flag", [
    ("scaling.decide", "--sweep"), ("scaling.run", "--[no]only_report"), ("experiments.compare", "--seeds"),
])  # fmt: skip
def test_help_tells_its_flags(name, flag):
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"], capture_output=True, text=True, cwd=REPO
    )
    assert flag in done.stdout and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("name, library, options", [
    ("scaling.run", "jinja2", ("--config=scaling/configs/quickstart.py", "--workdir=/nowhere")),
    ("scaling.distill", "jinja2", ("--sweep=/nowhere",)),
    ("experiments.uplift_board", "matplotlib", ("--workdir=/nowhere",)),
    ("experiments.tin_correlation", "matplotlib", ("--workdir=/nowhere",)),
])  # fmt: skip
def test_a_command_without_its_extra_says_so_in_one_sentence(name, library, options, tmp_path):
    """Before it trains: with the library hidden as an environment without the extra has it."""
    hide = (
        "import importlib.util, runpy, sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == sys.argv[1] else real(n, *a)\n"
        "name, sys.argv = sys.argv[2], sys.argv[2:]\n"
        "runpy.run_module(name, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide, library, name, *options],
        capture_output=True, text=True, cwd=REPO,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert library in done.stderr and ".[scaling]" in done.stderr
