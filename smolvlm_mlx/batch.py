"""Prompts of one length, answered together: one pass through the decoder a token, whatever their number.

For many pictures with one question (`captioning`), whose prompts differ in their tiles only. The same model calls as in
`generation`, without padding or masks, so that an answer is the same as alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from . import backend
from .constraint import Constraint
from .errors import GenerationError
from .features import encode_tiles
from .generation import PREFILL_CHUNK
from .inputs.processor import Inputs, Processor
from .model import KVCache, SmolVLM
from .sampling import NOT_FINITE, AnswerText, Options, make_batch_sampler

LEAST_CHUNK = 64  # tokens of each prompt that go through the decoder at once


class _Answer:
    """One of the answers under way."""

    def __init__(self, inputs: Inputs, processor: Processor, options: Options, constraint: Constraint | None):
        self.text, self.written = AnswerText(processor.tokenizer, options), ""
        self.over = False
        self._ids, self._constraint = [int(inputs.input_ids[-1])], constraint

    def push(self, token: int) -> None:
        if token == NOT_FINITE:
            raise GenerationError("the model's logits are not finite; use dtype bfloat16 or float32, or convert again")
        self._ids.append(token)
        self.written += self.text.push(token)
        self.over = self.text.ended

    def allow(self, logits: mx.array) -> mx.array:
        """Logits (1, V) of what may come next."""
        if self._constraint is None or self.over:
            return logits
        return self._constraint(mx.array(self._ids), logits)


def generate_batch(
    model: SmolVLM,
    processor: Processor,
    batch: Sequence[Inputs],
    options: Options,
    make_constraint: Callable[[], Constraint] | None = None,
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
    cache = model.language_model.make_cache(max(lengths) + room)
    answers = [_Answer(inputs, processor, options, make_constraint and make_constraint()) for inputs in batch]
    sample, rows = make_batch_sampler(options), list(answers)
    tokens = _choose(_prefill(model, batch, cache), rows, sample)
    for step in range(1, room + 1):
        if step < room and make_constraint is None:  # the step after is under way while this one's tokens are read
            following = _step(model, tokens, cache, rows, sample)
        ids: Any = tokens.tolist()
        for answer, token in zip(rows, ids, strict=True):
            if not answer.over:
                answer.push(token)
        if step == room or all(answer.over for answer in rows):
            break
        tokens = following if make_constraint is None else _step(model, tokens, cache, rows, sample)
        alive = [row for row, answer in enumerate(rows) if not answer.over]
        if len(alive) <= len(rows) // 2:
            tokens, rows = tokens[mx.array(alive)], [rows[row] for row in alive]
            _keep(cache, mx.array(alive))
    return [(answer.written + ("" if answer.over else answer.text.flush()), answer.text.ended) for answer in answers]


def _prefill(model: SmolVLM, batch: Sequence[Inputs], cache: list[KVCache]) -> mx.array:
    """Fill the cache; logits (B, V) after the last tokens."""
    ids = np.stack([inputs.input_ids for inputs in batch])  # (B, T)
    tiles = [inputs.tiles for inputs in batch]
    digests = [digest for inputs in batch for digest in inputs.tile_digests]
    image_tokens = encode_tiles(model, np.concatenate(tiles), batch[0].settings, digests=digests)
    embeddings = model.merge(mx.array(ids), image_tokens)  # (B, T, Dt)
    chunk = max(LEAST_CHUNK, PREFILL_CHUNK[backend.name()] // len(batch))
    for start in range(0, embeddings.shape[1], chunk):
        hidden = model.language_model.hidden_states(None, cache, embeddings[:, start : start + chunk])
        mx.eval(hidden, [layer.state for layer in cache])
    return model.language_model.logits(hidden[:, -1])


def _step(
    model: SmolVLM,
    tokens: mx.array,
    cache: list[KVCache],
    rows: Sequence[_Answer],
    sample: Callable[[mx.array], mx.array],
) -> mx.array:
    hidden = model.language_model.hidden_states(tokens[:, None], cache)
    return _choose(model.language_model.logits(hidden[:, -1]), rows, sample)


def _choose(logits: mx.array, rows: Sequence[_Answer], sample: Callable[[mx.array], mx.array]) -> mx.array:
    """Logits (B, V) -> tokens (B,), under way."""
    logits = mx.concatenate([answer.allow(logits[row : row + 1]) for row, answer in enumerate(rows)])
    logits = logits.astype(mx.float32)
    tokens = sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    mx.async_eval(tokens)
    return tokens


def _keep(cache: Any, rows: mx.array) -> None:
    for layer in cache:
        layer.keys, layer.values = layer.keys[rows], layer.values[rows]
