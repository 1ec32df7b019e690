"""Conversations with their answers as token ids: those that a source gives to built-in prompts, or
those of rows of data; and what a model predicts along them."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..data.samples import Sample
from ..errors import CheckpointError
from ..events import Reading, at_once
from ..generation.decoding import Decoder, Row
from ..generation.failures import computing
from ..generation.image_cache import ImageCache, encode_tiles
from ..generation.options import Options
from ..generation.prefill import make_cache, prefill
from ..inputs.messages import parse_messages
from ..inputs.processor import Inputs, Processor
from ..model import SmolVLM
from .divergence import Predictions
from .prompts import Kind, Prompt

TOGETHER = 8  # answers that are made side by side
MAX_TOKENS = 48  # of an answer


@dataclass(frozen=True)
class Example:
    """A conversation of T tokens. What is predicted counts after each token that is no image
    placeholder, but after the last.

    Attributes:
        prompt: a processor's inputs of it, up to the answer or with it; tiles are not kept.
        prompt_ids: those of `prompt`.
        input_ids: of the whole conversation (T,).
        is_answer: which tokens are the answer's (T,).
    """

    kind: Kind
    prompt: Callable[[Processor], Inputs]
    prompt_ids: NDArray[np.int32]
    input_ids: NDArray[np.int32]
    is_answer: NDArray[np.bool_]

    def positions(self, image_token_id: int) -> NDArray[np.int64]:
        """The tokens after which predictions count."""
        return np.flatnonzero(self.input_ids[:-1] != image_token_id)


def answer_in_steps(
    model: SmolVLM,
    processor: Processor,
    prompts: Sequence[Prompt],
    max_tokens: int = MAX_TOKENS,
    cache: ImageCache | None = None,
) -> Generator[Reading, None, list[Example]]:
    """The model's own greedy answers, several side by side; an end of utterance is part of one.

    Args:
        cache: of the model's image tokens.

    Raises:
        GenerationError: its logits are not finite, or a prompt is longer than its context.
    """
    found: list[Example] = []
    options = Options(max_tokens=max_tokens)
    for start in range(0, len(prompts), TOGETHER):
        yield Reading(start, len(prompts), "answers")
        part = prompts[start : start + TOGETHER]
        inputs = [processor(each.messages, each.image_options) for each in part]
        with computing():
            answers = _answers(model, processor, inputs, options, cache)
        for prompt, each, answer in zip(part, inputs, answers, strict=True):
            ids = np.concatenate([each.input_ids, np.array(answer, np.int32)])
            is_answer = np.arange(len(ids)) >= len(each.input_ids)
            found.append(Example(prompt.kind, _maker(prompt), each.input_ids, ids, is_answer))
    yield Reading(len(prompts), len(prompts), "answers")
    return found


answer = at_once(answer_in_steps)


def _maker(prompt: Prompt) -> Callable[[Processor], Inputs]:
    return lambda processor: processor(prompt.messages, prompt.image_options)


def _answers(
    model: SmolVLM,
    processor: Processor,
    inputs: Sequence[Inputs],
    options: Options,
    cache: ImageCache | None,
) -> list[list[int]]:
    """Token ids of each answer."""
    decoder, rows = Decoder(model), list[Row]()
    context = model.config.text_config.max_position_embeddings
    for each in inputs:
        row = Row(options, processor.tokenizer)
        row.begin(each.input_ids.tolist(), context - len(each.input_ids))
        kv_cache = make_cache(model, len(each.input_ids) + row.max_new_tokens)
        ids, tokens = mx.array(each.input_ids)[None], image_tokens(model, each, cache)
        decoder.add([row], kv_cache, prefill(model, ids, tokens, kv_cache))
        rows.append(row)
    while not all(row.over for row in rows):
        for row, _ in decoder.step():
            if row.error is not None:
                raise row.error
    return [row.token_ids for row in rows]


def read_sample(processor: Processor, sample: Sample) -> Example:
    """A row's conversation with the answer that it has.

    Raises:
        SmolVLMError: it cannot be made into a prompt, or a picture of it cannot be used.
    """

    def prompt(processor: Processor) -> Inputs:
        parsed = parse_messages(sample.whole)
        return processor(parsed, sample.image_options, add_generation_prompt=False)

    inputs = prompt(processor)
    is_answer = processor.loss_mask(parse_messages(sample.whole), inputs)
    return Example(_kind(sample), prompt, inputs.input_ids, inputs.input_ids, is_answer)


def _kind(sample: Sample) -> Kind:
    if sample.shows("video"):
        return "video"
    pictures = sum(
        part.get("type") == "image"
        for message in sample.messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )
    return "text" if not pictures else "picture" if pictures == 1 else "pictures"


# ---- what a model predicts


def image_tokens(
    model: SmolVLM, inputs: Inputs, cache: ImageCache | None = None
) -> mx.array | None:
    """Image tokens (N, S, Dt) of all tiles; None for none."""
    return encode_tiles(model, inputs.tiles, inputs.settings, cache, inputs.tile_digests)


def predict_in_steps(
    model: SmolVLM,
    processor: Processor,
    examples: Sequence[Example],
    cache: ImageCache | None = None,
) -> Generator[Reading, None, list[Predictions]]:
    """What a model predicts wherever predictions of examples count.

    Raises:
        CheckpointError: its processor makes other prompts.
    """
    found = []
    for number, example in enumerate(examples):
        yield Reading(number, len(examples), "conversations")
        inputs = example.prompt(processor)
        if inputs.input_ids.tolist() != example.prompt_ids.tolist():
            raise CheckpointError("not the same model: their prompts differ")
        rows = mx.array(example.positions(model.config.image_token_id))
        # Of an answer, <image> is a token like any other.
        prompt, rest = (
            mx.array(ids)[None] for ids in np.split(example.input_ids, [len(inputs.input_ids)])
        )
        with computing():
            merged = model.merge(prompt, image_tokens(model, inputs, cache))
            embeddings = mx.concatenate([merged, model.language_model.embed(rest)], axis=1)
            hidden = model.language_model.hidden_states(None, input_embeddings=embeddings)
            hidden = hidden[0][rows]
            mx.eval(hidden)
        found.append(Predictions(hidden, model.language_model.logits))
    yield Reading(len(examples), len(examples), "conversations")
    return found


predict = at_once(predict_in_steps)


def keep_head(model: SmolVLM) -> None:
    """Give back the memory of all but norm and head, which `Predictions` need; the model can do
    nothing else from now on."""
    model.release_vision()
    model.language_model.layers = []
    mx.clear_cache()
