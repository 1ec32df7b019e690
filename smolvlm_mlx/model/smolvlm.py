"""The whole model: encode images, merge image tokens with text embeddings, decode.

Attribute names are those of the mlx-community layout, so the module tree is the weight map.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import ModelConfig
from .connector import Connector
from .language import MLP, Attention, LanguageModel
from .vision import VisionAttention, VisionMLP, VisionModel


class SmolVLM(nn.Module):
    """SmolVLM and SmolVLM2 (`SmolVLMForConditionalGeneration`, `Idefics3ForConditionalGeneration`)."""

    def __init__(self, config: ModelConfig, tied: bool = False):
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision_config)
        self.connector = Connector(config)
        self.language_model = LanguageModel(config.text_config, tied)

    def __call__(self, input_ids: mx.array, pixel_values: mx.array | None = None) -> mx.array:
        """Token ids (B, T) and the tiles of their pictures (N, H, W, 3), in order -> logits (B, T, V).

        Differentiable, without cache: for training and comparison. `generation` answers questions.

        Raises:
            ValueError: the placeholders in `input_ids` are not N times S.
        """
        image_tokens = None if pixel_values is None else self.encode_images(pixel_values)
        return self.language_model(input_ids, input_embeddings=self.merge(input_ids, image_tokens))

    def encode_images(self, pixel_values: mx.array) -> mx.array:
        """Tiles (N, H, W, 3) -> image_tokens (N, S, Dt)."""
        return self.connector(self.vision_model(pixel_values))

    def merge(self, input_ids: mx.array, image_tokens: mx.array | None) -> mx.array:
        """Token ids (B, T) with placeholders, and image_tokens (N, S, Dt) to put there in order -> (B, T, Dt)."""
        embeddings: mx.array = self.language_model.embed_tokens(input_ids)
        ids: Any = input_ids.reshape(-1).tolist()
        rows = [row for row, token in enumerate(ids) if token == self.config.image_token_id]
        available = 0 if image_tokens is None else image_tokens.shape[0] * image_tokens.shape[1]
        if len(rows) != available:
            raise ValueError(f"{len(rows)} image placeholders in input_ids for {available} image tokens")
        if image_tokens is None:
            return embeddings
        B, T, Dt = embeddings.shape
        flat = embeddings.reshape(B * T, Dt)
        flat[mx.array(rows)] = image_tokens.reshape(-1, Dt).astype(flat.dtype)
        return flat.reshape(B, T, Dt)

    def named_parameters(self) -> dict[str, mx.array]:
        """Every parameter by its name in a checkpoint of mlx-community's layout."""
        return dict(tree_flatten(self.parameters()))

    def release_vision(self) -> None:
        """Give back the memory of tower and connector, when all pictures are encoded; no more can be."""
        del self.vision_model, self.connector
        mx.clear_cache()

    def fuse(self, lazy: bool = False) -> None:
        """Fuse QKV and gate/up projections, for inference only; layers are freed one by one as they are fused.

        With `lazy`, nothing is read or computed before it is used.
        """
        kinds = VisionAttention | VisionMLP | Attention | MLP
        # Only these are held: a list of all modules would keep the separate projections alive.
        for module in [module for _, module in self.named_modules() if isinstance(module, kinds)]:
            module.fuse()
            if not lazy:
                mx.eval(module.parameters())
