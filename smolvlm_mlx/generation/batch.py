"""Prompts of one length, answered together: one pass through the decoder a token, whatever their number.

For many pictures with one question (`captioning`), whose prompts differ in their tiles only. The same model calls as in
`generation`, without padding or masks, so that an answer is the same as alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .. import device
from ..errors import GenerationError
from ..inputs.processor import Inputs, Processor
from ..model import SmolVLM
from .decoding import Decoder, Row
from .engine import PREFILL_CHUNK, make_cache
from .image_cache import encode_tiles
from .sampling import LogitsProcessor, Options

LEAST_CHUNK = 64  # tokens of each prompt that go through the decoder at once


def generate_batch(
    model: SmolVLM,
    processor: Processor,
    batch: Sequence[Inputs],
    options: Options,
    make_constraint: Callable[[], LogitsProcessor] | None = None,
) -> list[tuple[str, bool]]:
    """The answer to each of the prompts, which have one length T, and whether it came to its end by itself.

    Raises:
        GenerationError: prompts of several lengths or longer than the context, or logits that are not finite.
    """
    context = model.config.text_config.max_position_embeddings
    lengths = {len(inputs.input_ids) for inputs in batch}
    if len(lengths) != 1 or max(lengths) >= context:
        raise GenerationError(f"prompts of {sorted(lengths)} tokens; a batch has one length, below {context}")
    room = min(options.max_tokens, context - max(lengths))
    cache = make_cache(model, max(lengths) + room, options.kv_bits)
    rows = [
        Row(inputs.input_ids.tolist(), options, room, processor.tokenizer, make_constraint and make_constraint())
        for inputs in batch
    ]
    decoder, texts = Decoder(model), dict.fromkeys(rows, "")
    decoder.add(rows, cache, _prefill(model, batch, cache))
    while not all(row.over for row in rows):
        for row, piece in decoder.step():
            if row.error is not None:
                raise row.error
            texts[row] += piece
    return [(texts[row], row.ended) for row in rows]


def _prefill(model: SmolVLM, batch: Sequence[Inputs], cache: list[Any]) -> mx.array:
    """Fill the cache; logits (B, V) after the last tokens."""
    ids = np.stack([inputs.input_ids for inputs in batch])  # (B, T)
    tiles = [inputs.tiles for inputs in batch]
    digests = [digest for inputs in batch for digest in inputs.tile_digests]
    image_tokens = encode_tiles(model, np.concatenate(tiles), batch[0].settings, digests=digests)
    embeddings = model.merge(mx.array(ids), image_tokens)  # (B, T, Dt)
    chunk = max(LEAST_CHUNK, PREFILL_CHUNK[device.name()] // len(batch))
    for start in range(0, embeddings.shape[1], chunk):
        hidden = model.language_model.hidden_states(None, cache, embeddings[:, start : start + chunk])
        mx.eval(hidden, [layer.state for layer in cache])
    return model.language_model.logits(hidden[:, -1])
