"""A planted log of sales as a CSV file, with nothing but positives: the smallest case of bringing one's own logs.

Users have a home category, from which most of their purchases come; so a user's history tells the next purchase and
popularity alone does not. `prepare` goes the whole way a user goes: the file, a suggested mapping, the prepared data.
"""

import os
import pathlib

import numpy as np
import polars as pl

from recjax.data.logs import prepare as logs
from recjax.data.logs.sources import list_files
from recjax.data.logs.suggest import suggest

DAY = 86_400
FIRST = 1_704_067_200  # 1 January 2024
COUNTRIES = ("DE", "FR", "IT", "ES", "PL")


def transactions(users: int, items: int, rows: int, days: int, seed: int) -> pl.DataFrame:
    """customer_id, item_id, timestamp (s), price, country, quantity; in time order."""
    rng = np.random.default_rng(seed)
    categories = max(1, items // 10)
    user = rng.integers(users, size=rows)
    popular = np.minimum(rng.geometric(0.25, rows) - 1, 9)  # place within its category
    at_home = rng.random(rows) < 0.8
    category = np.where(at_home, user % categories, rng.integers(categories, size=rows))
    item = (category + popular * categories) % items
    base = np.exp(rng.normal(2.5, 0.7, items))
    time = np.sort(FIRST + rng.integers(0, days * DAY, rows))
    price = np.round(base[item] * (1 + 0.05 * rng.integers(-1, 2, rows)), 2)
    return pl.DataFrame(
        {
            "customer_id": [f"c{u:05d}" for u in user],
            "item_id": [f"p{i:05d}" for i in item],
            "timestamp": time,
            "price": price,
            "country": [COUNTRIES[u % len(COUNTRIES)] for u in user],
            "quantity": rng.integers(1, 4, rows),
        }
    )


def prepare(
    out_dir: str | os.PathLike,
    *,
    source: str = "",
    users: int = 200,
    items: int = 100,
    rows: int = 6_000,
    days: int = 60,
    seed: int = 0,
) -> pathlib.Path:
    """Writes the log and its suggested mapping below `out_dir`, prepares them, returns the directory."""
    del source  # nothing is read
    folder = pathlib.Path(out_dir) / "transactions" / f"{users}-{items}-{rows}-{days}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    log, mapping = folder / "log.csv", folder / "mapping.py"
    for file, write in (
        (log, lambda f: transactions(users, items, rows, days, seed).write_csv(f)),
        (mapping, lambda f: f.write_text(suggest(list_files(str(log))))),
    ):
        temporary = file.with_suffix(f".tmp{os.getpid()}")
        write(temporary)
        os.replace(temporary, file)
    return logs.prepare(out_dir, source=str(log), mapping=str(mapping))
