"""Files and folders appear whole or not at all; JSON is read within limits; a path may begin with a
person."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from smolvlm_mlx import files
from smolvlm_mlx.checkpoint.safetensors import save_safetensors
from smolvlm_mlx.errors import CheckpointError, DataError
from smolvlm_mlx.files import (
    BusyError,
    append_file,
    expanded,
    lock,
    new_file,
    new_folder,
    read_json,
    read_json_if_there,
    write_all,
    write_file,
    written,
)
from tests.support.faults import CALLS, ERRORS, at_call, file_limit, short
from tests.support.places import ROOT

import mlx.core as mx
import pytest


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / ("n" * 255)
    with new_folder(out) as partial:
        (partial / "file").write_text("x")
        assert not out.exists()
        assert partial.parent == out.parent
    assert [path.name for path in out.iterdir()] == ["file"]
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    value = os.umask(0o022)
    os.umask(value)
    return value


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, ZeroDivisionError])
def test_a_failure_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "deep" / "er" / "out") as partial:
            (partial / "file").write_text("x")
            raise kind

    with pytest.raises(kind):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def race() -> None:
        with new_folder(out) as partial:
            (partial / "file").write_text("ours")
            out.mkdir()
            (out / "file").write_text("theirs")

    with pytest.raises(OSError, match="not empty"):
        race()
    assert (out / "file").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [out]


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_all_of_a_folder_is_on_the_disk_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sync, synced = tmp_path / "out", os.fsync, list[tuple[int, bool]]()

    def watched(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, out.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    gc.collect()
    before = open_files()
    with new_folder(out) as partial:
        (partial / "a").mkdir()
        (partial / "a" / "b").write_text("x")
    inside = {path.stat().st_ino for path in (out, out / "a", out / "a" / "b")}
    assert {number for number, is_there in synced if not is_there} == inside
    # Then that it is there.
    assert [number for number, is_there in synced if is_there] == [tmp_path.stat().st_ino]
    assert open_files() <= before


def test_a_folder_that_may_not_stay_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def fail(descriptor: int) -> None:
        if out.exists():
            raise OSError("no space")

    def make() -> None:
        with new_folder(out) as partial:
            (partial / "file").write_text("x")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        make()
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_is_private_from_its_beginning(tmp_path: Path) -> None:
    """Whatever others may do with new files, and with the one that was there."""
    (tmp_path / "token").touch(0o666)
    before = os.umask(0)
    try:
        with new_file(tmp_path / "token", 0o600) as partial:
            assert partial.stat().st_mode & 0o777 == 0o600
        with new_file(tmp_path / "other") as partial:
            assert partial.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("fails", [False, True])
def test_a_file_is_on_the_disk_before_it_is_replaced(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sizes = tmp_path / ("n" * 255), list[int]()
    path.write_bytes(b"old")

    def watched(descriptor: int) -> None:
        assert path.read_bytes() == b"old"
        sizes.append(os.fstat(descriptor).st_size)
        if fails:
            raise OSError("no space")

    monkeypatch.setattr(os, "fsync", watched)
    if fails:
        with pytest.raises(OSError, match="no space"):
            write_file(path, b"fresh")
    else:
        write_file(path, b"fresh")
    assert sizes == [5]
    assert path.read_bytes() == (b"old" if fails else b"fresh")
    assert list(tmp_path.iterdir()) == [path]


# ---- each call of the system, failing


def _folder(path: Path) -> None:
    with new_folder(path / "a" / "b") as partial:
        write_file(partial / "file", b"x" * 1000)
        (partial / "below").mkdir()
        write_file(partial / "below" / "file", b"y" * 1000)


def _file(path: Path) -> None:
    write_file(path / "a", b"new" * 1000)


def _lines(path: Path) -> None:
    append_file(path / "old", b"a line\n" * 1000)


def _arrays(path: Path) -> None:
    save_safetensors(path / "a", {"x": mx.ones((100,)), "y": mx.zeros((3, 3))})


Tree = dict[str, bytes]


def tree(folder: Path) -> Tree:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("make", [_folder, _file, _lines, _arrays])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", ERRORS)
def test_whatever_fails_all_is_there_or_nothing(
    make: Callable[[Path], None], call: str, error: str, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in ("old", "a")[: 1 if make is _folder else 2]:
        (whole / name).write_bytes(b"old")
    before = tree(whole)
    with ExitStack() as counted:
        counts = counted.enter_context(at_call(whole, call, (), short))
        make(whole)
    for nth in range(1, counts[0] + 1):
        out = tmp_path / str(nth)
        out.mkdir()
        for name, data in before.items():
            (out / name).write_bytes(data)
        with at_call(out, call, {nth}, ERRORS[error]):
            try:
                make(out)
                assert tree(out) == tree(whole)  # it was no matter, or tried again
            except OSError:
                assert tree(out) == before
        if make is not _lines or tree(out) == before:
            make(out)
        assert tree(out) == tree(whole)


@pytest.mark.parametrize("make", [_folder, _file, _lines, _arrays])
def test_few_bytes_at_once_are_all_bytes_in_the_end(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    trees = list[Tree]()
    for name, calls in (("whole", range(0)), ("short", range(10**9))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_bytes(b"old")
        with at_call(tmp_path / name, "write", calls, short) as counts:
            make(tmp_path / name)
        trees.append(tree(tmp_path / name))
    assert trees[0] == trees[1]
    assert counts[0] > 400


def test_a_write_of_nothing_is_an_error(tmp_path: Path) -> None:
    with (
        (tmp_path / "a").open("wb") as file,
        at_call(tmp_path, "write", {2}, lambda call, arguments: 0),
    ):
        write_all(file.fileno(), b"x")
        with pytest.raises(OSError, match="Input/output error"):
            write_all(file.fileno(), b"x")


def test_a_full_disk_cuts_nothing_short(tmp_path: Path) -> None:
    """And the process lives on after the signal."""
    path = tmp_path / "a"
    path.write_bytes(b"one\n")
    with file_limit(10):
        append_file(path, b"three\n")
        with pytest.raises(OSError, match="File too large"):
            append_file(path, b"four\n")
        with (
            pytest.raises(DataError, match=r"a: cannot be written \(File too large\)"),
            written(path, DataError),
        ):
            write_file(path, b"eleven bytes")
    assert tree(tmp_path) == {"a": b"one\nthree\n"}


def test_lines_are_added_to_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(FileNotFoundError):
        append_file(path, b"x")
    assert not path.exists()
    path.write_bytes(b"")

    def gone(call: Callable[[int], None], arguments: tuple[int]) -> None:
        path.unlink()
        call(*arguments)

    with at_call(tmp_path, "fsync", {1}, gone), pytest.raises(FileNotFoundError):
        append_file(path, b"x")


def test_links_and_devices_stay(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    link, target = tmp_path / "link", tmp_path / "in" / "file"
    link.symlink_to(target)
    for data in (b"one", b"two"):
        write_file(link, data)
        assert link.is_symlink()
        assert target.read_bytes() == data
    assert [*target.parent.iterdir()] == [target]
    controller, terminal = os.openpty()
    write_file(Path(os.ttyname(terminal)), b"said")
    assert os.read(controller, 10) == b"said"
    os.close(controller)
    os.close(terminal)
    os.mkfifo(tmp_path / "pipe")
    link.unlink()
    link.symlink_to(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for path in (tmp_path / "pipe", link):
        write_file(path, b"said")
        assert os.read(reader, 10) == b"said"
    os.close(reader)


@pytest.mark.parametrize("links", [0, 1, 2])
def test_what_is_open_already_is_written_into_where_it_is(links: int, tmp_path: Path) -> None:
    """As a shell's `program -o /dev/stdout >> log` has it: what is there stays."""
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    path = Path(f"/dev/fd/{file}")
    for number in range(links):
        link = tmp_path / f"link{number}"
        link.symlink_to(path)
        path = link
    os.write(file, b"before\n")
    for data in (b"one\n", b"two\n"):
        write_file(path, data)
    os.write(file, b"after\n")
    os.close(file)
    assert (tmp_path / "log").read_bytes() == b"before\none\ntwo\nafter\n"


