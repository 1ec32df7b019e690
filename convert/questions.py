"""Questions about scenes, with their only right answers: one at a time to evaluate, whole conversations to train.

Each kind of question about one picture is a function of the scene and a `random.Random`; it returns question and answer, or
None where the scene leaves nothing to ask. Answers are short, without a full stop; only `describe` answers in a sentence.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from convert.world import COLORS, DIRECTIONS, SHAPES, WORDS, Scene, Thing, draw, make_frames, make_scene, make_text

Pair = tuple[str, str]  # question, answer
Part = dict[str, Any]  # of a message
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
NUMBERED = ("first", "second")
FACTS = (
    ("How many corners does a triangle have?", "3"),
    ("How many corners does a square have?", "4"),
    ("How many points does a star have?", "5"),
    ("Does a circle have corners?", "no"),
    ("Which shape is round?", "circle"),
    ("What color is grass?", "green"),
    ("What color is the sky?", "blue"),
    ("What color is a lemon?", "yellow"),
    ("What color is the night?", "black"),
    ("Which shapes do you know?", "circle, square, triangle, star, diamond and cross"),
    ("Which colors do you know?", "red, orange, yellow, green, blue, purple, pink and black"),
    ("Hello!", "Hello! Show me a picture of shapes."),
    ("Who are you?", "I am a tiny model that knows shapes, colors and short texts."),
)


@dataclass(frozen=True)
class Question:
    """Messages that end with a question, and its answer. `split` is for the processor: frames are one tile each."""

    kind: str
    messages: list[dict[str, Any]]
    answer: str
    split: bool = True


# ---- one picture


def what(scene: Scene, rng: Random) -> Pair | None:
    """A place's content, or the shape of a color."""
    color = _unique(rng, [thing.color for thing in scene.shapes])
    if color is not None and rng.random() < 0.35:
        answer = next(thing.shape for thing in scene.shapes if thing.color == color)
        return rng.choice((f"What shape is {color}?", f"Which shape is the {color} one?")), answer
    return what_is_in(scene, rng, rng.choice(scene.places))


def what_is_in(scene: Scene, rng: Random, place: str) -> Pair:
    form = rng.choice(("What is {}?", "What is {}?", "What do you see {}?", "And {}?"))
    return form.format(_in(place)), _name(scene.at(place))


def color(scene: Scene, rng: Random) -> Pair | None:
    texts, shape = scene.texts, _unique(rng, [thing.shape for thing in scene.shapes])
    if len(texts) == 1 and (shape is None or rng.random() < 0.2):
        return "What color is the text?", texts[0].color
    if shape is None:
        return None
    form = rng.choice(("What color is the {}?", "What colour is the {}?", "Which color does the {} have?"))
    return form.format(shape), next(thing.color for thing in scene.shapes if thing.shape == shape)


def how_many(scene: Scene, rng: Random) -> Pair | None:
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(("How many shapes are there?", "How many shapes do you see?")), str(len(scene.shapes))
    if kind < 0.75:
        name = _likely(rng, [thing.color for thing in scene.shapes], tuple(COLORS))
        return f"How many {name} shapes are there?", str(sum(thing.color == name for thing in scene.shapes))
    name = _likely(rng, [thing.shape for thing in scene.shapes], SHAPES)
    plural = name + ("es" if name == "cross" else "s")
    return f"How many {plural} are there?", str(sum(thing.shape == name for thing in scene.shapes))


def where(scene: Scene, rng: Random) -> Pair | None:
    names = [*(thing.shape for thing in scene.shapes), *("text" for _ in scene.texts)]
    names += [f"{thing.color} shape" for thing in scene.shapes]
    name = _unique(rng, names)
    if name is None:
        return None
    things = [thing for thing in scene.things if name in (thing.shape, f"{thing.color} shape") and thing.shape]
    thing = (things or [*scene.texts])[0]
    if thing.shape and rng.random() < 0.3 and sum(other.name == thing.name for other in scene.things) == 1:
        name = thing.name
    return f"Where is the {name}?", thing.place


