"""config.json as frozen dataclasses: Hugging Face's field names, the reference's class defaults,
validated.

SmolVLM2's files leave out every key that equals a class default of transformers
(`configuration_smolvlm.py`, `configuration_llama.py`), so those defaults, and no guesses from other
sizes, stand here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from .errors import CheckpointError, quote

MODEL_TYPES = ("idefics3", "smolvlm")
_LARGEST = 1_000_000  # no count or width in a config is larger; refused before anything is built
# Counts that multiply: objects a layer, numbers a head or a pixel.
_LARGEST_OF = {
    "num_hidden_layers": 1000,
    "num_attention_heads": 1024,
    "head_dim": 4096,
    "image_size": 16384,
}

Section = TypeVar("Section")


@dataclass(frozen=True)
class RopeScaling:
    """Rotary positions stretched by `factor`: all of them ("linear"), or those that turn slowly
    ("llama3", with its two bounds), as in transformers' modeling_rope_utils.py."""

    rope_type: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def stretched(self, period: float) -> float:
        """A period of plain positions, in tokens for a radian, made longer."""
        if self.rope_type == "linear":
            return period * self.factor
        turns = self.original_max_position_embeddings / (2 * math.pi * period)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)  # of the frequency
        return period / ((1 - kept) / self.factor + kept)

    def problems(self) -> Iterator[str]:
        """As those of `TextConfig`."""
        low, high = self.low_freq_factor, self.high_freq_factor
        if high <= low:
            yield f"high_freq_factor {high:g} is not above low_freq_factor {low:g}"


@dataclass(frozen=True)
class TextConfig:
    """The decoder: SmolLM2, a Llama with grouped-query attention."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0  # 0: as many as num_attention_heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim == 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)

    @property
    def rope_periods(self) -> tuple[float, ...] | None:
        """Of scaled rotary positions, in tokens for a radian (head_dim / 2); None if they are
        plain, theta^(2i/d)."""
        if self.rope_scaling is None:
            return None
        exponents = (2 * i / self.head_dim for i in range(self.head_dim // 2))
        return tuple(self.rope_scaling.stretched(self.rope_theta**each) for each in exponents)

    def problems(self) -> Iterator[str]:
        """What is wrong with values that are fine each by itself."""
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            yield f"{heads} attention heads for {kv_heads} key-value heads"
        if self.head_dim == 0 or self.head_dim % 2:
            yield f"head_dim is {self.head_dim}, not an even number from 2 on"
        if self.hidden_act != "silu":
            yield f"hidden_act {quote(self.hidden_act)} (only 'silu')"
        if self.attention_bias or self.mlp_bias:
            yield "attention_bias or mlp_bias is set (SmolLM2 has no biases)"
        if self.rope_scaling is not None:
            yield from self.rope_scaling.problems()


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: SigLIP. `image_size` is the side of a tile in pixels."""

    hidden_size: int = 1152
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    def problems(self) -> Iterator[str]:
        """As those of `TextConfig`."""
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            yield f"hidden_size {self.hidden_size} is not a multiple of {heads} heads"
        if self.patch_size > self.image_size:
            yield f"patch_size {self.patch_size} exceeds image_size {self.image_size}"
        if self.num_channels != 3:
            yield f"num_channels {self.num_channels} (only 3)"
        if self.hidden_act != "gelu_pytorch_tanh":
            yield f"hidden_act {quote(self.hidden_act)} (only 'gelu_pytorch_tanh')"


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. `image_token_id` is the placeholder; `scale_factor` is the connector's pixel
    shuffle."""

    text_config: TextConfig
    vision_config: VisionConfig
    model_type: str
    image_token_id: int = 128257
    scale_factor: int = 2

    @property
    def tokens_per_tile(self) -> int:
        """S, the decoder tokens one tile becomes (81 or 64 in the family)."""
        return self.vision_config.patches_per_side**2 // self.scale_factor**2

    @property
    def shuffled_width(self) -> int:
        """Of the connector's input: the features of the patches that become one token."""
        return self.vision_config.hidden_size * self.scale_factor**2

    @property
    def parameters(self) -> int:
        """Parameter count of the three parts, with an lm_head of its own."""
        text, vision = self.text_config, self.vision_config
        attention = (
            text.hidden_size
            * text.head_dim
            * 2
            * (text.num_attention_heads + text.num_key_value_heads)
        )
        text_layer = (
            attention + 3 * text.hidden_size * text.intermediate_size + 2 * text.hidden_size
        )
        vision_layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
        return (
            text.num_hidden_layers * text_layer
            + 2 * text.vocab_size * text.hidden_size
            + vision.num_hidden_layers * vision_layer
            + self.shuffled_width * text.hidden_size
            + vision.hidden_size * (vision.patches_per_side**2 + 3 * vision.patch_size**2)
        )

    @classmethod
    def from_dict(cls, raw: Mapping[str, object]) -> "ModelConfig":
        """Read config.json's content.

        Raises:
            CheckpointError: it is no SmolVLM, or values are missing, of the wrong type or absurd
                (all named at once).
        """
        if raw.get("model_type") not in MODEL_TYPES:
            raise CheckpointError(
                f"config.json: model_type is {quote(raw.get('model_type'))}, not one of "
                f"{', '.join(MODEL_TYPES)}; choose a SmolVLM or SmolVLM2 checkpoint"
            )
        problems: list[str] = []
        text_raw = _mapping(raw, "text_config", problems)
        text = _section(
            TextConfig, {**text_raw, **_rope(text_raw, problems)}, "text_config", problems
        )
        vision = _section(
            VisionConfig, _mapping(raw, "vision_config", problems), "vision_config", problems
        )
        config = _section(
            cls, {**raw, "text_config": text, "vision_config": vision}, "config", problems
        )
        if not problems:
            problems += [f"text_config: {problem}" for problem in text.problems()]
            problems += [f"vision_config: {problem}" for problem in vision.problems()]
            problems += config.problems()
        if problems:
            raise CheckpointError(f"config.json: {'; '.join(problems)}")
        return config

    def problems(self) -> Iterator[str]:
        """As those of `TextConfig`, of the parts together."""
        text, side, r = self.text_config, self.vision_config.patches_per_side, self.scale_factor
        if side % r:
            yield f"{side} patches a side, scale_factor {r}"
        if self.image_token_id >= text.vocab_size:
            yield f"image_token_id {self.image_token_id} is beyond vocab_size {text.vocab_size}"
        if self.parameters > 100e9:
            yield f"{self.parameters:.1e} parameters (the family has up to 2.3e9)"
        widest = max(text.num_attention_heads * text.head_dim, self.shuffled_width)
        if widest > _LARGEST:
            sides = "heads x head_dim, or vision hidden_size x scale_factor^2"
            yield f"a layer is {widest} wide ({sides})"


