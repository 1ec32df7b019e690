"""A day's use of the chat in a terminal (tmux): some 50 lines and keys in windows of several
widths, with pictures and a clipboard. The whole screen is compared with tests/goldens/day.txt,
which was read line by line: what changes on the screen is changed there, by hand."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from examples.demo import draw
from tests.support import as_metal
from tests.support.places import ROOT
from tests.support.tmux import Terminal

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="need tmux"),
]

MARKDOWN = """\
# Shapes

A **red** circle, *and* `code`:

1. one
2. two

| shape | tiles |
|---|---:|
| circle | 4 |

```python
print("HAT")
```
The end."""


def line(text: str) -> list[str]:
    """A line as it is typed."""
    return [text, "Enter"]


# What is typed in each prompt: texts and keys; `Tab` with the line that it makes, and
# what is attached where a key attaches it.
DAY = [
    line("/undo"),
    line("/retry"),
    line("/continue"),
    line("/edit"),
    line("/copy"),
    line("/tiles"),
    line("/history"),
    line("/hisotry"),
    line("/image *.png"),
    line("/image"),
    ["demo", "Tab demo.png", " Describe the picture.", "Enter"],
    line("/tiles"),
    line("What does the text say?"),
    line("/tiles"),
    line("/copy"),
    line("What is in dmo.png?"),
    line("/ask What does the text say?"),
    line("/undo"),
    line("/edit Where is the star?"),
    line("/branches"),
    line("/ask What does the text say?"),
    line("/edit Where is the circle?"),
    line("/branches"),
    line("/branches 1"),
    line("/branches 3"),
    line("/branches 2"),
    line("/continue"),
    line("/stats"),
    ["/set temp", "Tab /set temperature", "0.5", "Enter"],
    ["/set temperature ", "Tab /set temperature default", "Enter"],
    ["/set top", "Tab /set top_", "Tab /set top_k", "7", "Enter"],
    line("/set colour red"),
    line("/set top_k none"),
    line("/save talk.json"),
    ["resize 60"],
    line("/paste"),
    ["C-v", "2 attached", "What does the text say?", "Enter"],
    ["paste /system Say what you see,\n\tand no more\nthan that.", "Enter"],
    line("/image demo.png white.png"),
    line("/system Say what you see, and nothing else, in as few words as you can."),
    line("/new"),
    line("/set max_tokens 12"),
    line("demo.png Describe the picture."),
    line("/set max_tokens default"),
    line("/continue"),
    line("/copy"),
    line("/open talk.json"),
    ["resize 38"],
    line("What does the text say?"),
    line("/tiles"),
    line("/stats"),
    ["resize 100"],
    line("/open markdown.json"),
    ["Up", "Up", "Up", "C-u", "What is 1 + 1?", "C-c"],
    line("/history"),
    line("/quit"),
]
EVENING = [
    ["resize 48"],
    line("/tiles"),
    line("Where is the star?"),
    line("/edit Where is the circle?"),
    line("/branches"),
    line("/quit"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The working folder, with pictures, a conversation, and what stands in for the programs of a
    clipboard."""
    draw().save(tmp_path / "demo.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    said = [("user", "Tell me all.\nIn Markdown."), ("assistant", MARKDOWN)]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    (tmp_path / "markdown.json").write_text(json.dumps({"messages": messages}))
    programs = tmp_path / "bin"
    programs.mkdir()
    hexadecimal = (tmp_path / "demo.png").read_bytes().hex().upper()
    for name, line in {
        "pbcopy": f"exec cat > '{tmp_path}/copied'",
        "xclip": f"exec cat '{tmp_path}/demo.png'",
        "osascript": f"echo '«data PNGf{hexadecimal}»'",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    return {
        **as_metal.environment(ROOT),
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "DISPLAY": ":0",
    }


def settled(screen: str) -> str:
    """A screen without what differs from run to run: times, ids, dates; a picture's rows of blocks
    as one."""
    took = r"\s+·\s+first\s+after\s+\S+\s+s(\s+·\s+then\s+\S+\s+tokens/s)?(\s+·\s+\S+\s+GB)?"
    screen = "\n".join(line.rstrip() for line in screen.splitlines())
    screen = re.sub(took, " · (times)", screen)
    cut = "cut off at the longest length"  # after times of any width
    screen = re.sub(cut.replace(" ", r"\s+"), cut, screen)
    screen = re.sub(r"^[0-9a-f]{8}(?=  \d)", "(id)", screen, flags=re.M)
    screen = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "(date)", screen)

    def picture(rows: re.Match[str]) -> str:
        lines = rows.group().split()
        return f"({len(lines[0])} x {len(lines)} blocks)\n"

    screen = re.sub(r"(?:^▀+\n)+", picture, screen, flags=re.M)
    return screen.strip() + "\n"


def use(terminal: Terminal, steps: list[list[str]]) -> None:
    """Type all of it, each line when the one before is done."""
    prompts = terminal.wait_for_prompt()
    for keys in steps:
        if keys[0].startswith("resize"):
            terminal.resize(int(keys[0].split()[1]))
            prompts = terminal.wait_for_prompt()
            continue
        for key in keys:
            if key.startswith("paste "):
                terminal.paste(key.removeprefix("paste "))
            elif key.startswith("Tab "):
                terminal.type("Tab")
                terminal.wait_for_line(f"> {key.removeprefix('Tab ')}")
            elif key.endswith(" attached"):
                terminal.wait_for_line(f"{key} >")
            else:
                terminal.type(key)
        if keys[0] == "/quit":
            return
        prompts = terminal.wait_for_prompt(prompts)


def test_a_day(folder: Path, environment: dict[str, str]) -> None:
    command = f"{sys.executable} -m smolvlm_mlx chat -m tiny --dtype float32"
    day, evening = Terminal(command, environment, folder), None
    try:
        use(day, DAY)
        seen = settled(day.wait("left 0"))
        assert (folder / "copied").read_text().startswith("A large red circle")
        evening = Terminal(f"{command} --resume last", environment, folder)
        use(evening, EVENING)
        seen += "-----\n" + settled(evening.wait("left 0"))
    finally:
        day.close()
        if evening:
            evening.close()
    (folder / "day.txt").write_text(seen, "utf-8")
    expected = (ROOT / "tests" / "goldens" / "day.txt").read_text("utf-8")
    assert seen.splitlines() == expected.splitlines(), f"see {folder / 'day.txt'}"