def says(scene: Scene, rng: Random) -> Pair | None:
    if not scene.texts:
        return None
    thing = rng.choice(scene.texts)
    if len(scene.texts) > 1 or rng.random() < 0.2:
        return f"What does the text {_in(thing.place)} say?", thing.text
    return rng.choice(("What does the text say?", "What does it say?", "Read the text.")), thing.text


def yes_or_no(scene: Scene, rng: Random) -> Pair | None:
    """As often yes as no."""
    wanted = rng.random() < 0.5
    for _ in range(40):
        question, holds = _claim(scene, rng)
        if holds == wanted:
            return question, "yes" if holds else "no"
    return None


def _claim(scene: Scene, rng: Random) -> tuple[str, bool]:
    seen = rng.choice(scene.shapes) if scene.shapes and rng.random() < 0.7 else None
    shape = seen.shape if seen is not None else rng.choice(SHAPES)
    hue = seen.color if seen is not None and rng.random() < 0.6 else rng.choice(tuple(COLORS))
    place = rng.choice(scene.places)
    names = {thing.name for thing in scene.things}
    kind = rng.randrange(6)
    if kind == 0:
        return f"Is there a {shape}?", any(thing.shape == shape for thing in scene.shapes)
    if kind == 1:
        return f"Is there any {hue} shape?", any(thing.color == hue for thing in scene.shapes)
    if kind == 2:
        return "Is there any text?", bool(scene.texts)
    if kind == 3:
        return f"Is there anything {_in(place)}?", scene.at(place) is not None
    if kind == 4 and seen is not None and sum(thing.shape == shape for thing in scene.shapes) == 1:
        return f"Is the {shape} {hue}?", seen.color == hue
    return f"Is there {_a(hue)} {shape}?", f"{hue} {shape}" in names


def size(scene: Scene, rng: Random) -> Pair | None:
    shape = _unique(rng, [thing.shape for thing in scene.shapes])
    if shape is None:
        return None
    answer = next(thing.size for thing in scene.shapes if thing.shape == shape)
    return rng.choice((f"Is the {shape} small or large?", f"How large is the {shape}?")), answer


def stripes(scene: Scene, rng: Random) -> Pair | None:
    striped = [thing for thing in scene.things if thing.stripes]
    if len(striped) != 1:
        return None
    return rng.choice(("Are the stripes horizontal or vertical?", "Which way do the stripes go?")), striped[0].stripes


def describe(scene: Scene, rng: Random) -> Pair | None:
    said = [
        (f"{_a(thing.size)} {thing.size} {thing.name}" if thing.shape else f"the text {thing.text}", thing.place)
        for thing in scene.things
    ]
    parts = [f"{name} {_in(place)}" for name, place in said]
    sentence = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    question = rng.choice(("Describe the picture.", "What is in the picture?", "Can you describe this image?"))
    return question, sentence[0].upper() + sentence[1:] + "."


Ask = Callable[[Scene, Random], Pair | None]
KINDS: dict[str, Ask] = {
    "what": what,
    "color": color,
    "how many": how_many,
    "where": where,
    "text": says,
    "yes or no": yes_or_no,
    "size": size,
    "stripes": stripes,
    "describe": describe,
}


# ---- several pictures, several turns, no picture


def compare(rng: Random) -> tuple[list[Part], Callable[[], Pair]]:
    """Two pictures of one form, and a source of questions about them."""
    first = make_scene(rng, rng.choice(((128, 64), (128, 64), (64, 128), (128, 128))))
    second = make_scene(rng, first.size)
    both = (first, second)

    def pair() -> Pair:
        kind = rng.randrange(4)
        if kind == 0:
            name = rng.choice(
                [thing.shape or "text" for scene in both for thing in scene.things] + [rng.choice(SHAPES)]
            )
            has = [any(name == (thing.shape or "text") for thing in scene.things) for scene in both]
            return f"Which picture has a {name}?", _which(*has)
        if kind == 1:
            counts = [len(scene.shapes) for scene in both]
            return "Which picture has more shapes?", _which(counts[0] > counts[1], counts[1] > counts[0])
        if kind == 2:
            hue = _likely(rng, [thing.color for scene in both for thing in scene.shapes], tuple(COLORS))
            has = [any(thing.color == hue for thing in scene.shapes) for scene in both]
            return f"Do both pictures have {_a(hue)} {hue} shape?", "yes" if all(has) else "no"
        number, place = rng.randrange(2), rng.choice(first.places)
        return f"What is {_in(place)} of the {NUMBERED[number]} picture?", _name(both[number].at(place))

    return [_picture(first), _picture(second)], pair


