"""Nothing foreign commands a terminal, or deceives who reads it: each character, however text is
cut; and each command on a real terminal (a pty), with controls in every field."""

import io
import json
import os
import pty
import random
import sqlite3
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.hub import find
from smolvlm_mlx.cli.gate import Gate, clean, install, own
from smolvlm_mlx.cli.show import bar, console
from smolvlm_mlx.inputs.messages import text_message
from smolvlm_mlx.tasks.history import History
from tests.support.cli import ENVIRONMENT
from tests.support.pictures import noise
from tests.support.places import ROOT
from tests.support.videos import encode_video

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

EVERY = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
JOINERS = "\u200c\u200d"  # of Persian, and of emoji
# Format characters that are seen: signs over numbers and the like.
SEEN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
LAID_OUT = range(0x13430, 0x13440)  # how hieroglyphs stand to each other


def test_every_character() -> None:
    kept = set(clean(EVERY))
    for character in EVERY:
        kind = unicodedata.category(character)
        is_kept = character in kept
        if character in "\t\n" or character in JOINERS:
            assert is_kept
        elif kind in ("Cc", "Zl", "Zp"):
            assert not is_kept, hex(ord(character))
        elif kind == "Cf":
            assert is_kept == (ord(character) in SEEN or ord(character) in LAID_OUT), hex(
                ord(character)
            )
        elif unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF"):
            assert not is_kept
        elif kind[0] in "LNPS" and "FILLER" not in unicodedata.name(character, ""):
            assert is_kept, hex(ord(character))
    written = "👩\u200d🔬 می\u200cخواهم ❤\ufe0f e\u0301"
    assert clean(written) == written


def test_pieces_come_out_as_the_whole() -> None:
    rng = random.Random(16)
    for _ in range(300):
        text = "".join(rng.choices("ab\x1b[31m]0;\x07\x9b\r\n\t\u202e\u200b\U000e0041é", k=40))
        cuts = sorted(rng.choices(range(41), k=rng.randrange(6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        shown = io.StringIO()
        gate = Gate(shown, True, True)
        assert [gate.write(piece) for piece in pieces] == [len(piece) for piece in pieces]
        assert shown.getvalue() == clean(text)
        assert not set(shown.getvalue()) & set("\x1b\x07\x9b\r\u202e\u200b\U000e0041")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Screen, io.StringIO])
def test_stdout_is_data_in_a_pipe(kind: Callable[[], io.StringIO], monkeypatch: Any) -> None:
    out, err = kind(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    install()
    install()  # once more changes nothing
    print("a\x1b[31m\r\n")
    print("b\x1b[31m", file=sys.stderr)
    own(sys.stdout).write("\x1b[K")
    assert out.getvalue() == ("a[31m\n\n" if kind is Screen else "a\x1b[31m\r\n\n") + "\x1b[K"
    assert err.getvalue() == "b[31m\n"
    assert not hasattr(sys.stdout, "buffer")  # the way around


def test_a_console_has_its_own_styles_and_cleans_all_texts(monkeypatch: Any) -> None:
    out, err = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    install()
    console().print("[b]x\x1b]0;x\x07\x9b", style="red")
    assert out.getvalue() == "\x1b[31m[b]x]0;x\x1b[0m\n"
    with bar("{0} {task} \x1b[35m\n") as shown:
        shown.add_task("", total=1)
        print("note\x1b[36m\x1b]8;;http://a.example\x07", file=sys.stderr)
    assert "{0} {task} \\x1b[35m\\n" in err.getvalue()
    assert "note[36m]8;;http://a.example" in err.getvalue()
    assert "\x1b[36mhttp" not in err.getvalue()
    assert "\x1b[35m\n" not in err.getvalue()


def test_a_download_has_its_bar(monkeypatch: Any, tmp_path: Path) -> None:
    def download(repo: str, *, tqdm_class: Any, **options: Any) -> str:
        assert list(tqdm_class([1], desc="Fetching", disable=False)) == [1]
        return str(tmp_path)

    err = Screen()
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    install()
    find("owner/name")
    assert err.getvalue().count("\rFetching") >= 2


# ---- every command, on a terminal

# A title, colors, a bell, C1, a line written over, a direction, what is not seen.
HOSTILE = "\x1b]0;owned\x07\x1b[35;7mx\x9b35mx\x85x\rover\x08\x7fx\u202exe\u2066x\u200bx\U000e0041"
RAW = (
    *("\x1b]0;", "\x1b[35;7m", "\x07", "\x9b", "\x85", "\rover", "\x7f", "\u202e", "\u2066"),
    *("\u200b", "\U000e0041"),
)


def on_a_terminal(
    *arguments: object, typed: str = "", size: tuple[int, int] = (40, 100), **environment: Any
) -> tuple[int, str]:
    """The exit code of a command, and all that its terminal is sent."""
    command = ["-W", "ignore", "-m", "smolvlm_mlx", *map(str, arguments)]
    return python_on_a_terminal(command, typed, size, environment)


def python_on_a_terminal(
    arguments: Sequence[str], typed: str, size: tuple[int, int], environment: dict[str, str]
) -> tuple[int, str]:
    here, there = pty.openpty()
    termios.tcsetwinsize(there, size)
    variables = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "1000", **environment}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE if typed else there,
        stdout=there,
        stderr=there,
        env=variables,
        start_new_session=True,
    )
    os.close(there)
    if process.stdin:
        process.stdin.write(typed.encode())
        process.stdin.close()
    sent = b""
    with suppress(OSError):  # at its end, on Linux
        while piece := os.read(here, 65536):
            sent += piece
    os.close(here)
    return process.wait(60), sent.decode("utf-8", "replace")


