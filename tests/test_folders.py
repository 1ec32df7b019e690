"""Files in folders: pictures and videos are found, and all others counted."""

import os
from pathlib import Path

from smolvlm_mlx.errors import DataError
from smolvlm_mlx.tasks.folders import find_files, passed_over_note

import pytest


def make(folder: Path, *names: str) -> Path:
    """A folder of empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_what_is_passed_over_is_counted_by_ending(tmp_path: Path) -> None:
    folder = make(tmp_path, "b.png", "a.JPG", "deep/er/c.mp4", ".hidden.png", ".git/d.png")
    make(folder, "notes.txt", "deep/more.TXT", "x.docx", "README", "odd.\x1b[31m", "a.c")
    found, passed_over = find_files([folder])
    assert [path.name for path in found] == ["a.JPG", "b.png", "c.mp4"]
    assert passed_over == {".txt": 2, ".docx": 1, "without ending": 1, "'.\\x1b[31m'": 1, ".c": 1}
    assert passed_over_note(passed_over).startswith("passed over: 2 .txt, 1 ")


def test_many_endings_are_summed_up(tmp_path: Path) -> None:
    make(tmp_path, "a.png", *(f"a.x{number}" for number in range(13)))
    assert passed_over_note(find_files([tmp_path])[1]).endswith(", 3 others")


def test_a_file_by_its_name_is_taken_whatever_its_ending(tmp_path: Path) -> None:
    path = make(tmp_path, "photo.bak") / "photo.bak"
    assert find_files([path, str(path)]) == ([path], {})


def test_folders_that_are_not_entered_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "in", "a.png", "closed/b.png")
    (folder / "link").symlink_to(make(tmp_path / "elsewhere", "c.png"))
    scan = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)  # root may enter any folder
    assert find_files([folder])[1] == {"folder that cannot be read": 1, "linked folder": 1}


def test_nothing_to_be_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none': no such file or folder"):
        find_files([tmp_path, tmp_path / "none"])
    with pytest.raises(DataError, match=r"no pictures or videos in '[^']*'$"):
        find_files([tmp_path])
    deep = "x" * 70 + "/" + "y" * 70
    with pytest.raises(DataError, match=r"'\.\.\.x{4}/y{70}': no such file or folder"):
        find_files([tmp_path / deep])
    (tmp_path / deep).mkdir(parents=True)
    with pytest.raises(DataError, match=r"in '\.\.\.x{4}/y{70}'$"):
        find_files([tmp_path / deep])
    make(tmp_path, "a.txt", "b.txt", "c.pdf")
    with pytest.raises(DataError, match=r"\(passed over: 2 \.txt, 1 \.pdf\)$"):
        find_files([tmp_path])
