"""Pictures and videos are found in whatever column they stand, or the row is refused by name: none
is lost."""

import base64
import io
from pathlib import Path
from typing import Any

from smolvlm_mlx.data.columns import IMAGES, VIDEOS, is_near
from smolvlm_mlx.data.rows import Row
from smolvlm_mlx.data.samples import make_sample
from smolvlm_mlx.errors import FetchError
from tests.support.messages import text
from tests.support.pictures import noise
from tests.support.rows import IMAGE, QUESTION, outcome

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

FOLDER = Path("/data/set")
PNG = io.BytesIO()
noise(8, 8).save(PNG, "PNG")
BASE64 = base64.b64encode(PNG.getvalue()).decode()
DECODED = Image.new("RGB", (8, 8))
A = {**IMAGE, "path": "/data/set/a.jpg"}
CLIP = {"type": "video", "path": "/data/set/a.mp4"}


def shown(**raw: Any) -> list[Any]:
    """The parts of a question that are no text."""
    content = make_sample(Row("here", {**QUESTION, **raw}, FOLDER)).messages[0]["content"]
    return [part for part in content if part["type"] != "text"] if content != "Which?" else []


def said(**raw: Any) -> str:
    return outcome(Row("here", {**QUESTION, **raw}, FOLDER))


# ---- which column


@pytest.mark.parametrize("column", [*IMAGES, "image_1", "image1", "picture_2"])
def test_a_picture_in_any_usual_column_is_shown(column: str) -> None:
    assert shown(**{column: "a.jpg"}) == [A]
    assert shown(**{column: None}) == shown(**{column: ""}) == shown(**{column: []}) == []
    if column in IMAGES:
        assert shown(**{column: ["a.jpg", "a.jpg"]}) == [A, A]


@pytest.mark.parametrize("column", [*VIDEOS, "video_1"])
def test_a_video_in_any_usual_column_is_shown(column: str) -> None:
    assert shown(**{column: "a.mp4"}) == [CLIP]
    assert shown(**{column: "https://a.b/c"}) == [{"type": "video", "url": "https://a.b/c"}]


@pytest.mark.parametrize("column", ["file_name", "filename", "image", "img_path"])
def test_a_video_file_is_a_video_in_columns_of_pictures_too(column: str) -> None:
    assert shown(**{column: "a.mp4"}) == [CLIP]


def test_what_only_begins_as_a_url_is_a_picture_of_that_name() -> None:
    assert shown(image="http://[x.jpg") == [{**IMAGE, "url": "http://[x.jpg"}]


def test_columns_with_numbers_are_in_their_order() -> None:
    found = shown(image_10="c.jpg", image_2="b.jpg", image_1="a.jpg", image_3=None)
    assert [part["path"][-5:] for part in found] == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_picture_and_a_video_are_both_shown() -> None:
    assert shown(image="a.jpg", video="a.mp4") == [CLIP, A]
    assert shown(video="a.mp4", start=1, end="2.5") == [{**CLIP, "start": 1.0, "end": 2.5}]


@pytest.mark.parametrize("start", ["soon", True, [1], 10**400])
def test_times_are_seconds(start: object) -> None:
    assert said(video="a.mp4", start=start).startswith("start is ")
    assert said(video="a.mp4", start=start).endswith(", not the seconds of the video")


def test_frames_are_one_video() -> None:
    frames = [{"path": f"/data/set/{number}.png"} for number in (1, 2)]
    assert shown(video=["1.png", "2.png"]) == [{"type": "video", "frames": frames}]
    assert shown(videos=[["1.png", "2.png"]]) == [{"type": "video", "frames": frames}]
    assert shown(videos=["a.mp4", "a.mp4"]) == [CLIP, CLIP]


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ({"image": "a.jpg", "photo": "b.jpg"}, ("image", "photo")),
        ({"image_path": "a.jpg", "images": ["b.jpg"]}, ("image_path", "images")),
        ({"image": b"PNG", "img": b"GIF"}, ("image", "img")),
        ({"image": b"PNG", "images": [{"bytes": b"GIF"}]}, ("image", "images")),
        ({"image": b"PNG", "images": ["a.jpg", "b.jpg"]}, ("image", "images")),
        ({"image": "a.jpg", "image_1": "b.jpg"}, ("image", "image_1")),
        ({"video": "a.mp4", "video_path": "b.mp4"}, ("video", "video_path")),
        ({"image_1": "a.jpg", "image1": "b.jpg"}, ("image_1", "image1")),
    ],
)
def test_two_columns_that_could_be_the_picture_are_both_named(
    raw: dict[str, Any], names: tuple[str, str]
) -> None:
    assert said(**raw).startswith(f"{names[0]} and {names[1]} both hold a ")


