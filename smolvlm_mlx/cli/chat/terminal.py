"""A chat session in a terminal: streaming Markdown, pictures inline, a prompt with completion.

What a model writes is shown, never obeyed: no markup of ours is read in it, HTML stays text, and
control characters are left out.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.utils import get_term_environment_variable
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text as Styled

from ...errors import SmolVLMError, escaped
from ...events import Event, Reading, Text
from ...generation.stream import TextStream
from ...inputs.media import Attachment, Video
from ..gate import clean, own
from ..show import Console, shows_pictures
from .commands import COMMANDS, handle
from .completion import CommandCompleter
from .session import Session

PICTURE_ROWS = 12  # of a terminal


class TerminalScreen:
    """Shows a session. `history_file` keeps what was typed for the arrow keys."""

    def __init__(self, history_file: Path | None, debug: bool = False):
        self.console, self.debug = Console(), debug
        if history_file:
            history_file.touch(mode=0o600)
        keys = KeyBindings()
        keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        self._prompt: PromptSession[str] = PromptSession(
            output=_Output.from_pty(own(sys.stdout), get_term_environment_variable()),
            history=FileHistory(str(history_file)) if history_file else InMemoryHistory(),
            completer=CommandCompleter(COMMANDS, with_paths=("/image", "/video", "/open", "/save")),
            complete_while_typing=False,
            key_bindings=keys,
            multiline=True,
            prompt_continuation="  ",
        )

    def run(self, session: Session) -> None:
        """Until /quit or Ctrl-D."""
        while not session.over:
            attached = f"{len(session.pending)} attached " if session.pending else ""
            try:
                line = self._prompt.prompt(
                    FormattedText([("ansibrightblack", attached), ("bold", "> ")])
                )
            except EOFError:
                return
            except KeyboardInterrupt:
                continue
            try:
                handle(session, line)
            except KeyboardInterrupt:
                self.say("interrupted")
            except SmolVLMError as error:
                if self.debug:
                    raise
                self.console.print(str(error), style="red")

    def answer(self, begin: Callable[[], TextStream]) -> None:
        shown = _Growing()
        stream = None
        try:
            with Live(
                shown,
                console=self.console,
                transient=True,
                refresh_per_second=12,
                redirect_stdout=False,
                redirect_stderr=False,
            ):
                stream = begin()
                for event in stream.events:
                    shown.show(event)
        except KeyboardInterrupt:
            if stream is None:
                raise
            stream.close()
        if shown.text.strip():
            self.console.print(markdown(shown.text))
        if stream is not None:
            self.say(stream.statistics.describe())

    def picture(self, attachment: Attachment | Video) -> None:
        """Show a picture, or a video's first frame, where terminals can, in blocks elsewhere; and
        say what it is."""
        from textual_image.renderable import Image as Inline

        if shows_pictures(self.console):
            width, height = attachment.size
            columns = min(self.console.width, round(PICTURE_ROWS * 2 * width / height))
            self.console.print(Inline(attachment.preview, width=max(columns, 1), height="auto"))
        note = f", {attachment.note}" if attachment.note else ""
        self.say(f"{escaped(attachment.name)}: {attachment.size[0]} x {attachment.size[1]}{note}")

    def say(self, text: str) -> None:
        self.console.print(text, style="dim")

    def choose(self, question: str, answers: str) -> str:
        typed = self.line(f"{question} [{'/'.join(answers)}] ", "").lower()[:1]
        return typed if typed and typed in answers else answers[-1]

    def line(self, prompt: str, default: str) -> str:
        try:
            return self._prompt.prompt(prompt, default=default).strip()
        except (EOFError, KeyboardInterrupt):
            return ""


class _Output(Vt100_Output):
    """What is typed, completed or comes back from the lines of before is cleaned."""

    def write(self, data: str) -> None:
        super().write(clean(data))


class _Growing:
    """The last lines of an answer that fit the terminal; before its first word, how far the
    question is read."""

    def __init__(self) -> None:
        self.text, self._status = "", "…"

    def show(self, event: Event) -> None:
        if isinstance(event, Reading):
            self._status = f"reading: {event.done} of {event.total} {event.what}"
        elif isinstance(event, Text):
            self.text += event.piece

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        if not self.text:
            yield Styled(self._status, style="dim")
            return
        lines = console.render_lines(markdown(self.text), options.update(height=None), pad=False)
        for line in lines[-max(console.height - 2, 1) :]:
            yield from line
            yield Segment.line()


def markdown(text: str) -> Markdown:
    """A model's text. HTML in it is text, and links are shown with their addresses, not
    followed."""
    from markdown_it import MarkdownIt

    shown = Markdown("", hyperlinks=False)
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    shown.parsed = parser.parse(clean(text))
    return shown