def check_clean(result: tuple[int, str], *codes: int) -> None:
    code, sent = result
    assert code in (codes or (0,)), sent
    assert not [raw for raw in RAW if raw in sent], repr(sent)
    assert "Traceback" not in sent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in a folder with a hostile name, that writes nothing but ESC and BEL."""
    folder = make(tmp_path_factory.mktemp("models") / f"m{HOSTILE}", layers=(1, 1))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    weights = load_file(folder / "model.safetensors")
    head = weights["lm_head.weight"]
    row = np.random.default_rng(0).standard_normal((1, head.shape[1])).astype(head.dtype)[0]
    head[:] = 0
    head[vocabulary[chr(256 + 0x1B)]], head[vocabulary[chr(256 + 0x07)]] = row, -row
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, a damaged one, a video and questions, with hostile names and texts; a checkpoint
    and an adapter with hostile configs."""
    folder = tmp_path_factory.mktemp("files") / f"d{HOSTILE}"
    folder.mkdir()
    noise(60, 40).save(folder / f"{HOSTILE}.png")
    (folder / f"{HOSTILE}.jpg").write_bytes(b"\xff\xd8\xff" + HOSTILE.encode())
    (folder / f"{HOSTILE}.mp4").write_bytes(encode_video(3))
    rows: list[dict[str, object]] = [
        {"image": f"{HOSTILE}.png", "question": HOSTILE, "answer": HOSTILE, "category": HOSTILE},
        {"image": HOSTILE, "question": HOSTILE, "answer": "a", "category": "b"},
        {"image": f"{HOSTILE}.jpg", "question": "q", "answer": "a", HOSTILE: 1},
        {"messages": [{"role": HOSTILE, "content": HOSTILE}]},
    ]
    (folder / f"{HOSTILE}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("config", "adapter_config"):
        config = {"model_type": HOSTILE, "fine_tune_type": HOSTILE, HOSTILE: HOSTILE}
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


SHORT = ("-n", "3")
COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": ("generate", "-m", "{m}", "-i", "{f}/{h}.png", "{h}", *SHORT),
    "generate, video": ("generate", "-m", "{m}", "-v", "{f}/{h}.mp4", "{h}", *SHORT),
    "live": ("live", "{f}/{h}.mp4", "-m", "{m}", "--count", "1", *SHORT),
    "convert": ("convert", "{m}", "{o}/{h}", "--bits", "8"),
    "info": ("info", "{m}", "--image", "{f}/{h}.png"),
    "document": ("document", "{f}/{h}.png", "-m", "{m}", "--output", "text", *SHORT),
    "bench": ("bench", "{m}", "--quick", "--runs", "1"),
}
REFUSED: dict[str, tuple[str, ...]] = {
    "caption": ("caption", "{f}", "-m", "{m}", "-o", "{o}/{h}.jsonl", *SHORT),
    "evaluate": ("evaluate", "{f}/{h}.jsonl", "-m", "{m}", "--out", "{o}/{h}", *SHORT),
    "finetune": ("finetune", "{f}/{h}.jsonl", "{o}/{h}", "-m", "{m}", "--estimate"),
    "a damaged picture": ("generate", "-m", "{m}", "-i", "{f}/{h}.jpg", "x"),
    "no picture": ("document", "{f}/{h}.jpg", "{f}/{h}.mp4", "-m", "{m}", "--output", "text"),
    "a checkpoint": ("info", "{f}"),
    "an adapter": ("generate", "-m", "{m}", "-a", "{f}", "x"),
    "a hub id": ("generate", "-m", "{h}/{h}", "x"),
    "a revision": ("generate", "-m", "a/b", "--revision", "{h}", "x"),
    "a schema": ("caption", "{f}", "-m", "{m}", "-o", "{o}/x.csv", "--schema", "{f}/{h}.jpg"),
    "a host": ("serve", "-m", "tiny", "--host", "{h}", "--port", "0"),
    "an origin": ("serve", "-m", "tiny", "--allow-origin", "{h}"),
    "a camera": ("live", "-c", "{h}", "-m", "{m}"),
    "an id": ("history", "show", "{h}"),
}


