"""Item vectors made before training, from what users took together.

An embedding that is learnt in one pass sees each item a few dozen times and stays noise for most of them. The events
of the training period say far more about which items belong together than the labels of the training rows do, and they
are there before the first step: count which items share a basket or a window of days, weigh the counts as positive
pointwise mutual information (PPMI), and keep the leading axes (a truncated SVD; Levy and Goldberg 2014).

    m[i, c] = max(0, log(n(i, c) / (n(i) p(c)))) damp(i)      p(c) ~ n(c)^0.75: rare contexts count for less
    m ~ U S V^T,   v_i = U_i S^0.5 - mean,   |v_i| = 1

A group of k items gives each pair 1 / (k - 1), so that a large basket says no more of an item than a small one.
NumPy and SciPy only. The command is `recjax.data.vectors`.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import secrets
import shutil
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds
from scipy.stats import rankdata

from recjax.data.store.growth import vocabulary_hash
from recjax.data.store.prepared import DataError, Prepared, file_name
from recjax.schema import NUM_RESERVED, OOV, PAD

DAY = 86_400
HALF_TRUST = (
    50  # events of an item below which its row is damped: rows hardly seen must not rule the axes
)
EVENTS_AT_ONCE = 4_000_000  # of a partition whose groups are counted in one product


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What co-occurrence vectors are made of.

    Attributes:
      space: The id space whose ids get a vector.
      dim: Numbers in a vector.
      window_days: Events of a user within so many days go together, beside those of one time (a basket).
      until: Only events up to this time, seconds; None: the end of the training period.
      events: Only the earliest so many of these events; 0: all. As many as a model trains on, for an equal comparison.
      smoothing: Exponent of a context's share.
      least: Events that an item needs for a vector.
      least_context: Events that an item needs to be a context.
      most_contexts: The most frequent so many items are contexts: bounds memory, whatever the vocabulary.
      shuffle: Vectors change places among the items that have one: a control.
      seed: Of the decomposition's start and of the shuffle.
    """

    space: str
    dim: int = 32
    window_days: float = 28.0
    until: int | None = None
    events: int = 0
    smoothing: float = 0.75
    least: int = 5
    least_context: int = 100
    most_contexts: int = 65_536
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("dim", "window_days", "least", "least_context", "most_contexts"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name}={getattr(self, name)!r} must be above 0")
        if self.events < 0:
            raise DataError(f"events={self.events!r} is below 0; 0 takes all")


# ---- events of the training period


def train_until(data: Prepared) -> int:
    """Time of the last training impression, seconds.

    Raises:
      DataError: Another split has impressions at or before it: vectors would read what is to be predicted.
    """
    train = [s for s in data.splits if s.startswith("train")]
    other = [s for s in data.splits if s not in train and data.splits[s]]
    if not train:
        raise DataError(f"{data.path} has no split whose name begins with 'train'; give --until")
    end = max(int(data.block(s, i)["time"].max()) for s in train for i in range(data.blocks(s)))
    for split in other:
        begin = min(int(data.block(split, i)["time"].min()) for i in range(data.blocks(split)))
        if begin <= end:
            raise DataError(
                f"split {split!r} begins at {begin}, before training ends at {end}: the splits of {data.path} do not "
                "follow each other in time, so vectors of the training period would read it; give --until"
            )
    return end


def list_feature(data: Prepared, space: str) -> tuple[str, str]:
    """(list, feature) of the events in an id space: the first history feature with it."""
    for role in ("history", "moveline"):
        for f in data.schema.select(role, kind="id"):
            if f.id_space == space and not f.multi:
                return f.list, f.name
    spaces = {f.id_space for f in data.schema.select("history", kind="id")}
    raise DataError(
        f"no history of {data.path} holds ids of {space!r}; --of takes one of {', '.join(sorted(spaces)) or 'none'}"
    )


def item_space(data: Prepared) -> str:
    """The id space of the candidate that histories share: that of the items."""
    history = {f.id_space for f in data.schema.select("history", kind="id")}
    for f in data.schema.select("candidate", kind="id"):
        if f.id_space in history:
            return f.id_space
    raise DataError(
        f"{data.path} has no candidate feature whose ids its histories hold; give --space"
    )


