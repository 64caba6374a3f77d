"""Guesses a first mapping from the columns of a log: by their names, then by what they hold.

The result is a commented file to read and correct, good enough to train on as it stands for an ordinary log of
transactions (user, item, time, price, country) or of impressions with a 0/1 label.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import re

import polars as pl

from recjax.data.logs.mapping import DAY_FIRST, MONTH_FIRST, SUFFIX, LogMapping
from recjax.data.logs.sources import AGAIN, TextForm, head, read_columns, sniff
from recjax.data.logs.times import CLOCKS, EARLIEST, LATEST, SECOND, as_moment, settle
from recjax.data.logs.values import as_id, as_label, as_number, as_text, is_missing
from recjax.data.store.prepared import DataError

ROWS = 20_000  # looked at, of the first file
USER = (
    r"(user|user_?pseudo|customer|client|member|visitor|household|hh|shopper|buyer|account|person|uid|cust|reviewer|player|"
    r"viewer|reader|listener|passenger|guest|student|learner|subscriber|msno)"
)
DEVICE = r"(device|cookie|session|browser|visit|ip)"  # stands for the user where none is named
ITEM = (
    r"(item|product|article|sku|stock_?code|goods|movie|video|book|isbn|asin|listing|offer|content|news|ad|"
    r"artist|track|song|album|hotel|recipe|game|restaurant|creative|job|course|upc|property|post|merchant)"
)
TIME = (
    r"(at|when|time|timestamp|datetime|date|ts|unix|day|hour|.*(_time|_ts|_at|_date|_timestamp|"
    r"_dat|time_ms|date)|t_dat)"
)
DONE = (  # names of outcomes, the ones to train on first
    r"(click(ed|s)?|label|target|y|clk)",
    r"(conver(sion|sions|ted|t)|attributed|install(ed)?)",
    r"(purchase[ds]?|bought|buy|(re)?order(ed)?|paid|transact(ion|ed)|book(ed|ing)?|sold|reserved|checkout)",
    r"(outcome|engage(d|ment)?|completed?|subscribed|sign(ed)?_?up|register(ed)?|open(ed)?|play(ed)?|download(ed)?|appl(y|ied))",
    r"(liked?|follow(ed)?|shared?|forward(ed)?|long_view|watched|added_to_cart|add_to_cart|cart|saved|responded|response)",
)
MAYBE = r"((is|has|was)_\w+)"
KNOWN_BEFORE = (  # what such a column says of a request, a user or an item: no outcome
    r"(is|has|was)_(week_?(end|day)|holiday|mobile|desktop|app|web|new|returning|premium|member|logged_?in|guest|bot|test|promo\w*|"
    r"sale|discount\w*|sponsored|organic|night|male|female|active|first|prime|available|in_stock|featured|personalized)"
)
REQUEST = (
    r"(request|page_?view|page|basket|order|invoice|transaction|visit|session|impression|"
    r"query|search)"
)
REQUEST_NAME = rf"{REQUEST}(_?(id|no|num|number|key))?"
SCENE = r"(scene|tab|channel|surface|placement|widget|slot)(_?(id|name))?"
ACTION = r"(action|behaviou?r|event|interaction|(event|behaviou?r|action|interaction)_(type|name))"
COUNTED = r"(quantity|qty|units|amount|total|revenue|sales(_value)?)"  # below zero: a return
RATING = r"(.*_)?(rating|stars|score|overall)"
WEIGHT = r"(sample_?|instance_?)?(weight|wgt)"
PLACE = r"(order|step|seq|sequence|position|rank|index|row|number|no|event_?(no|number|index))"
ID = r"(.*_)?(id|key|code|hash|isbn|zip|postal_code|no|number)"
OUTCOME = (
    rf"({COUNTED}|{RATING}|.*disc(ount)?|review|.*(dwell|stay|play|watch)_?(time|ratio|seconds)?(_ms)?|finish\w*|"
    r"long_watch|returned|refund\w*|profit|margin)"
)
CALENDAR = r"(date|day|week|month|year|quarter|hour|hourmin|.*_(date|day|week|month))"
PRICE = r"(.*price.*|.*cost.*|msrp)"
OF_USER = (
    r"(gender|sex|age(_\w+)?|income\w*|segment|country|region|state|city|zip\w*|postal\w*|"
    r"language|locale|membership|tier|occupation)"
)
OF_ITEM = (
    r"(.*categor\w*|brand|department|genre\w*|author|artist|colou?r|size|type|"
    r"manufacturer|seller\w*|shop\w*|description|title|name|tags?|publisher)"
)
OF_CONTEXT = (
    r"(device|os|browser|platform|app_?\w*|store\w*|network|connection|position|rank|"
    r"weather|medium|campaign)"
)
TARGET_ACTIONS = r"(buy|purchase[ds]?|order(ed)?|transaction|pay|click(ed)?)"
NO_TIME = (
    "; a log without times may have a column of its order, counted from 1: time_unit = 'order'"
)
NEARLY_UNIQUE = 0.5  # distinct / rows above which text is no feature
SAME = 0.98  # share of owners with one value above which a column belongs to the owner


@dataclasses.dataclass
class Roles:
    """What each column was taken for. `why` explains, by column."""

    user: str = ""
    item: str = ""
    time: str = ""
    labels: Sequence[str] = ()
    action: str = ""
    request: str = ""
    scene: str = ""
    taken: str = ""
    weight: str = ""
    order: bool = False
    weighed: Sequence[str] = ()
    doubted: Sequence[str] = ()
    owned: dict[str, str] = dataclasses.field(default_factory=dict)

    def used(self) -> set[str]:
        single = (self.user, self.item, self.time, self.action, self.request, self.scene)
        single += (self.taken, self.weight)
        return {*single, *self.labels} - {""}


def suggest(files: Sequence[str]) -> str:
    """The text of a first mapping for these files (`list_files`); raises DataError when user, item or time is not found."""
    form, about = sniff(files[0])
    frame = _flat(head(files[0], ROWS, form))
    frame = frame.select(c for c in frame.columns if AGAIN not in c)
    if not frame.height:
        raise DataError(f"{files[0]} has no rows to guess a mapping from")
    if form.columns:
        form = dataclasses.replace(form, columns=_names(frame))
        frame.columns = list(form.columns)
    frame = frame.with_columns(_tidy(frame[c]) for c in frame.columns)
    r = find_roles(frame)
    missing = [name for name in ("user", "item", "time") if not getattr(r, name)]
    if missing:
        raise DataError(
            f"{files[0]}: no column looks like the {missing[0]}; its columns are {', '.join(frame.columns)}: write the "
            f"mapping by hand (docs/your_own_logs.md){NO_TIME if missing[0] == 'time' else ''}"
        )
    return "\n".join(_lines(frame, r, files, form, about)) + "\n"


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Fields of structs as columns of their own, called as the mapping names them: "device.category"."""
    while structs := [c for c in frame.columns if isinstance(frame[c].dtype, pl.Struct)]:
        frame = frame.select(
            x
            for c in frame.columns
            for x in (
                [frame[c].struct.field(f).alias(f"{c}.{f}") for f in frame[c].struct.fields]
                if c in structs
                else [frame[c]]
            )
        )
    return frame


