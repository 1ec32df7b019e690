"""Kernels are counted in graphs."""

from smolvlm_mlx.bench.machine import count_kernels

import mlx.core as mx


def test_count_kernels() -> None:
    x, w = mx.ones((4, 4)), mx.ones((4, 4))
    mx.eval(x, w)
    y = mx.exp(x @ w.T).reshape(2, 8)[:1]
    assert count_kernels(y) == {"Matmul": 1, "Exp": 1}
    assert count_kernels(y, mx.sin(y)) == {"Matmul": 1, "Exp": 1, "Sin": 1}
    mx.eval(y)
    assert not count_kernels(y)
