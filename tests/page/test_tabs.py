"""Answers live in the server: tabs that are closed, loaded again, or two of one conversation."""

import json
import threading
from typing import Any

from smolvlm_mlx.generation.scheduler import Job
from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.server import openai
from smolvlm_mlx.tasks.history import new_id
from smolvlm_mlx.tasks.stored import WHITE
from tests.support.browser import (
    answer_here,
    ask,
    begin,
    few_tokens,
    seen,
    shown,
    wait_for,
    wait_for_words,
)
from tests.support.http import TOKEN, Running, always, wait_until

import pytest


def test_an_answer_whose_connection_breaks_goes_on(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def breaking(value: Any) -> bytes:
        nonlocal count
        count += 1
        if count == 4:
            raise ConnectionResetError("the wire is cut")
        return openai.event(value)

    monkeypatch.setattr("smolvlm_mlx.server.app.event", breaking)
    page.evaluate("localStorage.setItem('max_tokens', '40')")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(
            post_data=json.dumps({**route.request.post_data_json, **always("one two three four")})
        ),
    )
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.locator("#talk").get_by_text('"one two three four"').wait_for()
    page.get_by_role("button", name="Retry").wait_for()
    assert count >= 4
    wait_until(lambda: seen(page) == ["What?", '"one two three four"'])


def test_two_tabs_lose_no_turn(page: Any, server: Running) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    (talk,) = server.history.list()
    other = page.context.new_page()
    other.route("**/events", lambda route: route.abort())
    other.goto(f"{page.url}#token={TOKEN}")
    other.get_by_role("button", name="Retry").wait_for()
    ask(page, "Here", 2)
    ask(other, "There", 2)
    page.get_by_text("There", exact=True).wait_for()  # which this one is told
    page.locator(".user").nth(1).get_by_role("button", name="The one before").click()
    page.get_by_text("Here", exact=True).wait_for()
    ask(page, "Here again", 3)
    other.close()
    kept = set()
    for branch in server.history.branches(talk.id):
        server.history.move(talk.id, branch.end)
        messages = server.history.load(talk.id)
        kept.add(tuple(message.text for message in messages if message.role == "user"))
    assert kept == {("First", "There"), ("First", "Here", "Here again")}
    assert len(server.history.list()) == 1


@pytest.mark.usefixtures("slow_model")
@pytest.mark.parametrize("gone", ["loaded again", "closed"])
def test_an_answer_goes_on_when_its_page_is(gone: str, page: Any, server: Running) -> None:
    begin(page, "Hello")
    address, before = page.url, answer_here(page)
    if gone == "closed":
        other = page.context.new_page()
        page.goto("about:blank")
        other.goto(f"{address}#token={TOKEN}")
    else:
        other = page
        page.reload()
    wait_for_words(other, more_than=len(before) + 2)
    assert other.locator("#stop-answer").is_visible()
    assert answer_here(other).startswith(before)
    other.locator("#stop-answer").click()
    other.get_by_role("button", name="Continue").wait_for()
    server.wait_until_idle()
    (talk,) = server.history.list()
    question, answer = server.history.load(talk.id)
    assert (question.text, answer.interrupted) == ("Hello", True)
    wait_until(lambda: shown(other) == ["Hello", answer.text])
    assert len(server.history.branches(talk.id)) == 1
    if other is not page:
        other.close()


