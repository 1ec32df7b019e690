"""Whole samples: conversations to train on, and single questions to evaluate.

Questions come from `questions` and `multi_image`; pictures from `scenes`.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from convert.tiny.multi_image import Part, compare, frames, picture_part, text_part
from convert.tiny.questions import (
    KINDS,
    Pair,
    counts,
    describe,
    follow_up,
    listed,
    remember,
    text_alone,
    what_is_in,
)
from convert.tiny.scenes import make_alike, make_crowd, make_scene
from convert.tiny.world import Scene


@dataclass(frozen=True)
class Question:
    """Messages that end with a question, and its answer. `split` is for the processor: frames are
    one tile each."""

    kind: str
    messages: list[dict[str, Any]]
    answer: str
    split: bool = True


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
        return _question(kind, [], remember(rng))
    pairs: list[Pair] = []
    while not pairs:
        scene = make_scene(rng, with_text=True if kind == "text" else None)
        found = KINDS[kind](scene, rng) if kind in KINDS else None
        pairs = (
            [found]
            if found is not None
            else follow_up(scene, rng)
            if kind == "earlier turn"
            else []
        )
    return _question(kind, [picture_part(scene)], pairs)


def make_conversation(rng: Random, easy: bool = False) -> Question:
    """Questions of mixed kinds about one picture (or two, or frames, or none), the last answered by
    `answer`.

    `easy`: only pictures of one tile, and no other frames or pictures beside them. What earlier
    answers give away is not learned from the picture, so dense answers come first, and few after
    them.
    """
    kind = rng.random()
    if kind < 0.1:
        return _question(
            "list",
            [picture_part(crowd := make_crowd(rng, 0.6))],
            [("List everything.", listed(crowd))],
            False,
        )
    if kind < 0.13:
        return _question("text alone", [], _different(lambda: text_alone(rng), 4))
    if kind < 0.15:
        return _question(
            "earlier turn",
            [],
            [*_different(lambda: text_alone(rng), rng.randrange(3)), *remember(rng)],
        )
    if kind < 0.35 and not easy:
        parts, pair = rng.choice((compare, frames))(rng)
        split = parts[0]["type"] == "image"
        return _question("two pictures" if split else "frames", parts, _different(pair, 3), split)
    split = not easy and rng.random() < 0.75
    scene = make_scene(rng, coarse=not split)
    if kind < 0.42:
        pairs = follow_up(scene, rng)
        if pairs:
            return _question("earlier turn", [picture_part(scene)], pairs, split)
    dense = [what_is_in(scene, rng, place) for place in scene.places]
    others = [
        pair
        for kind in KINDS
        for pair in [KINDS[kind](scene, rng)]
        if pair is not None and kind != "describe"
    ]
    rng.shuffle(dense)
    rng.shuffle(others)
    pairs = rng.choice(
        ([describe(scene, rng), *others[:2]], [*dense, *others[:2]], others[:3], others[:3])
    )
    return _question("one picture", [picture_part(scene)], list(dict.fromkeys(pairs)), split)


def make_easy(rng: Random) -> Question:
    """A conversation about one tile: a fraction of the work, and what is asked is the same."""
    return make_conversation(rng, easy=True)


def make_search(rng: Random) -> Question:
    """Often many questions whose answers need the whole picture, or two, and are not in the answers
    before; else as above."""
    kind = rng.random()
    if kind < 0.35:
        return make_conversation(rng)
    if kind < 0.58:
        parts, pair = compare(rng)
        return _question("two pictures", parts, _different(pair, 4))
    scene = make_scene(rng)
    if rng.random() < 0.5:
        scene = make_alike(scene, rng)
    kinds = rng.choices(("where", "how many", "yes or no"), (3, 3, 4), k=8)
    pairs = [pair for kind in kinds for pair in [KINDS[kind](scene, rng)] if pair is not None]
    if not pairs:  # two texts of one color leave little to ask
        return make_search(rng)
    return _question("one picture", [picture_part(scene)], list(dict.fromkeys(pairs))[:5])


def make_count(rng: Random) -> Question:
    """Often how many there are of each of many kinds and colors, half of it in one tile; else as
    above."""
    kind = rng.random()
    if kind < 0.15:
        return make_conversation(rng)
    if kind < 0.5:
        return make_search(rng)
    split = rng.random() < 0.5
    scene = make_scene(rng, coarse=not split)
    if rng.random() < 0.75:
        scene = make_alike(scene, rng)
    return _question("one picture", [picture_part(scene)], counts(scene, rng), split)


def question_about(scene: Scene, rng: Random, kinds: Sequence[str]) -> Question | None:
    """A question about a given picture, of one of `kinds` of KINDS; None where there is none to
    ask."""
    kind = rng.choice(kinds)
    pair = KINDS[kind](scene, rng)
    return None if pair is None else _question(kind, [picture_part(scene)], [pair])


def write_questions(
    out: Path, count: int, name: str = "test", kinds: Sequence[str] = MEASURED
) -> Path:
    """`count` questions of all kinds in turn; `name` goes into the seeds, of which "test" was never
    trained on."""
    return write_rows(
        out,
        (
            make_question(kinds[number % len(kinds)], Random(f"{name} {number}"))
            for number in range(count)
        ),
    )


def write_rows(out: Path, questions: Iterable[Question]) -> Path:
    """Questions as questions.jsonl, for `smolvlm-mlx evaluate` and `finetune`, with their pictures
    as PNG."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, question in enumerate(questions):
        row = {
            "messages": question.messages,
            "answers": [question.answer],
            "category": question.kind,
        }
        for place, part in enumerate(
            part for message in question.messages for part in message["content"]
        ):
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
        content = [*parts, text_part(question)] if number == 0 else [text_part(question)]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [text_part(answer)]},
        ]
    return Question(kind, messages[:-1], pairs[-1][1], split)


def _different(pair: Callable[[], Pair], count: int) -> list[Pair]:
    return list(dict.fromkeys(pair() for _ in range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write questions about new pictures, with their answers."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    args = parser.parse_args()
    print(write_questions(args.out, args.count))


if __name__ == "__main__":
    main()
