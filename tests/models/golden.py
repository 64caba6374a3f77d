"""Inputs that a golden number's derivation names, made in float64."""

import numpy as np


def squares(s: float, shape: tuple[int, ...], c: float = 1.0) -> np.ndarray:
    """c sin(0.37 n^2 + 1.1 n + s), n the row-major index from 0."""
    n = np.arange(np.prod(shape))
    return (c * np.sin(0.37 * n**2 + 1.1 * n + s)).reshape(shape)


def waves(shape: tuple[int, ...], s: float, c: float = 1.0) -> np.ndarray:
    """c (sin(0.37 (n + 1) + s) + 0.5 cos(1.91 (n + 1) + 2 s)), n the row-major index from 0."""
    n = np.arange(np.prod(shape)) + 1
    return (c * (np.sin(0.37 * n + s) + 0.5 * np.cos(1.91 * n + 2 * s))).reshape(shape)
