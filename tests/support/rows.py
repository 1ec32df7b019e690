"""Rows, files of them, and what becomes of one."""

import json
from pathlib import Path
from typing import Any

from smolvlm_mlx.data.rows import Row, read_rows
from smolvlm_mlx.data.samples import make_sample
from smolvlm_mlx.errors import DataError, PromptError
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.training.dataset import Batch, make_example

IMAGE: dict[str, Any] = {"type": "image"}
QUESTION: dict[str, Any] = {"question": "Which?", "answer": "this"}
# Kinds of questions about drawn pictures (convert/tiny/conversations.py).
SHORT = ("color", "text", "text alone")
KINDS = (*SHORT, "frames", "two pictures", "earlier turn")


def write_rows(path: Path, *rows: object) -> Path:
    """JSON lines; a text is a line as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def outcome(row: Row) -> str:
    """The answer, or the error."""
    try:
        return make_sample(row).answers[0]
    except (DataError, PromptError) as error:
        return str(error)


def examples_of(processor: Processor, source: Path, *numbers: int) -> list[Batch]:
    """Of some rows, what is trained on."""
    samples = [
        make_sample(row) for number, row in enumerate(read_rows(source)) if number in numbers
    ]
    return [make_example(processor, sample.whole, sample.image_options) for sample in samples]
