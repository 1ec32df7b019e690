"""Which Python `make` takes: among pretended ones of any version, on a pretended system."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.places import ROOT

import pytest

MAKE = shutil.which("make") or ""
TOOLS = "sh mkdir cat cp touch rm".split()
# Says which version of macOS this is as the system does: an old one, unless it is asked not to.
MAC = {
    "uname": "echo Darwin",
    "sysctl": "echo 1",
    "sw_vers": "test $SYSTEM_VERSION_COMPAT = 0 && echo 26.1 || echo 10.16",
}

pytestmark = pytest.mark.skipif(not MAKE, reason="make is not installed")
Make = Callable[..., tuple[int, list[str]]]


def python(
    version: str, system: str = "linux", machine: str = "arm64", modules: str = "ensurepip"
) -> str:
    """Return a program that answers as such a Python; the environments it makes hold a copy of
    it."""
    pretend = (
        f"import sys, platform, importlib.util; sys.version_info = ({version.replace('.', ', ')}); "
        f"sys.prefix = sys.base_prefix; sys.platform = '{system}'; platform.machine = lambda: "
        f"'{machine}'; importlib.util.find_spec = '{modules}'.__contains__; "
    )
    return f"""case "$1" in
    -c) exec {sys.executable} -c "{pretend} ${{2#import pip; }}";;
    -V) echo Python {version};;
    -m) if [ $2 = venv ]; then mkdir -p $3/bin; cp $0 $3/bin/python; touch $3/pyvenv.cfg; fi;;
    esac"""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run the Makefile with these programs and a few of the shell's; return the exit code and what
    was said."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    def run(programs: dict[str, str], *arguments: str) -> tuple[int, list[str]]:
        folder = tmp_path / "programs"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in TOOLS:
            (folder / name).symlink_to(shutil.which(name) or "")
        for name, body in {"uname": "echo Linux", **programs}.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
        command = [MAKE, "--no-print-directory", ".venv/.use", *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={"PATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).splitlines()

    return run


@pytest.mark.parametrize(
    ("programs", "arguments", "taken"),
    [
        ({"python3": "3.11"}, [], "python3: Python 3.11"),
        (
            {"python3": "3.9", "python3.12": "3.12", "python3.14": "3.14"},
            [],
            "python3.14: Python 3.14",
        ),
        ({"python3": "3.16", "python3.11": "3.11"}, [], "python3.11: Python 3.11"),
        (
            {"python3": "3.14", "python3.12": "3.12"},
            ["PYTHON=python3.12"],
            "python3.12: Python 3.12",
        ),
    ],
)
def test_the_first_that_fits(
    make: Make, programs: dict[str, str], arguments: list[str], taken: str
) -> None:
    code, lines = make({name: python(version) for name, version in programs.items()}, *arguments)
    assert (code, lines[0]) == (0, f".venv is made by {taken}.")
    assert lines[1:] == ["Installing into .venv; the first time takes a minute or two."]


@pytest.mark.parametrize(
    ("programs", "arguments", "problem"),
    [
        ({}, [], "python3 does not run"),
        ({"python3": python("3.10")}, [], "python3 is Python 3.10"),
        ({"python3": python("3.11"), "old": python("3.6")}, ["PYTHON=old"], "old is Python 3.6"),
        ({"python3": python("3.11")}, ["PYTHON=gone"], "gone does not run"),
        ({"python3": python("3.12", modules="")}, [], "python3 cannot make virtual environments"),
        ({"python3": python("3.12", "darwin", "x86_64"), **MAC}, [], "python3 is built for Intel"),
    ],
)
def test_none_that_fits(
    make: Make, programs: dict[str, str], arguments: list[str], problem: str
) -> None:
    code, (line, _) = make(programs, *arguments)  # the other line is make's own
    assert code == 2
    assert line.startswith(f"smolvlm-mlx needs Python 3.11 to 3.15: {problem}")


def test_uv_makes_it_where_no_python_fits(make: Make, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("#!/bin/sh\n" + python("3.13"))
    (tmp_path / "new").chmod(0o755)
    uv = (
        'test "$*" = "venv --quiet --seed --python >=3.11,<3.16 .venv" && '
        "mkdir -p .venv/bin && cp new .venv/bin/python"
    )
    code, lines = make({"python3": python("3.9"), "uv": uv})
    assert (code, lines[0]) == (0, ".venv is made by uv: Python 3.13.")


@pytest.mark.parametrize(
    "problem", ["gone", "too old", "another", "moved", "from before", "backend"]
)
def test_an_environment_is_made_again(make: Make, tmp_path: Path, problem: str) -> None:
    make({"python3": python("3.11")})
    assert "up to date" in make({"python3": python("3.11")})[1][0]
    inside = tmp_path / ".venv" / "bin" / "python"
    if problem == "gone":
        inside.unlink()
    elif problem == "too old":
        inside.write_text("#!/bin/sh\n" + python("3.10"))
    elif problem == "moved":
        (tmp_path / ".venv" / ".use").write_text("cpu in /where/it/was\n")
    elif problem == "from before":
        (tmp_path / ".venv" / ".use").write_text("")
    arguments = {"another": ["PYTHON=python3.12"], "backend": ["BACKEND=cuda13"]}.get(problem, [])
    code, lines = make({"python3.12": python("3.12")}, *arguments)
    assert code == 0
    assert lines[0] == ".venv has another Python, place or backend than it should: making it again."
    assert lines[1] == ".venv is made by python3.12: Python 3.12."
    refused = make({"python3": python("3.12")}, "PYTHON=python3.9")
    assert refused[0] == 2
    assert inside.exists()


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({}, ".venv is made by python3: Python 3.12."),
        ({"sw_vers": "echo 13.7"}, "On a Mac, MLX needs macOS 14 or newer; this is 13.7."),
        (
            {"sysctl": "exit 1"},
            "On a Mac, MLX needs Apple silicon; this one has an Intel processor.",
        ),
    ],
)
def test_a_mac(make: Make, programs: dict[str, str], said: str) -> None:
    code, lines = make({"python3": python("3.12", "darwin"), **MAC, **programs})
    assert lines[0] == said
    assert code == (0 if "made" in said else 2)


def test_the_same_versions_everywhere() -> None:
    text = {
        name: (ROOT / name).read_text("utf-8")
        for name in "Makefile pyproject.toml README.md CONTRIBUTING.md".split()
    }
    versions = re.findall(r"Python :: (3\.\d+)", text["pyproject.toml"])
    first, last = versions[0], versions[-1]
    assert f'requires-python = ">={first}"' in text["pyproject.toml"]
    assert (
        f"PYTHONS := python3 {' '.join(f'python{version}' for version in reversed(versions))}\n"
        in text["Makefile"]
    )
    limits = f"({first.replace('.', ', ')}) <= version <= ({last.replace('.', ', ')})"
    assert limits in text["Makefile"]
    assert f">={first},<3.{int(last[2:]) + 1}" in text["Makefile"]
    for name in set(text) - {"pyproject.toml"}:
        assert f"Python {first} to {last}" in text[name], name
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    if workflow.exists():  # not in the sdist
        assert f"python: {json.dumps(versions)}" in workflow.read_text("utf-8")
