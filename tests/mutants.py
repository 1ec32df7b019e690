"""`make mutants`: small changes to the code, one at a time; a test has to fail for each.

    make mutants                                  40 of what changed since main
    make mutants ARGS="--count 300 smolvlm_mlx/generation smolvlm_mlx/model"

A mutant is tried in a copy of the tree, with the tests that run its line, as coverage tells. What
was tried is kept in `.mutants/`, so that a run that was stopped goes on; those that no test notices
are shown at the end. Some change nothing that anybody could see (a capacity, a
bound that is never met): look at each.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from difflib import unified_diff
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".mutants"  # .gitignore has it
FIRST = 60  # tests that are tried before the others
SLOWEST = 60.0  # seconds a mutant may take beyond twice its tests' own time: else it hangs

SWAPS: dict[type[ast.AST], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.And: "or",
    ast.Or: "and",
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
}


@dataclass(frozen=True)
class Mutant:
    """A change of one expression or statement: what stands at `start:end` of a file's text."""

    file: str
    line: int
    start: int
    end: int
    new: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]


class Source:
    """A file, and the changes that can be made to it."""

    def __init__(self, file: str):
        self.file, self.text = file, (ROOT / file).read_text("utf-8")
        starts = [0]
        for line in self.text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self._starts, self._lines = starts, self.text.splitlines()
        self.tree = ast.parse(self.text)

    def mutants(self) -> Iterator[Mutant]:
        """Every change there is, in no order."""
        fixed = {id(child) for node in ast.walk(self.tree) for child in _fixed(node)}
        for node in ast.walk(self.tree):
            if id(node) in fixed:
                continue
            for at, new in self._changes(node):
                yield Mutant(self.file, at.lineno, *self._span(at), new)
            for left, operator, right in _operators(node):
                start, end = self._span(left)[1], self._span(right)[0]
                between, swap = self.text[start:end], SWAPS.get(type(operator))
                if swap is not None and "#" not in between:  # brackets and line ends stay
                    swapped = between.replace(between.strip(" ()\n"), swap)
                    yield Mutant(self.file, left.lineno, start, end, swapped)

    def shown(self, mutant: Mutant) -> str:
        """A mutant for people: its lines before and after."""
        before, after = self.text.splitlines(), mutant.applied(self.text).splitlines()
        lines = [line for line in unified_diff(before, after, n=0, lineterm="") if line[0] in "+-"]
        return "\n".join([f"{mutant.file}:{mutant.line}", *lines[2:]])

    def _changes(self, node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt | ast.keyword, str]]:
        """Parts of a node, and what is to stand in their place."""
        match node:
            case ast.Constant(value=bool() as value):
                yield node, str(not value)
            case ast.Constant(value=int() | float() as value):
                yield node, repr(value + 1)
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                yield test, f"(not ({self._of(test)}))"
            case ast.comprehension(ifs=[test, *_]):
                yield test, "True"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield node, f"({self._of(operand)})"
            case ast.Return(value=ast.expr() as value) if self._of(value) != "None":
                yield value, "None"
            case ast.Break():
                yield node, "continue"
            case ast.Continue():
                yield node, "break"
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.AugAssign():
                yield node, "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield node, "pass"
            case ast.Call(keywords=[*keywords]):
                for keyword in keywords:
                    if keyword.arg not in (None, "strict"):
                        yield keyword, "**{}"

    def _span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(
            node.end_lineno or 0, node.end_col_offset or 0
        )

    def _at(self, line: int, column: int) -> int:
        """Python counts columns in bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _of(self, node: ast.expr) -> str:
        return self.text[slice(*self._span(node))]


def _fixed(node: ast.AST) -> Iterator[ast.AST]:
    """What is no behaviour: types, decorators, and that lengths are equal."""
    parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    for part in (*parts, *getattr(node, "decorator_list", ())):
        if part is not None:
            yield from ast.walk(part)
    is_check = isinstance(node, ast.keyword) and node.arg == "strict"
    if is_check or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
        yield from ast.walk(node)


def _operators(node: ast.AST) -> Iterator[tuple[ast.expr, ast.AST, ast.expr]]:
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            yield left, operator, right
        case ast.BoolOp(op=operator, values=[left, right, *_]):
            yield left, operator, right
        case ast.BinOp(left=left, op=operator, right=right):
            yield left, operator, right


# ---- which tests run a line


class Map:
    """Which tests run each line (FILE:LINE), and the seconds that each takes."""

    def __init__(self, lines: dict[str, list[str]], seconds: dict[str, float]):
        self._lines, self._seconds = lines, seconds

    @classmethod
    def made(cls) -> "Map":
        """Of one run of the suite, which is made again when anything was changed."""
        files = [*ROOT.glob("smolvlm_mlx/**/*.py"), *ROOT.glob("tests/**/*.py")]
        state = sha256(b"".join(file.read_bytes() for file in sorted(files)))
        kept = KEPT / f"map-{state.hexdigest()[:16]}.json"
        if not kept.exists():
            print("running the suite once, to see which tests run which lines", flush=True)
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(_measured()))
        return cls(**json.loads(kept.read_text()))

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run a line: those of its own test file first, then the quickest; of a line
        that is run at import, those of its file and all of its own test file."""
        own = f"/test_{Path(mutant.file).stem}.py"
        tests = self._lines.get(f"{mutant.file}:{mutant.line}") or {
            *(test for test in self._seconds if own in test),
            *(
                test
                for place, some in self._lines.items()
                if place.startswith(f"{mutant.file}:")
                for test in some
            ),
        }
        return sorted(tests, key=lambda test: (own not in test, self.seconds(test), test))

    def seconds(self, test: str) -> float:
        return self._seconds.get(test, 0.0)


