"""What the words of the pages mean, shown where they stand."""

WORDS = {
    "auc": "AUC: the chance that a clicked impression is scored above one that was not. 0.5 is a coin, 1 is perfect; larger is better.",
    "logloss": "Log loss: the mean of -log p of what happened. Smaller is better; it also punishes wrong confidence.",
    "ece": "Expected calibration error: how far predicted rates are from observed ones, over groups of equal size. Smaller is better.",
    "calibration": "Mean prediction over observed rate: 1 is right, above 1 promises too much.",
    "gauc": "Grouped AUC: AUC within each group (a user, a visit), weighted by its impressions.",
    "matched": "Matched: negatives drawn in proportion to popularity, so that popularity alone is worth nothing.",
    "grade": "Grade: a size of the model on the study's ladder; a higher grade has more blocks or is wider.",
    "examples": "Labelled impressions that were trained on, in the order of one pass.",
    "history": "Events of a user's past that the model reads with each request.",
    "waited": "Share of the time in which the device waited for the loader.",
    "interval": "Interval: where the true value lies in nine of ten such studies, noise of sizes and seeds included.",
    "measured": "Measured: the study ran this. Interpolated: between cells that it ran. Extrapolated: outside of them, and by how much.",
    "state": "Running: a process holds the run. Finished: its summary is written. Stopped: neither; the same command resumes it.",
    "popularity": "AUC of ranking by how often an item was clicked in training: what a model must beat.",
}


def explain(name: str) -> str:
    """The sentence of a metric or word; "" where none is needed."""
    low = name.lower()
    if low in WORDS:
        return WORDS[low]
    return next(
        (WORDS[k] for k in ("gauc", "auc", "logloss", "ece", "calibration") if low.startswith(k)),
        "",
    )
