"""How much memory a fine-tuning run takes, by arithmetic, before it begins. All sizes in bytes.

Counted: weights; what is trained, four times in float32 (itself, gradient, two moments); one batch's activations that the
backward pass needs; logits of the answers; image features. Not counted: what the operating system and other programs take,
and MLX's own cache, which gives way when memory is short.
"""

from dataclasses import dataclass

from ..config import ModelConfig


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose."""

    weights: int
    trained: int
    activations: int
    logits: int
    vision: int
    pictures_apart: bool  # image features are made, and their memory is free again, before the decoder's work begins

    @property
    def total(self) -> int:
        decoder = self.activations + self.logits
        both = max(decoder, self.vision) if self.pictures_apart else decoder + self.vision
        return self.weights + self.trained + both


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
    chunk: int,
) -> Memory:
    """For batches of up to `tokens` tokens, padding included, and `tiles` tiles.

    Args:
        weights: bytes of the loaded checkpoint.
        trainable: numbers that are trained.
        answer_tokens: tokens with logits, of one batch.
        width: bytes of an activation, 2 in bfloat16 and float16.
        checkpointed: keep only each layer's input, and compute the rest again.
        trains_vision: the backward pass goes through the vision tower, too.
        chunk: tiles encoded at once, if the vision tower is not trained.
    """
    text, vision = config.text_config, config.vision_config
    heads = text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    # Inputs, norms and outputs of both halves; queries, keys, values and mixed values; gate, up, silu and product.
    layer = 6 * text.hidden_size + heads + 4 * text.intermediate_size
    # A backward pass has no fused attention: probabilities of each token with every other.
    layer += text.num_attention_heads * tokens
    per_token = text.num_hidden_layers * (text.hidden_size if checkpointed else layer) + layer
    activations = width * tokens * per_token
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
        pictures_apart=not trains_vision,
    )
