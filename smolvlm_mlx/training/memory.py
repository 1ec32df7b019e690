"""How much memory a fine-tuning run takes, by arithmetic, before it begins. All sizes in bytes.

Counted: weights; what is trained, three times more (gradient, two moments, all float32 for adapters); one batch's
activations that the backward pass needs; logits of the answers; image features. Not counted: what the operating system and
other programs take, and MLX's own cache, which gives way when memory is short.
"""

from dataclasses import dataclass

from ..config import ModelConfig


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose."""

    weights: int
    trained: int  # gradients, moments and adapters
    activations: int
    logits: int
    vision: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations + self.logits + self.vision


def estimate(
    config: ModelConfig,
    *,
    weights: int,
    trainable: int,
    tokens: int,
    tiles: int,
    answer_tokens: int,
    width: int = 2,
    checkpointed: bool = False,
    trains_vision: bool = False,
    chunk: int = 8,
) -> Memory:
    """For batches of up to `tokens` tokens, padding included, and `tiles` tiles.

    Args:
        weights: bytes of the loaded checkpoint.
        trainable: numbers that are trained.
        answer_tokens: tokens with logits, of one batch.
        width: bytes of an activation, 2 in bfloat16 and float16.
        checkpointed: keep only each layer's input, and compute the rest again.
        trains_vision: the backward pass goes through the vision tower, too.
        chunk: tiles encoded at once otherwise.
    """
    text, vision = config.text_config, config.vision_config
    heads = text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    # Inputs, norms and outputs of both halves; queries, keys, values and mixed values; gate, up, silu and product.
    layer = 6 * text.hidden_size + heads + 4 * text.intermediate_size
    attention = text.num_attention_heads * tokens  # scores of a token with every other, made again in the backward pass
    per_token = text.num_hidden_layers * text.hidden_size + layer if checkpointed else text.num_hidden_layers * layer
    activations = width * tokens * (per_token + 2 * attention)
    patches = vision.patches_per_side**2
    vision_layer = 10 * vision.hidden_size + 3 * vision.intermediate_size
    if not trains_vision:
        kept = min(tiles, chunk) * vision_layer
    elif checkpointed:
        kept = tiles * vision.num_hidden_layers * vision.hidden_size + tiles * vision_layer
    else:
        kept = tiles * vision.num_hidden_layers * vision_layer
    scores = 2 * vision.num_attention_heads * patches * (tiles if trains_vision else min(tiles, chunk))
    return Memory(
        weights=weights,
        trained=4 * 4 * trainable,
        activations=activations,
        logits=3 * 4 * answer_tokens * text.vocab_size,
        vision=width * patches * (kept + scores),
    )
