"""Dense pretraining of the vision tower: each patch says what is on it.

Three throw-away heads on the tower's features are learned with it: the shape or character a patch
belongs to (or nothing), its color, and its own position. Five minutes of this replace hours of
learning to see from answers alone.
"""

from dataclasses import replace
from random import Random

from convert.tiny.scenes import make_crowd, make_scene
from convert.tiny.world import (
    CHARACTERS,
    COLORS,
    FRAME,
    SHAPES,
    Scene,
    character_spans,
    draw,
    draw_thing,
)
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.tiles import TileLayout, make_tiles, normalize
from smolvlm_mlx.model import SmolVLM

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

STEPS, CROWDS, PEAK = 1000, 14, 1e-3
CLASSES = ("nothing", *SHAPES, *CHARACTERS)
HUES = ("nothing", *COLORS)


class Heads(nn.Module):
    """Features (N, P, Dv) -> logits of class, color and position."""

    def __init__(self, width: int, patches: int):
        super().__init__()
        self.classes = nn.Linear(width, len(CLASSES))
        self.hues = nn.Linear(width, len(HUES))
        self.positions = nn.Linear(width, patches)

    def __call__(self, features: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        return self.classes(features), self.hues(features), self.positions(features)


def label_tiles(scene: Scene, layout: TileLayout, tile: int) -> NDArray[np.uint8]:
    """Class and hue of each pixel of the scene's tiles: (N, H, W, 2). A character fills its box."""
    image = Image.new("RGB", layout.grid)  # class, hue, unused
    canvas = ImageDraw.Draw(image)
    across, down = (pixels / units for pixels, units in zip(layout.grid, scene.size, strict=True))
    for thing in scene.things:
        left, top, right, bottom = thing.box
        stretched = replace(
            thing, stripes="", box=(left * across, top * down, right * across, bottom * down)
        )
        hue = HUES.index(thing.color)
        if thing.shape:
            draw_thing(canvas, stretched, 1, (CLASSES.index(thing.shape), hue, 0))
        for character, (start, end) in zip(thing.text, character_spans(thing), strict=True):
            box = (start * across, top * down, end * across, bottom * down)
            canvas.rectangle(box, (CLASSES.index(character), hue, 0))
    whole = np.asarray(image.resize((tile, tile), Image.Resampling.NEAREST))[None]
    if not layout.rows:
        return whole[..., :2]
    grid = (
        np.asarray(image).reshape(layout.rows, tile, layout.cols, tile, 3).transpose(0, 2, 1, 3, 4)
    )
    return np.concatenate([grid.reshape(-1, tile, tile, 3), whole])[..., :2]


def label_patches(labels: NDArray[np.uint8], patch: int) -> NDArray[np.int32]:
    """The most frequent label of each patch, (N, H, W) -> (N, P); nothing (0) only where a fifth is
    not covered."""
    N, H, _ = labels.shape
    n = H // patch
    pixels = (
        labels.reshape(N, n, patch, n, patch)
        .transpose(0, 1, 3, 2, 4)
        .reshape(N, n * n, patch * patch)
    )
    # (N, P, labels)
    counts = np.stack([(pixels == label).sum(-1) for label in range(int(labels.max()) + 1)], -1)
    counts[..., 0] = np.where(counts[..., 0] > 0.8 * patch * patch, patch * patch + 1, 0)
    labels_of: NDArray[np.int32] = counts.argmax(-1).astype(np.int32)
    return labels_of


def make_batch(
    step: int, settings: ImageSettings, patch: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Pixel values (N, H, W, 3), and class and hue of their patches (N, P)."""
    rng = Random(f"dense {step}")
    tiles, labels = [], []
    scenes = [make_crowd(rng) for _ in range(CROWDS)] + [
        make_scene(rng, with_text=wanted) for wanted in (True, None)
    ]
    for scene in scenes:
        picture = make_tiles(draw(scene), replace(settings, split=scene.size != FRAME))
        tiles.append(picture.tiles)
        labels.append(label_tiles(scene, picture.layout, settings.tile_size))
    both = np.concatenate(labels)
    classes, hues = (mx.array(label_patches(both[..., channel], patch)) for channel in (0, 1))
    return mx.array(normalize(np.concatenate(tiles), settings)), classes, hues


def pretrain(model: SmolVLM, settings: ImageSettings, steps: int = STEPS) -> dict[str, float]:
    """Train `model.vision_model` in place; the share of patches that the heads name rightly at the
    end."""
    config = model.config.vision_config
    heads = Heads(config.hidden_size, config.patches_per_side**2)
    both = nn.Module()
    both.tower, both.heads = model.vision_model, heads
    positions = mx.arange(config.patches_per_side**2)

    def loss_of(both: nn.Module, batch: tuple[mx.array, mx.array, mx.array]) -> mx.array:
        pixel_values, classes, hues = batch
        logits = both.heads(both.tower(pixel_values))
        targets = classes, hues, mx.broadcast_to(positions, classes.shape)
        losses = [nn.losses.cross_entropy(*pair) for pair in zip(logits, targets, strict=True)]
        weights = mx.where(classes == 0, 0.2, 1.0)  # most patches show nothing
        return ((losses[0] + losses[1] + 0.2 * losses[2]) * weights).sum() / weights.sum()

    schedule = optimizers.join_schedules(
        [
            optimizers.linear_schedule(0, PEAK, 100),
            optimizers.cosine_decay(PEAK, steps - 100, PEAK / 10),
        ],
        [100],
    )
    optimizer = optimizers.AdamW(learning_rate=schedule, weight_decay=0.02)
    group = mx.distributed.init()
    step_of = nn.value_and_grad(both, loss_of)
    for step in range(steps):
        batch = make_batch(step * group.size() + group.rank(), settings, config.patch_size)
        loss, gradients = step_of(both, batch)
        gradients, _ = optimizers.clip_grad_norm(nn.average_gradients(gradients), 1.0)
        optimizer.update(both, gradients)
        mx.eval(loss, both.parameters(), optimizer.state)
        if (step + 1) % 50 == 0 and group.rank() == 0:
            print(f"pretraining {step + 1} of {steps}  loss {loss.item():.4f}", flush=True)
    return measure(model, heads, settings)


def measure(model: SmolVLM, heads: Heads, settings: ImageSettings) -> dict[str, float]:
    """On pictures that were not trained on: how many patches of shapes, of characters, and of
    either for hues, are right."""
    batch = make_batch(-1, settings, model.config.vision_config.patch_size)
    classes, hues, positions = (
        np.array(logits.argmax(-1)) for logits in heads(model.vision_model(batch[0]))
    )
    truth, truth_hues = np.array(batch[1]), np.array(batch[2])
    shape, character = (truth > 0) & (truth <= len(SHAPES)), truth > len(SHAPES)
    return {
        "shapes": float((classes == truth)[shape].mean()),
        "characters": float((classes == truth)[character].mean()),
        "nothing": float((classes == truth)[truth == 0].mean()),
        "colors": float((hues == truth_hues)[truth > 0].mean()),
        "positions": float((positions == np.arange(positions.shape[1])).mean()),
    }
