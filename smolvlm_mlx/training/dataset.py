"""Rows -> checked conversations -> the batches of every step.

All rows are tried once, so that bad ones are known before training begins, and only their lengths
are kept: pictures are read again when their batch comes. Batches are padded on the right, and each
is a pure function of its step, so that a run can go on anywhere.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.rows import Row, rows_fingerprint
from ..data.samples import Sample, make_sample
from ..errors import PromptError, SmolVLMError
from ..events import Reading, at_once
from ..inputs.messages import parse_messages
from ..inputs.processor import Processor
from ..inputs.settings import ImageOptions, ImageSettings


@dataclass(frozen=True)
class Batch:
    """B examples side by side, padded on the right to T tokens; causal attention needs no mask for
    that."""

    input_ids: NDArray[np.int32]  # (B, T)
    loss_mask: NDArray[np.bool_]  # (B, T)
    tiles: NDArray[np.uint8]  # (N, H, W, 3)
    settings: ImageSettings

    @property
    def tokens(self) -> int:
        """Tokens whose prediction is learned; the first has nothing before it."""
        return int(self.loss_mask[:, 1:].sum())


# The batches whose gradients make one step, from its number on.
Batches = Callable[[int], Sequence[Batch]]


def make_example(
    processor: Processor, messages: Sequence[Any], image_options: ImageOptions | None = None
) -> Batch:
    """Tokens, tiles and targets of one conversation alone; `image_options` say how its pictures are
    cut.

    Raises:
        PromptError: it has no answer of an assistant to learn, or cannot be made into a prompt.
        ImageError, FetchError: a picture cannot be used.
    """
    parsed = parse_messages(messages)
    inputs = processor(parsed, image_options, add_generation_prompt=False)
    loss_mask = processor.loss_mask(parsed, inputs)
    if not loss_mask[1:].any():
        raise PromptError("no assistant's message to learn")
    return Batch(inputs.input_ids[None], loss_mask[None], inputs.tiles, inputs.settings)


def _example(processor: Processor, sample: Sample) -> Batch:
    return make_example(processor, sample.whole, sample.image_options)


def collate(examples: Sequence[Batch]) -> Batch:
    """Batches of one conversation side by side; tiles one example's after another's, as their
    placeholders."""
    shape = len(examples), max(example.input_ids.size for example in examples)
    input_ids, loss_mask = np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    for row, example in enumerate(examples):
        input_ids[row, : example.input_ids.size] = example.input_ids
        loss_mask[row, : example.loss_mask.size] = example.loss_mask
    tiles = np.concatenate([example.tiles for example in examples])
    return Batch(input_ids, loss_mask, tiles, examples[0].settings)


SORTED_TOGETHER = 32  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class UsableRow:
    """A row, how many tokens and tiles it becomes, and whether it has a picture or a video."""

    row: Row
    tokens: int
    tiles: int
    image: bool
    video: bool


@dataclass(frozen=True)
class SkippedRow:
    """A row that is left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Usable rows, and those that are not."""

    processor: Processor
    rows: tuple[UsableRow, ...]
    skipped: tuple[SkippedRow, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A name for what the rows say."""
        return rows_fingerprint([usable.row for usable in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, accumulate: int, seed: int) -> Callable[[int], list[Batch]]:
        """The batches of a step: `accumulate` of `size` examples of like lengths, in an order of
        their own each epoch."""
        per_epoch = self.steps(size, accumulate)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> list[list[UsableRow]]:
            rng = np.random.default_rng((seed, epoch))
            shuffled = [self.rows[index] for index in rng.permutation(len(self))]
            found = []
            for start in range(0, len(shuffled), size * SORTED_TOGETHER):
                pool = sorted(
                    shuffled[start : start + size * SORTED_TOGETHER], key=attrgetter("tokens")
                )
                found += [pool[first : first + size] for first in range(0, len(pool), size)]
            return [found[index] for index in rng.permutation(len(found))]

        def batches(step: int) -> list[Batch]:
            epoch, position = divmod(step, per_epoch)
            return [
                self._batch(rows)
                for rows in order(epoch)[position * accumulate : (position + 1) * accumulate]
            ]

        return batches

    def steps(self, size: int, accumulate: int) -> int:
        """Steps of an epoch; the last may have fewer batches than `accumulate`, the last batch
        fewer rows than `size`."""
        return -(-len(self) // (size * accumulate))

    def all(self, size: int) -> Iterator[Batch]:
        """Every row once, for validation; a batch is made when it is asked for."""
        rows = sorted(self.rows, key=attrgetter("tokens"))
        return (self._batch(rows[start : start + size]) for start in range(0, len(rows), size))

    def split(self, count: int, seed: int) -> tuple["Dataset", "Dataset"]:
        """All but `count` rows, and those, chosen by the seed."""
        chosen = set(np.random.default_rng((seed, 2**31)).permutation(len(self))[:count].tolist())
        rest = tuple(row for number, row in enumerate(self.rows) if number not in chosen)
        return replace(self, rows=rest), Dataset(
            self.processor, tuple(self.rows[number] for number in sorted(chosen))
        )

    def _batch(self, rows: Sequence[UsableRow]) -> Batch:
        return collate([_example(self.processor, make_sample(usable.row)) for usable in rows])


def check_in_steps(
    processor: Processor, rows: Sequence[Row], max_tokens: int
) -> Generator[Reading, None, Dataset]:
    """Try every row."""

    def tried(row: Row) -> UsableRow | SkippedRow:
        try:
            sample = make_sample(row)
            example = _example(processor, sample)
        except SmolVLMError as error:
            return SkippedRow(row.where, str(error))
        tokens = example.input_ids.size
        if tokens > max_tokens:
            return SkippedRow(row.where, f"{tokens} tokens, more than {max_tokens}")
        shown = sample.shows("image"), sample.shows("video")
        return UsableRow(row, tokens, len(example.tiles), *shown)

    results = []
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(tried, rows):
            results.append(result)
            yield Reading(len(results), len(rows), "rows")
    usable = tuple(result for result in results if isinstance(result, UsableRow))
    return Dataset(
        processor, usable, tuple(result for result in results if isinstance(result, SkippedRow))
    )


check = at_once(check_in_steps)
