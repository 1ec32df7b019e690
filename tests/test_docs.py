"""What README promises exists: its commands and options, its Python, its map and CONTRIBUTING's;
and the examples run."""

import ast
import json
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
CHAT = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README + CHAT, re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
    if "smolvlm-mlx " in line
]


def run(*arguments: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=as_metal.environment(ROOT),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_readme_exist(line: str) -> None:
    words = shlex.split(line[line.index("smolvlm-mlx ") :], comments=True)
    command = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    known = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in words[2:] if word.startswith("--")} <= known


def test_python_of_the_readme_imports_what_there_is() -> None:
    sources = [block for kind, block in BLOCKS if kind == "python"]
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module == "smolvlm_mlx":
                assert {alias.name for alias in node.names} <= set(smolvlm_mlx.__all__)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "convert/README.md",
        "docs/metrics.md",
        "smolvlm_mlx/assets/tiny/README.md",
    ],
)
def test_scripts_that_pages_start_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    modules = re.findall(r"python -m ((?:convert|tests)[\w.]*)", text)
    files = [f"{name.replace('.', '/')}.py" for name in modules if name != "convert"]
    files += re.findall(r"python ((?:convert|examples|tests)/\S+\.py)", text)
    assert files
    assert [name for name in files if not (ROOT / name).is_file()] == []


@pytest.mark.slow
def test_the_conversion_step_by_step(tmp_path: Path) -> None:
    """The lines of convert/README.md run in their order, each without an error."""
    text = (ROOT / "convert" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"step by step\n.*?```bash\n(.*?)```", text, re.DOTALL)
    environment = {**as_metal.environment(ROOT), "PYTHON": sys.executable}
    shell = f"""
        set -eu
        python() {{ "$PYTHON" "$@"; }}
        smolvlm-mlx() {{ "$PYTHON" -m smolvlm_mlx "$@"; }}
        {block}"""
    done = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "good: mean KL" in done.stdout
    assert json.loads((tmp_path / "figures.json").read_text())["parts"]
    assert (tmp_path / "tiny-hf" / "model.safetensors").is_file()


Map = list[tuple[list[Path], str]]


def map_in(text: str) -> Map:
    """Lines of a page's map: the files and folders that a line begins with, as paths, and what is
    said of them.

    A line is names, two spaces, words; one that is indented belongs to the folder above it.
    """
    (tree,) = re.findall(r"^```\n(smolvlm_mlx/.*?)```", text, re.DOTALL | re.MULTILINE)
    lines: Map = []
    above = Path()
    for line in tree.splitlines():
        names, _, said = line.strip().partition("  ")
        if line[0] != " ":
            above, folder = Path(names), Path()
        else:
            folder = above
        lines.append(([folder / name for name in names.split()], said))
    return lines


def missing_from(lines: Map, root: Path) -> set[str]:
    """What a map names and is not there. A name among a line's words is in the folder that the line
    is about, or has its file."""
    missing = {
        path.as_posix() for paths, _ in lines for path in paths if not (root / path).exists()
    }
    for paths, said in lines:
        folders = [path if (root / path).is_dir() else path.parent for path in paths]
        for name in re.findall(r"[\w/]+(?:/(?!\w)|\.py\b|\.md\b)", said):
            if not any((root / folder / name).exists() for folder in folders):
                missing.add(f"{paths[0].as_posix()}: {name}")
    return missing


MAPS = ["README.md", "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", MAPS)
def test_the_map_is_the_trees(page: str) -> None:
    """All it names is there, and it names all rooms of the package and the folders beside it."""
    lines = map_in((ROOT / page).read_text(encoding="utf-8"))
    assert missing_from(lines, ROOT) == set()
    files = [path.relative_to(ROOT) for path in (ROOT / "smolvlm_mlx").rglob("*") if path.is_file()]
    wanted = {
        Path(*path.parts[:2]) for path in files if path.suffix == ".py" or "assets" in path.parts
    }
    wanted = {path for path in wanted if not path.name.startswith("__")}
    wanted |= {Path(name) for name in ("convert", "docs", "examples", "tests")}
    assert wanted - {path for paths, _ in lines for path in paths} == set()
    assert len(lines) <= 25


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("  model/  vision.py, fast/gpu.py and fast/", set()),
        ("  model/ inputs/  vision.py, tiles.py and fast/", set()),
        ("  config.py errors.py  as config.json says", set()),
        ("  model/  config.py", {"smolvlm_mlx/model: config.py"}),
        ("  moel/  arrays -> arrays", {"smolvlm_mlx/moel"}),
        (
            "  model/  vison.py, fats/, slow/gpu.py",
            {f"smolvlm_mlx/model: {name}" for name in ("vison.py", "fats/", "slow/gpu.py")},
        ),
        ("tests/  test_hose.py", {"tests: test_hose.py"}),
    ],
)
def test_a_wrong_map_would_be_seen(line: str, missing: set[str]) -> None:
    assert missing_from(map_in(f"```\nsmolvlm_mlx/\n{line}\n```\n"), ROOT) == missing


def test_every_public_name_is_there() -> None:
    for name in smolvlm_mlx.__all__:
        assert getattr(smolvlm_mlx, name) is not None


def test_tour_shows_every_station() -> None:
    stations = [line.split()[0] for line in run("examples/tour.py").splitlines()]
    assert (
        stations
        == (
            "station image tiles input_ids pixel_values patch_embeddings image_features "
            "image_tokens embeddings logits cache token text"
        ).split()
    )


def test_demo(tmp_path: Path) -> None:
    """Its answers are right, and the first is the README's."""
    out = run(str(ROOT / "examples" / "demo.py"), folder=tmp_path)
    answers = dict(re.findall(r"^> (.*)\n(.*)$", out, re.MULTILINE))
    assert answers["Describe the picture."] == (
        "A large red circle in the top left, the text HAT in the top right and a small blue star "
        "in the bottom right."
    )
    assert answers["Describe the picture."] in README
    assert answers["What does the text say?"] == "HAT"
    assert answers["Where is the star?"] == "bottom right"
    assert (tmp_path / "demo.png").is_file()


def test_recipes_are_listed() -> None:
    assert "4bit-8bit-embeddings" in run("-m", "convert")