@pytest.mark.usefixtures("slow_model")
def test_a_whole_conversation_in_two_tabs(page: Any, server: Running) -> None:
    begin(page, "First")
    other = page.context.new_page()
    other.goto(f"{page.url}#token={TOKEN}")
    wait_for_words(other)
    # Stopped in one, it ends in both.
    other.locator("#stop-answer").click()
    for tab in (page, other):
        tab.get_by_role("button", name="Continue").wait_for()
    wait_until(lambda: shown(page) == shown(other))
    stopped = answer_here(page)
    # It goes on in the other, and is one answer in both.
    other.get_by_role("button", name="Continue").click()
    wait_for_words(page, more_than=len(stopped) + 2)
    page.locator("#stop-answer").click()
    for tab in (page, other):
        tab.get_by_role("button", name="Continue").wait_for()
        assert tab.locator(".branches").count() == 0
    assert answer_here(page).startswith(stopped)
    # What another program writes is seen in both.
    (talk,) = server.history.list()
    said = [user_message("Terminal"), text_message("assistant", "Prompt")]
    server.history.save(talk.id, [*server.history.load(talk.id), *said])
    for tab in (page, other):
        tab.get_by_text("Prompt", exact=True).wait_for()
    # Another question here, while one edits there.
    other.locator(".user").nth(1).get_by_role("button", name="Edit").click()
    begin(page, "Last", 3)
    page.locator("#stop-answer").click()
    for tab in (page, other):
        tab.locator(".assistant").nth(2).get_by_role("button", name="Continue").wait_for()
    assert other.input_value("#text") == "Terminal"
    wait_until(lambda: shown(page) == shown(other))
    server.history.delete(talk.id)
    for tab in (page, other):
        tab.get_by_text("This conversation was deleted elsewhere.").wait_for()
        tab.locator(".empty").wait_for()
    other.close()


def begin_second(page: Any) -> None:
    """A conversation whose second answer is under way, in a list that is open."""
    few_tokens(page)
    ask(page, "First", 1)
    begin(page, "Second", 2)
    page.locator("#list-toggle").click()


@pytest.mark.usefixtures("slow_model")
def test_what_is_deleted_does_not_come_back_with_its_answer(page: Any, server: Running) -> None:
    begin_second(page)
    page.get_by_role("button", name="More: First").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("Deleted “First”.").wait_for()
    page.locator(".empty").wait_for()
    server.wait_until_idle()
    wait_until(lambda: not server.service.conversations.answers)
    assert server.history.list() == []


@pytest.mark.usefixtures("slow_model")
def test_opening_what_is_being_answered_ends_no_answer(page: Any, server: Running) -> None:
    begin_second(page)
    page.get_by_role("button", name="First", exact=True).click()
    page.locator("#list-toggle[aria-expanded=false]").wait_for()
    assert len(seen(page)) == 4
    assert page.locator("#stop-answer").is_visible()
    page.locator("#stop-answer").click()
    server.wait_until_idle()


@pytest.mark.usefixtures("slow_model")
def test_a_stopped_answer_makes_no_branch(page: Any, server: Running) -> None:
    page.evaluate("localStorage.setItem('max_tokens', '3000')")
    for number in range(3):
        page.fill("#text", f"Question {number}")
        page.press("#text", "Enter")
        wait_for_words(page, number + 1)
        page.locator("#stop-answer").click()
        page.locator(".assistant").nth(number).get_by_role("button", name="Retry").wait_for()
        if number == 1:
            server.wait_until_idle()
    server.wait_until_idle()
    wait_until(lambda: [talk.turns for talk in server.history.list()] == [3])


@pytest.mark.usefixtures("slow_model")
def test_what_is_stopped_before_its_first_word_leaves_the_question(
    page: Any, server: Running
) -> None:
    page.route("**/stop", lambda route: route.abort())  # so that the answer is left, not ended
    page.route("**/v1/chat/completions", lambda route: None)
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    page.locator(".assistant").wait_for()
    page.locator("#stop-answer").click()
    page.locator(".user").get_by_role("button", name="Retry").wait_for()
    assert shown(page) == ["Hello"]
    assert server.history.list() == []


@pytest.mark.usefixtures("slow_model")
def test_what_is_asked_as_the_page_goes_is_asked_once(page: Any, server: Running) -> None:
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    page.reload()  # whether the question has come to the server by then or not
    both = [(["Hello"], ""), ([], "Hello")]
    wait_until(lambda: (page.locator(".user .text").all_inner_texts(), value(page)) in both)
    if not value(page):
        page.locator("#stop-answer").click()
        page.get_by_role("button", name="Retry").wait_for()
        assert value(page) == ""


