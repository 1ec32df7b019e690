"""What --help shows of each command, and what shells complete."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint.names import KNOWN
from smolvlm_mlx.cli.examples import EXAMPLES
from smolvlm_mlx.cli.main import COMPLETION, app
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.tasks.history import History
from tests.support.cli import ENVIRONMENT, check_refused, run

import pytest
import rich
import typer

ROOT = typer.main.get_command(app)


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


ALL = dict(commands(ROOT))
IDS = [" ".join(path) or "smolvlm-mlx" for path in ALL]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_help(
    path: tuple[str, ...], width: int, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option stands in it with its choices, in one group; no line is wider, cut or colored,
    and examples are at its end."""
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = call(*path, "--help")
    assert (code, err) == (0, "")
    assert out.isprintable() or set(filter(lambda c: not c.isprintable(), out)) == {"\n"}
    assert max(map(len, out.splitlines())) <= width
    head, _, examples = out.rpartition("\nExamples:\n")
    assert not re.search("[─-╿]", head)
    for name in getattr(ALL[path], "commands", {}):
        assert re.search(rf"^  {name} +\w.*[^.]\.$", head, re.MULTILINE), name
    assert [line.strip() for line in examples.splitlines()] == [*EXAMPLES[" ".join(path)]]
    options = head.partition("\nOptions:\n")[2]
    for parameter in ALL[path].params:
        for flag in (*parameter.opts, *parameter.secondary_opts):
            if flag.startswith("--"):
                assert len(re.findall(rf"^  (?:-\w, |--.* / )?{flag}\b(?!-)", options, re.M)) == 1
        for choice in getattr(parameter.type, "choices", ()):
            assert re.search(rf"[\[| ]{re.escape(str(choice))}[|\],.]", head), choice


def test_options_stand_in_groups(call: Any) -> None:
    titles = re.findall(r"^(\w.*):$", call("generate", "--help")[1], re.MULTILINE)
    assert titles == [
        "Arguments",
        "Options",
        "Checkpoint",
        "Pictures and videos",
        "Answer",
        "Examples",
    ]
    assert "\nTraining:\n" in call("finetune", "--help")[1]


def test_defaults_are_told(call: Any) -> None:
    """Also of what is on or off, of what the checkpoint decides, and in words."""
    chat, generate, captions = (
        " ".join(call(command, "--help")[1].split()) for command in ("chat", "generate", "caption")
    )
    ends = "the same again and again. [default: "
    assert f"{ends}end-loops]" in chat
    assert f"{ends}no-end-loops]" in generate
    assert "or make one of each; else as the checkpoint says. --max-tiles" in chat
    assert "[default: 7665, or the next that is free; 0<=x<=65535]" in chat
    assert "[default: caption]" in captions
    assert "auto: what SMOLVLM_MLX_MODEL or config.toml says" in chat
    assert "With nothing after it, it lists the latest 20." in " ".join(
        call("history", "--help")[1].split()
    )


def test_the_program_alone_shows_its_help(call: Any) -> None:
    code, out, err = call()
    assert (code, err) == (0, "")
    assert out == call("--help")[1]
    for path in ALL:
        assert len(path) != 1 or re.search(rf"^  {path[0]} +\w", out, re.MULTILINE)
    assert len(out.splitlines()) <= 40


def test_examples_are_of_commands_that_are_there() -> None:
    assert set(EXAMPLES) == {" ".join(path) for path in ALL}


@pytest.mark.parametrize(
    "line", dict.fromkeys(line for lines in EXAMPLES.values() for line in lines)
)
def test_an_example_is_understood(line: str) -> None:
    words = shlex.split(line[line.index("smolvlm-mlx ") :])[1:]
    path = max((path for path in ALL if tuple(words[: len(path)]) == path), key=len)
    context = ALL[path].make_context("smolvlm-mlx", words[len(path) :])
    assert not context.args
    flags = {flag for parameter in ALL[path].params for flag in parameter.opts}
    assert {word for word in words if word.startswith("-") and len(word) > 1} <= flags


# ---- completion