def test_a_link_that_leads_nowhere_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    write_file(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


# ---- other processes

HOLD = """
import sys
from pathlib import Path
from smolvlm_mlx.files import lock, new_file, new_folder
out = Path(sys.argv[1])
with lock(out / "locked"), new_folder(out / "folder") as folder, new_file(out / "file.mp4") as file:
    (folder / "inside").write_text("x")
    file.write_text("x")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """What is a running one's stays, and what is named in another way, or on another machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=-1, stdout=-1
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        held = {path.name for path in tmp_path.iterdir()}
        (file,) = (name for name in held if ".mp4.partial-" in name)
        machine = file.split("-")[1]
        others = {
            ".a.partial-0123abcd",
            f".a.partial-{(int(machine, 16) + 1) % 2**32:08x}-0123abcd",
            f"a.partial-{machine}-0123abcd",
            f".a.partial-{machine}-0123abcd.b.c",
            f".a.partial-{machine}-0123abcg",
        }
        for name in others:
            (tmp_path / name).write_text("mine")
        (tmp_path / f".b.partial-{machine}-0123abcd").symlink_to(tmp_path / ".a.partial-0123abcd")
        others.add(f".b.partial-{machine}-0123abcd")
        for name in ("locked", "folder"):
            with pytest.raises(BusyError, match="another run writes"), lock(tmp_path / name):
                pass
        write_file(tmp_path / "a", b"x")
        assert {path.name for path in tmp_path.iterdir()} == {"a", *held, *others}
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    write_file(tmp_path / "a", b"x")
    for name in ("locked", "folder"):
        with lock(tmp_path / name):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"a", *others, *held} - {
        name for name in held if ".lock-" in name or ".partial-" in name
    }


