"""The family's three sizes by their shapes, filled with random weights, and a picture of noise: to
measure without a download."""

import io
from dataclasses import replace

import mlx.core as mx
import numpy as np
from PIL import Image

from ..config import ModelConfig, TextConfig, VisionConfig
from ..inputs.settings import ImageSettings
from ..model import SmolVLM, optimize
from .choices import Form
from .names import Known
from .quantization import Quantization, quantize_modules


def _text(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, rope_theta: float = 100_000
) -> TextConfig:
    shape = (49280, hidden, inner, layers, heads, kv_heads)
    return TextConfig(
        *shape, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=rope_theta
    )


_BASE = VisionConfig(hidden_size=768, num_attention_heads=12, image_size=512, patch_size=16)
_SO400M = VisionConfig(
    1152, 4304, num_hidden_layers=27, num_attention_heads=16, image_size=384, patch_size=14
)


def _config(text: TextConfig, vision: VisionConfig, scale_factor: int) -> ModelConfig:
    return ModelConfig(text, vision, "smolvlm", image_token_id=49190, scale_factor=scale_factor)


SIZES = {  # config.json of the SmolVLM2 checkpoints
    "256M": _config(_text(576, 1536, 30, 9, 3), _BASE, 4),
    "500M": _config(_text(960, 2560, 32, 15, 5), _BASE, 4),
    "2.2B": _config(_text(2048, 8192, 24, 32, 32, 130_000), _SO400M, 3),
}


def config_of(known: Known) -> ModelConfig:
    """Return the shape of a published checkpoint, without a download."""
    config = SIZES[known.size]
    text = replace(
        config.text_config, vocab_size=known.vocab, max_position_embeddings=known.context
    )
    return replace(config, text_config=text)


def settings_of(config: ModelConfig) -> ImageSettings:
    """How pictures become tiles, by preprocessor_config.json of the same checkpoints."""
    side = config.vision_config.image_size
    return ImageSettings(side, 4 * side)


def random_model(config: ModelConfig, dtype: mx.Dtype, bits: int | None = None) -> SmolVLM:
    """A model for inference that answers nonsense at the speed of a real one.

    Args:
        bits: quantize the decoder and its embeddings, as a conversion with `--bits` does.

    Raises:
        CheckpointError: no such number of bits.
    """
    model = SmolVLM(config)
    model.set_dtype(dtype)
    if bits is not None:
        quantize_modules(
            model, Quantization(Form(bits)), lambda module: module.startswith("language_model.")
        )
    model.eval()
    # Evaluates layer by layer; float32 numbers that were drawn are gone as soon as they are cast.
    optimize(model)
    mx.eval(model.parameters())
    return model


def random_picture(size: tuple[int, int], random: np.random.Generator) -> bytes:
    """A JPEG like a photograph: smooth colours with fine noise. `size` is (width, height)."""
    width, height = size
    coarse = Image.fromarray(random.integers(0, 256, (11, 16, 3), np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    noise = random.integers(-12, 13, (height, width, 3), np.int16)
    out = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(
        out, "JPEG", quality=90
    )
    return out.getvalue()
