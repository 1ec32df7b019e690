"""What is asked about each picture, and the file of answers: JSONL, which can be cut off at any byte, and CSV.

A line has `path`, `sha256` (of the file), `run` (of model, task and settings), and the answer's fields or `error`.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.writer import write_file
from ..errors import DataError

Line = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is asked about each picture. With a JSON schema of an object, its properties are the line's fields."""

    prompt: str
    max_tokens: int = 256
    schema: Mapping[str, Any] | None = None
    most_characters: int | None = None  # a longer answer ends with its last whole sentence or word

    def fields(self, text: str, ended: bool) -> Line:
        """An answer as fields of a line."""
        text = text.strip()
        if self.schema is None:
            return {"caption": text if self.most_characters is None else shorten(text, self.most_characters)}
        if not ended:
            return {"error": f"the answer was cut off after {self.max_tokens} tokens; raise --max-tokens"}
        fields: Line = json.loads(text)
        return fields


_KEYWORDS = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 100},
        "description": {"type": "string", "maxLength": 600},
        "keywords": {"type": "array", "items": {"type": "string", "maxLength": 40}, "minItems": 1, "maxItems": 12},
    },
    "required": ["title", "description", "keywords"],
    "additionalProperties": False,
}
TASKS = {
    "caption": Task("Describe this image in one or two sentences.", 128),
    "alt": Task("Write alternative text for this image: one sentence of fewer than 125 characters.", 64, None, 124),
    "keywords": Task("Give this image a title, a description and keywords, as JSON.", 512, _KEYWORDS),
    "ocr": Task("Read all the text in this image.", 1024),
}


def shorten(text: str, most: int) -> str:
    """The whole sentences that fit into `most` characters; the words that do, if none does."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    ends = [end + 1 for end in range(most) if text[end] in ".!?" and text[end + 1 : end + 2].isspace()]
    return text[: ends[-1]] if ends else text[: text.rfind(" ", 0, most) if " " in text[:most] else most - 1] + "…"


def read_lines(path: Path, run: str) -> tuple[list[Line], bool]:
    """The whole lines of a file that is there, all of the same run; and whether there was a piece of one more.

    Raises:
        DataError: it holds something else.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
        lines: list[Line] = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
        if not all(isinstance(line["path"], str) and isinstance(line["sha256"], str) for line in lines):
            raise ValueError("no captions")
        runs = {line["run"] for line in lines}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: holds something else than captions; choose another --out") from error
    if runs - {run}:
        raise DataError(f"{path}: captions of another model, task or settings; choose another --out")
    return lines, data[-1:] not in (b"", b"\n")


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Put these in place of what is there, as a whole.

    Raises:
        DataError: they cannot be written.
    """
    _write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def add_lines(path: Path, lines: Sequence[Line]) -> None:
    """Append these.

    Raises:
        DataError: they cannot be written.
    """
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        with path.open("ab", buffering=0) as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # lone surrogates, of paths that are not UTF-8
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def write_csv(path: Path, lines: Sequence[Line]) -> None:
    """The lines as a table; lists are joined by semicolons.

    Raises:
        DataError: it cannot be written.
    """
    columns = list(dict.fromkeys(key for line in lines for key in line if key not in ("sha256", "run")))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in line.items()} for line in lines)
    _write(path, text.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value  # no formula


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
