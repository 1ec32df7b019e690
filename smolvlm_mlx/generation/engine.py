"""Messages -> a stream of text: preprocess, encode pictures, prefill, then token by token.

Knows nothing of terminals, servers or conversations that go on (`chat`).
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .. import device
from ..errors import ContextFullError, GenerationError
from ..inputs.processor import Inputs, Processor
from ..inputs.prompt import Message, user_message
from ..inputs.tiles import ImageOptions
from ..model import QuantizedKVCache, SmolVLM
from .decoding import Decoder, Row
from .image_cache import FeatureCache, FrameEncoder, Progress, image_tokens_after
from .prefix_cache import PrefixCache, Reuse, keys_of
from .sampling import Options
from .stream import Statistics, Stream, Work

# Prompt rows that go through the decoder at once. The numbers are the same; it bounds the attention scores, which a CPU
# writes out in full, and half of which a causal mask throws away.
PREFILL_CHUNK = {"metal": 2048, "cuda": 2048, "cpu": 256}


def stream_generate(
    model: SmolVLM,
    processor: Processor,
    messages: Sequence[Message] | str | Inputs,
    options: Options | None = None,
    *,
    images: Sequence[Any] = (),
    image_options: ImageOptions | None = None,
    least_room: int = 1,
    keep_vision: bool = True,
    reuse: Reuse | None = None,
    progress: Progress | None = None,
) -> Stream:
    """Answer a conversation piece by piece.

    Args:
        messages: a conversation (see `inputs.prompt`), or one user's text, or what `processor(messages, ...)` made of it.
        images: pictures (paths, URLs or PIL images) that go before the text, when `messages` is one text.
        image_options: how pictures are cut, where it is not as the checkpoint says.
        least_room: tokens that there must be room for after the prompt.
        keep_vision: off, the vision tower's memory is given back once the pictures are encoded; the model is then for text.
        reuse: skip what was computed for earlier answers of this model, and leave what this one computes.
        progress: called with tiles encoded and tiles to encode, before the first piece.

    Raises:
        SmolVLMError: at once if input or options cannot be used, before any work on the model but on the frames of a video,
            which are encoded while the next are decoded; GenerationError on bad logits, in the iteration.
    """
    options, reuse = options or Options(), reuse or Reuse(FeatureCache(model), PrefixCache())
    if isinstance(messages, str):
        messages = [user_message(messages, images)]
    elif images:
        raise GenerationError("images go with one text; in a conversation they are parts of its messages")
    started, encoder = time.perf_counter(), FrameEncoder(reuse.features, processor.settings, progress)
    inputs = messages
    if not isinstance(inputs, Inputs):
        inputs = processor(inputs, image_options, on_frame=encoder)
    seconds = time.perf_counter() - started
    room = min(options.max_tokens, room_after(model, inputs, least_room))

    def pieces(work: Work) -> Generator[str]:
        statistics, row = work.statistics, Row(inputs.input_ids.tolist(), options, room, processor.tokenizer)
        statistics.preprocess_seconds, statistics.vision_seconds = seconds - encoder.seconds, encoder.seconds
        statistics.image_tokens, work.token_ids = len(inputs.tiles) * processor.tokens_per_tile, row.token_ids

        def advanced(done: int, total: int) -> None:
            work.go_on()
            if progress is not None:
                progress(done, total)

        return _spoken(answer(model, inputs, row, statistics, keep_vision, reuse, advanced, work.go_on))

    return Stream(pieces)


def generate(
    model: SmolVLM,
    processor: Processor,
    messages: Sequence[Message] | str | Inputs,
    options: Options | None = None,
    *,
    images: Sequence[Any] = (),
) -> str:
    """The whole answer of `stream_generate`."""
    return "".join(stream_generate(model, processor, messages, options, images=images))


def room_after(model: SmolVLM, inputs: Inputs, least: int = 1) -> int:
    """Tokens that the model's context has room for after a prompt.

    Raises:
        ContextFullError: fewer than `least`.
    """
    context, count = model.config.text_config.max_position_embeddings, len(inputs.input_ids)
    if count + least > context:
        raise ContextFullError(
            f"the prompt has {count} tokens ({len(inputs.tiles)} tiles), which leaves no room for an answer in the model's "
            f"context of {context}; shorten it, or use fewer or smaller pictures (max_tiles, longest_edge, split)"
        )
    return context - count


def answer(
    model: SmolVLM,
    inputs: Inputs,
    row: Row,
    statistics: Statistics,
    keep_vision: bool = True,
    reuse: Reuse | None = None,
    progress: Progress | None = None,
    between: Callable[[], None] = lambda: None,
) -> Generator[str]:
    """The tokens of an answer into its row, and a piece of text for each, which may be empty.

    Times and counts go to `statistics`. `between` is called in the prefill, and when a token was chosen.
    """
    started, reuse, ids = time.perf_counter(), reuse or Reuse(FeatureCache(model), PrefixCache()), row.token_ids
    keys, kv_bits = keys_of(inputs, model.config.image_token_id, model.config.tokens_per_tile), row.options.kv_bits
    statistics.tiles, statistics.prompt_tokens = len(inputs.tiles), len(keys)
    mx.reset_peak_memory()
    cache, count = reuse.prefixes.take(keys, kv_bits)
    cache = cache or make_cache(model, len(keys) + row.room, kv_bits)
    statistics.reused_tokens = count
    try:
        image_tokens = image_tokens_after(model, inputs, count, reuse.features, progress)
        if not keep_vision:
            model.release_vision()
        encoded = time.perf_counter()
        statistics.vision_seconds += encoded - started
        logits = prefill(model, inputs.input_ids[count:], image_tokens, cache, between)
        mx.eval(logits)
        prefilled = time.perf_counter()
        statistics.prefill_seconds = prefilled - encoded
        decoder = Decoder(model)
        decoder.add([row], cache, logits)
        while not row.over:
            ((_, piece),) = decoder.step()
            if row.error is not None:
                raise row.error
            statistics.generated_tokens = len(ids)
            statistics.decode_seconds = time.perf_counter() - prefilled
            between()
            yield piece
        statistics.finish_reason = "stop" if row.ended else "length"
    finally:
        if row.error is None:  # what gave such logits may be in the cache
            reuse.prefixes.give([*keys, *ids], cache, kv_bits)
        statistics.peak_memory = mx.get_peak_memory()


def _spoken(pieces: Generator[str]) -> Generator[str]:
    with closing(pieces):
        for piece in pieces:
            if piece:
                yield piece


def make_cache(model: SmolVLM, capacity: int, kv_bits: int | None) -> list[Any]:
    """A KV cache a layer, with room for `capacity` tokens."""
    cache = model.language_model.make_cache(capacity)
    if kv_bits is None:
        return cache
    return [QuantizedKVCache(kv_bits, min(64, model.config.text_config.head_dim)) for _ in cache]


def prefill(
    model: SmolVLM,
    input_ids: NDArray[np.int32],
    image_tokens: mx.array | None,
    cache: list[Any],
    between: Callable[[], None] = lambda: None,
) -> mx.array:
    """Fill the cache with a prompt (T,); logits (1, V) of its last token. `between` is called after each chunk."""
    embeddings = model.merge(mx.array(input_ids)[None], image_tokens)  # (1, T, Dt)
    chunk = PREFILL_CHUNK[device.name()]
    for start in range(0, embeddings.shape[1], chunk):
        rows = embeddings[:, start : start + chunk]
        hidden = model.language_model.hidden_states(None, cache, rows)
        mx.eval(hidden, [layer.state for layer in cache])
        between()
    return model.language_model.logits(hidden[:, -1])
