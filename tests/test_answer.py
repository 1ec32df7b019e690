"""Several answers to one request: whole and streamed, repeatable, counted, and ended together."""

import asyncio
import json
import re
import socket
from typing import Any, Literal

from smolvlm_mlx.errors import GenerationError, SmolVLMError
from smolvlm_mlx.events import End, Event, Reading, Statistics, Text
from smolvlm_mlx.generation.scheduler import BusyError, Job
from smolvlm_mlx.server.answer import Answer, Choice
from smolvlm_mlx.server.request import ChatRequest
from smolvlm_mlx.tasks.saving import Saved
from tests.support.http import Running, head, question, wait_until
from tests.support.pictures import data_url

import pytest

SAMPLED = {"temperature": 1.5, "seed": 7, "max_tokens": 12}


def texts(server: Running, **more: Any) -> list[str]:
    body = server.complete(question("Hello", **{**SAMPLED, **more})).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(more.get("n") or 1))
    return [choice["message"]["content"] for choice in body["choices"]]


def chunks(server: Running, **more: Any) -> list[dict[str, Any]]:
    asked = question("Hello", **{**SAMPLED, "stream": True, **more})
    *events, done, end = server.complete(asked).text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_answers_to_one_request_differ_and_are_the_same_the_next_time(server: Running) -> None:
    five = texts(server, n=5)
    assert len(set(five)) == 5
    assert texts(server, n=5) == five
    # A seed's first answer is what it gives alone, the second what the next seed gives.
    assert texts(server) == five[:1]
    assert texts(server, seed=8) == five[1:2]
    assert texts(server, n=None) == five[:1]


def test_answers_without_a_seed_differ(server: Running) -> None:
    assert len(set(texts(server, n=4, seed=None))) == 4


def test_the_largest_seed_has_a_next_one(server: Running, jobs: list[Job]) -> None:
    assert len(set(texts(server, n=3, seed=2**64 - 2))) == 3
    assert [job.options.seed for job in jobs] == [2**64 - 2, 2**64 - 1, 0]


def test_more_answers_than_are_made_at_once_all_come(server: Running) -> None:
    assert len(set(texts(server, n=16, max_tokens=8))) > 8