def _tidy(x: pl.Series) -> pl.Series:
    """Text that holds nothing but numbers and missing values, as numbers."""
    if x.dtype != pl.String or re.fullmatch(ID, snake(x.name)):
        return x
    text = as_text(x)
    number = as_number(x)
    if not number.count() or number.count() < text.count():
        return text
    codes = text.str.contains(r"^0\d").any()  # "007" is no quantity
    return text if codes else number.alias(x.name)


def _names(frame: pl.DataFrame) -> tuple[str, ...]:
    """Names for columns without any, by what they hold: the first ids are the user's and the item's."""
    out: list[str] = []
    for i, c in enumerate(frame.columns):
        x = _tidy(frame[c])
        few = x.n_unique() <= 10
        cells = (
            x.cast(pl.String).drop_nulls().head(100) if x.dtype == pl.String else pl.Series([""])
        )
        if "time" not in out and time_of(x) is not None:
            name = "time"
        elif len(cells) and cells.str.contains(r"^\S+-[01]( \S+-[01])+$").any():
            name = "impressions"
        elif "request" not in out and i == 0 and x.n_unique() == len(x) and len(x) > 20:
            name = "request"
        elif _is_binary(x) and "click" not in out:
            name = "click"
        elif few and x.dtype == pl.String and "event" not in out:
            name = "event"
        else:
            name = next((n for n in ("user", "item") if n not in out), f"column_{i + 1}")
        out.append(name)
    return tuple(out)


