"""Weights -> codes of MLX's affine grids, so that a layer's outputs stay what they were.

Rounding looks at each weight alone. Here what rounding one input's weights costs is made good by
the inputs not yet rounded, as far as inputs vary together: GPTQ (arXiv:2210.17323), with a grid for
each group of inputs chosen when its turn comes. Inputs are those of the model that is quantized so
far, whose differences from the source's are made good by the weights first (as GPTAQ does,
arXiv:2504.02692), as far as one half of the positions foretells the other.

Plain NumPy: I inputs, O outputs, g inputs in a group.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

DAMPING = 0.01  # of the mean input's square, added to each
SHRINKAGES = (0.01, 0.1, 1.0)  # the same, for the correction
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6)  # of a group's range that the grid spans
REFITS = 2  # times that the best grid for the codes, and the codes for that grid are found
STRIDE = 8  # inputs of a group, which divides all sizes
ROWS = 512  # outputs at once, whatever the machine has: the same sums everywhere


@dataclass(frozen=True)
class Codes:
    """A quantized layer: codes (O, I), scales and biases (O, I / g), exactly as they are stored."""

    codes: NDArray[np.uint8]
    scales: Floats
    biases: Floats

    def packed(self, bits: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
        """Weight, scales and biases as `mx.quantize` returns them: codes are a stream of bits from
        the lowest on."""
        O, I = self.codes.shape
        stream = (self.codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1  # (O, I, bits)
        words = np.packbits(stream.reshape(O, I * bits), axis=1, bitorder="little").view("<u4")
        return (
            mx.array(words),
            mx.array(self.scales).astype(dtype),
            mx.array(self.biases).astype(dtype),
        )

    @property
    def weights(self) -> Floats:
        """The weights that are meant, (O, I)."""
        O, I = self.codes.shape
        codes = self.codes.reshape(O, self.scales.shape[1], -1).astype(np.float32)
        return (codes * self.scales[..., None] + self.biases[..., None]).reshape(O, I)


@dataclass
class Inputs:
    """What is known of a layer's inputs, in two halves of the positions.

    Attributes:
        squares: sums of x x^T of the quantized model's inputs, (I, I) each.
        changes: sums of (y - x) x^T, with the source's inputs y at the same positions.
    """

    size: int
    squares: list[Doubles] = field(init=False)
    changes: list[Doubles] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.size, self.size
        self.squares = [np.zeros(shape) for _ in range(2)]
        self.changes = [np.zeros(shape) for _ in range(2)]

    @cached_property
    def total(self) -> Doubles:
        """The squares of all positions, when all are counted."""
        return self.squares[0] + self.squares[1]

    @cached_property
    def factor(self) -> Floats:
        """What layers with these inputs are quantized by."""
        return _factor(self.total)

    def add(self, half: int, source: Floats, student: Floats) -> None:
        """Count positions (n, I)."""
        self.squares[half] += student.T @ student
        self.changes[half] += (source - student).T @ student

    def corrected(self, weights: Floats) -> Floats:
        """Weights (O, I) that make good, as far as it can be foretold, what the layers before have
        changed in the inputs.

        What they learn on one half is judged on the other; its best share, of the best shrinkage,
        is taken.
        """
        best, chosen = 0.0, (SHRINKAGES[0], 0.0)
        for shrinkage in SHRINKAGES:
            right = size = 0.0
            for learned, judged in ((0, 1), (1, 0)):
                step = _solved(weights @ self.changes[learned], self.squares[learned], shrinkage)
                right += float(np.sum(step * (weights @ self.changes[judged])))
                size += float(np.sum((step @ self.squares[judged]) * step))
            if size > 0 and right > 0 and right * min(right / size, 1) > best:
                best = right * min(right / size, 1)
                chosen = shrinkage, min(right / size, 1)
        shrinkage, share = chosen
        if not share:
            return weights
        changes = weights @ (self.changes[0] + self.changes[1])
        step = _solved(changes, self.total, shrinkage)
        return (weights + share * step).astype(np.float32)

    def quantize(self, weights: Floats, bits: int, group: int, dtype: mx.Dtype) -> Codes:
        """Weights (O, I) to codes that keep the outputs of these inputs.

        Raises:
            TrainingError: inputs or weights are not finite.
        """
        if not (np.isfinite(self.total).all() and np.isfinite(weights).all()):
            raise TrainingError("numbers are not finite; learn in float32, or convert again")
        work = partial(_better, self.total, self.factor, bits, group, dtype)
        parts = [weights[row : row + ROWS] for row in range(0, len(weights), ROWS)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return _joined(list(pool.map(work, parts)))


def rounded(weights: Floats, bits: int, group: int, dtype: mx.Dtype) -> Codes:
    """Each weight to the nearest of its group's grid, whose ends are the smallest and largest."""
    groups = weights.reshape(len(weights), -1, group)
    low, high = groups.min(-1), groups.max(-1)
    scales, biases = _grid(low, high, bits, dtype)
    codes = _nearest(groups, scales[..., None], biases[..., None], bits)
    return Codes(codes.reshape(weights.shape).astype(np.uint8), scales, biases)


