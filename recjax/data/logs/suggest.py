"""Guesses a first mapping from the columns of a log: by their names, then by what they hold.

The result is a commented file to read and correct, good enough to train on as it stands for an ordinary log of
transactions (user, item, time, price, country) or of impressions with a 0/1 label.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import re

import numpy as np
import polars as pl

from recjax.data.logs.sources import TextForm, head
from recjax.data.logs.times import FORMS, guess_unit
from recjax.data.logs.values import as_id, as_number
from recjax.data.store.prepared import DataError

ROWS = 20_000  # looked at, of the first file
USER = r"(user|customer|client|member|visitor|household|shopper|buyer|account|person|uid|cust)"
ITEM = (
    r"(item|product|article|sku|stock_?code|goods|movie|video|book|asin|listing|offer|"
    r"content|news|ad)"
)
TIME = (
    r"(at|when|time|timestamp|datetime|date|ts|unix|day|.*(_time|_ts|_at|_date|_timestamp|"
    r"_dat|time_ms|date)|t_dat)"
)
LABEL = (
    r"(label|target|y|click(ed)?|is_\w+|purchased?|bought|conver\w+|liked?|follow(ed)?|long_view)"
)
REQUEST = (
    r"(request|page_?view|page|basket|order|invoice|transaction|visit|session|impression|"
    r"query|search)"
)
REQUEST_NAME = rf"{REQUEST}(_?(id|no|num|number|key))?"
SCENE = r"(scene|tab|channel|surface|placement|widget|slot)(_?(id|name))?"
ACTION = (
    r"(action|behaviou?r|event|interaction|event_type|behaviou?r_type|action_type|interaction_type)"
)
OUTCOME = (
    r"(quantity|qty|units|amount|total|revenue|sales(_value)?|.*disc(ount)?|rating|stars|"
    r"score|review|.*(dwell|stay|play|watch)_?(time|ratio|seconds)?(_ms)?|finish\w*|"
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

    def taken(self) -> set[str]:
        single = (self.user, self.item, self.time, self.action, self.request, self.scene)
        return {*single, *self.labels} - {""}


def suggest(files: Sequence[str]) -> str:
    """The text of a first mapping for these files (`list_files`); raises DataError when user, item or time is not found."""
    frame = head(files[0], ROWS, TextForm())
    if not frame.height:
        raise DataError(f"{files[0]} has no rows to guess a mapping from")
    r = find_roles(frame)
    missing = [name for name in ("user", "item", "time") if not getattr(r, name)]
    if missing:
        raise DataError(
            f"{files[0]}: no column looks like the {missing[0]}; its columns are {', '.join(frame.columns)}: write the "
            "mapping by hand (docs/your_own_logs.md)"
        )
    return "\n".join(_lines(frame, r, files)) + "\n"


def snake(name: str) -> str:
    """ "InvoiceDate" -> "invoice_date"."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"\W+", "_", name).lower()


def find_roles(frame: pl.DataFrame) -> Roles:
    """The columns that say who, what, when, what happened and where."""
    r = Roles()
    free = list(frame.columns)

    def pick(candidates: Iterable[str]) -> str:
        found = next(iter(candidates), "")
        if found:
            free.remove(found)
        return found

    r.time = pick(_times(frame, free))
    r.user = pick(_keys(frame, free, USER))
    r.item = pick(_keys(frame, free, ITEM))
    r.labels = tuple(c for c in free if re.fullmatch(LABEL, snake(c)) and _is_binary(frame[c]))
    free = [c for c in free if c not in r.labels]
    few = [c for c in free if frame[c].n_unique() <= 50 and not frame[c].dtype.is_float()]
    r.action = "" if r.labels else pick(c for c in few if re.fullmatch(ACTION, snake(c)))
    r.request = pick(
        c for c in free if re.fullmatch(REQUEST_NAME, snake(c)) and _shares(frame, c, r)
    )
    r.scene = pick(c for c in few if c in free and re.fullmatch(SCENE, snake(c)))
    return r


def _times(frame: pl.DataFrame, free: list[str]) -> list[str]:
    """Time columns, the finest first: a timestamp tells more than its date."""
    good = []
    for c in free:
        temporal = frame[c].dtype in (pl.Date, pl.Datetime)
        if temporal or (re.fullmatch(TIME, snake(c)) and time_format(frame[c]) is not None):
            good.append(c)
    return sorted(good, key=lambda c: -frame[c].n_unique())


