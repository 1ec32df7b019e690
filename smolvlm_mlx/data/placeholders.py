"""Where a row's pictures and videos stand in its messages.

Texts have placeholders, `<image>` and `<video>` (LLaVA, LlamaFactory, ms-swift), numbered ones
(MMMU), or parts without a source (TRL), which may name an `index`. Without any, pictures come
first, as TRL and ms-swift put them. Any other count is a mistake, as in LlamaFactory.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError, PromptError, quote
from ..inputs.messages import RawMessage
from .columns import Pool, RawPart, make_part, refuse_media

_MARK = re.compile(r"<\|?(image|video)[ _]?(\d+)?\|?>|<img>(.+?)</img>")
_KINDS = {"image_url": "image", "video_url": "video"}


@dataclass(frozen=True)
class _Slot:
    """A place for a picture or a video, perhaps for a certain one."""

    kind: str
    number: int | None = None


_Part = RawPart | _Slot


def place(
    messages: Sequence[RawMessage], images: Pool, videos: Pool, folder: Path
) -> list[RawMessage]:
    """Messages whose parts have the row's pictures and videos.

    Raises:
        DataError: more or fewer of them than places.
    """
    contents = [_parts(message, folder) for message in messages]
    if videos and not images:
        contents = [[_of_video(part) for part in parts] for parts in contents]
    for kind, pool in (("image", images), ("video", videos)):
        filled, first = _filled(kind, [part for parts in contents for part in parts], pool)
        contents = [
            [next(filled) if isinstance(p, _Slot) and p.kind == kind else p for p in parts]
            for parts in contents
        ]
        if first:
            user = next((n for n, m in enumerate(messages) if m["role"] == "user"), None)
            if user is None:
                raise DataError(f"{len(pool)} {kind}s, and no message of a user to show them in")
            contents[user] = [*first, *contents[user]]
    return [
        {"role": message["role"], "content": _content(message["content"], parts)}
        for message, parts in zip(messages, contents, strict=True)
    ]


def _of_video(part: _Part) -> _Part:
    """LLaVA-Video has `<image>` where a video stands."""
    return replace(part, kind="video") if isinstance(part, _Slot) else part


def _filled(
    kind: str, content: Sequence[_Part], pool: Pool
) -> tuple[Iterator[RawPart], list[RawPart]]:
    """What stands in the slots, in order, and what comes first because no slot is for it."""
    slots = [part for part in content if isinstance(part, _Slot) and part.kind == kind]
    own = [part for part in content if isinstance(part, Mapping) and part.get("type") == kind]
    numbers = [slot.number for slot in slots if slot.number is not None]
    if numbers and len(numbers) == len(slots):
        if missing := [number for number in numbers if number not in pool]:
            raise DataError(f"<{kind} {missing[0]}> in the text, and no such {kind} in the row")
        rest = [part for number, part in pool.items() if number not in numbers]
        return iter([pool[number] for number in numbers]), rest
    parts = [pool[number] for number in sorted(pool)]
    if own and parts and not slots:
        if own != parts:  # the row names again what its messages show
            raise DataError(
                f"{len(parts)} {kind}s of the row, and {len(own)} others in its messages; give "
                "each once"
            )
        return iter(()), []
    if not slots:
        return iter(()), parts
    if len(slots) != len(parts):
        plural = "" if len(parts) == 1 else "s"
        raise DataError(f"{len(slots)} <{kind}> in the messages, but {len(parts)} {kind}{plural}")
    return iter(parts), []


def _content(before: object, parts: Sequence[_Part]) -> object:
    """Text stays text where nothing was placed in it."""
    is_text = len(parts) == 1 and isinstance(parts[0], Mapping) and parts[0]["type"] == "text"
    return before if isinstance(before, str) and is_text else parts


def _parts(message: RawMessage, folder: Path) -> list[_Part]:
    content, role = message["content"], message["role"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise PromptError(f"the content of {role} is a {type(content).__name__}, not text or parts")
    parts = [each for part in content for each in _part(part, folder)]
    if role == "assistant" and any(isinstance(part, _Slot) for part in parts):
        raise DataError("an <image> or <video> in the assistant's words, where none can be")
    return parts


def _part(part: object, folder: Path) -> list[_Part]:
    """A part as it is: with its source found, or a slot; text split where it has placeholders."""
    if not isinstance(part, Mapping):
        raise PromptError(f"a part is a {type(part).__name__}, not an object with a type")
    kind = part.get("type") or next((k for k in ("text", "image", "video") if part.get(k)), "")
    kind = _KINDS.get(str(kind), kind)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise PromptError(f"a text part without text: {quote(part)}")
        refuse_media(part, ("text",), "a text part")
        return _split(part["text"], folder)
    if kind not in ("image", "video"):
        return [part]  # which is told when messages are parsed
    said = {k: v for k, v in part.items() if v is not None and k not in ("type", "text", "index")}
    if said:
        return [make_part(kind, said, folder)]
    index = part.get("index")
    return [_Slot(kind, index + 1 if type(index) is int else None)]


def _split(text: str, folder: Path) -> list[_Part]:
    parts, begin = list[_Part](), 0
    for mark in _MARK.finditer(text):
        parts += _words(text[begin : mark.start()])
        if mark[3]:  # ms-swift's and Qwen's
            parts.append(make_part("image", mark[3], folder))
        else:
            parts.append(_Slot(mark[1], int(mark[2]) if mark[2] else None))
        begin = mark.end()
    return [*parts, *_words(text[begin:])] if parts else [{"type": "text", "text": text}]


def _words(text: str) -> list[_Part]:
    """Without the line ends beside a placeholder."""
    return [{"type": "text", "text": text.strip("\n")}] if text.strip() else []