def stored(array: Floats, dtype: mx.Dtype) -> Floats:
    """The numbers that are left when they are written in this dtype."""
    if dtype == mx.bfloat16:
        raw = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return ((raw + 0x7FFF + ((raw >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return array.astype(np.float16).astype(np.float32) if dtype == mx.float16 else array


# ---- parts


def _damped(squares: Doubles, damping: float) -> Doubles:
    """Inputs that are always zero, and those that go together, must not divide by zero."""
    mean = float(np.trace(squares)) / len(squares)
    return squares + np.eye(len(squares)) * (damping * mean or 1.0)


def _solved(right: NDArray[np.floating], squares: Doubles, shrinkage: float) -> Doubles:
    """`right` (O, I) times the inverse of the damped squares."""
    solved: Doubles = np.linalg.solve(_damped(squares, shrinkage), right.T).T
    return solved


def _factor(squares: Doubles) -> Floats:
    """The upper triangle U with U^T U the inverse of the damped squares."""
    inverse = np.linalg.inv(_damped(squares, DAMPING))
    factor: Floats = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    return factor


def _grid(low: Floats, high: Floats, bits: int, dtype: mx.Dtype) -> tuple[Floats, Floats]:
    """Scales and biases, as stored, of grids from `low` to `high`."""
    scales = stored(np.maximum((high - low) / np.float32(2**bits - 1), np.float32(1e-7)), dtype)
    return scales, stored(low, dtype)


def _nearest(weights: Floats, scales: Floats, biases: Floats, bits: int) -> Floats:
    codes: Floats = np.rint((weights - biases) / scales)
    return np.clip(codes, 0, 2**bits - 1, out=codes)


def _better(
    squares: Doubles, factor: Floats, bits: int, group: int, dtype: mx.Dtype, weights: Floats
) -> Codes:
    """Of each row of `weights` the codes that cost less: compensated, or plainly rounded."""
    ways = [
        _compensated(weights, factor, bits, group, dtype),
        rounded(weights, bits, group, dtype),
    ]
    errors = [way.weights - weights for way in ways]
    costs = [np.sum((error @ squares) * error, axis=1) for error in errors]
    first = (costs[0] <= costs[1])[:, None]
    kept = (
        np.where(first, getattr(ways[0], name), getattr(ways[1], name))
        for name in ("codes", "scales", "biases")
    )
    return Codes(*kept)


def _compensated(weights: Floats, factor: Floats, bits: int, group: int, dtype: mx.Dtype) -> Codes:
    left = weights.T.copy()  # (I, O)
    codes, scales, biases = [], [], []
    for start in range(0, len(left), group):
        end = start + group
        block = factor[start:end, start:end]
        found, scale, bias, errors = _group(left[start:end], block, bits, dtype)
        left[end:] -= factor[start:end, end:].T @ errors
        codes.append(found)
        scales.append(scale)
        biases.append(bias)
    whole = np.concatenate(codes).T.astype(np.uint8)
    return Codes(np.ascontiguousarray(whole), np.stack(scales, 1), np.stack(biases, 1))


def _group(
    weights: Floats, factor: Floats, bits: int, dtype: mx.Dtype
) -> tuple[Floats, Floats, Floats, Floats]:
    """Codes (g, O), scales and biases (O,) and weighted errors (g, O) of a group's weights (g, O):
    of several grids the best for each output."""
    low, high = weights.min(0), weights.max(0)
    best: tuple[Floats, ...] | None = None
    whitened = np.linalg.inv(factor.astype(np.float64)).T.astype(np.float32)  # (g, g)
    for clip in CLIPS:
        grid = _grid(low * np.float32(clip), high * np.float32(clip), bits, dtype)
        best = _kept(best, _walk(weights, factor, *grid, bits), grid)
    assert best is not None
    for _ in range(REFITS):
        grid = _refit(whitened @ weights, whitened, best[0], best[1], best[2], dtype)
        best = _kept(best, _walk(weights, factor, *grid, bits), grid)
    codes, scales, biases, errors, _ = best
    return codes, scales, biases, errors


def _kept(
    best: tuple[Floats, ...] | None, walked: tuple[Floats, Floats], grid: Sequence[Floats]
) -> tuple[Floats, ...]:
    """Of each output the better of two: codes, scales, biases, errors and their squares' sum."""
    codes, errors = walked
    new = codes, *grid, errors, np.sum(errors * errors, axis=0)
    if best is None:
        return new
    wins = new[-1] < best[-1]
    return tuple(np.where(wins, ours, theirs) for ours, theirs in zip(new, best, strict=True))


def _walk(
    weights: Floats, factor: Floats, scales: Floats, biases: Floats, bits: int
) -> tuple[Floats, Floats]:
    """Round input after input, each error made good by those that follow: codes and weighted
    errors, both (g, O)."""
    left, codes, errors = weights.copy(), np.empty_like(weights), np.empty_like(weights)
    for start in range(0, len(left), STRIDE):  # those further on learn of it by a product
        end = start + STRIDE
        for at in range(start, end):
            codes[at] = _nearest(left[at], scales, biases, bits)
            errors[at] = (left[at] - (codes[at] * scales + biases)) / factor[at, at]
            left[at + 1 : end] -= factor[at, at + 1 : end, None] * errors[at]
        left[end:] -= factor[start:end, end:].T @ errors[start:end]
    return codes, errors


def _refit(
    wanted: Floats, whitened: Floats, codes: Floats, scales: Floats, biases: Floats, dtype: mx.Dtype
) -> tuple[Floats, Floats]:
    """The grid of least weighted error for these codes; the old one where there is no other."""
    x, ones = whitened @ codes, whitened.sum(1)  # (g, O), (g,)
    xx, x1, one = np.sum(x * x, 0), ones @ x, ones @ ones
    xw, w1 = np.sum(x * wanted, 0), ones @ wanted
    area = xx * one - x1 * x1
    fine = area > 1e-6 * xx * one
    safe = np.where(fine, area, 1)
    new_scales = stored(((xw * one - w1 * x1) / safe).astype(np.float32), dtype)
    new_biases = stored(((w1 * xx - xw * x1) / safe).astype(np.float32), dtype)
    fine &= new_scales > 1e-7
    return np.where(fine, new_scales, scales), np.where(fine, new_biases, biases)


def _joined(parts: Sequence[Codes]) -> Codes:
    return Codes(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("codes", "scales", "biases")
        )
    )
