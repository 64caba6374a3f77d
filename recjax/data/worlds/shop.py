"""A planted shop log of impressions with clicks, as a CSV file, and the best AUC that anybody can reach on it.

    python -m recjax.data.worlds.shop --out=shop.csv

Who is shown what is chance; a click depends on the user's taste for the item's category, on the item, and on the device, and on
nothing else. The probabilities are known, so the AUC of the true ones on the latest tenth of the rows, which is
the test period of a suggested mapping, bounds every model: `docs/your_own_logs.md` and its test walk from this file to an
answer over HTTP.
"""

import os

from absl import app, flags
import numpy as np
import polars as pl

DAY = 86_400
FIRST = 1_709_251_200  # 1 March 2024
DEVICES = ("phone", "desktop")


def shop(
    users: int = 150,
    items: int = 120,
    categories: int = 6,
    rows: int = 40_000,
    days: int = 60,
    seed: int = 0,
) -> tuple[pl.DataFrame, np.ndarray]:
    """The log in time order (user_id, item_id, timestamp, category, price, device, country, click), and each row's true
    probability of a click, float64 [rows].
    """
    rng = np.random.default_rng(seed)
    user = rng.integers(users, size=rows)
    item = np.minimum((items * rng.random(rows) ** 2).astype(np.int64), items - 1)
    category = np.arange(items) % categories
    likes = rng.random((users, categories)) < 0.3
    phone = rng.random(rows) < 0.6
    quality = rng.normal(0, 0.45, items)
    logit = -2.4 + 1.5 * likes[user, category[item]] + quality[item] + 0.4 * phone
    probability = 1 / (1 + np.exp(-logit))
    price = np.round(np.exp(rng.normal(2.5, 0.6, items)), 2)
    time = np.sort(FIRST + rng.choice(days * DAY, rows, replace=False))
    log = pl.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "timestamp": time,
            "category": [f"c{c}" for c in category[item]],
            "price": price[item],
            "device": np.where(phone, *DEVICES).tolist(),
            "country": [("DE", "FR", "IT")[u % 3] for u in user],
            "click": (rng.random(rows) < probability).astype(int),
        }
    )
    return log, probability


def best_auc(log: pl.DataFrame, probability: np.ndarray, share: float = 0.1) -> float:
    """AUC of the true probabilities on the latest `share` of the rows."""
    n = round(len(log) * share)
    return auc(log["click"].to_numpy()[-n:], probability[-n:])


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties as halves."""
    rank = pl.Series(score).rank("average").to_numpy()
    positive = label > 0
    n, m = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * m))


def main(_) -> None:
    log, probability = shop(rows=_ROWS.value, seed=_SEED.value)
    temporary = f"{_OUT.value}.tmp"
    log.write_csv(temporary)
    os.replace(temporary, _OUT.value)
    print(f"Wrote {_OUT.value}: {len(log):,} rows; no model's AUC on its test period can be expected above {best_auc(log, probability):.3f}")  # fmt: skip


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", "shop.csv", "CSV file to write")
    _ROWS = flags.DEFINE_integer("rows", 40_000, "impressions", lower_bound=1_000)
    _SEED = flags.DEFINE_integer("seed", 0, "of the world")
    app.run(main)
