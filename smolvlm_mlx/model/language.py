"""SmolLM2, a Llama with grouped-query attention: merged embeddings -> logits, with a KV cache.

Follows transformers' models/llama/modeling_llama.py. `LanguageModel` is call-compatible with
mlx_lm's models (`cache=`, `input_embeddings=`, `.layers`, `.make_cache()`), whose caches it takes.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..config import TextConfig
from .activations import swiglu
from .cache import Cache, KVCache, Mask


class Attention(nn.Module):
    """Causal attention with rotary positions; k key-value heads serve h heads."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.rope_theta, self.rope_periods = config.rope_theta, config.rope_periods
        # An underscore: no parameter, for MLX.
        self._freqs = None if self.rope_periods is None else mx.array(self.rope_periods)
        self.scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def __call__(self, x: mx.array, mask: Mask, cache: Cache | None) -> mx.array:
        B, T, _ = x.shape
        queries, keys, values = self.project(x, 0 if cache is None else cache.offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)  # (B, k, offset + T, d)
        x = self.attend(queries, keys, values, mask)
        return self.o_proj(x.transpose(0, 2, 1, 3).reshape(B, T, -1))  # (B, T, h*d) -> (B, T, Dt)

    def project(self, x: mx.array, offset: int | mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries (B, h, T, d) and keys (B, k, T, d), with their positions; values (B, k, T, d)."""
        B, T, _ = x.shape
        queries, keys, values = (
            y.reshape(B, T, -1, self.head_dim).transpose(0, 2, 1, 3)
            for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )  # (B, h, T, d), (B, k, T, d) twice
        return self.rope(queries, offset), self.rope(keys, offset), values

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, mask: Mask) -> mx.array:
        """(B, h, T, d)."""
        attention = mx.fast.scaled_dot_product_attention
        return attention(queries, keys, values, scale=self.scale, mask=mask)

    def rope(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Turn heads (B, heads, T, d) by their positions, from `offset` on (arXiv:2104.09864)."""
        base, freqs = (self.rope_theta, None) if self._freqs is None else (None, self._freqs)
        return mx.fast.rope(
            x, self.head_dim, traditional=False, base=base, scale=1.0, offset=offset, freqs=freqs
        )


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, mask: Mask, cache: Cache | None) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """The decoder with its head. `tied`: logits come from the embedding table, not an lm_head."""

    def __init__(self, config: TextConfig, tied: bool = False):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.checkpointed = False  # in training: keep layers' inputs only, compute the rest again
        if not tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(
        self,
        inputs: mx.array,
        cache: Sequence[Cache] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Token ids (B, T), or their embeddings (B, T, Dt) -> logits (B, T, V)."""
        return self.logits(self.hidden_states(inputs, cache, input_embeddings))

    def hidden_states(
        self,
        inputs: mx.array | None,
        cache: Sequence[Cache] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """All layers, before the last norm: (B, T) or (B, T, Dt) -> (B, T, Dt)."""
        x = input_embeddings
        if x is None:
            assert inputs is not None
            x = self.embed(inputs)
        return self.run(x, [None] * len(self.layers) if cache is None else cache)

    def embed(self, inputs: mx.array) -> mx.array:
        """(B, T) -> (B, T, Dt), in the dtype of the norms: tables of 8-bit scales give bfloat16."""
        dtype = self.norm.weight.dtype
        if not inputs.size:  # in a quantized table MLX cannot look up no tokens
            return mx.zeros((*inputs.shape, self.norm.weight.shape[0]), dtype)
        embeddings: mx.array = self.embed_tokens(inputs)
        return embeddings.astype(dtype)

    def run(self, x: mx.array, caches: Sequence[Cache | None]) -> mx.array:
        """All layers, each with its cache or None: (B, T, Dt) -> (B, T, Dt)."""
        first = KVCache() if caches[0] is None else caches[0]
        mask = first.make_mask(x.shape[1], return_array=False, window_size=None)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = (nn.utils.checkpoint(layer) if self.checkpointed else layer)(x, mask, cache)
        return x

    def logits(self, hidden_states: mx.array) -> mx.array:
        """Norm and head: (..., Dt) -> (..., V). Give it only the rows whose logits are needed."""
        return self.head(self.norm(hidden_states))

    def head(self, x: mx.array) -> mx.array:
        return self.lm_head(x) if "lm_head" in self else self.embed_tokens.as_linear(x)

    def make_cache(self, capacity: int = 256) -> list[KVCache]:
        """One cache a layer, with room for `capacity` tokens before it has to grow."""
        return [KVCache(capacity) for _ in self.layers]
