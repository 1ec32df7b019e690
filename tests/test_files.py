"""A folder appears whole or not at all; a path may begin with a person."""

import os
from pathlib import Path

from smolvlm_mlx.files import expanded, new_folder

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


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "~\0", "~\ud800", "a/~"])
def test_a_path_of_nobody_stays_as_it_is(name: str) -> None:
    assert expanded(name) == Path(name)
    assert expanded("~/x") == Path.home() / "x"
