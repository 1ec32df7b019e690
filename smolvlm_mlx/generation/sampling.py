"""How the next token is chosen: penalties, temperature, top_k, top_p, min_p, in the order of
transformers and vLLM."""

from collections.abc import Callable
from functools import lru_cache
from random import Random, SystemRandom
from typing import Protocol

import mlx.core as mx

from .options import Options

# Logits (B, V) in float32 -> tokens (B,).
Sampler = Callable[[mx.array], mx.array]
# (tokens (T,) so far, of prompt and answer or of the answer alone; logits (1, V)) -> logits.
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


class Constraint(Protocol):
    """What an answer has to be: chooses its tokens in a sampler's place."""

    def begin(self, max_new_tokens: int) -> None:
        """Check that an answer of so many tokens can be made; GenerationError, if not."""

    def choose(self, logits: mx.array, sampler: Sampler, left: int) -> int:
        """Choose the next token, one of `left` that may come, of logits (1, V); GenerationError,
        if there is none."""


LEAST = 1e-6  # of temperatures that float32 can tell from none
NOT_FINITE = -1  # in place of a token: the model gave no probabilities


def make_sampler(options: Options) -> Sampler:
    """How tokens are chosen. Equal options without a seed have one sampler, which chooses for many
    rows at once."""
    if options.temperature < LEAST or options.top_k == 1:
        return greedy
    choice = (options.temperature, options.top_p, options.min_p, options.top_k)
    return _unseeded(*choice) if options.seed is None else _sampler(*choice, Random(options.seed))


def make_penalties(options: Options) -> list[LogitsProcessor]:
    """What changes logits by the tokens of prompt and answer."""
    penalty, context = options.repetition_penalty, options.repetition_context
    if penalty == 1:
        return []
    return [lambda tokens, logits: penalize(tokens[-context:], logits, penalty)]  # -0: all


def make_answer_penalties(options: Options) -> list[LogitsProcessor]:
    """What changes logits by the tokens of the answer alone."""
    presence, frequency = options.presence_penalty, options.frequency_penalty
    if not presence and not frequency:
        return []
    return [lambda tokens, logits: penalize_answer(tokens, logits, presence, frequency)]


def greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1).astype(mx.int32)


def penalize(tokens: mx.array, logits: mx.array, penalty: float) -> mx.array:
    """Make tokens (T,) that were there less likely in logits (1, V): arXiv:1909.05858."""
    seen = logits[:, tokens]
    penalized = mx.where(seen < 0, seen * penalty, seen / penalty)
    return mx.put_along_axis(logits, tokens[None], penalized, axis=-1)


def penalize_answer(
    tokens: mx.array, logits: mx.array, presence: float, frequency: float
) -> mx.array:
    """Lower logits (1, V) of an answer's tokens (T,): by `presence` once, by `frequency` each time.
    The formula of platform.openai.com/docs/api-reference, as vLLM has it."""
    if not tokens.size:
        return logits
    counts = mx.zeros_like(logits).at[:, tokens].add(1.0)  # (1, V)
    return logits - frequency * counts - presence * (counts > 0)


def truncate(
    logits: mx.array, temperature: float, top_p: float, min_p: float, top_k: int
) -> mx.array:
    """Logits (B, V) at a temperature, -inf for what is not to be sampled; as transformers' warpers
    of these names, which keep all that are as likely as the last of `top_k`."""
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = mx.topk(logits, top_k).min(axis=-1, keepdims=True)
        logits = mx.where(logits < least, -mx.inf, logits)
    if top_p < 1:
        logits = _nucleus(logits, top_p)
    if min_p > 0:
        best = logits.max(axis=-1, keepdims=True)
        logits = mx.where(mx.exp(logits - best) < min_p, -mx.inf, logits)
    return logits


def _nucleus(logits: mx.array, top_p: float) -> mx.array:
    """The likeliest that together have `top_p` of the probability, one at least."""
    order = mx.argsort(logits)
    below = mx.cumsum(mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1), axis=-1)
    drop = below <= 1 - top_p
    drop[:, -1] = False
    return mx.where(mx.put_along_axis(drop, order, drop, axis=-1), -mx.inf, logits)


@lru_cache(maxsize=32)
def _unseeded(temperature: float, top_p: float, min_p: float, top_k: int) -> Sampler:
    return _sampler(temperature, top_p, min_p, top_k, SystemRandom())


def _sampler(temperature: float, top_p: float, min_p: float, top_k: int, seeds: Random) -> Sampler:
    """With a seed of its own for each token: MLX's random numbers are a thread's, and begin anew in
    each."""

    def sampler(logits: mx.array) -> mx.array:
        mx.random.seed(seeds.getrandbits(63))
        return mx.random.categorical(truncate(logits, temperature, top_p, min_p, top_k)).astype(
            mx.int32
        )

    return sampler
