"""The formats that people have become one conversation; answers are found where each has them."""

import json
from pathlib import Path
from typing import Any

from smolvlm_mlx.data.layouts import CAPTION_QUESTION, CAPTION_QUESTION_OF_VIDEOS
from smolvlm_mlx.data.rows import Row
from smolvlm_mlx.data.samples import Sample, make_sample
from tests.support.messages import text
from tests.support.rows import IMAGE, outcome

import pytest

FOLDER = Path("/data/set")
A = {**IMAGE, "path": "/data/set/a.png"}
B = {**IMAGE, "path": "/data/set/b.png"}
CLIP = {"type": "video", "path": "/data/set/a.mp4"}
USER = {"role": "user", "content": "Which?"}
ASKED = [{"role": "user", "content": [A, text("Which?")]}]
SYSTEM = {"role": "system", "content": "Be short."}


def sample(raw: dict[str, Any]) -> Sample:
    return make_sample(Row("here", raw, FOLDER))


def sharegpt(*turns: str, first: str = "human") -> list[dict[str, str]]:
    second = {"human": "gpt", "user": "assistant"}[first]
    names = ("role", "content") if first == "user" else ("from", "value")
    return [
        dict(zip(names, (second if number % 2 else first, turn), strict=True))
        for number, turn in enumerate(turns)
    ]


ONE: dict[str, dict[str, Any]] = {
    "LLaVA": {"id": "1", "image": "a.png", "conversations": sharegpt("<image>\nWhich?", "This.")},
    "LLaVA without a placeholder": {"image": "a.png", "conversations": sharegpt("Which?", "This.")},
    "ShareGPT with roles": {
        "images": "a.png",
        "conversations": sharegpt("<image>Which?", "This.", first="user"),
    },
    "TRL": {
        "images": ["a.png"],
        "messages": [
            {"role": "user", "content": [IMAGE, text("Which?")]},
            {"role": "assistant", "content": [text("This.")]},
        ],
    },
    "llava-instruct-mix-vsft": {
        "images": [{"bytes": None, "path": "a.png"}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"index": 0, "text": None, "type": "image"},
                    {"index": None, "text": "Which?\n", "type": "text"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"index": None, "text": "This.", "type": "text"}],
            },
        ],
    },
    "LlamaFactory": {
        "images": ["a.png"],
        "messages": sharegpt("<image>Which?", "This.", first="user"),
    },
    "Alpaca": {"instruction": "<image>Which?", "input": "", "output": "This.", "images": ["a.png"]},
    "prompt and completion": {"image": "a.png", "prompt": "Which?", "completion": "This."},
    "TRL prompt and completion": {
        "images": ["a.png"],
        "prompt": [{"role": "user", "content": "Which?"}],
        "completion": [{"role": "assistant", "content": "This."}],
    },
    "TRL prompt and a text": {
        "images": ["a.png"],
        "prompt": [{"role": "user", "content": "Which?"}],
        "completion": "This.",
    },
    "ms-swift": {"query": "<image>Which?", "response": "This.", "images": ["a.png"]},
    "ms-swift with a marker": {"query": "<img>a.png</img>Which?", "response": "This."},
    "ms-swift messages": {
        "messages": sharegpt("<image>Which?", "This.", first="user"),
        "images": ["a.png"],
    },
    "in columns, as older datasets have them": {
        "image": "a.png",
        "conversations": {"from": ["human", "gpt"], "value": ["<image>\nWhich?", "This."]},
    },
    "as text": {"image": "a.png", "messages": json.dumps(sharegpt("<image>Which?", "This."))},
    "the_cauldron": {"images": ["a.png"], "texts": [{"user": "Which?", "assistant": "This."}]},
    "OpenAI": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    text("Which?"),
                ],
            },
            {"role": "assistant", "content": "This."},
        ]
    },
    "Qwen": {
        "messages": [
            {"role": "user", "content": [{"image": "a.png"}, {"text": "Which?"}]},
            {"role": "assistant", "content": "This."},
        ]
    },
    "Alpaca without an instruction": {"input": "Which?", "output": "This.", "image": "a.png"},
    **{
        f"ShareGPT's {who}": {
            "image": "a.png",
            "conversations": [
                {"from": "Human", "value": "Which?"},
                {"from": who, "value": "This."},
            ],
        }
        for who in ("GPT", "chatgpt", "Assistant", "model", "bot")
    },
    "question and label": {"image": "a.png", "question": "Which?", "label": "This."},
}


