"""Whole samples: conversations to train on, and single questions to evaluate.

Besides those of `questions` about one picture: two pictures, frames of a short video, a question about the turn before, text
alone.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from convert.questions import (
    KINDS,
    Pair,
    article,
    describe,
    inside,
    likely,
    listed,
    named,
    text_alone,
    unique,
    what_is_in,
)
from convert.scenes import make_crowd, make_frames, make_scene, make_text
from convert.world import COLORS, DIRECTIONS, SHAPES, Scene, draw

Part = dict[str, Any]  # of a message
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
NUMBERED = ("first", "second")


@dataclass(frozen=True)
class Question:
    """Messages that end with a question, and its answer. `split` is for the processor: frames are one tile each."""

    kind: str
    messages: list[dict[str, Any]]
    answer: str
    split: bool = True


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
            hue = likely(rng, [thing.color for scene in both for thing in scene.shapes], tuple(COLORS))
            has = [any(thing.color == hue for thing in scene.shapes) for scene in both]
            return f"Do both pictures have {article(hue)} {hue} shape?", "yes" if all(has) else "no"
        number, place = rng.randrange(2), rng.choice(first.places)
        return f"What is {inside(place)} of the {NUMBERED[number]} picture?", named(both[number].at(place))

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
            return "What moves?", f"{article(thing.name)} {thing.name}"
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
        first = f"What is {inside(thing.place)}?", named(thing)
    else:
        name = unique(rng, [shape.shape for shape in shapes])
        if name is None:
            return []
        thing = next(shape for shape in shapes if shape.shape == name)
        first = f"Where is the {name}?", thing.place
    second = rng.choice(
        (("Is it small or large?", thing.size), ("What color is it?", thing.color), ("What shape is it?", thing.shape))
    )
    return [first, second]


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


def make_conversation(rng: Random, easy: bool = False) -> Question:
    """Questions of mixed kinds about one picture (or two, or frames, or none), the last answered by `answer`.

    `easy`: only pictures of one tile, and no other frames or pictures beside them. What earlier answers give away is not
    learned from the picture, so dense answers come first, and few after them.
    """
    kind = rng.random()
    if kind < 0.1:
        return _question(
            "list", [_picture(crowd := make_crowd(rng, 0.6))], [("List everything.", listed(crowd))], False
        )
    if kind < 0.13:
        return _question("text alone", [], _different(lambda: text_alone(rng), 4))
    if kind < 0.15:
        return _question("earlier turn", [], [*_different(lambda: text_alone(rng), rng.randrange(3)), *_remember(rng)])
    if kind < 0.35 and not easy:
        parts, pair = rng.choice((compare, frames))(rng)
        split = parts[0]["type"] == "image"
        return _question("two pictures" if split else "frames", parts, _different(pair, 3), split)
    split = not easy and rng.random() < 0.75
    scene = make_scene(rng, coarse=not split)
    if kind < 0.42:
        pairs = follow_up(scene, rng)
        if pairs:
            return _question("earlier turn", [_picture(scene)], pairs, split)
    dense = [what_is_in(scene, rng, place) for place in scene.places]
    others = [pair for kind in KINDS for pair in [KINDS[kind](scene, rng)] if pair is not None and kind != "describe"]
    rng.shuffle(dense)
    rng.shuffle(others)
    pairs = rng.choice(([describe(scene, rng), *others[:2]], [*dense, *others[:2]], others[:3], others[:3]))
    return _question("one picture", [_picture(scene)], list(dict.fromkeys(pairs)), split)


def question_about(scene: Scene, rng: Random, kinds: Sequence[str]) -> Question | None:
    """A question about a given picture, of one of `kinds` of KINDS; None where there is none to ask."""
    kind = rng.choice(kinds)
    pair = KINDS[kind](scene, rng)
    return None if pair is None else _question(kind, [_picture(scene)], [pair])


def write_questions(out: Path, count: int, name: str = "test", kinds: Sequence[str] = MEASURED) -> Path:
    """`count` questions of all kinds in turn; `name` goes into the seeds, of which "test" was never trained on."""
    return write_rows(
        out, (make_question(kinds[number % len(kinds)], Random(f"{name} {number}")) for number in range(count))
    )


def write_rows(out: Path, questions: Iterable[Question]) -> Path:
    """Questions as questions.jsonl, for `smolvlm-mlx evaluate` and `finetune`, with their pictures as PNG."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, question in enumerate(questions):
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


def _which(first: bool, second: bool) -> str:
    return ("neither", "the second", "the first", "both")[2 * first + second]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write questions about new pictures, with their answers.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    args = parser.parse_args()
    print(write_questions(args.out, args.count))


if __name__ == "__main__":
    main()
