"""A chat session in a terminal: answers that grow, pictures inline, a prompt with completion."""

import asyncio
import signal
import sys
import termios
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import DummyHistory, FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.utils import get_term_environment_variable

from ...errors import HistoryError, SmolVLMError, escaped, quote, reason
from ...generation.stream import TextStream
from ...inputs.media import Attachment, Video
from ...inputs.messages import Message
from ..gate import clean, own
from ..show import Console, print_picture, shows_pictures
from ..tiles import SeenTiles
from .clipboard import copy, through_terminal
from .commands import about, handle
from .completion import CommandCompleter, conversation, in_question, paths, setting
from .markdown import Answer, Growing
from .paths import readable
from .session import Session, at_ctrl_c, unbroken

PICTURE_ROWS = 12  # of a terminal
SHOWN_TURNS = 20  # of a conversation that goes on
POLL_SECONDS = 0.25  # between looks at whether others have written
PAINT_SECONDS = 0.08  # between two states of an answer that are shown


class TerminalScreen:
    """Shows a session. `history_file` keeps what was typed for the arrow keys."""

    def __init__(self, history_file: Path | None, debug: bool = False):
        self.console, self.debug = Console(), debug
        self._lines = Lines(history_file) if history_file else None
        self._prompt = _prompt_session(self._lines or InMemoryHistory())
        self._question = _prompt_session(DummyHistory())
        self._interrupt: Any = signal.default_int_handler  # what Ctrl-C does to what is done

    def run(self, session: Session) -> None:
        """Until /quit or Ctrl-D."""
        completes = {
            **dict.fromkeys(("/image", "/video", "/save"), paths),
            "/edit": in_question,
            **dict.fromkeys(("/settings", "/set"), setting),
            "/open": conversation(session.history),
        }
        self._prompt.completer = CommandCompleter(about(), completes)
        self._prompt.key_bindings = self._question.key_bindings = self._keys(session)
        with unbroken() as self._interrupt:  # in a prompt Ctrl-C is a key
            while not session.over:
                session.catch_up()
                try:
                    line = self._prompt.prompt(
                        lambda: _mark(session),
                        pre_run=lambda: _begin(self._follow(session)),
                        handle_sigint=False,
                    )
                except EOFError:
                    return
                except KeyboardInterrupt:
                    continue
                if self._lines is not None and (trouble := self._lines.pop_trouble()):
                    self.say(f"{trouble}; arrows bring back the lines of this session alone")
                self._do(session, line)

    async def _follow(self, session: Session) -> None:
        """Show above the prompt what others say in this conversation, as long as it is there."""
        if session.history is None:
            return
        with suppress(HistoryError), closing(session.history.watch()) as watch:
            is_late = True
            while True:
                await asyncio.sleep(POLL_SECONDS)
                is_late = watch.has_changed() or is_late
                with suppress(HistoryError):
                    is_behind = is_late and session.is_behind()
                    is_late = is_behind and session.history.is_coming(session.id)
                    if is_behind and not is_late:
                        await run_in_terminal(session.catch_up)

    def _do(self, session: Session, line: str) -> None:
        """Do what a line says; what cannot be done is told."""
        try:
            with at_ctrl_c(self._interrupt), _unseen():
                handle(session, line)
        except KeyboardInterrupt:
            self.say("interrupted")
        except SmolVLMError as error:
            if self.debug:
                raise
            self.console.print(str(error), style="red")

    def _keys(self, session: Session) -> KeyBindings:
        """Enter sends, and Alt-Enter begins a line; Ctrl-V attaches the picture in the clipboard,
        and so does a paste of nothing, which is what some terminals make of a picture."""
        keys = KeyBindings()

        def paste(event: KeyPressEvent) -> None:
            run_in_terminal(lambda: self._do(session, "/paste"))

        def paste_text(event: KeyPressEvent) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            if text:
                event.current_buffer.insert_text(text)
            else:
                paste(event)

        keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        keys.add("c-v")(paste)
        keys.add(Keys.BracketedPaste)(paste_text)
        return keys

    def answer(self, begin: Callable[[], TextStream]) -> None:
        growing, stream, again = Growing(self.console), None, 0.0
        self.console.show_cursor(False)
        try:
            growing.paint()
            stream = begin()
            for event in stream.events:
                growing.take(event)
                if (now := time.monotonic()) >= again:
                    growing.paint()
                    # A long block takes longer, and is not to slow its own coming.
                    again = now + max(PAINT_SECONDS, 5 * (time.monotonic() - now))
        except KeyboardInterrupt:
            if stream is None:
                raise
            with unbroken():
                stream.close()
        finally:
            with unbroken():
                growing.finish()
                self.console.show_cursor(True)
        if stream is not None:
            self.say(stream.statistics.describe())

    def conversation(self, messages: Sequence[Message]) -> None:
        """Show its last turns as they were shown."""
        asked = [n for n, message in enumerate(messages) if message.role == "user"]
        first = asked[-SHOWN_TURNS] if len(asked) > SHOWN_TURNS else 0
        if first:
            self.say(f"({len(asked) - SHOWN_TURNS} turns before these are not shown)")
        for message in messages[first:]:
            if message.role == "assistant":
                self.console.print(Answer(message.text))
            else:
                mark = "> " if message.role == "user" else f"{message.role}: "
                self.console.print(mark + message.text.replace("\n", "\n  "), style="bold")
                for held in message.media:
                    self.picture(held)
            if message.interrupted:
                self.say("interrupted")

    def picture(self, attachment: Attachment | Video) -> None:
        """Show a picture, or a video's first frame, where terminals can, in blocks elsewhere; and
        say what it is."""
        if shows_pictures(self.console):
            print_picture(self.console, attachment.preview, PICTURE_ROWS)
        note = f", {attachment.note}" if attachment.note else ""
        self.say(f"{escaped(attachment.name)}: {attachment.size[0]} x {attachment.size[1]}{note}")

    def tiles(self, seen: SeenTiles) -> None:
        self.say(f"{escaped(seen.picture.name)}: {seen.summary()}")
        seen.print_on(self.console, "dim")

    def copy(self, text: str) -> None:
        size = f"{len(text):,} characters"
        if program := copy(text):
            self.say(f"copied with {program}: {size}")
            return
        out = own(sys.stdout)
        out.write(through_terminal(text))
        out.flush()
        self.say(f"sent to the terminal's clipboard, if it takes it (OSC 52): {size}")

    def say(self, text: str) -> None:
        self.console.print(text, style="dim")

    def choose(self, question: str, answers: str) -> str:
        typed = self.line(f"{question} [{'/'.join(answers)}] ", "").lower()[:1]
        return typed if typed and typed in answers else answers[-1]

    def line(self, prompt: str, default: str) -> str:
        try:
            return self._question.prompt(prompt, default=default).strip()
        except (EOFError, KeyboardInterrupt):
            return ""