@pytest.mark.parametrize("name", ONE)
def test_one_question_about_a_picture_in_any_format(name: str) -> None:
    made = sample(ONE[name])
    content = [
        {**part, "text": part["text"].strip()} if part["type"] == "text" else part
        for part in made.messages[0]["content"]
    ]
    assert [{**made.messages[0], "content": content}] == ASKED
    assert made.answers == ("This.",)
    assert made.shows("image")
    assert not made.shows("video")
    assert made.whole[1:] == [{"role": "assistant", "content": "This."}]


def test_several_turns_and_a_system_message() -> None:
    want = [
        SYSTEM,
        *ASKED,
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "Sure?"},
    ]
    turns = ("<image>\nWhich?", "This.", "Sure?", "Yes.")
    pictures = {"image": "a.png", "system": "Be short."}
    for raw in (
        {"conversations": sharegpt(*turns), **pictures},
        {"conversations": [{"from": "system", "value": "Be short."}, *sharegpt(*turns)]}
        | {"image": "a.png"},
        {"messages": [SYSTEM, *sharegpt(*turns, first="user")], **pictures},
        {"query": "Sure?", "response": "Yes.", "history": [turns[:2]], **pictures},
        {"instruction": "Sure?", "output": "Yes.", "history": [list(turns[:2])], **pictures},
    ):
        made = sample(raw)
        assert (made.messages, made.answers) == (want, ("Yes.",))


def test_alpacas_input_follows_the_instruction() -> None:
    made = sample({"instruction": "Which?", "input": "Of two.", "output": "This."})
    assert made.messages == [{"role": "user", "content": "Which?\nOf two."}]


@pytest.mark.parametrize("column", ["caption", "text", "captions"])
def test_a_caption_answers_a_fixed_question(column: str) -> None:
    made = sample({"file_name": "a.png", column: "A cat."})
    assert made.messages == [{"role": "user", "content": [A, text(CAPTION_QUESTION)]}]
    assert made.answers == ("A cat.",)
    made = sample({"file_name": "a.mp4", column: "A cat runs."})
    assert made.messages[0]["content"] == [CLIP, text(CAPTION_QUESTION_OF_VIDEOS)]
    assert outcome(Row("here", {column: "A cat."})).startswith("neither messages, nor")


def test_several_captions_are_each_right() -> None:
    assert sample({"image": "a.png", "captions": ["One.", "Two."]}).answers == ("One.", "Two.")


def test_a_video_stands_where_its_placeholder_is() -> None:
    made = sample({"video": "a.mp4", "conversations": sharegpt("<video>\nWhich?", "This.")})
    assert made.messages[0]["content"] == [CLIP, text("Which?")]
    assert made.shows("video")


def test_two_pictures_in_one_text() -> None:
    raw = {
        "images": ["a.png", "b.png"],
        "messages": sharegpt("<image> or <image>?", "This.", first="user"),
    }
    assert sample(raw).messages[0]["content"] == [A, text(" or "), B, text("?")]


def test_an_answer_in_a_conversation_may_be_a_number_or_an_object() -> None:
    answers = {5: "5", 1.5: "1.5", True: "true"}
    said = [sample({"messages": [USER, {"role": "assistant", "content": n}]}) for n in answers]
    assert [made.answers[0] for made in said] == list(answers.values())
    made = sample({"messages": [USER, {"role": "assistant", "content": {"total": "12.50"}}]})
    assert made.answers == ('{"total": "12.50"}',)


# ---- choices


