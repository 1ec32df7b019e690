"""The command line: the answer and nothing else on stdout, one line on stderr when something is
wrong, exit codes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from smolvlm_mlx import Options, __version__, generate, load
from smolvlm_mlx.checkpoint.choices import FORMS, RECIPES, Dtype
from smolvlm_mlx.checkpoint.lora import PARTS
from smolvlm_mlx.checkpoint.presets import SIZES
from smolvlm_mlx.checkpoint.reader import DTYPES
from smolvlm_mlx.cli.gate import install
from smolvlm_mlx.cli.generate import echo
from smolvlm_mlx.errors import GenerationError, HistoryError
from smolvlm_mlx.events import Text
from smolvlm_mlx.quality import report
from smolvlm_mlx.tasks.captions import TASKS
from smolvlm_mlx.tasks.docling import FORMATS
from smolvlm_mlx.tasks.metrics import METRICS
from smolvlm_mlx.training.plan import PRESETS
from tests.support.cli import ENVIRONMENT, check_refused, run, start
from tests.support.pictures import PICTURE, animated, encoded, noise, tall
from tests.support.places import ROOT
from tests.support.videos import encode_video

import pytest


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    noise(90, 60).save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files for the wrong option, or odd in themselves."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "two.mp4").write_bytes(encode_video(2))
    (folder / "cat.jpg").write_bytes(encoded(PICTURE, "JPEG", quality=95))
    (folder / "tall.png").write_bytes(tall())
    (folder / "moving.gif").write_bytes(animated("GIF"))
    return folder


# ---- generate


def test_answer_to_stdout(tiny: Path, picture: Path, call: Any) -> None:
    model, processor = load(tiny)
    want = generate(model, processor, "What?", Options(max_tokens=9), images=[picture])
    assert call("generate", "--model", tiny, "-i", picture, "-n", 9, "What?") == (
        0,
        want + "\n",
        "",
    )
    assert call("generate", "--model", tiny, "-i", picture, "-n", 9, stdin=" What?\n") == (
        0,
        want + "\n",
        "",
    )
    assert call("generate", "-", "--model", tiny, "-i", picture, "-n", 9, stdin="What?") == (
        0,
        want + "\n",
        "",
    )


def test_json(tiny: Path, picture: Path, call: Any) -> None:
    code, out, err = call(
        "generate", "Hi", "-m", tiny, "-i", picture, "-i", picture, "-n", 5, "--no-split", "--json"
    )
    found = json.loads(out)
    assert (code, err) == (0, "")
    numbers = ("prompt_tokens", "image_tokens", "tiles", "generated_tokens", "peak_memory_bytes")
    assert set(found) == {
        "text",
        "token_ids",
        "finish_reason",
        "seconds",
        "tokens_per_second",
        *numbers,
    }
    assert isinstance(found["text"], str)
    assert all(type(id) is int for id in found["token_ids"])
    assert all(type(found[name]) is int for name in numbers)
    assert found["generated_tokens"] == len(found["token_ids"]) <= 5
    assert found["finish_reason"] in ("stop", "length")
    assert (found["tiles"], found["image_tokens"]) == (2, 32)
    assert found["prompt_tokens"] > 32
    assert found["peak_memory_bytes"] > 0
    assert list(found["seconds"]) == ["load", "preprocess", "vision", "prefill", "decode"]
    assert all(
        type(value) is float for value in (*found["seconds"].values(), found["tokens_per_second"])
    )
    assert all(value > 0 for value in found["seconds"].values())


def test_options_reach_the_model(tiny: Path, call: Any) -> None:
    base = ("generate", "Hi", "-m", tiny, "-n", "12")
    plain = call(*base)[1]
    assert call(*base, "--system", "Be brief.")[1] != plain
    assert (
        call(*base, "-t", "1.5", "--seed", "1")[1]
        == call(*base, "-t", "1.5", "--seed", "1")[1]
        != plain
    )
    assert call(*base, "--repetition-penalty", "3")[0] == 0
    assert call(*base, "--kv-bits", "8")[0] == 0
    assert call(*base, "--stop", plain[1:2])[1] == plain[: plain.index(plain[1:2])] + "\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "no/such/folder"], ["no/such/folder"]),
        (["--image", "missing.png"], ["missing.png"]),
        (["--image", "{tiny}/config.json"], ["config.json", "is text; put it into the question"]),
        (["--image", "{files}/two.mp4"], ["'two.mp4' is a video; use --video"]),
        (["--video", "{files}/cat.jpg"], ["'cat.jpg' is a picture; use --image"]),
        (["--image", "{files}"], ["is a folder; give a file of it, or use caption"]),
        (["--image", "{files}/tall.png"], ["'tall.png' has 1 x 50000000 pixels; the limit of a"]),
        (["--temperature", "-1"], ["temperature -1"]),
        (["--max-tokens", "0", "--top-p", "2"], ["max_tokens 0", "top_p 2"]),
        (["--stop", ""], ["stop"]),
    ],
    ids=str,
)
def test_errors_are_one_line(
    arguments: list[str], parts: list[str], tiny: Path, files: Path, call: Any
) -> None:
    arguments = [argument.format(tiny=tiny, files=files) for argument in arguments]
    check_refused(call("generate", "Hi", "--model", tiny, *arguments), *parts)


def test_what_is_unusual_about_a_picture_is_told_on_stderr(
    tiny: Path, files: Path, call: Any
) -> None:
    (files / "cut.jpg").write_bytes((files / "cat.jpg").read_bytes()[:-500])
    base = ("generate", "What?", "--model", tiny, "-n", 2)
    code, out, err = call(*base, "-i", files / "cut.jpg", "-i", files / "cat.jpg")
    assert (code, err) == (0, "smolvlm-mlx: cut.jpg: its last bytes are missing\n")
    assert out.strip()
    _, out, err = call(*base, "-v", files / "moving.gif", "--json")
    assert json.loads(out)["tiles"] == 2
    assert err == ""


def test_prompts_that_cannot_be_used(tiny: Path, call: Any) -> None:
    check_refused(call("generate", "--model", tiny, stdin=" \n"), "no question")
    check_refused(call("generate", "x" * 5000, "--model", tiny), "5019 tokens", "4096")
    check_refused(call("generate", "\udcff", "--model", tiny), "surrogate")


@pytest.mark.parametrize("place", [0, 1, 2, 6])
def test_debug_shows_the_traceback(place: int, tiny: Path, call: Any) -> None:
    """It is an option of the root and of each command, wherever an option may stand."""
    arguments = ["generate", "Hi", "--model", str(tiny), "--top-p", "3"]
    arguments.insert(place, "--debug")
    with pytest.raises(GenerationError, match="top_p 3"):
        call(*arguments)
    check_refused(call(*(argument for argument in arguments if argument != "--debug")), "top_p 3")


def test_debug_of_a_command_in_a_command(call: Any) -> None:
    for arguments in (("--debug", "history", "show", "zz"), ("history", "show", "zz", "--debug")):
        with pytest.raises(HistoryError):
            call(*arguments)


def test_a_traceback_goes_to_stderr(tiny: Path) -> None:
    code, out, err = run("generate", "Hi", "--model", tiny, "--top-p", "3", "--debug")
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert "GenerationError: top_p 3" in err


def test_what_comes_after_two_dashes_is_text(tiny: Path, call: Any) -> None:
    want = generate(*load(tiny), "--debug", Options(max_tokens=9))
    assert call("generate", "-m", tiny, "-n", 9, "--", "--debug") == (0, want + "\n", "")


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (["generate", "Hi", "--dtype", "int8"], get_args(Dtype)),
        (["generate", "Hi", "--kv-bits", "3"], ("4", "8")),
        (["caption", "a.png", "--out", "a.csv", "--preset", "nonsense"], TASKS),
        (["document", "a.png", "--output", "pdf"], ("doctags", *FORMATS, "text")),
        (["evaluate", "a.jsonl", "--metric", "nonsense"], ("auto", *METRICS)),
        (["finetune", "a.jsonl", "out", "--method", "magic"], ("lora", "dora", "full")),
        (["finetune", "a.jsonl", "out", "--preset", "4gb"], PRESETS),
        (["finetune", "a.jsonl", "out", "--train", "decoder,nose"], PARTS),
        (["convert", "a", "b", "--recipe", "9bit"], RECIPES),
        (["convert", "a", "b", "--dtype", "int8"], get_args(Dtype)),
        (["convert", "a", "b", "--bits", "7"], FORMS["affine"][0]),
        (["convert", "a", "b", "--bits", "4", "--group-size", "48"], FORMS["affine"][1]),
        (["bench", "--random", "7B"], SIZES),
        (["bench", "--random", "256M", "--bits", "7"], FORMS["affine"][0]),
    ],
    ids=str,
)
def test_a_wrong_choice_is_told_all_there_are(
    arguments: list[str], choices: Iterable[object], call: Any
) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    words = err[err.index("is not one of") :]
    assert re.findall(r"'(.+?)'", words) == [str(choice) for choice in choices]
    assert set(get_args(Dtype)) == DTYPES.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--nothing"],
        ["nothing"],
        ["generate", "Hi", "--max-tokens", "many"],
        ["convert", "a"],
    ],
    ids=str,
)
def test_wrong_usage(arguments: list[str], call: Any) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: smolvlm-mlx" in err
    assert "Traceback" not in err


def test_offline_without_a_model(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    code, out, err = run("generate", "Hi", env=environment)
    chosen, *error = err.splitlines(keepends=True)
    assert chosen.startswith("smolvlm-mlx: model ")
    check_refused((code, out, "".join(error)), chosen.split()[3].strip("(),"), "--model tiny")


def test_version_and_help(call: Any) -> None:
    assert call("--version") == (0, f"{__version__}\n", "")
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert all(command in out for command in ("generate", "convert", "info", "--debug"))
    assert call("generate", "-h")[0] == 0


def test_help_is_quick() -> None:
    code = """
