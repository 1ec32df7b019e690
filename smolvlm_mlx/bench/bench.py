"""How fast a model runs here, phase by phase, beside how fast it could: see `roofline` for the
limits.

Each phase runs through the functions that answer questions, on random token ids and noise, once to
warm up and then several times. Times are of finished work: every phase ends with arrays that are
evaluated. Knows nothing of terminals.
"""

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .. import device
from ..checkpoint.presets import random_picture
from ..events import Reading, Statistics, at_once
from ..generation.decoding import Row
from ..generation.image_cache import encode_tiles, tiles_at_once
from ..generation.options import Options
from ..generation.prefill import PromptReader
from ..inputs.image import load_image
from ..inputs.processor import Inputs
from ..inputs.settings import ImageSettings
from ..inputs.tiles import TiledImage, digest_tiles, make_tiles
from ..model import SmolVLM
from .diagnostics import Check, machine_checks, model_checks
from .machine import calibrate, count_kernels
from .plan import Plan
from .roofline import Machine, Sizes, Work, decoder, vision

PICTURE = (1600, 1067)  # pixels; 12 tiles and the global one in the family
# Tokens of text for a tile's place, of a question and of an answer.
TILE_TEXT, QUESTION, ANSWER = 2, 16, 8

Open = Callable[[], tuple[SmolVLM, ImageSettings]]
Timed = tuple[float, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Phase:
    """One row: `count` things (`unit`) took `seconds` in each run; `work` is None where there is no
    formula for it."""

    name: str
    seconds: Timed
    count: int
    unit: str
    work: Work | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """From the fastest run to the slowest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    @property
    def rate(self) -> float:
        return self.count / self.median

    def limit(self, machine: Machine) -> float | None:
        return None if self.work is None else self.work.limit(machine)

    def share(self, machine: Machine) -> float | None:
        """Of the limit's speed; above 1 where the weights fit the processor's caches."""
        return None if self.work is None else self.work.limit(machine) / self.median


@dataclass(frozen=True)
class Result:
    """All that was measured. Sizes in bytes; `peak_memory` is MLX's, of a first turn about a
    picture, weights included."""

    machine: Machine
    phases: tuple[Phase, ...]
    kernels: Counter[str]  # of one decode step, by primitive
    checks: tuple[Check, ...]
    parameters: int
    weights: int
    peak_memory: int


def bench_in_steps(open_model: Open, plan: Plan, stored: bool) -> Generator[Reading, None, Result]:
    """Calibrate the machine and measure a model.

    Yields before each phase its name, and that none of its runs is done.

    Args:
        open_model: gives the model with its weights in memory; called for every run if `stored`.
        stored: weights come from files, so that reading them is a phase of its own.
    """
    yield Reading(0, plan.runs, "load" if stored else "random weights")
    loads = [_timed(open_model)[0] for _ in range(plan.runs - 1 if stored else 0)]
    seconds, (model, settings) = _timed(open_model)
    weights = sum(array.nbytes for array in model.named_parameters().values())
    phases = [Phase("load", (*loads, seconds), weights, "bytes")] if stored else []
    yield Reading(0, plan.runs, "calibration")
    run = Run(model, settings, plan)
    machine = calibrate(run.dtype, repeats=2 * plan.runs)
    phases += yield from run.all_in_steps()
    head = model.config.vision_config.hidden_size // model.config.vision_config.num_attention_heads
    checks = (*machine_checks([head], run.dtype), *model_checks(model, run.arrays))
    # Neither packed nor evaluated.
    plain = SmolVLM(model.config, tied="lm_head" not in model.language_model)
    parameters = sum(array.size for array in plain.named_parameters().values())
    return Result(machine, tuple(phases), run.kernels, checks, parameters, weights, run.peak_memory)


bench = at_once(bench_in_steps)


class Run:
    """The phases of one model. `arrays` are dtypes of what was computed; `kernels` and
    `peak_memory` come with the phases."""

    def __init__(self, model: SmolVLM, settings: ImageSettings, plan: Plan):
        self.model, self.settings, self.plan, self.config = model, settings, plan, model.config
        self.dtype: mx.Dtype = model.language_model.norm.weight.dtype
        nbytes = {name: array.nbytes for name, array in model.named_parameters().items()}
        self.sizes = Sizes.of(self.config, nbytes, self.dtype.size)
        self.arrays: dict[str, mx.Dtype] = {}
        self.kernels: Counter[str] = Counter()
        self.peak_memory = 0
        self._random = np.random.default_rng(0)

    def all_in_steps(self) -> Generator[Reading, None, list[Phase]]:
        runs = self.plan.runs
        yield Reading(0, runs, "preprocess")
        preprocess, tiled = self.preprocess()
        yield Reading(0, runs, "vision")
        phases = [preprocess, self.vision()]
        self.kernels = self.count_step()
        texts: list[tuple[Phase, Phase]] = []
        room = self.config.text_config.max_position_embeddings - self.plan.decoded - 1
        for context in sorted({min(context, room) for context in self.plan.contexts}):
            yield Reading(0, runs, f"prefill and decode, {context} tokens")
            texts.append(self.text(context))
        yield Reading(0, runs, "turns about a picture")
        phases += [*(prefill for prefill, _ in texts), *(decode for _, decode in texts)]
        return phases + self.turns(tiled)

    def preprocess(self) -> tuple[Phase, TiledImage]:
        """A JPEG's bytes -> tiles."""
        data = random_picture(PICTURE, self._random)
        seconds, found = self._repeat(lambda: make_tiles(load_image(data), self.settings))
        if not self.plan.split:
            one_tile = replace(self.settings, split=False, longest_edge=self.settings.tile_size)
            found.append(make_tiles(load_image(data), one_tile))
        return Phase("preprocess", seconds, 1, "pictures"), found[-1]

    def vision(self) -> Phase:
        """As many tiles as are encoded at once here."""
        count, side = tiles_at_once(self.model), self.settings.tile_size
        tiles = self._random.integers(0, 256, (count, side, side, 3), np.uint8)
        digests = digest_tiles(tiles)
        seconds, found = self._repeat(
            lambda: encode_tiles(self.model, tiles, self.settings, digests=digests)
        )
        assert found[-1] is not None
        self.arrays["image tokens"] = found[-1].dtype
        return Phase(
            f"vision, {_tiles(count)}",
            seconds,
            count,
            "tiles",
            vision(self.config, self.sizes, count),
        )

    def count_step(self) -> Counter[str]:
        """The kernels of one decode step and of its choice, greedy."""
        language = self.model.language_model
        cache = language.make_cache(64)
        mx.eval(
            language.hidden_states(mx.array(self._ids(16))[None], cache),
            [layer.state for layer in cache],
        )
        logits = language.logits(language.hidden_states(mx.array([[1]]), cache)[:, -1])
        kernels = count_kernels(
            mx.argmax(logits, axis=-1), mx.isfinite(logits.astype(mx.float32).sum())
        )
        self.arrays["logits"], self.arrays["keys"] = logits.dtype, cache[0].state[0].dtype
        return kernels

    def text(self, context: int) -> tuple[Phase, Phase]:
        """Prefill of a prompt, and a token after it, on average."""
        steps, launches = self.plan.decoded, self.kernels.total()
        inputs = Inputs(self._ids(context), (), self.settings)
        _, found = self._repeat(lambda: self._answer(inputs, steps + 1)[0])
        prefill = tuple(answer.prefill_seconds for answer in found)
        decode = tuple(answer.decode_seconds / steps for answer in found)
        whole = decoder(self.config, self.sizes, context, kernels=launches)
        step = decoder(self.config, self.sizes, 1, context + steps // 2, launches)
        return (
            Phase(f"prefill, {context} tokens", prefill, context, "tokens", whole),
            Phase(f"decode, {context} tokens", decode, 1, "tokens", step),
        )

    def turns(self, picture: TiledImage) -> list[Phase]:
        """To the first token of an answer about a picture, and to that of the next, with what the
        first left."""
        tiles = len(picture.tiles)
        placeholders = np.full(self.config.tokens_per_tile, self.config.image_token_id, np.int32)
        parts = [part for _ in range(tiles) for part in (self._ids(TILE_TEXT), placeholders)]
        prompt = np.concatenate([*parts, self._ids(QUESTION)])

        def both() -> tuple[Statistics, Statistics]:
            reader = PromptReader(self.model)
            mx.reset_peak_memory()
            # One that does not know its digests yet.
            pictures = (TiledImage(picture.tiles, picture.layout),)
            first, ids = self._answer(Inputs(prompt, pictures, self.settings), ANSWER, reader)
            self.peak_memory = max(self.peak_memory, device.peak_memory())
            said = np.array([id for id in ids if id != self.config.image_token_id], np.int32)
            longer = np.concatenate([prompt, said, self._ids(QUESTION)])
            return first, self._answer(Inputs(longer, pictures, self.settings), 1, reader)[0]

        _, pairs = self._repeat(both)
        firsts, seconds = (
            tuple(turn.first_token_seconds for turn in turns) for turns in zip(*pairs, strict=True)
        )
        _, last = pairs[-1]
        launches = self.kernels.total()
        reused = last.reused_tokens
        new = last.prompt_tokens - last.reused_tokens
        work = vision(self.config, self.sizes, tiles) + decoder(
            self.config, self.sizes, len(prompt), 0, launches
        )
        again = decoder(self.config, self.sizes, new, reused, launches)
        return [
            Phase(f"first turn, {_tiles(tiles)}", firsts, len(prompt), "tokens", work),
            Phase("second turn", seconds, new, "tokens", again),
        ]

    def _answer(
        self, inputs: Inputs, tokens: int, reader: PromptReader | None = None
    ) -> tuple[Statistics, list[int]]:
        row = Row(Options(max_tokens=tokens))
        deque((reader or PromptReader(self.model)).answer(inputs, row), 0)
        return row.statistics, row.token_ids

    def _ids(self, count: int) -> NDArray[np.int32]:
        """Tokens that are no placeholders."""
        ids = self._random.integers(0, self.config.text_config.vocab_size - 1, count, np.int32)
        return ids + (ids >= self.config.image_token_id)

    def _repeat(self, call: Callable[[], T]) -> tuple[Timed, list[T]]:
        """Seconds and results of each run; one before them is not counted."""
        call()
        pairs = [_timed(call) for _ in range(self.plan.runs)]
        return tuple(seconds for seconds, _ in pairs), [result for _, result in pairs]


def _tiles(count: int) -> str:
    return "a tile" if count == 1 else f"{count} tiles"


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result
