"""Completes what a person types into a chat: commands, and the files that they take."""

import os
import re
from collections.abc import Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from .paths import expanded, folded, listed, open_word, written

_SPECIAL = re.compile("~|data:|https?:|file:", re.I)


class CommandCompleter(Completer):
    """Completes /commands, and paths after those that take a file."""

    def __init__(self, commands: Iterable[str], with_paths: Iterable[str]):
        self._commands, self._with_paths = sorted(commands), set(with_paths)

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
            word, length = open_word(rest)
            # A name with spaces or an apostrophe may have been begun as it is.
            yield from [*_paths(word, length)] or _paths(rest.lstrip(), len(rest.lstrip()))


def _paths(beginning: str, length: int) -> Iterator[Completion]:
    """The paths that begin so, in place of so many characters."""
    folder, start = os.path.split(beginning)
    for name in listed(expanded(folder)):
        is_meant = name.startswith(start) or folded(name).startswith(folded(start))
        if is_meant and (name[0] != "." or start[:1] == "."):
            # ~ and URLs mean something else at the beginning of a path.
            path = os.path.join(folder or "." * bool(_SPECIAL.match(name)), name)
            slash = "/" if os.path.isdir(expanded(path)) else ""
            yield Completion(written(path) + slash, -length, display=name + slash)