def events(data: Prepared, recipe: Recipe) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(user, time, id) int64 [E] of each partition's events that count, users numbered within the partition."""
    name, feature = list_feature(data, recipe.space)
    last = last_time(data, recipe)
    for p in range(_partitions(data)):
        timeline = data.timeline(name, p)
        time, item = np.asarray(timeline["time"]), np.asarray(timeline[feature], np.int64)
        user = np.repeat(np.arange(len(timeline["start"]) - 1), np.diff(timeline["start"]))
        seen = (time <= last) & (item >= NUM_RESERVED)
        yield user[seen], time[seen], item[seen]


def last_time(data: Prepared, recipe: Recipe) -> int:
    """Time of the last event that counts, seconds."""
    until = train_until(data) if recipe.until is None else recipe.until
    if not recipe.events:
        return until
    return _time_of_event(data, list_feature(data, recipe.space)[0], until, recipe.events)


def _partitions(data: Prepared) -> int:
    return 1 + max(int(data.block_partitions(s).max(initial=0)) for s in data.splits)


def _time_of_event(data: Prepared, name: str, until: int, count: int) -> int:
    """Time by which `count` events had happened; `until` where there are no more."""
    times = [np.asarray(data.timeline(name, p)["time"]) for p in range(_partitions(data))]
    time = np.concatenate([t[t <= until] for t in times])
    return int(np.partition(time, count - 1)[count - 1]) if count < len(time) else until


# ---- vectors


def cooccurrence(data: Prepared, recipe: Recipe) -> np.ndarray:
    """Vectors by id, float32 [rows, dim], of unit length; zero for ids with fewer than `least` events.

    Raises:
      DataError: No two items were ever taken together, or too few items for so many numbers.
    """
    rows = data.schema.space(recipe.space).rows
    recipe = dataclasses.replace(recipe, until=last_time(data, recipe), events=0)  # found once
    count = np.zeros(rows, np.int64)
    for _, _, item in events(data, recipe):
        count += np.bincount(item, minlength=rows)
    contexts = np.flatnonzero(count >= recipe.least_context)
    contexts = np.sort(
        contexts[np.argsort(-count[contexts], kind="stable")][: recipe.most_contexts]
    )
    if min(len(contexts), int((count >= recipe.least).sum())) <= recipe.dim:
        raise DataError(
            f"{len(contexts)} items have {recipe.least_context} events or more, too few for {recipe.dim} numbers; "
            "lower --least_context or --dim"
        )
    together = _together(data, recipe, contexts, rows)
    if not together.nnz:
        raise DataError(
            f"no two items of {recipe.space!r} were taken together within {recipe.window_days:g} days; "
            "a longer --window may help"
        )
    v = _axes(_ppmi(together, count, recipe.smoothing), recipe)
    known = (count >= recipe.least) & (np.abs(v).sum(1) > 0)
    v[known] -= (v * count[:, None])[known].sum(0) / count[
        known
    ].sum()  # what all share says nothing
    v[~known] = 0
    out = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-8)).astype(np.float32)
    if recipe.shuffle:
        places = np.flatnonzero(known)
        out[places] = out[np.random.default_rng(recipe.seed).permutation(places)]
    return out


