"""Teach the bundled checkpoint a color it has never heard of, in minutes, offline: LoRA on 160
pictures with something cyan.

    python examples/teach.py [--bits 4] [--out FOLDER]

Two of three questions are about the old world, so that nothing of it is forgotten. With --bits the
base is quantized first (QLoRA). At the end the adapter is fused into a checkpoint of its own, which
answers as base and adapter together do.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

from convert.tiny.conversations import MEASURED, Question, make_question, question_about, write_rows
from convert.tiny.scenes import make_scene
from smolvlm_mlx.checkpoint.choices import Recipe
from smolvlm_mlx.checkpoint.convert import convert
from smolvlm_mlx.events import Work
from smolvlm_mlx.tasks.evaluation import Result, evaluate
from smolvlm_mlx.training.plan import Plan
from smolvlm_mlx.training.run import prepare

NEW = "cyan"
PLAN = Plan(
    rank=16,
    alpha=32,
    epochs=4,
    batch_size=8,
    accumulate=1,
    learning_rate=1e-3,
    parts=("decoder", "connector"),
)


def cyan_question(rng: Random) -> Question:
    """About a picture with one cyan shape, whose color or place or name is asked for."""
    while True:
        scene = make_scene(rng)
        shapes = [
            number for number, thing in enumerate(scene.things) if thing.shape and not thing.stripes
        ]
        if not shapes:
            continue
        chosen = rng.choice(shapes)
        things = [
            replace(thing, color=NEW) if number == chosen else thing
            for number, thing in enumerate(scene.things)
        ]
        question = question_about(replace(scene, things=tuple(things)), rng, ("color", "what"))
        if question is not None and NEW in question.answer:
            return question


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, choices=(4, 8))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teach(args.out or Path(folder), args.bits)


def teach(
    out: Path, bits: int | None, train: int = 480, test: int = 200
) -> dict[str, tuple[float, float]]:
    """Before and after, in per cent right: of questions about cyan, and of old ones."""
    rng = Random("teach")
    kinds = list(MEASURED)
    lessons = [
        make_question(rng.choice(kinds), rng) if n % 3 else cyan_question(rng) for n in range(train)
    ]
    data = write_rows(out / "lessons", lessons)
    tests = {
        "new": write_rows(out / "new", [cyan_question(rng) for _ in range(test)]),
        "old": write_rows(
            out / "old", [make_question(kinds[n % len(kinds)], rng) for n in range(test)]
        ),
    }
    base: str | Path = "tiny"
    if bits is not None:
        base = out / f"tiny-{bits}bit"
        convert("tiny", base, Recipe(bits=bits, embedding_bits=bits))

    def measure(name: str, model: str | Path, adapter: Path | None = None) -> dict[str, Result]:
        return {
            kind: evaluate(model, path, out / f"{name}-{kind}.jsonl", adapter=adapter)
            for kind, path in tests.items()
        }

    before = measure("before", base)
    run = prepare(base, data, out / "run", PLAN)
    training = Work(run.train_in_steps())
    for record in training:
        print(f"step {record.step}  loss {record.loss:.4f}", end="\r", flush=True)
    adapter = training.result
    after = measure("after", base, adapter)
    fused = out / "fused"
    convert(base, fused, Recipe(dtype="float32"), adapter=adapter)
    together = measure("fused", fused)
    for kind in tests:
        shares = before[kind].score.mean, after[kind].score.mean
        print(
            f"{kind} questions: {100 * shares[0]:.1f} per cent right before, {100 * shares[1]:.1f} "
            "after"
        )
    same = [after[kind].agreement(together[kind]) for kind in tests]
    print(f"answers of the fused checkpoint that are the same: {100 * min(same):.1f} per cent")
    return {kind: (before[kind].score.mean, after[kind].score.mean) for kind in tests}


if __name__ == "__main__":
    main()
