"""Pictures stand where the text says; more or fewer than that are refused with both counts."""

from pathlib import Path
from typing import Any

from smolvlm_mlx.data.placeholders import place
from smolvlm_mlx.errors import DataError, PromptError
from tests.support.messages import text
from tests.support.rows import IMAGE

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

A, B, C = ({**IMAGE, "path": f"{name}.png"} for name in "abc")
CLIP = {"type": "video", "path": "a.mp4"}


def placed(content: Any, *images: Any, videos: Any = (), role: str = "user") -> Any:
    pools = [dict(enumerate(parts, 1)) for parts in (images, videos)]
    return place([{"role": role, "content": content}], pools[0], pools[1], Path())[0]["content"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("<image>\nWhich?", [A, text("Which?")]),
        ("Which?\n<image>", [text("Which?"), A]),
        ("<image>", [A]),
        ("Is <image> it?", [text("Is "), A, text(" it?")]),
        ("Which?", [A, text("Which?")]),  # first, as nothing says where
        ("<|image|>Which?", [A, text("Which?")]),
        ("Is it <image 1>?", [text("Is it "), A, text("?")]),
        ([text("Which?"), IMAGE], [text("Which?"), A]),
        ([text("Which?"), {**IMAGE, "index": 0, "text": None}], [text("Which?"), A]),
        ([{**IMAGE, "image": None, "path": None}, text("<b>")], [A, text("<b>")]),
        ([text("Which?")], [A, text("Which?")]),
        ([{"type": "audio"}], [A, {"type": "audio"}]),
    ],
)
def test_one_picture(content: Any, parts: list[Any]) -> None:
    assert placed(content, A) == parts


def test_several_pictures_are_in_order_or_by_number() -> None:
    assert placed("<image>or<image>?", A, B) == [A, text("or"), B, text("?")]
    assert placed("<image 2> or <image1>?", A, B) == [B, text(" or "), A, text("?")]
    assert placed("<image 2>?", A, B, C) == [A, C, B, text("?")]
    index = [{**IMAGE, "index": 1}, {**IMAGE, "index": 0}]
    assert placed(index, A, B) == [B, A]


def test_pictures_and_videos_are_counted_apart() -> None:
    assert placed("<video>or<image>?", A, videos=[CLIP]) == [CLIP, text("or"), A, text("?")]
    assert placed("Which?", A, videos=[CLIP]) == [CLIP, A, text("Which?")]


def test_a_place_of_a_picture_is_a_videos_if_there_are_only_videos() -> None:
    assert placed("<image>\nWhich?", videos=[CLIP]) == [CLIP, text("Which?")]


def test_a_picture_goes_to_the_first_user() -> None:
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]
    made = place(turns, {1: A}, {}, Path())
    assert [message["content"] for message in made] == ["x", [A, text("x")], "x", "x"]
    with pytest.raises(DataError, match="no message of a user"):
        placed("x", A, role="system")


def test_pictures_of_the_messages_are_not_shown_again() -> None:
    own = [A, text("Which?")]
    assert placed(own) == placed(own, A) == own
    assert placed([A, IMAGE], B) == [A, B]
    with pytest.raises(DataError, match="2 images of the row, and 1 others in its messages"):
        placed(own, A, B)


@pytest.mark.parametrize("content", ["Which <b>?", "a < b", "<images>", "<image_url>", ""])
def test_other_marks_stay_text(content: str) -> None:
    assert placed(content) == content


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 4), st.integers(0, 4), st.booleans())
def test_counts_that_differ_are_refused_with_both(slots: int, images: int, parts: bool) -> None:
    content: Any = [*[IMAGE] * slots, text("x")] if parts else "<image>" * slots + "x"
    if slots in (0, images):
        found = placed(content, *[A] * images)
        assert found == [*[A] * images, text("x")] or (not images and found in ("x", content))
    else:
        plural = "" if images == 1 else "s"
        with pytest.raises(
            DataError, match=f"^{slots} <image> in the messages, but {images} image{plural}$"
        ):
            placed(content, *[A] * images)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<image 3>", "<image 3> in the text, and no such image in the row"),
        ([{**IMAGE, "index": 7}], "<image 8> in the text, and no such image"),
        ("<video>", "1 <video> in the messages, but 0 videos"),
        ("<image 1> <image>", "2 <image> in the messages, but 1 image"),
    ],
)
def test_a_place_without_its_picture_is_refused(content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        placed(content, A)


def test_no_answer_shows_a_picture() -> None:
    with pytest.raises(DataError, match="in the assistant's words"):
        placed("see <image>", A, role="assistant")


@pytest.mark.parametrize("content", [None, 5, ["x"], [{"type": "text"}]])
def test_what_is_no_content_is_refused(content: Any) -> None:
    with pytest.raises(PromptError):
        placed(content)