def frames(rng: Random) -> tuple[list[Part], Callable[[], Pair]]:
    """A short video, and a source of questions about it. The words around frames are SmolVLM2's own."""
    thing, direction, scenes = make_frames(rng)
    count, parts = len(scenes), []
    text = (
        f"You are provided the following series of {NUMBERS[count]} frames from a 0:00:{count:02d} [H:MM:SS] video.\n"
    )
    for second, scene in enumerate(scenes):
        parts += [_text(f"{text}\nFrame from 00:{second:02d}:"), _picture(scene)]
        text = ""
    parts.append(_text("\n\n"))

    def pair() -> Pair:
        kind = rng.random()
        if kind < 0.6:
            return rng.choice((f"Which way does the {thing.shape} move?", "Which way does it move?")), direction
        if kind < 0.8:
            return "What moves?", f"{_a(thing.name)} {thing.name}"
        wanted = direction if rng.random() < 0.5 else rng.choice(DIRECTIONS)
        return f"Does the {thing.shape} move {wanted}?", "yes" if wanted == direction else "no"

    return parts, pair


def _remember(rng: Random) -> list[Pair]:
    if rng.random() < 0.5:
        hue = rng.choice(tuple(COLORS))
        return [(f"My favorite color is {hue}.", "OK."), ("What is my favorite color?", hue)]
    word = make_text(rng)
    return [(f"Remember {word}.", "OK."), ("What did I ask you to remember?", word)]


def follow_up(scene: Scene, rng: Random) -> list[Pair]:
    """A question about a place, and one about "it"."""
    shapes = scene.shapes
    if not shapes:
        return []
    thing = rng.choice(shapes)
    if rng.random() < 0.5:
        first = f"What is {_in(thing.place)}?", _name(thing)
    else:
        name = _unique(rng, [shape.shape for shape in shapes])
        if name is None:
            return []
        thing = next(shape for shape in shapes if shape.shape == name)
        first = f"Where is the {name}?", thing.place
    second = rng.choice(
        (("Is it small or large?", thing.size), ("What color is it?", thing.color), ("What shape is it?", thing.shape))
    )
    return [first, second]


