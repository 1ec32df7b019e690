"""Conversations that live in the server: answers that outlive their clients, and who is told of
them."""

import asyncio
import contextlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import EngineError, HistoryError
from smolvlm_mlx.generation.scheduler import Job
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.messages import text_message, to_json, user_message
from smolvlm_mlx.model.language import LanguageModel
from smolvlm_mlx.server import conversations
from smolvlm_mlx.server.answer import Answer
from smolvlm_mlx.server.request import ChatRequest
from smolvlm_mlx.server.turn import Turn
from smolvlm_mlx.tasks.database import Watch
from smolvlm_mlx.tasks.history import History, new_id
from smolvlm_mlx.tasks.saving import Saved
from tests.support.http import Running, always, question, serving, wait_until
from tests.support.pictures import PICTURE, data_url, encoded
from tests.support.served import serving_alone

import httpx2
import mlx.core as mx
import pytest


@contextlib.contextmanager
def asking(server: Running, id: str, text: str = "Hello", **more: Any) -> Iterator[Iterator[str]]:
    """The lines of a streamed answer; its client leaves at the end of this."""
    asked = question(text, max_tokens=2000, stream=True, conversation=id, **more)
    with (
        server.client() as client,
        client.stream("POST", "/v1/chat/completions", json=asked) as answer,
    ):
        yield (line for line in answer.iter_lines() if line.startswith("data: {"))


