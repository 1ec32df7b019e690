"""Files and folders appear whole or not at all; JSON is read within limits; a path may begin with a
person."""

import gc
import os
from pathlib import Path

from smolvlm_mlx import files
from smolvlm_mlx.errors import CheckpointError
from smolvlm_mlx.files import expanded, new_folder, read_json, read_json_if_there, write_file

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
        (".", None, "{file}: not a file"),
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