def time_format(x: pl.Series) -> tuple[str, str] | None:
    """(time_unit, time_format) by which a column is a time; None if it is not."""
    if x.dtype.is_temporal():
        return "auto", ""
    number = as_number(x).drop_nulls()
    if len(number) > 0.9 * len(x.drop_nulls()) and len(number):
        low, high = float(number.quantile(0.01)), float(number.quantile(0.99))
        if 19_000_101 <= low <= high <= 21_001_231 and (number % 100).is_between(1, 31).all():
            return "auto", "%Y%m%d"
        return (guess_unit(number), "") if low > 1e8 else None
    if x.dtype != pl.String:
        return None
    text = x.drop_nulls().str.strip_chars()
    iso = [text.str.to_datetime(f, strict=False).is_not_null() for f in FORMS[:7]]
    if np.any([f.to_numpy() for f in iso], axis=0).mean() > 0.9:
        return "auto", ""
    others = ("%m/%d/%Y %H:%M", "%m/%d/%y %H:%M", "%d/%m/%Y %H:%M", "%d.%m.%Y %H:%M", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S")  # fmt: skip
    shares = {f: text.str.to_datetime(f, strict=False).is_not_null().mean() for f in others}
    best = max(others, key=lambda f: shares[f] or 0)
    return ("auto", best) if (shares[best] or 0) > 0.9 else None


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
    number = as_number(x).drop_nulls()
    return len(number) > 0 and bool(number.is_in([0.0, 1.0]).all()) and number.n_unique() == 2


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
    if x.null_count() == len(x):
        return "it is empty"
    if re.fullmatch(OUTCOME, name):
        return "it is known only after the event"
    if is_vector(x):
        return "item"
    if x.dtype.is_nested():
        return f"it is a {x.dtype}"
    if re.fullmatch(CALENDAR, name) or re.fullmatch(TIME, name) and time_format(x) is not None:
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


def _lines(frame: pl.DataFrame, r: Roles, files: Sequence[str]) -> list[str]:
    unit, pattern = time_format(frame[r.time]) or ("auto", "")
    out = [
        f"# What the columns of {files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''} mean.",
        "# Guessed from their names and first rows: read it, correct it. All names: recjax/data/mapping.py.",
        "",
        f"user = {r.user!r}",
        f"item = {r.item!r}",
        f"time = {r.time!r}",
    ]
    if pattern:
        out.append(f"time_format = {pattern!r}")
    elif frame[r.time].dtype.is_numeric():
        out.append(f"time_unit = {unit!r}")
    if r.request:
        out += [
            "",
            "# Rows of one request are seen together: none is another's history.",
            f"request = {r.request!r}",
        ]
    if r.scene:
        out.append(f"scene = {r.scene!r}")
    return out + _outcome_lines(frame, r) + _side_lines(frame, r) + SPLIT_LINES


def _outcome_lines(frame: pl.DataFrame, r: Roles) -> list[str]:
    if r.labels:
        return ["", "# 0/1 columns; the first is trained on. Rows with 0 were shown and not taken.",
                f"labels = {list(r.labels)!r}", 'negatives = "impressions"']  # fmt: skip
    out = [""]
    if r.action:
        values = (
            frame[r.action].cast(pl.String).value_counts(sort=True)[r.action].drop_nulls().to_list()
        )
        target = [v for v in values if re.fullmatch(TARGET_ACTIONS, snake(v))] or values[-1:]
        out += [f"# What happened: {', '.join(values[:10])}. All of it is history; the label is one kind.",
                f"action = {r.action!r}", f"labels = {{{snake(target[0])!r}: {target[:1]!r}}}"]  # fmt: skip
    else:
        out += [
            "# No column tells what was shown and not taken: every row is a positive.",
            "labels = []",
        ]
    return out + [
        "# Drawn by popularity from the training period's items, never one taken in the same request.",
        '# "uniform" draws every item alike. Item columns are then those of the item\'s last earlier row.',
        'negatives = "popular"',
        "negatives_per_positive = 4",
    ]


def _side_lines(frame: pl.DataFrame, r: Roles) -> list[str]:
    sides: dict[str, list[str]] = {"user": [], "item": [], "context": []}
    out_of_use, dense, vectors = [], {}, []
    for c in frame.columns:
        if c in r.taken():
            continue
        side = side_of(frame, c, r)
        if side not in sides:
            out_of_use.append(f"# left out: {c!r}, {side}")
            continue
        sides[side].append(c)
        if is_vector(frame[c]):
            vectors.append(c)
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
