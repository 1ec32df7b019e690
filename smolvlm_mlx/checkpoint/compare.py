"""Two checkpoints side by side on built-in prompts and pictures: how far apart are their
predictions?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from PIL import Image, ImageDraw

from ..errors import CheckpointError
from ..inputs.messages import Message, text_message, user_message
from ..inputs.settings import ImageOptions
from .reader import load


@dataclass(frozen=True)
class Agreement:
    """`kl`: mean Kullback-Leibler divergence of the predictions, in nats. `top1`: share of equal
    top tokens."""

    prompt: str
    tokens: int
    kl: float
    top1: float


def compare(
    reference: str | Path,
    candidate: str | Path,
    revision: str | None = None,
    adapter: str | Path | None = None,
) -> list[Agreement]:
    """Predictions of `candidate` against those of `reference` at every position of the built-in
    conversations; `revision` and `adapter` are the reference's.

    The two are loaded one after the other. Positions of image placeholders, which predict nothing,
    are left out.

    Raises:
        CheckpointError: one cannot be used, or they are not the same model.
    """
    expected = list(_predict(reference, revision, adapter))
    found = []
    for (name, want_ids, want), (_, have_ids, have) in zip(
        expected, _predict(candidate), strict=True
    ):
        if want_ids != have_ids or want.shape != have.shape:
            raise CheckpointError(
                f"{reference} and {candidate} are not the same model: their prompts or "
                "vocabularies differ"
            )
        kl = (mx.exp(want) * (want - have)).sum(axis=-1).mean()
        equal = (want.argmax(axis=-1) == have.argmax(axis=-1)).sum()
        found.append(Agreement(name, len(want), float(kl), int(equal) / len(want)))
    return found


def _predict(
    checkpoint: str | Path, revision: str | None = None, adapter: str | Path | None = None
) -> Iterator[tuple[str, list[int], mx.array]]:
    """Name, token ids and log probabilities (T, V) of each conversation."""
    model, processor = load(checkpoint, revision=revision, adapter=adapter)
    for name, messages in conversations().items():
        inputs = processor(messages, ImageOptions(split=False), add_generation_prompt=False)
        pixel_values = mx.array(inputs.pixel_values) if len(inputs.tiles) else None
        logits = model(mx.array(inputs.input_ids)[None], pixel_values)[0]  # (T, V)
        text = [row for row, id in enumerate(inputs.input_ids) if id != model.config.image_token_id]
        log_probabilities = logits[mx.array(text)].astype(mx.float32)
        log_probabilities -= mx.logsumexp(log_probabilities, axis=-1, keepdims=True)
        mx.eval(log_probabilities)
        yield name, inputs.input_ids.tolist(), log_probabilities


def conversations() -> dict[str, Sequence[Message]]:
    """Short conversations with known pictures; their answers are part of the text that is
    predicted."""
    scene, chart = _scene(), _chart()
    return {
        "text": _exchange("What is the capital of France?", [], "The capital of France is Paris."),
        "picture": _exchange(
            "What do you see?", [scene], "A red circle and a blue square on a white background."
        ),
        "chart": _exchange("Which bar is the highest?", [chart], "The third bar is the highest."),
        "two pictures": _exchange(
            "What is different?", [scene, chart], "The first shows shapes, the second a chart."
        ),
    }


def _exchange(question: str, images: Sequence[Image.Image], answer: str) -> Sequence[Message]:
    return [user_message(question, images), text_message("assistant", answer)]


def _scene() -> Image.Image:
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 60, 150, 180), fill="red")
    draw.rectangle((190, 80, 290, 180), fill="blue")
    return image


def _chart() -> Image.Image:
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    for bar, height in enumerate((60, 120, 190, 90)):
        draw.rectangle(
            (30 + 70 * bar, 220 - height, 80 + 70 * bar, 220), fill=(40, 60 + 40 * bar, 160)
        )
    return image
