"""The world of the tiny checkpoint: pictures of coloured shapes and short texts, drawn with Pillow.

A scene is a place for each corner (or half) of a picture, with a shape, a text or nothing in it. Everything follows from the
given `random.Random`, so a seed names a picture. What is asked about scenes is in `questions`.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from random import Random

import numpy as np
from numpy.typing import NDArray
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
NEW_COLORS = {"cyan": (0, 190, 205)}  # never trained: for examples of fine-tuning
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
STRIPES = ("horizontal", "vertical")
# Sides of shapes and heights of texts in units; by whether a picture is to be one tile.
SIZES = {False: {"small": (13, 20), "large": (32, 46)}, True: {"small": (22, 29), "large": (44, 56)}}
TEXT_SIZES = {False: {"small": (14, 16), "large": (20, 23)}, True: {"small": (26, 29), "large": (30, 34)}}
UNSCALED = ((128, 128), (128, 64), (64, 128))  # whole tiles: their pixels reach the tiles as they are
FRAME = (64, 64)  # a frame's size in units
Pixels = NDArray[np.uint8]


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


def make_scene(
    rng: Random, size: tuple[int, int] | None = None, with_text: bool | None = None, coarse: bool = False
) -> Scene:
    """1 to 4 things; a text is among them always, never, or (None) sometimes. `coarse`: to be seen in one tile."""
    size = size or rng.choice([(128, 128)] * 3 + [form for form in FORMS if form != FRAME])
    places = list(FORMS[size])
    count = min(rng.choice((1, 2, 3, 3, 4, 4)), len(places))
    chosen = rng.sample(places, count)
    texts = rng.choice((0, 0, 1, 1, 2)) if with_text is None else int(with_text)
    things = []
    for number, place in enumerate(sorted(chosen, key=places.index)):
        is_text = number in rng.sample(range(count), min(texts, count))
        text = make_text(rng)[: 2 if coarse else 3] if is_text else ""
        things.append(make_thing(rng, size, place, text, coarse=coarse))
    if not (with_text is None or with_text == any(thing.text for thing in things)):
        return make_scene(rng, size, with_text, coarse)
    if not coarse and size in UNSCALED and texts == 0 and rng.random() < 0.4:
        number = rng.randrange(count)
        things[number] = make_striped(rng, size, things[number].place)
        return Scene(size, tuple(things), rng.getrandbits(32))
    return Scene(size, tuple(things), rng.getrandbits(32), rng.choice((1.0, 1.0, 1.5, 2.0, 2.5)))


def make_text(rng: Random) -> str:
    """A word, a number, or 1 to 3 characters at random."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(WORDS)
    if kind < 0.4:
        return str(rng.randint(0, 99))
    return "".join(rng.choices(CHARACTERS, k=rng.randint(1, 3)))


def make_thing(
    rng: Random, form: tuple[int, int], place: str, text: str = "", coarse: bool = False, **fixed: str
) -> Thing:
    """A thing of random looks somewhere in its place, not touching the edges."""
    left, top, right, bottom = (edge * side for edge, side in zip(FORMS[form][place], form * 2, strict=True))
    big = fixed.get("size") or rng.choice(("small", "large"))
    if text:
        height = rng.uniform(*TEXT_SIZES[coarse][big])
        height = min(height, height * (right - left - 6) / _width(text, height))
        width = _width(text, height)
    else:
        width = height = rng.uniform(*SIZES[coarse][big])
    x = rng.uniform(left + 3, max(left + 3, right - 3 - width))
    y = rng.uniform(top + 3, max(top + 3, bottom - 3 - height))
    color = fixed.get("color") or rng.choice(INKS if text else tuple(COLORS))
    shape = "" if text else fixed.get("shape") or rng.choice(SHAPES)
    return Thing(place, color, big, (x, y, x + width, y + height), shape, text)


def make_striped(rng: Random, size: tuple[int, int], place: str) -> Thing:
    """A square of lines that only a tile shows: in the global tile, half as large, black and white lines become grey."""
    thing = make_thing(rng, size, place, shape="square", size="large")
    left, top, right, bottom = (2 * round(edge / 2) for edge in thing.box)  # so that lines pair up in half the size
    return replace(thing, box=(left, top, right, bottom), stripes=rng.choice(STRIPES))


def make_crowd(rng: Random, texts: float = 0.75) -> Scene:
    """One tile with a small shape or (a share of `texts`) character in each of nine cells, row by row."""
    cell, things = FRAME[0] / 3, []
    for number in range(9):
        is_text = rng.random() < texts
        text = rng.choice(CHARACTERS) if is_text else ""
        thing = make_thing(rng, FRAME, "", text, size=rng.choice(("small", "large")) if is_text else "small")
        left, top, right, bottom = thing.box
        width, height = min(right - left, cell), min(bottom - top, cell)
        x = cell * (number % 3) + rng.uniform(0, cell - width)
        y = cell * (number // 3) + rng.uniform(0, cell - height)
        things.append(replace(thing, box=(x, y, x + width, y + height)))
    return Scene(FRAME, tuple(things), rng.getrandbits(32), rng.choice((1.0, 1.5, 2.0)))


def make_frames(rng: Random) -> tuple[Thing, str, list[Scene]]:
    """A shape that moves over 3 to 5 frames: the shape, its direction, the frames."""
    direction, count, background = rng.choice(DIRECTIONS), rng.randint(3, 5), rng.getrandbits(32)
    side = rng.uniform(13, 24)
    low, high = 2, FRAME[0] - 2 - side
    across = rng.uniform(low, high)
    steps = [low + rng.uniform(0, 5) + (high - low - 5) * step / (count - 1) for step in range(count)]
    if direction in ("left", "up"):
        steps.reverse()
    spots = [(along, across) if direction in ("left", "right") else (across, along) for along in steps]
    color, shape, scale = rng.choice(tuple(COLORS)), rng.choice(SHAPES), rng.choice((1.0, 1.5, 2.0, 3.0))
    things = [Thing("", color, "small", (x, y, x + side, y + side), shape) for x, y in spots]
    return things[0], direction, [Scene(FRAME, (thing,), background, scale) for thing in things]


# ---- drawing


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, of `scene.size` times `scene.scale` pixels."""
    width, height = (round(side * scene.scale) for side in scene.size)
    image = _background(width, height, scene.background)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        draw_thing(canvas, thing, scene.scale, (COLORS | NEW_COLORS)[thing.color])
    return image


def draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing, scale: float, fill: tuple[int, int, int]) -> None:
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
        outline = [(left + x * (right - left), top + y * (bottom - top)) for x, y in outline_of(thing.shape)]
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
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    if shape == "star":
        radii = [0.5 if point % 2 == 0 else 0.21 for point in range(10)]
        turns = [math.pi * point / 5 - math.pi / 2 for point in range(10)]
        return [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, turns, strict=True)]
    raise ValueError(f"no shape {shape!r}")


def _width(text: str, height: float) -> float:
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
