"""Several answers at once: one thread owns the model, reads prompts one by one, and decodes all
answers together.

An error while a step is computed ends the answers of that step, or the one whose prompt was read;
their caches are let go, and the next are made as if nothing had been. Knows nothing of HTTP.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import mlx.core as mx

from ..errors import EngineError, GenerationError, SmolVLMError, cut
from ..events import End, Event, Statistics, Text, Work
from ..inputs.processor import Inputs
from .decoding import Decoder, Row
from .engine import Engine, Schema
from .failures import Contained
from .options import Options
from .turns import Turns

FAILED = "the engine has failed; start the server again"
STUCK_SECONDS = 120.0  # after the last step; a step of the largest model on a slow CPU takes 20


class BusyError(GenerationError):
    """As many answers are waiting as may; try again later."""


class ClosingError(GenerationError):
    """The server is ending, and takes and makes no more answers."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; ask again when it is back")


Status = Literal["ok", "failing", "stuck", "closing", "failed"]


@dataclass(frozen=True)
class State:
    """How the engine is, as its last step shows it.

    Attributes:
        status: "failing" where its last step was an error, "stuck" where none has come for long
            although there is something to do, "failed" where no more can come.
        idle_seconds: since the last step, where something is being made.
        errors: steps so far that could not be computed; `last_error` is the last of them.
    """

    status: Status
    running: int
    waiting: int
    errors: int
    last_error: str
    idle_seconds: float | None