@contextlib.contextmanager
def listening(server: Running, id: str) -> Iterator[Iterator[Any]]:
    """What is told of a conversation."""
    with server.client() as client, client.stream("GET", f"/conversations/{id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        yield (json.loads(line[6:]) for line in lines if line.startswith("data: "))


def stop(server: Running, id: str) -> int:
    with server.client() as client:
        return int(client.post(f"/conversations/{id}/stop").status_code)


def left(server: Running, jobs: list[Job], id: str, count: int = 1) -> None:
    """Ask, and leave when some tokens have come."""
    with asking(server, id) as lines:
        wait_until(lambda: len(jobs) >= count)
        wait_until(lambda: jobs[count - 1].statistics.generated_tokens >= 2)
        next(lines)


def test_an_answer_goes_on_without_its_client(
    server: Running, slow_model: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "KEEP_SECONDS", 600)
    id = new_id()
    left(server, slow_model, id)
    (job,) = slow_model
    before = job.statistics.generated_tokens
    wait_until(lambda: job.statistics.generated_tokens > before + 5)
    assert not job.cancelled
    assert [message.text for message in server.history.load(id)] == ["Hello"]
    # Who comes then sees it from its beginning, and how it ends for all.
    with listening(server, id) as first, listening(server, id) as second:
        for news in (first, second):
            state = next(news)
            assert state["leaf"] == state["answer"]["after"] == server.history.leaf(id)
            assert state["answer"]["text"]
            assert next(news)["text"]
        assert stop(server, id) == 204
        for news in (first, second):
            last = next(each for each in news if "leaf" in each)
            assert last == {"leaf": server.history.leaf(id)}
    answer = server.history.load(id)[-1]
    assert (answer.role, answer.interrupted) == ("assistant", True)
    assert answer.text
    assert job.cancelled
    assert stop(server, id) == 404
    assert server.service.conversations.answers == []


SLOW = """
import time
from smolvlm_mlx.model.language import LanguageModel
from smolvlm_mlx.server import conversations
conversations.KEEP_SECONDS = 0.05
logits = LanguageModel.logits
def slower(self, hidden):
    time.sleep(0.02)
    return logits(self, hidden)
LanguageModel.logits = slower
"""


@pytest.mark.slow
def test_what_came_of_an_answer_is_there_after_a_kill(tmp_path: Path) -> None:
    id, whole = new_id(), '"' + " ".join(map(str, range(300))) + '"'
    asked = question("Count", max_tokens=2000, stream=True, conversation=id, **always(whole[1:-1]))
    with (
        serving_alone(tmp_path, SLOW) as served,
        served.client() as client,
        client.stream("POST", "/v1/chat/completions", json=asked),
    ):
        wait_until(lambda: [*tmp_path.rglob("history.sqlite3")])
        history = History(next(tmp_path.rglob("history.sqlite3")))
        wait_until(lambda: history.list() and len(history.load(id)) == 2)
        first = history.load(id)[1].text
        wait_until(lambda: len(history.load(id)[1].text) > len(first) + 5)
        served.process.kill()
        served.process.wait()
    before = history.load(id)
    assert [message.text for message in before[:1]] == ["Count"]
    assert whole.startswith(before[1].text)
    assert before[1].interrupted
    with serving_alone(tmp_path) as served, served.client() as client:
        more = {"continue_final_message": True, "add_generation_prompt": False, "max_tokens": 3}
        asked = {"messages": to_json(before), "conversation": id, **more}
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
    _, answer = history.load(id)
    assert answer.text.startswith(before[1].text)
    assert len(history.branches(id)) == 1


def test_an_answer_that_is_kept_while_it_comes_is_one(
    server: Running, slow_model: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "KEEP_SECONDS", 0.02)
    id = new_id()
    with asking(server, id) as lines, listening_when_kept(server, id) as news:
        state = next(news)
        path = [place.id for place in server.history.places(id)]
        assert (state["leaf"], state["answer"]["after"]) == (path[1], path[0])
        told = state["answer"]["text"]
        while len(told) < len(state["answer"]["text"]) + 20:
            each = next(news)
            assert each.keys() == {"text"}  # nothing of its being kept
            told += each["text"]
        assert stop(server, id) == 204
        last = next(each for each in news if "leaf" in each)
        assert last == {"leaf": server.history.leaf(id)}
        assert list(lines)
    assert len(server.history.branches(id)) == 1
    answer = server.history.load(id)[-1]
    assert answer.interrupted
    assert answer.text.startswith(told.rstrip())


@contextlib.contextmanager
def listening_when_kept(server: Running, id: str) -> Iterator[Iterator[Any]]:
    """What is told of a conversation, once some of its answer is kept."""
    wait_until(lambda: [talk for talk in server.history.list() if talk.id == id])
    wait_until(lambda: len(server.history.load(id)) == 2)
    with listening(server, id) as news:
        yield news


def test_what_is_stopped_before_its_first_word_is_no_answer(
    server: Running, slow_model: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    id, submit = new_id(), server.scheduler.submit

    def stopped(job: Job) -> None:
        submit(job)
        threading.Thread(target=stop, args=(server, id)).start()

    monkeypatch.setattr(server.scheduler, "submit", stopped)
    monkeypatch.setattr(LanguageModel, "logits", waiting_for(slow_model))
    answer = server.complete(question("Hello", conversation=id, max_tokens=50))
    assert answer.json()["choices"][0]["message"]["content"] == ""
    assert [message.text for message in server.history.load(id)] == ["Hello"]
    assert len(answer.json()["kept"]) == 1


def waiting_for(jobs: list[Job]) -> Any:
    """The logits of a model that makes none before its job is cancelled."""
    logits = LanguageModel.logits

    def waiting(self: LanguageModel, hidden: mx.array) -> mx.array:
        wait_until(lambda: all(job.cancelled for job in jobs))
        return logits(self, hidden)

    return waiting


def test_a_stopped_answer_is_told_as_one_that_ends(server: Running, slow_model: list[Job]) -> None:
    id = new_id()
    with asking(server, id, stream_options={"include_usage": True}) as lines:
        wait_until(lambda: slow_model and slow_model[0].statistics.generated_tokens >= 2)
        assert stop(server, id) == 204
        *pieces, end, last = [json.loads(line[6:]) for line in lines]
    assert end["choices"][0]["finish_reason"] == "length"
    assert last["usage"]["timing"]["about"].endswith("interrupted")
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert server.history.load(id)[-1].text == text.rstrip()
    assert [place["id"] for place in last["kept"]] == [p.id for p in server.history.places(id)]


def test_what_is_stopped_before_it_begins_does_not_begin(
    server: Running, slow_model: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    id, check = new_id(), server.scheduler.check

    def stopped(*arguments: Any) -> None:
        assert stop(server, id) == 204
        check(*arguments)

    monkeypatch.setattr(server.scheduler, "check", stopped)
    answer = server.complete(question("Hello", conversation=id))
    assert (answer.status_code, slow_model) == (400, [])
    assert answer.json()["error"]["message"] == "the answer was stopped before it began"
    assert id not in [talk.id for talk in server.history.list()]


def test_nothing_of_the_history_stands_before_the_first_word(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, save = threading.Event(), server.history.save

    def late(*arguments: Any) -> Saved:
        assert came.wait(60)
        return save(*arguments)

    monkeypatch.setattr(server.history, "save", late)
    with asking(server, new_id(), **always("one two three")) as lines:
        next(line for line in lines if '"content":""' not in line)
        came.set()
        assert "stop" in [*lines][-1]


def test_a_tab_that_chose_another_branch_stays_there(
    server: Running, slow_model: list[Job]
) -> None:
    id = new_id()
    one = [text_message("user", "One"), text_message("assistant", "Yes.")]
    elsewhere = server.history.save(id, one).path[-1]
    with asking(server, id, stream_options={"include_usage": True}) as lines:
        wait_until(lambda: slow_model and slow_model[0].statistics.generated_tokens >= 2)
        wait_until(lambda: server.history.leaf(id) != elsewhere)
        with server.client() as client:
            client.post(f"/conversations/{id}", params={"message": elsewhere})
        assert stop(server, id) == 204
        *_, last = lines
    assert server.history.leaf(id) == elsewhere
    answer = server.history.branches(id)[-1].end
    assert [place["id"] for place in json.loads(last[6:])["kept"]] == [answer - 1, answer]


def turn_of(history: History, answer: Answer) -> Turn:
    answer.push(answer.choices[0], EngineError("out of memory"))
    answer.message()  # which reads that
    return Turn(history, "0123abcd", answer, "tiny")


def test_what_nobody_waits_for_any_more_does_nothing_after_the_end(tmp_path: Path) -> None:
    """The history may be locked for longer than it is waited for."""
    history, asked = History(tmp_path / "history.sqlite3"), [text_message("user", "Hello")]
    saving, free, ended = threading.Event(), threading.Event(), threading.Event()
    save = history.save

    def late(*arguments: Any) -> Saved:
        saving.set()
        assert free.wait(60)
        return save(*arguments)

    async def push() -> Turn:
        body = json.dumps(question("Hello")).encode()
        return turn_of(history, Answer(ChatRequest.parse(body), asked))

    def end(turn: Turn) -> None:
        turn.end()
        ended.set()

    turn = asyncio.run(push())
    turn.end()
    turn.begin()
    turn.go_on(text_message("assistant", "Hal"))
    assert history.list() == []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(history, "save", late)
        turn = asyncio.run(push())
        threads = [threading.Thread(target=turn.begin)]
        threads[0].start()
        assert saving.wait(60)
        threads.append(threading.Thread(target=end, args=(turn,)))
        threads[1].start()
        assert not ended.wait(0.1)  # it comes after what was begun
        free.set()
        for thread in threads:
            thread.join()
    assert history.list() == []


async def answer_to(text: str) -> Answer:
    body, asked = json.dumps(question(text)).encode(), [text_message("user", text)]
    return Answer(ChatRequest.parse(body), asked)


@pytest.mark.parametrize("text", ["A red square.", "A red circle"])
def test_an_answer_that_begins_as_another_does_stands_beside_it(text: str, tmp_path: Path) -> None:
    """Wherever it is when it is kept: at the words that both have, or beyond them."""
    history, hello = History(tmp_path / "history.sqlite3"), text_message("user", "Hello")
    history.save("0123abcd", [hello, text_message("assistant", "A red circle.")])
    coming = asyncio.run(answer_to("Hello"))
    turn = Turn(history, "0123abcd", coming, "tiny")
    turn.begin()
    for end in (3, 5, 9, len(text)):
        coming.choices[0].text = text[:end]
        turn.go_on(coming.message())
    coming.choices[0].ended = True
    turn.end()
    assert [message.text for message in history.load("0123abcd")] == ["Hello", text]
    words = [branch.words for branch in history.branches("0123abcd")]
    assert words == ["A red circle.", text]


def test_a_question_that_could_not_be_kept_at_once_is_kept_with_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path / "history.sqlite3")

    def refuse(*arguments: object) -> None:
        raise HistoryError("it is locked")

    coming = asyncio.run(answer_to("Hello"))
    turn = Turn(history, "0123abcd", coming, "tiny")
    with monkeypatch.context() as patched:
        patched.setattr(history, "save", refuse)
        with pytest.raises(HistoryError):
            turn.begin()
    coming.choices[0].text = "Hal"
    turn.go_on(coming.message())
    question_id, answer_id = (place.id for place in history.places("0123abcd"))
    assert (coming.after, history.leaf("0123abcd")) == (question_id, answer_id)


def test_who_listens_is_told_though_the_history_was_locked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, failures = new_id(), {"leaf": 0, "watch": 0}
    history, other = (History(tmp_path / "history.sqlite3") for _ in range(2))
    history.save(id, [text_message("user", "One")])
    leaf, watch = history.leaf, history.watch

    def locked_leaf(id: str) -> int | None:
        failures["leaf"] += 1
        if failures["leaf"] == 2:  # the first is asked before anything is told
            raise HistoryError("it is locked")
        return leaf(id)

    def locked_watch() -> Watch:
        failures["watch"] += 1
        if failures["watch"] == 1:
            raise HistoryError("it is locked")
        return watch()

    monkeypatch.setattr(history, "leaf", locked_leaf)
    monkeypatch.setattr(history, "watch", locked_watch)
    with serving(tiny, tmp_path) as server:
        monkeypatch.setattr(server.service.conversations, "history", history)
        with listening(server, id) as news:
            assert next(news) == {"leaf": leaf(id)}
            saved = other.save(id, [text_message("user", "Two")])
            assert next(news) == {"leaf": saved.leaf}
    assert failures["watch"] == 2


def test_a_question_whose_answer_fails_at_once_is_taken_back(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, new = new_id(), new_id()
    one = [text_message("user", "One"), text_message("assistant", "Yes.")]
    server.history.save(id, one)
    failing = EngineError("out of memory")
    monkeypatch.setattr(server.scheduler, "submit", lambda job: job.put(failing))
    for talk in (id, new):
        asked = question("Two", conversation=talk)
        asked["messages"][:0] = to_json(one) if talk == id else []
        assert server.complete(asked).status_code == 500
    assert server.complete(question("Eins", conversation=id)).status_code == 500  # in place of One
    assert [message.text for message in server.history.load(id)] == ["One", "Yes."]
    assert len(server.history.branches(id)) == 1
    assert new not in [talk.id for talk in server.history.list()]


def test_a_question_whose_client_has_gone_stays_where_its_answer_fails(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, jobs = new_id(), list[Job]()
    monkeypatch.setattr(server.scheduler, "submit", jobs.append)
    with server.client() as client, contextlib.suppress(httpx2.TimeoutException):
        client.post("/v1/chat/completions", json=question("One", conversation=id), timeout=0.5)
    (answer,) = server.service.conversations.answers
    wait_until(lambda: answer.is_left)
    jobs[0].put(EngineError("out of memory"))
    wait_until(lambda: not server.service.conversations.answers)
    assert [message.role for message in server.history.load(id)] == ["user"]


def test_a_message_that_is_no_number_is_refused(server: Running) -> None:
    id = new_id()
    server.history.save(id, [text_message("user", "One")])
    with server.client() as client:
        for message in ("", "-1", "x", "²", "9" * 5000):
            moved = client.post(f"/conversations/{id}", params={"message": message})
            assert moved.status_code == 400


def test_few_answers_are_left(
    server: Running, slow_model: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MOST_LEFT", 1)
    ids = [new_id(), new_id()]
    for number, id in enumerate(ids, 1):
        left(server, slow_model, id, number)
    wait_until(lambda: server.history.load(ids[1])[-1].interrupted)
    assert [job.cancelled for job in slow_model] == [False, True]
    assert stop(server, ids[0]) == 204
    wait_until(lambda: not server.service.conversations.answers)


def test_pictures_of_answers_that_are_left_are_few(
    server: Running, slow_model: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = len(encoded(PICTURE, "PNG"))  # and its tiles, which are more than that
    monkeypatch.setattr(conversations, "MOST_LEFT_BYTES", file)
    id = new_id()
    asked = question("Hello", data_url(), max_tokens=2000, stream=True, conversation=id)
    with (
        server.client() as client,
        client.stream("POST", "/v1/chat/completions", json=asked),
    ):
        wait_until(lambda: slow_model and slow_model[0].statistics.generated_tokens >= 2)
    wait_until(lambda: not server.service.conversations.answers)
    assert slow_model[0].cancelled
    assert len(server.history.load(id)) == 2


def test_what_another_program_writes_is_told(server: Running) -> None:
    id, other = new_id(), History(server.history.path)
    other.save(id, [text_message("user", "One")])
    with listening(server, id) as news:
        first = next(news)
        path = other.save(id, [text_message("user", "Two")]).path
        assert (first, next(news)) == ({"leaf": path[0] - 1}, {"leaf": path[0]})
        with server.client() as client:
            client.post(f"/conversations/{id}?message={first['leaf']}")
            assert next(news) == first
            client.delete(f"/conversations/{id}")
            assert next(news) == {"deleted": True}
            assert client.get(f"/conversations/{id}/events").status_code == 404
        assert next(news, None) is None


def test_deleting_ends_the_answer(server: Running, slow_model: list[Job]) -> None:
    id = new_id()
    with asking(server, id, stream_options={"include_usage": True}) as lines:
        wait_until(lambda: slow_model and slow_model[0].statistics.generated_tokens >= 2)
        wait_until(lambda: id in [talk.id for talk in server.history.list()])
        with server.client() as client:
            assert client.delete(f"/conversations/{id}").status_code == 204
        *_, last = lines
    assert "was deleted, and keeps no more" in json.loads(last[6:])["notice"]
    assert id not in [talk.id for talk in server.history.list()]


def test_streams_of_events_have_a_bound(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    id = new_id()
    server.history.save(id, [text_message("user", "One")])
    monkeypatch.setattr(conversations, "MOST_STREAMS", 1)
    with listening(server, id) as news:
        next(news)
        with server.client() as client:
            refused = client.get(f"/conversations/{id}/events")
        assert refused.status_code == 503
        assert refused.json()["error"]["message"] == "1 windows listen already; close some"


def test_a_stream_without_news_says_that_it_is_there(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = new_id()
    server.history.save(id, [text_message("user", "One")])
    monkeypatch.setattr(conversations, "ALIVE_SECONDS", 0.01)
    with server.client() as client, client.stream("GET", f"/conversations/{id}/events") as stream:
        lines = stream.iter_lines()
        assert [next(lines) for _ in range(4)][2] == ": still here"


@pytest.mark.parametrize("id", ["a", "0123ABCD", "0123abc_", "é" * 8, "0" * 33, "0123abcd%0A"])
def test_what_has_not_the_form_of_an_id_is_not_there(id: str, server: Running) -> None:
    with server.client() as client:
        for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/stop"), ("GET", "/events")):
            refused = client.request(method, f"/conversations/{id}{rest}")
            assert refused.status_code == 404
            assert "no conversation" in refused.json()["error"]["message"]


def test_the_page_is_at_the_address_of_a_conversation(server: Running) -> None:
    with server.client(authorization="") as client:
        page = client.get("/c/0123abcd")
        assert page.status_code == 200
        assert page.content == client.get("/").content
        assert client.get("/c/a/b").status_code == 404


def test_a_conversation_is_renamed_exported_deleted_and_restored(server: Running) -> None:
    id, other = new_id(), new_id()
    picture = Attachment(PICTURE, name="cat.png")
    server.history.save(id, [user_message("What?", [picture]), text_message("assistant", "A cat")])
    server.history.save(other, [user_message("Hi", []), text_message("assistant", "Hello")])
    here = f"/conversations/{id}"
    with server.client() as client:
        renamed = client.post(f"{here}/title", params={"title": " Mein Käter? "})
        assert renamed.json() == {"title": "Mein Käter?"}
        found = client.get("/conversations", params={"words": "käter"}).json()["conversations"]
        assert [talk["title"] for talk in found] == ["Mein Käter?"]
        for wrong in ({}, {"title": "x" * 201}):
            assert client.post(f"{here}/title", params=wrong).status_code == 400
        exported = client.get(f"{here}/markdown")
        assert exported.headers["content-type"] == "application/zip"
        name = "attachment; filename*=UTF-8''Mein-K%C3%A4ter.zip"
        assert exported.headers["content-disposition"] == name
        with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
            assert archive.read("pictures/1-cat.png") == picture.data
        plain = client.get(f"/conversations/{other}/markdown")
        assert plain.headers["content-type"].startswith("text/markdown")
        assert plain.text == "# Hi\n\n## You\n\nHi\n\n## Answer\n\nHello\n"
        assert client.delete(here, params={"undo": "perhaps"}).status_code == 400
        assert client.delete(here, params={"undo": "true"}).status_code == 204
        for path in (here, f"{here}/markdown", f"{here}/events"):
            assert client.get(path).status_code == 404
        assert client.delete(here, params={"undo": "true"}).status_code == 404
        assert client.post(f"{here}/restore").status_code == 204
        assert client.post(f"{here}/restore").status_code == 404
        assert len(client.get(here).json()["messages"]) == 2
        assert client.delete(here).status_code == 204  # for good
        assert client.post(f"{here}/restore").status_code == 404


def test_a_deletion_that_is_undone_has_what_came_of_the_answer(
    server: Running, slow_model: list[Job]
) -> None:
    id = new_id()
    with asking(server, id) as lines, server.client() as client:
        wait_until(lambda: slow_model and slow_model[0].statistics.generated_tokens >= 2)
        deleted = client.delete(f"/conversations/{id}", params={"undo": "true"})
        assert deleted.status_code == 204
        assert list(lines)
        assert id not in [talk.id for talk in server.history.list()]
        assert client.post(f"/conversations/{id}/restore").status_code == 204
    answer = server.history.load(id)[-1]
    assert (answer.role, answer.interrupted, bool(answer.text)) == ("assistant", True, True)


def test_what_is_not_restored_is_forgotten_in_its_time(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "UNDO_SECONDS", -1)
    id = new_id()
    server.history.save(id, [user_message("What?", []), text_message("assistant", "A cat")])
    forgotten = threading.Event()
    forget = server.history.forget_overdue

    def told() -> None:
        forget()
        forgotten.set()

    monkeypatch.setattr(server.history, "forget_overdue", told)
    with server.client() as client:
        assert client.delete(f"/conversations/{id}", params={"undo": "true"}).status_code == 204
        assert forgotten.wait(60)
        assert client.post(f"/conversations/{id}/restore").status_code == 404
