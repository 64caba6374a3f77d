"""Who may import whom: every import of the source is read, also those inside functions and under TYPE_CHECKING.

What is imported by a name that is put together at run time (`open_data`, `models.build`) is not seen; those two are how the
layers above choose, by a config, among files that nobody names. Each rule is also run on a small tree that breaks it.
"""

import ast
from collections.abc import Iterator, Mapping
import pathlib
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOPS = ("recjax", "scaling", "experiments", "launch")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}

CONTRACTS = ("recjax.configs", "recjax.schema", "recjax.batch", "recjax.trees", "recjax.inputs", "recjax.system")  # fmt: skip
DATA = ("recjax.data.store", "recjax.data.loading", "recjax.data.logs", "recjax.data.sets", "recjax.data.worlds", "recjax.data")  # fmt: skip
CORE = (*CONTRACTS, "recjax.command", "recjax.metrics", "recjax.layers", "recjax.models.parts", "recjax.models", "recjax.embedding", *DATA)  # fmt: skip
LIBRARY = (*CORE, "recjax.runtime", "recjax.evaluation", "recjax.training", "recjax.serving")
COMMANDS = ("recjax.train", "recjax.score", "recjax.teach", "recjax.evaluate")

# From the bottom to the top: a folder or a file of the library, and the rooms that it may import beside itself. A row names
# rooms of earlier rows only, so no circle of rooms can be allowed.
ROOMS: dict[str, tuple[str, ...]] = {
    "recjax.command": (),
    "recjax.configs": (),
    "recjax.schema": (),
    "recjax.batch": (),
    "recjax.trees": (),
    "recjax.inputs": ("recjax.schema", "recjax.batch", "recjax.trees"),
    "recjax.system": ("recjax.schema", "recjax.batch", "recjax.trees", "recjax.inputs"),
    "recjax.metrics": (),
    "recjax.layers": CONTRACTS,
    "recjax.models.parts": (*CONTRACTS, "recjax.metrics", "recjax.layers"),
    "recjax.models": (*CONTRACTS, "recjax.metrics", "recjax.layers", "recjax.models.parts"),
    "recjax.embedding": ("recjax.schema", "recjax.batch"),
    **{
        room: ("recjax.schema", "recjax.batch", "recjax.configs", "recjax.command", *DATA[:i])
        for i, room in enumerate(DATA)
    },
    "recjax.runtime": CORE,
    "recjax.evaluation": (*CORE, "recjax.runtime"),
    "recjax.training": (*CORE, "recjax.runtime", "recjax.evaluation"),
    "recjax.serving": (*CORE, "recjax.runtime", "recjax.evaluation", "recjax.training"),
    **dict.fromkeys(COMMANDS, LIBRARY),
    "recjax.api": LIBRARY,
    "recjax": (),
    "launch": LIBRARY,
    "experiments": LIBRARY,
    "scaling.plan": LIBRARY,
    "scaling.law": (*LIBRARY, "scaling.plan"),
    "scaling.report": (*LIBRARY, "scaling.plan", "scaling.law"),
    "scaling.configs": (*LIBRARY, "experiments", "scaling.plan"),
    "scaling": (*LIBRARY, "scaling.plan", "scaling.law", "scaling.report"),
}


class Import(NamedTuple):
    """`source`, a module of the tree, imports `target`: a module of the tree, or a package from outside."""

    source: str
    target: str
    line: int


# ---- reading a tree


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Dotted name -> file, of every Python file of the packages and their tests."""
    files = [f for top in (*TOPS, "tests") for f in sorted((root / top).rglob("*.py"))]
    return {
        ".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f
        for f in files
    }


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """(module, name or "", line) of each import anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, "", node.lineno) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), a.name, node.lineno) for a in node.names)  # fmt: skip


def defined_names(tree: ast.Module) -> set[str]:
    """What a module binds at its top level."""
    out: set[str] = set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            out.add(node.name)  # and not what it binds inside
        else:
            todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            out.add(node.id)
        elif isinstance(node, ast.alias):
            out.add((node.asname or node.name).partition(".")[0])
    return out


