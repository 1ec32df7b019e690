"""The file of answers: what is no line of it, when a file is asked about again, and how lines and
tables are written."""

import json
import os
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import DataError
from smolvlm_mlx.tasks.lines import current, read_lines, stat_of, write_csv, write_lines

import pytest

LINE = {"path": "a.png", "sha256": "0", "run": "r"}


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "1",
        "{",
        "{}",
        "[" * 100_000,
        *(json.dumps({**LINE, name: 1}) for name in ("path", "sha256")),
        *(json.dumps({name: LINE[name] for name in LINE if name != left}) for left in LINE),
    ],
    ids=range(10),
)
def test_what_is_no_line_is_something_else(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{line}\n")
    with pytest.raises(DataError, match=r"a\.jsonl: holds something else than captions; choose"):
        read_lines(path, "r")


def test_whole_lines_are_read_and_a_piece_of_one_is_told(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.jsonl", json.dumps(LINE) + "\n"
    assert read_lines(path, "r") == ([], False)
    for text, count, is_cut in (
        ("", 0, False),
        (whole[:-1], 0, True),
        (whole, 1, False),
        (whole + whole[:5], 1, True),
        (whole * 2, 2, False),
    ):
        path.write_text(text)
        assert read_lines(path, "r") == ([LINE] * count, is_cut)
    with pytest.raises(DataError, match="captions of another model, task or settings"):
        read_lines(path, "other")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_lines(tmp_path, "r")


def test_a_line_is_of_the_file_as_it_is(tmp_path: Path) -> None:
    """By its size and time; or by its bytes, which then have that time."""
    file = tmp_path / "a.png"
    file.write_bytes(b"ab")
    os.utime(file, (1, 5))
    assert stat_of(str(file)) == [2, 5]
    digest = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"
    line: dict[str, Any] = {**LINE, "path": str(file), "stat": [2, 5], "sha256": digest}
    assert current(line) == line
    assert current({**line, "sha256": "0"}) == {**line, "sha256": "0"}  # its bytes are not read
    assert current({**line, "stat": [2, 4]}) == line
    assert current({**line, "stat": None, "sha256": "0"}) is None
    assert current({**line, "error": "no memory"}) is None
    assert current({**line, "path": str(tmp_path / "none.png"), "stat": None}) is None
    assert current({**line, "path": str(tmp_path), "stat": None}) is None  # a folder by now


def test_lines_are_written_as_they_read(tmp_path: Path) -> None:
    """Letters as they are; what is no UTF-8 escaped; folders made."""
    path, odd = tmp_path / "new" / "folder" / "a.jsonl", os.fsdecode(b"\xff")
    for _ in range(2):
        write_lines(path, [{**LINE, "caption": "Ü"}])
    write_lines(path, [{**LINE, "path": odd}], append=True)
    first, second = path.read_bytes().splitlines()
    assert "Ü".encode() in first
    assert json.loads(second)["path"] == odd
    assert len(read_lines(path, "r")[0]) == 2


def test_a_table_has_what_people_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.csv"
    lines: list[dict[str, Any]] = [
        {**LINE, "stat": [1, 2], "caption": "=1+1", "keywords": ["a", "b", 1]},
        {**LINE, "path": "-b", "stat": None, "caption": "+1", "more": {"ü": [1]}},
        {**LINE, "path": "@", "caption": "-", "keywords": [], "more": 1.5},
        {**LINE, "caption": "a = b", "keywords": None, "error": 'two\n"lines"'},
    ]
    write_csv(path, lines)
    assert path.read_bytes().decode() == (
        "path,caption,keywords,more,error\r\n"
        "a.png,'=1+1,a; b; 1,,\r\n"
        '\'-b,\'+1,,"{""ü"": [1]}",\r\n'
        "'@,'-,,1.5,\r\n"
        'a.png,a = b,,,"two\n""lines"""\r\n'
    )