def snake(name: str) -> str:
    """ "InvoiceDate" -> "invoice_date"."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"\W+", "_", name).lower()


def find_roles(frame: pl.DataFrame) -> Roles:
    """The columns that say who, what, when, what happened and where."""
    r = Roles()
    free = [c for c in frame.columns if not frame[c].dtype.is_nested()]

    def pick(candidates: Iterable[str]) -> str:
        found = next(iter(candidates), "")
        if found:
            free.remove(found)
        return found

    r.time = pick(_times(frame, free))
    r.user = pick(_keys(frame, free, USER)) or pick(_keys(frame, free, DEVICE))
    r.item, r.taken = _lists(frame, r) or ("", "")
    r.item = r.item or pick(_keys(frame, free, ITEM))
    r.weight = pick(
        c for c in free if re.fullmatch(WEIGHT, snake(c)) and frame[c].dtype.is_numeric()
    )
    if not r.time:
        r.time = pick(c for c in free if re.fullmatch(PLACE, snake(c)) and _is_place(frame[c]))
        r.order = bool(r.time)
    r.labels, r.weighed = _labels(frame, free, r)
    free = [c for c in free if c not in r.labels]
    few = [c for c in free if frame[c].n_unique() <= 50 and not frame[c].dtype.is_float()]
    r.action = "" if r.labels else pick(c for c in few if re.fullmatch(ACTION, snake(c)))
    r.request = pick(
        c for c in free if re.fullmatch(REQUEST_NAME, snake(c)) and _shares(frame, c, r)
    )
    r.scene = pick(c for c in few if c in free and re.fullmatch(SCENE, snake(c)))
    return r


def _is_place(x: pl.Series) -> bool:
    """Whether whole numbers from 1 on count the events."""
    whole = x.dtype.is_numeric() and x.null_count() == 0
    return whole and bool(x.min() >= 1) and x.n_unique() > len(x) / 2


def _lists(frame: pl.DataFrame, r: Roles) -> tuple[str, str] | None:
    """The column of the items shown together, and what tells which were taken: a column of them, or "suffix"."""
    for c in frame.columns:
        if frame[c].dtype == pl.String:
            cells = frame[c].drop_nulls().head(1_000)
            marked = cells.str.contains(r"^\S+-[01]( \S+-[01])*$")
            if len(cells) and marked.mean() > 0.95 and cells.str.contains(" ").any():
                return c, SUFFIX
    lists = [c for c in frame.columns if isinstance(frame[c].dtype, pl.List | pl.Array) and re.search(ITEM, snake(c))]  # fmt: skip
    for shown in lists:
        for taken in lists:
            if taken != shown and bool(re.search(r"click|taken|bought|purchase", snake(taken))):
                return shown, taken
    return None


def _labels(frame: pl.DataFrame, free: list[str], r: Roles) -> tuple[tuple[str, ...], list[str]]:
    """Columns that say whether it happened, the one to train on first, and what was weighed against each."""
    ranked: list[tuple[int, str]] = []
    weighed: list[str] = []
    unnamed: list[str] = []  # of 0 and 1, by a name that tells nothing
    for c in free:
        name = re.sub(r"^(is|has|was|did)_|_(flag|ind|indicator|yn)$", "", snake(c))
        rank = next((i for i, names in enumerate(DONE) if re.fullmatch(names, name)), len(DONE))
        if not _is_binary(frame[c]) or re.fullmatch(KNOWN_BEFORE, snake(c)):
            continue
        if rank == len(DONE) and not re.fullmatch(MAYBE, snake(c)):
            unnamed += [c] if _varies(frame, c, r) else []
            continue
        owner = next(
            (o for o in (r.user, r.item) if o and _is_of(frame, c, o, rank < len(DONE))), ""
        )
        rate = float((as_label(frame[c]).fill_null(0)).mean() or 0)
        why = f"constant for each {owner}: left out" if owner else f"{rate:.3f} of the rows"
        weighed.append(f"{c!r}, {why}")
        if owner:
            r.owned[c] = "user" if owner == r.user else "item"
        else:
            ranked.append((rank, c))
    sure = [c for rank, c in sorted(ranked, key=lambda rc: rc[0]) if rank < len(DONE)]
    chosen = tuple(sure or [c for _, c in ranked])
    r.doubted = [c for _, c in ranked if c not in chosen]
    if not chosen:  # one of them may be the outcome: as a feature it would tell the label
        r.doubted += unnamed
        weighed += [f"{c!r}, whose name tells nothing" for c in unnamed]
    return chosen, weighed


def _varies(frame: pl.DataFrame, c: str, r: Roles) -> bool:
    """Whether a 0/1 column says neither who the user nor what the item is."""
    named = re.fullmatch(f"{OF_USER}|{OF_ITEM}|{OF_CONTEXT}", snake(c))
    return not named and not any(o and _is_of(frame, c, o, False) for o in (r.user, r.item))


def _is_of(frame: pl.DataFrame, c: str, owner: str, named: bool) -> bool:
    """Whether a 0/1 column says who the user (or what the item) is: it hardly ever differs within one.

    Were it by chance alone, so many owners of several rows would have both values; a column whose name says that
    something happened (`named`) is doubted on better evidence only.
    """
    y = as_label(frame[c])
    by = pl.DataFrame({"owner": as_id(frame[owner]), "y": y}).drop_nulls()
    by = by.group_by("owner").agg(pl.len().alias("n"), pl.col("y").n_unique().alias("values"))
    by, p = by.filter(pl.col("n") > 1), float(y.mean() or 0)
    expected = (1 - p ** by["n"] - (1 - p) ** by["n"]).sum()
    mixed = (by["values"] > 1).sum()
    return expected >= (20 if named else 1) and mixed <= 0.02 * expected


def _times(frame: pl.DataFrame, free: list[str]) -> list[str]:
    """Time columns, the finest first: a timestamp tells more than its date."""
    good = []
    for c in free:
        temporal = frame[c].dtype in (pl.Date, pl.Datetime)
        if temporal or (re.fullmatch(TIME, snake(c)) and time_of(frame[c]) is not None):
            good.append(c)
    return sorted(good, key=lambda c: -frame[c].n_unique())


def time_of(
    x: pl.Series, files: Sequence[str] = (), form: TextForm | None = None
) -> LogMapping | None:
    """What a mapping must say to read a column as times, from `files` as a whole where given; None if it is none.

    Raises:
      DataError: All of the files' dates can be read with the day and with the month first.
    """
    if x.dtype.is_temporal():
        return LogMapping("user", "item", x.name) if x.dtype in (pl.Date, pl.Datetime) else None
    if x.dtype.is_nested() or x.dtype == pl.Boolean:
        return None
    m = LogMapping("user", "item", x.name)
    if files and form:
        cells = lambda f, n: read_columns(f, [x.name], form, (0, n) if n else None).rows[x.name]  # noqa: E731
        m, _ = settle(m, list(files), cells)
    else:
        try:
            m, _ = settle(m, ["head"], lambda f, n: x)
        except DataError:
            m = dataclasses.replace(m, time_format=DAY_FIRST)
    moment = as_moment(x, m).filter(~is_missing(x)) // SECOND
    good = moment.is_between(EARLIEST, LATEST).fill_null(False)
    return m if len(good) and good.mean() > 0.9 else None


def _exact(x: pl.Series, order: str) -> str:
    """The strptime pattern that reads all dates of a column with the day (or month) first; else `order`."""
    first = ("%d", "%m") if order == DAY_FIRST else ("%m", "%d")
    text = as_id(x).drop_nulls()
    for mark, year, clock in itertools.product("/.-", ("%Y", "%y"), CLOCKS):
        form = f"{first[0]}{mark}{first[1]}{mark}{year}{clock}"
        moment = as_moment(text, LogMapping("u", "i", x.name, time_format=form))
        if len(moment) and (moment > EARLIEST * SECOND).fill_null(False).all():
            return form
    return order


def _keys(frame: pl.DataFrame, free: list[str], pattern: str) -> list[str]:
    """Columns named after a thing, its ids before other words about it."""
    best = []
    for c in free:
        name = snake(c)
        if re.fullmatch(rf"{pattern}s?(_?(id|no|num|number|key|code|hash))?", name):
            rank = 0
        elif re.fullmatch(rf".*{pattern}_?(id|no|num|number|key|code|hash)", name):
            rank = 1
        else:
            continue
        if not frame[c].dtype.is_float() or (frame[c].drop_nulls() % 1 == 0).all():
            best.append((rank, -frame[c].n_unique(), c))
    return [c for _, _, c in sorted(best)]


def _is_binary(x: pl.Series) -> bool:
    """Whether its cells say yes or no: two values, or one and empty cells for the other."""
    if x.dtype.is_nested() or x.dtype.is_temporal():
        return False
    there = x.filter(~is_missing(x))
    label = as_label(there)
    if not len(there) or label.null_count() or not label.is_in([0.0, 1.0]).all():
        return False
    return label.n_unique() == 2 or (len(there) < len(x) and bool((label == 1).all()))


def _shares(frame: pl.DataFrame, column: str, r: Roles) -> bool:
    """Whether a request id groups rows of one user, and not all of them."""
    known = frame.drop_nulls(column)
    if not known.height or not r.user:
        return False
    users = known.group_by(column).agg(pl.col(r.user).n_unique())[r.user]
    return float((users == 1).mean()) > 0.9 and known[column].n_unique() > known[r.user].n_unique()


# --------------------------------------------------------------------------------------------- sides


def side_of(frame: pl.DataFrame, c: str, r: Roles) -> str:
    """ "user", "item", "context", or why the column is left out."""
    x, name = frame[c], snake(c)
    if c in r.doubted:
        return "it may tell what happened: a label, or a column if it is known before the request"
    if name.startswith("device_"):
        return "context"
    if re.fullmatch(r"column_\d+", name):
        return "nothing tells its meaning"
    if c in r.owned:
        return r.owned[c]
    if x.null_count() == len(x):
        return "it is empty"
    if re.fullmatch(OUTCOME, name):
        return "it is known only after the event"
    if is_vector(x) or separator_of(x) is not None:
        return "item" if _belongs(frame, c, r.item) or not _belongs(frame, c, r.user) else "user"
    if x.dtype.is_nested():
        return f"it is a {x.dtype}"
    if re.fullmatch(CALENDAR, name) or re.fullmatch(TIME, name) and time_of(x) is not None:
        return "the request's time is known already"
    ids = as_id(x)
    if x.drop_nulls().n_unique() == 1:
        return "it is constant"
    if not x.dtype.is_float() and ids.n_unique() > NEARLY_UNIQUE * len(x):
        return "nearly every row has its own value"
    if _belongs(frame, c, r.item) or re.fullmatch(rf"{OF_ITEM}|{PRICE}", name):
        return "item"
    if re.fullmatch(OF_USER, name) or _belongs(frame, c, r.user):
        return "user"
    if re.fullmatch(OF_CONTEXT, name) or not x.dtype.is_float():
        return "context"
    return "its meaning is unclear: say whose it is, if it is known before the request"


def separator_of(x: pl.Series) -> str | None:
    """What separates several values in its cells ("" in lists); None where each holds one."""
    if isinstance(x.dtype, pl.List | pl.Array):
        return None if x.dtype.inner.is_nested() else ""
    if x.dtype != pl.String:
        return None
    cells = x.drop_nulls()
    several = cells.filter(cells.str.contains("|", literal=True))
    parts = several.str.split("|").explode()
    return "|" if len(several) > 0.1 * len(cells) and parts.n_unique() < len(parts) / 3 else None


def is_vector(x: pl.Series) -> bool:
    """Lists of numbers, all of one length."""
    if not isinstance(x.dtype, pl.List | pl.Array) or not x.dtype.inner.is_numeric():
        return False
    return x.cast(pl.List(x.dtype.inner)).list.len().drop_nulls().n_unique() == 1


def _belongs(frame: pl.DataFrame, c: str, owner: str) -> bool:
    """Whether nearly all owners with several rows have one value, and not everybody the same."""
    by = (
        frame.drop_nulls(c)
        .group_by(owner)
        .agg(pl.len().alias("n"), pl.col(c).n_unique().alias("v"))
    )
    several = by.filter(pl.col("n") > 1)
    return several.height >= 5 and float((several["v"] == 1).mean()) >= SAME


def is_number(x: pl.Series, name: str) -> bool:
    """Whether a column is a quantity rather than a code."""
    if not x.dtype.is_numeric():
        return False
    quantity = rf"{PRICE}|age|income|.*duration\w*|.*_(ms|sec|seconds|days|count|cnt)"
    return x.dtype.is_float() or bool(re.fullmatch(quantity, name))


# ---------------------------------------------------------------------------------------------- text


def _lines(
    frame: pl.DataFrame, r: Roles, files: Sequence[str], form: TextForm, about: Sequence[str]
) -> list[str]:
    out = [
        f"# What the columns of {files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''} mean.",
        "# Guessed from their names and first rows: read it, correct it. All names: recjax/data/logs/mapping.py.",
        "",
        *about,
    ]
    if form.columns:
        out.append(
            f"columns = {list(form.columns)!r}  # the file has no header: named by what they hold"
        )
    out += [f"user = {r.user!r}", f"item = {r.item!r}", f"time = {r.time!r}"]
    out += ['time_unit = "order"  # there are no times: places in an order'] if r.order else _time_lines(frame[r.time], files, form)  # fmt: skip
    if r.taken:
        out += [
            "# Several items in a cell: each becomes a row.",
            "explode = True",
            f"taken = {r.taken!r}",
        ]
    if r.weight:
        out.append(f"weight = {r.weight!r}")
    if r.request:
        out += [
            "",
            "# Rows of one request are seen together: none is another's history.",
            f"request = {r.request!r}",
        ]
    if r.scene:
        out.append(f"scene = {r.scene!r}")
    out += _where_lines(frame, r)
    return out + _outcome_lines(frame, r) + _side_lines(frame, r) + SPLIT_LINES


def _time_lines(x: pl.Series, files: Sequence[str], form: TextForm) -> list[str]:
    """How the times are read, from the whole log."""
    try:
        m = time_of(x, files, form)
    except DataError:
        return [
            "# Every date of the log can be read with the day first and with the month first: write which.",
            f'time_format = ""  # {DAY_FIRST!r} or {MONTH_FIRST!r}',
        ]
    if m is None or x.dtype.is_temporal():
        return []
    if m.time_format in (DAY_FIRST, MONTH_FIRST):
        cells = pl.concat([read_columns(f, [x.name], form).rows[x.name] for f in files])
        return [f"time_format = {_exact(cells, m.time_format)!r}"]
    if m.time_format:
        return [f"time_format = {m.time_format!r}"]
    return [f"time_unit = {m.time_unit!r}"] if m.time_unit != "auto" else []


def _where_lines(frame: pl.DataFrame, r: Roles) -> list[str]:
    """A filter for what was returned."""
    for c in frame.columns:
        if c in r.used() or not re.fullmatch(COUNTED, snake(c)) or not frame[c].dtype.is_numeric():
            continue
        below = int((frame[c] < 0).sum())
        if below:
            name = c if c.isidentifier() else f"`{c}`"
            return ["", f"# {below:,} of the first {frame.height:,} rows have a negative {c!r}: returns are no purchases.",
                    f"where = {f'{name} > 0'!r}"]  # fmt: skip
    return []


def _outcome_lines(frame: pl.DataFrame, r: Roles) -> list[str]:
    if r.taken:
        return ["", "# 1 for the items taken, 0 for those only shown.", 'labels = ["click"]', 'negatives = "impressions"']  # fmt: skip
    weighed = [f"# Weighed for the label: {'; '.join(r.weighed)}."] if r.weighed else []
    if r.labels:
        return [
            "",
            *weighed,
            "# 0/1 columns; the first is trained on. Rows with 0 were shown and not taken.",
            f"labels = {list(r.labels)!r}",
            *_empty_lines(frame, r),
            'negatives = "impressions"',
        ]
    out = ["", *weighed]
    if r.action:
        values = as_id(frame[r.action]).value_counts(sort=True)[r.action].drop_nulls().to_list()
        target = [v for v in values if re.fullmatch(TARGET_ACTIONS, snake(v))] or values[-1:]
        out += [f"# What happened: {', '.join(values[:10])}. All of it is history; the label is one kind.",
                f"action = {r.action!r}", f"labels = {{{snake(target[0])!r}: {target[:1]!r}}}"]  # fmt: skip
    else:
        out += [
            "# No column tells what was shown and not taken: every row is a positive.",
            *(
                f'# Or by how it was rated: labels = {{"liked": "{c} >= 4"}}, with negatives = "impressions".'
                for c in frame.columns
                if re.fullmatch(RATING, snake(c)) and c.isidentifier()
            ),
            "labels = []",
        ]
    return out + [
        "# Drawn by popularity from the training period's items, never one taken in the same request.",
        '# "uniform" draws every item alike. Item columns are then those of the item\'s last earlier row.',
        'negatives = "popular"',
        "negatives_per_positive = 4",
    ]


def _empty_lines(frame: pl.DataFrame, r: Roles) -> list[str]:
    """What empty label cells mean."""
    x = frame[r.labels[0]]
    empty = int(is_missing(x).sum())
    if not empty:
        return []
    if as_label(x).drop_nulls().n_unique() == 1:
        return [
            f"label_missing = 0  # {empty:,} of the first {len(x):,} cells are empty, the others are 1"
        ]
    return [
        f"# label_missing = 0  # if the {empty:,} empty cells mean 0; else their rows are set aside"
    ]


def _side_lines(frame: pl.DataFrame, r: Roles) -> list[str]:
    sides: dict[str, list[str]] = {"user": [], "item": [], "context": []}
    out_of_use, dense, vectors, multi = [], {}, [], {}
    for c in frame.columns:
        if c in r.used():
            continue
        side = side_of(frame, c, r)
        if side not in sides:
            out_of_use.append(f"# left out: {c!r}, {side}")
            continue
        sides[side].append(c)
        if is_vector(frame[c]):
            vectors.append(c)
        elif separator_of(frame[c]) is not None:
            multi[c] = separator_of(frame[c])
        elif is_number(frame[c], snake(c)):
            dense[c] = (
                "log1p" if (frame[c].drop_nulls().cast(pl.Float64) >= 0).all() else "identity"
            )
    out = [
        "",
        "# Known before the request: about the user, the item, and the situation. Ids, unless named in `dense`.",
    ]
    out += [f"{side}_columns = {names!r}" for side, names in sides.items()]
    out.append(f"dense = {dense!r}  # log1p suits amounts; identity wants about unit scale")
    if vectors:
        out.append(f"vectors = {vectors!r}")
    if multi:
        out.append(f"multi = {multi!r}  # several values in a cell, and what stands between them")
    gaps = [c for c in (*dense, *vectors) if frame[c].null_count()]
    if gaps:
        out.append(
            f"indicators = {gaps!r}  # some of their cells are missing: a feature says which"
        )
    out += out_of_use
    return out + [
        '# item_table = "items.parquet"  # more item_columns, one row per item; user_table alike'
    ]


SPLIT_LINES = [
    "",
    '# Validation and test follow training in time: fractions of the log, or dates like "2024-05-01".',
    'split = {"validation": 0.1, "test": 0.1}',
    '# gap = "1d"  # leave out before each, where labels settle late',
    '# group = "user"  # what grouped AUC compares within; "request" by default',
    "min_count = 2  # rarer items and values share one unknown id",
]