def _measured() -> dict[str, object]:
    """In a copy, as mutants are: what stands beside the tree is not beside the copy."""
    import coverage

    with tempfile.TemporaryDirectory() as folder:
        copy = Copy.made(Path(folder).resolve() / "copy")
        report, data_file = Path(folder, "times.xml"), Path(folder, "coverage")
        options = ["-n2", "--cov=smolvlm_mlx", "--cov-context=test", "--cov-report="]
        options += [f"--junitxml={report}", "-o", "junit_family=xunit1"]
        copy.pytest(*options, check=True, COVERAGE_FILE=str(data_file))
        data = coverage.CoverageData(str(data_file))
        data.read()
        lines = {
            f"{Path(file).relative_to(copy.folder)}:{line}": sorted(tests)
            for file in data.measured_files()
            for line, names in data.contexts_by_lineno(file).items()
            if (tests := {name.rpartition("|")[0] for name in names if name})
        }
        seconds = {
            f"{case.get('file')}::{case.get('name')}": float(case.get("time", 0))
            for case in ElementTree.parse(report).iter("testcase")
            if case.find("skipped") is None
        }
    return {"lines": lines, "seconds": seconds}


# ---- trying


@dataclass
class Copy:
    """A copy of the tree, in which one mutant at a time is tried."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> "Copy":
        for name in _git("ls-files", "-co", "--exclude-standard"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        return cls(folder)

    def survives(self, mutant: Mutant, tests: Sequence[str], seconds: float) -> bool:
        """Whether all tests pass with it: a few at first, since collecting many takes time."""
        file = self.folder / mutant.file
        source = file.read_text("utf-8")
        file.write_text(mutant.applied(source), "utf-8")
        try:
            some, others = tests[:FIRST], tests[FIRST:]
            return self._pass(some, seconds) and (not others or self._pass(others, seconds))
        finally:
            file.write_text(source, "utf-8")

    def _pass(self, tests: Sequence[str], seconds: float) -> bool:
        chosen = self.folder / ".chosen"
        chosen.write_text("\n".join(tests))
        options = ["-x", "-n0", "-p", "no:cacheprovider", f"@{chosen}"]
        try:
            return self.pytest(*options, hidden=True, timeout=SLOWEST + 2 * seconds) == 0
        except subprocess.TimeoutExpired:
            return False

    def pytest(
        self,
        *options: str,
        check: bool = False,
        hidden: bool = False,
        timeout: float | None = None,
        **environment: str,
    ) -> int:
        """How it ended, with the package of this copy."""
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(self.folder)}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *options],
            cwd=self.folder,
            check=check,
            capture_output=hidden,
            timeout=timeout,
            env={**os.environ, **environment},
        ).returncode


def survivors(mutants: Sequence[Mutant], tests: Map, copies: int) -> Iterator[tuple[Mutant, bool]]:
    """Each mutant, as it was tried, and whether it survived."""
    kept = KEPT / "tried.jsonl"
    kept.touch()
    tried = {line["key"]: line["survived"] for line in map(json.loads, kept.open())}
    free: SimpleQueue[Copy] = SimpleQueue()

    def trial(mutant: Mutant) -> tuple[Mutant, bool]:
        chosen = tests.tests_of(mutant)
        key = _key(mutant, chosen)
        if key not in tried:
            copy = free.get()
            try:
                tried[key] = not chosen or copy.survives(
                    mutant, chosen, sum(map(tests.seconds, chosen))
                )
            finally:
                free.put(copy)
            line = json.dumps({"key": key, "survived": tried[key], **asdict(mutant)})
            with kept.open("a") as file:
                file.write(line + "\n")
        return mutant, tried[key]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(copies) as pool:
        for number in range(copies):
            free.put(Copy.made(Path(folder, str(number))))
        yield from pool.map(trial, mutants)


def _key(mutant: Mutant, tests: Sequence[str]) -> str:
    """Names a mutant of this state of its file and its tests."""
    files = sorted({mutant.file, *(test.partition("::")[0] for test in tests)})
    text = [repr(mutant), *tests, *((ROOT / file).read_text("utf-8") for file in files)]
    return sha256("\0".join(text).encode()).hexdigest()[:16]


def changed_files(since: str) -> list[str]:
    """Files of the package that differ from a revision."""
    names = _git("diff", "--name-only", "--diff-filter=d", since, "--", "smolvlm_mlx")
    return [name for name in names if name.endswith(".py")]


def _git(*words: str) -> list[str]:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make mutants", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("paths", nargs="*", help="files or folders; else those that changed")
    parser.add_argument("--since", default="main", help="the revision they changed since")
    parser.add_argument("--count", type=int, default=40, help="mutants to try")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--copies", type=int, default=2, help="mutants tried at a time")
    asked = parser.parse_args()
    files = [
        str(file.relative_to(ROOT))
        for path in map(ROOT.joinpath, asked.paths or changed_files(asked.since))
        for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))
    ]
    sources = {file: Source(file) for file in files}
    every = [mutant for source in sources.values() for mutant in source.mutants()]
    chosen = random.Random(asked.seed).sample(every, min(asked.count, len(every)))
    print(f"{len(chosen)} of {len(every)} mutants of {len(files)} files")
    found = []
    for number, (mutant, survived) in enumerate(survivors(chosen, Map.made(), asked.copies), 1):
        print("S" if survived else ".", end="" if number % 50 else f" {number}\n", flush=True)
        if survived:
            found.append(sources[mutant.file].shown(mutant))
    print(f"\n{len(found)} of {len(chosen)} survived", *found, sep="\n\n")


if __name__ == "__main__":
    main()
