"""NumPy's kernels work on so much at a time: what a core's cache and a machine's memory hold."""

from typing import Any
from unittest.mock import Mock

from smolvlm_mlx.model.fast import kernels

import numpy as np
import pytest
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def normal(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def recorded(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How many numbers each call of a function of NumPy's is given."""
    found, function = list[int](), getattr(np, name)

    def call(x: Floats, *others: Any, **more: Any) -> Any:
        found.append(x.size)
        return function(x, *others, **more)

    monkeypatch.setattr(np, name, call)
    return found


def test_how_much_is_worked_on_at_a_time() -> None:
    assert (kernels.BLOCK * 4, kernels.SCORES * 4) == (256 * 2**10, 16 * 2**20)  # bytes


@pytest.mark.parametrize(
    ("T", "C", "blocks"),
    [
        (5, 16, [64, 16] * 6),  # of a head's rows as many as fit
        (2, 16, [64] * 3),  # of heads as many as fit
        (3, 13, [39] * 6),
        (1, 7, [42]),
        (3, 64, [64] * 18),
        (3, 100, [100] * 18),  # a row at least
    ],
)
def test_scores_are_summed_block_by_block(
    T: int, C: int, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, keys, values = normal(1, 6, T, 4), normal(1, 3, C, 4), normal(1, 3, C, 4)
    want = kernels.attention(queries, keys, values, 0.5, None)
    monkeypatch.setattr(kernels, "BLOCK", 64)
    sizes = recorded(monkeypatch, "exp")
    have = kernels.attention(queries, keys, values, 0.5, None)
    np.testing.assert_allclose(have, want, atol=1e-6)
    assert sizes == blocks


@pytest.mark.parametrize(
    ("scores", "parts"), [(29, 4), (30, 4), (59, 4), (60, 2), (90, 2), (120, 1), (10**6, 1)]
)
def test_so_many_scores_are_there_at_a_time(
    scores: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key-value head at least, whose scores are 30 here."""
    queries, keys, values = normal(2, 8, 3, 4), normal(2, 4, 5, 4), normal(2, 4, 5, 4)
    want = kernels.attention(queries, keys, values, 0.5, kernels.future(3))
    monkeypatch.setattr(kernels, "SCORES", scores)
    sizes = recorded(monkeypatch, "divide")
    have = kernels.attention(queries, keys, values, 0.5, kernels.future(3))
    np.testing.assert_allclose(have, want, atol=1e-6)
    assert len(sizes) == 2 * parts
    assert sum(sizes) == queries.size


@pytest.mark.parametrize(
    ("rows", "ordered"), [(1, False), (2, True), (64, True), (65, False), (300, False)]
)
def test_of_few_rows_the_matrix_is_on_the_left(
    rows: int, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = normal(1, rows, 8), normal(5, 8), normal(5)
    multiply = Mock(wraps=np.matmul)
    monkeypatch.setattr(np, "matmul", multiply)
    have = kernels.product(x, weight, bias)
    assert have.shape == (1, rows, 5)
    assert have.flags.c_contiguous
    np.testing.assert_allclose(have[0], x[0] @ weight.T + bias, atol=1e-5)
    np.testing.assert_allclose(kernels.product(x, weight)[0], x[0] @ weight.T, atol=1e-5)
    (left, _), _ = multiply.call_args
    assert (left is weight) == (ordered or rows == 1)


def test_activations_are_made_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    x, gate, up = normal(5, 30), normal(5, 30), normal(5, 30)
    wants = kernels.gelu_tanh(x.copy()), kernels.swiglu(gate.copy(), up.copy())
    monkeypatch.setattr(kernels, "BLOCK", 64)
    tanh, exp = recorded(monkeypatch, "tanh"), recorded(monkeypatch, "exp")
    haves = kernels.gelu_tanh(x), kernels.swiglu(gate, up)
    assert tanh == exp == [64, 64, 22]
    for have, want in zip(haves, wants, strict=True):
        np.testing.assert_array_equal(have, want)


def test_what_follows_is_not_seen() -> None:
    assert kernels.future(3).tolist() == [[0, -np.inf, -np.inf], [0, 0, -np.inf], [0, 0, 0]]
