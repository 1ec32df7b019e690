"""How the next token is chosen."""

from collections.abc import Callable
from functools import lru_cache
from random import Random, SystemRandom

import mlx.core as mx

from .options import Options

# Logits (B, V) in float32 -> tokens (B,).
Sampler = Callable[[mx.array], mx.array]
# (tokens (T,) of the prompt and the answer so far, logits (1, V)) -> logits, as mlx_lm's.
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
LEAST = 1e-6  # of temperatures and shares that float32 can tell from none
NOT_FINITE = -1  # in place of a token: the model gave no probabilities


def make_sampler(options: Options) -> Sampler:
    """How tokens are chosen. Equal options without a seed have one sampler, which chooses for many
    rows at once. Greedy imports nothing."""
    if options.temperature < LEAST:
        return greedy
    choice = (options.temperature, options.top_p, options.min_p, options.top_k)
    return _unseeded(*choice) if options.seed is None else _sampler(*choice, Random(options.seed))


def make_penalties(options: Options) -> list[LogitsProcessor]:
    """What changes logits before a token is chosen from them."""
    if options.repetition_penalty == 1:
        return []
    from mlx_lm.sample_utils import make_logits_processors

    processors: list[LogitsProcessor] = make_logits_processors(
        repetition_penalty=options.repetition_penalty
    )
    return processors


def greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1).astype(mx.int32)


@lru_cache(maxsize=32)
def _unseeded(temperature: float, top_p: float, min_p: float, top_k: int) -> Sampler:
    return _sampler(temperature, top_p, min_p, top_k, SystemRandom())


def _sampler(temperature: float, top_p: float, min_p: float, top_k: int, seeds: Random) -> Sampler:
    """With a seed of its own for each token: MLX's random numbers are a thread's, and begin anew in
    each."""
    from mlx_lm.sample_utils import make_sampler  # which takes a second or more

    def sampler(logits: mx.array) -> mx.array:
        limits = {
            "top_p": max(top_p, LEAST) if top_p < 1 else 0.0,
            "top_k": top_k if top_k < logits.shape[-1] else 0,
        }
        sample: Sampler = make_sampler(temperature, min_p=min_p, **limits)
        mx.random.seed(seeds.getrandbits(63))
        return sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True)).astype(mx.int32)

    return sampler
