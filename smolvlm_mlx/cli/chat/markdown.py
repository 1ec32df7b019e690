"""What a model writes, in a terminal: Markdown block by block, and an answer while it grows.

It is shown, never obeyed: no markup of ours is read in it, HTML stays text, and control characters
are left out. What is finished is printed once; only what grows is painted again, over itself, also
where the window became narrower meanwhile.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.markdown import CodeBlock, Heading, HorizontalRule, Markdown
from rich.segment import ControlType, Segment
from rich.syntax import Syntax
from rich.text import Text as Styled

from ...events import Event, Reading, Text
from ..gate import clean

# Without references: all that is written is shown, and a block is the same whatever follows it.
_PARSER = MarkdownIt("commonmark", {"html": False}).disable("reference")
_PARSER.enable(["strikethrough", "table"])
Line = Sequence[Segment]


class _Code(CodeBlock):
    """In the terminal's own colors, on its own ground: another one would have ragged edges where a
    window became narrower."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(
            code,
            self.lexer_name,
            theme="ansi_dark",
            background_color="default",
            word_wrap=True,
            padding=(0, 2),
        )


class _Heading(Heading):
    """At the left, where it stays in a window that becomes narrower."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _Rule(HorizontalRule):
    """Not as wide as the window, for the same reason."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Styled("───", style="markdown.hr")


class _Block(Markdown):
    """A part of a text that is parsed already; links are shown with their addresses, not
    followed."""

    elements: ClassVar[Any] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
        "hr": _Rule,
    }

    def __init__(self, tokens: list[Token]):
        super().__init__("", hyperlinks=False)
        self.parsed, self.start = tokens, (tokens[0].map or [0])[0]  # its first line


class Answer:
    """A model's text as Markdown. Its lines have no spaces at their ends, which would be lines of
    their own in a window that becomes narrower."""

    def __init__(self, text: str):
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in _lines(console, options, _blocks(self._text)):
            yield from line
            yield Segment.line()


def _blocks(text: str) -> list[_Block]:
    """The paragraphs, lists, tables and so on of a text."""
    tokens, blocks, start = _PARSER.parse(clean(text)), list[_Block](), 0
    for end, token in enumerate(tokens, 1):
        if token.level == 0 and token.nesting < 1:
            blocks.append(_Block(tokens[start:end]))
            start = end
    return blocks


def _lines(
    console: Console, options: ConsoleOptions, parts: Sequence[RenderableType]
) -> Iterator[Line]:
    """The lines of parts, with an empty one between each two; lists and tables have their own
    around them, which are left out."""
    for number, part in enumerate(parts):
        lines = console.render_lines(part, options.update(height=None), pad=False)
        widths = [cell_len("".join(s.text for s in line).rstrip()) for line in lines]
        written = [at for at, width in enumerate(widths) if width]
        if number:
            yield []
        for at in range(written[0], written[-1] + 1) if written else ():
            yield Segment.adjust_line_length(lines[at], widths[at], pad=False)


class _Lines:
    """Lines as they are; the last is not ended, so that the cursor stays in it."""

    def __init__(self, lines: Sequence[Line]):
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, line in enumerate(self._lines):
            if number:
                yield Segment.line()
            yield from line


class Growing:
    """An answer that grows on a terminal; before its first word, how far the question is read."""

    def __init__(self, console: Console):
        self._console, self._text, self._status = console, "", "…"
        self._printed = 0  # lines of the text, whose blocks are finished
        self._painted: Sequence[Line] = ()  # which stand on the screen, to be painted over

    def take(self, event: Event) -> None:
        """Note what has happened, which `paint` shows."""
        if isinstance(event, Reading):
            self._status = f"reading: {event.done} of {event.total} {event.what}"
        elif isinstance(event, Text):
            self._text += event.piece

    def paint(self) -> None:
        """Print the blocks that are finished, and paint what grows: its last lines, where it is
        longer than half of the window, so that it has room when that becomes narrower."""
        finished, growing = self._parts()
        printed = [*self._lines(finished), [], []] if finished else []
        lines = self._lines(growing or [Styled(self._status, style="dim")])
        with self._console:  # in one piece, and at once, for the window may change
            self._erase()
            self._console.print(_Lines(printed))
            self._painted = lines[-max(self._console.height // 2, 1) :]
            self._console.print(_Lines(self._painted))
        self._printed += growing[0].start if finished else 0

    def finish(self) -> None:
        """Print all that is left of the answer, in place of what was painted."""
        finished, growing = self._parts()
        lines = self._lines([*finished, *growing])
        with self._console:
            self._erase()
            self._console.print(_Lines([*lines, []] if lines else []))

    def _lines(self, parts: Sequence[RenderableType]) -> list[Line]:
        return [*_lines(self._console, self._console.options, parts)]

    def _parts(self) -> tuple[list[_Block], list[_Block]]:
        """The blocks that are not printed yet: those that nothing more can change, and the others:
        a line that has just begun may still belong to the block before it."""
        lines = self._text.split("\n")[self._printed :]
        blocks = _blocks("\n".join(lines))
        begun = [number for number, block in enumerate(blocks) if block.start < len(lines) - 1]
        last = begun[-1] if begun else 0
        return blocks[:last], blocks[last:]

    def _erase(self) -> None:
        """Erase what was painted. Where the window became narrower, terminals break its lines into
        more."""
        widths = [sum(segment.cell_length for segment in line) for line in self._painted]
        rows = sum(max(-(-width // self._console.width), 1) for width in widths)
        above = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * (rows - 1)
        if rows:
            erase = (ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
            self._console.control(Control(*erase, *above))
        self._painted = ()
