"""Every command, config, file and module that a document, a docstring or a notebook names exists."""

import importlib
import importlib.util
from pathlib import Path
import re
import subprocess
import sys

import pytest

import recjax
from tests import test_import_rules as import_rules

REPO = Path(__file__).resolve().parent.parent
ROOMS = ("recjax", "scaling", "experiments", "launch", "tests", "docs")
FILES = sorted(
    p
    for place in (*(REPO / room for room in ROOMS), *REPO.glob("*.md"))
    for p in ([place] if place.is_file() else place.rglob("*"))
    if p.suffix in (".py", ".md", ".ipynb", ".js", ".j2")
)
OWN = "|".join(r for r in ROOMS if r != "docs")
# Tests name what must not exist, too.
OUTSIDE = [p for p in FILES if REPO / "tests" not in p.parents]
MODULE = re.compile(rf"-m\s+((?:{OWN})(?:\.\w+)+)")
CONFIG = re.compile(rf"--config=\"?((?:{OWN})/[\w/]+\.py)")


def documented(pattern: re.Pattern) -> dict[str, str]:
    """What the pattern's group found -> the file that names it."""
    return {x: str(p.relative_to(REPO)) for p in OUTSIDE for x in pattern.findall(p.read_text())}


COMMANDS = documented(MODULE)


def test_the_documents_name_the_commands():
    assert {
        "recjax.train",
        "recjax.data.prepare",
        "scaling.run",
        "scaling.decide",
    } <= COMMANDS.keys()
    assert len(COMMANDS) > 30


def source_of(spec) -> Path:
    """What `python -m` runs: of a package, its __main__.py."""
    path = Path(spec.origin)
    return path.with_name("__main__.py") if path.name == "__init__.py" else path


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_it_runs_as_a_module(name):
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{COMMANDS[name]} names python -m {name}, which does not exist"
    assert '__name__ == "__main__"' in source_of(spec).read_text(), f"{name} is no command"


LINE = re.compile(rf"python -m ((?:{OWN})(?:\.\w+)+)((?:[^\n`\\]|\\\n|\\\\\n)*)")
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*)(?=[=\s.\]]|$)")
PASS_ON = {
    "launch.local": "recjax.train",
    "launch.jobset": "recjax.train",
}  # flags that are not theirs


def defined(module: str) -> set[str]:
    """Flags of a command, by its source."""
    source = source_of(importlib.util.find_spec(module)).read_text()
    found = {*re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source), *re.findall(r'"--(\w+)"', source)}
    found |= {"config"} if "define_flag(" in source else set()
    return found | (defined(PASS_ON[module]) if module in PASS_ON else set())


def flags_of(path: Path) -> set[tuple[str, str]]:
    """(command, flag) of every command line in a file, to the end of the line or of what it continues on."""
    out = set()
    for module, rest in LINE.findall(path.read_text()):
        own = re.split(r" [#;|]|&&|\s{6,}", rest.replace("\\\n", " "))[
            0
        ]  # no comment, no next command
        out |= {(module, flag) for flag in FLAG.findall(own)}
    return out


def test_flags_of_documented_commands_exist():
    named = {(m, flag): p for p in OUTSIDE for m, flag in flags_of(p)}
    assert len(named) > 60
    known = {m: defined(m) for m, _ in named}
    unknown = {
        f"{m} --{flag}": p.name
        for (m, flag), p in named.items()
        if flag not in known[m] and flag.removeprefix("no") not in known[m]
    }
    assert not unknown


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


PATH = re.compile(rf"(?<![\w/.-])((?:{OWN}|docs)/[\w/.-]+\.(?:py|md|ipynb|sbatch))\b")
BARE = re.compile(r"`(\w+\.py)`")
DOTTED = re.compile(rf"(?<![\w./-])(?<!-m )((?:{OWN})(?:\.[A-Za-z_]\w*)+)\b(?!/)")


def test_files_that_are_named_exist():
    """By their path from here; in documents also by their bare name, somewhere."""
    names = {p.name for p in REPO.rglob("*.py")}
    lost = [(str(p.relative_to(REPO)), x) for p in OUTSIDE for x in PATH.findall(p.read_text()) if not (REPO / x).exists()]  # fmt: skip
    lost += [(str(p.relative_to(REPO)), x) for p in OUTSIDE if p.suffix == ".md" for x in BARE.findall(p.read_text()) if x not in names]  # fmt: skip
    assert lost == []


def test_modules_that_are_named_exist():
    """recjax.a.b of a text is a module, or what a module holds."""
    tree = import_rules.Tree(REPO)

    def known(name: str) -> bool:
        parts = name.split(".")
        modules = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
        module = next(m for m in modules if m in tree.files or m in OWN.split("|"))
        rest = parts[module.count(".") + 1 :]
        if module == "recjax" and rest and rest[0] in recjax.API:  # by name, from recjax.api
            return True
        return not rest or module in tree.trees and rest[0] in import_rules.defined_names(tree.trees[module])  # fmt: skip

    named = {(str(p.relative_to(REPO)), x) for p in OUTSIDE for x in DOTTED.findall(p.read_text())}
    files = (".py", ".md", ".json")  # scaling.json is a file, whatever it is called
    assert sorted(n for n in named if not n[1].endswith(files) and not known(n[1])) == []


def test_configs_of_commands_exist():
    absent = {c: by for c, by in documented(CONFIG).items() if not (REPO / c).is_file()}
    assert not absent


@pytest.mark.parametrize("name, flag", [
    ("scaling.decide", "--sweep"), ("scaling.run", "--[no]only_report"), ("experiments.compare", "--seeds"),
    ("recjax.data.complete_journey", "--rate"), ("recjax.data.published", "--name"),
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
