"""A chat session: a conversation, the pictures that wait for the next question, and its place in
the history.

A terminal or a pipe shows it. Everything that is said goes to the history as soon as it is said.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import (
    ContextFullError,
    FetchError,
    HistoryError,
    PromptError,
    SmolVLMError,
    escaped,
)
from ...events import CUT_OFF, Statistics
from ...generation.options import Options
from ...generation.repetition import ends_twice
from ...generation.stream import TextStream
from ...inputs.media import Attachment, Frames, Video, attach
from ...inputs.messages import ImagePart, Message, VideoPart
from ...inputs.settings import ImageOptions
from ...tasks.chat import Chat, question_at
from ...tasks.history import Branch, History, new_id
from ...tasks.options import RETRY_TEMPERATURE
from ...tasks.tree import Places
from .paths import Source, readable, written

if TYPE_CHECKING:
    from ..tiles import SeenTiles


Attached = Source | Attachment | Video
SHOWN = 5  # names of files that cannot be attached


class Screen(Protocol):
    """What a session is shown on."""

    def answer(self, begin: Callable[[], TextStream]) -> None:
        """Show an answer as it comes, and what it took; Ctrl-C ends it."""

    def picture(self, attachment: Attachment | Video) -> None: ...

    def conversation(self, messages: Sequence[Message]) -> None:
        """Show what was said before."""

    def tiles(self, seen: "SeenTiles") -> None:
        """Show the tiles of a picture."""

    def copy(self, text: str) -> None:
        """Put a text into the clipboard, and say how."""

    def say(self, text: str) -> None:
        """Something that is not an answer."""

    def choose(self, question: str, answers: str) -> str:
        """One of the letters of `answers`; the last for anything else, or where nobody can be
        asked."""

    def line(self, prompt: str, default: str) -> str:
        """A line that the user changes; empty after Ctrl-C, or where nobody can be asked."""


@contextmanager
def at_ctrl_c(do: Any) -> Iterator[Any]:
    """Within, Ctrl-C does this, a handler of signals; yields what it does otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield signal.getsignal(signal.SIGINT)
        return
    before = signal.signal(signal.SIGINT, do)
    try:
        yield before
    finally:
        signal.signal(signal.SIGINT, before)


def unbroken() -> AbstractContextManager[Any]:
    """Within, Ctrl-C does nothing: one before has ended the answer, and some come in pairs."""
    return at_ctrl_c(signal.SIG_IGN)


def _attached(source: Attached) -> Attachment | Video:
    return attach(source) if isinstance(source, str | Path) else source