@pytest.mark.parametrize(
    "columns",
    [
        {"choices": ["cat", "dog"]},
        {"options": "['cat', 'dog']"},
        {"options": '["cat", "dog"]'},
        {"candidates": ("cat", "dog")},
        {"options": {"A": "cat", "B": "dog"}},
        {"A": "cat", "B": "dog", "C": None, "D": float("nan")},
        {"options": ["A. cat", "B. dog"]},
        {"options": ["(A) cat", "(B) dog"]},
        {"options": "A. cat\nB. dog\n"},
        {"options": {"b": "dog", "a": "cat"}},
        {"choices": {"text": ["cat", "dog"], "label": ["A", "B"]}},
    ],
)
def test_choices_in_any_form_are_listed_once(columns: dict[str, Any]) -> None:
    made = sample({"question": "Which?", **columns, "answer": "B"})
    assert made.choices == ("cat", "dog")
    asked = "Which?\nA. cat\nB. dog\nAnswer with the letter."
    assert made.messages == [{"role": "user", "content": asked}]
    listed = "Which?\n(A) cat\n(B) dog\n"
    made = sample({"question": listed, **columns, "answer": "B"})
    assert (made.messages[0]["content"], made.choices) == (listed, ("cat", "dog"))


@pytest.mark.parametrize("answer", ["dog", 1, "1", "B"])
def test_the_letter_that_is_asked_for_is_learned(answer: object) -> None:
    made = sample({"question": "Which?", "choices": ["cat", "dog"], "answer": answer})
    assert made.whole[-1]["content"] == "B"
    own = sample({"messages": [USER], "choices": ["cat", "dog"], "answer": answer})
    assert own.whole[-1]["content"] == ("B" if answer == "B" else "dog")


def test_an_empty_answer_among_peoples_is_kept_and_not_learned() -> None:
    made = sample({"question": "Which?", "answers": ["", "red", "red"]})
    assert made.answers == ("", "red", "red")
    assert made.whole[-1]["content"] == "red"


# ---- what is refused


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"question": "a", "query": "b", "answer": "c"}, "question and query could both be meant"),
    ({"messages": [USER], "conversations": [USER]}, "messages and conversations could both"),
    ({"question": "a", "response": "b", "output": "c"}, "response and output could both"),
    ({"question": "a", "choices": ["b"], "options": ["c"], "answer": "A"}, "choices and options"),
    ({"query": "a", "response": "b", "history": "c"}, "history is 'c', not pairs of a question"),
    ({"query": "a", "response": "b", "history": [["c"]]}, "history is [['c']], not pairs"),
    ({"messages": [SYSTEM, USER], "system": "b", "answer": "c"}, "system and the first message"),
    ({"messages": [{"content": "a"}]}, "message 1 has no role"),
    ({"conversations": sharegpt("<image>a", "b")}, "1 <image> in the messages, but 0 images"),
    (
        {"image": "a.png", "conversations": sharegpt("<image><image>a", "b")},
        "2 <image> in the messages, but 1 image",
    ),
    ({"question": "Is <image> it?", "answer": "b"}, "1 <image> in the messages, but 0 images"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "no answer: `answer` must be there"),
    ({"question": "a", "answer": None}, "no answer: answer is null"),
    ({"question": "a", "response": ""}, "no answer: response is empty"),
    ({"question": "a", "answers": ["b", None]}, "no answer: answers holds null, number 2 of 2"),
    ({"question": "a", "answer": b"b"}, "the answer is bytes, not text"),
    ({"question": "a", "choices": ["b", None], "answer": "A"}, "choices holds null"),
    ({"question": "a", "options": 5, "answer": "A"}, "options is no list of up to 26, nor"),
    ({"question": "a", **dict.fromkeys("ABD", "b"), "answer": "A"}, "choices is no list of up to"),
    ({"question": "a", "choices": "A. b", "answer": "A"}, "choices is no list of up to 26, nor"),
    (
        {"question": "a", "choices": {"label": ["A", "B"], "text": 5}, "answer": "A"},
        "choices is no list of up to 26, nor an object or lines by letter",
    ),
    ({"image": "a.png", "text": "Which?", "answer": "a"}, "neither messages, nor question"),
    ({"image": "a.png", "label": 3}, "neither messages, nor question and answer"),
]


@pytest.mark.parametrize(("raw", "said"), WRONG, ids=lambda value: str(value)[:50])
def test_what_is_ambiguous_or_missing_is_told(raw: dict[str, Any], said: str) -> None:
    assert outcome(Row("here", raw)).startswith(said)
