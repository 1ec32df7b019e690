"""SigLIP: pixels -> patch embeddings -> image features.

Follows `SmolVLMVisionTransformer` (transformers, models/smolvlm/modeling_smolvlm.py). Tiles are
always full squares, so there is no attention mask (an all-true one would lose MLX's one-kernel
attention) and position ids are 0..P-1.
"""

import mlx.core as mx
import mlx.nn as nn

from ..config import VisionConfig
from .activations import gelu_tanh


class VisionEmbeddings(nn.Module):
    """Cuts tiles into patches and embeds each: a convolution whose stride is its size, as one
    matrix product."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.patches_per_side = config.patches_per_side
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """(N, H, W, 3) -> (N, P, Dv). Pixels past the last whole patch are dropped, as by the
        convolution."""
        N, p, n = pixel_values.shape[0], self.patch_size, self.patches_per_side
        patches = pixel_values[:, : n * p, : n * p].reshape(N, n, p, n, p, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(N, n * n, -1)  # (N, P, p*p*3)
        dtype = self.patch_embedding.weight.dtype
        positions: mx.array = self.position_embedding(mx.arange(n * n)).astype(dtype)
        return self.embed(patches.astype(dtype)) + positions  # (N, P, Dv)

    def embed(self, patches: mx.array) -> mx.array:
        """(N, P, p*p*3) -> (N, P, Dv)."""
        weight: mx.array = self.patch_embedding.weight
        return mx.addmm(self.patch_embedding.bias, patches, weight.reshape(weight.shape[0], -1).T)


class VisionAttention(nn.Module):
    """Multi-head attention of every patch with every patch."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        N, P, D = x.shape
        queries, keys, values = (
            y.reshape(N, P, self.heads, -1).transpose(0, 2, 1, 3) for y in self.project(x)
        )  # (N, h, P, d)
        x = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        return self.out_proj(x.transpose(0, 2, 1, 3).reshape(N, P, D))

    def project(self, x: mx.array) -> tuple[mx.array, ...]:
        """Queries, keys and values, each (N, P, Dv)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(gelu_tanh(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layers = [EncoderLayer(config) for _ in range(config.num_hidden_layers)]
        # In training: keep only the layers' inputs, and compute the rest again.
        self.checkpointed = False

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = (nn.utils.checkpoint(layer) if self.checkpointed else layer)(x)
        return x


class VisionModel(nn.Module):
    """The vision tower: pixel_values (N, H, W, 3) -> image_features (N, P, Dv)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, pixel_values: mx.array) -> mx.array:
        image_features: mx.array = self.post_layernorm(self.encoder(self.embeddings(pixel_values)))
        return image_features
