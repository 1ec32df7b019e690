"""Limits of sampling in every combination, and logits for them."""

from itertools import product

import numpy as np

TEMPERATURES = (0.1, 0.7, 1.0, 1.5, 4.0)
TOP_P = (1.0, 0.999, 0.95, 0.9, 0.7, 0.5, 0.2, 0.01)
MIN_P = (0.0, 0.001, 0.05, 0.2, 0.7, 1.0)
TOP_K = (0, 1, 5, 50, 499, 600)
COMBINATIONS = list(product(TEMPERATURES, TOP_P, MIN_P, TOP_K))  # 1440


def some_logits(seed: int) -> np.ndarray:
    """(3, 500): flat, as a model's, and sharp."""
    noise = np.random.default_rng(seed).standard_normal((3, 500), np.float32)
    return noise * np.array([[0.5], [2.5], [6.0]], np.float32)