import sys
from smolvlm_mlx.cli import main
sys.argv = ["smolvlm-mlx", "--help"]
try:
    main.main()
except SystemExit:
    pass
heavy = {"mlx", "mlx.core", "mlx_lm", "transformers", "torch", "numpy", "PIL"}
heavy |= {"hashlib", "hmac", "sqlite3", "tomllib"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.stderr == "[]\n"  # which is what makes it quick


# ---- terminals, pipes and signals


def test_ascii_stdout(tiny: Path, call: Any) -> None:
    arguments = ("generate", "Hello", "-m", tiny, "-n", 60)
    want = call(*arguments)[1]
    assert not want.isascii()
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    code, out, err = run(*arguments, env=environment)
    assert (code, out, err) == (0, want.encode("ascii", "backslashreplace").decode(), "")
    code, out, err = run(*arguments, "--json", env=environment)
    assert (code, json.loads(out)["text"] + "\n", err) == (0, want, "")


def test_broken_pipe(tiny: Path) -> None:
    process = start("generate", "Hi", "-m", tiny, "-n", 500)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert err == b""


INTERRUPTED_AT_AN_IMPORT = """
import importlib.abc, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):
                    pass
            except KeyboardInterrupt:
                pass  # as some extensions do

sys.meta_path.insert(0, Finder())
from smolvlm_mlx.__main__ import main
del sys.argv[1]
main()
"""


@pytest.mark.parametrize(
    "module", ["typer", "smolvlm_mlx.cli.generate", "mlx.core", "tokenizers", "PIL.Image"]
)
def test_interrupt_while_loading(module: str, tiny: Path) -> None:
    """Before the command line is there, and while extensions are imported, some of which swallow an
    interrupt."""
    arguments = map(str, ("generate", "Hello", "-m", tiny, "-n", 4000))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            INTERRUPTED_AT_AN_IMPORT.replace("sys.argv[1]", repr(module), 1),
            "",
            *arguments,
        ],
        capture_output=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode in (130, -signal.SIGINT)
    assert b"Traceback" not in done.stderr


