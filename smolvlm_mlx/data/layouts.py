"""Conversations as people's formats have them -> one list of messages.

    messages                        transformers and TRL, OpenAI, LlamaFactory, ms-swift
    conversations                   LLaVA and ShareGPT: `from` and `value`, human and gpt
    texts                           HuggingFaceM4/the_cauldron: [{"user": ..., "assistant": ...}]
    prompt, completion              TRL, text or messages
    question | query | instruction  with `input` (Alpaca), `history` ([[question, answer], ...])
    caption | text                  of a picture or video, learned after CAPTION_QUESTION
and `system` before any of them.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from math import isfinite

from PIL import Image

from ..errors import DataError, PromptError, quote
from ..inputs.messages import RawMessage
from .columns import (
    ANSWERS,
    CAPTIONS,
    CHOICES,
    IMAGES,
    MESSAGES,
    QUESTIONS,
    RESPONSES,
    VIDEOS,
    is_empty,
    nearest,
    only,
    refuse_media,
)
from .letters import LETTERS

CAPTION_QUESTION = "Describe this image in one or two sentences."
CAPTION_QUESTION_OF_VIDEOS = "Describe this video in one or two sentences."
LETTER_PROMPT = "Answer with the letter."
_ROLES = {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant")


def read_messages(
    raw: Mapping[str, object], choices: Sequence[str], kinds: Sequence[str]
) -> tuple[list[RawMessage], object]:
    """The conversation without its last answer, and that answer; None if it is elsewhere.

    Args:
        choices: what there is to choose; it is added to a question that has not listed it.
        kinds: of what the row shows, "image" or "video".

    Raises:
        DataError, PromptError: there is no conversation.
    """
    if column := only(raw, MESSAGES):
        messages = _turns(raw[column], column)
    elif not is_empty(raw.get("texts")):
        messages = _cauldron(raw["texts"])
    elif question := only(raw, QUESTIONS) or only(raw, ("input",)):
        messages = _question(raw, question, choices)
    elif (caption := only(raw, CAPTIONS)) and kinds and all(is_empty(raw.get(n)) for n in ANSWERS):
        asked = CAPTION_QUESTION if "image" in kinds else CAPTION_QUESTION_OF_VIDEOS
        messages = [{"role": "user", "content": asked}]
        return _with_system(raw, messages), raw[caption]
    else:
        raise DataError(
            "neither messages, nor question and answer, nor a caption of a picture"
            + nearest(raw, (*MESSAGES, *QUESTIONS, *CAPTIONS, *IMAGES, *VIDEOS))
        )
    messages = _with_system(raw, messages)
    if not messages or messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], text_of(messages[-1]["content"] or "")


def find_answer(raw: Mapping[str, object], said: object) -> tuple[str, object]:
    """The column of the answer or the answers, and what is there; `said` is what the conversation
    ends with."""
    for column in ANSWERS:
        if not is_empty(raw.get(column)):
            return column, raw[column]
    if not is_empty(said):
        return "the conversation", said
    if response := only(raw, RESPONSES):
        return response, raw[response]
    if said is not None:
        raise DataError("no answer: the assistant's last message is empty")
    missing = next((name for name in (*ANSWERS, *RESPONSES) if name in raw), None)
    if missing is not None:
        raise DataError(f"no answer: {missing} is {'null' if raw[missing] is None else 'empty'}")
    raise DataError(
        "no answer: `answer` must be there, or the assistant's as the last message"
        + nearest(raw, (*ANSWERS, *RESPONSES))
    )


def read_choices(raw: Mapping[str, object]) -> tuple[str, ...]:
    """What there is to choose from: a list, one written as Python or JSON (MMMU), lines or an
    object by letter, `label` and `text` (ARC), or columns A, B, C, ... (MMBench); without letters
    before them."""
    column = only(raw, CHOICES)
    if column is None:
        lettered = {letter: raw[letter] for letter in LETTERS if not is_empty(raw.get(letter))}
        choices: object = lettered if {"A", "B"} <= lettered.keys() else ()
    else:
        choices = unpacked(raw[column])
    if isinstance(choices, Mapping):
        choices = _by_letter(choices)
    if isinstance(choices, str) and len(lines := choices.strip().splitlines()) > 1:
        choices = lines if _bare(lines) != tuple(lines) else choices
    if (
        isinstance(choices, str | bytes | Mapping)
        or not isinstance(choices, Sequence)
        or len(choices) > len(LETTERS)
    ):
        raise DataError(
            f"{column or 'choices'} is no list of up to {len(LETTERS)}, nor an object or lines by "
            "letter"
        )
    if any(choice is None for choice in choices):
        raise DataError(f"{column} holds null")
    return _bare([answer_text(choice) for choice in choices])


def _by_letter(choices: Mapping[str, object]) -> object:
    """The choices in the order of their letters; the object itself if it is not by letter."""
    if choices.keys() == {"label", "text"}:
        labels, texts = choices["label"], choices["text"]
        if not isinstance(labels, Sequence) or not isinstance(texts, Sequence):
            return choices
        choices = dict(zip(map(str, labels), texts, strict=False))
    ordered = {str(name).upper(): choices[name] for name in sorted(choices)}
    return list(ordered.values()) if "".join(ordered) == LETTERS[: len(choices)] else choices


def _bare(choices: Sequence[str]) -> tuple[str, ...]:
    """Without "A. ", "B. ", ..., where all begin so (Video-MME)."""
    for form in ("{}. ", "{}) ", "({}) ", "{}: "):
        starts = [form.format(letter) for letter in LETTERS[: len(choices)]]
        if choices and all(map(str.startswith, choices, starts)):
            return tuple(map(str.removeprefix, choices, starts))
    return tuple(choices)


def unpacked(value: object) -> object:
    """A list or object that is written as text, in JSON or Python; else the value."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def text_of(content: object) -> str:
    """The words of a message's content."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise PromptError("the assistant's content is neither text nor a list of parts")
    if other := [part["type"] for part in content if part.get("type") not in (None, "text")]:
        raise DataError(f"the assistant's words have a part of type {quote(other[0])}, not text")
    return "".join(str(part.get("text") or "") for part in content)


def answer_text(answer: object) -> str:
    """Text as it is, a number as it is written; true and false, lists and objects as JSON."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bytes | Image.Image):
        raise DataError(f"the answer is {type(answer).__name__}, not text")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    return _json(answer)


