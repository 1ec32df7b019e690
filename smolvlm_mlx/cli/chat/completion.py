"""What a person types, pastes or drops into a terminal: questions with paths of pictures in them,
and commands to complete."""

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from ...inputs.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES

FILES = PICTURE_SUFFIXES + VIDEO_SUFFIXES
# A word as terminals drop paths: in quotes, or with a backslash before each space.
_WORD = re.compile(r"""'([^']+)'|"([^"]+)"|((?:\\.|[^\s\\'"])+)""")


def split_pictures(line: str) -> tuple[str, list[Path]]:
    """The line without the paths of picture and video files that are there, and those paths."""
    found: list[Path] = []

    def take(match: re.Match[str]) -> str:
        path = _picture(match)
        if path is None:
            return match.group()
        found.append(path)
        return ""

    rest = _WORD.sub(take, line)
    return (" ".join(rest.split(" ")).strip() if found else line), found


def _picture(match: re.Match[str]) -> Path | None:
    single, double, bare = match.groups()
    word = single or double or re.sub(r"\\(.)", r"\1", bare)
    if word.startswith("file://"):
        word = unquote(urlsplit(word).path)
    try:
        path = Path(word).expanduser()
        return path if path.suffix.lower() in FILES and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # an endless name, no such ~user, a zero byte
        return None


def split_words(text: str) -> list[str]:
    """Words of a command's arguments: quotes, escapes, file:// URLs and ~ as a shell and a file
    manager write them."""
    try:
        words = shlex.split(text)
    except ValueError:  # one quote too few: a name with an apostrophe
        words = [text.strip()]
    return [unquote(urlsplit(word).path) if word.startswith("file://") else word for word in words]


class CommandCompleter(Completer):
    """Completes /commands, and paths after those that take a file."""

    def __init__(self, commands: Iterable[str], with_paths: Iterable[str]):
        self._commands, self._with_paths = sorted(commands), set(with_paths)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        text = document.text_before_cursor
        command, space, rest = text.partition(" ")
        if not space and text.startswith("/"):
            yield from (
                Completion(name, -len(text)) for name in self._commands if name.startswith(text)
            )
        if space and command in self._with_paths:
            word = re.split(r"(?<!\\) ", rest)[-1].replace("\\ ", " ")
            for completion in self._paths.get_completions(Document(word), complete_event):
                escaped = completion.text.replace(" ", "\\ ")
                yield Completion(escaped, completion.start_position, completion.display)
