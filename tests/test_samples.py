"""Rows of all forms to conversations; what is wrong with a row is said of that row."""

import math
from datetime import date
from pathlib import Path
from typing import Any

from smolvlm_mlx.data.rows import Row
from smolvlm_mlx.data.samples import Sample, make_sample
from smolvlm_mlx.errors import DataError
from smolvlm_mlx.inputs.settings import ImageOptions
from tests.support.messages import text
from tests.support.rows import IMAGE, QUESTION, outcome

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path("/data/set")
B = {**IMAGE, "path": "/data/set/b.png"}
USER = {"role": "user", "content": "Which?"}
ASSISTANT = {"role": "assistant", "content": "This."}
TURN = {"user": "Which?", "assistant": "This."}


def sample(**raw: Any) -> Sample:
    return make_sample(Row("here", raw, FOLDER))


def test_question() -> None:
    made = sample(image="a/cat.png", question="Which?", answers=["this", "that"], category="cats")
    content = [{**IMAGE, "path": "/data/set/a/cat.png"}, text("Which?")]
    assert made == Sample([{"role": "user", "content": content}], ("this", "that"), category="cats")
    assert made.whole == [*made.messages, {"role": "assistant", "content": "this"}]
    without: list[dict[str, Any]] = [{}, {"image": None}, {"images": None}, {"images": []}]
    assert all(sample(**QUESTION, **none).messages[0]["content"] == "Which?" for none in without)


PICTURES: list[tuple[Any, dict[str, Any]]] = [
    *[("cat.png", {"path": "/data/set/cat.png"}), ("../cat.png", {"path": "/data/set/../cat.png"})],
    ("/elsewhere/cat.png", {"path": "/elsewhere/cat.png"}),
    *(
        (url, {"url": url})
        for url in ("https://a.b/c.png", "http://a.b/c.png", "data:image/png;base64,AAAA")
    ),
    *[
        ({"path": "cat.png"}, {"path": "/data/set/cat.png"}),
        ({"base64": "AAAA"}, {"base64": "AAAA"}),
    ],
    *[({"bytes": b"PNG", "path": "cat.png"}, {"image": b"PNG"}), (b"PNG", {"image": b"PNG"})],
    ({"bytes": None, "path": "cat.png"}, {"path": "/data/set/cat.png"}),
]


@pytest.mark.parametrize(("image", "part"), PICTURES, ids=str)
def test_pictures(image: Any, part: dict[str, Any]) -> None:
    want = {**IMAGE, **part}
    for raw, pictures in (
        ({"image": image, "images": []}, [want]),
        ({"images": [image, "b.png"]}, [want, B]),
    ):
        messages = sample(**raw, **QUESTION).messages
        assert messages == [{"role": "user", "content": [*pictures, text("Which?")]}]


@pytest.mark.parametrize(
    ("answer", "right"), [(2, "6"), ("0", "2"), ("4", "4"), ("C", "C"), ("6", "6")]
)
def test_a_number_among_choices_is_an_index(answer: object, right: str) -> None:
    assert sample(question="Which?", options=["2", "4", "6"], answer=answer).answers == (right,)


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [([2, 4, 6], 4, "4"), ([2, 4, 6], 1, "4"), ([0.5, 1.5], 1.5, "1.5"), ("[2, 4]", 4, "4")],
)
def test_a_number_among_numbers_is_the_one_that_is_written_so(
    choices: Any, answer: object, right: str
) -> None:
    assert sample(question="Which?", choices=choices, answer=answer).answers == (right,)


@pytest.mark.parametrize(
    "answer", ["b", "(B)", "B. that", "That", "that ", 1, ["that", "no"], ["no", "that"]]
)
def test_the_letter_of_the_answer_is_learned_however_it_is_given(answer: object) -> None:
    name = "answers" if isinstance(answer, list) else "answer"
    for picture in ({}, {"image": "b.png"}):
        made = sample(question="Which?", choices=["this", "that"], **{name: answer}, **picture)
        assert made.whole[-1]["content"] == "B"


def test_what_the_conversation_says_is_learned_and_the_answers_are_compared() -> None:
    made = sample(messages=[USER, {**ASSISTANT, "content": "2 + 2. So 4"}], answers=["4", "four"])
    assert (made.answers, made.whole[-1]["content"]) == (("4", "four"), "2 + 2. So 4")


@pytest.mark.parametrize(
    "answers", [["a", "b"], '["a", "b"]', "['a', 'b']", {"text": ["a", "b"], "answer_start": [1]}]
)
def test_answers_are_several_however_they_are_stored(answers: object) -> None:
    assert sample(question="Which?", answers=answers).answers == ("a", "b")


@pytest.mark.parametrize("name", ["train", "Train", "val2014", "test-std"])
def test_a_split_of_a_dataset_is_no_setting(name: str) -> None:
    assert sample(**QUESTION, split=name) == sample(**QUESTION)


