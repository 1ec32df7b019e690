"""How the memory that this process may take is shared out, by arithmetic, so that it stays within
it whatever is asked. All sizes in bytes."""

from dataclasses import dataclass

from .. import device
from ..config import ModelConfig
from .image_cache import tiles_of
from .prefill import CHUNK

IMAGE_TOKENS = 2**28  # most for image tokens; thousands of tiles
CONTEXTS = 8  # prompts as long as the model's context: for more there is no use
LOGITS = 8  # rows of them at once


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose.

    Attributes:
        weights: of the model.
        work: what is computed of one chunk of tiles, or of a prompt.
        answers: keys and values of the answers that are being made, twice: a batch that grows is
            copied.
        conversations: keys and values of earlier ones, which may go on.
        image_tokens: of pictures that were seen.
        freed: buffers that MLX holds, to use them again.
    """

    weights: int
    work: int
    answers: int
    conversations: int
    image_tokens: int
    freed: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @classmethod
    def share(cls, config: ModelConfig, weights: int, width: int) -> "Memory":
        """Share out what `device.limit_memory` allowed: of what is left beside weights and work
        half is for answers, a quarter for conversations.

        One answer is always made, and one conversation kept, on however small a machine.

        Args:
            weights: bytes of the loaded model.
            width: bytes of a number that is computed, 2 in bfloat16 and float16.
        """
        work, freed = _work(config, width), device.most_freed()
        left = max(0, device.memory_limit() - weights - work - freed)
        context = token_bytes(config, width) * config.text_config.max_position_embeddings
        return cls(
            weights=weights,
            work=work,
            answers=min(left // 2, 2 * CONTEXTS * context),
            conversations=min(left // 4, CONTEXTS * context),
            image_tokens=min(left // 4, IMAGE_TOKENS),
            freed=freed,
        )

    def describe(self) -> str:
        """Return it in a line for people."""
        parts = (f"{name.replace('_', ' ')} {size / 1e9:.2f}" for name, size in vars(self).items())
        return f"up to {self.total / 1e9:.2f} GB ({', '.join(parts)})"


def needed(config: ModelConfig, weights: int, width: int) -> int:
    """Bytes that an answer takes whose prompt fills the model's context; arguments as of `share`.
    Whatever more is allowed makes other answers faster."""
    context = token_bytes(config, width) * config.text_config.max_position_embeddings
    return weights + _work(config, width) + context


def token_bytes(config: ModelConfig, width: int) -> int:
    """Keys and values of one token, in all layers."""
    text = config.text_config
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * width


def _work(config: ModelConfig, width: int) -> int:
    """The largest step: a chunk of tiles in the tower, or one of a prompt in the decoder, with the
    layer at work three times: a GPU is given the next ones before it is done."""
    text, vision, name = config.text_config, config.vision_config, device.name()
    patches = tiles_of(config) * vision.patches_per_side**2
    patch = 8 * vision.hidden_size + 3 * vision.intermediate_size
    pixels = 3 * vision.patch_size**2
    rows = min(CHUNK[name], text.max_position_embeddings)
    heads = text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    row = 6 * text.hidden_size + heads + 4 * text.intermediate_size
    if name == "cpu":  # which writes out the scores of attention
        patch += vision.num_attention_heads * vision.patches_per_side**2
        row += text.num_attention_heads * text.max_position_embeddings
    tower = patches * (3 * patch * width + pixels * (width + 4))
    decoder = 3 * rows * row * width + text.max_position_embeddings * text.hidden_size * width
    return max(tower, decoder) + 4 * 4 * LOGITS * text.vocab_size