@pytest.mark.parametrize("held", [b"PNG", DECODED, {"bytes": b"PNG", "path": "a.jpg"}])
def test_names_of_a_picture_that_is_there_are_no_second_one(held: Any) -> None:
    names = {"file_name": "a.jpg", "image_url": "https://a.b/c.jpg", "source": "x/a.jpg"}
    assert shown(image=held, **names) == shown(image=held)
    assert shown(images=[held] * 2, **names) == shown(images=[held] * 2)
    assert shown(image=held, images=[held]) == shown(image=held)
    assert shown(image="a.jpg", image_path="a.jpg", thumb="https://a.b/c.jpg") == [A]


@pytest.mark.parametrize(
    "beside",
    [
        {"image_url": "https://a.b/c.jpg"},
        {"images": ["x/a.jpg"]},
        {"file_name": "a.jpg"},
        {"image_id": 5, "mask": {"bytes": b"PNG"}, "segmentation_mask": DECODED},
        {"source": "coco/b.jpg", "data_source": "b.jpg", "license": "https://a.b/c"},
        {"metadata": {"image": "b.jpg"}, "annotations": [{"image": "b.jpg"}], "id": "b.jpg"},
        {"depth_path": "b.png", "thumbnail": "b.png"},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_what_is_about_a_picture_is_no_second_one(beside: dict[str, Any]) -> None:
    assert shown(image="x/a.jpg", **beside) == [{**A, "path": "/data/set/x/a.jpg"}]


def test_the_name_of_a_video_is_no_second_one() -> None:
    assert shown(video="x/a.mp4", link="a.mp4") == [{**CLIP, "path": "/data/set/x/a.mp4"}]


# ---- what would be lost


def test_a_video_beside_a_picture_is_not_its_origin() -> None:
    assert said(image=b"PNG", link="https://a.b/c.mp4").startswith("column 'link' holds a video")
    assert said(image="a.jpg", film="a.mp4").startswith("column 'film' holds a video")


@pytest.mark.parametrize("column", ["image_after", "source_image", "edited"])
def test_a_second_picture_is_not_beside_the_first(column: str) -> None:
    assert said(image="a.jpg", **{column: "b.jpg"}).startswith(f"column '{column}' holds a picture")
    assert said(source="b.jpg").startswith("column 'source' holds a picture")


LOST: list[Any] = [
    *["a.jpg", "b/a.PNG", "my a.webp", "a.mp4", "https://a.b/c.png?size=3", BASE64],
    *["data:image/png;base64,AAAA", b"PNG", DECODED, {"bytes": b"PNG"}, {"path": "a.jpg"}],
    *[["a.jpg", "b.jpg"], [{"bytes": None, "path": "a.tif"}], {"url": "https://a.b/c.png"}],
    dict.fromkeys(["bytes", "url", "base64", "image", "video"]) | {"path": "a.jpg"},
]


@pytest.mark.parametrize("value", LOST, ids=lambda value: str(value)[:30])
def test_a_picture_in_an_unknown_column_is_refused_by_name(value: Any) -> None:
    assert said(bild=value).startswith("column 'bild' holds a ")
    assert "; rename it to " in said(bild=value)
    if not isinstance(value, str) or not value.startswith("https"):
        assert said(bild=value, image="other.jpg").startswith("column 'bild' holds a ")


@pytest.mark.parametrize(
    "value",
    [
        *[None, "", [], {}, 5, "words", "a.txt", "see a.jpg\nor b.jpg", "https://a.b/watch?v=1"],
        *[{"source": "x", "image_path": "a.jpg"}, [1, 2], ["a", "b"], True, "A" * 63],
    ],
    ids=lambda value: str(value)[:30],
)
def test_columns_of_other_things_are_left_alone(value: Any) -> None:
    assert said(notes=value) == "this"


@pytest.mark.parametrize("column", ["image_id", "video_id", "videoID"])
def test_a_picture_that_is_only_named_is_told(column: str) -> None:
    parts = [{"role": "user", "content": [text("Which?")]}]
    for raw in (QUESTION, {"messages": parts, "answer": "this"}):
        assert outcome(Row("here", {**raw, column: 123})).startswith(f"{column} names a ")
    assert said(**{column: 123}, image="a.jpg", video="a.mp4") == "this"


@pytest.mark.parametrize(
    ("raw", "near"),
    [
        ({"question": "Which?", "anwser": "x"}, "answer"),
        ({"question": "Which?", "awnser": "x"}, "answer"),
        ({"question": "Which?", "respone": "x"}, "response"),
        ({"queston": "Which?", "answer": "x"}, "question"),
        ({"mesages": [], "answer": "x"}, "messages"),
        ({"conversatons": [1]}, "conversations"),
    ],
)
def test_a_mistyped_column_that_is_needed_is_told_with_its_name(
    raw: dict[str, Any], near: str
) -> None:
    wrong = next(name for name in raw if name not in ("question", "answer"))
    text = outcome(Row("here", raw))
    assert text.startswith((f"column '{wrong}' is not known; rename it to {near}", "n"))
    assert text.endswith((f"rename it to {near}", f"; column '{wrong}' looks like {near}"))


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("imgae", "image"), ("vidoe", "video"), ("choises", "choices"), ("catgory", "category")],
)
def test_a_mistyped_column_that_may_be_left_out_is_told(wrong: str, near: str) -> None:
    assert said(**{wrong: "a"}) == f"column '{wrong}' is not known; rename it to {near}"


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        *[("imgae", "image", True), ("imag", "image", False), ("images_", "images", True)],
        *[("question_id", "question", False), ("stage", "image", False), ("usage", "image", False)],
        *[("table", "label", False), ("queue", "query", False), ("message_id", "messages", False)],
    ],
)
def test_words_are_near_by_a_letter(one: str, other: str, near: bool) -> None:
    assert is_near(one, other) is near


