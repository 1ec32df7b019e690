"""What README promises exists: its commands and options, its Python; and the examples run."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import smolvlm_mlx
from smolvlm_mlx.cli.main import app
from tests.support import as_metal
from tests.support.places import ROOT

import pytest
import typer

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if "smolvlm-mlx " in line]


def run(*arguments: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=as_metal.environment(ROOT)
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_readme_exist(line: str) -> None:
    words = shlex.split(line[line.index("smolvlm-mlx ") :], comments=True)
    command = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words[2:] if word.startswith("--")} <= known


def test_python_of_the_readme_imports_what_there_is() -> None:
    sources = [block for kind, block in BLOCKS if kind == "python"]
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module == "smolvlm_mlx":
                assert {alias.name for alias in node.names} <= set(smolvlm_mlx.__all__)


def test_files_the_readme_names_are_there() -> None:
    (tree,) = [block for kind, block in BLOCKS if kind == "" and "smolvlm_mlx/" in block]
    names = set(re.findall(r"[\w/]+\.py", tree))
    found = {path.name for path in ROOT.rglob("*.py") if not any(part.startswith(".venv") for part in path.parts)}
    assert {Path(name).name for name in names} <= found


def test_every_public_name_is_there() -> None:
    for name in smolvlm_mlx.__all__:
        assert getattr(smolvlm_mlx, name) is not None


def test_tour_shows_every_station() -> None:
    stations = [line.split()[0] for line in run("examples/tour.py").splitlines()]
    assert (
        stations
        == (
            "station image tiles input_ids pixel_values patch_embeddings image_features image_tokens embeddings logits cache "
            "token text"
        ).split()
    )


def test_demo(tmp_path: Path) -> None:
    """Its answers are right, and the first is the README's."""
    out = run(str(ROOT / "examples" / "demo.py"), folder=tmp_path)
    answers = dict(re.findall(r"^> (.*)\n(.*)$", out, re.MULTILINE))
    assert answers["Describe the picture."] == (
        "A large red circle in the top left, the text HAT in the top right and a small blue star in the bottom right."
    )
    assert answers["Describe the picture."] in README
    assert answers["What does the text say?"] == "HAT"
    assert answers["Where is the star?"] == "bottom right"
    assert (tmp_path / "demo.png").is_file()


def test_recipes_are_listed() -> None:
    assert "4bit-8bit-embeddings" in run("-m", "convert")