@dataclass
class Session:
    """A conversation with its pending pictures, its place in the history, and the commands that
    change it."""

    chat: Chat
    screen: Screen
    model: str
    history: History | None
    id: str = field(default_factory=new_id)
    seen: set[int] = field(default_factory=set)  # of the history's messages
    own: set[int] = field(default_factory=set)  # those of them that were said here
    path: list[int] = field(default_factory=list)  # where this one's stand there
    told: int | None = None  # where another went, which was said
    pending: list[Attachment | Video] = field(default_factory=list)
    last: Statistics | None = None  # of the last answer
    seen_as: ImageOptions | None = None  # how its pictures were cut
    over: bool = False

    def names(self) -> list[str]:
        """The names of the pictures and videos in the conversation, and of those that wait."""
        held = [held for message in self.chat.messages for held in message.media]
        return [each.name for each in (*held, *self.pending)]

    def ask(self, text: str, sources: Sequence[Source] = ()) -> None:
        """Ask with the pictures that wait, and with these, which go with the question."""
        with self._leaving(sources) as images:
            self.answer(lambda: self.chat.ask(text, images))

    def edit(self, text: str, sources: Sequence[Source] = ()) -> None:
        """Ask this in place of the last question, about its pictures and new ones as `ask` does.
        Where the text names others, those that only the old text named are left out."""
        asked = [message for message in self.chat.messages if message.role == "user"]
        old = asked[-1] if asked else Message("user", ())
        names = {held.name for held in old.media} if sources else set()
        gone = {name for name in names if _is_named(name, old.text) and not _is_named(name, text)}
        kept = [part for part in old.media_parts if _name(part) not in gone]
        same = {held.digest for held in old.media if held.name not in gone}
        with self._leaving(sources) as images:
            new = [image for image in images if image.digest not in same]
            self.answer(lambda: self.chat.edit(text, [*kept, *new]))

    @contextmanager
    def _leaving(self, sources: Sequence[Source]) -> Iterator[list[Attachment | Video]]:
        """What waits, and the sources: none of it goes with the next question, also if this one
        fails."""
        try:
            self.attach(sources)
            yield list(self.pending)
        except (SmolVLMError, KeyboardInterrupt):
            self.let_go()
            raise
        finally:
            self.pending.clear()

    def let_go(self) -> None:
        """Forget the pictures that wait, and say so."""
        if self.pending:
            self.screen.say(
                f"no longer attached: {', '.join(escaped(held.name) for held in self.pending)}"
            )
        self.pending.clear()

    def answer(self, begin: Callable[[], TextStream]) -> None:
        """Show the answer that begins so, and make room for it if the user wants that; nothing is
        forgotten for one that does not begin, or fails."""
        whole = shorter = list(self.chat.messages)
        try:
            while True:
                try:
                    self.screen.answer(lambda: self._begun(begin()))
                    break
                except ContextFullError as error:
                    self._make_room(error)
                    shorter = list(self.chat.messages)
        finally:
            with unbroken():
                if self.chat.messages == shorter:
                    self.chat.messages = whole
                self.keep()
        if self.last is not None and self.last.finish_reason == "repetition":
            told = f"The answer {CUT_OFF['repetition']}; /continue goes on with it, /retry anew."
            self.screen.say(told)
        used = self.last.prompt_tokens + self.last.generated_tokens if self.last else 0
        context = self.chat.context
        if used > 0.9 * context:
            self.screen.say(
                f"The conversation fills {used / context:.0%} of the model's context of {context} "
                "tokens."
            )

    def _begun(self, stream: TextStream) -> TextStream:
        self.last, self.seen_as = stream.statistics, self.chat.image_options
        return stream

    def _make_room(self, error: ContextFullError) -> None:
        asked = sum(message.role == "user" for message in self.chat.messages)
        if asked < 2 or error.over >= self.chat.tokens():  # forgetting all would not do
            raise error
        choice = self.screen.choose(
            f"{error}. Forget the oldest turn? Yes, yes but keep its pictures, or no?", "ypn"
        )
        if choice == "n":
            raise error
        self.chat.drop_oldest(keep_pictures=choice == "p")

    def keep(self) -> None:
        """Bring the history up to date."""
        if self.history is not None and any(m.role == "user" for m in self.chat.messages):
            path = self.history.save(self.id, self.chat.messages, self.model).path
            self.own.update({*path} - self.seen)
            self._stand(path)

    def _stand(self, path: Sequence[int]) -> None:
        self.path = [*path]
        self.seen.update(path)

    def is_behind(self) -> bool:
        """Whether others are elsewhere in this conversation, which has not been said.

        Raises:
            HistoryError: it cannot be read.
        """
        own = [message for message in self.chat.messages if message.role != "system"]
        if self.history is None or not self.seen or len(own) != len(self.path):
            return False
        return self.history.leaf(self.id) not in (*self.path, self.told)

    def catch_up(self) -> None:
        """Go on from what others have said here meanwhile, which is shown once it is whole; where
        they went another way, that is said."""
        with suppress(HistoryError):  # which `keep` does not keep to itself
            if self.history is None or not self.is_behind() or self.history.is_coming(self.id):
                return
            kept = self.history.read(self.id)
            begin = _goes_on(self.path, kept.places)
            if begin is None:
                self.told = kept.places[-1].id if kept.places else None
                ends = [each.end for each in self.history.branches(self.id)]
                if self.told in ends:
                    way = ends.index(self.told) + 1
                    self.screen.say(f"Another went on elsewhere here; /branches {way} goes there.")
                return
            self.chat.restart(kept.messages)
            self.last, self.seen_as = None, None
            self._stand([place.id for place in kept.places])
            self.screen.conversation(kept.messages[begin - len(kept.places) :])

    def undo(self) -> Message:
        """Go back before the last question, which is returned."""
        if self.history is not None:
            left = self.chat.messages[: question_at(self.chat.messages, -1)]
            self.history.withdraw(self.id, left, self.seen, self.own)
        question = self.chat.undo()
        self.last, self.seen_as = None, None
        self.path = self.path[: sum(each.role != "system" for each in self.chat.messages)]
        return question

    def retry(self) -> None:
        """Answer the last question again: sampled, for otherwise it would be the same answer; one
        that was stopped is not yet the same."""
        options = self.chat.options
        is_stopped = self.last is not None and self.last.finish_reason == "interrupted"
        if not is_stopped:
            options = self._sampled("be the same answer", options.temperature == 0)
        self.answer(lambda: self.chat.retry(options))

    def go_on(self) -> None:
        """Go on with the last answer; out of the circle in which it went, if it did: sampled."""
        options, last = self.chat.options, self.chat.messages[-1]
        if last.interrupted and ends_twice(last.text):
            is_cold = options.temperature < RETRY_TEMPERATURE
            options = self._sampled("go in the same circle", is_cold)
        self.answer(lambda: self.chat.go_on(options))

    def _sampled(self, same: str, is_cold: bool) -> Options:
        """The chat's options for something new; at another temperature where they are too cold for
        that, which is said."""
        options = replace(self.chat.options, seed=None)
        if is_cold:
            now, new = options.temperature, RETRY_TEMPERATURE
            self.screen.say(f"sampled at temperature {new:g}: at {now:g} it would {same}")
            options = replace(options, temperature=RETRY_TEMPERATURE)
        return options

    def branches(self) -> Sequence[Branch]:
        """The ways that the conversation went.

        Raises:
            PromptError: none is kept.
        """
        if self.history is None:
            raise PromptError("no history is kept (--no-history), and so no branches")
        return self.history.branches(self.id) if self.seen else ()

    def go(self, branch: Branch) -> None:
        """Go on at the end of one of the ways."""
        if self.history is not None:
            self.history.move(self.id, branch.end)
            self.resume(self.history, self.id)

    def attach(self, sources: Sequence[Attached]) -> None:
        """All of them, or none."""
        attached = [*map(_attached, sources)]
        for attachment in attached:
            self.screen.picture(attachment)
        self.pending += attached

    def attach_readable(
        self, sources: Sequence[Attached], read: Callable[[Attached], Attached] = _attached
    ) -> None:
        """As many of them as can be read.

        Raises:
            SmolVLMError: some cannot, and why.
        """
        errors = list[SmolVLMError]()
        for source in sources:
            try:
                self.attach([read(source)])
            except SmolVLMError as error:
                errors.append(error)
        if len(sources) == 1 and errors:
            raise errors[0]
        if errors:
            more = [f"and {len(errors) - SHOWN} more"] * (len(errors) > SHOWN)
            told, count = "; ".join([*map(str, errors[:SHOWN]), *more]), len(sources) - len(errors)
            raise FetchError(f"attached {count} of {len(sources)}: {told}")

    def tiles(self) -> "list[SeenTiles]":
        """What the model will see of the pictures that wait, or saw of those that came last."""
        from ..tiles import SeenTiles

        parts = [ImagePart(held) for held in self.pending if isinstance(held, Attachment)]
        options, encoded = self.chat.image_options, None
        if not parts:
            asked = ([*each.media_parts] for each in reversed(self.chat.messages))
            images = ([part for part in held if isinstance(part, ImagePart)] for held in asked)
            parts = next(filter(None, images), [])
            options = self.seen_as or options
            encoded = None if self.last is None else self.last.encoded_tiles
        processor = self.chat.processor
        return [
            SeenTiles(
                part.image,
                part.options.over(options).applied(processor.settings),
                processor,
                encoded,
            )
            for part in parts
        ]

    def restart(self, messages: Sequence[Message] = ()) -> None:
        """Go on from these messages, as a conversation of their own."""
        self.chat.restart(list(messages))
        self._begin(new_id())

    def resume(self, history: History, id: str) -> None:
        """Go on with a conversation of the history."""
        kept = history.read(id)
        self.chat.restart(kept.messages)
        self._begin(id)
        self._stand([place.id for place in kept.places])

    def open(self, path: str) -> None:
        """Go on from a saved conversation, as one of its own."""
        self.chat.open(path)
        self._begin(new_id())

    def _begin(self, id: str) -> None:
        self.id, self.seen, self.own = id, set(), set()
        self.last, self.seen_as = None, None
        self.path, self.told = [], None
        self.let_go()


def _goes_on(path: Sequence[int], places: Places) -> int | None:
    """The number of the first message that is new in these places, if they go on from a path. Its
    last answer may be gone in favour of one that begins with it."""
    ids, last = [place.id for place in places], len(path) - 1
    if ids[: last + 1] == path:
        return last + 1
    is_replaced = len(ids) > last and path[last] not in places[last].branches
    return last if ids[:last] == path[:last] and is_replaced else None


def _is_named(name: str, text: str) -> bool:
    name = readable(name)
    return name in text or written(name) in text


def _name(part: ImagePart | VideoPart) -> str:
    held = part.image if isinstance(part, ImagePart) else part.video
    return "" if isinstance(held, Frames) else held.name
