"""Messages -> a stream of text: preprocess, encode pictures, prefill, then token by token.

Knows nothing of terminals, servers or conversations that go on (`chat`).
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from . import backend
from .errors import ContextFullError, GenerationError
from .features import FeatureCache, FrameEncoder, Progress, image_tokens_after
from .inputs.processor import Inputs, Processor
from .inputs.prompt import Message, user_message
from .model import QuantizedKVCache, SmolVLM
from .prefix import PrefixCache, Reuse, keys_of
from .sampling import AnswerText, Choose, Options, make_choice
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
    picture_options: Mapping[str, Any] | None = None,
    least_room: int = 1,
    keep_vision: bool = True,
    reuse: Reuse | None = None,
    progress: Progress | None = None,
) -> Stream:
    """Answer a conversation piece by piece.

    Args:
        messages: a conversation (see `inputs.prompt`), or one user's text, or what `processor(messages, ...)` made of it.
        images: pictures (paths, URLs or PIL images) that go before the text, when `messages` is one text.
        picture_options: `longest_edge`, `split`, `max_tiles`, as the processor takes them.
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
        inputs = processor(inputs, **(picture_options or {}), on_frame=encoder)
    seconds = time.perf_counter() - started
    room = min(options.max_tokens, room_after(model, inputs, least_room))

    def pieces(work: Work) -> Generator[str]:
        work.statistics.preprocess_seconds = seconds - encoder.seconds
        work.statistics.vision_seconds = encoder.seconds

        def advanced(done: int, total: int) -> None:
            work.go_on()
            if progress is not None:
                progress(done, total)

        tokens = generate_tokens(
            model, inputs, options, room, work.statistics, keep_vision, reuse, advanced, work.go_on
        )
        return _pieces(work, tokens, processor, inputs, options)

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


def _pieces(
    work: Work, tokens: Generator[int], processor: Processor, inputs: Inputs, options: Options
) -> Generator[str]:
    statistics, text = work.statistics, AnswerText(processor.tokenizer, options)
    statistics.tiles, statistics.prompt_tokens = len(inputs.tiles), len(inputs.input_ids)
    statistics.image_tokens = len(inputs.tiles) * processor.tokens_per_tile
    mx.reset_peak_memory()
    try:
        for token in tokens:
            work.go_on()
            statistics.generated_tokens += 1
            work.token_ids.append(token)
            if piece := text.push(token):
                yield piece
            if text.ended:
                break
        else:
            if rest := text.flush():
                yield rest
        statistics.finish_reason = "stop" if text.ended else "length"
    finally:
        tokens.close()
        statistics.peak_memory = mx.get_peak_memory()


def generate_tokens(
    model: SmolVLM,
    inputs: Inputs,
    options: Options,
    room: int,
    statistics: Statistics,
    keep_vision: bool = True,
    reuse: Reuse | None = None,
    progress: Progress | None = None,
    between: Callable[[], None] = lambda: None,
) -> Generator[int]:
    """Up to `room` token ids, end tokens included; times go to `statistics`. `between` is called in the prefill."""
    started, reuse = time.perf_counter(), reuse or Reuse(FeatureCache(model), PrefixCache())
    ids: list[int] = inputs.input_ids.tolist()
    keys = keys_of(inputs, model.config.image_token_id, model.config.tokens_per_tile)
    cache, count = reuse.prefixes.take(keys, options.kv_bits)
    cache = cache or _make_cache(model, len(ids) + room, options.kv_bits)
    statistics.reused_tokens = count
    try:
        image_tokens = image_tokens_after(model, inputs, count, reuse.features, progress)
        if not keep_vision:
            model.release_vision()
        encoded = time.perf_counter()
        statistics.vision_seconds += encoded - started
        logits = prefill(model, inputs.input_ids[count:], image_tokens, cache, between)
        choose = make_choice(options)
        token, finite = _choose(logits, choose, ids)
        mx.eval(token, finite)
        prefilled = time.perf_counter()
        statistics.prefill_seconds = prefilled - encoded
        for step in range(1, room + 1):
            if step < room:  # the step after is under way while this token is read
                hidden = model.language_model.hidden_states(token[None], cache)
                following = _choose(model.language_model.logits(hidden[:, -1]), choose, ids, token)
                mx.async_eval(*following)
            if not finite.item():
                raise GenerationError(
                    "the model's logits are not finite; use dtype bfloat16 or float32, or convert again"
                )
            ids.append(int(token.item()))  # type: ignore[arg-type]  # an integer array's
            statistics.decode_seconds = time.perf_counter() - prefilled
            yield ids[-1]
            if step < room:
                token, finite = following
    finally:
        reuse.prefixes.give([*keys, *ids[len(keys) :]], cache, options.kv_bits)


def _make_cache(model: SmolVLM, capacity: int, kv_bits: int | None) -> list[Any]:
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
    chunk = PREFILL_CHUNK[backend.name()]
    for start in range(0, embeddings.shape[1], chunk):
        rows = embeddings[:, start : start + chunk]
        hidden = model.language_model.hidden_states(None, cache, rows)
        mx.eval(hidden, [layer.state for layer in cache])
        between()
    return model.language_model.logits(hidden[:, -1])


def _choose(
    logits: mx.array, choose: Choose, ids: list[int], pending: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """The next token (1,), and whether the logits (1, V) it comes from are finite."""
    finite = mx.isfinite(logits.astype(mx.float32).sum())
    return choose(logits, ids, pending), finite