def value(page: Any) -> str:
    return str(page.input_value("#text"))


def test_an_address_without_a_conversation_begins_another(page: Any, server: Running) -> None:
    few_tokens(page)
    page.goto(f"http://127.0.0.1:{server.port}/c/deadbeef#token={TOKEN}")
    page.get_by_text("There is no such conversation, or not any more.").wait_for()
    assert page.evaluate("location.pathname") == "/"
    ask(page, "Hello", 1)
    (talk,) = server.history.list()
    assert talk.id != "deadbeef"
    assert page.evaluate("location.pathname") == f"/c/{talk.id}"


@pytest.mark.usefixtures("slow_model")
def test_a_watched_answer_that_breaks_off_says_so_until_it_goes_on(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(page, "Hello")
    other = page.context.new_page()
    other.goto(f"{page.url}#token={TOKEN}")
    wait_for_words(other)

    def breaking(value: Any) -> bytes:
        raise ConnectionResetError("the wire is cut")

    with monkeypatch.context() as broken:
        broken.setattr("smolvlm_mlx.server.conversations.event", breaking)
        other.get_by_text("Cut off: the connection to the server broke").wait_for()
        assert other.locator("#stop-answer").is_hidden()
    other.locator("#stop-answer").wait_for()
    assert other.locator(".cut").count() == 0
    other.locator("#stop-answer").click()
    for tab in (page, other):
        tab.get_by_role("button", name="Continue").wait_for()
    wait_until(lambda: shown(page) == shown(other))
    other.close()


def test_a_question_that_is_stopped_on_its_way_is_not_answered(
    page: Any, server: Running, slow_model: list[Job]
) -> None:
    begin(page, "Hello")
    page.locator("#stop-answer").click()
    page.get_by_role("button", name="Retry").wait_for()
    before, held = shown(page), list[Any]()
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    page.clock.install()
    page.clock.pause_at(9_999_999_999)
    page.get_by_role("button", name="Retry").click()
    wait_for(page, lambda: held)
    with page.expect_response("**/stop") as early:
        page.locator("#stop-answer").click()
    assert early.value.status == 404
    held[0].continue_()
    wait_until(lambda: len(slow_model) == 2)
    with page.expect_response("**/stop") as late:
        page.clock.run_for(100)
    assert late.value.status == 204
    server.wait_until_idle()
    page.clock.resume()
    page.get_by_role("button", name="Continue").wait_for()
    wait_until(lambda: shown(page) == before)


@pytest.mark.usefixtures("slow_model")
def test_where_nothing_is_kept_a_question_ends_when_it_is_stopped(page: Any) -> None:
    nothing = json.dumps({"kept": False, "conversations": []})
    page.route("**/conversations?*", lambda route: route.fulfill(body=nothing))
    page.reload()
    page.locator("#none", has_text="Nothing is kept").wait_for(state="attached")
    page.route("**/v1/chat/completions", lambda route: None)
    page.clock.install()
    page.clock.pause_at(9_999_999_999)
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    with page.expect_event("requestfailed") as left:  # no time goes by
        page.locator("#stop-answer").click()
    assert left.value.url.endswith("/v1/chat/completions")


def test_history_and_page_agree_on_what_white_space_is(page: Any) -> None:
    """At the end of an answer, which they compare."""
    script = """() => Array.from({length: 0x10000}, (_, code) => String.fromCharCode(code))
        .filter(each => ('a' + each).trimEnd() === 'a').join('')"""
    assert sorted(page.evaluate(script)) == sorted(WHITE)


WINDOWS = 7  # more than a browser has connections to one server


@pytest.mark.slow
@pytest.mark.usefixtures("slow_model")
def test_more_windows_than_connections_are_told_all(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all of them come to look while conversations are read slowly."""
    id = new_id()
    server.history.save(id, [user_message("First"), text_message("assistant", "Yes")])
    windows = [page, *(page.context.new_page() for _ in range(WINDOWS - 1))]
    for window in windows:
        window.goto(f"http://127.0.0.1:{server.port}/c/{id}#token={TOKEN}")
        window.get_by_text("Yes", exact=True).wait_for()
    reading, read = threading.Event(), server.history.read
    monkeypatch.setattr(server.history, "read", lambda id: reading.wait(60) and read(id))
    begin(windows[-1], "Second", 2)
    page.wait_for_timeout(2500)  # each that does not listen looks every two seconds
    reading.set()
    for window in windows[:-1]:
        wait_for_words(window, 2)
    wait_for_words(windows[4], 2, more_than=len(answer_here(windows[4])) + 2)  # it goes on
    windows[4].locator("#stop-answer").click()
    for window in windows:
        window.get_by_role("button", name="Continue").wait_for()
    wait_until(lambda: all(shown(window) == shown(page) for window in windows))
    for window in windows[:4]:
        window.goto("about:blank")
    begin(windows[-1], "Third", 3)
    wait_for_words(windows[4], 3)
    windows[4].locator("#stop-answer").click()
    for window in windows[1:]:
        window.close()
    server.wait_until_idle()


def test_all_windows_are_told_that_their_conversation_was_deleted(
    page: Any, server: Running
) -> None:
    id = new_id()
    server.history.save(id, [user_message("First"), text_message("assistant", "Yes")])
    windows = [page, *(page.context.new_page() for _ in range(4))]
    for window in windows:
        window.goto(f"http://127.0.0.1:{server.port}/c/{id}#token={TOKEN}")
        window.get_by_text("Yes", exact=True).wait_for()
    with server.client() as client:
        assert client.delete(f"/conversations/{id}").status_code == 204
    for window in windows:
        window.get_by_text("This conversation was deleted elsewhere.").wait_for()
        assert shown(window) == []
    for window in windows[1:]:
        window.close()


NO_LOCKS = {
    "none": "Object.defineProperty(navigator, 'locks', { value: undefined })",
    "refused": "LockManager.prototype.request = async () => { throw new Error('refused'); }",
}


@pytest.mark.parametrize("kind", NO_LOCKS)
def test_a_window_without_locks_is_told_too(kind: str, page: Any, server: Running) -> None:
    id, said = new_id(), [user_message("First"), text_message("assistant", "Yes")]
    server.history.save(id, said)
    page.add_init_script(NO_LOCKS[kind])
    page.goto(f"http://127.0.0.1:{server.port}/c/{id}")
    page.get_by_text("Yes", exact=True).wait_for()
    server.history.save(id, [*said, user_message("Second"), text_message("assistant", "No")])
    page.get_by_text("No", exact=True).wait_for()


# A stream of news that is there, and says nothing.
SILENT = """
  const ask = window.fetch;
  window.streams = 0;
  window.fetch = (path, options) => {
    if (!String(path).endsWith("/events")) return ask(path, options);
    streams += 1;
    return Promise.resolve(new Response(new ReadableStream()));
  };
"""


def test_news_that_say_nothing_for_long_are_asked_for_again(page: Any, server: Running) -> None:
    id = new_id()
    server.history.save(id, [user_message("First"), text_message("assistant", "Yes")])
    page.add_init_script(SILENT)
    page.clock.install()
    page.goto(f"http://127.0.0.1:{server.port}/c/{id}")
    page.get_by_text("Yes", exact=True).wait_for()
    wait_until(lambda: page.evaluate("streams") == 1)

    def opened_anew() -> bool:
        page.clock.fast_forward(20_000)
        return bool(page.evaluate("streams") != 1)

    wait_for(page, opened_anew)