def test_a_stream_names_the_answer_of_each_piece(server: Running) -> None:
    whole = texts(server, n=3)
    got = chunks(server, n=3)
    assert [chunk["choices"][0]["index"] for chunk in got[:3]] == [0, 1, 2]
    begins = {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in got[:3]] == [begins] * 3
    streamed, ends = ["", "", ""], dict[int, str]()
    for chunk in got[3:]:
        (choice,) = chunk["choices"]
        assert choice["index"] not in ends  # nothing comes after its end
        streamed[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"] is not None:
            assert choice["delta"] == {}
            ends[choice["index"]] = choice["finish_reason"]
    assert streamed == whole
    assert set(ends) == {0, 1, 2}
    (id,) = {chunk["id"] for chunk in got}
    assert re.fullmatch("chatcmpl-[0-9a-f]{24}", id)
    assert all("usage" not in chunk for chunk in got)


def test_pieces_of_several_answers_come_as_they_are_made() -> None:
    asked = ChatRequest.parse(json.dumps(question("Hello", n=2, stream=True)).encode())

    async def read() -> list[tuple[int, str, bool]]:
        answer = Answer(asked, [])
        first, second = answer.choices
        end = End(Statistics())
        made: list[tuple[Choice, Event]] = [(first, Text("a")), (second, Text("b"))]
        made += [(first, Text("c")), (second, end), (first, Text("d")), (first, end)]
        coming, got = answer.read(), []
        for choice, event in made:
            answer.push(choice, event)
            read, piece, is_over = await anext(coming)
            got.append((read.index, piece, is_over))
        assert [choice.text async for choice, *_ in coming] == []
        # Another, later, reads it all.
        later = [(each.index, piece) async for each, piece, _ in answer.read(1)]
        assert later == [(0, "cd"), (1, "b")]
        assert [choice.text for choice in answer.choices] == ["acd", "b"]
        return got

    a, b, c, b_ends, d, a_ends = asyncio.run(read())
    assert (a, b, c, d) == ((0, "a", False), (1, "b", False), (0, "c", False), (0, "d", False))
    assert (b_ends, a_ends) == ((1, "", True), (0, "", True))


def test_what_is_made_after_an_answer_was_stopped_is_no_part_of_it() -> None:
    """Whoever reads it, and whoever keeps it, has the same."""

    async def read() -> None:
        answer = Answer(ChatRequest.parse(json.dumps(question("Hi", stream=True)).encode()), [])
        (choice,) = answer.choices
        answer.push(choice, Text("a"))
        answer.push(choice, End(Statistics()))
        answer.push(choice, Text("b"))
        assert "".join([piece async for _, piece, _ in answer.read()]) == "a"
        answer.push(choice, Text("c"))
        answer.push(choice, GenerationError("too late"))
        assert "".join([piece async for _, piece, _ in answer.read()]) == "a"
        assert answer.message().text == "a"

    asyncio.run(read())


def test_a_control_character_at_the_end_is_kept() -> None:
    """As pages show it: to Python some are white space, to JavaScript none."""

    async def read() -> str:
        answer = Answer(ChatRequest.parse(json.dumps(question("Hi", stream=True)).encode()), [])
        answer.push(answer.choices[0], Text("a\x1c\x1f\x85 \u3000\ufeff\n"))
        return answer.message().text

    assert asyncio.run(read()) == "a\x1c\x1f\x85"


def test_others_go_on_while_an_answer_is_waited_for() -> None:
    async def read() -> None:
        answer = Answer(ChatRequest.parse(json.dumps(question("Hi", stream=True)).encode()), [])
        coming = answer.read()
        for event in (Text("a"), End(Statistics())):
            waits = asyncio.ensure_future(anext(coming))
            await asyncio.sleep(0)
            assert not waits.done()
            answer.push(answer.choices[0], event)
            await waits

    asyncio.run(read())


def test_what_came_before_an_error_is_read_first() -> None:
    asked = ChatRequest.parse(json.dumps(question("Hello", stream=True)).encode())

    async def read() -> None:
        answer = Answer(asked, [])
        for event in (Text("Hel"), Text("lo"), GenerationError("no more")):
            answer.push(answer.choices[0], event)
        coming = answer.read()
        assert (await anext(coming))[1] == "Hello"
        with pytest.raises(GenerationError, match="no more"):
            await anext(coming)
        assert answer.message().text == "Hello"
        assert answer.message().interrupted

    asyncio.run(read())


@pytest.mark.parametrize(("stream", "wakes"), [(False, [0, 0, 0, 1, 1]), (True, [0, 0, 1, 1, 1])])
def test_the_loop_is_woken_for_what_is_sent(
    stream: bool, wakes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each token of an answer that is sent whole, nor for what nobody is told."""
    asked = ChatRequest.parse(json.dumps(question("Hello", stream=stream)).encode())
    events: list[Event | SmolVLMError] = [Reading(1, 2, "tiles"), Text(""), Text("a")]
    events += [End(Statistics()), GenerationError("no")]

    async def push() -> None:
        woken, loop = list[Any](), asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_soon_threadsafe", woken.append)
        for event, count in zip(events, wakes, strict=True):
            answer = Answer(asked, [])
            answer.push(answer.choices[0], event)
            assert len(woken) == count, event
            woken.clear()

    asyncio.run(push())


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_is_broken_off_is_kept_as_far_as_it_came(
    reason: Literal["stop", "length"],
) -> None:
    async def push() -> None:
        answer = Answer(ChatRequest.parse(json.dumps(question("Hello")).encode()), [])
        answer.push(answer.choices[0], Text("Hel"))
        assert (answer.message().text, answer.message().interrupted) == ("Hel", True)
        answer.push(answer.choices[0], End(Statistics(finish_reason=reason)))
        assert (answer.message().text, answer.message().interrupted) == ("Hel", reason == "length")

    asyncio.run(push())


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_is_counted_once_and_the_answers_together(
    stream: bool, server: Running, jobs: list[Job]
) -> None:
    asked = question("What is this?", data_url(), n=3, **SAMPLED)
    alone = server.complete({**asked, "n": 1}).json()["usage"]
    jobs.clear()
    if stream:
        last = chunks(server, **asked, stream_options={"include_usage": True})[-1]
        assert last["choices"] == []
        usage = last["usage"]
    else:
        usage = server.complete(asked).json()["usage"]
    counts = [job.statistics.generated_tokens for job in jobs]
    assert len(counts) == 3
    assert usage["prompt_tokens"] == alone["prompt_tokens"]
    assert usage["completion_tokens"] == sum(counts)
    assert usage["total_tokens"] == alone["prompt_tokens"] + sum(counts)
    assert usage["prompt_tokens_details"]["image_tokens"] == 208
    assert usage["timing"]["preprocess"] > 0
    assert f"{alone['prompt_tokens']} + {sum(counts)} tokens" in usage["timing"]["about"]


def test_the_prompt_of_several_answers_is_read_once(server: Running, jobs: list[Job]) -> None:
    server.complete(question("Never asked before", data_url(), n=4, **SAMPLED))
    prompt = jobs[0].statistics.prompt_tokens
    assert jobs[0].statistics.reused_tokens < prompt - 1
    assert [job.statistics.reused_tokens for job in jobs[1:]] == [prompt - 1] * 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_all_its_answers(
    stream: bool, server: Running, slow_model: list[Job]
) -> None:
    asked = question(f"Leaving {stream}", n=3, max_tokens=2000, stream=stream)
    body = json.dumps(asked).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(server, len(body)) + body)
        wait_until(
            lambda: (
                len(slow_model) == 3
                and all(job.statistics.generated_tokens >= 2 for job in slow_model)
            )
        )
    left = [job.statistics.generated_tokens for job in slow_model]
    server.wait_until_idle()
    for job, count in zip(slow_model, left, strict=True):
        assert job.cancelled
        assert job.statistics.generated_tokens <= count + 2


def test_where_not_all_answers_find_a_place_none_is_made(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = list[Job]()

    def full(job: Job) -> None:
        if len(came) == 2:
            raise BusyError("f" * 301)
        came.append(job)

    monkeypatch.setattr(server.scheduler, "submit", full)
    answer = server.complete(question("Hello", n=4))
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "f" * 297 + "...")
    assert [job.cancelled for job in came] == [True, True]


@pytest.mark.parametrize("stream", [False, True])
def test_the_history_keeps_the_first_answer(
    stream: bool, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, save, saved = f"00000000000000{stream:02d}", server.history.save, list[str]()

    def watched(id: str, messages: Any, model: str, seen: Any) -> Saved:
        saved.append(model)
        return save(id, messages, model, seen)

    monkeypatch.setattr(server.history, "save", watched)
    first = texts(server, n=3)[0]
    server.complete(question("Hello", n=3, conversation=id, stream=stream, **SAMPLED))
    kept = server.history.load(id)
    server.history.delete(id)
    assert saved == ["tiny", "tiny"]  # the question, and then all of it
    assert [message.text for message in kept] == ["Hello", first.rstrip()]
    assert kept[-1].interrupted  # by its length
