"""How fast a machine can do a model's work at best: FLOPs, bytes and kernels of a phase, and the
time they take.

Only arithmetic, on a config and the sizes of the stored weights. What has to be computed is
computed no faster than a large matrix product, what has to be read no faster than a large
matrix-vector product, and kernels that wait for one another take a time of their own, however small
they are. Counted are the matrix products, the weights (once a phase) and the KV cache; norms,
activations and pixels are not, so that a limit is a little too good rather than too bad.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..config import ModelConfig


@dataclass(frozen=True)
class Machine:
    """What `calibrate` found. `bandwidth` in bytes a second, `flops` a second in `dtype`, `memory`
    in bytes (0: unknown)."""

    device: str
    backend: str
    dtype: str
    bandwidth: float
    flops: float
    kernel_seconds: float
    memory: int


@dataclass(frozen=True)
class Work:
    """What a phase has to do."""

    flops: float = 0.0
    bytes: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops, self.bytes + other.bytes, self.kernels + other.kernels
        )

    def limit(self, machine: Machine) -> float:
        """Seconds at best: computing and reading go on side by side, and kernels one after
        another."""
        parts = self._parts(machine)
        return max(parts["compute"], parts["memory"]) + parts["kernels"]

    def bound(self, machine: Machine) -> str:
        """What most of that time goes to: compute, memory or kernels."""
        parts = self._parts(machine)
        return max(parts, key=lambda name: parts[name])

    def _parts(self, machine: Machine) -> dict[str, float]:
        return {
            "compute": self.flops / machine.flops,
            "memory": self.bytes / machine.bandwidth,
            "kernels": self.kernels * machine.kernel_seconds,
        }


@dataclass(frozen=True)
class Sizes:
    """Bytes that are read: as stored, so quantized weights count with their scales and biases."""

    layers: int  # of the decoder
    head: int  # lm_head, or the embedding table in its place, and the norm before it
    vision: int  # tower and connector
    kv_token: int  # keys and values of one token in all layers

    @classmethod
    def of(cls, config: ModelConfig, nbytes: Mapping[str, int], kv_width: int) -> "Sizes":
        """From the bytes of each parameter by its name, and those of one number in the KV cache."""

        def total(*prefixes: str) -> int:
            return sum(size for name, size in nbytes.items() if name.startswith(prefixes))

        text = config.text_config
        head = total("language_model.lm_head.") or total("language_model.embed_tokens.")
        kv_numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        layers, top = total("language_model.layers."), head + total("language_model.norm.")
        return cls(layers, top, total("vision_model.", "connector."), kv_numbers * kv_width)


def vision_flops(config: ModelConfig) -> int:
    """Of one tile: L (2 P (4 d^2 + 2 d I) + 4 P^2 d), the patch embedding, and the connector."""
    vision, patches = config.vision_config, config.vision_config.patches_per_side**2
    d, inner = vision.hidden_size, vision.intermediate_size
    layer = 2 * patches * (4 * d * d + 2 * d * inner) + 4 * patches * patches * d
    embedding = 2 * patches * d * 3 * vision.patch_size**2
    connector = (
        2 * config.tokens_per_tile * d * config.scale_factor**2 * config.text_config.hidden_size
    )
    return vision.num_hidden_layers * layer + embedding + connector


def vision(config: ModelConfig, sizes: Sizes, tiles: int) -> Work:
    """Encode tiles together. Their kernels are large ones, whose start hides behind the one
    before."""
    return Work(tiles * vision_flops(config), sizes.vision)


def decoder(
    config: ModelConfig, sizes: Sizes, tokens: int, cached: int = 0, kernels: float = 0
) -> Work:
    """Read `tokens` tokens behind `cached` ones, and make the logits of the last.

    2 P_L T + 2 T^2 h d L + 2 P_H, and 4 T C h d L for attention to what is cached; a causal mask
    spares half of T^2. P_L are the numbers in the layers' matrices, P_H those in the one that makes
    logits. A prefill has all its tokens here, a decode step at a context of n tokens is
    `tokens=1, cached=n - 1`.
    """
    text = config.text_config
    heads = text.num_hidden_layers * text.num_attention_heads * text.head_dim
    attention = heads * (2 * tokens * tokens + 4 * tokens * cached)
    projections = (
        2 * text.hidden_size * text.head_dim * (text.num_attention_heads + text.num_key_value_heads)
    )
    layers = text.num_hidden_layers * (projections + 3 * text.hidden_size * text.intermediate_size)
    flops = 2 * layers * tokens + attention + 2 * text.vocab_size * text.hidden_size
    return Work(flops, sizes.layers + sizes.head + (cached + tokens) * sizes.kv_token, kernels)
