"""What checkpoints, conversions and adapters can be, by name. Imports nothing heavy, so that --help
answers at once."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["bfloat16", "float16", "float32"]
Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128]
RecipeName = Literal[
    "bf16", "8bit", "6bit", "4bit", "4bit-8bit-embeddings", "8bit-vision", "4bit-vision"
]
Layout = Literal["mlx", "huggingface"]
Part = Literal["decoder", "connector", "vision"]
Size = Literal["256M", "500M", "2.2B"]


@dataclass(frozen=True)
class Recipe:
    """What a conversion makes of the weights. None for bits keeps a part in `dtype`.

    The small decoders are the fragile part below 8 bits. All that the model sees passes the
    connector, so tower and connector keep 16 bits unless `vision_bits` is set, and the connector
    has 8 bits even then.
    """

    bits: int | None = None  # decoder layers
    group_size: GroupSize = 64  # weights that share a scale
    embedding_bits: int | None = None  # embedding table and lm_head
    vision_bits: int | None = None
    dtype: Dtype = "bfloat16"  # of all that is not quantized, scales included

    def module_bits(self, module: str) -> int | None:
        """Bits of a Linear or Embedding by its path; None: not quantized."""
        if module.startswith("language_model.layers."):
            return self.bits
        if module.startswith("language_model."):
            return self.embedding_bits
        if module.startswith("connector."):
            return None if self.vision_bits is None else 8
        return None if module.endswith("position_embedding") else self.vision_bits

    @property
    def quantizes(self) -> bool:
        return any((self.bits, self.embedding_bits, self.vision_bits))


RECIPES = {
    "bf16": Recipe(),
    "8bit": Recipe(bits=8, embedding_bits=8),
    "6bit": Recipe(bits=6, embedding_bits=6),
    "4bit": Recipe(bits=4, embedding_bits=4),
    "4bit-8bit-embeddings": Recipe(bits=4, embedding_bits=8),
    "8bit-vision": Recipe(bits=8, embedding_bits=8, vision_bits=8),
    "4bit-vision": Recipe(bits=4, embedding_bits=4, vision_bits=4),
}
