"""Jobs for a scheduler: one that keeps its answer; and requests of random lengths and tile counts,
one after another as places come free, with the most memory that they took."""

import random
import threading
from dataclasses import dataclass, field
from typing import Any

from smolvlm_mlx.errors import SmolVLMError
from smolvlm_mlx.events import End, Event, Text
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.generation.scheduler import Job, Scheduler
from smolvlm_mlx.inputs.processor import Processor
from tests.support.pictures import noise

import mlx.core as mx

AT_ONCE = 24


class Asked(Job):
    """A job that keeps its answer."""

    def __init__(self, processor: Processor, question: Any, options: Options, schema: Any = None):
        super().__init__(processor(messages(question)), options, self.take, schema)
        self.pieces: list[str] = []
        self.error: SmolVLMError | None = None
        self.over = threading.Event()

    def take(self, event: Event | SmolVLMError) -> None:
        if isinstance(event, Text):
            self.pieces.append(event.piece)
        if isinstance(event, SmolVLMError):
            self.error = event
        if isinstance(event, End | SmolVLMError):
            self.over.set()

    def wait(self) -> str:
        assert self.over.wait(60)
        if self.error is not None:
            raise self.error
        return "".join(self.pieces)


def messages(question: Any) -> Any:
    return [{"role": "user", "content": question}] if isinstance(question, str) else question


@dataclass
class Crowd:
    """What came of them.

    Attributes:
        most: bytes of arrays and freed buffers at a time.
    """

    answered: int = 0
    errors: list[str] = field(default_factory=list)
    most: int = 0

    def look(self) -> None:
        self.most = max(self.most, mx.get_active_memory() + mx.get_cache_memory())


def crowd(scheduler: Scheduler, engine: Engine, count: int, seed: int) -> Crowd:
    """Ask so many; pieces of text are the moments at which memory is looked at."""
    rng, seen, places = random.Random(seed), Crowd(), threading.Semaphore(AT_ONCE)

    def put(event: Event | SmolVLMError) -> None:
        seen.look()
        if isinstance(event, End):
            seen.answered += 1
        if isinstance(event, SmolVLMError):
            seen.errors.append(str(event))
        if not isinstance(event, Text) and isinstance(event, End | SmolVLMError):
            places.release()

    for _ in range(count):
        places.acquire()
        inputs = engine.processor(_messages(rng, engine.processor))
        scheduler.submit(Job(inputs, Options(max_tokens=rng.choice([1, 4, 16, 60])), put))
    for _ in range(AT_ONCE):
        places.acquire()
    return seen


def _messages(rng: random.Random, processor: Processor) -> list[dict[str, object]]:
    side, tile = rng.choice([1, 2, 3, 4]), processor.settings.tile_size
    pictures = [
        noise(rng.randint(8, side * tile), rng.randint(8, side * tile))
        for _ in range(rng.choice([0, 0, 1, 1, 2]))
    ]
    words = "so " * rng.choice([1, 10, 100, rng.randint(1, 250)])
    return [
        {
            "role": "user",
            "content": [
                *({"type": "image", "image": picture} for picture in pictures),
                {"type": "text", "text": words},
            ],
        }
    ]