def text_alone(rng: Random) -> Pair:
    """Facts of this world, copying and counting."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(FACTS)
    if kind < 0.7:
        said = rng.choice((make_text(rng), rng.choice(WORDS), f"{rng.choice(tuple(COLORS))} {rng.choice(SHAPES)}"))
        return rng.choice((f"Say {said}", f"Repeat: {said}")), said
    if kind < 0.85:
        start = rng.randint(0, 9)
        end = start + rng.randint(1, 6)
        return f"Count from {start} to {end}.", " ".join(map(str, range(start, end + 1)))
    if kind < 0.93:
        number = rng.randint(0, 20)
        return f"What comes after {number}?", str(number + 1)
    word = rng.choice(WORDS)
    return f"How many letters are in {word}?", str(len(word))


# ---- whole samples

MEASURED = (*KINDS, "two pictures", "frames", "earlier turn", "text alone")


def make_question(kind: str, rng: Random) -> Question:
    """One question of a kind in `MEASURED`."""
    if kind == "two pictures":
        parts, pair = compare(rng)
        return _question(kind, parts, [pair()])
    if kind == "frames":
        parts, pair = frames(rng)
        return _question(kind, parts, [pair()], split=False)
    if kind == "text alone":
        return _question(kind, [], [text_alone(rng)])
    if kind == "earlier turn" and rng.random() < 0.3:
        return _question(kind, [], _remember(rng))
    pairs: list[Pair] = []
    while not pairs:
        scene = make_scene(rng, with_text=True if kind == "text" else None)
        found = KINDS[kind](scene, rng) if kind in KINDS else None
        pairs = [found] if found is not None else follow_up(scene, rng) if kind == "earlier turn" else []
    return _question(kind, [_picture(scene)], pairs)


def make_conversation(rng: Random) -> Question:
    """Several questions of mixed kinds about one picture (or two, or frames, or none), the last answered by `answer`."""
    kind = rng.random()
    if kind < 0.12:
        parts, pair = compare(rng)
        return _question("two pictures", parts, _different(pair, 4))
    if kind < 0.22:
        parts, pair = frames(rng)
        return _question("frames", parts, _different(pair, 3), split=False)
    if kind < 0.27:
        return _question("text alone", [], _different(lambda: text_alone(rng), 4))
    if kind < 0.30:
        return _question("earlier turn", [], [*_different(lambda: text_alone(rng), rng.randrange(3)), *_remember(rng)])
    scene = make_scene(rng)
    if kind < 0.38:
        pairs = follow_up(scene, rng) + follow_up(scene, rng)
        if pairs:
            return _question("earlier turn", [_picture(scene)], pairs)
    pairs = [what_is_in(scene, rng, place) for place in scene.places] if rng.random() < 0.5 else []
    pairs += [pair for kind in KINDS for pair in [KINDS[kind](scene, rng)] if pair is not None]
    pairs += [pair for thing in scene.texts for pair in [says(scene, rng)] if pair is not None]
    rng.shuffle(pairs)
    return _question("one picture", [_picture(scene)], list(dict.fromkeys(pairs))[: rng.randint(4, 7)])


def write_questions(out: Path, count: int, name: str = "test", kinds: Sequence[str] = MEASURED) -> Path:
    """Questions of all kinds in turn as questions.jsonl, for `smolvlm-mlx evaluate`, with their pictures as PNG.

    `name` goes into the seeds: "test" was never trained on.
    """
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        question = make_question(kinds[number % len(kinds)], Random(f"{name} {number}"))
        row = {"messages": question.messages, "answers": [question.answer], "category": question.kind}
        for place, part in enumerate(part for message in question.messages for part in message["content"]):
            if part["type"] == "image":
                path = f"pictures/{number:05d}-{place}.png"
                part.pop("image").save(out / path)
                part["path"] = path
        lines.append(json.dumps(row if question.split else {**row, "split": False}))
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return out / "questions.jsonl"


def _question(kind: str, parts: list[Part], pairs: Sequence[Pair], split: bool = True) -> Question:
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(pairs):
        content = [*parts, _text(question)] if number == 0 else [_text(question)]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [_text(answer)]},
        ]
    return Question(kind, messages[:-1], pairs[-1][1], split)


def _different(pair: Callable[[], Pair], count: int) -> list[Pair]:
    return list(dict.fromkeys(pair() for _ in range(count)))


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _picture(scene: Scene) -> Part:
    return {"type": "image", "image": draw(scene)}


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _in(place: str) -> str:
    return {"left": "on the", "right": "on the", "top": "at the", "bottom": "at the"}.get(place, "in the") + f" {place}"


def _name(thing: Thing | None) -> str:
    if thing is None:
        return "nothing"
    return f"{_a(thing.name)} {thing.name}" if thing.shape else f"the text {thing.text}"


def _which(first: bool, second: bool) -> str:
    return ("neither", "the second", "the first", "both")[2 * first + second]


def _unique(rng: Random, names: list[str]) -> str | None:
    """One of those that are there once."""
    once = [name for name, count in Counter(names).items() if count == 1]
    return rng.choice(once) if once else None


def _likely(rng: Random, there: list[str], every: tuple[str, ...]) -> str:
    """Mostly one that is there."""
    return rng.choice(there) if there and rng.random() < 0.75 else rng.choice(every)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write questions about new pictures, with their answers.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    args = parser.parse_args()
    print(write_questions(args.out, args.count))


if __name__ == "__main__":
    main()
