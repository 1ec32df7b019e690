"""From arrays to Python's numbers."""

import mlx.core as mx


def ints(array: mx.array) -> list[int]:
    """Return integers (n,) as a list."""
    values = array.tolist()
    assert isinstance(values, list)
    return [value for value in values if isinstance(value, int)]
