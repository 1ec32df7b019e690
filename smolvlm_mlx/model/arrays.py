"""From arrays to Python's numbers."""

from typing import Any

import mlx.core as mx


def ints(array: mx.array) -> list[int]:
    """Return integers (n,) as a list."""
    values: Any = array.tolist()
    numbers: list[int] = values
    return numbers
