"""Rows -> checked conversations -> the batches of every step.

All rows are tried once, so that bad ones are known before training begins, and only their lengths are kept: pictures are
read again when their batch comes. The order of an epoch follows from the seed alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from ..data.rows import Row
from ..data.samples import make_sample
from ..errors import SmolVLMError
from ..inputs.processor import Processor
from .batches import Batch, Example, collate, make_example

SORTED_TOGETHER = 32  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class Bad:
    """A row that is left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Usable rows with their lengths in tokens and tiles; `bad` are the others."""

    processor: Processor
    rows: tuple[Row, ...]
    tokens: tuple[int, ...]
    tiles: tuple[int, ...]
    bad: tuple[Bad, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, accumulate: int, seed: int) -> Callable[[int], list[Batch]]:
        """The batches of a step: `accumulate` of `size` examples of like lengths, in an order of their own each epoch."""
        per_epoch = self.steps(size, accumulate)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> list[list[int]]:
            return self._order(size, np.random.default_rng((seed, epoch)))

        def batches(step: int) -> list[Batch]:
            epoch, position = divmod(step, per_epoch)
            return self._collate(order(epoch)[position * accumulate : (position + 1) * accumulate])

        return batches

    def steps(self, size: int, accumulate: int) -> int:
        """Steps of an epoch; the last may have fewer batches than `accumulate`, the last batch fewer rows than `size`."""
        return -(-len(self) // (size * accumulate))

    def all(self, size: int) -> Iterator[Batch]:
        """Every row once, for validation; a batch is made when it is asked for."""
        rows = sorted(range(len(self)), key=lambda row: self.tokens[row])
        for start in range(0, len(rows), size):
            yield from self._collate([rows[start : start + size]])

    def split(self, count: int, seed: int) -> tuple["Dataset", "Dataset"]:
        """All but `count` rows, and those, chosen by the seed."""
        chosen = set(np.random.default_rng((seed, 2**31)).permutation(len(self))[:count].tolist())
        rest = self._part([row for row in range(len(self)) if row not in chosen])
        return replace(rest, bad=self.bad), self._part(sorted(chosen))

    def _part(self, rows: Sequence[int]) -> "Dataset":
        def pick(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values[row] for row in rows)

        return Dataset(self.processor, tuple(self.rows[row] for row in rows), pick(self.tokens), pick(self.tiles))

    def _order(self, size: int, rng: np.random.Generator) -> list[list[int]]:
        shuffled = rng.permutation(len(self)).tolist()
        batches = []
        for start in range(0, len(shuffled), size * SORTED_TOGETHER):
            pool = sorted(shuffled[start : start + size * SORTED_TOGETHER], key=lambda row: self.tokens[row])
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        return [batches[index] for index in rng.permutation(len(batches))]

    def _collate(self, batches: Sequence[Sequence[int]]) -> list[Batch]:
        return [collate([self._example(row) for row in rows]) for rows in batches]

    def _example(self, row: int) -> Example:
        sample = make_sample(self.rows[row])
        return make_example(self.processor, sample.whole, **sample.options)


def check(
    processor: Processor, rows: Sequence[Row], max_tokens: int, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Try every row; `progress` is called with rows done and rows in all."""

    def tried(row: Row) -> tuple[int, int] | Bad:
        try:
            sample = make_sample(row)
            if not sample.answers[0].strip():
                return Bad(row.where, "an empty answer")
            example = make_example(processor, sample.whole, **sample.options)
        except SmolVLMError as error:
            return Bad(row.where, str(error))
        if len(example.input_ids) > max_tokens:
            return Bad(row.where, f"{len(example.input_ids)} tokens, more than {max_tokens}")
        return len(example.input_ids), len(example.tiles)

    good, lengths, bad = [], [], []
    with ThreadPoolExecutor(2) as pool:
        for done, (row, result) in enumerate(zip(rows, pool.map(tried, rows), strict=True), 1):
            if isinstance(result, Bad):
                bad.append(result)
            else:
                good.append(row)
                lengths.append(result)
            if progress is not None:
                progress(done, len(rows))
    tokens, tiles = zip(*lengths, strict=True) if lengths else ((), ())
    return Dataset(processor, tuple(good), tokens, tiles, tuple(bad))