def test_only_one_at_a_time_writes(tmp_path: Path) -> None:
    path = tmp_path / "new" / ("n" * 255)
    for _ in range(2):
        with lock(path), lock(tmp_path / "new" / "other"):
            with pytest.raises(BusyError), lock(path):
                pass
            with pytest.raises(BusyError), new_folder(path):
                pass
        assert list(path.parent.iterdir()) == []


def test_a_folder_that_is_there_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError), new_folder(tmp_path / "out"):
        raise AssertionError
    assert tree(tmp_path) == {"out": b""}


# ---- JSON


def test_a_file_of_json_may_be_as_large_as_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.MAX_JSON_BYTES == 4 * 2**20
    path = tmp_path / "config.json"
    path.write_text("{}" + " " * (2**20 - 2))
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 2**20)
    assert read_json(path) == {}
    path.write_text("{}" + " " * (2**20 - 1))
    with pytest.raises(CheckpointError, match=r"config\.json: larger than 1 MiB; this is no "):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "holds", "said"),
    [
        ("config.json", None, "{folder}: no config.json; give the folder of a SmolVLM checkpoint"),
        ("n" * 300, None, "{file}: cannot be read (File name too long)"),
        (".", None, "{file}: cannot be read (a folder)"),
        ("config.json", "{", "{file}: damaged, not JSON (Expecting property name"),
        ("config.json", "\xff", "{file}: damaged, not JSON ("),
        ("config.json", "[" * 100_000, "{file}: damaged, not JSON ("),
        ("config.json", "[1]", "{file}: holds a list, not an object"),
        ("config.json", "null", "{file}: holds a NoneType, not an object"),
    ],
)
def test_a_file_that_is_not_json_is_one_line(
    name: str, holds: str | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    if holds is not None:
        file.write_bytes(holds.encode("latin-1"))
    with pytest.raises(CheckpointError) as caught:
        read_json(file)
    assert str(caught.value).startswith(said.format(folder=tmp_path, file=file))


def test_a_file_may_be_left_out(tmp_path: Path) -> None:
    assert read_json_if_there(tmp_path / "config.json") == {}
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert read_json_if_there(tmp_path / "config.json") == {"a": 1}


def test_json_may_be_64_deep(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    lists = [64 * "[" + 64 * "]", 63 * "[" + "1" + 63 * "]", 64 * "[" + "1" + 64 * "]"]
    objects = ['{"a": ' * 63 + "1" + "}" * 63, '{"a": ' * 64 + "1" + "}" * 64]
    for inside in (*lists[:2], objects[0]):
        path.write_text(f'{{"a": {inside}}}')
        assert read_json(path)
    for inside in (lists[2], objects[1]):
        path.write_text(f'{{"a": {inside}}}')
        with pytest.raises(CheckpointError, match="nested more than 64 deep"):
            read_json(path)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "~\0", "~\ud800", "a/~"])
def test_a_path_of_nobody_stays_as_it_is(name: str) -> None:
    assert expanded(name) == Path(name)
    assert expanded("~/x") == Path.home() / "x"