def _mapping(raw: Mapping[str, object], key: str, problems: list[str]) -> Mapping[str, object]:
    value = raw.get(key, {})
    if not isinstance(value, Mapping):
        problems.append(f"{key} is not an object")
        return {}
    return value


# What a rope type has to say; more types are refused.
_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def _rope(text_raw: Mapping[str, object], problems: list[str]) -> dict[str, object]:
    """rope_theta, if it is where newer files have it, and how positions are scaled.

    The older place, rope_scaling, counts before the newer, rope_parameters, as in transformers.
    """
    name = "rope_scaling" if text_raw.get("rope_scaling") else "rope_parameters"
    rope = text_raw.get(name) or {}
    if not isinstance(rope, Mapping):
        problems.append(f"text_config: {name} is not an object")
        return {"rope_scaling": None}
    values = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, Mapping) for value in rope.values()):
        problems.append(f"text_config: {name} by kinds of layers (only one for all)")
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        problems.append(f"text_config: rope type {quote(kind)} (only {', '.join(_ROPE_KEYS)})")
    elif kind != "default":
        missing = [key for key in _ROPE_KEYS[kind] if rope.get(key) is None]
        problems += [f"text_config: rope type {quote(kind)} without {key}" for key in missing]
        if (part := rope.get("partial_rotary_factor", 1)) != 1:
            problems.append(f"text_config: partial_rotary_factor is {quote(part)} (only 1)")
        length = text_raw.get("max_position_embeddings", TextConfig.max_position_embeddings)
        raw = {"original_max_position_embeddings": length, **rope, "rope_type": kind}
        own = text_raw.get("original_max_position_embeddings")
        raw |= {} if own is None else {"original_max_position_embeddings": own}
        values["rope_scaling"] = _section(RopeScaling, raw, f"text_config: {name}", problems)
    return {"rope_scaling": None, **values}


def _section(
    cls: type[Section], raw: Mapping[str, object], name: str, problems: list[str]
) -> Section:
    """Build one dataclass from the keys it knows; what is wrong goes to `problems` and takes the
    default."""
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        value = raw.get(field.name)
        if value is None:
            continue
        problem = _problem(value, field.type, field.default, _LARGEST_OF.get(field.name, _LARGEST))
        if problem:
            problems.append(f"{name}: {field.name} {problem}")
        else:
            values[field.name] = (
                float(value) if field.type is float and isinstance(value, int) else value
            )
    return cls(**values)


def _problem(value: object, kind: object, default: object, largest: int) -> str | None:
    if kind is int:
        low = 0 if default == 0 else 1
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= largest:
            return f"is {quote(value)}, not an integer from {low} to {largest}"
    elif kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
            return f"is {quote(value)}, not a positive number"
    elif isinstance(kind, type) and not isinstance(value, kind):
        return f"is {quote(value)}, not a {kind.__name__}"
    return None