def _prompt_session(history: History) -> PromptSession[str]:
    return PromptSession(
        output=_Output.from_pty(own(sys.stdout), get_term_environment_variable()),
        history=history,
        complete_while_typing=False,
        multiline=True,
        prompt_continuation="  ",
        input_processors=[TabsProcessor(char1=" ", char2=" ")],
    )


class Lines(FileHistory):
    """The lines that were typed, in a file; once that fails, in memory alone."""

    def __init__(self, file: Path):
        super().__init__(str(file))
        self._file = file
        self._trouble: str | None = None
        self._is_lost = False

    def pop_trouble(self) -> str | None:
        """Return what went wrong with the file, once."""
        trouble, self._trouble = self._trouble, None
        return trouble

    def load_history_strings(self) -> Iterable[str]:
        with self._kept():
            self._file.touch(mode=0o600)
            return [*super().load_history_strings()]
        return ()

    def store_string(self, string: str) -> None:
        if not self._is_lost:
            with self._kept():
                super().store_string(readable(string))

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._trouble = f"{quote(self._file, end=True)}: {reason(error)}"
            self._is_lost = True


@contextmanager
def _unseen() -> Iterator[None]:
    """Within, a terminal does not show what is typed, which would stand in the answer: the next
    prompt does."""
    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError):  # no terminal
        yield
        return
    modes = [*before]
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _begin(work: Coroutine[None, None, None]) -> None:
    get_app().create_background_task(work)


def _mark(session: Session) -> FormattedText:
    """What stands before a line: how many pictures go with it."""
    attached = f"{len(session.pending)} attached " if session.pending else ""
    return FormattedText([("ansibrightblack", attached), ("bold", "> ")])


class _Output(Vt100_Output):
    """What is typed, completed or comes back from the lines of before is cleaned. A carriage return
    is the renderer's own: where a text has one, it draws ^M."""

    def write(self, data: str) -> None:
        super().write("\r".join(map(clean, readable(data).split("\r"))))
