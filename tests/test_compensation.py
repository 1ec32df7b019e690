"""Codes that keep a layer's outputs: never worse than rounding, and stored exactly as computed."""

from smolvlm_mlx.errors import TrainingError
from smolvlm_mlx.training.compensation import Floats, Inputs, rounded, stored

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def together(count: int, width: int) -> Floats:
    """Inputs that vary together, as those of layers do."""
    return draw(count, 5, seed=1) @ draw(5, width, seed=2) + draw(count, width, seed=3) * 0.3


def known(source: Floats, student: Floats) -> Inputs:
    inputs = Inputs(student.shape[1])
    for half in range(2):
        inputs.add(half, source[half::2], student[half::2])
    return inputs


def cost(weights: Floats, other: Floats, x: Floats) -> NDArray[np.float64]:
    """Squared error of each output."""
    difference = ((weights - other) @ x.T).astype(np.float64)
    squares: NDArray[np.float64] = (difference**2).sum(axis=1)
    return squares


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_outputs_stay_nearer_than_by_rounding(bits: int) -> None:
    """Each of them, and all together by far."""
    x, weights = together(400, 128), draw(24, 128)
    learned = known(x, x).quantize(weights, bits, 64, mx.float32)
    by_rounding = rounded(weights, bits, 64, mx.float32)
    mine, theirs = (cost(each.weights, weights, x) for each in (learned, by_rounding))
    assert (mine <= theirs * (1 + 1e-5)).all()
    assert mine.sum() < 0.6 * theirs.sum()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_what_is_packed_is_what_was_meant(bits: int, dtype: mx.Dtype) -> None:
    """MLX reads the codes, in the shapes and dtypes that it writes itself."""
    x, weights = together(100, 128), draw(8, 128)
    codes = known(x, x).quantize(weights, bits, 32, dtype)
    weight, scales, biases = codes.packed(bits, dtype)
    theirs = mx.quantize(mx.array(weights).astype(dtype), 32, bits)
    for mine, other in zip((weight, scales, biases), theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
    floats = [each.astype(mx.float32) for each in (scales, biases)]
    read = np.array(mx.dequantize(weight, floats[0], floats[1], 32, bits))
    np.testing.assert_allclose(read, codes.weights, rtol=0, atol=1e-6)
    assert codes.codes.max() < 2**bits


def test_weights_that_are_on_a_grid_stay() -> None:
    weights = np.tile(np.arange(16, dtype=np.float32), 8).reshape(2, 64)
    x = together(100, 64)
    codes = known(x, x).quantize(weights, 4, 64, mx.float32)
    np.testing.assert_array_equal(codes.weights, weights)


def test_numbers_are_stored_as_mlx_stores_them() -> None:
    numbers = np.concatenate([draw(1000), np.array([0, -0.0, 1e-30, 3e4, 1.00390625], np.float32)])
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        theirs = np.array(mx.array(numbers).astype(dtype).astype(mx.float32))
        np.testing.assert_array_equal(stored(numbers, dtype), theirs)


def test_what_the_inputs_have_lost_is_made_good() -> None:
    """The source's inputs were twice as large: so the weights become."""
    x, weights = together(400, 64), draw(8, 64)
    corrected = known(2 * x, x).corrected(weights)
    assert cost(corrected, 2 * weights, x).sum() < 1e-2 * cost(weights, 2 * weights, x).sum()


def test_what_cannot_be_foretold_is_left() -> None:
    """Changes that have nothing to do with the inputs are not learned by heart."""
    x, weights = draw(80, 64, seed=4), draw(8, 64)
    changed = x + 0.1 * draw(80, 64, seed=5)
    corrected = known(changed, x).corrected(weights)
    full = known(changed, x)
    learned = weights @ sum(full.changes) @ np.linalg.inv(sum(full.squares))
    assert np.abs(corrected - weights).sum() < 0.2 * np.abs(learned).sum()


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    x, weights = together(100, 128), draw(4, 128)
    x[:, 64:] = 0
    codes = known(x, x).quantize(weights, 4, 64, mx.float32)
    assert np.isfinite(codes.weights).all()
    np.testing.assert_array_equal(known(x, x).corrected(weights), weights)


def test_what_is_not_finite_is_refused() -> None:
    x = together(10, 64)
    x[3, 3] = np.inf
    with np.errstate(invalid="ignore"), pytest.raises(TrainingError, match="not finite"):
        known(x, x).quantize(draw(2, 64), 4, 64, mx.float32)