def test_interrupt_while_generating(tiny: Path) -> None:
    process = start("generate", "Hello", "-m", tiny, "-n", 4000)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first + out
    assert b"Traceback" not in err


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_answer_cannot_command_the_terminal(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model text is data: as it is in a pipe, without control characters on a terminal, and never
    markup."""
    out = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    install()
    pieces = [
        "[red]a[/red]\n",
        "\x1b]0;title\x07",
        "\x1b[31m",
        "b\tc\r\x08\x9b1m\x7f",
        "{0}%s\u202e é😀",
    ]
    assert echo(map(Text, pieces), silent=False) == pieces
    shown = "[red]a[/red]\n]0;title[31mb\tc1m{0}%s é😀"
    assert out.getvalue() == (shown if is_terminal else "".join(pieces)) + "\n"


# ---- convert and info


def test_convert(tiny: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "check_in_steps", partial(report.check_in_steps, positions=100))
    code, out, err = call("convert", tiny, tmp_path / "eight", "--recipe", "8bit", "--check")
    assert code == 0, err
    assert "language_model" in out
    assert "mean KL" in out
    assert "good: " in out
    assert json.loads((tmp_path / "eight" / "config.json").read_text())["quantization"]["bits"] == 8
    code, out, err = call(
        "convert", tiny, tmp_path / "four", "--bits", 4, "--embedding-bits", 8, "--group-size", 32
    )
    assert code == 0, err
    assert call("generate", "Hi", "-m", tmp_path / "four", "-n", 2)[0] == 0
    check_refused(call("convert", tiny, tmp_path / "four"), "four exists")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--recipe", "8bit", "--bits", "4"], "--recipe has its own bits"),
        (["--recipe", "bf16", "--quantize-vision"], "or a recipe that has them"),
        (["--recipe", "mxfp4", "--group-size", "64"], "(mxfp4: bits 4; groups 32)"),
        (["--quantize-vision"], "needs --bits"),
    ],
    ids=str,
)
def test_conversions_that_cannot_be(
    arguments: list[str], part: str, tiny: Path, tmp_path: Path, call: Any
) -> None:
    code, out, err = call("convert", tiny, tmp_path / "out", *arguments)
    assert (code, out) == (1, "")
    assert part in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_options_beside_a_recipe(tiny: Path, tmp_path: Path, call: Any) -> None:
    """They change it; `info` shows the mode."""
    options = ["--quantize-vision", "--embedding-bits", 8, "--dtype", "float16"]
    code, out, err = call("convert", tiny, tmp_path / "out", "--recipe", "mxfp4", *options)
    assert code == 0, err
    _, out, _ = call("info", tmp_path / "out")
    parts = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "F16, mxfp4 4 bits in groups of 32" in parts["vision_model"]
    assert "8 bits in groups of 64, F16" in parts["language_model"]


def test_info(tiny: Path, picture: Path, files: Path, call: Any) -> None:
    code, out, err = call("info")
    assert (code, err) == (0, "")
    assert "mlx" in out
    code, out, err = call("info", tiny, "--image", picture, "--max-tiles", 3)
    assert (code, err) == (0, "")
    assert "smolvlm" in out
    assert "90 x 60 pixels, one tile, 19 tokens (3 marks)" in out
    assert "\nglobal 16\na tile is 90 x 60 pixels of the picture, seen as 64 x 64\n" in out
    _, out, _ = call("info", tiny, "--image", files / "moving.gif")
    assert "\nmoving.gif: the first of its frames was used; --video takes all\n" in out
    check_refused(call("info", tiny / "nothing"), "nothing")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "out", "err"),
    [
        ("generate Hi -n 2 -m tiny", True, False),
        ("chat --no-history -m tiny -n 2", True, False),  # reads a question from stdin
        ("caption {in} --out {out} -m tiny -n 2", False, True),
    ],
)
def test_a_stream_that_is_closed(
    command: str, out: bool, err: bool, closed: str, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"not UTF-8 \xff")
    folder.mkdir()
    PICTURE.save(folder / "a.png")
    line = command.replace("{in}", '"$1"').replace("{out}", '"$1/a.jsonl"')
    shell = ["sh", "-c", f'"$0" -m smolvlm_mlx {line} {closed}', sys.executable, str(folder)]
    result = subprocess.run(shell, input="Hi\n", capture_output=True, text=True, timeout=120)
    says = out and ("<&-" not in closed or command[:4] != "chat")
    no_out, no_err = ">&-" in closed.replace("2>&-", ""), "2>&-" in closed
    assert result.returncode == (says and no_out)
    assert bool(result.stdout) == (says and not no_out)
    lost = "smolvlm-mlx: stdout cannot be written (Bad file descriptor)\n"
    assert (
        result.stderr == lost if says and no_out and not no_err else "stdout" not in result.stderr
    )
    assert bool(result.stderr) == ((err or (says and no_out)) and not no_err)
