"""Rows of all forms to conversations; what is wrong with a row is said of that row, and the others stay."""

import json
import sys
from pathlib import Path
from typing import Any

from smolvlm_mlx.data.rows import Row, read_rows
from smolvlm_mlx.data.samples import Sample, make_sample
from smolvlm_mlx.errors import DataError, ImageError, PromptError
from smolvlm_mlx.inputs.prompt import normalize_messages
from smolvlm_mlx.inputs.tiles import ImageOptions, load_image
from tests.support.messages import text

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

FOLDER = Path("/data/set")
IMAGE: dict[str, Any] = {"type": "image"}
B = {**IMAGE, "path": "/data/set/b.png"}
USER = {"role": "user", "content": "Which?"}
ASSISTANT = {"role": "assistant", "content": "This."}
TURN = {"user": "Which?", "assistant": "This."}
QUESTION: dict[str, Any] = {"question": "Which?", "answer": "this"}


def sample(**raw: Any) -> Sample:
    return make_sample(Row("here", raw, FOLDER))


def outcome(row: Row) -> str:
    """The answer, or the error."""
    try:
        return make_sample(row).answers[0]
    except (DataError, PromptError) as error:
        return str(error)


def test_question() -> None:
    made = sample(image="a/cat.png", question="Which?", answers=["this", "that"], category="cats")
    content = [{**IMAGE, "path": "/data/set/a/cat.png"}, text("Which?")]
    assert made == Sample([{"role": "user", "content": content}], ("this", "that"), category="cats")
    assert made.whole == [*made.messages, {"role": "assistant", "content": "this"}]
    without: list[dict[str, Any]] = [{}, {"image": None}, {"images": None}, {"images": []}]
    assert all(sample(**QUESTION, **none).messages[0]["content"] == [text("Which?")] for none in without)


PICTURES: list[tuple[Any, dict[str, Any]]] = [
    *[("cat.png", {"path": "/data/set/cat.png"}), ("../cat.png", {"path": "/data/set/../cat.png"})],
    ("/elsewhere/cat.png", {"path": "/elsewhere/cat.png"}),
    *((url, {"url": url}) for url in ("https://a.b/c.png", "http://a.b/c.png", "data:image/png;base64,AAAA")),
    *[({"path": "cat.png"}, {"path": "/data/set/cat.png"}), ({"base64": "AAAA"}, {"base64": "AAAA"})],
    *[({"bytes": b"PNG", "path": "cat.png"}, {"image": b"PNG"}), (b"PNG", {"image": b"PNG"})],
    ({"bytes": None, "path": "cat.png"}, {"bytes": None, "path": "/data/set/cat.png"}),
]


@pytest.mark.parametrize(("image", "part"), PICTURES, ids=str)
def test_pictures(image: Any, part: dict[str, Any]) -> None:
    want = {**IMAGE, **part}
    for raw, pictures in ({"image": image, "images": []}, [want]), ({"images": [image, "b.png"]}, [want, B]):
        messages = sample(**raw, **QUESTION).messages
        assert messages == [{"role": "user", "content": [*pictures, text("Which?")]}]
        normalize_messages(messages)


@pytest.mark.parametrize(("answer", "right"), [(2, "6"), ("0", "2"), ("4", "4"), ("C", "C"), (9, "9"), ("6", "6")])
def test_a_number_among_choices_is_an_index(answer: object, right: str) -> None:
    assert sample(question="Which?", options=["2", "4", "6"], answer=answer).answers == (right,)


def test_choices() -> None:
    made = sample(question="Which?", choices=["one", 2, "three"], answer="B")
    assert made.messages[0]["content"] == [text("Which?\nA. one\nB. 2\nC. three\nAnswer with the letter.")]
    assert (made.choices, made.answers) == (("one", "2", "three"), ("B",))
    assert sample(**QUESTION, choices=["x"] * 26).messages[0]["content"][0]["text"].count("\n") == 27


NO_ANSWERS: list[Any] = [{}, {"answer": None}, {"answer": " \n"}, {"answers": []}, {"answers": ["", None]}]
ANSWERS: list[Any] = [
    *[({"answer": "x"}, ("x",)), ({"answer": 3}, ("3",)), ({"answer": 0}, ("0",)), ({"answers": "x"}, ("x",))],
    *[({"answer": ["x", 2.5]}, ("x", "2.5")), ({"answers": ["x", "y", "x"]}, ("x", "y", "x"))],
    *[({"answers": ["y"], "answer": "x"}, ("y",)), ({"answers": None, "answer": "x"}, ("x",))],
    *[({"answers": ["", None, "y"]}, ("y",)), ({"answers": [], "answer": "x"}, ("x",))],
]