class Tree:
    """The imports of a source tree.

    Attributes:
      found: Those that could be followed.
      lost: Sentences about imports of this tree's packages that name no file and nothing in one.
    """

    def __init__(self, root: pathlib.Path):
        self.files = modules(root)
        self.trees = {name: ast.parse(file.read_text()) for name, file in self.files.items()}
        self.found: list[Import] = []
        self.lost: list[str] = []
        for source, tree in self.trees.items():
            for module, name, line in imported_names(tree):
                self._follow(source, module, name, line)

    def _follow(self, source: str, module: str, name: str, line: int) -> None:
        if module.partition(".")[0] not in (*TOPS, "tests"):
            self.found.append(Import(source, module.partition(".")[0] or module, line))
        elif name and f"{module}.{name}" in self.files:
            self.found.append(Import(source, f"{module}.{name}", line))
        elif module in self.files and (not name or name in defined_names(self.trees[module])):
            self.found.append(Import(source, module, line))
        else:
            self.lost.append(f"{source}:{line} imports {name or module} from {module}: no such file or name")  # fmt: skip

    def library(self) -> list[Import]:
        """Imports of one module of the packages by another."""
        ours = lambda name: name.partition(".")[0] in TOPS  # noqa: E731
        return [i for i in self.found if ours(i.source) and ours(i.target) and i.source != i.target]


def room_of(module: str, rooms: Mapping[str, tuple[str, ...]] = ROOMS) -> str:
    """The innermost room that a module lies in; its own name where it has none."""
    inside = [r for r in rooms if f"{module}.".startswith(f"{r}.")]
    best = max(inside, key=len, default=module)
    # A file beside the contracts is a room of its own, and has to be named.
    return module if best == "recjax" and module != "recjax" else best


# ---- the rules: each gives one sentence for everything that breaks it


def strangers(tree: Tree) -> list[str]:
    """Modules in no room."""
    return [
        f"{m} is in no room: add it to ROOMS"
        for m in tree.files
        if m.partition(".")[0] in TOPS and room_of(m) not in ROOMS
    ]


def against_the_arrows(tree: Tree) -> list[str]:
    """Imports that the table does not allow."""
    out = []
    for i in tree.library():
        source, target = room_of(i.source), room_of(i.target)
        if source != target and target not in ROOMS.get(source, ()):
            out.append(f"{i.source}:{i.line} imports {i.target}, but {source} may not import {target}")  # fmt: skip
    return out


def circles(edges: set[tuple[str, str]]) -> list[str]:
    """Each node that can reach itself, as one sentence."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)
    out = []
    for start in sorted(after):
        seen: set[str] = set()
        todo = list(after[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += after.get(node, ())
        if start in seen:
            out.append(f"{start} is part of a circle of imports")
    return out


def file_circles(tree: Tree) -> list[str]:
    return circles({(i.source, i.target) for i in tree.library()})


def room_circles(tree: Tree) -> list[str]:
    pairs = {(room_of(i.source), room_of(i.target)) for i in tree.library()}
    return circles({(a, b) for a, b in pairs if a != b})


def data_with_jax(tree: Tree) -> list[str]:
    """Modules of recjax.data from which JAX can be reached; importing a module runs its packages' __init__ too."""
    after: dict[str, set[str]] = {}
    for i in tree.found:
        parents = {i.target.rsplit(".", n)[0] for n in range(i.target.count(".") + 1)}
        after.setdefault(i.source, set()).update({i.target} | (parents & tree.files.keys()))
    out = []
    for module in tree.files:
        if not f"{module}.".startswith("recjax.data."):
            continue
        seen: set[str] = set()
        todo = [module]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += after.get(node, ())
        out += [f"{module} reaches {found}" for found in sorted(seen & JAX)]
    return out


RULES = (strangers, against_the_arrows, file_circles, room_circles, data_with_jax)

# ---- the source