def _json(value: object) -> str:
    """As json.dumps, but numbers are written as they were in the file."""
    if isinstance(value, Mapping):
        pairs = (f"{_json(str(name))}: {_json(each)}" for name, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, float) and isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


# ---- each format


def _turns(turns: object, column: str) -> list[RawMessage]:
    turns = unpacked(turns)
    if isinstance(turns, Mapping) and all(isinstance(each, list) for each in turns.values()):
        # A list of objects, as older datasets store it.
        turns = [dict(zip(turns, each, strict=True)) for each in zip_longest(*turns.values())]
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        raise PromptError(f"{column} is no list of objects")
    return [_turn(turn, f"message {number}") for number, turn in enumerate(turns, 1)]


def _turn(turn: Mapping[str, object], where: str) -> RawMessage:
    role, content = (only(turn, names) for names in (("role", "from"), ("content", "value")))
    if role is None:
        raise PromptError(f"{where} has no role")
    refuse_media(turn, ("content", "value"), where)
    said = turn[content] if content else turn.get("content", turn.get("value"))
    who = turn[role]
    if isinstance(who, str):
        who = _ROLES.get(who.lower(), who.lower())
    if isinstance(said, int | float) or (isinstance(said, Mapping) and who == "assistant"):
        said = answer_text(said)
    return {"role": who, "content": said}


def _cauldron(turns: object) -> list[RawMessage]:
    if not isinstance(turns, Sequence):
        raise DataError("texts is no list")
    messages: list[RawMessage] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not turn.get("user") or not turn.get("assistant"):
            raise DataError(f"turn {number} of texts has no user or no assistant")
        refuse_media(turn, ("user", "assistant"), f"turn {number} of texts")
        messages += _pair(turn["user"], turn["assistant"])
    return messages


def _pair(user: object, assistant: object) -> list[RawMessage]:
    return [
        {"role": "user", "content": str(user)},
        {"role": "assistant", "content": str(assistant)},
    ]


def _question(raw: Mapping[str, object], column: str, choices: Sequence[str]) -> list[RawMessage]:
    asked = raw[column]
    if not isinstance(asked, str):  # TRL's prompt and completion may be messages
        completion = raw.get("completion")
        rest = [] if isinstance(completion, str) or is_empty(completion) else completion
        return [*_turns(asked, column), *_turns(rest, "completion")]
    more = "" if column == "input" or is_empty(raw.get("input")) else f"\n{raw['input']}"
    text = asked + more
    if choices and not is_listed(text, choices):
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
        text = "\n".join([text, *lines, LETTER_PROMPT])
    return [*_history(raw.get("history")), {"role": "user", "content": text}]


def is_listed(text: str, choices: Sequence[str]) -> bool:
    """Whether a question lists its choices itself, each behind its letter."""
    pairs = list(zip(LETTERS, choices, strict=False))
    return any(
        all(form.format(letter, choice) in text for letter, choice in pairs)
        for form in ("{}. {}", "{}) {}", "{}: {}", "({}){}")
    )


def _history(history: object) -> list[RawMessage]:
    if is_empty(history):
        return []
    turns = unpacked(history)
    if not isinstance(turns, list | tuple) or not all(
        isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns
    ):
        raise DataError(f"history is {quote(history)}, not pairs of a question and its answer")
    return [message for turn in turns for message in _pair(*turn)]


def _with_system(raw: Mapping[str, object], messages: list[RawMessage]) -> list[RawMessage]:
    system = raw.get("system")
    if is_empty(system) or not messages:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": str(system)}, *messages]
    if messages[0]["content"] != system:
        raise DataError("system and the first message say different things; keep one of them")
    return messages