@pytest.mark.parametrize(("found", "answers"), ANSWERS)
def test_answers(found: dict[str, Any], answers: tuple[str, ...]) -> None:
    assert sample(question="Which?", **found).answers == answers
    assert sample(messages=[USER], **found).answers == answers
    made = sample(messages=[USER, ASSISTANT], **found)  # in the place of the last message
    assert (made.messages, made.answers) == ([USER], answers)


def test_options() -> None:
    options = {"split": False, "longest_edge": 512, "max_tiles": 5}
    assert sample(**QUESTION, **options).image_options.given == options
    assert sample(**QUESTION, max_tiles=5, split=None, other=1).image_options == ImageOptions(max_tiles=5)


def test_messages() -> None:
    system = {"role": "system", "content": "Be short."}
    made = sample(messages=[system, USER, ASSISTANT, USER, {"role": "assistant", "content": [text("So"), text(".")]}])
    assert (made.messages, made.answers) == ([system, USER, ASSISTANT, USER], ("So.",))
    assert made.whole == [system, USER, ASSISTANT, USER, {"role": "assistant", "content": "So."}]


def test_pictures_of_messages() -> None:
    """Parts without a picture get those of `images`, in order; those with one keep it."""
    own = [{**IMAGE, "path": "own.png", "url": None}, {**IMAGE, "image": {"bytes": b"PNG", "path": None}}]
    first = {"role": "user", "content": [text("See"), IMAGE, own[0], own[1], {**IMAGE, "text": "", "path": None}]}
    second = {"role": "user", "content": [IMAGE, text("Which?")]}
    made = sample(messages=[first, ASSISTANT, second, ASSISTANT], images=["a.png", "https://b.c/d", b"GIF"])
    paths = [{**IMAGE, "path": f"/data/set/{name}.png"} for name in ("a", "own")]
    want = [text("See"), *paths, {**IMAGE, "image": b"PNG"}, {**IMAGE, "url": "https://b.c/d"}]
    assert made.messages[0]["content"] == want
    assert made.messages[2]["content"] == [{**IMAGE, "image": b"GIF"}, text("Which?")]
    normalize_messages(made.messages)
    with pytest.raises(PromptError, match="message 3: an image part needs one of"):
        normalize_messages(sample(messages=[first, ASSISTANT, second, ASSISTANT], images=["a.png", b"GIF"]).messages)


def test_turns() -> None:
    made = sample(images=["b.png"], texts=[TURN, {"user": "Sure?", "assistant": "Yes.", "source": "x"}])
    first, second = [B, text("Which?")], [text("Sure?")]
    assert made.messages == [{"role": "user", "content": first}, ASSISTANT, {"role": "user", "content": second}]
    assert made.answers == ("Yes.",)


WRONG: list[tuple[Any, str]] = [
    *[(["question"], "a list, not an object"), (None, "a NoneType, not an object")],
    *[({}, "neither messages, nor question and answer, nor texts"), ({"messages": []}, "neither messages")],
    ({"messages": [USER, ASSISTANT], "images": ["a.png"]}, "more images than image parts in the messages"),
    ({"messages": [ASSISTANT, USER]}, "no answer: `answer` must be there, or the assistant's as the last message"),
    *[({"question": "Which?", **none}, "no answer: ") for none in NO_ANSWERS],
    *[({"messages": [USER], **none}, "no answer: ") for none in NO_ANSWERS],
    *[({"messages": [USER, {**ASSISTANT, "content": empty}]}, "no answer") for empty in ("", [], [text(" ")])],
    *[({"messages": wrong}, "messages is no list") for wrong in ("Hi", 5, {"role": "user"}, ["Hi"], [USER, None])],
    *[({"messages": [USER, {**ASSISTANT, "content": wrong}]}, "the assistant's content") for wrong in (None, ["Hi"])],
    *[({"texts": 5}, "texts is no list"), ({"texts": "ab"}, "turn 1 of texts has no user or no assistant")],
    ({"texts": [TURN, {"user": "c"}]}, "turn 2 of texts has no user or no assistant"),
    ({"texts": [TURN, {"user": "c", "assistant": "\n"}]}, "no answer"),
    *[({**QUESTION, "images": wrong}, "images is no list") for wrong in ("a.png", 5)],
    *[({**QUESTION, "choices": wrong}, "choices is no list of up to 26") for wrong in ("A, B", 5, ["x"] * 27)],
    *[
        ({**QUESTION, "split": 1}, "split is 1, must be true"),
        ({**QUESTION, "max_tiles": True}, "max_tiles is True, must be"),
    ],
    ({**QUESTION, "longest_edge": 512.0}, "longest_edge is 512.0, must be a whole number"),
    ({**QUESTION, "max_tiles": "5" * 99}, f"max_tiles is '{'5' * 75}...', must be a whole"),
]