def filled(words: tuple[str, ...], model: Path, files: Path, out: Path) -> list[str]:
    return [word.format(m=model, f=files, o=out, h=HOSTILE) for word in words]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command(name: str, model: Path, files: Path, tmp_path: Path) -> None:
    check_clean(on_a_terminal(*filled(COMMANDS[name], model, files, tmp_path)))


def test_a_terminal_without_a_size(model: Path, files: Path) -> None:
    words = filled(COMMANDS["live"], model, files, files)
    check_clean(on_a_terminal(*words, size=(0, 0)))


@pytest.mark.parametrize("name", REFUSED)
def test_a_command_that_fails(name: str, model: Path, files: Path, tmp_path: Path) -> None:
    home: dict[str, Any] = {
        "XDG_DATA_HOME": str(tmp_path / HOSTILE),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    words = filled(REFUSED[name], model, files, tmp_path)
    check_clean(on_a_terminal(*words, **home), 0 if name == "finetune" else 1)


@pytest.mark.parametrize(
    "words",
    [
        (HOSTILE,),
        ("generate", f"--{HOSTILE}"),
        ("generate", "--dtype", HOSTILE),
        ("serve", "--port", HOSTILE),
        ("finetune", "a", "b", "--modules", HOSTILE),
        ("history", HOSTILE),
    ],
)
def test_what_is_typed(words: tuple[str, ...]) -> None:
    check_clean(on_a_terminal(*words), 2)


def test_conversations(model: Path, files: Path, tmp_path: Path) -> None:
    """Those that are kept, and those that are had: on a terminal, and with a pipe for a stdin."""
    home: dict[str, Any] = {"XDG_DATA_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    history = History(tmp_path / "smolvlm-mlx" / "history.sqlite3")
    talk = [text_message("user", HOSTILE), text_message("assistant", HOSTILE)]
    history.save("abc", talk, HOSTILE)
    with closing(sqlite3.connect(history.path)) as database, database:
        database.execute("UPDATE conversations SET title = ?", (HOSTILE,))
    for words in (("history",), ("history", "search", "owned"), ("history", "show", "abc")):
        check_clean(on_a_terminal(*words, **home))
    lines = [
        f"/image '{files}/{HOSTILE}.png'".replace("\r", ""),
        HOSTILE,
        f"/{HOSTILE}",
        f"/open {HOSTILE}",
        f"/system {HOSTILE}",
        f"/settings stop {HOSTILE}",
        f"/history {HOSTILE}",
        f"what is in {HOSTILE}.png?",
        "/history",
        "/stats",
    ]
    typed = "".join(f"{line}\n" for line in lines)
    chat = ("chat", "-m", str(model), *SHORT, "--resume", "last")
    check_clean(on_a_terminal(*chat, typed=typed, **home), 1)


# ---- an end in the midst

INTERRUPTED = """
import os, signal, sys
from smolvlm_mlx.cli.main import main
from smolvlm_mlx.cli.show import spinner

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "mlx.core":
            spinner().start()
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["generate", "-m", "tiny", "Hello"]
main()
"""


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
def test_an_interrupted_import_gives_the_cursor_back(terminal: str) -> None:
    """There the program ends at once, also while a bar is shown."""
    code, sent = python_on_a_terminal(["-c", INTERRUPTED], "", (40, 100), {"TERM": terminal})
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert code == 130
    assert (hidden in sent, shown in sent) == ((terminal == "xterm"),) * 2
    assert sent.rfind(shown) >= sent.rfind(hidden)
    assert sent.endswith("\n")