def test_choices() -> None:
    made = sample(question="Which?", choices=["one", 2, "three"], answer="B")
    asked = "Which?\nA. one\nB. 2\nC. three\nAnswer with the letter."
    assert made.messages[0]["content"] == asked
    assert (made.choices, made.answers) == (("one", "2", "three"), ("B",))
    most = sample(**QUESTION, choices=["this"] * 26)
    assert most.messages[0]["content"].count("\n") == 27


NO_ANSWERS: list[Any] = [
    {},
    {"answer": None},
    {"answer": " \n"},
    {"answers": []},
    {"answers": ["", None]},
    {"answers": ["x", None, "y"]},
    {"answer": math.nan},
    {"response": ""},
]
ANSWERS: list[Any] = [
    *[
        ({"answer": "x"}, ("x",)),
        ({"answer": 3}, ("3",)),
        ({"answer": 0}, ("0",)),
        ({"answers": "x"}, ("x",)),
    ],
    *[({"answers": ["x", 2.5]}, ("x", "2.5")), ({"answers": ["x", "y", "x"]}, ("x", "y", "x"))],
    *[({"answers": ["y"], "answer": "x"}, ("y",)), ({"answers": None, "answer": "x"}, ("x",))],
    *[({"answers": ["", "y"]}, ("", "y")), ({"answers": [], "answer": "x"}, ("x",))],
    # Objects and lists are JSON, as are true and false; people of VQAv2 say their `answer`.
    ({"answer": {"total": "12.50", "é": None}}, ('{"total": "12.50", "é": null}',)),
    *[({"answer": [1, 2.5]}, ("[1, 2.5]",)), ({"answer": True}, ("true",))],
    ({"answers": [{"answer": "red", "answer_id": 1}, {"answer": "blue"}]}, ("red", "blue")),
    ({"answer": {"when": date(2026, 1, 2)}}, ('{"when": "2026-01-02"}',)),
    ({"answers": [["a"], False, {"b": 1}]}, ('["a"]', "false", '{"b": 1}')),
]


@pytest.mark.parametrize(("found", "answers"), ANSWERS)
def test_answers(found: dict[str, Any], answers: tuple[str, ...]) -> None:
    assert sample(question="Which?", **found).answers == answers
    assert sample(messages=[USER], **found).answers == answers
    made = sample(messages=[USER, ASSISTANT], **found)  # in the place of the last message
    assert (made.messages, made.answers) == ([USER], answers)


def test_columns_in_any_case() -> None:
    """As spreadsheets head them."""
    want = sample(image="a.png", question="Which?", answer="this", category="x")
    assert sample(Image="a.png", Question="Which?", ANSWER="this", **{" Category ": "x"}) == want
    assert sample(question="Which?", answer="this", Answer="that").answers == ("this",)
    with pytest.raises(DataError, match="column 'IMAGE' holds a picture that would be lost"):
        sample(question="Which?", answer="this", Image="a.png", IMAGE="b.png")


def test_options() -> None:
    options = {"split": False, "longest_edge": 512, "max_tiles": 5}
    assert sample(**QUESTION, **options).image_options.given == options
    assert sample(**QUESTION, max_tiles=5, split=None, other=1).image_options == ImageOptions(
        max_tiles=5
    )


@pytest.mark.parametrize("missing", [None, math.nan])
def test_an_answer_of_several_that_is_missing_is_named(missing: object) -> None:
    with pytest.raises(DataError, match="answers holds null, number 2 of 3"):
        sample(question="?", answers=["x", missing, "y"])


@pytest.mark.parametrize("empty", [None, "", math.nan])
def test_a_category_that_is_empty_is_none(empty: object) -> None:
    assert sample(**QUESTION, category=empty).category == ""
    assert sample(**QUESTION, category=3).category == "3"


def test_messages() -> None:
    system = {"role": "system", "content": "Be short."}
    made = sample(
        messages=[
            system,
            USER,
            ASSISTANT,
            USER,
            {"role": "assistant", "content": [text("So"), text(".")]},
        ]
    )
    assert (made.messages, made.answers) == ([system, USER, ASSISTANT, USER], ("So.",))
    assert made.whole == [system, USER, ASSISTANT, USER, {"role": "assistant", "content": "So."}]


def test_pictures_of_messages() -> None:
    """Parts without a picture get those of `images`, in order; those with one keep it."""
    own = [
        {**IMAGE, "path": "own.png", "url": None},
        {**IMAGE, "image": {"bytes": b"PNG", "path": None}},
    ]
    first = {
        "role": "user",
        "content": [text("See"), IMAGE, own[0], own[1], {**IMAGE, "text": "", "path": None}],
    }
    second = {"role": "user", "content": [IMAGE, text("Which?")]}
    made = sample(
        messages=[first, ASSISTANT, second, ASSISTANT], images=["a.png", "https://b.c/d", b"GIF"]
    )
    paths = [{**IMAGE, "path": f"/data/set/{name}.png"} for name in ("a", "own")]
    want = [text("See"), *paths, {**IMAGE, "image": b"PNG"}, {**IMAGE, "url": "https://b.c/d"}]
    assert made.messages[0]["content"] == want
    assert made.messages[2]["content"] == [{**IMAGE, "image": b"GIF"}, text("Which?")]
    with pytest.raises(DataError, match="3 <image> in the messages, but 2 images"):
        sample(messages=[first, ASSISTANT, second, ASSISTANT], images=["a.png", b"GIF"])


