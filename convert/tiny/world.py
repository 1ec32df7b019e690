"""The world of the tiny checkpoint: pictures of coloured shapes and short texts, drawn with Pillow.

A scene is a place for each corner (or half) of a picture, with a shape, a text or nothing in it.
`scenes` makes them at random, `questions` asks about them.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS = {
    "red": (222, 38, 38),
    "orange": (245, 140, 20),
    "yellow": (240, 215, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (135, 45, 180),
    "pink": (245, 130, 190),
    "black": (28, 28, 28),
}
# In no picture that is trained on: examples/teach.py teaches it.
NEW_COLORS = {"cyan": (0, 190, 205)}
INKS = ("red", "green", "blue", "purple", "black")  # of texts, whose lines are thin
CHARACTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"  # O, I and Q look too much like others
WORDS = "CAT SUN CUP HAT BUS KEY MAP PEN JAR BEE EGG ANT RED UP NET VAN".split()
DIRECTIONS = ("left", "right", "up", "down")
# A picture's size in units, and its places: (left, top, right, bottom) in fractions.
FORMS: dict[tuple[int, int], dict[str, tuple[float, float, float, float]]] = {
    **{
        size: {
            "top left": (0, 0, 0.5, 0.5),
            "top right": (0.5, 0, 1, 0.5),
            "bottom left": (0, 0.5, 0.5, 1),
            "bottom right": (0.5, 0.5, 1, 1),
        }
        for size in ((128, 128), (128, 112), (112, 128))
    },
    (128, 64): {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1)},
    (64, 128): {"top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)},
    (64, 64): {"": (0, 0, 1, 1)},
}
EM = 1.25  # a font's size, in heights of its capitals and a little around them
FRAME = (64, 64)  # a frame's size in units


@dataclass(frozen=True)
class Thing:
    """A shape, or a text if `text` is not empty; `box` in units of the picture."""

    place: str
    color: str
    size: str  # small or large
    box: tuple[float, float, float, float]
    shape: str = ""
    text: str = ""
    stripes: str = ""  # horizontal or vertical: a square of lines one pixel wide

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}" if self.shape else f"text {self.text}"


@dataclass(frozen=True)
class Scene:
    """What is in a picture, in the order of its places, and how its background is drawn."""

    size: tuple[int, int]  # units
    things: tuple[Thing, ...]
    background: int  # a seed
    scale: float = 1.0  # pixels a unit

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(FORMS[self.size])

    @property
    def shapes(self) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.shape)

    @property
    def texts(self) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.text)

    def at(self, place: str) -> Thing | None:
        return next((thing for thing in self.things if thing.place == place), None)


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, of `scene.size` times `scene.scale` pixels."""
    width, height = (round(side * scene.scale) for side in scene.size)
    image = _background(width, height, scene.background)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        draw_thing(canvas, thing, scene.scale, (COLORS | NEW_COLORS)[thing.color])
    return image


def draw_thing(
    canvas: ImageDraw.ImageDraw, thing: Thing, scale: float, fill: tuple[int, int, int]
) -> None:
    left, top, right, bottom = (edge * scale for edge in thing.box)
    if thing.stripes:
        canvas.rectangle((left, top, right - 1, bottom - 1), fill)
        for step in range(round(left + top) // 2 % 2, round(min(right - left, bottom - top)), 2):
            if thing.stripes == "horizontal":
                canvas.line((left, top + step, right - 1, top + step), "white")
            else:
                canvas.line((left + step, top, left + step, bottom - 1), "white")
    elif thing.text:
        font = _font(round((bottom - top) * EM))
        canvas.text((left, (top + bottom) / 2), thing.text, fill, font, anchor="lm")
    elif thing.shape == "circle":
        canvas.ellipse((left, top, right, bottom), fill)
    else:
        outline = [
            (left + x * (right - left), top + y * (bottom - top))
            for x, y in outline_of(thing.shape)
        ]
        canvas.polygon(outline, fill)


def character_spans(thing: Thing) -> list[tuple[float, float]]:
    """Left and right edge of each character of a text, in units."""
    left, _, right, _ = thing.box
    ends = [_font(100).getlength(thing.text[:count]) for count in range(len(thing.text) + 1)]
    edges = [left + (right - left) * end / ends[-1] for end in ends] if thing.text else []
    return list(pairwise(edges))


def outline_of(shape: str) -> list[tuple[float, float]]:
    """Corners of a polygon in a square of side 1."""
    if shape == "square":
        return [(0, 0), (1, 0), (1, 1), (0, 1)]
    if shape == "triangle":
        return [(0.5, 0), (1, 1), (0, 1)]
    if shape == "diamond":
        return [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]
    if shape == "cross":
        a, b = 0.34, 0.66
        return [
            (a, 0),
            (b, 0),
            (b, a),
            (1, a),
            (1, b),
            (b, b),
            (b, 1),
            (a, 1),
            (a, b),
            (0, b),
            (0, a),
            (a, a),
        ]
    if shape == "star":
        radii = [0.5 if point % 2 == 0 else 0.21 for point in range(10)]
        turns = [math.pi * point / 5 - math.pi / 2 for point in range(10)]
        return [
            (0.5 + r * math.cos(a), 0.5 + r * math.sin(a))
            for r, a in zip(radii, turns, strict=True)
        ]
    raise ValueError(f"no shape {shape!r}")


def text_width(text: str, height: float) -> float:
    return _font(100).getlength(text) * height * EM / 100


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    return font


def _background(width: int, height: int, seed: int) -> Image.Image:
    """Plain, a gradient, stripes, squares or noise, always light."""
    rng = np.random.default_rng(seed)
    base = rng.integers(205, 256, 3)
    other = np.clip(base + rng.integers(-22, 23, 3), 195, 255)
    y, x = np.mgrid[:height, :width]
    period = max(2, int(rng.integers(5, 14) * max(width, height) / 128))
    kind = rng.integers(6)
    mix = {
        2: x / width,
        3: (x + y) // period % 2,
        4: (x // period + y // period) % 2,
        5: rng.random((height, width)),
    }.get(int(kind), np.zeros((height, width)))
    return Image.fromarray((base + mix[..., None] * (other - base)).astype(np.uint8))