def completed(words: str, **variables: str) -> list[str]:
    """What bash is told can follow."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment = {**ENVIRONMENT, COMPLETION: "complete_bash", **asked, **variables}
    code, out, err = run(env=environment)
    assert (code, err) == (0, "")
    return out.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("smolvlm-mlx generate -m ", ["tiny", *(known.name for known in KNOWN)]),
        ("smolvlm-mlx models pull 25", ["256M", "256M-v1", "256M-base"]),
        ("smolvlm-mlx chat -m DOC", ["DOCling"]),  # as it was begun: zsh drops other letters
        ("smolvlm-mlx generate --dtype f", ["float16", "float32"]),
        ("smolvlm-mlx finetune a b --train ", ["decoder", "connector", "vision"]),
        ("smolvlm-mlx mod", ["models"]),
        ("smolvlm-mlx generate -i ca", []),
    ],
)
def test_a_shell_completes(words: str, found: list[str]) -> None:
    assert completed(words) == found


def test_a_shell_completes_what_is_here(tmp_path: Path) -> None:
    """Checkpoints that are downloaded, and conversations by their ids."""
    for name in ("HuggingFaceTB--SmolVLM-Base", "granite", "ds4sd--SmolDocling-256M-preview"):
        (tmp_path / "hub" / f"models--{name}" / "blobs").mkdir(parents=True)
    home = {"HF_HUB_CACHE": str(tmp_path / "hub"), "XDG_DATA_HOME": str(tmp_path)}
    home |= {"HOME": str(tmp_path)}
    assert completed("smolvlm-mlx models rm ", **home) == ["2.2B-v1-base", "smoldocling"]


@pytest.mark.parametrize("words", ["history show", "history delete x", "history rename", "chat"])
def test_a_shell_completes_conversations(
    words: str, call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("smolvlm_mlx.tasks.history.data_folder", lambda: tmp_path)
    History().save("ab12", [user_message('Rex\'s $(reboot) `x` \\ "tail":\n?')], "tiny")
    ends = " --resume " if words == "chat" else " "
    monkeypatch.setenv(COMPLETION, "complete_zsh")
    monkeypatch.setitem(sys.modules, "rich", rich)  # is left out then
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"smolvlm-mlx {words}{ends}AB")
    code, out, err = call()
    assert (code, err) == (0, "")
    assert out == """_arguments '*: :(("AB12":"Rex’s reboot x tail ?"))'\n"""


def test_zsh_is_told_no_apostrophes(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would drop them: "OpenAIs API"."""
    monkeypatch.setenv(COMPLETION, "complete_zsh")
    monkeypatch.setitem(sys.modules, "rich", rich)  # is left out then
    for words in ("", "serve -", "chat -", "models "):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"smolvlm-mlx {words}")
        assert "''" not in call()[1]
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "smolvlm-mlx serv")
    assert "OpenAI’s API" in call()[1]


def test_the_shell_that_is_named_completes(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever shell it is said in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for shell, place in (("zsh", ".zfunc/_smolvlm-mlx"), ("fish", ".config/fish/completions")):
        code, out, err = call("--install-completion", shell)
        assert (code, err) == (0, "")
        assert out.startswith(f"{shell} completes from its next start on: {tmp_path / place}")
        assert (tmp_path / place).exists()
        assert COMPLETION in call("--show-completion", shell)[1]
    check_refused(
        call("--install-completion", "tcsh"),
        "--install-completion: no completion for 'tcsh', but for bash, zsh, fish, powershell, pwsh",
    )


def test_a_shell_does_not_wait_for_what_it_does_not_need() -> None:
    """Neither for what computes, nor for what shows: with descriptions, as zsh has them."""
    asked = {COMPLETION: "complete_zsh", "_TYPER_COMPLETE_ARGS": "smolvlm-mlx generate -"}
    environment = {**ENVIRONMENT, **asked, "PYTHONPROFILEIMPORTTIME": "1"}
    code, out, err = run(env=environment)
    assert code == 0
    assert '"--temperature":"0\\\\: always the likeliest token' in out
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert "smolvlm_mlx.cli.main" in imported
    assert not imported & {"mlx", "mlx.core", "numpy", "PIL", "rich", "huggingface_hub"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_a_shell(shell: str) -> None:
    environment = {**os.environ, COMPLETION: f"source_{shell}"}
    code, out, err = run(env=environment)
    assert (code, err) == (0, "")
    assert COMPLETION in out
    assert "smolvlm-mlx" in out
