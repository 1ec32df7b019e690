"""Questions about two pictures, or the frames of a video."""

from collections.abc import Callable
from random import Random
from typing import Any

from convert.tiny.questions import Pair, article, inside, likely, named
from convert.tiny.scenes import make_frames, make_scene
from convert.tiny.world import COLORS, DIRECTIONS, SHAPES, Scene, draw

Part = dict[str, Any]  # of a message
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
NUMBERED = ("first", "second")


def compare(rng: Random) -> tuple[list[Part], Callable[[], Pair]]:
    """Two pictures of one form, and a source of questions about them."""
    first = make_scene(rng, rng.choice(((128, 64), (128, 64), (64, 128), (128, 128))))
    second = make_scene(rng, first.size)
    both = (first, second)

    def pair() -> Pair:
        kind = rng.randrange(4)
        if kind == 0:
            name = rng.choice(
                [thing.shape or "text" for scene in both for thing in scene.things]
                + [rng.choice(SHAPES)]
            )
            has = [any(name == (thing.shape or "text") for thing in scene.things) for scene in both]
            return f"Which picture has a {name}?", _which(*has)
        if kind == 1:
            counts = [len(scene.shapes) for scene in both]
            return "Which picture has more shapes?", _which(
                counts[0] > counts[1], counts[1] > counts[0]
            )
        if kind == 2:
            hue = likely(
                rng, [thing.color for scene in both for thing in scene.shapes], tuple(COLORS)
            )
            has = [any(thing.color == hue for thing in scene.shapes) for scene in both]
            return f"Do both pictures have {article(hue)} {hue} shape?", "yes" if all(has) else "no"
        number, place = rng.randrange(2), rng.choice(first.places)
        return f"What is {inside(place)} of the {NUMBERED[number]} picture?", named(
            both[number].at(place)
        )

    return [picture_part(first), picture_part(second)], pair


def frames(rng: Random) -> tuple[list[Part], Callable[[], Pair]]:
    """A short video, and a source of questions about it. The words around frames are SmolVLM2's
    own."""
    thing, direction, scenes = make_frames(rng)
    count, parts = len(scenes), []
    text = (
        f"You are provided the following series of {NUMBERS[count]} frames "
        f"from a 0:00:{count:02d} [H:MM:SS] video.\n"
    )
    for second, scene in enumerate(scenes):
        parts += [text_part(f"{text}\nFrame from 00:{second:02d}:"), picture_part(scene)]
        text = ""
    parts.append(text_part("\n\n"))

    def pair() -> Pair:
        kind = rng.random()
        if kind < 0.6:
            return rng.choice(
                (f"Which way does the {thing.shape} move?", "Which way does it move?")
            ), direction
        if kind < 0.8:
            return "What moves?", f"{article(thing.name)} {thing.name}"
        wanted = direction if rng.random() < 0.5 else rng.choice(DIRECTIONS)
        return f"Does the {thing.shape} move {wanted}?", "yes" if wanted == direction else "no"

    return parts, pair


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def picture_part(scene: Scene) -> Part:
    return {"type": "image", "image": draw(scene)}


def _which(first: bool, second: bool) -> str:
    return ("neither", "the second", "the first", "both")[2 * first + second]
