"""Scenes of the tiny checkpoint's world at random: all follows from the given `random.Random`, so a
seed names a picture."""

from dataclasses import replace
from random import Random

from convert.tiny.world import (
    CHARACTERS,
    COLORS,
    DIRECTIONS,
    FORMS,
    FRAME,
    INKS,
    SHAPES,
    WORDS,
    Scene,
    Thing,
    text_width,
)

STRIPES = ("horizontal", "vertical")
# Sides of shapes and heights of texts in units; by whether a picture is to be one tile.
SIZES = {
    False: {"small": (13, 20), "large": (32, 46)},
    True: {"small": (22, 29), "large": (44, 56)},
}
TEXT_SIZES = {
    False: {"small": (14, 16), "large": (20, 23)},
    True: {"small": (26, 29), "large": (30, 34)},
}
# Whole tiles: their pixels reach the tiles as they are.
UNSCALED = (128, 128), (128, 64), (64, 128)


def make_scene(
    rng: Random,
    size: tuple[int, int] | None = None,
    with_text: bool | None = None,
    coarse: bool = False,
) -> Scene:
    """1 to 4 things; a text is among them always, never, or (None) sometimes. `coarse`: to be seen
    in one tile."""
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


def make_alike(scene: Scene, rng: Random) -> Scene:
    """The scene with shapes of two kinds and two colors at most, so that there is something to
    count and to tell apart."""
    shapes, colors = rng.sample(SHAPES, 2), rng.sample(tuple(COLORS), 2)
    things = (
        replace(
            thing, color=rng.choice(colors), shape="square" if thing.stripes else rng.choice(shapes)
        )
        if thing.shape
        else thing
        for thing in scene.things
    )
    return replace(scene, things=tuple(things))


def make_text(rng: Random) -> str:
    """A word, a number, or 1 to 3 characters at random."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(WORDS)
    if kind < 0.4:
        return str(rng.randint(0, 99))
    return "".join(rng.choices(CHARACTERS, k=rng.randint(1, 3)))


def make_thing(
    rng: Random,
    form: tuple[int, int],
    place: str,
    text: str = "",
    coarse: bool = False,
    **fixed: str,
) -> Thing:
    """A thing of random looks somewhere in its place, not touching the edges."""
    left, top, right, bottom = (
        edge * side for edge, side in zip(FORMS[form][place], form * 2, strict=True)
    )
    big = fixed.get("size") or rng.choice(("small", "large"))
    if text:
        height = rng.uniform(*TEXT_SIZES[coarse][big])
        height = min(height, height * (right - left - 6) / text_width(text, height))
        width = text_width(text, height)
    else:
        width = height = rng.uniform(*SIZES[coarse][big])
    x = rng.uniform(left + 3, max(left + 3, right - 3 - width))
    y = rng.uniform(top + 3, max(top + 3, bottom - 3 - height))
    color = fixed.get("color") or rng.choice(INKS if text else tuple(COLORS))
    shape = "" if text else fixed.get("shape") or rng.choice(SHAPES)
    return Thing(place, color, big, (x, y, x + width, y + height), shape, text)


def make_striped(rng: Random, size: tuple[int, int], place: str) -> Thing:
    """A square of lines that only a tile shows: in the global tile, half as large, black and white
    lines become grey."""
    thing = make_thing(rng, size, place, shape="square", size="large")
    # Even, so that lines pair up in half the size.
    left, top, right, bottom = (2 * round(edge / 2) for edge in thing.box)
    return replace(thing, box=(left, top, right, bottom), stripes=rng.choice(STRIPES))


def make_crowd(rng: Random, texts: float = 0.75) -> Scene:
    """One tile with a small shape or (a share of `texts`) character in each of nine cells, row by
    row."""
    cell, things = FRAME[0] / 3, []
    for number in range(9):
        is_text = rng.random() < texts
        text = rng.choice(CHARACTERS) if is_text else ""
        thing = make_thing(
            rng, FRAME, "", text, size=rng.choice(("small", "large")) if is_text else "small"
        )
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
    steps = [
        low + rng.uniform(0, 5) + (high - low - 5) * step / (count - 1) for step in range(count)
    ]
    if direction in ("left", "up"):
        steps.reverse()
    spots = [
        (along, across) if direction in ("left", "right") else (across, along) for along in steps
    ]
    color = rng.choice(tuple(COLORS))
    shape = rng.choice(SHAPES)
    scale = rng.choice((1.0, 1.5, 2.0, 3.0))
    things = [Thing("", color, "small", (x, y, x + side, y + side), shape) for x, y in spots]
    return things[0], direction, [Scene(FRAME, (thing,), background, scale) for thing in things]
