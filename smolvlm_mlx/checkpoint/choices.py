"""What checkpoints, conversions and adapters can be, by name. Imports nothing heavy, so that --help
answers at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

ADAPTER_CONFIG = "adapter_config.json"  # of every maker
Dtype = Literal["bfloat16", "float16", "float32"]
Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128]
Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
RecipeName = Literal[
    "bf16",
    "8bit",
    "6bit",
    "4bit",
    "4bit-8bit-embeddings",
    "3bit",
    "8bit-vision",
    "4bit-vision",
    "mxfp8",
    "mxfp4",
    "nvfp4",
]
AdapterForm = Literal["mlx", "peft"]
Layout = Literal["mlx", "huggingface"]
Part = Literal["decoder", "connector", "vision"]
Size = Literal["256M", "500M", "2.2B"]


# (bits, group sizes) that MLX has in each mode. Floats of 4 and 8 bits share a scale of 8 bits and
# have no bias.
FORMS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": (get_args(Bits), get_args(GroupSize)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


class Form(NamedTuple):
    """How a weight is quantized; `group_size` weights share a scale."""

    bits: int
    group_size: int = 64
    mode: Mode = "affine"

    def __str__(self) -> str:
        name = "" if self.mode == "affine" else f"{self.mode} "
        return f"{name}{self.bits} bits in groups of {self.group_size}"


@dataclass(frozen=True)
class Recipe:
    """What a conversion makes of the weights. None for bits keeps a part in `dtype`.

    The small decoders are the fragile part below 8 bits. All that the model sees passes the
    connector, so tower and connector keep 16 bits unless `vision_bits` is set, and the connector
    has 8 bits even then. Where a mode does not have the bits of a part, that part is affine, in
    groups of 64.
    """

    bits: int | None = None  # decoder layers
    group_size: int = 64  # weights that share a scale
    embedding_bits: int | None = None  # embedding table and lm_head
    vision_bits: int | None = None
    # Of all that is not quantized, scales included; None: the source's, if it is quantized.
    dtype: Dtype | None = "bfloat16"
    mode: Mode = "affine"
    # Exceptions by module path, before all else; None: not quantized.
    modules: Mapping[str, Form | None] = field(default_factory=dict)
    keeps: bool = False  # what is quantized in the source stays so, in its forms

    def form(self, module: str) -> Form | None:
        """Form of a Linear or Embedding by its path; None: not quantized."""
        if module in self.modules:
            return self.modules[module]
        bits = self._bits(module)
        return None if bits is None else self.of_bits(bits)

    def of_bits(self, bits: int) -> Form:
        """Form of a part that has so many bits."""
        if self.mode == "affine" or bits in FORMS[self.mode][0]:
            return Form(bits, self.group_size, self.mode)
        return Form(bits)

    def _bits(self, module: str) -> int | None:
        if module.startswith("language_model.layers."):
            return self.bits
        if module.startswith("language_model."):
            return self.embedding_bits
        if module.startswith("connector."):
            return None if self.vision_bits is None else 8
        return None if module.endswith("position_embedding") else self.vision_bits

    @property
    def quantizes(self) -> bool:
        parts = (self.bits, self.embedding_bits, self.vision_bits)
        return any(parts) or any(self.modules.values())


KEPT = Recipe(dtype=None, keeps=True)
RECIPES = {
    "bf16": Recipe(),
    "8bit": Recipe(bits=8, embedding_bits=8),
    "6bit": Recipe(bits=6, embedding_bits=6),
    "4bit": Recipe(bits=4, embedding_bits=4),
    "4bit-8bit-embeddings": Recipe(bits=4, embedding_bits=8),
    "3bit": Recipe(bits=3, embedding_bits=3),
    "8bit-vision": Recipe(bits=8, embedding_bits=8, vision_bits=8),
    "4bit-vision": Recipe(bits=4, embedding_bits=4, vision_bits=4),
    "mxfp8": Recipe(bits=8, embedding_bits=8, group_size=32, mode="mxfp8"),
    "mxfp4": Recipe(bits=4, embedding_bits=4, group_size=32, mode="mxfp4"),
    "nvfp4": Recipe(bits=4, embedding_bits=4, group_size=16, mode="nvfp4"),
}