@pytest.mark.parametrize(("raw", "said"), WRONG, ids=lambda value: str(value)[:60])
def test_rows_that_are_none(raw: Any, said: str) -> None:
    assert outcome(Row("here", raw)).startswith(said)


KEYS = "messages question answer answers images image texts choices category role content type path user".split()
VALUES = st.none() | st.booleans() | st.integers() | st.sampled_from(["assistant", "user", "image", "", "x"])
TREES = st.recursive(VALUES, lambda tree: st.lists(tree) | st.dictionaries(st.sampled_from(KEYS), tree), max_leaves=8)


@given(st.dictionaries(st.sampled_from(KEYS), TREES))
def test_any_row(raw: dict[str, Any]) -> None:
    assert outcome(Row("here", raw)).strip()


def test_bad_lines_are_rows(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    good = json.dumps({**QUESTION, "image": "a.png", "category": "a\u2028b\x85c"}, ensure_ascii=False)
    file.write_text(f"\ufeff{good}\n\n  \n{{bad\n5\n{'[' * 100_000}\n{good}", encoding="utf-8")
    rows = read_rows(str(file))
    assert [row.where for row in rows] == [f"data.jsonl:{line}" for line in (1, 4, 5, 6, 7)]
    said = ["this", "no JSON (Expecting property name", "a int, not an object", "no JSON (", "this"]
    assert all(outcome(row).startswith(start) for row, start in zip(rows, said, strict=True))
    assert make_sample(rows[0]).messages[0]["content"][0] == {**IMAGE, "path": str(tmp_path / "a.png")}


UNREADABLE = "cannot be read (.*); it must be JSON lines in UTF-8"


@pytest.mark.parametrize(("content", "said"), [("", "no rows"), ("\n \n", "no rows"), ('{}\n"é"', UNREADABLE)])
def test_files_without_rows(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=rf"data\.jsonl: {said}$"):
        read_rows(file)


@pytest.mark.parametrize("source", "nothing nothing.jsonl data/nothing.jsonl /a/b ./a ../b a/b/c a/".split())
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)  # which would not help
    with pytest.raises(DataError, match=r"no such file or folder, and no hub dataset id like owner/name$"):
        read_rows(source)


@pytest.mark.parametrize("source", [".", "owner/name"])
def test_without_datasets(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=rf"^{source} is no JSONL file; folders and hub datasets need: pip install "):
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
        metadata = [{"file_name": f"{number}.png", "question": "Which?", "answer": number} for number in range(size)]
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
    with pytest.raises(DataError, match=r"no part train; there are validation, test$"):
        read_rows(tmp_path, "train")


def test_stored_pictures(tmp_path: Path, hub: Any) -> None:
    """As hub datasets have them: bytes in lists, and in the parts of messages; not decoded before their time."""
    stored = {"bytes": b"no picture", "path": "a.png"}
    empty = dict.fromkeys(["text", "path", "image"])
    user = [{**empty, **IMAGE}, {**empty, **IMAGE, "image": stored}, {**empty, **IMAGE, "path": "b.png"}]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": [{**empty, **text("this")}]}]
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
    normalize_messages([message])


def test_no_dataset(tmp_path: Path, hub: Any) -> None:
    with pytest.raises(DataError, match="doesn't contain any data files"):
        read_rows(tmp_path)
    (tmp_path / f"{tmp_path.name}.py").touch()
    with pytest.raises(DataError, match="Dataset scripts"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match=r"^owner/name-of-none: "):
        read_rows("owner/name-of-none")
