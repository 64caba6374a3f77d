"""Who is at fault after a failure, the software or the one who tried it? (DiagEval, specification 2.5)

Belief p = P(the software is at fault), from 1/2. A probe that fails too raises it, p <- p / (p + (1 - p) gamma), and one that
succeeds proves a Pass. At 0.7 the Fail is confirmed.
"""

START, CONFIRMED = 0.5, 0.7
GAMMA = {
    "alternative": 0.60,
    "patience": 0.50,
    "fresh": 0.40,
}  # A another way, B look longer, C verify anew


def updated(p: float, probe: str) -> float:
    """Belief after a probe failed too."""
    return p / (p + (1 - p) * GAMMA[probe])
