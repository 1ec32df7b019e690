"""What long work tells of itself: whoever wants it done iterates, and ends it by closing. One
vocabulary for all of it."""

import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import wraps
from typing import Generic, Literal, ParamSpec, TypeVar, get_args

Arguments = ParamSpec("Arguments")
FinishReason = Literal["stop", "length", "repetition", "interrupted"]
Step = TypeVar("Step")
Result = TypeVar("Result")

# How an answer ended that did not come to its end by itself, for people.
CUT_OFF: dict[str, str] = {
    "length": "cut off at the longest length",
    "repetition": "went in circles and was ended",
    "interrupted": "interrupted",
}


@dataclass
class Statistics:
    """What an answer took. Times in seconds, memory in bytes (MLX's arrays and the
    freed buffers that it holds)."""

    finish_reason: FinishReason = "interrupted"
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, whose keys and values an earlier answer left
    image_tokens: int = 0
    tiles: int = 0
    generated_tokens: int = 0
    preprocess_seconds: float = 0.0
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    peak_memory: int = 0
    # Digests of the tiles that were encoded: those that no cache had.
    encoded_tiles: set[bytes] = field(default_factory=set)

    @property
    def first_token_seconds(self) -> float:
        return self.preprocess_seconds + self.vision_seconds + self.prefill_seconds

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, the first token (which belongs to the prefill) not counted."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def describe(self) -> str:
        """Return what the answer took, in a line for people."""
        reused = f", {self.reused_tokens} reused" if self.reused_tokens else ""
        parts = [f"{self.tiles} tiles"] if self.tiles else []
        parts.append(f"{self.prompt_tokens} + {self.generated_tokens} tokens{reused}")
        parts.append(f"first after {self.first_token_seconds:.2f} s")
        if self.tokens_per_second:
            parts.append(f"then {self.tokens_per_second:.1f} tokens/s")
        if self.peak_memory:
            parts.append(f"{self.peak_memory / 1e9:.2f} GB")
        parts += [CUT_OFF[self.finish_reason]] if self.finish_reason in CUT_OFF else []
        return " · ".join(parts)

    def describe_phases(self) -> str:
        """Return what each phase of the answer took, in a line for people."""
        parts = [
            f"preprocess {self.preprocess_seconds * 1000:.0f} ms",
            f"vision {self.vision_seconds * 1000:.0f} ms",
            f"prefill {self.prefill_seconds * 1000:.0f} ms",
        ]
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        return " · ".join(parts)


@dataclass(frozen=True)
class Reading:
    """So much of `what` (tiles, tokens, files, bytes, ...) is done."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Text:
    """What one more token makes certain of an answer; nothing, for some."""

    piece: str


@dataclass(frozen=True)
class End:
    """An answer is complete."""

    statistics: Statistics


Event = Reading | Text | End


class Work(Generic[Step, Result]):
    """Work under way: iterate over it for its steps, after which `result` is there; or `finish` it
    at once."""

    result: Result

    def __init__(self, steps: Generator[Step, None, Result]):
        self._steps = steps

    def __iter__(self) -> Generator[Step]:
        self.result = yield from self._steps

    def finish(self) -> Result:
        """Do what is left; returns the result."""
        for _ in self:
            pass
        return self.result


def at_once(
    steps: Callable[Arguments, Generator[Step, None, Result]],
) -> Callable[Arguments, Result]:
    """The same work, done to its end by a call; returns its result."""

    @wraps(steps)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return Work(steps(*args, **kwargs)).finish()

    # For help(): its own name, and the result where the steps have a generator of it.
    call.__name__, call.__qualname__ = (
        name.removesuffix("_in_steps") for name in (call.__name__, call.__qualname__)
    )
    signature = inspect.signature(steps)
    # Generator[Step] has no result.
    _, _, result, *_ = (*get_args(signature.return_annotation), None, None)
    call.__dict__["__signature__"] = signature.replace(return_annotation=result)
    return call
