"""Examples -> batches: padded on the right, and each a pure function of its step, so that a run can go on anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PromptError
from ..inputs.processor import Processor
from ..inputs.tiles import ImageSettings


@dataclass(frozen=True)
class Example:
    """One conversation: T tokens, which of them are learned, and the tiles of its pictures."""

    input_ids: NDArray[np.int32]  # (T,)
    is_answer: NDArray[np.bool_]  # (T,)
    tiles: NDArray[np.uint8]  # (N, H, W, 3)
    settings: ImageSettings


@dataclass(frozen=True)
class Batch:
    """B examples side by side, padded on the right to T tokens; causal attention needs no mask for that."""

    input_ids: NDArray[np.int32]  # (B, T)
    is_answer: NDArray[np.bool_]  # (B, T)
    tiles: NDArray[np.uint8]  # (N, H, W, 3)
    settings: ImageSettings

    @property
    def tokens(self) -> int:
        """Tokens whose prediction is learned; the first has nothing before it."""
        return int(self.is_answer[:, 1:].sum())


Batches = Callable[[int], Sequence[Batch]]  # the batches whose gradients make one step, from its number on


def make_example(processor: Processor, messages: Sequence[Any], **options: Any) -> Example:
    """Tokens, tiles and targets of one conversation; `options` are those of a processor's call.

    Raises:
        PromptError: it has no answer of an assistant to learn, or cannot be made into a prompt.
        ImageError, FetchError: a picture cannot be used.
    """
    inputs = processor(messages, add_generation_prompt=False, **options)
    is_answer = processor.answers(messages, inputs)
    if not is_answer[1:].any():
        raise PromptError("no assistant's message to learn")
    return Example(inputs.input_ids, is_answer, inputs.tiles, inputs.settings)


def collate(examples: Sequence[Example]) -> Batch:
    """Side by side; tiles one example's after another's, as their placeholders."""
    T = max(len(example.input_ids) for example in examples)
    input_ids = np.zeros((len(examples), T), np.int32)
    is_answer = np.zeros((len(examples), T), np.bool_)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = example.input_ids
        is_answer[row, : len(example.is_answer)] = example.is_answer
    tiles = np.concatenate([example.tiles for example in examples])
    return Batch(input_ids, is_answer, tiles, examples[0].settings)
