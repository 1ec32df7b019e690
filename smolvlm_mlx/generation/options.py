"""How an answer is generated."""

from dataclasses import dataclass
from typing import Literal

from ..errors import GenerationError
from ..options import documented, option, settle


@documented
@dataclass(frozen=True)
class Options:
    """How an answer is generated. Temperature 0 is greedy: the most likely token, always.

    A token is chosen in this order: penalties (of repetition, presence, frequency), temperature,
    top_k, top_p, min_p, each of what the one before has left. `stop` may be one text.

    Raises:
        GenerationError: values are of another type, or out of range (all are named at once).
    """

    max_tokens: int = option(512, "Longest answer, in tokens.", short="-n")
    temperature: float = option(
        0.0, "0: always the likeliest token; the higher, the more varied.", short="-t"
    )
    top_k: int = option(0, "Sample from so many likeliest tokens; 0: all. After temperature.")
    top_p: float = option(
        1.0, "Sample from the likeliest tokens up to this probability. After top_k."
    )
    min_p: float = option(
        0.0, "Sample from tokens this likely, relative to the likeliest. After top_p."
    )
    repetition_penalty: float = option(
        1.0, "Above 1, tokens of question and answer become less likely."
    )
    repetition_context: int = option(
        0, "So many of the newest tokens count for repetition_penalty; 0: all."
    )
    presence_penalty: float = option(
        0.0, "Above 0, tokens that are in the answer become less likely (-2 to 2)."
    )
    frequency_penalty: float = option(
        0.0, "Above 0, tokens become less likely each time they come (-2 to 2)."
    )
    seed: int | None = option(None, "Makes sampling repeatable.")
    stop: tuple[str, ...] = option((), "End the answer before this text. Repeatable.")
    end_loops: bool = option(False, "End an answer that goes in circles: the same again and again.")
    kv_bits: Literal[4, 8] | None = option(
        None, "Keep keys and values in so many bits: a longer context in the same memory."
    )
    skip_special_tokens: bool | None = option(
        None,
        "Leave special tokens out of the text; untold, all but those of document checkpoints.",
    )

    def __post_init__(self) -> None:
        settle(self, GenerationError)
        penalty, context = self.repetition_penalty, self.repetition_context
        presence, frequency = self.presence_penalty, self.frequency_penalty
        checks = {
            f"max_tokens {self.max_tokens} is less than 1": self.max_tokens >= 1,
            f"temperature {self.temperature} is not in 0..10": 0 <= self.temperature <= 10,
            f"top_p {self.top_p} is not above 0 and up to 1": 0 < self.top_p <= 1,
            f"top_k {self.top_k} is negative": self.top_k >= 0,
            f"min_p {self.min_p} is not in 0..1": 0 <= self.min_p <= 1,
            f"repetition_penalty {penalty} is not in 0.1..10": 0.1 <= penalty <= 10,
            f"repetition_context {context} is negative": context >= 0,
            f"presence_penalty {presence} is not in -2..2": -2 <= presence <= 2,
            f"frequency_penalty {frequency} is not in -2..2": -2 <= frequency <= 2,
            f"seed {self.seed} is not in 0..2^64-1": self.seed is None or 0 <= self.seed < 2**64,
            "stop holds an empty text": all(self.stop),
            f"kv_bits {self.kv_bits} is neither 4 nor 8": self.kv_bits in (None, 4, 8),
        }
        problems = [problem for problem, fine in checks.items() if not fine]
        if problems:
            raise GenerationError("; ".join(problems))
