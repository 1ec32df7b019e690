"""How much memory a fine-tuning run takes, by arithmetic, before it begins. All sizes in bytes.

Counted: weights; what is trained, four times in float32 (itself, gradient, two moments); one
batch's activations that the backward pass needs; logits of the answers; image features. Not
counted: what the operating system and other programs take, and MLX's own cache, which gives way
when memory is short.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import ModelConfig, TextConfig, VisionConfig


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose."""

    weights: int
    trained: int
    activations: int
    logits: int
    vision: int
    # Image features are made, and their memory is free again, before the decoder's work begins.
    pictures_apart: bool

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
    vision = config.vision_config
    encoded = tiles if trains_vision else min(tiles, chunk)
    return Memory(
        weights=weights,
        trained=4 * 4 * trainable,
        activations=width * tokens * _per_token(config.text_config, tokens, checkpointed),
        logits=3 * 4 * answer_tokens * config.text_config.vocab_size,
        vision=width
        * encoded
        * vision.patches_per_side**2
        * _per_patch(vision, width, checkpointed, trains_vision),
        pictures_apart=not trains_vision,
    )


def _per_token(text: TextConfig, tokens: int, checkpointed: bool) -> int:
    """Numbers that the decoder keeps of one of so many tokens."""
    heads = text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    # Inputs, norms and outputs of both halves; queries, keys, values and mixed values; gate, up,
    # silu and product.
    layer = 6 * text.hidden_size + heads + 4 * text.intermediate_size
    # A backward pass has no fused attention: probabilities of each token with every other.
    layer += text.num_attention_heads * tokens
    return _kept(text.num_hidden_layers, text.hidden_size, layer, checkpointed)


def _per_patch(vision: VisionConfig, width: int, checkpointed: bool, trained: bool) -> int:
    """Numbers of `width` bytes that the vision tower keeps of one patch, attention's scores
    included."""
    scores = vision.num_attention_heads * vision.patches_per_side**2  # with each other one
    if not trained:
        return 10 * vision.hidden_size + 3 * vision.intermediate_size + 2 * scores
    # GELU is float32 inside.
    layer = 10 * vision.hidden_size + 5 * vision.intermediate_size * 4 // width + scores
    return _kept(vision.num_hidden_layers, vision.hidden_size, layer, checkpointed)


def _kept(layers: int, hidden_size: int, layer: int, checkpointed: bool) -> int:
    """What all layers keep, and the gradients of the one at work: about two more of it, as
    measured."""
    return layers * hidden_size + 3 * layer if checkpointed else (layers + 2) * layer


def learning_bytes(
    config: ModelConfig, weights: int, prompts: Sequence[int], answer: int, tiles: int
) -> int:
    """Bytes that learning a quantization takes, in float32.

    Args:
        weights: bytes of the weights.
        prompts: tokens of each; `answer` more follow at most.
        tiles: that a tower learns from.
    """
    text, vision = config.text_config, config.vision_config
    # Both models' hidden states; the inputs of a block's layers, in the source and of one batch.
    decoder = 4 * text.hidden_size + text.num_attention_heads * text.head_dim
    tokens = (sum(prompts) + answer * len(prompts)) * (decoder + text.intermediate_size)
    patches = tiles * vision.patches_per_side**2
    tower = patches * (5 * vision.hidden_size + vision.intermediate_size)
    widest = max(text.intermediate_size, vision.intermediate_size if tiles else 0)
    # Two halves of two sums, in 64 bits, and as many for what is solved with them; the head's
    # weights as often.
    sums = 8 * widest**2 + 4 * text.vocab_size * text.hidden_size
    return weights + 4 * max(tokens, tower) + 8 * sums
