"""What a quantized model learns from: built-in questions in words, and questions about pictures,
built-in ones or the user's own. The answers are the source's."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TypeVar

from ..data.rows import Row, read_rows
from ..data.samples import make_sample
from ..errors import DataError, SmolVLMError
from ..files import expanded
from ..inputs.media import PICTURE_SUFFIXES
from ..inputs.messages import parse_messages, user_message
from ..quality.prompts import Kind, Prompt, built_in

T = TypeVar("T")

TEXTS: dict[Kind, int] = {"text": 240}
PICTURES: dict[Kind, int] = {"picture": 12, "document": 2}
MOST = 48  # of the user's own, evenly from all
MAX_TILES = 5  # of a picture of theirs, where they do not say
QUESTIONS = ("Describe this image in detail.", "What do you see?", "Write a caption.")


def lessons(data: str | Path | None = None) -> list[Prompt]:
    """Return questions to learn from: built-in ones, of which those about pictures give way to
    `data`, a folder of pictures or rows as `read_rows` has them.

    Raises:
        DataError: `data` is not there, is empty, or a row of it cannot be used.
        ImageError: a picture of a folder cannot be read.
    """
    own = built_in(PICTURES, "choose") if data is None else list(_own(data))
    return [*built_in(TEXTS, "choose"), *own]


def _own(data: str | Path) -> Iterator[Prompt]:
    folder = expanded(data)
    pictures = sorted(_pictures(folder)) if str(data).strip() and folder.is_dir() else []
    if pictures and not any(folder.glob("metadata.*")):
        for path, question in zip(_some(pictures), cycle(QUESTIONS), strict=False):
            yield Prompt("picture", [user_message(question, [path])])
    else:
        yield from map(_of_row, _some(read_rows(data)))


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


def _some(found: list[T]) -> list[T]:
    count = min(MOST, len(found))
    return [found[number * len(found) // count] for number in range(count)]


def _of_row(row: Row) -> Prompt:
    try:
        sample = make_sample(row)
        messages = parse_messages(sample.messages)
    except SmolVLMError as error:
        raise DataError(f"{row.where}: {error}") from error
    options = sample.image_options
    if options.max_tiles is None:
        options = replace(options, max_tiles=MAX_TILES)
    return Prompt("picture" if sample.shows("image") else "text", messages, options)