def test_turns() -> None:
    made = sample(
        images=["b.png"], texts=[TURN, {"user": "Sure?", "assistant": "Yes.", "source": "x"}]
    )
    first, second = [B, text("Which?")], "Sure?"
    assert made.messages == [
        {"role": "user", "content": first},
        ASSISTANT,
        {"role": "user", "content": second},
    ]
    assert made.answers == ("Yes.",)


SAYS_NOTHING = "the assistant's last message is empty"
WRONG: list[tuple[Any, str]] = [
    *[(["question"], "a list, not an object"), (None, "a NoneType, not an object")],
    *[
        ({}, "neither messages, nor question and answer, nor a caption of a picture"),
        ({"messages": []}, "neither messages"),
    ],
    (
        {"messages": [{"role": "user", "content": [IMAGE]}, ASSISTANT], "images": ["a", "b"]},
        "1 <image> in the messages, but 2 images",
    ),
    (
        {"question": "Which?", "options": ["2", "4"], "answer": 2},
        "answer '2' is the number of none",
    ),
    ({"question": "Which?", "options": ["2", "4"], "answer": -1}, "answer '-1' is the number of"),
    (
        {"messages": [ASSISTANT, USER]},
        "no answer: `answer` must be there, or the assistant's as the last message",
    ),
    *[({"question": "Which?", **none}, "no answer: ") for none in NO_ANSWERS],
    *[({"messages": [USER], **none}, "no answer: ") for none in NO_ANSWERS],
    *[
        ({"messages": [USER, {**ASSISTANT, "content": empty}]}, f"no answer: {said}")
        for empty, said in (
            *[("", SAYS_NOTHING), (None, SAYS_NOTHING), ([], SAYS_NOTHING)],
            ([text(" ")], "the conversation is empty"),
        )
    ],
    *[
        ({"messages": wrong}, "messages is no list")
        for wrong in ("Hi", 5, {"role": "user"}, ["Hi"], [USER, None])
    ],
    *[
        ({"messages": [USER, {**ASSISTANT, "content": wrong}]}, "the assistant's ")
        for wrong in (["Hi"], [IMAGE, text("Hi")], [{"type": "thinking", "thinking": "Hm"}])
    ],
    ({"messages": [ASSISTANT]}, "no question: nothing is said before the answer"),
    ({"messages": [{**USER, "images": []}, ASSISTANT]}, "This."),
    *[
        ({"messages": [{**USER, key: value}, ASSISTANT]}, "message 1 holds a picture or video")
        for key, value in (("images", ["a.png"]), ("image", "a.png"), ("video", b"MP4"))
    ],
    (
        {"messages": [{**USER, "content": [{**text("Hi"), "image": "a.png"}]}, ASSISTANT]},
        "a text part ",
    ),
    ({"texts": [{"user": "Hi", "assistant": "Ho", "image": "a.png"}]}, "turn 1 of texts holds"),
    *[
        ({"question": "Which?", "choices": ["this", "that"], "answer": wrong}, f"answer '{wrong}' ")
        for wrong in ("C", "these", "(D)", "true")
    ],
    *[
        ({"texts": 5}, "texts is no list"),
        ({"texts": "ab"}, "turn 1 of texts has no user or no assistant"),
    ],
    ({"texts": [TURN, {"user": "c"}]}, "turn 2 of texts has no user or no assistant"),
    ({"texts": [TURN, {"user": "c", "assistant": "\n"}]}, "no answer"),
    *[({**QUESTION, "images": wrong}, "5 is not a picture") for wrong in (5, [5])],
    ({**QUESTION, "images": ["a.png", None]}, "images holds an empty one among its 2"),
    *[
        ({**QUESTION, "choices": wrong}, "choices is no list of up to 26")
        for wrong in ("A, B", 5, ["x"] * 27)
    ],
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


KEYS = (
    "messages question answer answers images image texts choices category role content type path "
    "user conversations from value query response prompt completion instruction input history "
    "system caption text file_name video label image_1 start bytes A B"
).split()
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["assistant", "user", "image", "", "x", "<image>", "a.png", "a.mp4", "[1]"])
)
TREES = st.recursive(
    VALUES, lambda tree: st.lists(tree) | st.dictionaries(st.sampled_from(KEYS), tree), max_leaves=8
)


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.sampled_from(KEYS), TREES))
def test_any_row(raw: dict[str, Any]) -> None:
    assert isinstance(outcome(Row("here", raw)), str)
