"""Prompts -> KV caches and the logits of their last tokens. What was computed for earlier answers
is not computed again."""

import time
from collections.abc import Generator

import mlx.core as mx

from .. import device
from ..errors import ContextFullError
from ..events import End, Event, Reading, Text, Work, at_once
from ..inputs.processor import Inputs
from ..model import KVCache, QuantizedKVCache, SmolVLM
from .decoding import Decoder, Row
from .failures import computing
from .image_cache import ImageCache, encode_tiles_in_steps
from .prefix_cache import PrefixCache, prefix_keys

# Prompt rows that go through the decoder at once. The numbers are the same; it bounds the attention
# scores, which a CPU writes out in full, and half of which a causal mask throws away.
CHUNK = {"metal": 2048, "cuda": 2048, "cpu": 256}
LEAST_CHUNK = 64  # of each prompt, where several are read together


def make_cache(model: SmolVLM, capacity: int, kv_bits: int | None = None) -> list[KVCache]:
    """A KV cache a layer, with room for `capacity` tokens."""
    cache = model.language_model.make_cache(capacity)
    if kv_bits is None:
        return cache
    return [QuantizedKVCache(kv_bits, min(64, model.config.text_config.head_dim)) for _ in cache]


def prefill_in_steps(
    model: SmolVLM, input_ids: mx.array, image_tokens: mx.array | None, cache: list[KVCache]
) -> Generator[int, None, mx.array]:
    """Fill the cache with prompts (B, T) of one length: yields how many tokens of each are read,
    returns the logits (B, V) of the last."""
    embeddings = model.merge(input_ids, image_tokens)  # (B, T, Dt)
    B, T, _ = embeddings.shape
    chunk = max(LEAST_CHUNK, CHUNK[device.name()] // B)
    for start in range(0, T, chunk):
        hidden = model.language_model.hidden_states(
            None, cache, embeddings[:, start : start + chunk]
        )
        mx.eval(hidden, [layer.state for layer in cache])
        yield min(start + chunk, T)
    return model.language_model.logits(hidden[:, -1])


prefill = at_once(prefill_in_steps)


class PromptReader:
    """Reads the prompts of one model, and owns what they leave: image tokens of tiles, KV caches of
    prompts."""

    def __init__(
        self,
        model: SmolVLM,
        image_cache: ImageCache | None = None,
        prefix_cache: PrefixCache | None = None,
    ):
        self.model = model
        self.image_cache = image_cache or ImageCache(model)
        self.prefix_cache = prefix_cache or PrefixCache()

    def room_after(self, inputs: Inputs, reserve_tokens: int = 1) -> int:
        """Tokens that the model's context has room for after a prompt.

        Raises:
            ContextFullError: fewer than `reserve_tokens`.
        """
        return self.room_for(len(inputs.input_ids), len(inputs.tiles), reserve_tokens)

    def room_for(self, tokens: int, tiles: int, reserve_tokens: int = 1) -> int:
        """Tokens that the model's context has room for after so many, as of a prompt that is not
        made yet.

        Raises:
            ContextFullError: fewer than `reserve_tokens`.
        """
        context = self.model.config.text_config.max_position_embeddings
        if tokens + reserve_tokens > context:
            error = ContextFullError(
                f"the prompt has {tokens} tokens ({tiles} tiles), which leaves no room "
                f"for an answer in the model's context of {context}; shorten it, or use fewer or "
                "smaller pictures (max_tiles, longest_edge, split)"
            )
            error.over = tokens + reserve_tokens - context
            raise error
        return context - tokens

    def read(
        self, inputs: Inputs, row: Row, reserve_tokens: int = 1, keep_vision: bool = True
    ) -> Generator[Reading, None, tuple[list[KVCache], mx.array]]:
        """Read the prompt of an answer: returns its KV cache, and the logits (1, V) of its last
        token.

        Closed early, it keeps what was read for the next answer; after an error nothing, for what
        was being computed then may be broken.

        Raises:
            ContextFullError: there is no room for `reserve_tokens` after it; at once.
        """
        room = self.room_after(inputs, reserve_tokens)
        row.begin(inputs.input_ids.tolist(), room, inputs.goes_on)
        config, found, kv_bits = self.model.config, row.statistics, row.options.kv_bits
        found.prompt_tokens, found.tiles = len(row.prompt), len(inputs.tiles)
        found.image_tokens = found.tiles * config.tokens_per_tile
        yield Reading(0, len(row.prompt), "tokens")
        row.keys = prefix_keys(inputs, config.image_token_id, config.tokens_per_tile)
        mx.reset_peak_memory()
        cache, found.reused_tokens = self.prefix_cache.pop(row.keys, kv_bits)
        cache = cache or make_cache(self.model, len(row.prompt) + row.max_new_tokens, kv_bits)
        try:
            started, count = time.perf_counter(), found.reused_tokens
            image_tokens = yield from self._image_tokens_after(inputs, count, found.encoded_tiles)
            if not keep_vision:
                self.model.release_vision()
            encoded = time.perf_counter()
            found.vision_seconds += encoded - started
            ids = mx.array(inputs.input_ids[count:])[None]
            filling = Work(prefill_in_steps(self.model, ids, image_tokens, cache))
            for done in filling:
                yield Reading(count + done, len(row.prompt), "tokens")
            mx.eval(filling.result)
            found.prefill_seconds = time.perf_counter() - encoded
            return cache, filling.result
        except (GeneratorExit, KeyboardInterrupt):
            self.keep(row, cache)
            raise

    def _image_tokens_after(
        self, inputs: Inputs, count: int, computed: set[bytes]
    ) -> Generator[Reading, None, mx.array | None]:
        """Those for the placeholders after the first `count` tokens: (1, rows, Dt)."""
        config = self.model.config
        rows = int((inputs.input_ids[:count] == config.image_token_id).sum())
        tile, rows = divmod(rows, config.tokens_per_tile)
        tiles, digests = inputs.tiles[tile:], inputs.tile_digests[tile:]
        image_tokens = yield from encode_tiles_in_steps(
            self.model, tiles, inputs.settings, self.image_cache, digests, computed
        )
        if image_tokens is None:
            return None
        return image_tokens.reshape(1, -1, image_tokens.shape[-1])[:, rows:]

    def keep(self, row: Row, cache: list[KVCache]) -> None:
        """Take back the KV cache of an answer that is over, for prompts that begin as it did."""
        if row.error is None:  # what gave such logits may be in the cache
            self.prefix_cache.put([*row.keys, *row.token_ids], cache, row.options.kv_bits)

    def forget(self) -> None:
        """Let go of the KV caches that are kept."""
        self.prefix_cache.clear()

    def answer(
        self, inputs: Inputs, row: Row, reserve_tokens: int = 1, keep_vision: bool = True
    ) -> Generator[Event]:
        """Read a prompt, and make the answer to it.

        Raises:
            ContextFullError: as `read`; GenerationError: logits that are not finite; EngineError:
                MLX could not compute it.
        """
        with computing():
            cache, logits = yield from self.read(inputs, row, reserve_tokens, keep_vision)
            decoder = Decoder(self.model)
            decoder.add([row], cache, logits)
            try:
                while not row.over:
                    ((_, piece),) = decoder.step()
                    if row.error is not None:
                        raise row.error
                    yield Text(piece)
            except (GeneratorExit, KeyboardInterrupt):
                self.keep(row, cache)
                raise
            finally:
                row.statistics.peak_memory = device.peak_memory()
            self.keep(row, cache)
        yield End(row.statistics)
