"""A chat session: a conversation, the pictures that wait for the next question, and its place in
the history.

A terminal or a pipe shows it. Everything that is said goes to the history as soon as it is said.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ...errors import ContextFullError, SmolVLMError, escaped
from ...events import CUT_OFF, Statistics
from ...generation.stream import TextStream
from ...inputs.media import Attachment, Frames, Video, attach
from ...inputs.messages import ImagePart, Message, VideoPart
from ...tasks.chat import Chat
from ...tasks.history import History, new_id
from .paths import Source


class Screen(Protocol):
    """What a session is shown on."""

    def answer(self, begin: Callable[[], TextStream]) -> None:
        """Show an answer as it comes, and what it took; Ctrl-C ends it."""

    def picture(self, attachment: Attachment | Video) -> None: ...

    def say(self, text: str) -> None:
        """Something that is not an answer."""

    def choose(self, question: str, answers: str) -> str:
        """One of the letters of `answers`; the last for anything else, or where nobody can be
        asked."""

    def line(self, prompt: str, default: str) -> str:
        """A line that the user changes; empty after Ctrl-C, or where nobody can be asked."""


@dataclass
class Session:
    """A conversation with its pending pictures, its place in the history, and the commands that
    change it."""

    chat: Chat
    screen: Screen
    model: str
    history: History | None
    id: str = field(default_factory=new_id)
    known: tuple[str, ...] = ()  # versions of what the history has
    pending: list[Attachment | Video] = field(default_factory=list)
    last: Statistics | None = None
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
        named = {held.name for held in old.media if held.name in old.text} if sources else set()
        gone = {name for name in named if name not in text}
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
        """Show the answer that begins so, and make room for it if the user wants that."""
        while True:
            try:
                self.screen.answer(lambda: self._begun(begin()))
                break
            except ContextFullError as error:
                self._make_room(error)
            finally:
                self.keep()
        if self.last is not None and self.last.finish_reason == "repetition":
            self.screen.say(f"The answer {CUT_OFF['repetition']}; /retry asks again.")
        used = self.last.prompt_tokens + self.last.generated_tokens if self.last else 0
        context = self.chat.context
        if used > 0.9 * context:
            self.screen.say(
                f"The conversation fills {used / context:.0%} of the model's context of {context} "
                "tokens."
            )

    def _begun(self, stream: TextStream) -> TextStream:
        self.last = stream.statistics
        return stream

    def _make_room(self, error: ContextFullError) -> None:
        if sum(message.role == "user" for message in self.chat.messages) < 2:
            raise error
        choice = self.screen.choose(
            f"{error}. Forget the oldest turn? Yes, yes but keep its pictures, or no?", "ypn"
        )
        if choice == "n":
            raise error
        self.chat.drop_oldest(keep_pictures=choice == "p")

    def keep(self) -> None:
        """Bring the history up to date."""
        if self.history is None:
            return
        if not any(message.role == "user" for message in self.chat.messages):
            return self.history.withdraw(self.id, self.known)
        place = self.history.save(self.id, self.chat.messages, self.model, self.known)
        if place.id != self.id:
            self.screen.say(
                f"another window has gone on with conversation {self.id}; this one is kept as "
                f"{place.id}"
            )
        self.id, self.known = place.id, place.known

    def attach(self, sources: Sequence[Source | Attachment | Video]) -> None:
        """All of them, or none."""
        attached = [
            attach(source) if isinstance(source, str | Path) else source for source in sources
        ]
        for attachment in attached:
            self.screen.picture(attachment)
        self.pending += attached

    def restart(self, messages: Sequence[Message] = ()) -> None:
        """Go on from these messages, as a conversation of their own."""
        self.chat.restart(list(messages))
        self._begin(new_id())

    def resume(self, history: History, id: str) -> None:
        """Go on with a conversation of the history."""
        kept = history.read(id)
        self.chat.restart(kept.messages)
        self._begin(id, kept.version)

    def open(self, path: str) -> None:
        """Go on from a saved conversation, as one of its own."""
        self.chat.open(path)
        self._begin(new_id())

    def _begin(self, id: str, *known: str) -> None:
        self.id, self.known = id, known
        self.pending.clear()


def _name(part: ImagePart | VideoPart) -> str:
    held = part.image if isinstance(part, ImagePart) else part.video
    return "" if isinstance(held, Frames) else held.name
