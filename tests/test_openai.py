"""How answers and errors look when they are sent: the fields of OpenAI's, all and no more."""

import re
from typing import Any

from smolvlm_mlx.events import Statistics
from smolvlm_mlx.server.openai import (
    Completion,
    Delta,
    Forget,
    Live,
    dump,
    error_body,
    event,
    finish_reason,
    usage,
)

import pytest


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smolvlm_mlx.server.openai.time.time", lambda: 1234.9)


LIVE = Live(number=1, unchanged=False, stuck=True, about="x")
TOLD = {"number": 1, "unchanged": False, "stuck": True, "about": "x"}
STATISTICS = [Statistics("stop", 9, generated_tokens=2), Statistics("length", 9)]


def of_one(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what says that they belong together, which is checked."""
    ids = {answer.pop("id") for answer in answers}
    assert [bool(re.fullmatch("chatcmpl-[0-9a-f]{24}", id)) for id in ids] == [True]
    assert {answer.pop("created") for answer in answers} == {1234}
    assert {answer.pop("model") for answer in answers} == {"tiny"}
    return answers


@pytest.mark.parametrize("live", [None, LIVE])
def test_answers_that_are_not_streamed(live: Live | None) -> None:
    (whole,) = of_one([Completion("tiny", ["a note"]).whole(["a", "b"], STATISTICS, live)])
    told = whole.pop("usage")
    assert told == dump(usage(STATISTICS, ["a note"]))
    assert told["timing"]["about"].endswith(" · a note")
    assert whole == {
        "object": "chat.completion",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, text, reason in [(0, "a", "stop"), (1, "b", "length")]
        ],
        **({"live": TOLD} if live else {}),
    }


def test_pieces_of_a_stream() -> None:
    completion = Completion("tiny", ["a note"])
    chunks = [
        completion.chunk(1, Delta(role="assistant", content="")),
        completion.chunk(1, Delta(content="a")),
        completion.chunk(1, Delta(), Statistics("stop")),
        completion.last_chunk(STATISTICS),
        completion.last_chunk(STATISTICS, LIVE),
    ]
    common, told = {"object": "chat.completion.chunk"}, dump(usage(STATISTICS, ["a note"]))
    deltas = [({"role": "assistant", "content": ""}, None), ({"content": "a"}, None), ({}, "stop")]
    assert of_one(chunks) == [
        *(
            {
                **common,
                "choices": [
                    {"index": 1, "delta": delta, "logprobs": None, "finish_reason": reason}
                ],
            }
            for delta, reason in deltas
        ),
        {**common, "choices": [], "usage": told},
        {**common, "choices": [], "usage": told, "live": TOLD},
    ]


def test_an_answer_that_does_not_end_by_itself_ends_by_its_length() -> None:
    reasons: list[Any] = ["stop", "length", "interrupted", "repetition"]
    found = [finish_reason(Statistics(reason)) for reason in reasons]
    assert found == ["stop", *["length"] * 3]  # clients know no others


def test_an_answer_that_went_in_circles_says_so_beside_a_reason_that_clients_know() -> None:
    ended = Statistics("repetition")
    whole: Any = Completion("tiny").whole(["a", "b"], [ended, Statistics("stop")])
    first, second = whole["choices"]
    assert (first["finish_reason"], first["ended_by"]) == ("length", "repetition")
    assert (second["finish_reason"], "ended_by" in second) == ("stop", False)
    chunk: Any = Completion("tiny").chunk(0, Delta(), ended)
    (choice,) = chunk["choices"]
    assert (choice["finish_reason"], choice["ended_by"]) == ("length", "repetition")
    assert whole["usage"]["timing"]["about"].endswith(" · went in circles and was ended")


def test_errors() -> None:
    plain = {"message": "x", "type": "invalid_request_error", "param": None, "code": None}
    assert error_body("x") == {"error": plain}
    assert error_body("x", "a", "b", "c", Forget(messages=2)) == {
        "error": {"message": "x", "type": "a", "code": "b", "param": "c", "forget": {"messages": 2}}
    }


def test_an_event_is_a_line_of_text() -> None:
    assert event({"a": "ö\n😀", "b": "\ud800"}) == 'data: {"a": "ö\\n😀", "b": "?"}\n\n'.encode()
