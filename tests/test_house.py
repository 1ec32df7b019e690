"""The rules of the house, read from the source: who may import whom, what is never caught, how long
is too long, what tests leave alone.

Imports inside functions and under TYPE_CHECKING count like any other. `make house` prints the rooms
and the arrows between them.
"""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

from smolvlm_mlx.checkpoint.convert import Report, convert
from smolvlm_mlx.checkpoint.safetensors import write_safetensors
from tests.support.places import ROOT

import pytest

PACKAGE = ROOT / "smolvlm_mlx"

# From the top. An import goes to a lower floor, or stays within its own module or subpackage.
FLOORS = [
    {"__init__", "__main__"},  # the doors, which nothing inside goes through
    {"cli"},
    {"server"},
    {"bench", "tasks", "training"},
    {"quality"},
    {"checkpoint", "data", "generation"},
    {"inputs", "model"},
    {"config", "device", "events", "files", "options"},
    {"errors"},
]
DEPTH = {unit: depth for depth, floor in enumerate(FLOORS) for unit in floor}

MAX_ROOMS, MAX_ARROWS = 19, 92
MAX_FILE_LINES = 400
MAX_COLUMNS = 100
MAX_FUNCTION_LINES = 40


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of each import; `from a import b` gives a.b, a module or a name
    in one."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def unit(path: Path) -> str:
    """The module or subpackage directly under smolvlm_mlx: inputs/image.py -> inputs."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_unit(name: str) -> str | None:
    """smolvlm_mlx.inputs.image -> inputs; smolvlm_mlx.load, a name of the package itself ->
    __init__; numpy -> None."""
    top, _, rest = name.partition(".")
    if top != PACKAGE.name:
        return None
    first = rest.split(".")[0]
    is_module = first in DEPTH or (PACKAGE / f"{first}.py").exists() or (PACKAGE / first).is_dir()
    return first if first and is_module else "__init__"


def arrows() -> dict[str, set[str]]:
    """Each room, a module or subpackage directly under smolvlm_mlx, with the other rooms that it
    imports."""
    found: dict[str, set[str]] = {}
    for path in sources("smolvlm_mlx"):
        targets = {imported_unit(name) for _, name in imports(path)} - {None, unit(path)}
        found.setdefault(unit(path), set()).update(target for target in targets if target)
    return found


def offences(paths: list[Path], forbidden: set[str], but_in: tuple[str, ...] = ()) -> list[str]:
    """Imports of the forbidden top-level packages, except in the files and folders named in
    but_in."""
    return [
        f"{place}:{line} imports {name}"
        for path in paths
        if not (place := path.relative_to(ROOT).as_posix()).startswith(but_in)
        for line, name in imports(path)
        if name.split(".")[0] in forbidden
    ]


def test_every_module_has_a_floor() -> None:
    assert {unit(path) for path in sources("smolvlm_mlx")} <= set(DEPTH), (
        "give the new module a floor in FLOORS"
    )


def test_imports_go_down_only() -> None:
    climbing = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("smolvlm_mlx")
        for line, name in imports(path)
        if (target := imported_unit(name)) is not None
        and target != unit(path)
        and DEPTH.get(target, -1) <= DEPTH.get(unit(path), -1)
    ]
    assert not climbing


def test_the_house_stays_small() -> None:
    rooms = arrows()
    assert len(rooms) <= MAX_ROOMS
    assert sum(map(len, rooms.values())) <= MAX_ARROWS


def test_contributing_shows_these_floors() -> None:
    """Its map has a line for each floor, from the top, below the doors."""
    (block,) = re.findall(
        r"^smolvlm_mlx/.*\n((?:  .*\n)+)",
        (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
        re.MULTILINE,
    )
    names = [re.split("  +", line.strip())[0].split() for line in block.splitlines()]
    lines = [{name.rstrip("/").removesuffix(".py") for name in line} for line in names]
    assert [line for line in lines if line != {"assets"}] == FLOORS[1:]


def test_model_imports_mlx_and_the_floors_below_only() -> None:
    allowed = sys.stdlib_module_names | {"mlx", "smolvlm_mlx"}
    strangers = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("smolvlm_mlx/model")
        for line, name in imports(path)
        if name.split(".")[0]
        not in allowed | ({"numpy"} if path.name in ("cpu.py", "kernels.py") else set())
    ]
    assert not strangers


def test_packages_stay_in_their_place() -> None:
    package, config, errors = sources("smolvlm_mlx"), PACKAGE / "config.py", PACKAGE / "errors.py"
    inputs = [*sources("smolvlm_mlx/inputs"), *(path for path in (config, errors) if path.exists())]
    everything = sources("smolvlm_mlx", "convert", "examples", "tests")
    assert not offences(inputs, {"mlx", "mlx_lm"})
    assert not offences(
        package,
        {"av"},
        but_in=tuple(
            f"smolvlm_mlx/inputs/{name}.py" for name in ("animation", "camera", "video_file")
        ),
    )
    assert not offences(package, {"pypdfium2"}, but_in=("smolvlm_mlx/inputs/pdf.py",))
    assert not offences(package, {"docling_core"}, but_in=("smolvlm_mlx/tasks/docling.py",))
    assert not offences(package, {"rich"}, but_in=("smolvlm_mlx/cli/",))
    assert not offences(
        everything, {"torch", "torchvision"}, but_in=("convert/", "tests/parity/", "tests/bench/")
    )


def bare(requirement: str) -> str:
    """The name of a package, without its extras and versions."""
    return re.split(r"[\[<>=]", requirement)[0]


def test_each_dependency_has_its_reason() -> None:
    """The table in CONTRIBUTING.md names what pyproject.toml installs, and the extra that has
    it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    where = {bare(package): "" for package in project["dependencies"]}
    for extra, packages in project["optional-dependencies"].items():
        # dev repeats those of extras, which come first; cpu and cuda13 mlx.
        for package in packages:
            where.setdefault(bare(package), extra)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Dependencies\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`)(?: \(`(\w+)`\))? \| \S", section, re.MULTILINE)
    listed = [(name, extra) for names, extra in rows for name in re.findall("`(.+?)`", names)]
    assert sorted(listed) == sorted(where.items())


def catches_too_much(handler: ast.ExceptHandler) -> bool:
    """A bare except, except Exception, or except BaseException that does not end in a plain
    raise."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {ast.unparse(kind).rpartition(".")[2] if kind else "" for kind in caught}
    last = handler.body[-1]
    reraises = isinstance(last, ast.Raise) and last.exc is None
    return bool(names & {"", "Exception"}) or ("BaseException" in names and not reraises)


@pytest.mark.parametrize(
    "path", sources("smolvlm_mlx"), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= MAX_FILE_LINES
    assert max(map(len, text.splitlines())) <= MAX_COLUMNS
    nodes = list(ast.walk(ast.parse(text)))
    greedy = [
        node.lineno
        for node in nodes
        if isinstance(node, ast.ExceptHandler) and catches_too_much(node)
    ]
    assert not greedy, f"lines {greedy} catch everything: name what can go wrong"
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}


def test_work_at_once_is_called_as_its_steps_are() -> None:
    """help() shows a function by the name of its steps."""
    source = "".join(path.read_text(encoding="utf-8") for path in sources("smolvlm_mlx"))
    pairs = re.findall(r"(\w+) = at_once\((\w+)\)", source)
    assert len(pairs) == source.count("= at_once(") > 0
    assert [steps for _, steps in pairs] == [f"{name}_in_steps" for name, _ in pairs]
    assert convert.__name__ == "convert"
    assert inspect.signature(convert).return_annotation is Report
    assert inspect.signature(write_safetensors).return_annotation is None


def test_no_test_file_imports_from_another() -> None:
    assert not [
        f"{path.relative_to(ROOT)}:{line} imports {name}: put it into tests/support or conftest.py"
        for path in sources("tests")
        for line, name in imports(path)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    ]


def is_private(name: object) -> bool:
    """A private name, or a dotted one with a private part; not a dunder."""
    return isinstance(name, str) and any(re.match(r"_(?!_)", part) for part in name.split("."))


def private_names(source: str) -> list[tuple[int, str]]:
    """(line, name) of what a test reaches for and is private: an attribute, an import, a name that
    setattr or its like is given.

    What a class of the tests keeps in itself is its own.
    """
    found: list[tuple[int, object]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found += (
                [] if ast.unparse(node.value) in ("self", "cls") else [(node.lineno, node.attr)]
            )
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", None)
            found += [
                (node.lineno, name) for name in (module, *(alias.name for alias in node.names))
            ]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "setattr",
            "getattr",
            "delattr",
        ):
            found += [
                (node.lineno, given.value)
                for given in node.args[:2]
                if isinstance(given, ast.Constant)
            ]
    return [(line, str(name)) for line, name in found if is_private(name)]


def test_tests_reach_for_no_private_names() -> None:
    assert not [
        f"{path.relative_to(ROOT)}:{line} has {name}: test what is public, or make it public"
        for path in sources("tests")
        for line, name in private_names(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("engine._loaded.config", 1),
        ("monkeypatch.setattr(kernels, '_BLOCK', 1)", 1),
        ("monkeypatch.setattr('smolvlm_mlx.cli.live._open', None)", 1),
        ("from smolvlm_mlx.cli.live import _open", 1),
        ("self._mx = self.other._mx", 1),
        ("self._mx = model.__class__, '_', '_open'", 0),
        ("from __future__ import annotations", 0),
        ("monkeypatch.setattr(kernels, 'BLOCK', '_')", 0),
    ],
)
def test_a_private_name_would_be_seen(line: str, count: int) -> None:
    assert len(private_names(line)) == count


IMPORT_AND_COMPARE = """
import ctypes, logging, os, resource, signal, subprocess, sys, warnings
import numpy  # brings its own warning filters

def state():
    made = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(item for item in made if hasattr(item, "handlers"))]
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        # The process's own, in which a library in C may set what Python's has not.
        "environment": subprocess.check_output("env"),
        "directory": os.getcwd(),
        "search path": list(sys.path),
        "warning filters": list(warnings.filters),
        "log handlers": [(each.name, handler) for each in loggers for handler in each.handlers],
        "log level": logging.root.level,
        "limits": [resource.getrlimit(limit) for limit in limits],
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook),
    }

before = state()
import smolvlm_mlx
CHANGE
after = state()
changed = [name for name in before if before[name] != after[name]]
heavy = sorted({"mlx_lm", "transformers", "torch", "mlx_vlm"} & set(sys.modules))
sys.exit(f"changed: {changed}, loaded: {heavy}" if changed or heavy else 0)
"""


def import_and_compare(change: str) -> subprocess.CompletedProcess[str]:
    source = IMPORT_AND_COMPARE.replace("CHANGE", change)
    return subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)


def test_importing_changes_nothing() -> None:
    result = import_and_compare("")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("os.environ['OPENBLAS_THREAD_TIMEOUT'] = '22'", "environment"),
        ("ctypes.CDLL(None).setenv(b'OMP_DYNAMIC', b'1', 1)", "environment"),
        ("warnings.simplefilter('ignore')", "warning filters"),
        ("logging.root.addHandler(logging.NullHandler())", "log handlers"),
        ("sys.modules['torch'] = sys", "torch"),
    ],
)
def test_a_change_would_be_seen(change: str, said: str) -> None:
    result = import_and_compare(change)
    assert result.returncode == 1
    assert said in result.stderr


def show() -> None:
    """Print the house from the top: each room with those it imports, and how many there are."""
    rooms = arrows()
    for floor in FLOORS:
        for room in sorted(floor):
            print(
                f"  {room:11} {' '.join(sorted(rooms[room], key=lambda name: (DEPTH[name], name)))}"
            )
        print()
    print(f"{len(rooms)} rooms on {len(FLOORS)} floors, {sum(map(len, rooms.values()))} arrows")


if __name__ == "__main__":
    show()