def _together(data: Prepared, recipe: Recipe, contexts: np.ndarray, rows: int) -> sparse.csr_matrix:
    """How often each item was taken with each context item, [rows, contexts]; an item is not its own context."""
    total = sparse.csr_matrix((rows, len(contexts)), dtype=np.float32)
    window = max(1, round(recipe.window_days * DAY))
    for user, time, item in events(data, recipe):
        for at in _pieces(user):
            for moment in (time[at], time[at] // window):
                total = total + _pairs(user[at], moment, item[at], contexts, rows)
    total = total.tocoo()
    other = total.row != contexts[total.col]
    return sparse.csr_matrix(
        (total.data[other], (total.row[other], total.col[other])), shape=total.shape
    )


def _pieces(user: np.ndarray) -> Iterator[slice]:
    """Parts of about EVENTS_AT_ONCE events that end with a user's last one."""
    begin = 0
    while begin < len(user):
        end = min(begin + EVENTS_AT_ONCE, len(user))
        end = int(np.searchsorted(user, user[end - 1], side="right"))
        yield slice(begin, end)
        begin = end


def _pairs(user, moment, item, contexts: np.ndarray, rows: int) -> sparse.csr_matrix:
    """Weighted pairs of items and context items of one user and moment; an item counts once a group."""
    if not len(user):
        return sparse.csr_matrix((rows, len(contexts)), dtype=np.float32)
    change = (
        np.flatnonzero((np.diff(user) != 0) | (np.diff(moment) != 0)) + 1
    )  # timelines lie in time
    group = np.zeros(len(user), np.int64)
    group[change] = 1
    group = np.cumsum(group)
    x = sparse.csr_matrix(
        (np.ones(len(item), np.float32), (group, item)), shape=(int(group[-1]) + 1, rows)
    )
    x.data[:] = 1
    weight = 1 / np.maximum(np.asarray(x.sum(1)).ravel() - 1, 1)
    return (sparse.diags(weight.astype(np.float32)) @ x).T.tocsr() @ x[:, contexts]


def _ppmi(together: sparse.csr_matrix, count: np.ndarray, smoothing: float) -> sparse.csr_matrix:
    """Positive pointwise mutual information, damped where an item has few events, [rows, contexts]."""
    m = together.tocoo()
    of_row = np.asarray(together.sum(1)).ravel()
    of_context = np.asarray(together.sum(0)).ravel() ** smoothing
    share = of_context / of_context.sum()
    pmi = np.log(m.data / (of_row[m.row] * share[m.col] + 1e-12))
    damp = np.minimum(1.0, np.sqrt(count / HALF_TRUST))
    keep = pmi > 0
    values = (pmi[keep] * damp[m.row[keep]]).astype(np.float32)
    return sparse.csr_matrix((values, (m.row[keep], m.col[keep])), shape=m.shape)


def _axes(m: sparse.csr_matrix, recipe: Recipe) -> np.ndarray:
    """The leading axes of a matrix, float64 [rows, dim], largest first; each one's largest number is positive."""
    start = np.random.default_rng(recipe.seed).normal(
        size=min(m.shape)
    )  # ARPACK's own is not seeded
    u, s, _ = svds(m, k=recipe.dim, v0=start)
    order = np.argsort(-s)
    u, s = u[:, order], s[order]
    sign = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])
    return u * sign * np.sqrt(s)


# ---- kept with the prepared data


