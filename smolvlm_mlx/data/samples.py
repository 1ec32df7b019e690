"""Rows of a data set (see `rows`) -> conversations, for fine-tuning and evaluation.

A row is a conversation, or a question with its answer, or a picture with its caption, in any of the
formats of `layouts` or of the benchmarks in `benchmarks`; its pictures and videos are in its
messages or in columns (see `columns`), where placeholders say (see `placeholders`). `answers` are
alternatives, each right; `choices` make it multiple choice; `category` is for the table of scores.
`split`, `longest_edge` and `max_tiles` are for its pictures. What would be lost is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError, ImageError, quote
from ..inputs.messages import RawMessage
from ..inputs.settings import ImageOptions
from .benchmarks import recognize
from .columns import CHOICES, KNOWN, RawPart, check_columns, find_media, is_empty, only
from .layouts import (
    LETTER_PROMPT,
    answer_text,
    find_answer,
    read_choices,
    read_messages,
    unpacked,
)
from .letters import LETTERS, label, letter_of
from .placeholders import place
from .rows import Row

# Columns of one answer: a list in them is the answer, in JSON, and not several that are right.
ONE = ("answer", "response", "completion", "output", "label")


@dataclass(frozen=True)
class Sample:
    """A conversation without its last answer; `answers` are those that are right, `choices` what
    there was to choose, `metric` that of its benchmark, `said` what the conversation ended with."""

    messages: list[RawMessage]
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    image_options: ImageOptions = field(default_factory=ImageOptions)
    category: str = ""
    metric: str = ""
    said: str = ""

    @property
    def whole(self) -> list[RawMessage]:
        """The conversation with its answer, to learn: the letter, where that was asked for."""
        answer = self.said or next(answer for answer in self.answers if answer.strip())
        if self.choices and not self.said and _last_text(self.messages).endswith(LETTER_PROMPT):
            letters = (letter_of(answer, self.choices) for answer in self.answers)
            answer = next(letter for letter in letters if letter)
        return [*self.messages, {"role": "assistant", "content": answer}]

    def shows(self, kind: str) -> bool:
        """Whether it has a picture ("image") or a video ("video")."""
        return any(part["type"] == kind for part in _media(self.messages))


def make_sample(row: Row) -> Sample:
    """A row's conversation.

    Raises:
        DataError, PromptError: it is none, says nothing to learn or to compare, or something of it
            would be lost.
        FetchError: a file of it is on another machine.
    """
    if isinstance(row.raw, DataError):
        raise row.raw
    if not isinstance(row.raw, Mapping):
        raise DataError(f"a {type(row.raw).__name__}, not an object")
    raw, metric = recognize(_named(row.raw), row.folder)
    choices, (images, videos) = read_choices(raw), find_media(raw, row.folder)
    kinds = [kind for kind, pool in (("image", images), ("video", videos)) if pool]
    messages, said = read_messages(raw, choices, kinds)
    if not messages:
        raise DataError("no question: nothing is said before the answer")
    messages = place(messages, images, videos, row.folder)
    check_columns(raw, _media(messages))
    answers = _answers(raw, said, choices)
    category = "" if is_empty(raw.get("category")) else str(raw["category"])
    said = said if isinstance(said, str) else ""  # captions may be several
    return Sample(messages, answers, choices, _image_options(raw), category, metric, said)


def _named(raw: Mapping[str, object]) -> dict[str, object]:
    """Columns that we know, in whichever case they are written."""
    named, columns = dict[str, object](), set(raw)  # `in raw` would read a dataset's column
    for name, value in raw.items():
        low = str(name).strip().lower()
        taken = low in columns or low in named
        named[low if low in KNOWN and not taken else name] = value
    return named


def _media(messages: Sequence[RawMessage]) -> list[RawPart]:
    parts = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
    return [part for part in parts if part.get("type") in ("image", "video")]


def _last_text(messages: Sequence[RawMessage]) -> str:
    content = messages[-1]["content"]
    return content if isinstance(content, str) else str(content[-1].get("text"))


# ---- answers


def _answers(raw: Mapping[str, object], said: object, choices: Sequence[str]) -> tuple[str, ...]:
    column, found = find_answer(raw, said)
    if column not in ONE:
        found = _alternatives(unpacked(found) if column == "answers" else found)
    several = found if isinstance(found, list | tuple) and column not in ONE else [found]
    answers = [_person(answer) for answer in several]
    for number, answer in enumerate(answers, 1):
        if answer is None or answer != answer:
            raise DataError(f"no answer: {column} holds null, number {number} of {len(answers)}")
    written = unpacked(raw.get(only(raw, CHOICES) or ""))
    texts = tuple(_answer(answer, choices, written) for answer in answers)
    if not any(text.strip() for text in texts):
        raise DataError(f"no answer: {column} is empty")
    return _chosen(texts, choices)


def _alternatives(found: object) -> object:
    """Of an object of lists (SQuAD's, and VQAv2's as older datasets store it), the texts."""
    if isinstance(found, Mapping):
        return next((found[k] for k in ("answer", "text") if isinstance(found.get(k), list)), found)
    return found


def _chosen(answers: tuple[str, ...], choices: Sequence[str]) -> tuple[str, ...]:
    """Choices as they are written there, and letters; refused if no answer is one."""
    if not choices:
        return answers
    letters = [letter_of(answer, choices) for answer in answers]
    if not any(letters):
        raise DataError(
            f"answer {quote(answers[0].strip())} is neither one of the {len(choices)} choices nor "
            "the letter of one"
        )
    return tuple(
        choices[LETTERS.index(letter)] if letter and label(answer) != letter else answer
        for letter, answer in zip(letters, answers, strict=True)
    )


def _person(answer: object) -> object:
    """One of VQAv2's answers is an object of what a person said."""
    return answer["answer"] if isinstance(answer, Mapping) and "answer" in answer else answer


def _answer(answer: object, choices: Sequence[str], written: object) -> str:
    """Its text; among choices a number is an index (ScienceQA, AI2D), unless it is written like one
    of them."""
    text = answer_text(answer)
    is_one = text in choices if isinstance(answer, str) else _holds(written, answer)
    if not choices or is_one or not text.removeprefix("-").isdecimal():
        return text
    if not 0 <= int(text) < len(choices):
        raise DataError(f"answer {quote(text)} is the number of none of {len(choices)} choices")
    return choices[int(text)]


def _holds(written: object, answer: object) -> bool:
    return isinstance(written, list | tuple) and answer in written


def _image_options(raw: Mapping[str, Any]) -> ImageOptions:
    split = raw.get("split")
    if isinstance(split, str) and split.lower() not in ("true", "false"):
        split = None  # of the dataset: train, test-std, val2014
    try:
        return ImageOptions(raw.get("longest_edge"), split, raw.get("max_tiles"))
    except ImageError as error:
        raise DataError(str(error)) from None
