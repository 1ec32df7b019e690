"""How the next token is chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random, SystemRandom
from typing import Literal

import mlx.core as mx

from ..errors import GenerationError


@dataclass(frozen=True)
class Options:
    """How an answer is generated. Temperature 0 is greedy: the most likely token, always.

    Raises:
        GenerationError: a value is out of range (all are named at once).
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0  # keep the most likely tokens up to this share of the probability; 1: all
    top_k: int = 0  # keep this many; 0: all
    min_p: float = 0.0  # keep tokens at least this likely, relative to the likeliest
    repetition_penalty: float = 1.0  # divides the logits of recent tokens; 1: off
    seed: int | None = None
    stop: tuple[str, ...] = ()  # the answer ends before the first of these
    kv_bits: Literal[4, 8] | None = None  # quantize keys and values: a longer context in the same memory
    skip_special_tokens: bool = True  # off, added tokens stay in the text, as document checkpoints need

    def __post_init__(self) -> None:
        checks = {
            f"max_tokens {self.max_tokens} is less than 1": self.max_tokens >= 1,
            f"temperature {self.temperature} is not in 0..10": 0 <= self.temperature <= 10,
            f"top_p {self.top_p} is not above 0 and up to 1": 0 < self.top_p <= 1,
            f"top_k {self.top_k} is negative": self.top_k >= 0,
            f"min_p {self.min_p} is not in 0..1": 0 <= self.min_p <= 1,
            f"repetition_penalty {self.repetition_penalty} is not in 0.1..10": 0.1 <= self.repetition_penalty <= 10,
            f"seed {self.seed} is not in 0..2^64-1": self.seed is None or 0 <= self.seed < 2**64,
            "stop holds an empty text": all(self.stop),
            f"kv_bits {self.kv_bits} is neither 4 nor 8": self.kv_bits in (None, 4, 8),
        }
        problems = [problem for problem, fine in checks.items() if not fine]
        if problems:
            raise GenerationError("; ".join(problems))


# Logits (B, V) in float32 -> tokens (B,).
Sampler = Callable[[mx.array], mx.array]
# (tokens (T,) of the prompt and the answer so far, logits (1, V)) -> logits, as mlx_lm's.
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
LEAST = 1e-6  # of temperatures and shares that float32 can tell from none
NOT_FINITE = -1  # in place of a token: the model gave no probabilities


def make_sampler(options: Options) -> Sampler:
    """How tokens are chosen. Equal options without a seed have one sampler, which chooses for many rows at once. Greedy imports
    nothing."""
    if options.temperature < LEAST:
        return greedy
    choice = (options.temperature, options.top_p, options.min_p, options.top_k)
    return _unseeded(*choice) if options.seed is None else _sampler(*choice, Random(options.seed))


def make_penalties(options: Options) -> list[LogitsProcessor]:
    """What changes logits before a token is chosen from them."""
    if options.repetition_penalty == 1:
        return []
    from mlx_lm.sample_utils import make_logits_processors

    processors: list[LogitsProcessor] = make_logits_processors(repetition_penalty=options.repetition_penalty)
    return processors


def greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1).astype(mx.int32)


@lru_cache(maxsize=32)
def _unseeded(temperature: float, top_p: float, min_p: float, top_k: int) -> Sampler:
    return _sampler(temperature, top_p, min_p, top_k, SystemRandom())


def _sampler(temperature: float, top_p: float, min_p: float, top_k: int, seeds: Random) -> Sampler:
    """With a seed of its own for each token: MLX's random numbers are a thread's, and begin anew in each."""
    from mlx_lm.sample_utils import make_sampler  # which takes a second or more

    def sampler(logits: mx.array) -> mx.array:
        limits = {"top_p": max(top_p, LEAST) if top_p < 1 else 0.0, "top_k": top_k if top_k < logits.shape[-1] else 0}
        sample: Sampler = make_sampler(temperature, min_p=min_p, **limits)
        mx.random.seed(seeds.getrandbits(63))
        return sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True)).astype(mx.int32)

    return sampler
