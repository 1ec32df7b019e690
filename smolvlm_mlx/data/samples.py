"""Rows of a data set (see `rows`) -> conversations, for fine-tuning and evaluation.

A row is one of
    {"messages": [...]}                                 the schema of inference, pictures by path
    {"image": ..., "question": "...", "answer": "..."}  or `images`, `answers` (each right),
                                                        `choices`, or no picture
    {"images": [...], "texts": [{"user": ..., "assistant": ...}, ...]}
                                                        HuggingFaceM4/the_cauldron's
and may say `split`, `longest_edge` and `max_tiles` for its pictures. Paths are relative to the
file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, ImageError, PromptError
from ..inputs.messages import RawMessage
from ..inputs.settings import ImageOptions
from .rows import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Sample:
    """A conversation without its last answer; `answers` are those that are right, `choices` what
    there was to choose."""

    messages: list[RawMessage]
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    image_options: ImageOptions = field(default_factory=ImageOptions)
    category: str = ""

    @property
    def whole(self) -> list[RawMessage]:
        """The conversation with its answer, to learn."""
        return [*self.messages, {"role": "assistant", "content": self.answers[0]}]


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
    return Sample(
        messages, answers, _choices(raw), _image_options(raw), str(raw.get("category") or "")
    )


def _images(raw: Mapping[str, object], folder: Path) -> list[object]:
    one, many = raw.get("image"), raw.get("images")
    images = many if many not in (None, []) else [] if one is None else [one]
    if not isinstance(images, Sequence) or isinstance(images, str):
        raise DataError("images is no list")
    return [_placed({"type": "image", **_source(image)}, folder) for image in images]


def _source(image: object) -> dict[str, object]:
    if isinstance(image, str):
        return {"url" if image.startswith(("http://", "https://", "data:")) else "path": image}
    if isinstance(image, Mapping):  # a dataset's pictures have bytes, or only a path
        return {"image": image["bytes"]} if image.get("bytes") is not None else dict(image)
    return {"image": image}


def _placed(part: object, folder: Path) -> object:
    """A part with its relative path made one from here."""
    if isinstance(part, Mapping) and isinstance(part.get("image"), Mapping):
        part = {**part, "image": None, **_source(part["image"])}
    if isinstance(part, Mapping) and isinstance(part.get("path"), str):
        return {**part, "path": str(folder / part["path"])}
    return part


def _from_messages(
    raw: Mapping[str, object], images: list[object], folder: Path
) -> tuple[list[RawMessage], tuple[str, ...]]:
    messages: list[RawMessage] = []
    waiting = iter(images)
    if not isinstance(raw["messages"], Sequence) or not all(
        isinstance(m, Mapping) for m in raw["messages"]
    ):
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


def _filled(part: object, waiting: Iterator[object]) -> object:
    """An image part that names no picture has the next one of the row's `images`."""
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return part
    named = {key: value for key, value in part.items() if value is not None and key != "text"}
    return next(waiting, named) if len(named) == 1 else named


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise PromptError("the assistant's content is neither text nor a list of parts")
    return "".join(str(part.get("text") or "") for part in content)


def _from_turns(turns: object, images: list[object]) -> tuple[list[RawMessage], tuple[str, ...]]:
    messages: list[RawMessage] = []
    if not isinstance(turns, Sequence):
        raise DataError("texts is no list")
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not turn.get("user") or not turn.get("assistant"):
            raise DataError(f"turn {number + 1} of texts has no user or no assistant")
        parts = images if number == 0 else []
        messages.append(
            {"role": "user", "content": [*parts, {"type": "text", "text": str(turn["user"])}]}
        )
        messages.append({"role": "assistant", "content": str(turn["assistant"])})
    return messages[:-1], (str(messages[-1]["content"]),)


def _from_question(
    raw: Mapping[str, object], images: list[object]
) -> tuple[list[RawMessage], tuple[str, ...]]:
    text = str(raw["question"])
    if choices := _choices(raw):
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
        text = "\n".join([text, *lines, "Answer with the letter."])
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}], _answers(raw)


def _answers(raw: Mapping[str, object]) -> tuple[str, ...]:
    found = raw.get("answers") if raw.get("answers") not in (None, []) else raw.get("answer")
    if found is None:
        return ()
    many = found if isinstance(found, Sequence) and not isinstance(found, str) else [found]
    return tuple(_answer(answer, _choices(raw)) for answer in many if answer is not None)


def _answer(answer: object, choices: Sequence[str]) -> str:
    """Its text; among choices a number is an index (ScienceQA, AI2D), unless it is written like one
    of them."""
    text = str(answer)
    is_index = type(answer) is int or (text.isdecimal() and text not in choices)
    return choices[int(text)] if is_index and 0 <= int(text) < len(choices) else text


def _choices(raw: Mapping[str, object]) -> tuple[str, ...]:
    choices = raw.get("choices") or raw.get("options") or ()
    if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) > len(LETTERS):
        raise DataError(f"choices is no list of up to {len(LETTERS)}")
    return tuple(str(choice) for choice in choices)


def _image_options(raw: Mapping[str, Any]) -> ImageOptions:
    try:
        return ImageOptions(raw.get("longest_edge"), raw.get("split"), raw.get("max_tiles"))
    except ImageError as error:
        raise DataError(str(error)) from None
