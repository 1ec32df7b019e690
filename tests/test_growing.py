"""An answer that grows on a terminal, whose window may become narrower: what is left is the
answer, as it is shown as a whole, and nothing else. The terminal here breaks lines anew, as most
do."""

import io
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from random import Random

from smolvlm_mlx.cli.chat.markdown import Answer, Growing
from smolvlm_mlx.events import Reading, Text
from tests.support import as_metal
from tests.support.growing import ANSWER
from tests.support.places import ROOT
from tests.support.tmux import Terminal

import pytest
from rich.console import Console


class Emulated:
    """Lines, each with whether it goes on in the next; and a cursor. Rows may leave it at the
    top."""

    def __init__(self, width: int, height: int = 60):
        self.width, self.height = width, height
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        for control, character in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|(.|\n)", text, re.S):
            if control:
                self._obey(control)
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [[]] * 0 if self.row < len(self.lines) else [[]]
            else:
                line = self.lines[self.row]
                line[self.column : self.column + 1] = [character]
                self.column += 1
                assert self.column <= self.width, "no line is wider than the window"

    def _obey(self, control: str) -> None:
        if control[-1] == "A":
            self.row -= int(control[:-1])
            assert self.row >= 0
        elif control == "2K":
            self.lines[self.row] = [" "] * self.column
        else:
            assert control[-1] in "mhl"

    def resize(self, width: int) -> None:
        """Break what is too wide; the cursor stays at its character."""
        broken: list[list[str]] = []
        for number, line in enumerate(self.lines):
            pieces = [line[at : at + width] for at in range(0, len(line), width)] or [[]]
            if number == self.row:
                row = min(self.column // width, len(pieces) - 1)
                place = (len(broken) + row, self.column - row * width)
            broken += pieces
        self.lines, self.width = broken, width
        self.row, self.column = place

    @property
    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip()


def console(terminal: Emulated, out: io.StringIO) -> Console:
    return Console(
        file=out,
        width=terminal.width,
        height=terminal.height,
        force_terminal=True,
        color_system=None,
        markup=False,
        highlight=False,
        legacy_windows=False,
    )


def shown(text: str, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, highlight=False).print(Answer(text))
    return out.getvalue().rstrip()


def grow(text: str, rng: Random, widths: list[int]) -> Emulated:
    """Show an answer piece by piece, with a width now and then."""
    terminal, out = Emulated(widths[0]), io.StringIO()
    on = console(terminal, out)
    growing = Growing(on)

    def flush() -> None:
        terminal.write(out.getvalue())
        out.seek(0)
        out.truncate()

    terminal.write("> question\n")
    for _ in range(3):
        growing.take(Reading(1, 20, "tiles, " * 3))
        growing.paint()
        flush()
    while text:
        cut = rng.randrange(1, 12)
        growing.take(Text(text[:cut]))
        text = text[cut:]
        growing.paint()
        flush()
        if len(widths) > 1 and not rng.randrange(8):
            on.width = rng.choice(widths)
            terminal.resize(on.width)
    growing.finish()
    flush()
    return terminal


@pytest.mark.parametrize("width", [100, 33])
def test_what_is_left_is_the_whole_answer(width: int) -> None:
    for seed in range(4):
        left = grow(ANSWER, Random(seed), [width]).text
        assert left == f"> question\n{shown(ANSWER, width)}"


def words(text: str) -> str:
    """Its letters and digits."""
    return "".join(re.findall(r"\w+", text))


def test_a_narrower_window_leaves_nothing_of_what_was_painted() -> None:
    """Blocks are broken where they were printed; their words are there once, in order."""
    for seed in range(8):
        left = grow(ANSWER, Random(seed), [100, 70, 52, 40]).text
        question, _, answer = left.partition("\n")
        assert question == "> question"
        assert words(answer) == words(shown(ANSWER, 200)), seed


def is_done(steps: Path, step: int, screen: str) -> bool:
    return steps.exists() and steps.stat().st_size == step


@pytest.mark.skipif(shutil.which("tmux") is None, reason="need tmux")
def test_nor_does_it_in_a_terminal(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    environment = {**as_metal.environment(ROOT), "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
    terminal = Terminal(f"{sys.executable} -m tests.support.growing {steps}", environment)
    try:
        for step, columns in enumerate((100, 60, 90, 50, 40, 70, 69, 45, 100, 52, 40, 100), 1):
            done = partial(is_done, steps, step)
            terminal.wait_until(done, f"step {step}")
            terminal.resize(columns)
            terminal.type(str(columns), "Enter")
        screen = terminal.wait("left 0")
    finally:
        terminal.close()
    left = screen.partition("> question")[2].rpartition("left 0")[0]
    assert words(left) == words(shown(ANSWER, 200))


def test_nothing_of_an_answer_is_lost_and_lines_have_no_spaces_at_their_ends() -> None:
    out = io.StringIO()
    Console(file=out, width=40, color_system=None, highlight=False).print(Answer(ANSWER))
    lines = out.getvalue().splitlines()
    assert "[1]: is not lost The end." in lines
    assert "link (http://a.example) and [1]" in lines
    assert [line for line in lines if line != line.rstrip()] == []
    assert max(map(len, lines)) <= 40


def test_no_answer_leaves_nothing() -> None:
    assert grow("", Random(1), [100, 52]).text == "> question"
    assert grow("\n \n", Random(1), [100, 52]).text == "> question"


def test_a_long_block_is_painted_up_to_half_of_the_window() -> None:
    terminal, out = Emulated(20, 10), io.StringIO()
    growing = Growing(console(terminal, out))
    growing.take(Text("".join(f"- {number}\n" for number in range(30))))
    growing.paint()
    terminal.write(out.getvalue())
    assert terminal.text.split() == [word for n in range(25, 30) for word in ("•", str(n))]
