"""Rows of files, folders and hub datasets: bad ones are rows too, and what cannot be read is told
in a line."""

import base64
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolvlm_mlx.data.rows import Row, read_rows, rows_fingerprint
from smolvlm_mlx.data.samples import make_sample
from smolvlm_mlx.errors import DataError, ImageError
from smolvlm_mlx.inputs.image import load_image
from smolvlm_mlx.training.lessons import lessons
from tests.support.messages import text
from tests.support.pictures import noise
from tests.support.rows import IMAGE, QUESTION, outcome

import pytest
from PIL import Image


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_bad_lines_are_rows(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    good = json.dumps(
        {**QUESTION, "image": "a.png", "category": "a\u2028b\x85c"}, ensure_ascii=False
    )
    file.write_text(f"\ufeff{good}\n\n  \n{{bad\n5\n{'[' * 100_000}\n{good}", encoding="utf-8")
    rows = read_rows(str(file))
    assert [row.where for row in rows] == [f"{name}:{line}" for line in (1, 4, 5, 6, 7)]
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
    for name in ("data.jsonl", "data.json"):
        (tmp_path / name).write_text(content, encoding="latin-1")
        with pytest.raises(DataError, match=rf"{name}: {said}$"):
            read_rows(tmp_path / name)


def test_where_a_file_is_no_utf8_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"question": "' + b"a" * 9000 + b'\xff"}\n')
    with pytest.raises(DataError, match="byte 0xff in position 9014"):
        read_rows(path)


@pytest.mark.parametrize(
    "source",
    "nothing nothing.jsonl data/nothing.jsonl data/n.csv /a/b ./a ../b a/b/c a/".split(),
)
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)  # which would not help
    with pytest.raises(
        DataError, match=r"no such file or folder, and no hub dataset id like owner/name$"
    ):
        read_rows(source)


@pytest.mark.parametrize("source", ["", " "])
def test_no_name_is_not_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    for read in (read_rows, lessons):
        with pytest.raises(DataError, match="the name of the data is empty"):
            read(source)


def test_the_end_of_a_long_name_is_said() -> None:
    with pytest.raises(DataError, match=r"^'\.\.\..*/folder/a\.jsonl': no such file or folder"):
        read_rows(f"{'folder/' * 20}a.jsonl")


@pytest.mark.parametrize("source", [".", "owner/name"])
def test_without_datasets(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=rf"^{source} is no JSONL file, nor a folder .* need: pip install "
    ):
        read_rows(source)


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
    assert [row.where for row in rows] == [f"metadata.jsonl:{number}" for number in (1, 2, 3)]
    assert list(map(outcome, rows)) == ["0", "1", "2"]
    pictures = [make_sample(row).messages[0]["content"][0] for row in rows]
    assert [load_image(pictures[number]).size for number in (0, 2)] == [(8, 8), (8, 10)]
    with pytest.raises(ImageError, match="is text"):
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
    with pytest.raises(DataError, match="The directory at "):
        read_rows(tmp_path)
    (tmp_path / f"{tmp_path.name}.py").touch()
    with pytest.raises(DataError, match="Dataset scripts"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match=r"^owner/name-of-none: "):
        read_rows("owner/name-of-none")


# ---- files of other forms


RAW = {"image": "a.png", "question": "Which, é?", "answer": "12.50"}


def only_row(file: Path, content: str) -> Any:
    file.write_text(content, encoding="utf-8")
    (row,) = read_rows(file)
    made = make_sample(row)
    assert made.messages[0]["content"] == [
        {**IMAGE, "path": str(file.parent / "a.png")},
        text("Which, é?"),
    ]
    return row.where, made.answers


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.json", json.dumps([RAW], indent=2)),
        ("data.json", json.dumps({"version": 1, "data": [RAW]})),
        ("data.json", json.dumps({"tags": ["a"], "notes": [], "data": [RAW]})),
        ("data.json", json.dumps({"1": RAW})),
        ("data.json", json.dumps(RAW)),
        ("data.json", json.dumps(RAW) + "\n"),
        ("data.json", "\ufeff" + json.dumps([RAW])),
        ("data.jsonl", json.dumps(RAW)),
        ("data.jsonl", json.dumps([RAW], indent=2)),
        ("data.jsonl", "\ufeff" + json.dumps([RAW])),
        ("data.JSON", json.dumps([RAW])),
        ("data.txt", json.dumps(RAW)),
    ],
)
def test_json_of_every_form(tmp_path: Path, name: str, content: str) -> None:
    assert only_row(tmp_path / name, content) == (f"{name}:1", ("12.50",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.csv", 'image,question,answer\na.png,"Which, é?",12.50\n'),
        ("data.csv", '\ufeffimage;question;answer\r\na.png;"Which, é?";12.50\r\n'),
        ("data.tsv", "image\tquestion\tanswer\na.png\tWhich, é?\t12.50\n"),
        ("data.csv", 'image,question,answer,choices\na.png,"Which, é?",12.50,\n'),
    ],
)
def test_tables_with_a_header(tmp_path: Path, name: str, content: str) -> None:
    assert only_row(tmp_path / name, content) == (f"{name}:2", ("12.50",))