@pytest.fixture(scope="module")
def source() -> Tree:
    return Tree(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_the_source_keeps_the_rule(source, rule):
    assert rule(source) == []


def test_every_import_names_a_file(source):
    """So nobody imports a module by where it lay before, nor a reader as recjax.data.<reader>, which would load it twice."""
    assert source.lost == []


def test_tests_lie_where_what_they_test_lies():
    """tests/serving for recjax/serving, tests/scaling/law for scaling/law; beside them what tests the whole."""
    whole = {"tests", "tests/acceptance", "tests/faults"}
    folders = {str(f.parent.relative_to(ROOT)) for f in (ROOT / "tests").rglob("test_*.py")} - whole
    packages = {f"tests/{f.parent.relative_to(ROOT)}".replace("tests/recjax", "tests") for f in modules(ROOT).values()}  # fmt: skip
    assert folders <= packages


def test_rows_of_the_table_name_earlier_rows_only():
    rooms = list(ROOMS)
    for i, (room, allowed) in enumerate(ROOMS.items()):
        assert set(allowed) <= set(rooms[:i]), room


# ---- the rules, each on a tree that breaks it


def tree_of(folder: pathlib.Path, files: Mapping[str, str]) -> Tree:
    """A tree with these files: name less ".py" -> text."""
    for name, text in files.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Tree(folder)


GOOD = {
    "recjax/schema": "class Schema: ...",
    "recjax/layers/__init__": "",
    "recjax/layers/mlp": "import jax\nfrom recjax.schema import Schema",
    "recjax/models/din": "from recjax.layers import mlp",
    "recjax/data/loading/loader": "import numpy\nfrom recjax.schema import Schema",
    "recjax/data/logs/files": "from recjax.data.loading import loader",
    "recjax/runtime/run": "import recjax.data.logs.files",
    "recjax/train": "from recjax.runtime import run",
}
TYPING = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
BAD = [
    (strangers, {"recjax/helpers": ""}),
    (against_the_arrows, {"recjax/models/din": "from recjax.data.loading import loader"}),
    (against_the_arrows, {"recjax/schema": "def f():\n    import recjax.layers.mlp"}),
    (against_the_arrows, {"recjax/layers/mlp": "from recjax.models import din"}),
    (
        against_the_arrows,
        {"recjax/data/loading/loader": TYPING + "from recjax.data.logs import files"},
    ),  # fmt: skip
    (against_the_arrows, {"recjax/runtime/run": "import launch.plan", "launch/plan": ""}),
    (
        file_circles,
        {
            "recjax/models/nif": "def build():\n    from recjax.models import nif_codes",
            "recjax/models/nif_codes": "from recjax.models import nif",
        },
    ),
    (
        room_circles,
        {
            "recjax/layers/mlp": "from recjax.models import din",
            "recjax/models/din": "from recjax.layers import norm",
            "recjax/layers/norm": "",
        },
    ),
    (data_with_jax, {"recjax/data/loading/loader": "def f():\n    from flax import linen"}),
    (data_with_jax, {"recjax/data/loading/loader": "from recjax.layers import mlp"}),
    (
        data_with_jax,
        {
            "recjax/layers/__init__": "import jax",
            "recjax/layers/names": "",
            "recjax/data/logs/files": "from recjax.layers import names",
        },
    ),
]


@pytest.mark.parametrize("rule, files", BAD)
def test_a_broken_rule_is_seen(tmp_path, rule, files):
    assert rule(tree_of(tmp_path / "good", GOOD)) == []
    assert rule(tree_of(tmp_path / "bad", GOOD | files))


@pytest.mark.parametrize(
    "text",
    [
        "import recjax.metrics_of_old",
        "from recjax.runtime.run import nothing_there",
        "from recjax.data import loader",
        "def f():\n    from recjax.data.loader import Data",
    ],
)
def test_an_import_without_a_file_is_seen(tmp_path, text):
    assert tree_of(tmp_path, GOOD | {"recjax/train": text}).lost