def save(data: Prepared, name: str, vectors: np.ndarray, about: Mapping[str, Any]) -> pathlib.Path:
    """Writes vectors of an id space beside the data, by one rename; returns their folder, DIR/item_vectors/<name>.

    Args:
      data: Whose ids the rows are.
      name: Of the folder.
      vectors: float32 [rows, dim] by id; ids without one have a zero row.
      about: What they are ("space" at least).

    Raises:
      DataError: The shape is not that of the id space, a number is not finite, or no item has a vector.
    """
    rows = data.schema.space(about["space"]).rows
    if vectors.ndim != 2 or len(vectors) != rows:
        raise DataError(f"vectors of shape {vectors.shape} for {rows} rows of {about['space']!r}")
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(1)).sum())
        raise DataError(f"{bad} vectors of {about['space']!r} hold a number that is not finite")
    vectors = np.array(vectors, np.float32)
    vectors[:NUM_RESERVED] = 0
    if not vectors.any():
        raise DataError(f"no item of {about['space']!r} has a vector")
    facts = dict(
        about,
        dim=int(vectors.shape[1]),
        vocabulary=vocabulary_hash(data.path, about["space"]),
        data=data.identity["hash"],
        with_vector=int(vectors.any(1).sum()),
        sha256=hashlib.sha256(vectors.tobytes()).hexdigest(),
    )
    folder = data.path / "item_vectors" / file_name(name)
    temporary = folder.with_name(f".{name}.{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        np.save(temporary / "vectors.npy", vectors)
        (temporary / "about.json").write_text(json.dumps(facts, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def load(data: Prepared, space: str, name: str) -> np.ndarray:
    """Vectors kept beside the data, float32 [rows, dim] by id.

    Raises:
      DataError: There are none of that name, they are damaged, or they are of other ids.
    """
    file = data.path / "item_vectors" / file_name(name) / "vectors.npy"
    about = read_about(data, space, name)
    try:
        vectors = np.load(file)
    except (OSError, ValueError):
        raise DataError(f"{file} is damaged; make it again") from None
    if hashlib.sha256(vectors.tobytes()).hexdigest() != about["sha256"]:
        raise DataError(f"{file} is damaged; make it again")
    return vectors


def read_about(data: Prepared, space: str, name: str) -> dict[str, Any]:
    """What vectors kept beside the data are made of; raises DataError as `load` does."""
    folder = data.path / "item_vectors" / file_name(name)
    if not (folder / "about.json").exists():
        there = sorted(p.name for p in (data.path / "item_vectors").glob("[!.]*"))
        raise DataError(
            f"{folder} does not exist (there are {', '.join(there) or 'none'}); make it with "
            f"python -m recjax.data.vectors --data={data.path} --name={name}"
        )
    try:
        about = json.loads((folder / "about.json").read_text())
    except ValueError:
        raise DataError(f"{folder / 'about.json'} is damaged; make the vectors again") from None
    if about["space"] != space:
        raise DataError(f"{folder} holds vectors of {about['space']!r}, not of {space!r}")
    if about["vocabulary"] != vocabulary_hash(data.path, space):
        raise DataError(f"{folder} was made with another vocabulary of {space!r}; make it again")
    return about


FROZEN, TRAINED = USES = ("frozen", "trained")


@dataclasses.dataclass(frozen=True)
class Choice:
    """An entry of `data.vectors`: which vectors the rows of an id space begin from.

    Attributes:
      space: The id space.
      name: The vectors' name beside the data.
      use: "frozen", or "trained" for rows that are trained on from there.
      scale: Length of a vector: 1 as kept. Rows that begin far longer or shorter than learnt ones ask for other rates.
    """

    space: str
    name: str
    use: str = FROZEN
    scale: float = 1.0

    def __post_init__(self):
        if self.use not in USES:
            raise DataError(f"data.vectors: {self.use!r} is none of {', '.join(USES)}")
        if not (
            isinstance(self.scale, int | float) and math.isfinite(self.scale) and self.scale > 0
        ):
            raise DataError(f"data.vectors: scale {self.scale!r} is not a number above 0")

    @classmethod
    def read(cls, entry: Any) -> "Choice":
        """Of (space, name[, use[, scale]]).

        Raises:
          DataError: Another form.
        """
        if (
            isinstance(entry, str)
            or not isinstance(entry, list | tuple)
            or not 2 <= len(entry) <= 4
        ):
            raise DataError(
                f"data.vectors holds {entry!r}; write each as (id space, name, 'frozen' or 'trained', scale)"
            )
        return cls(*entry)


class WithVectors(Prepared):
    """Prepared data whose chosen id spaces have vectors that were made before training.

    Attributes:
      schema: The data's, with the vectors' widths.
      identity: The data's, with "vectors": id space -> what they are (name, SHA-256, use, scale).
    """

    def __init__(self, path: str | os.PathLike, choices: Sequence[Choice]):
        """Raises DataError when the data have no such id space or no such vectors."""
        super().__init__(path)
        self._choices = {c.space: c for c in choices}
        about = {c.space: read_about(self, c.space, c.name) for c in choices}
        spaces = []
        for s in self.schema.id_spaces:
            if s.name in about:
                trained = self._choices[s.name].use == TRAINED
                s = dataclasses.replace(s, vectors=about[s.name]["dim"], trained=trained)
            spaces.append(s)
        self.schema = dataclasses.replace(self.schema, id_spaces=tuple(spaces))
        chosen = {s: [c.name, about[s]["sha256"], c.use, c.scale] for s, c in self._choices.items()}
        self.identity = {**self.identity, "vectors": chosen}

    def __reduce__(self):
        return WithVectors, (os.fspath(self.path), tuple(self._choices.values()))

    def vectors(self, space: str) -> np.ndarray:
        choice = self._choices.get(space)
        if choice is None:
            return super().vectors(space)
        return load(self, space, choice.name) * np.float32(choice.scale)


def with_vectors(prepared: Prepared, entries: Sequence[Any]) -> Prepared:
    """`prepared` with the vectors that `data.vectors` chooses."""
    choices = [Choice.read(e) for e in entries]
    return WithVectors(prepared.path, choices) if choices else prepared


# ---- what they are worth without any training


def untrained_auc(
    data: Prepared,
    space: str,
    vectors: np.ndarray,
    split: str,
    *,
    length: int = 20,
    examples: int = 40_960,
) -> float:
    """AUC of `mean_cosine` on the first so many impressions of a split: what the vectors know without any training."""
    name, feature = list_feature(data, space)
    candidate = next(
        f.name for f in data.schema.select("candidate", kind="id") if f.id_space == space
    )
    partitions, scores, labels = data.block_partitions(split), [], []
    for i in range(data.blocks(split)):
        block = data.block(split, i)
        item = np.asarray(data.timeline(name, int(partitions[i]))[feature])
        at = block[f"{name}/end"][:, None] - 1 - np.arange(length)
        there = np.arange(length) < block[f"{name}/count"][:, None]
        history = np.where(there, item[np.maximum(at, 0)], PAD) if len(item) else np.zeros_like(at)
        scores.append(mean_cosine(vectors, block[candidate], history))
        labels.append(block[data.schema.labels[0]] > 0)
        if sum(map(len, labels)) >= examples:
            break
    return _auc(np.concatenate(scores)[:examples], np.concatenate(labels)[:examples])


def _auc(score: np.ndarray, positive: np.ndarray) -> float:
    n = int(positive.sum())
    if not 0 < n < len(positive):
        return float("nan")
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / n / (len(positive) - n))


def mean_cosine(vectors: np.ndarray, item: np.ndarray, history: np.ndarray) -> np.ndarray:
    """Dot product of each candidate's vector with the mean of its history's, [N].

    Args:
      vectors: [rows, dim], of unit length.
      item: Candidate ids [N].
      history: Ids of the latest events [N, L], 0 where there is none.
    """
    mean = np.zeros((len(item), vectors.shape[1]), np.float32)
    for at in range(history.shape[1]):  # [N, L, dim] would be gigabytes
        mean += vectors[history[:, at]]
    return (mean * vectors[item]).sum(1) / max(history.shape[1], 1)


def covered(data: Prepared, recipe: Recipe, vectors: np.ndarray) -> float:
    """Share of the events that count whose item has a vector."""
    has: np.ndarray = vectors.any(1)
    total = found = 0
    for _, _, item in events(data, recipe):
        total, found = total + len(item), found + int(has[item].sum())
    return found / max(total, 1)


def given(data: Prepared, space: str, frame) -> np.ndarray:
    """Vectors by id from a frame with columns value and vector (a list of numbers each), [rows, dim].

    Raises:
      DataError: A column is missing, the lists have different widths, or no value is in the vocabulary.
    """
    for column in ("value", "vector"):
        if column not in frame.columns:
            raise DataError(f"the file of vectors has no column {column!r}; it has {frame.columns}")
    widths = frame["vector"].list.len().unique().to_list()
    if len(widths) != 1 or not widths[0]:
        raise DataError(f"the vectors have {len(widths)} widths ({widths[:5]}); all need the same")
    text = lambda f: f.with_columns(f["value"].cast(str))  # noqa: E731
    both = text(data.vocabulary(space)).join(text(frame), on="value")
    both = both.filter(both["id"] > OOV)
    if not both.height:
        raise DataError(
            f"none of the {frame.height} values with a vector is in the vocabulary of {space!r}; "
            "the column value holds items as the log writes them"
        )
    out = np.zeros((data.schema.space(space).rows, widths[0]), np.float32)
    out[both["id"].to_numpy()] = np.stack(both["vector"].to_list()).astype(np.float32)
    return out
