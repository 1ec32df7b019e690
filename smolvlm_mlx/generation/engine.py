"""A model with its processor, and what its answers leave for the next ones: messages -> events, or
text.

Knows nothing of terminals, servers or conversations that go on (`tasks.chat`).
"""

import time
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import mlx.core as mx
import numpy as np

from ..errors import GenerationError
from ..events import Event, FinishReason, Reading, Statistics, Work
from ..inputs.messages import Messages, listed, user_message, with_media
from ..inputs.processor import Inputs, Processor
from ..inputs.settings import ImageOptions
from ..model import SmolVLM
from .decoding import Decoder, Row
from .failures import computing
from .image_cache import ImageCache, encode_tiles, tiles_at_once
from .keywords import Keywords, changed, takes_options
from .memory import Memory, token_bytes
from .options import Options
from .prefill import PromptReader, make_cache, prefill
from .prefix_cache import PrefixCache
from .stream import Stream, TextStream

if TYPE_CHECKING:
    from .structured import Grammars

Schema = Mapping[str, object]  # a JSON schema of an answer; {} is any object


class Engine:
    """Answers messages with one model, one after another (`stream`), or prompts of one length
    together (`batch`).

    Args:
        cache_folder: image tokens are kept there too, for other processes and later days.
        conversations: how many are remembered, so that each may go on where it was.
        image_cache_bytes: most memory for image tokens; else as `memory` says.

    Attributes:
        weight_bytes: of the model's weights.
        memory: how what this process may take (`load`) is shared out.
        token_bytes: of keys and values of a token.

    Raises:
        GenerationError: these are no model and no processor, or the other way round.
    """

    def __init__(
        self,
        model: SmolVLM,
        processor: Processor,
        *,
        cache_folder: Path | None = None,
        conversations: int = 1,
        image_cache_bytes: int | None = None,
    ):
        if not (isinstance(model, SmolVLM) and isinstance(processor, Processor)):
            raise GenerationError(
                f"a {type(model).__name__} is given as model and a {type(processor).__name__} as "
                "processor; give both as load(...) returns them, in this order"
            )
        self.model, self.processor = model, processor
        weights = sum(array.nbytes for array in model.named_parameters().values())
        width = model.language_model.norm.weight.dtype.size
        self.weight_bytes, self.memory = weights, Memory.share(model.config, weights, width)
        self.token_bytes = token_bytes(model.config, width)
        if image_cache_bytes is None:
            image_cache_bytes = self.memory.image_tokens
        image_cache = ImageCache(model, cache_folder, image_cache_bytes)
        kept = PrefixCache(conversations, self.memory.conversations)
        self.prompts = PromptReader(model, image_cache, kept)

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether there is memory to make answers side by side that have so many tokens each,
        prompt included. A batch is as wide as its longest; one alone is always made."""
        needed = 2 * len(lengths) * max(lengths) * self.token_bytes  # a batch that grows is copied
        return len(lengths) == 1 or needed <= self.memory.answers

    @takes_options
    def stream(
        self,
        messages: Messages | str | Inputs,
        options: Options | None = None,
        *,
        images: object = (),
        videos: object = (),
        image_options: ImageOptions | None = None,
        schema: Schema | None = None,
        reserve_tokens: int = 1,
        keep_vision: bool = True,
        **keywords: Unpack[Keywords],
    ) -> Stream:
        """Answer a conversation, event by event: `Reading`, a `Text` for each token, `End`.

        Args:
            messages: a question, a conversation (see `inputs.messages`), or a processor's inputs.
            options: how the answer is generated.
            images, videos: one or several (paths, URLs, bytes, open files; PIL pictures, arrays;
                lists of frames): before the question, or in order in the conversation's parts
                {"type": "image"} and {"type": "video"}.
            image_options: how pictures are cut, where it is not as the checkpoint says.
            schema: the answer is JSON that fits it.
            reserve_tokens: that there must be room for after the prompt.
            keep_vision: off, the vision tower is let go once the pictures are encoded.

        Raises:
            SmolVLMError: input or options cannot be used. At once, but for frames of a video after
                the first; GenerationError on bad logits, in the iteration.
            TypeError: there is no such keyword.
        """
        options, image_options = changed(options, image_options, keywords)
        given = _with_media(messages, images, videos, image_options)
        row = self.row(options, schema)

        def events() -> Generator[Event]:
            inputs = yield from self._prepare(given, image_options, row.statistics)
            yield from self.prompts.answer(inputs, row, reserve_tokens, keep_vision)

        return Stream(events(), row)

    def _prepare(
        self,
        messages: Messages | Inputs,
        image_options: ImageOptions,
        statistics: Statistics,
    ) -> Generator[Reading, None, Inputs]:
        """Make inputs, if they are not; a video's frames are encoded while the next are decoded."""
        if isinstance(messages, Inputs):
            return messages
        started, settings = time.perf_counter(), self.processor.settings
        preparing = Work(self.processor.prepare(messages, image_options))
        waiting, encoded = [], 0
        for frame, total in preparing:
            waiting.append(frame.tiles)
            if len(waiting) == tiles_at_once(self.model):  # what does not fill a chunk is left
                yield Reading(encoded, total, "frames")
                before, encoded = time.perf_counter(), encoded + len(waiting)
                with computing():
                    encode_tiles(
                        self.model,
                        np.concatenate(waiting),
                        settings,
                        self.prompts.image_cache,
                        computed=statistics.encoded_tiles,
                    )
                waiting.clear()
                statistics.vision_seconds += time.perf_counter() - before
        statistics.preprocess_seconds = time.perf_counter() - started - statistics.vision_seconds
        return preparing.result

    def batch(
        self,
        batch: Sequence[Inputs],
        options: Options | None = None,
        *,
        schema: Schema | None = None,
    ) -> list[tuple[str, FinishReason]]:
        """The answer to each of several prompts, and how it ended.

        For many pictures with one question, whose prompts have one length T and differ in tiles
        only. The same model calls as in `stream`, without padding: an answer is that of it alone.

        Raises:
            GenerationError: prompts of several lengths or longer than the context, or logits that
                are not finite; EngineError, MLX's own.
        """
        context = self.model.config.text_config.max_position_embeddings
        lengths = {len(each.input_ids) for each in batch}
        if len(lengths) != 1 or max(lengths) >= context:
            raise GenerationError(
                f"prompts of {sorted(lengths)} tokens; a batch has one length, below {context}"
            )
        rows = [self.row(changed(options, None, {})[0], schema) for _ in batch]
        for row, inputs in zip(rows, batch, strict=True):
            row.begin(inputs.input_ids.tolist(), context - max(lengths))
        capacity = max(lengths) + rows[0].max_new_tokens
        cache = make_cache(self.model, capacity, rows[0].options.kv_bits)
        decoder, texts = Decoder(self.model), dict.fromkeys(rows, "")
        digests = [digest for inputs in batch for digest in inputs.tile_digests]
        tiles = np.concatenate([inputs.tiles for inputs in batch])
        with computing():
            image_tokens = encode_tiles(self.model, tiles, batch[0].settings, digests=digests)
            ids = mx.array(np.stack([inputs.input_ids for inputs in batch]))
            decoder.add(rows, cache, prefill(self.model, ids, image_tokens, cache))
            while not all(row.over for row in rows):
                for row, piece in decoder.step():
                    if row.error is not None:
                        raise row.error
                    texts[row] += piece
        return [(texts[row], row.statistics.finish_reason) for row in rows]

    def row(
        self, options: Options, schema: Schema | None = None, statistics: Statistics | None = None
    ) -> Row:
        """An answer that has not begun.

        Raises:
            GenerationError: the schema cannot be used, or not in `max_tokens`.
        """
        constraint = None if schema is None else self._grammars.json(schema, options.max_tokens)
        return Row(options, self.processor.tokenizer, constraint, statistics)

    def check_schema(self, schema: Schema, max_tokens: int) -> None:
        """Check a schema, from any thread, before work is done for its answer.

        Raises:
            GenerationError: it cannot be used, or nothing that fits it has so few tokens.
        """
        self._grammars.check(schema, max_tokens)

    @cached_property
    def _grammars(self) -> "Grammars":
        from .structured import Grammars  # which few answers need

        return Grammars(self.processor.tokenizer, self.model.config.text_config.vocab_size)


