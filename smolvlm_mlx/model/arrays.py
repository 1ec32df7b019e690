"""From arrays to Python's numbers."""

from typing import cast

import mlx.core as mx


def ints(array: mx.array) -> list[int]:
    """Return integers (n,) as a list."""
    return cast(list[int], array.tolist())