# ---- where a picture lies


PLACES: list[tuple[str, dict[str, Any]]] = [
    ("a.jpg", {"path": "/data/set/a.jpg"}),
    ("../b c/ä.jpg", {"path": "/data/set/../b c/ä.jpg"}),
    ("/x/a.jpg", {"path": "/x/a.jpg"}),
    ("~/a.jpg", {"path": str(Path.home() / "a.jpg")}),
    ("~nobody-of-this-name/a.jpg", {"path": "/data/set/~nobody-of-this-name/a.jpg"}),
    ("file:///x/a%20b.jpg", {"path": "/x/a b.jpg"}),
    ("https://a.b/c.jpg", {"url": "https://a.b/c.jpg"}),
    ("data:image/png;base64,AAAA", {"url": "data:image/png;base64,AAAA"}),
    (BASE64, {"base64": BASE64}),
]


@pytest.mark.parametrize(("text", "place"), PLACES, ids=lambda value: str(value)[:30])
def test_one_rule_for_every_place_of_a_path(text: str, place: dict[str, Any]) -> None:
    """Columns, lists, objects, parts of messages, frames and markers."""
    want = {**IMAGE, **place}
    assert shown(image=text) == shown(images=[text]) == shown(image={"path": text}) == [want]
    for part in ({"image": text}, {"path": text}, {"url": text}, {"image": {"path": text}}):
        assert parts({**IMAGE, **part}) == [want]
    assert parts({"type": "image_url", "image_url": {"url": text}}) == [want]
    assert parts({"image": text}) == [want]
    assert parts({"type": "text", "text": f"<img>{text}</img>"}) == [want]
    assert shown(video=[[text]]) == [{"type": "video", "frames": [place]}]


def test_a_file_of_another_machine_is_told() -> None:
    with pytest.raises(FetchError, match=r"'file://server/a\.jpg' names a file of another machine"):
        shown(image="file://server/a.jpg")


def parts(part: dict[str, Any]) -> list[Any]:
    raw = {"messages": [{"role": "user", "content": [part]}], "answer": "this"}
    content: list[Any] = make_sample(Row("here", raw, FOLDER)).messages[0]["content"]
    return [{k: v for k, v in each.items() if v is not None} for each in content]


VALUES = st.recursive(
    st.sampled_from([None, True, 5, 0.5, float("nan"), "", "x", b"", b"x", DECODED])
    | st.sampled_from(["a.jpg", "a.mp4", BASE64, "https://a.b/c.png"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["path", "bytes", "url", "image", "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.sampled_from([*IMAGES[:4], *VIDEOS[:2], "image_1", "x", "y"]), VALUES))
def test_any_row_is_refused_in_a_line_or_shows_its_picture(raw: dict[str, Any]) -> None:
    text = said(**raw)
    assert text
    if text == "this" and any(value in ("a.jpg", "a.mp4", BASE64) for value in raw.values()):
        assert shown(**raw)