@takes_options
def stream_generate(
    model: SmolVLM,
    processor: Processor,
    messages: Messages | str | Inputs,
    options: Options | None = None,
    *,
    images: object = (),
    videos: object = (),
    image_options: ImageOptions | None = None,
    keep_vision: bool = True,
    **keywords: Unpack[Keywords],
) -> TextStream:
    """Answer a question or a conversation piece by piece: iterate over the result.

    Args:
        model, processor: of `load`.
        messages: a question, a conversation (see `inputs.messages`), or a processor's inputs.
        options: how the answer is generated.
        images, videos: one or several (paths, URLs, bytes, open files; PIL pictures, arrays; lists
            of frames): before the question, or in order in the conversation's parts
            {"type": "image"} and {"type": "video"}.
        image_options: how pictures are cut, where it is not as the checkpoint says.
        keep_vision: off, the vision tower's memory is given back once the pictures are encoded; the
            model is then for text.

    Raises:
        SmolVLMError: input or options cannot be used.
        TypeError: there is no such keyword.
    """
    stream = Engine(model, processor).stream(
        messages,
        options,
        images=images,
        videos=videos,
        image_options=image_options,
        keep_vision=keep_vision,
        **keywords,
    )
    return TextStream(stream)


@takes_options
def generate(
    model: SmolVLM,
    processor: Processor,
    messages: Messages | str | Inputs,
    options: Options | None = None,
    *,
    images: object = (),
    videos: object = (),
    image_options: ImageOptions | None = None,
    **keywords: Unpack[Keywords],
) -> str:
    """Return the whole answer to a question or a conversation.

    Args:
        model, processor: of `load`.
        messages: a question, a conversation (see `inputs.messages`), or a processor's inputs.
        options: how the answer is generated.
        images, videos: one or several (paths, URLs, bytes, open files; PIL pictures, arrays; lists
            of frames): before the question, or in order in the conversation's parts
            {"type": "image"} and {"type": "video"}.
        image_options: how pictures are cut, where it is not as the checkpoint says.

    Raises:
        SmolVLMError: input or options cannot be used.
        TypeError: there is no such keyword.
    """
    return "".join(
        stream_generate(
            model,
            processor,
            messages,
            options,
            images=images,
            videos=videos,
            image_options=image_options,
            **keywords,
        )
    )


def _with_media(
    messages: Messages | str | Inputs, images: object, videos: object, image_options: ImageOptions
) -> Messages | Inputs:
    """The question or conversation with its pictures and videos.

    Raises:
        GenerationError: prepared inputs have theirs already.
    """
    if isinstance(messages, Inputs):
        if listed(images) or listed(videos) or image_options.given:
            raise GenerationError(
                "prepared inputs have their pictures, as they were cut; give images, videos and "
                f"{', '.join(image_options.given) or 'image options'} to the processor"
            )
        return messages
    if isinstance(messages, str):
        return [user_message(messages, images, videos)]
    return with_media(messages, images, videos)