@dataclass(eq=False)
class Job:
    """An answer that was asked for.

    Attributes:
        put: called from the engine's thread with each event, and, where an error ends the answer,
            with that.
        schema: the answer is JSON that fits it; `{}` stands for any JSON object.
        client: who asks, see `turns`.
    """

    inputs: Inputs
    options: Options
    put: Callable[[Event | SmolVLMError], None]
    schema: Schema | None = None
    statistics: Statistics = field(default_factory=Statistics)
    client: tuple[str, ...] = ()
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits for it: it ends within a token, and nothing more is put."""
        self.cancelled = True


class Scheduler:
    """Runs jobs, those of a client in the order they come, and those of several in turns; up to
    `most_answers` are decoded together and `most_waiting` wait.

    Args:
        load: makes the engine, in the thread that runs it.
    """

    def __init__(self, load: Callable[[], Engine], most_answers: int = 8, most_waiting: int = 32):
        self._load, self._most_answers, self._most_waiting = load, most_answers, most_waiting
        self._waiting = Turns[Job]()
        self._beginning: Job | None = None
        self._running: dict[Row, Job] = {}
        self._changed = threading.Condition()
        self._closing = False
        self.failed = False  # the thread is gone: no more answers come
        self._errors, self._last_error, self._is_failing = 0, "", False
        self._last_step = time.monotonic()
        self._loaded: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Engine:
        """Load the model, in the thread that will run it.

        Raises:
            SmolVLMError: from `load`.
        """
        self._thread.start()
        return self._loaded.result()

    @property
    def occupancy(self) -> tuple[int, int]:
        """Answers that are being made, and those that wait."""
        with self._changed:
            return len(self._running), sum(not job.cancelled for job in self._waiting)

    def state(self) -> State:
        """How it is, from any thread."""
        running, waiting = self.occupancy
        running += self._beginning is not None
        idle = time.monotonic() - self._last_step if running else None
        status: Status = "ok"
        if self.failed:
            status = "failed"
        elif self._closing:
            status = "closing"
        elif idle is not None and idle > STUCK_SECONDS:
            status = "stuck"
        elif self._is_failing:
            status = "failing"
        return State(status, running, waiting, self._errors, self._last_error, idle)

    def check(self, tiles: int, schema: Schema | None, max_tokens: int) -> None:
        """Check, before pictures are cut, that a prompt of so many tiles may fit, and that a schema
        can be used for an answer of so many tokens.

        Raises:
            ContextFullError: there is no room for an answer.
            GenerationError: the schema cannot be used.
        """
        if schema is not None:
            self._engine.check_schema(schema, max_tokens)
        config = self._engine.model.config
        self._engine.prompts.room_for(tiles * config.tokens_per_tile, tiles)

    def submit(self, job: Job) -> None:
        """Put a job in the queue.

        Raises:
            BusyError: it is full, or the engine has failed; ClosingError: it is being closed.
            ContextFullError: there is no room for an answer.
            GenerationError: `kv_bits`, which a batch of prompts of several lengths cannot have.
        """
        if job.options.kv_bits is not None:
            raise GenerationError(
                f"kv_bits {job.options.kv_bits}: not where several answers are made at once"
            )
        self._engine.prompts.room_after(job.inputs)
        with self._changed:
            if self.failed:
                raise BusyError(FAILED)
            if self._closing:
                raise ClosingError
            self._waiting.keep(lambda other: not other.cancelled)
            full = BusyError(
                f"{len(self._waiting)} answers are waiting already; try again in a moment"
            )
            if len(self._waiting) >= self._most_waiting:
                if (shed := self._waiting.shed(job.client)) is None:
                    raise full
                shed.put(full)  # in its place one of a client who has fewer
            self._waiting.push(job, job.client)
            self._changed.notify()

    def refuse(self) -> None:
        """Take no more jobs; those that were taken are answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def end(self) -> None:
        """Tell all whose answers are not complete that they will not be, and stop making them."""
        with self._changed:
            self._closing = True
            for job in self._jobs():
                if not job.cancelled:
                    job.cancel()
                    job.put(ClosingError())
            self._changed.notify()

    def close(self, seconds: float | None = None) -> None:
        """End all answers and the thread.

        Args:
            seconds: to wait for the thread at most, which may be in a step.
        """
        self.end()
        self._thread.join(seconds)

    def _jobs(self) -> list[Job]:
        jobs = [*self._running.values(), *self._waiting, self._beginning]
        return [job for job in jobs if job is not None]

    # ---- in the owner's thread

    def _run(self) -> None:
        try:
            self._engine = self._load()
            self._decoder = Decoder(self._engine.model)
        except SmolVLMError as error:
            self._loaded.set_exception(error)  # `start` raises it
        except BaseException as error:
            self._loaded.set_exception(error)
            raise
        if self._loaded.done():
            with self._changed:  # MLX aborts a program that ends while a thread of its does
                self._changed.wait_for(lambda: self._closing)
            return
        self._loaded.set_result(self._engine)
        try:
            while self._work():
                pass
            mx.synchronize()  # what was begun is done before the thread ends
        except BaseException:
            self.failed = self._closing = True
            for job in self._jobs():
                job.put(EngineError(FAILED))
            raise

    def _work(self) -> bool:
        """Begin one job that waits, and go on with all others; whether there may be more to do."""
        with self._changed:
            while not (self._waiting or self._running or self._closing):
                self._changed.wait()
            self._waiting.keep(lambda job: not job.cancelled)
            if self._closing and not (self._running or self._waiting):
                return False
            self._beginning = job = self._waiting.pop() if self._has_room() else None
            self._last_step = time.monotonic()
        if job is not None:
            with Contained(partial(self._fail, [job])):
                self._begin(job)
            self._beginning = None
        self._step()
        return True

    def _has_room(self) -> bool:
        """Whether an answer waits that may begin: places are limited, and memory."""
        if not self._waiting or len(self._running) >= self._most_answers:
            return False
        job = self._waiting.peek()
        prompt = len(job.inputs.input_ids)
        longest = min(job.options.max_tokens, self._engine.prompts.room_for(prompt, 0))
        lengths = [len(row.prompt) + row.max_new_tokens for row in self._running]
        return self._engine.fits([*lengths, prompt + longest])

    def _begin(self, job: Job) -> None:
        """Read a job's prompt, and put it into the batch; answers under way go on between its tiles
        and chunks."""
        row = self._engine.row(job.options, job.schema, job.statistics)
        reading = Work(self._engine.prompts.read(job.inputs, row))
        for step in reading:
            if job.cancelled:
                return
            job.put(step)
            self._is_done()
            self._step()
        cache, logits = reading.result
        if self._has_sibling(job):  # which then does not read the prompt again
            self._engine.prompts.keep(row, [layer.fork() for layer in cache])
        self._running[row] = job
        with self._together():
            self._decoder.add([row], cache, logits)

    def _step(self) -> None:
        """One token for each answer."""
        with self._together():
            for row in [row for row, job in self._running.items() if job.cancelled]:
                self._end(row)
            made = self._decoder.step() if self._running else []
            for row, piece in made:
                job = self._running[row]
                if row.error is None and not job.cancelled:
                    job.put(Text(piece))
                if row.over:
                    self._end(row)
                    if isinstance(row.error, EngineError):
                        self._count(row.error)
                    if not job.cancelled:
                        job.put(row.error or End(row.statistics))
            if made:
                self._is_done()

    def _together(self) -> Contained:
        """What goes wrong within goes wrong for all answers that are being made."""
        return Contained(lambda error: self._fail([*self._running.values()], error))

    def _fail(self, jobs: Sequence[Job], error: SmolVLMError) -> None:
        """End jobs with an error. Of one while they were computed nothing stays that may be broken
        or that would take their memory."""
        if any(job in self._running.values() for job in jobs):
            self._running.clear()
            self._decoder = Decoder(self._engine.model)
        if isinstance(error, EngineError):
            self._count(error)
            self._engine.prompts.forget()
            mx.clear_cache()
        for job in jobs:
            if not job.cancelled:
                job.put(error)

    def _count(self, error: EngineError) -> None:
        self._errors, self._last_error, self._is_failing = self._errors + 1, cut(str(error)), True

    def _is_done(self) -> None:
        """A step was computed."""
        self._last_step, self._is_failing = time.monotonic(), False

    def _end(self, row: Row) -> None:
        """Take an answer out; its keys and values are kept for what goes on from it, of several to
        one prompt those of the last."""
        cache = self._decoder.take(row)
        if not self._has_sibling(self._running[row]):
            self._engine.prompts.keep(row, cache)
        del self._running[row]

    def _has_sibling(self, job: Job) -> bool:
        """Whether another answer to the same inputs is being made, or waits."""
        with self._changed:
            return any(other.inputs is job.inputs for other in self._jobs() if other is not job)
