"""A message as the history's file has it: JSON, with digests for pictures and videos.

Reads what older and newer versions wrote: of what it does not know, and of what is damaged, it
takes the rest.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import HistoryError, SmolVLMError, quote
from ..inputs.fetch import FetchLimits
from ..inputs.media import Attachment, Frames, Video
from ..inputs.messages import Message, TextPart, VideoPart, parse_messages, raw_message
from ..inputs.video import VIDEO_OPTIONS

TITLE_LENGTH = 60
# What JavaScript's trimEnd takes for white space, as the page does; Python takes separators too.
WHITE = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def trimmed(text: str) -> str:
    """An answer as it is kept: without white space at its end."""
    return text.rstrip(WHITE)


def to_stored(message: Message) -> dict[str, object]:
    """A message as a JSON value, in which pictures and videos are named by their digests. White
    space at the end of an answer is no part of it.

    Raises:
        HistoryError: it has a video of frames.
    """
    if any(
        isinstance(part, VideoPart) and isinstance(part.video, Frames) for part in message.parts
    ):
        raise HistoryError("a video of frames cannot be kept; give the file")
    last = message.parts[-1] if message.parts else None
    if message.role == "assistant" and isinstance(last, TextPart):
        parts = (*message.parts[:-1], TextPart(trimmed(last.text)))
        message = replace(message, parts=parts)
    return raw_message(message, lambda held: {"digest": held.digest, "name": held.name})


def known_of(text: str) -> dict[str, Any] | None:
    """What this version knows of a message that is kept, as `to_stored` writes it; None if it is
    damaged. What a newer version has written beside it stays there as long as this is the same."""
    try:
        raw = json.loads(text)
        content = raw["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        known = [part for part in map(_known_part, content) if part is not None]
        message = {"role": raw["role"], "content": known or [{"type": "text", "text": ""}]}
        return {**message, "interrupted": True} if raw.get("interrupted") is True else message
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _known_part(part: Any) -> dict[str, Any] | None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": str(part["text"])}
    if kind not in ("image", "video") or not isinstance(part.get("digest"), str):
        return None
    name = part["name"] if isinstance(part.get("name"), str) else "picture"
    options = VIDEO_OPTIONS if kind == "video" else ()
    return {
        "type": kind,
        "digest": part["digest"],
        "name": name,
        **{option: part[option] for option in options if part.get(option) is not None},
    }


def from_stored(text: str, data: dict[str, bytes]) -> Message:
    """A message, with pictures and videos where their digests were.

    Raises:
        HistoryError: it is damaged.
    """
    known = known_of(text)
    try:
        if known is None:
            raise HistoryError("it is no message")
        raw = {**known, "content": [_with_media(part, data) for part in known["content"]]}
        return parse_messages([raw])[0]
    except SmolVLMError as error:
        raise HistoryError(
            f"a message of the conversation is damaged ({error}): {quote(text, 40)}"
        ) from error


def _with_media(part: dict[str, Any], data: dict[str, bytes]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    held = data.get(part["digest"], b"")
    kind = Attachment if part["type"] == "image" else Video
    try:
        media = kind(held, FetchLimits(max_bytes=len(held)), name=part["name"])
    except SmolVLMError:
        return {"type": "text", "text": f"[{part['name']}: can no longer be read]"}
    return {**part, part["type"]: media}


def words_of(message: Message) -> str:
    """What a message is found by."""
    return " ".join([message.text, *(held.name for held in message.media)])


def title_of(messages: Sequence[Message]) -> str:
    """The beginning of the first question, on one line."""
    return beginning(next((message.text for message in messages if message.role == "user"), ""))


def beginning(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
