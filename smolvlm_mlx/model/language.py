"""SmolLM2, a Llama with grouped-query attention: merged embeddings -> logits, with a KV cache.

`LanguageModel` is call-compatible with mlx_lm's models (`model(inputs, cache=..., input_embeddings=...)`, `.layers`,
`.make_cache()`), and its caches may be ours or mlx_lm's. Follows transformers' models/llama/modeling_llama.py.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import TextConfig
from . import cpu
from .activations import swiglu
from .cache import KVCache
from .linear import fuse_linears


class Attention(nn.Module):
    """Causal attention with rotary positions; k key-value heads serve h heads."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        self.scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.fused = False

    def fuse(self) -> None:
        """For inference: one projection in place of three."""
        self.fused = True
        qkv_proj = fuse_linears(self.q_proj, self.k_proj, self.v_proj)
        if qkv_proj is not None:
            self.qkv_proj = qkv_proj
            del self.q_proj, self.k_proj, self.v_proj

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        B, T, _ = x.shape
        if "qkv_proj" in self:
            qkv = self.qkv_proj(x)
        else:
            qkv = mx.concatenate([self.q_proj(x), self.k_proj(x), self.v_proj(x)], axis=-1)
        qkv = qkv.reshape(B, T, -1, self.head_dim).transpose(0, 2, 1, 3)  # (B, h + 2k, T, d)
        turned, values = mx.split(qkv, [self.heads + self.kv_heads], axis=1)
        turned = mx.fast.rope(
            turned,
            self.head_dim,
            traditional=False,
            base=self.rope_theta,
            scale=1.0,
            offset=cache.offset if cache is not None else 0,
        )
        queries, keys = mx.split(turned, [self.heads], axis=1)  # (B, h, T, d), (B, k, T, d)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        if self.fused and not isinstance(mask, mx.array) and cpu.is_used(x):
            x = cpu.attention(queries, keys, values, self.scale, causal=mask is not None)
        else:
            x = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=mask)
        return self.o_proj(x.transpose(0, 2, 1, 3).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.fused = False

    def fuse(self) -> None:
        """For inference: one projection in place of two."""
        self.fused = True
        gate_up_proj = fuse_linears(self.gate_proj, self.up_proj)
        if gate_up_proj is not None:
            self.gate_up_proj = gate_up_proj
            del self.gate_proj, self.up_proj

    def __call__(self, x: mx.array) -> mx.array:
        if "gate_up_proj" in self:
            gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        if self.fused and x.shape[1] > 1 and cpu.is_used(x):
            return self.down_proj(cpu.swiglu(gate, up))
        return self.down_proj(swiglu(gate, up))


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))

    @property
    def is_plain(self) -> bool:
        """Whether its projections are apart and multiply by one matrix each: no adapters, no quantization."""
        names = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
        return all(type(self[part].get(name)) is nn.Linear for part in names for name in names[part])


class LanguageModel(nn.Module):
    """The decoder with its head. `tied`: logits come from the embedding table and there is no lm_head."""

    def __init__(self, config: TextConfig, tied: bool = False):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.checkpointed = False  # in training: keep only the layers' inputs, and compute the rest again
        if not tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(
        self, inputs: mx.array, cache: list[Any] | None = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        """Token ids (B, T), or their embeddings (B, T, Dt) -> logits (B, T, V)."""
        return self.logits(self.hidden_states(inputs, cache, input_embeddings))

    def hidden_states(
        self, inputs: mx.array | None, cache: list[Any] | None = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        """All layers, before the last norm: (B, T) or (B, T, Dt) -> (B, T, Dt)."""
        x = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        if cache is not None and self._is_cpu_step(x, cache):
            return cpu.decode_step(self.layers, x, cache)
        caches: list[Any] = cache if cache is not None else [None] * len(self.layers)
        first = KVCache() if cache is None else cache[0]
        mask = first.make_mask(x.shape[1], return_array=False, window_size=None)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = (nn.utils.checkpoint(layer) if self.checkpointed else layer)(x, mask, layer_cache)
        return x

    def logits(self, hidden_states: mx.array) -> mx.array:
        """Norm and head: (..., Dt) -> (..., V). Give it only the rows whose logits are needed."""
        x = self.norm(hidden_states)
        head = self.lm_head if "lm_head" in self else self.embed_tokens
        if type(head) in (nn.Linear, nn.Embedding) and self._is_cpu_row(x):
            return cpu.product(head.weight, x)
        return self.lm_head(x) if "lm_head" in self else self.embed_tokens.as_linear(x)

    def _is_cpu_row(self, x: mx.array) -> bool:
        """Whether it is one row, for inference on a CPU in float32."""
        return x.size == x.shape[-1] and self.layers[0].self_attn.fused and cpu.is_used(x)

    def _is_cpu_step(self, x: mx.array, caches: list[Any]) -> bool:
        """Whether `cpu.decode_step` can be used: for the next token of one conversation."""
        ours = all(type(cache) is KVCache and cache.offset for cache in caches)
        return ours and self._is_cpu_row(x) and all(layer.is_plain for layer in self.layers)

    def make_cache(self, capacity: int = 256) -> list[KVCache]:
        """One cache a layer, with room for `capacity` tokens before it has to grow."""
        return [KVCache(capacity) for _ in self.layers]
