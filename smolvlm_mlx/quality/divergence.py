"""Logits beside logits: how far apart the predictions of two models are, position by position."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

CHUNK = 256  # positions whose logits are there at a time: 50 MB in float32 for 49,280 tokens


@dataclass(frozen=True)
class Predictions:
    """What a model predicts after each of T positions, not written out: a table of 2,000 positions
    and 49,280 tokens would have 400 MB.

    Attributes:
        hidden_states: (T, Dt), before the last norm.
        head: hidden states (n, Dt) -> logits (n, V).
    """

    hidden_states: mx.array
    head: Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Distances:
    """One number for each of T positions.

    Attributes:
        kl: Kullback-Leibler divergence of the result's prediction from the source's, in nats.
        changed: whether the likeliest token is another.
        source_loss, result_loss: of the token that follows, in nats.
    """

    kl: NDArray[np.float32]
    changed: NDArray[np.bool_]
    source_loss: NDArray[np.float32]
    result_loss: NDArray[np.float32]


def log_softmax(logits: mx.array) -> mx.array:
    """Logits (..., V) -> log probabilities (..., V) in float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def divergence(want: mx.array, have: mx.array) -> mx.array:
    """Return KL(want || have) in nats, float32: logits (..., V) twice -> (...). Differentiable."""
    p = log_softmax(want)
    return (mx.exp(p) * (p - log_softmax(have))).sum(axis=-1)


def compare(want: Predictions, have: Predictions, following: NDArray[np.int32]) -> Distances:
    """Compare the predictions of a source (`want`) and a result, `CHUNK` positions at a time.

    Args:
        following: the token after each position (T,).
    """
    found: list[tuple[NDArray[np.float32], ...]] = []
    for start in range(0, len(following), CHUNK):
        rows = slice(start, start + CHUNK)
        tokens = mx.array(following[rows])[:, None]
        p, q = (log_softmax(each.head(each.hidden_states[rows])) for each in (want, have))
        # Rounding takes the sum below zero where nothing differs.
        kl = mx.maximum((mx.exp(p) * (p - q)).sum(axis=-1), 0)
        changed = p.argmax(axis=-1) != q.argmax(axis=-1)
        losses = (-mx.take_along_axis(each, tokens, axis=-1)[:, 0] for each in (p, q))
        found.append(tuple(np.array(each) for each in (kl, changed, *losses)))
    kls, changes, *both = (np.concatenate(column) for column in zip(*found, strict=True))
    return Distances(kls, changes.astype(np.bool_), *both)
