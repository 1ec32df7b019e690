"""Completes what a person types into a chat: commands, settings and their values, ids of
conversations, and paths, also in the middle of a question."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from ...errors import HistoryError, escaped
from ...tasks.history import History, Summary
from . import settings
from .paths import SUFFIXES, expanded, folded, listed, open_word, written

Complete = Callable[[str], Iterable[Completion]]  # of what stands after a command

_SPECIAL = re.compile("~|data:|https?:|file:", re.I)
_SPACE = re.compile(r"(?<!\\)\s")
_OPENING = "([{<@\"'“‘„«`"
RECENT = 50  # conversations whose ids are completed


class CommandCompleter(Completer):
    """Completes the names of commands, beside which stands what they do, and what comes after one
    as `arguments` says; elsewhere the paths of pictures and videos."""

    def __init__(self, commands: Mapping[str, str], arguments: Mapping[str, Complete]):
        self._commands, self._arguments = dict(sorted(commands.items())), arguments

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        text = document.text_before_cursor
        command, space, rest = text.partition(" ")
        if space and command in {*self._commands, *self._arguments}:
            yield from self._arguments.get(command, lambda rest: ())(rest)
            return
        names = [] if space else [name for name in self._commands if name.startswith(text)]
        if names:
            for name in names:
                yield Completion(name, -len(text), display_meta=self._commands[name])
        else:
            yield from in_question(text)


def in_question(text: str) -> Iterator[Completion]:
    """The paths of pictures, videos and folders that the last word of a question begins, also
    after a bracket or a quote."""
    *_, word = _SPACE.split(text)
    bare = word.lstrip(_OPENING)
    # What is open may be a quote, or an apostrophe.
    for beginning, length in (*map(open_word, (word, bare)), open_word(text)):
        if found := [*_paths(beginning, length, SUFFIXES)]:
            yield from found
            return


def paths(text: str) -> Iterable[Completion]:
    """The paths that the last word of a command's arguments begins."""
    word, length = open_word(text)
    # A name with spaces or an apostrophe may have been begun as it is.
    return [*_paths(word, length)] or _paths(text.lstrip(), len(text.lstrip()))


def setting(text: str) -> Iterator[Completion]:
    """The names of settings, and the values of those that have few."""
    typed, space, value = text.partition(" ")
    name = typed.lstrip("-").replace("-", "_")
    if not space:
        for option in settings.NAMED.values():
            if option.name.startswith(name):
                yield Completion(f"{option.name} ", -len(typed), display_meta=option.help)
    elif name in settings.NAMED:
        option = settings.NAMED[name]
        for choice in settings.choices(option):
            if choice.startswith(value):
                default = settings.written(settings.default_of(option))
                meta = default if choice == "default" else ""
                yield Completion(choice, -len(value), display_meta=meta)


def conversation(history: History | None) -> Complete:
    """The ids of the latest conversations, with their titles, and paths."""

    def complete(text: str) -> Iterator[Completion]:
        latest = list[Summary]()
        with suppress(HistoryError):  # which the command says
            latest = history.list(RECENT) if history else []
        for kept in latest:
            if (text and kept.id.startswith(text)) or not text:
                yield Completion(kept.id, -len(text), display_meta=escaped(kept.title))
        yield from paths(text)

    return complete


def _paths(beginning: str, length: int, suffixes: tuple[str, ...] = ()) -> Iterator[Completion]:
    """The paths that begin so, in place of so many characters: folders, and files that end so."""
    folder, start = os.path.split(beginning)
    for name in listed(expanded(folder)):
        is_meant = name.startswith(start) or folded(name).startswith(folded(start))
        if is_meant and (name[0] != "." or start[:1] == "."):
            # ~ and URLs mean something else at the beginning of a path.
            path = os.path.join(folder or "." * bool(_SPECIAL.match(name)), name)
            slash = "/" if os.path.isdir(expanded(path)) else ""
            if slash or not suffixes or name.lower().endswith(suffixes):
                yield Completion(written(path) + slash, -length, display=name + slash)
