"""How often answers go in circles, by the settings they are made with; and whether true texts are
taken for such answers.

    python tests/bench/loops.py ask CHECKPOINT STATE.jsonl [--chatml] [--tokens 256]
    python tests/bench/loops.py texts CHECKPOINT FOLDER ...

`ask` goes on where it was stopped: each answer is a line of the state. Answers are made to their
end or to the longest length, and then it is seen whether and where they would have been ended.
With `--chatml` they are asked as SmolLM2 was taught, whose decoder may be in a checkpoint: in the
family's prompt it is unsure of its first word already (0.2 against 0.8 for the likeliest), and ends
many answers before they begin.
`texts` reads every file of text in the folders as if a model had written it, and lists those that
would have been ended. With OPENBLAS_NUM_THREADS=1 other processes are disturbed less.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from smolvlm_mlx import Options, load
from smolvlm_mlx.events import Work
from smolvlm_mlx.generation.decoding import Decoder, Row
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.repetition import RepetitionDetector
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.prompt import ChatTemplate
from smolvlm_mlx.inputs.tokenizer import Tokenizer
from smolvlm_mlx.model.cache import BatchKVCache

import mlx.core as mx

QUESTIONS = Path(__file__).with_name("questions.txt")
SUFFIXES = (".py", ".md", ".rst", ".txt", ".json", ".html", ".css", ".js", ".csv", ".toml", "")
# The template of SmolLM2-135M-Instruct, of words alone.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for line in message['content'] %}{{ line['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition_penalty 1.05": {"repetition_penalty": 1.05},
    "repetition_penalty 1.1": {"repetition_penalty": 1.1},
    "repetition_penalty 1.2": {"repetition_penalty": 1.2},
    "temperature 0.2": {"temperature": 0.2},
    "temperature 0.3": {"temperature": 0.3},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 0.3, repetition_penalty 1.05": {"temperature": 0.3, "repetition_penalty": 1.05},
    "temperature 0.3, repetition_penalty 1.1": {"temperature": 0.3, "repetition_penalty": 1.1},
}
Answer = dict[str, Any]  # a line of the state


def ended_at(ids: Sequence[int], tokenizer: Tokenizer) -> int | None:
    """After how many tokens an answer would have been ended, None: not at all."""
    detector = RepetitionDetector(lambda ids: tokenizer.decode(ids, False))
    for count, token in enumerate(ids, 1):
        detector.push(token)
        if detector.found:
            return count
    return None


# ---- ask


def ask(
    checkpoint: Path, state: Path, questions: int, tokens: int, together: int, chatml: bool
) -> None:
    """Make the answers that are not in the state yet, and print the table of all."""
    asked = QUESTIONS.read_text(encoding="utf-8").splitlines()[:questions]
    lines = state.read_text(encoding="utf-8").splitlines() if state.exists() else []
    done: list[Answer] = [json.loads(line) for line in lines if line.endswith("}")]
    known = {(answer["settings"], answer["number"]) for answer in done}
    missing = [
        (settings, number)
        for number in range(len(asked))  # so that a part of it compares settings too
        for settings in SETTINGS
        if (settings, number) not in known
    ]
    if missing:
        engine = Engine(*load(checkpoint, dtype="float32", lazy="vision"))
        if chatml:
            engine.processor.template = ChatTemplate(CHATML)
        with state.open("a", encoding="utf-8") as file:
            for answer in made(engine, asked, missing, tokens, together):
                done.append(answer)
                file.write(json.dumps(answer) + "\n")
                file.flush()
    print_table([a for a in done if a["number"] < questions], questions, tokens)


def made(
    engine: Engine,
    asked: Sequence[str],
    missing: Sequence[tuple[str, int]],
    tokens: int,
    together: int,
) -> Iterator[Answer]:
    """Answers in the order in which they end, up to `together` at a time."""
    decoder, waiting = Decoder(engine.model), list(missing[::-1])
    running: dict[Row, tuple[str, int]] = {}
    while waiting or running:
        if waiting and len(running) <= together // 2:  # rarely: the batch is copied
            begun, caches, logits = dict[Row, tuple[str, int]](), [], []
            while waiting and len(running) + len(begun) < together:
                settings, number = waiting.pop()
                row = engine.row(Options(max_tokens=tokens, seed=number, **SETTINGS[settings]))
                inputs = engine.processor([user_message(asked[number])])
                cache, last = Work(engine.prompts.read(inputs, row)).finish()
                begun[row] = settings, number
                caches.append(cache)
                logits.append(last)
            batch = [BatchKVCache(layers) for layers in zip(*caches, strict=True)]
            decoder.add([*begun], batch, mx.concatenate(logits))
            running |= begun
        for row, _ in decoder.step():
            if not row.over:
                continue
            settings, number = running.pop(row)
            yield {
                "settings": settings,
                "number": number,
                "ended": row.ended,
                "ended_at": ended_at(row.token_ids, engine.processor.tokenizer),
                "ids": row.token_ids,
                "text": engine.processor.tokenizer.decode(row.token_ids),
            }


def print_table(done: Sequence[Answer], questions: int, tokens: int) -> None:
    """Print what came of each setting, for docs."""
    print(f"{questions} questions, at most {tokens} tokens; {machine()}\n")
    columns = ("settings", "in circles", "ended by themselves", "tokens", "different 4-grams")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in SETTINGS:
        answers = [answer for answer in done if answer["settings"] == name]
        if not answers:
            continue
        circles = sum(answer["ended_at"] is not None for answer in answers)
        ended = sum(answer["ended"] for answer in answers)
        size = mean(len(answer["ids"]) for answer in answers)
        distinct = mean(distinct_share(answer["ids"]) for answer in answers)
        print(f"| {name} | {circles} of {len(answers)} | {ended} | {size:.0f} | {distinct:.3f} |")


def distinct_share(ids: Sequence[int], n: int = 4) -> float:
    """Return how many of an answer's n-grams are different ones."""
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return len({*grams}) / len(grams) if grams else 1.0


def machine() -> str:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"{system}, Python {platform.python_version()}, mlx {version('mlx')}"


# ---- texts


def texts(checkpoint: Path, folders: Sequence[Path]) -> None:
    """Print which true texts would have been ended, and where."""
    tokenizer = Tokenizer.from_folder(checkpoint)
    files, tokens, seconds = 0, 0, 0.0
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        if not path.is_file() or path.suffix not in SUFFIXES:
            continue
        try:
            ids = tokenizer.encode_text(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError):
            continue
        files, tokens, began = files + 1, tokens + len(ids), time.perf_counter()
        end = ended_at(ids, tokenizer)
        seconds += time.perf_counter() - began
        if end is not None:
            print(f"{path}: {tokenizer.decode(ids[max(0, end - 300) : end])!r}")
    cost = f"{1e6 * seconds / max(tokens, 1):.1f} microseconds a token"
    print(f"{files} files, {tokens} tokens, {cost}; {machine()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("job", choices=("ask", "texts"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--together", type=int, default=64)
    parser.add_argument("--chatml", action="store_true")
    given = parser.parse_args()
    if given.job == "ask":
        state, together = given.paths[0], given.together
        ask(given.checkpoint, state, given.questions, given.tokens, together, given.chatml)
    else:
        texts(given.checkpoint, given.paths)


if __name__ == "__main__":
    main()
