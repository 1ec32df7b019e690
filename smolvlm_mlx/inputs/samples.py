"""Rows of a data set -> messages, for fine-tuning and evaluation. A JSONL file, a folder, or a dataset of the hub.

A row is one of
    {"messages": [...]}                                      the schema of inference, pictures by path
    {"image": ..., "question": "...", "answer": "..."}       or `images`, `answers` (all right), `choices`, or no picture
    {"images": [...], "texts": [{"user": ..., "assistant": ...}, ...]}       HuggingFaceM4/the_cauldron's
and may say `split`, `longest_edge` and `max_tiles` for its pictures. Paths are relative to the file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, PromptError
from .files import shown
from .prompt import Message

OPTIONS = {"split": bool, "longest_edge": int, "max_tiles": int}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Row:
    """One row as it was found, and where; `folder` is where its paths begin."""

    where: str
    raw: Any
    folder: Path = field(default_factory=Path)


@dataclass(frozen=True)
class Sample:
    """A conversation without its last answer; `answers` are those that are right, `choices` what there was to choose."""

    messages: list[Message]
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of the processor's call
    category: str = ""

    @property
    def whole(self) -> list[Message]:
        """The conversation with its answer, to learn."""
        return [*self.messages, {"role": "assistant", "content": self.answers[0]}]


def read_rows(source: str | Path, split: str | None = None) -> list[Row]:
    """All rows of a JSONL file, or those of a folder or hub dataset (`split`: its part, such as "train").

    A line that is no JSON is a row whose `raw` is the error.

    Raises:
        DataError: it is not there, cannot be read, or is empty.
    """
    path = Path(source).expanduser()
    rows = list(_json_lines(path)) if path.is_file() else list(_dataset(str(source), path, split))
    if not rows:
        raise DataError(f"{source}: no rows")
    return rows


def _json_lines(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path.name}:{number}"
                    try:
                        yield Row(where, json.loads(line), path.parent)
                    except (ValueError, RecursionError) as error:
                        yield Row(where, DataError(f"no JSON ({shown(str(error))})"), path.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({shown(str(error))}); it must be JSON lines in UTF-8") from error


def _dataset(source: str, path: Path, split: str | None) -> Iterator[Row]:
    if not path.is_dir() and not _is_hub_id(source):
        raise DataError(f"{shown(source)}: no such file or folder, and no hub dataset id like owner/name")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"{source} is no JSONL file; folders and hub datasets need: pip install 'smolvlm-mlx[datasets]'"
        ) from error
    try:
        loaded = datasets.load_dataset(str(path) if path.is_dir() else source)
        if split is None and len(loaded) > 1:
            split = next((name for name in ("train", "test", "validation") if name in loaded), None)
        if split is not None and split not in loaded:
            raise DataError(f"{source}: no split {shown(split)}; there are {', '.join(map(str, loaded))}")
        part = loaded[split or next(iter(loaded))]
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{source}: {shown(str(error))}") from error
    _leave_encoded(part.info.features)
    for number in range(len(part)):
        yield Row(f"{source}:{number + 1}", part[number], path if path.is_dir() else Path())


def _leave_encoded(feature: Any) -> None:
    """Pictures stay bytes or paths: all decoded at once may not fit in memory, and a bad one would end the reading."""
    import datasets

    if isinstance(feature, datasets.Image):
        feature.decode = False
    for inner in feature.values() if isinstance(feature, Mapping) else [getattr(feature, "feature", None)]:
        if inner is not None:
            _leave_encoded(inner)


def _is_hub_id(source: str) -> bool:
    owner, _, name = source.partition("/")
    is_path = source.startswith(("/", ".", "~")) or name.endswith((".json", ".jsonl"))
    return bool(owner) and bool(name) and "/" not in name and not is_path


def make_sample(row: Row) -> Sample:
    """A row's conversation.

    Raises:
        DataError, PromptError: it is none, or says nothing to learn or to compare.
    """
    raw = row.raw
    if isinstance(raw, DataError):
        raise raw
    if not isinstance(raw, Mapping):
        raise DataError(f"a {type(raw).__name__}, not an object")
    images = _images(raw, row.folder)
    if raw.get("messages"):
        messages, answers = _from_messages(raw, images, row.folder)
    elif raw.get("texts"):
        messages, answers = _from_turns(raw["texts"], images)
    elif raw.get("question"):
        messages, answers = _from_question(raw, images)
    else:
        raise DataError("neither messages, nor question and answer, nor texts")
    answers = tuple(answer for answer in answers if answer.strip())
    if not answers:
        raise DataError("no answer: `answer` must be there, or the assistant's as the last message")
    return Sample(messages, answers, _choices(raw), _options(raw), str(raw.get("category") or ""))


def _images(raw: Mapping[str, Any], folder: Path) -> list[Any]:
    one, many = raw.get("image"), raw.get("images")
    images = many if many not in (None, []) else [] if one is None else [one]
    if not isinstance(images, Sequence) or isinstance(images, str):
        raise DataError("images is no list")
    return [_placed({"type": "image", **_source(image)}, folder) for image in images]


def _source(image: Any) -> dict[str, Any]:
    if isinstance(image, str):
        return {"url" if image.startswith(("http://", "https://", "data:")) else "path": image}
    if isinstance(image, Mapping):  # a dataset's pictures have bytes, or only a path
        return {"image": image["bytes"]} if image.get("bytes") is not None else dict(image)
    return {"image": image}


def _placed(part: Any, folder: Path) -> Any:
    """A part with its relative path made one from here."""
    if isinstance(part, Mapping) and isinstance(part.get("image"), Mapping):
        part = {**part, "image": None, **_source(part["image"])}
    path = part.get("path") if isinstance(part, Mapping) else None
    return {**part, "path": str(folder / path)} if isinstance(path, str) else part


def _from_messages(raw: Mapping[str, Any], images: list[Any], folder: Path) -> tuple[list[Message], tuple[str, ...]]:
    messages: list[Message] = []
    waiting = iter(images)
    if not isinstance(raw["messages"], Sequence) or not all(isinstance(m, Mapping) for m in raw["messages"]):
        raise PromptError("messages is no list of objects")
    for message in raw["messages"]:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = [_filled(_placed(part, folder), waiting) for part in content]
        messages.append({**message, "content": content})
    if next(waiting, None) is not None:
        raise DataError("more images than image parts in the messages")
    said = (_text_of(messages.pop()["content"]),) if messages[-1].get("role") == "assistant" else ()
    return messages, _answers(raw) or said


def _filled(part: Any, waiting: Iterator[Any]) -> Any:
    """An image part that names no picture has the next one of the row's `images`."""
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return part
    named = {key: value for key, value in part.items() if value is not None and key != "text"}
    return next(waiting, named) if len(named) == 1 else named


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise PromptError("the assistant's content is neither text nor a list of parts")
    return "".join(str(part.get("text") or "") for part in content)