def test_cells_may_be_json_and_rows_may_be_wrong(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text(
        "question,answers,choices\n"
        'Which?,"[""2"", ""two""]",\n'
        'Which?,a,"[""a"", ""b""]"\n'
        "Which?\n"
        "Which?,a,b,c\n"
        '"Which\r\n?",[a,\n',
        newline="",
    )
    rows = read_rows(file)
    assert [row.where for row in rows] == [f"data.csv:{line}" for line in (2, 3, 4, 5, 7)]
    assert [outcome(row) for row in rows] == [
        *["2", "a", "not 3 cells, as the header has", "not 3 cells, as the header has", "[a"]
    ]
    assert make_sample(rows[1]).choices == ("a", "b")
    assert make_sample(rows[4]).messages[0]["content"] == "Which\r\n?"


def test_cells_may_be_lists_as_pandas_writes_them(tmp_path: Path) -> None:
    row = "image,question,answers\n\"['a.png']\",\"Which, é?\",\"['one', 'two']\"\n"
    assert only_row(tmp_path / "data.csv", row) == ("data.csv:2", ("one", "two"))


def test_a_column_that_is_there_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("question,answer,answer,question\nWhich?,a,b,c\n")
    with pytest.raises(DataError, match=r"two columns are named 'question'; rename one$"):
        read_rows(tmp_path / "data.csv")


def test_a_picture_in_a_cell(tmp_path: Path) -> None:
    """As VLMEvalKit's tables have them, in base64 of any length."""
    picture = noise(400, 400)
    picture.save(tmp_path / "a.png")
    cell = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    csv.field_size_limit(131_072)  # as it usually is
    header = "index\timage\tquestion\tA\tB\tC\tanswer\tcategory\tsplit"
    (tmp_path / "bench.tsv").write_text(
        f"{header}\n0\t{cell}\tWhich?\tcat\tdog\t\tB\tanimals\tdev\n"
    )
    (row,) = read_rows(tmp_path / "bench.tsv")
    made = make_sample(row)
    assert load_image(made.messages[0]["content"][0]).size == (400, 400)
    assert (made.choices, made.answers, made.category) == (("cat", "dog"), ("B",), "animals")
    assert csv.field_size_limit() == 2**31 - 1


@pytest.mark.parametrize(
    ("written", "learned"),
    [
        *[("12.50", "12.50"), ("1e3", "1e3"), ("-0.0", "-0.0"), ("7", "7"), ("true", "true")],
        ('{"é": {"a": 12.50}, "b": [1e3, 0.10, 7, null, "x"]}',) * 2,
    ],
)
def test_a_number_is_learned_as_it_is_written(tmp_path: Path, written: str, learned: str) -> None:
    for name, form in (("a.jsonl", "{}"), ("b.json", "[{}]")):
        row = f'{{"question": "Which?", "answer": {written}}}'
        (tmp_path / name).write_text(form.replace("{}", row))
        assert outcome(read_rows(tmp_path / name)[0]) == learned


# ---- folders, without the datasets package


@pytest.fixture
def no_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)


@pytest.mark.usefixtures("no_datasets")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "A cat."}\n'),
        ("metadata.json", '[{"file_name": "a.png", "text": "A cat."}]'),
        ("metadata.csv", "file_name,text\na.png,A cat.\n"),
    ],
)
@pytest.mark.parametrize(("folder", "subset"), [("", None), ("train", None), ("val", "val")])
def test_a_folder_with_metadata(
    tmp_path: Path, name: str, content: str, folder: str, subset: str | None
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / name).write_text(content)
    (row,) = read_rows(tmp_path, subset)
    content_of = make_sample(row).messages[0]["content"]
    assert content_of[0] == {**IMAGE, "path": str(tmp_path / folder / "a.png")}
    assert outcome(row) == "A cat."


