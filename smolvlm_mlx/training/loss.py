"""Cross entropy of the answers' tokens, with logits made for those tokens only."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..generation.image_cache import encode_tiles
from ..inputs.tiles import normalize
from ..model import SmolVLM
from .batches import Batch


def image_tokens_of(model: SmolVLM, batch: Batch) -> mx.array | None:
    """image_tokens (N, S, Dt) when nothing that makes them is trained, as constants: chunk by chunk, repeats once."""
    parts = (model.vision_model, model.connector)
    if not len(batch.tiles) or any(tree_flatten(part.trainable_parameters()) for part in parts):
        return None
    return encode_tiles(model, batch.tiles, batch.settings)


def loss_sum(model: SmolVLM, batch: Batch, image_tokens: mx.array | None = None) -> mx.array:
    """Sum over `batch.tokens` predicted tokens, in nats. Differentiable."""
    if image_tokens is None and len(batch.tiles):
        image_tokens = model.encode_images(mx.array(normalize(batch.tiles, batch.settings)))
    embeddings = model.merge(mx.array(batch.input_ids), image_tokens)  # (B, T, Dt)
    hidden = model.language_model.hidden_states(None, None, embeddings)
    B, T, D = hidden.shape
    rows, columns = np.nonzero(batch.is_answer[:, 1:])
    learned = hidden.reshape(B * T, D)[mx.array(rows * T + columns)]  # (tokens, Dt): those before each target
    logits = model.language_model.logits(learned).astype(mx.float32)
    targets = mx.array(batch.input_ids[rows, columns + 1])
    return nn.losses.cross_entropy(logits, targets, reduction="sum")