def _from_turns(turns: Any, images: list[Any]) -> tuple[list[Message], tuple[str, ...]]:
    messages: list[Message] = []
    if not isinstance(turns, Sequence):
        raise DataError("texts is no list")
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not turn.get("user") or not turn.get("assistant"):
            raise DataError(f"turn {number + 1} of texts has no user or no assistant")
        parts = images if number == 0 else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": str(turn["user"])}]})
        messages.append({"role": "assistant", "content": str(turn["assistant"])})
    return messages[:-1], (str(messages[-1]["content"]),)


def _from_question(raw: Mapping[str, Any], images: list[Any]) -> tuple[list[Message], tuple[str, ...]]:
    text = str(raw["question"])
    if choices := _choices(raw):
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
        text = "\n".join([text, *lines, "Answer with the letter."])
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}], _answers(raw)


def _answers(raw: Mapping[str, Any]) -> tuple[str, ...]:
    found = raw.get("answers") if raw.get("answers") not in (None, []) else raw.get("answer")
    if found is None:
        return ()
    many = found if isinstance(found, Sequence) and not isinstance(found, str) else [found]
    return tuple(str(answer) for answer in many if answer is not None)


def _choices(raw: Mapping[str, Any]) -> tuple[str, ...]:
    choices = raw.get("choices") or ()
    if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) > len(LETTERS):
        raise DataError(f"choices is no list of up to {len(LETTERS)}")
    return tuple(str(choice) for choice in choices)


def _options(raw: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: raw[name] for name in OPTIONS if raw.get(name) is not None}
    wrong = [name for name, value in options.items() if type(value) is not OPTIONS[name]]
    if wrong:
        raise DataError(f"{wrong[0]} is {options[wrong[0]]!r:.40}, not of type {OPTIONS[wrong[0]].__name__}")
    return options
