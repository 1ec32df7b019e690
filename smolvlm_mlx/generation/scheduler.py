"""Several answers at once: one thread owns the model, reads prompts one by one, and decodes all answers together.

Knows nothing of HTTP.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import GenerationError, SmolVLMError
from ..inputs.processor import Inputs, Processor
from ..model import SmolVLM
from .decoding import Decoder, Row
from .engine import prefill, room_after
from .image_cache import image_tokens_after
from .prefix_cache import Key, Reuse, keys_of
from .sampling import LogitsProcessor, Options
from .stream import Statistics
from .structured import Grammars

Loaded = tuple[SmolVLM, Processor, Reuse]
FAILED = "the engine has failed; start the server again"


class BusyError(GenerationError):
    """As many answers are waiting as may; try again later."""


class _Cancelled(Exception):  # noqa: N818  # not an error: nobody waits for the answer any more
    pass


@dataclass(eq=False)
class Job:
    """An answer that was asked for.

    Attributes:
        on_text, on_end: called from the engine's thread, with each piece, and once at the end: with None, or with the error
            that ended it.
        schema: the answer is JSON that fits it; `{}` stands for any JSON object.
    """

    inputs: Inputs
    options: Options
    on_text: Callable[[str], None]
    on_end: Callable[[SmolVLMError | None], None]
    schema: dict[str, Any] | None = None
    statistics: Statistics = field(default_factory=Statistics)
    cancelled: bool = False
    keys: list[Key] = field(default_factory=list)
    started: float = 0.0

    def cancel(self) -> None:
        """Nobody waits for it: it ends within a token, and `on_end` is not called."""
        self.cancelled = True


class Engine:
    """Runs jobs in the order they come; up to `most_answers` are decoded together and `most_waiting` wait."""

    def __init__(self, load: Callable[[], Loaded], most_answers: int = 8, most_waiting: int = 32):
        self._load, self._most_answers, self._most_waiting = load, most_answers, most_waiting
        self._waiting: deque[Job] = deque()
        self._beginning: Job | None = None
        self._running: dict[Row, Job] = {}
        self._changed = threading.Condition()
        self._closing = False
        self.failed = False  # by a bug: no more answers come
        self._loaded: Loaded | None = None
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> tuple[SmolVLM, Processor]:
        """Load the model, in the thread that will run it.

        Raises:
            SmolVLMError: from `load`.
        """
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        assert self._loaded is not None
        return self._loaded[:2]

    @property
    def occupancy(self) -> tuple[int, int]:
        """Answers that are being made, and those that wait."""
        return len(self._running), len(self._waiting)

    def submit(self, job: Job) -> None:
        """Put a job in the queue.

        Raises:
            BusyError: it is full, or the engine has failed.
            ContextFullError: there is no room for an answer.
            GenerationError: `kv_bits`, which a batch of prompts of several lengths cannot have.
        """
        if job.options.kv_bits is not None:
            raise GenerationError(f"kv_bits {job.options.kv_bits}: not where several answers are made at once")
        room_after(self._model, job.inputs)
        with self._changed:
            if self.failed:
                raise BusyError(FAILED)
            if len(self._waiting) >= self._most_waiting or self._closing:
                raise BusyError(f"{len(self._waiting)} answers are waiting already; try again in a moment")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End all answers and the thread."""
        with self._changed:
            self._closing = True
            beginning = [] if self._beginning is None else [self._beginning]
            for job in (*self._waiting, *beginning, *self._running.values()):
                job.cancel()
            self._changed.notify()
        self._thread.join()

    # ---- in the owner's thread

    def _run(self) -> None:
        try:
            self._loaded = self._model, self._processor, self._reuse = self._load()
            self._decoder = Decoder(self._model)
            self._grammars: Grammars | None = None
        except BaseException as error:
            self._failure = error
            self._ready.set()
            if isinstance(error, SmolVLMError):
                return  # `start` raises it
            raise
        self._ready.set()
        try:
            while self._work():
                pass
        except BaseException:
            self.failed = self._closing = True
            for job in (*self._running.values(), *self._waiting, *([self._beginning] if self._beginning else [])):
                job.on_end(GenerationError(FAILED))
            raise

    def _work(self) -> bool:
        """Begin one job that waits, and go on with all others; whether there may be more to do."""
        with self._changed:
            while not (self._waiting or self._running or self._closing):
                self._changed.wait()
            if self._closing and not self._running:
                return False
            room = len(self._running) < self._most_answers and not self._closing
            self._beginning = job = self._waiting.popleft() if room and self._waiting else None
        if job is not None:
            self._begin(job)
            self._beginning = None
        self._step()
        return True

    def _begin(self, job: Job) -> None:
        """Read a job's prompt, and put it into the batch; answers under way go on between its tiles and chunks."""
        cache: list[Any] | None = None
        try:
            if job.cancelled:
                return
            constraint = self._constraint(job)
            model, ids, started = self._model, job.inputs.input_ids, time.perf_counter()
            job.keys = keys_of(job.inputs, model.config.image_token_id, model.config.tokens_per_tile)
            cache, count = self._reuse.prefixes.take(job.keys)
            cache = cache or model.language_model.make_cache(len(ids) + 1)
            job.statistics.reused_tokens = count
            image_tokens = image_tokens_after(
                model, job.inputs, count, self._reuse.features, lambda *_: self._between(job)
            )
            encoded = time.perf_counter()
            logits = prefill(model, ids[count:], image_tokens, cache, lambda: self._between(job))
            job.started = time.perf_counter()
            job.statistics.vision_seconds, job.statistics.prefill_seconds = encoded - started, job.started - encoded
            self._decoder.add([self._row(job, constraint)], cache, logits)
            return
        except _Cancelled:
            pass
        except SmolVLMError as error:
            job.on_end(error)
        if cache is not None:  # for those who ask again
            self._reuse.prefixes.give(job.keys, cache)

    def _constraint(self, job: Job) -> LogitsProcessor | None:
        if job.schema is None:
            return None
        if self._grammars is None:
            self._grammars = Grammars(self._processor.tokenizer, self._model.config.text_config.vocab_size)
        return self._grammars.json(job.schema)

    def _between(self, job: Job) -> None:
        if job.cancelled:
            raise _Cancelled
        self._step()

    def _row(self, job: Job, constraint: LogitsProcessor | None) -> Row:
        ids: list[int] = job.inputs.input_ids.tolist()
        statistics = job.statistics
        statistics.tiles, statistics.prompt_tokens = len(job.inputs.tiles), len(ids)
        statistics.image_tokens = statistics.tiles * self._processor.tokens_per_tile
        room = min(job.options.max_tokens, room_after(self._model, job.inputs))
        row = Row(ids, job.options, room, self._processor.tokenizer, constraint)
        self._running[row] = job
        return row

    def _step(self) -> None:
        """One token for each answer."""
        for row in [row for row, job in self._running.items() if job.cancelled]:
            self._end(row)
        for row, piece in self._decoder.step() if self._running else ():
            job = self._running[row]
            job.statistics.generated_tokens = len(row.token_ids)
            job.statistics.decode_seconds = time.perf_counter() - job.started
            if piece:
                job.on_text(piece)
            if row.over:
                job.statistics.finish_reason = "stop" if row.ended else "length"
                self._end(row)
                job.on_end(row.error)

    def _end(self, row: Row) -> None:
        """Take an answer out; its keys and values are kept for what goes on from it."""
        job, cache = self._running.pop(row), self._decoder.take(row)
        if row.error is None:
            self._reuse.prefixes.give([*job.keys, *row.token_ids], cache)
