"""What a batch holds, in the user's words: id spaces, features, tables.

A `Schema` is built once from the data, checked when it is built, and saved with every checkpoint and
artifact. It is plain frozen data: hashable (so it can be a static argument), and a JSON round trip is exact.
No JAX here: the data plane and the serving front use it too.
"""

from collections.abc import Iterable
import dataclasses
import json
import math

# Ids every id space reserves. A padding id is "no event here" (its row stays zero and is never updated);
# an unknown id was not admitted to the vocabulary; a missing value was null in the log.
PAD, OOV, MISSING = 0, 1, 2
NUM_RESERVED = 3

# Axes of a feature in a batch: B requests, C candidates, L events of the list it belongs to.
ROLE_AXES = {
    "profile": "B",
    "context": "B",
    "treatment": "B",
    "trigger": "B",
    "candidate": "BC",
    "label": "BC",
    "history": "BL",
    "moveline": "BL",
    "target": "BL",  # events after the request: labels only, never an input
}
TRANSFORMS = ("identity", "log1p")
COMBINERS = ("none", "sum", "mean")


class SchemaError(ValueError):
    """A schema, or data under it, contradicts itself; the message names the field and the remedy."""


def padded_rows(size: int) -> int:
    """Rows a table over `size` ids allocates.

    A fixed multiple, whatever the mesh, so a checkpoint restores onto any number of devices unchanged:
    2048 divides over 256 devices with 8 rows packed into each 128-lane physical row. Small tables are
    replicated and need no such room.
    """
    multiple = 2048 if size > 16_384 else 8
    return -(-size // multiple) * multiple


def multiplier(modulus: int) -> int:
    """The coprime of `modulus` nearest above its golden section."""
    a = max(1, round(modulus * (math.sqrt(5) - 1) / 2))
    while math.gcd(a, modulus) != 1:
        a += 1
    return a


def spread(rank, rows: int):
    """Id of the value of frequency rank 0, 1, ... (an int, or an int64 array): a bijection of [0, rows - 3) onto [3, rows).

    Vocabularies number their values so (recjax.data.store.vocabulary says why); rank 0 is always id 3.
    """
    modulus = rows - NUM_RESERVED
    return NUM_RESERVED + multiplier(modulus) * rank % modulus


@dataclasses.dataclass(frozen=True)
class IdSpace:
    """A vocabulary.

    Attributes:
      name: Unique within the schema.
      size: Ids, the reserved ones included.
      rows: Allocated capacity, at least `size`; 0: enough.
      vectors: Width of the vector that each id stands for (an encoder's of a text or an image, or what users took
        together), 0 for none. The data brings them (`Prepared.vectors`), once an id and not once an event; tables
        over such a space begin as them. The reserved ids' are zero.
      trained: Whether tables over a space with vectors are trained on from there; else they stay as they are.
    """

    name: str
    size: int
    rows: int = 0
    vectors: int = 0
    trained: bool = False

    def __post_init__(self):
        if self.size < NUM_RESERVED:
            raise SchemaError(
                f"id space {self.name!r}: size {self.size} leaves no room for the {NUM_RESERVED} reserved ids"
            )
        if not self.rows:
            object.__setattr__(self, "rows", padded_rows(self.size))
        if self.trained and not self.vectors:
            raise SchemaError(
                f"id space {self.name!r}: trained says how vectors are used; it has none"
            )
        if self.rows < self.size:
            raise SchemaError(
                f"id space {self.name!r}: {self.rows} rows cannot hold {self.size} ids"
            )


@dataclasses.dataclass(frozen=True)
class Feature:
    """One named input or label.

    Exactly one kind: an id (`id_space` set), a frozen vector (`vector` = its width), or a dense scalar.

    Attributes:
      name: Unique within the schema.
      role: A key of `ROLE_AXES`; it fixes the feature's axes.
      id_space: The vocabulary its ids live in; several features may share one.
      vector: Width of a vector feature, 0 for none.
      transform: Dense only: applied on the device, inside the exported program, so that training and
        serving cannot disagree.
      list: For history, moveline and target roles, the aligned list it belongs to.
      multi: For id features, the number of ids per value (multi-hot), 0 for one id.
      combiner: How a multi-hot value's rows merge.
    """

    name: str
    role: str
    id_space: str = ""
    vector: int = 0
    transform: str = "identity"
    list: str = ""
    multi: int = 0
    combiner: str = "none"

    def __post_init__(self):
        where = f"feature {self.name!r}"
        if self.role not in ROLE_AXES:
            raise SchemaError(
                f"{where}: unknown role {self.role!r}; use one of {', '.join(ROLE_AXES)}"
            )
        if self.id_space and self.vector:
            raise SchemaError(f"{where}: give id_space or vector, not both")
        if self.transform not in TRANSFORMS:
            raise SchemaError(
                f"{where}: unknown transform {self.transform!r}; use one of {', '.join(TRANSFORMS)}"
            )
        if self.transform != "identity" and self.kind != "dense":
            raise SchemaError(f"{where}: a transform needs a dense feature, this is {self.kind}")
        if self.combiner not in COMBINERS or bool(self.multi) != (self.combiner != "none"):
            raise SchemaError(
                f"{where}: a multi-hot feature needs multi > 0 and combiner sum or mean"
            )
        if self.multi and not self.id_space:
            raise SchemaError(f"{where}: multi-hot needs an id_space")
        if ("L" in self.axes) != bool(self.list):
            raise SchemaError(
                f"{where}: role {self.role!r} {'needs' if 'L' in self.axes else 'takes no'} list name"
            )
        if self.role == "label" and self.kind != "dense":
            raise SchemaError(f"{where}: a label is a dense number")

    @property
    def kind(self) -> str:
        return "id" if self.id_space else "vector" if self.vector else "dense"

    @property
    def axes(self) -> str:
        return ROLE_AXES[self.role]


def table_path(owner: str, id_space: str) -> str:
    """The name of an owner's table over an id space, in trees, plans and checkpoints."""
    return f"{owner}/{id_space}" if owner else id_space


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table: `owner`'s rows for one id space.

    Any number of tables may share an id space, so a teacher and a student, or a frozen generator and a
    CTR model, train on the same batch. `path` names it everywhere.

    Attributes:
      id_space: Vocabulary whose rows it holds.
      dim: Width of a row.
      owner: Who looks it up ("" for a single model).
      optimizer: A name in `recjax.embedding.optimizers`, or "frozen".
      lr: Learning rate of the row optimizer (its schedule multiplies it).
      l2: L2 pull on touched rows.
      l1: L1 of the optimizer "ftrl", whose rows it makes exactly zero.
      accumulator: Where the sums of squares of the two Adagrads begin: 0.1 in TensorFlow, 0 in FBGEMM. Row gradients of
        a mean loss lie far below sqrt(0.1): from there they are SGD with 3.2 times the rate for long, and the
        best rate is often beyond 1 (recjax/embedding/README.md, Row optimizers).
      init_scale: Standard deviation of the initial rows.
      dtype: Storage type of the rows.
    """

    id_space: str
    dim: int
    owner: str = ""
    optimizer: str = "rowwise_adagrad"
    lr: float = 0.05
    l2: float = 0.0
    init_scale: float = 0.01
    dtype: str = "float32"
    l1: float = 0.0
    accumulator: float = 0.1

    @property
    def path(self) -> str:
        return table_path(self.owner, self.id_space)

    @property
    def frozen(self) -> bool:
        return self.optimizer == "frozen"


@dataclasses.dataclass(frozen=True)
class Schema:
    """Id spaces, features and group keys of a data set. Built by the data plane, read by everything.

    Attributes:
      groups: Names of per-request integer keys for grouped metrics (visit, user, page); the first is the
        data set's own group.
    """

    id_spaces: tuple[IdSpace, ...]
    features: tuple[Feature, ...]
    groups: tuple[str, ...] = ()

    def __post_init__(self):
        for what, names in (
            ("id space", [s.name for s in self.id_spaces]),
            ("feature", [f.name for f in self.features]),
            ("group", list(self.groups)),
        ):
            twice = {n for n in names if names.count(n) > 1}
            if twice:
                raise SchemaError(f"{what} {sorted(twice)[0]!r} is declared twice")
        spaces = {s.name for s in self.id_spaces}
        for f in self.features:
            if f.id_space and f.id_space not in spaces:
                raise SchemaError(
                    f"feature {f.name!r}: id space {f.id_space!r} is not declared (there are {sorted(spaces)})"
                )

    def space(self, name: str) -> IdSpace:
        for s in self.id_spaces:
            if s.name == name:
                return s
        raise SchemaError(f"no id space {name!r}; there are {[s.name for s in self.id_spaces]}")

    def feature(self, name: str) -> Feature:
        for f in self.features:
            if f.name == name:
                return f
        raise SchemaError(f"no feature {name!r}; there are {[f.name for f in self.features]}")

    def select(self, *roles: str, kind: str = "", list: str = "") -> tuple[Feature, ...]:  # noqa: A002
        """Features with one of `roles`, in schema order, optionally of one kind or list."""
        return tuple(
            f
            for f in self.features
            if f.role in roles and (not kind or f.kind == kind) and (not list or f.list == list)
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features if f.role == "label")

    @property
    def lists(self) -> tuple[str, ...]:
        """Names of the aligned event lists, in order of first appearance."""
        return tuple(dict.fromkeys(f.list for f in self.features if f.list))

    def without(self, names: Iterable[str]) -> "Schema":
        """The schema with some features removed (an ablation, "no counters"); unused id spaces stay."""
        gone = set(names)
        for n in gone:
            self.feature(n)
        return dataclasses.replace(
            self, features=tuple(f for f in self.features if f.name not in gone)
        )

    def width(self, feature: Feature, dim: int) -> int:
        """Of an id feature's embedding: its space's vectors', or that of the tables, `dim`."""
        return self.space(feature.id_space).vectors or dim

    def tables(self, dim: int, owner: str = "", **options) -> tuple[Table, ...]:
        """One table of width `dim` for each id space that an input feature uses, of its vectors' width where it has them."""
        used = dict.fromkeys(f.id_space for f in self.features if f.id_space and f.role != "target")
        kept = {**options, "optimizer": "frozen", "init_scale": 0.0}

        def table(space: IdSpace) -> Table:
            chosen = kept if space.vectors and not space.trained else options
            return Table(id_space=space.name, dim=space.vectors or dim, owner=owner, **chosen)

        return tuple(table(self.space(s)) for s in used)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        d = json.loads(text)
        return cls(
            id_spaces=tuple(IdSpace(**s) for s in d["id_spaces"]),
            features=tuple(Feature(**f) for f in d["features"]),
            groups=tuple(d["groups"]),
        )

    def check_same(self, other: "Schema", where: str) -> None:
        """Raises SchemaError naming the first difference. `where`: what `other` was loaded from."""
        for mine, theirs, key in (
            (self.id_spaces, other.id_spaces, "id space"),
            (self.features, other.features, "feature"),
        ):
            a, b = {x.name: x for x in mine}, {x.name: x for x in theirs}
            for name in dict.fromkeys([*a, *b]):
                if a.get(name) != b.get(name):
                    raise SchemaError(
                        f"{key} {name!r} differs from {where}: data has {a.get(name)}, {where} has {b.get(name)}; "
                        "use the data the run was started with, or a new --workdir"
                    )