@pytest.mark.usefixtures("no_datasets")
def test_a_folder_with_a_text_beside_each_picture(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.png", "b.JPG", "c.webp", "d.mp4", "more/a.jpg", "._a.jpg"):
        (tmp_path / name).touch()
    for name in ("a", "b", "d", "notes", "more/a"):
        (tmp_path / f"{name}.txt").write_text(f"\ufeffAbout {name}.\n", encoding="utf-8")
    rows = read_rows(tmp_path)
    assert {row.where: outcome(row) for row in rows} == {
        "a.png": "About a.",
        "b.JPG": "About b.",
        "c.webp": "no c.txt beside it",
        "d.mp4": "About d.",
        "more/a.jpg": "About more/a.",
        "notes.txt": "no picture of this name beside it",
    }
    assert [make_sample(row).shows("video") for row in (rows[0], rows[3])] == [False, True]
    image = make_sample(rows[4]).messages[0]["content"][0]
    assert image == {**IMAGE, "path": str(tmp_path / "more" / "a.jpg")}


@pytest.mark.usefixtures("no_datasets")
def test_pictures_of_one_name_have_one_text(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("A cat.")
    assert [outcome(row) for row in read_rows(tmp_path)] == ["A cat.", "A cat."]


def test_a_stored_video_stays_encoded(tmp_path: Path, hub: Any) -> None:
    features = hub.Features(video=hub.Video(), caption=hub.Value("string"))
    row = {"video": {"bytes": b"no video", "path": None}, "caption": "A cat."}
    hub.Dataset.from_list([row], features=features).to_parquet(tmp_path / "data.parquet")
    part = make_sample(read_rows(tmp_path)[0]).messages[0]["content"][0]
    assert part == {"type": "video", "video": b"no video"}


def test_a_class_is_its_name(tmp_path: Path, hub: Any) -> None:
    """Which datasets store by number."""
    label = hub.ClassLabel(names=["cat", "dog"])
    features = hub.Features(question=hub.Value("string"), label=label)
    data = {"question": ["Which?"] * 4, "label": [1, 0, -1, None]}
    hub.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "data.parquet")
    rows = read_rows(tmp_path)
    assert [outcome(row) for row in rows] == ["dog", "cat", *["no answer: label is null"] * 2]
    assert len({rows_fingerprint([row]) for row in rows}) == 4


def test_a_dataset_that_was_saved_to_disk(tmp_path: Path, hub: Any) -> None:
    hub.Dataset.from_dict({"question": ["Which?"], "answer": ["this"]}).save_to_disk(tmp_path / "a")
    assert [outcome(row) for row in read_rows(tmp_path / "a")] == ["this"]
    with pytest.raises(DataError, match=r"no subset 'test'; there are train$"):
        read_rows(tmp_path / "a", "test")


def test_a_file_has_no_subsets(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(QUESTION))
    with pytest.raises(DataError, match=r"data.jsonl is a file, without a subset 'test'$"):
        read_rows(tmp_path / "data.jsonl", "test")


def test_a_parquet_file(tmp_path: Path, hub: Any) -> None:
    image = {"bytes": b"no picture", "path": None}
    data = {"image": [image], "video": ["a.mp4"], "question": ["Which?"], "answer": [3]}
    texts = {name: hub.Value("string") for name in ("video", "question")}
    features = hub.Features(image=hub.Image(), answer=hub.Value("int64"), **texts)
    file = tmp_path / "data.parquet"
    hub.Dataset.from_dict(data, features=features).to_parquet(file)
    (row,) = read_rows(file)
    clip = {"type": "video", "path": str(tmp_path / "a.mp4")}
    assert make_sample(row).messages[0]["content"][:2] == [clip, {**IMAGE, "image": b"no picture"}]
    assert (outcome(row), row.where) == ("3", f"{file}:1")
    assert isinstance(row.raw, Mapping)
    assert ("caption" in row.raw, len(row.raw)) == (False, 4)


# ---- which rows they were


def test_a_fingerprint_of_rows_is_that_of_their_text() -> None:
    """It is kept beside what was made of them, and tells other rows."""
    kept, broken = "d0d5982f24d7732d", Row("a:2", DataError("no JSON"))
    for picture in (b"1", b"2"):
        row = Row("a:1", {"image": picture, "answer": "é"})
        assert rows_fingerprint([row, broken]) == kept
    others = [[row], [broken, row], [Row("a:1", {"answer": "e"}), broken], [Row("b:1", 1)]]
    assert len({kept, *map(rows_fingerprint, others)}) == 5


def test_cells_of_a_table_may_have_any_keys(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("question,answer\nWhich?,\"{(1, 2): 'a', 'b': 'c'}\"\n")
    assert len(rows_fingerprint(read_rows(tmp_path / "data.csv"))) == 16
