"""A chat session: a conversation, the pictures that wait for the next question, and its place in
the history.

A terminal or a pipe shows it. Everything that is said goes to the history as soon as it is said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ...errors import ContextFullError
from ...events import Statistics
from ...generation.stream import TextStream
from ...inputs.media import Attachment, Video, attach
from ...inputs.messages import Message
from ...tasks.chat import Chat
from ...tasks.history import History, new_id


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
    pending: list[Attachment | Video] = field(default_factory=list)
    last: Statistics | None = None
    over: bool = False

    def ask(self, text: str) -> None:
        """Ask with the pictures that are attached."""
        images = list(self.pending)
        self.answer(lambda: self.chat.ask(text, images))
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
        if any(message.role == "user" for message in self.chat.messages):
            self.history.save(self.id, self.chat.messages, self.model)
        elif any(summary.id == self.id for summary in self.history.list()):
            self.history.delete(self.id)

    def attach(self, sources: Sequence[str | Path | Attachment | Video]) -> None:
        """All of them, or none."""
        attached = [
            attach(source) if isinstance(source, str | Path) else source for source in sources
        ]
        for attachment in attached:
            self.screen.picture(attachment)
        self.pending += attached

    def restart(self, messages: list[Message], id: str | None = None) -> None:
        """Go on from these messages, as a conversation of their own unless it has an id."""
        self.chat.stop()
        self.chat.messages, self.id = messages, id or new_id()
        self.pending.clear()
