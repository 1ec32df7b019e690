"""A conversation as a file for people: Markdown, in a zip with its pictures and videos."""

import io
import re
import zipfile
from collections.abc import Mapping, Sequence

from ..inputs.image import identify
from ..inputs.media import Attachment, Video
from ..inputs.messages import Message, TextPart
from .stored import title_of

SPEAKERS = {"user": "You", "assistant": "Answer", "system": "Instructions"}
LONGEST = 60  # characters of a file's name
PLAIN = re.compile(r"[^\w.-]+")


def as_markdown(
    messages: Sequence[Message], title: str = "", files: Mapping[str, str] | None = None
) -> str:
    """A conversation in Markdown.

    Args:
        title: its first words, if there is none.
        files: where the pictures and videos are, by digest; without, their names stand there.
    """
    heading = " ".join((title or title_of(messages)).split())
    turns = [_turn(message, files or {}) for message in messages]
    return "\n\n".join([f"# {heading}" if heading else "# Conversation", *turns]) + "\n"


def as_zip(messages: Sequence[Message], title: str = "") -> bytes:
    """The same with all pictures and videos, as an archive."""
    media: dict[str, Attachment | Video] = {}  # by digest, under the first of their names
    for message in messages:
        for held in message.media:
            media.setdefault(held.digest, held)
    files = {
        digest: f"pictures/{number}-{_file_name(held)}"
        for number, (digest, held) in enumerate(media.items(), 1)
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:  # pictures are compressed already
        text = as_markdown(messages, title, files)
        file.writestr("conversation.md", text, zipfile.ZIP_DEFLATED)
        for digest, name in files.items():
            file.writestr(name, media[digest].data)
    return archive.getvalue()


def file_name(title: str) -> str:
    """What a file with a conversation of this title may be called, without its ending."""
    return PLAIN.sub("-", title)[:LONGEST].strip("-.") or "conversation"


def _turn(message: Message, files: Mapping[str, str]) -> str:
    parts = []
    for part in message.parts:
        if isinstance(part, TextPart):
            parts.append(part.text.strip())
            continue
        (held,) = Message("user", (part,)).media
        name = held.name.replace("[", "(").replace("]", ")")
        mark = "" if isinstance(held, Video) else "!"
        parts.append(f"{mark}[{name}]({files[held.digest]})" if files else f"*{name}*")
    end = ["*(interrupted)*"] if message.interrupted else []
    speaker = SPEAKERS.get(message.role, message.role.capitalize())
    return "\n\n".join([f"## {speaker}", *filter(None, parts), *end])


def _file_name(held: Attachment | Video) -> str:
    """Its name, without what no system or Markdown would take; with an ending."""
    name = PLAIN.sub("-", held.name)[-LONGEST:].lstrip("-.") or "picture"
    if "." in name:
        return name
    image = None if isinstance(held, Video) else identify(held.data)
    kind = "mp4" if isinstance(held, Video) else ((image and image.format) or "png").lower()
    return f"{name}.{kind}"
