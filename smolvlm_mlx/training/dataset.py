"""Rows -> checked conversations -> the batches of every step.

All rows are tried once, so that bad ones are known before training begins, and only their lengths are kept: pictures are
read again when their batch comes. Batches are padded on the right, and each is a pure function of its step, so that a run can go
on anywhere.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.rows import Row
from ..data.samples import make_sample
from ..errors import PromptError, SmolVLMError
from ..events import Reading, at_once
from ..inputs.messages import parse_messages
from ..inputs.processor import Processor
from ..inputs.settings import ImageOptions, ImageSettings


@dataclass(frozen=True)
class Example:
    """One conversation: T tokens, which of them are learned, and the tiles of its pictures."""

    input_ids: NDArray[np.int32]  # (T,)
    loss_mask: NDArray[np.bool_]  # (T,)
    tiles: NDArray[np.uint8]  # (N, H, W, 3)
    settings: ImageSettings


@dataclass(frozen=True)
class Batch:
    """B examples side by side, padded on the right to T tokens; causal attention needs no mask for that."""

    input_ids: NDArray[np.int32]  # (B, T)
    loss_mask: NDArray[np.bool_]  # (B, T)
    tiles: NDArray[np.uint8]  # (N, H, W, 3)
    settings: ImageSettings

    @property
    def tokens(self) -> int:
        """Tokens whose prediction is learned; the first has nothing before it."""
        return int(self.loss_mask[:, 1:].sum())


Batches = Callable[[int], Sequence[Batch]]  # the batches whose gradients make one step, from its number on


def make_example(processor: Processor, messages: Sequence[Any], image_options: ImageOptions | None = None) -> Example:
    """Tokens, tiles and targets of one conversation; `image_options` say how its pictures are cut.

    Raises:
        PromptError: it has no answer of an assistant to learn, or cannot be made into a prompt.
        ImageError, FetchError: a picture cannot be used.
    """
    parsed = parse_messages(messages)
    inputs = processor(parsed, image_options, add_generation_prompt=False)
    loss_mask = processor.loss_mask(parsed, inputs)
    if not loss_mask[1:].any():
        raise PromptError("no assistant's message to learn")
    return Example(inputs.input_ids, loss_mask, inputs.tiles, inputs.settings)


def _example(processor: Processor, row: Row) -> Example:
    sample = make_sample(row)
    return make_example(processor, sample.whole, sample.image_options)


def collate(examples: Sequence[Example]) -> Batch:
    """Side by side; tiles one example's after another's, as their placeholders."""
    T = max(len(example.input_ids) for example in examples)
    input_ids = np.zeros((len(examples), T), np.int32)
    loss_mask = np.zeros((len(examples), T), np.bool_)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = example.input_ids
        loss_mask[row, : len(example.loss_mask)] = example.loss_mask
    tiles = np.concatenate([example.tiles for example in examples])
    return Batch(input_ids, loss_mask, tiles, examples[0].settings)


SORTED_TOGETHER = 32  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class SkippedRow:
    """A row that is left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Usable rows with their lengths in tokens and tiles; `skipped` are the others."""

    processor: Processor
    rows: tuple[Row, ...]
    tokens: tuple[int, ...]
    tiles: tuple[int, ...]
    skipped: tuple[SkippedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, accumulate: int, seed: int) -> Callable[[int], list[Batch]]:
        """The batches of a step: `accumulate` of `size` examples of like lengths, in an order of their own each epoch."""
        per_epoch = self.steps(size, accumulate)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> list[list[int]]:
            rng = np.random.default_rng((seed, epoch))
            shuffled = rng.permutation(len(self)).tolist()
            found = []
            for start in range(0, len(shuffled), size * SORTED_TOGETHER):
                pool = sorted(shuffled[start : start + size * SORTED_TOGETHER], key=self.tokens.__getitem__)
                found += [pool[first : first + size] for first in range(0, len(pool), size)]
            return [found[index] for index in rng.permutation(len(found))]

        def batches(step: int) -> list[Batch]:
            epoch, position = divmod(step, per_epoch)
            return self._collate(order(epoch)[position * accumulate : (position + 1) * accumulate])

        return batches

    def steps(self, size: int, accumulate: int) -> int:
        """Steps of an epoch; the last may have fewer batches than `accumulate`, the last batch fewer rows than `size`."""
        return -(-len(self) // (size * accumulate))

    def all(self, size: int) -> Iterator[Batch]:
        """Every row once, for validation; a batch is made when it is asked for."""
        rows = sorted(range(len(self)), key=self.tokens.__getitem__)
        for start in range(0, len(rows), size):
            yield from self._collate([rows[start : start + size]])

    def split(self, count: int, seed: int) -> tuple["Dataset", "Dataset"]:
        """All but `count` rows, and those, chosen by the seed."""
        chosen = set(np.random.default_rng((seed, 2**31)).permutation(len(self))[:count].tolist())
        rest = self._part([row for row in range(len(self)) if row not in chosen])
        return replace(rest, skipped=self.skipped), self._part(sorted(chosen))

    def _part(self, rows: Sequence[int]) -> "Dataset":
        def pick(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values[row] for row in rows)

        return Dataset(self.processor, tuple(self.rows[row] for row in rows), pick(self.tokens), pick(self.tiles))

    def _collate(self, batches: Sequence[Sequence[int]]) -> list[Batch]:
        return [collate([_example(self.processor, self.rows[row]) for row in rows]) for rows in batches]


def check_in_steps(processor: Processor, rows: Sequence[Row], max_tokens: int) -> Generator[Reading, None, Dataset]:
    """Try every row."""

    def tried(row: Row) -> tuple[int, int] | SkippedRow:
        try:
            example = _example(processor, row)
        except SmolVLMError as error:
            return SkippedRow(row.where, str(error))
        if len(example.input_ids) > max_tokens:
            return SkippedRow(row.where, f"{len(example.input_ids)} tokens, more than {max_tokens}")
        return len(example.input_ids), len(example.tiles)

    good, tokens, tiles, skipped = [], [], [], []
    with ThreadPoolExecutor(2) as pool:
        for done, (row, result) in enumerate(zip(rows, pool.map(tried, rows), strict=True), 1):
            if isinstance(result, SkippedRow):
                skipped.append(result)
            else:
                good.append(row)
                tokens.append(result[0])
                tiles.append(result[1])
            yield Reading(done, len(rows), "rows")
    return Dataset(processor, tuple(good), tuple(tokens), tuple(tiles), tuple(skipped))


check = at_once(check_in_steps)
