"""Rows of files, folders and hub datasets: bad ones are rows too, and what cannot be read is told
in a line."""

import json
import sys
from pathlib import Path
from typing import Any

from smolvlm_mlx.data.rows import read_rows
from smolvlm_mlx.data.samples import make_sample
from smolvlm_mlx.errors import DataError, ImageError
from smolvlm_mlx.inputs.image import load_image
from tests.support.messages import text
from tests.support.rows import IMAGE, QUESTION, outcome

import pytest
from PIL import Image


def test_bad_lines_are_rows(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    good = json.dumps(
        {**QUESTION, "image": "a.png", "category": "a\u2028b\x85c"}, ensure_ascii=False
    )
    file.write_text(f"\ufeff{good}\n\n  \n{{bad\n5\n{'[' * 100_000}\n{good}", encoding="utf-8")
    rows = read_rows(str(file))
    assert [row.where for row in rows] == [f"data.jsonl:{line}" for line in (1, 4, 5, 6, 7)]
    said = ["this", "no JSON (Expecting property name", "a int, not an object", "no JSON (", "this"]
    assert all(outcome(row).startswith(start) for row, start in zip(rows, said, strict=True))
    assert make_sample(rows[0]).messages[0]["content"][0] == {
        **IMAGE,
        "path": str(tmp_path / "a.png"),
    }


UNREADABLE = "cannot be read (.*); it must be JSON lines in UTF-8"


@pytest.mark.parametrize(
    ("content", "said"), [("", "no rows"), ("\n \n", "no rows"), ('{}\n"é"', UNREADABLE)]
)
def test_files_without_rows(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=rf"data\.jsonl: {said}$"):
        read_rows(file)


@pytest.mark.parametrize(
    "source", "nothing nothing.jsonl data/nothing.jsonl /a/b ./a ../b a/b/c a/".split()
)
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)  # which would not help
    with pytest.raises(
        DataError, match=r"no such file or folder, and no hub dataset id like owner/name$"
    ):
        read_rows(source)


@pytest.mark.parametrize("source", [".", "owner/name"])
def test_without_datasets(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=rf"^{source} is no JSONL file; folders and hub datasets need: pip install "
    ):
        read_rows(source)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The datasets package, without a network and with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def test_folder(tmp_path: Path, hub: Any) -> None:
    for part, size in {"test": 3, "validation": 1}.items():
        (folder := tmp_path / part).mkdir()
        for number in range(size):
            Image.new("RGB", (8, 8 + number)).save(folder / f"{number}.png")
        metadata = [
            {"file_name": f"{number}.png", "question": "Which?", "answer": number}
            for number in range(size)
        ]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, metadata)))
    (tmp_path / "test" / "1.png").write_bytes(b"no picture")  # says so when its turn comes
    rows = read_rows(tmp_path)
    assert [row.where for row in rows] == [f"{tmp_path}:{number}" for number in (1, 2, 3)]
    assert list(map(outcome, rows)) == ["0", "1", "2"]
    pictures = [make_sample(row).messages[0]["content"][0] for row in rows]
    assert [load_image(pictures[number]).size for number in (0, 2)] == [(8, 8), (8, 10)]
    with pytest.raises(ImageError, match="is not a readable picture"):
        load_image(pictures[1])
    assert list(map(outcome, read_rows(tmp_path, "validation"))) == ["0"]
    with pytest.raises(DataError, match=r"no subset 'train'; there are validation, test$"):
        read_rows(tmp_path, "train")


def test_stored_pictures(tmp_path: Path, hub: Any) -> None:
    """As hub datasets have them: bytes in lists, and in the parts of messages; not decoded before
    their time."""
    stored = {"bytes": b"no picture", "path": "a.png"}
    empty = dict.fromkeys(["text", "path", "image"])
    user = [
        {**empty, **IMAGE},
        {**empty, **IMAGE, "image": stored},
        {**empty, **IMAGE, "path": "b.png"},
    ]
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{**empty, **text("this")}]},
    ]
    part = {**dict.fromkeys(["type", "text", "path"], hub.Value("string")), "image": hub.Image()}
    turn = {"role": hub.Value("string"), "content": hub.List(part)}
    features = hub.Features({"images": hub.List(hub.Image()), "messages": hub.List(turn)})
    data = hub.Dataset.from_list([{"images": [stored], "messages": messages}], features=features)
    data.to_parquet(tmp_path / "data.parquet")
    (row,) = read_rows(tmp_path)
    (message,) = make_sample(row).messages
    own = {**IMAGE, "path": str(tmp_path / "b.png")}
    assert message["content"] == [*[{**IMAGE, "image": b"no picture"}] * 2, own]
    assert outcome(row) == "this"


def test_no_dataset(tmp_path: Path, hub: Any) -> None:
    with pytest.raises(DataError, match="doesn't contain any data files"):
        read_rows(tmp_path)
    (tmp_path / f"{tmp_path.name}.py").touch()
    with pytest.raises(DataError, match="Dataset scripts"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match=r"^owner/name-of-none: "):
        read_rows("owner/name-of-none")
