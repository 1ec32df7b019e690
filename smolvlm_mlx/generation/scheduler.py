"""Several answers at once: one thread owns the model, reads prompts one by one, and decodes all
answers together.

Knows nothing of HTTP.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import mlx.core as mx

from ..errors import GenerationError, SmolVLMError
from ..events import End, Event, Statistics, Text, Work
from ..inputs.processor import Inputs
from .decoding import Decoder, Row
from .engine import Engine, Schema
from .options import Options

FAILED = "the engine has failed; start the server again"


class BusyError(GenerationError):
    """As many answers are waiting as may; try again later."""


@dataclass(eq=False)
class Job:
    """An answer that was asked for.

    Attributes:
        put: called from the engine's thread with each event, and, where an error ends the answer,
            with that.
        schema: the answer is JSON that fits it; `{}` stands for any JSON object.
    """

    inputs: Inputs
    options: Options
    put: Callable[[Event | SmolVLMError], None]
    schema: Schema | None = None
    statistics: Statistics = field(default_factory=Statistics)
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits for it: it ends within a token, and nothing more is put."""
        self.cancelled = True


class Scheduler:
    """Runs jobs in the order they come; up to `most_answers` are decoded together and
    `most_waiting` wait.

    Args:
        load: makes the engine, in the thread that runs it.
    """

    def __init__(self, load: Callable[[], Engine], most_answers: int = 8, most_waiting: int = 32):
        self._load, self._most_answers, self._most_waiting = load, most_answers, most_waiting
        self._waiting: deque[Job] = deque()
        self._beginning: Job | None = None
        self._running: dict[Row, Job] = {}
        self._changed = threading.Condition()
        self._closing = False
        self.failed = False  # by a bug: no more answers come
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
        return len(self._running), len(self._waiting)

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
            BusyError: it is full, or the engine has failed.
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
            if len(self._waiting) >= self._most_waiting or self._closing:
                raise BusyError(
                    f"{len(self._waiting)} answers are waiting already; try again in a moment"
                )
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End all answers and the thread."""
        with self._changed:
            self._closing = True
            for job in self._jobs():
                job.cancel()
            self._changed.notify()
        self._thread.join()

    def _jobs(self) -> list[Job]:
        jobs = [*self._running.values(), *self._waiting, self._beginning]
        return [job for job in jobs if job is not None]

    # ---- in the owner's thread

    def _run(self) -> None:
        try:
            self._engine = self._load()
            self._decoder = Decoder(self._engine.model)
        except BaseException as error:
            self._loaded.set_exception(error)
            if isinstance(error, SmolVLMError):
                return  # `start` raises it
            raise
        self._loaded.set_result(self._engine)
        try:
            while self._work():
                pass
            mx.synchronize()  # what was begun is done before the thread ends
        except BaseException:
            self.failed = self._closing = True
            for job in self._jobs():
                job.put(GenerationError(FAILED))
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
        """Read a job's prompt, and put it into the batch; answers under way go on between its tiles
        and chunks."""
        try:
            row = self._engine.row(job.options, job.schema, job.statistics)
            reading = Work(self._engine.prompts.read(job.inputs, row))
            for step in reading:
                if job.cancelled:
                    return
                job.put(step)
                self._step()
        except SmolVLMError as error:
            job.put(error)
            return
        cache, logits = reading.result
        if self._has_sibling(job):  # which then does not read the prompt again
            self._engine.prompts.keep(row, [layer.fork() for layer in cache])
        self._decoder.add([row], cache, logits)
        self._running[row] = job

    def _step(self) -> None:
        """One token for each answer."""
        for row in [row for row, job in self._running.items() if job.cancelled]:
            self._end(row)
        for row, piece in self._decoder.step() if self._running else ():
            job = self._running[row]
            if row.error is None and not job.cancelled:
                job.put(Text(piece))
            if row.over:
                self._end(row)
                if not job.cancelled:
                    job.put(row.error or End(row.statistics))

    def _end(self, row: Row) -> None:
        """Take an answer out; its keys and values are kept for what goes on from it, of several to
        one prompt those of the last."""
        job, cache = self._running.pop(row), self._decoder.take(row)
        if not self._has_sibling(job):
            self._engine.prompts.keep(row, cache)

    def _has_sibling(self, job: Job) -> bool:
        """Whether another answer to the same inputs is being made, or waits."""
        with self._changed:
            return any(other.inputs is job.inputs for other in self._jobs() if other is not job)
