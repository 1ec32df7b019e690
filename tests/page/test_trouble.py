"""What the page says and keeps where something fails: a picture, an answer, the server."""

import json
import threading
from pathlib import Path
from typing import Any

from smolvlm_mlx.model.language import LanguageModel
from tests.support.browser import (
    ERROR,
    ask,
    few_tokens,
    piece,
    seen,
    show_pictures,
    sse,
    wait_for,
    watch_requests,
)
from tests.support.http import TOKEN, Running, always, wait_until

import mlx.core as mx
import pytest


def test_a_question_is_asked_without_the_pictures_that_were_refused(
    page: Any, tmp_path: Path
) -> None:
    few_tokens(page)
    (tmp_path / "empty.png").write_bytes(b"")
    page.set_input_files("#files", tmp_path / "empty.png")
    page.locator("figure.wrong").wait_for()
    show_pictures(page, tmp_path, "a.png", "broken.png", "b.png", "also broken.png")
    page.fill("#text", "What is this?")
    wrong = page.locator("figure.wrong")
    for count in (2, 3):
        page.press("#text", "Enter")
        wrong.nth(count - 1).wait_for()
        assert page.inner_text("#problem").startswith("A picture cannot be used: remove it, or ")
    page.press("#text", "Enter")
    names = "empty.png, broken.png, also broken.png"
    page.get_by_text(f"Asked without what cannot be read: {names}").wait_for()
    page.get_by_role("button", name="Retry").wait_for()
    assert seen(page)[0] == "a.png|b.png|What is this?"


@pytest.mark.parametrize("edited", [False, True], ids=["asked", "edited"])
def test_an_unreadable_picture_stays_with_its_reason(
    edited: bool, page: Any, server: Running, tmp_path: Path
) -> None:
    few_tokens(page)
    if edited:
        ask(page, "First", 1)
        page.get_by_role("button", name="Edit").click()
    before = seen(page)
    bodies = watch_requests(page)
    show_pictures(page, tmp_path, "a.png", "broken.png", "b.png")
    page.fill("#text", "What is this?")
    page.press("#text", "Enter")
    page.locator("figure.wrong").wait_for()
    assert "is not a readable picture" in page.inner_text("figure.wrong figcaption")
    names = "nodes => nodes.map(node => node.title)"
    assert page.locator("#waiting figure > img").evaluate_all(names) == [
        "a.png",
        "broken.png",
        "b.png",
    ]
    assert page.locator("figure.wrong > img").get_attribute("title") == "broken.png"
    assert page.input_value("#text") == "What is this?"
    assert seen(page) == before
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Remove broken.png").click()
    page.press("#text", "Enter")
    page.get_by_role("button", name="Retry").wait_for()
    assert seen(page)[0] == "a.png|b.png|What is this?"
    ask(page, "And now?", 2)
    said = [[part.get("name") for part in m["content"]] for m in bodies[-1]["messages"]]
    assert said == [["a.png", "b.png", None], [None], [None]]
    (talk,) = server.history.list()
    assert talk.turns == 2


# Of an answer that has begun: how it ends, and what is said of it.
CUTS: dict[str, tuple[str, str]] = {
    "error": (sse(piece("Half"), ERROR, "[DONE]"), "the engine failed"),
    "no end": (sse(piece("Half")), "the server ended the answer before its end"),
    "half an event": (sse(piece("Half")) + "data: {", "the server ended the answer before its end"),
    "finished but no end": (
        sse({"choices": [{"delta": {"content": "Half"}, "finish_reason": "stop"}]}),
        "the server ended the answer before its end",
    ),
}


@pytest.mark.parametrize("kind", CUTS)
def test_an_answer_that_is_cut_off_stays_and_is_asked_again(
    kind: str, page: Any, server: Running, tmp_path: Path
) -> None:
    few_tokens(page)
    body, reason = CUTS[kind]
    bodies = watch_requests(page)
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=body, content_type="text/event-stream"),
    )
    show_pictures(page, tmp_path, "a.png")
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.get_by_role("button", name="Retry").wait_for()
    cut = ["a.png|What?", f"Half|Cut off: {reason}"]
    assert seen(page) == cut
    page.unroute("**/v1/chat/completions")
    # Asked again in vain, it stays as it was.
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("The server cannot be reached").wait_for()
    assert seen(page) == cut
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Retry").click()
    page.locator(".cut").wait_for(state="detached")
    page.get_by_role("button", name="Retry").wait_for()
    assert len(bodies) == 3
    for again in bodies[1:]:
        assert (again["messages"], again["max_tokens"]) == (bodies[0]["messages"], 3)
    (talk,) = server.history.list()
    assert [message.text for message in server.history.load(talk.id)] == [
        "What?",
        seen(page)[1].rstrip(),
    ]
    page.reload()
    page.get_by_role("button", name="Retry").wait_for()
    assert len(seen(page)) == 2


# What comes in place of an answer, and what is said of it.
REFUSALS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "away": (None, "The server cannot be reached"),
    "busy": ({"status": 503, "json": {"error": {"message": "33 answers wait"}}}, "33 answers wait"),
    "no JSON": ({"status": 500, "body": "<html>"}, "the server answers 500"),
    "no token": ({"status": 401, "json": {"error": {"message": "x"}}}, "No valid token: open the"),
    "error first": (
        {"body": sse(ERROR, "[DONE]"), "content_type": "text/event-stream"},
        "the engine failed",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_question_that_is_not_answered_goes_back(kind: str, page: Any, tmp_path: Path) -> None:
    few_tokens(page)
    answer, words = REFUSALS[kind]
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(**answer) if answer else route.abort("connectionrefused"),
    )
    show_pictures(page, tmp_path, "a.png")
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.get_by_text(words).wait_for()
    for _ in range(2):
        assert (page.input_value("#text"), seen(page)) == ("What?", [])
        assert page.locator("#waiting img").get_attribute("title") == "a.png"
        page.reload()  # after which it is still there
        page.locator("#waiting img").wait_for()
    page.unroute("**/v1/chat/completions")
    page.press("#text", "Enter")
    page.get_by_role("button", name="Retry").wait_for()
    assert seen(page)[0] == "a.png|What?"
    page.reload()
    page.get_by_role("button", name="Retry").wait_for()
    assert page.input_value("#text") == ""
    assert page.locator("#waiting img").count() == 0


COUNT_LOOKS = """
  const ask = window.fetch;
  window.looks = {asked: 0, answered: 0};
  window.fetch = async (path, ...rest) => {
    if (path !== "/health") return ask(path, ...rest);
    looks.asked++;
    const response = await ask(path, ...rest);
    const whole = new Response(await response.text(), response);
    looks.answered++;
    return whole;
  };
"""


def look(page: Any) -> None:
    """Let the page ask whether the server lives, which it does after a time, and get the answer."""
    before = page.evaluate("looks.asked")

    def asked() -> bool:
        page.clock.fast_forward(16_000)
        return bool(page.evaluate("looks.asked") != before)

    wait_for(page, asked)
    wait_until(lambda: page.evaluate("looks.asked === looks.answered"))


def test_a_silent_server_is_asked_whether_it_lives(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, calls, logits = threading.Event(), 0, LanguageModel.logits

    def held(self: LanguageModel, hidden: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        if calls > 3:
            more.wait(60)
        return logits(self, hidden)

    monkeypatch.setattr(LanguageModel, "logits", held)
    page.add_init_script(COUNT_LOOKS)
    page.clock.install()
    page.reload()
    page.evaluate("localStorage.setItem('max_tokens', '40')")
    try:
        page.route(
            "**/v1/chat/completions",
            lambda route: route.continue_(
                post_data=json.dumps({**route.request.post_data_json, **always("one two three")})
            ),
        )
        page.fill("#text", "What?")
        page.press("#text", "Enter")
        page.locator(".assistant").wait_for()
        for _ in range(4):  # the server is at it
            look(page)
        assert page.locator(".cut").count() == 0
        idle = {"running": 0, "waiting": 0}
        page.route("**/events", lambda route: route.abort())  # which would say that it is
        page.route("**/health", lambda route: route.fulfill(json=idle))
        for _ in range(2):
            look(page)
        page.locator(".cut").wait_for()
        assert page.inner_text(".cut") == "Cut off: the server is no longer at this answer"
    finally:
        more.set()
    server.wait_until_idle()


def test_a_server_that_stands_still_is_left(page: Any) -> None:
    page.clock.install()
    page.reload()
    page.route("**/v1/chat/completions", lambda route: None)
    page.route("**/health", lambda route: None)
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.locator(".assistant").wait_for()
    with page.expect_event("requestfailed") as left:  # it is not to go on when the server does
        wait_for(page, lambda: page.clock.fast_forward(16_000) or page.inner_text("#problem"))
    assert left.value.url.endswith("/v1/chat/completions")
    assert page.inner_text("#problem") == "the server no longer answers"
    assert page.input_value("#text") == "What?"


@pytest.mark.parametrize("text", ["data: {", sse({"error": {"message": "x" * 300}})])
def test_a_narrow_window_shows_all_of_what_failed(text: str, page: Any) -> None:
    page.set_viewport_size({"width": 320, "height": 600})
    bodies = iter([text, sse(piece("Half")) + text])
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=next(bodies), content_type="text/event-stream"),
    )
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.locator("#problem:not(:empty)").wait_for()
    wide = "[...document.querySelectorAll('html, #problem, #talk')].map(n => n.scrollWidth)"
    assert max(page.evaluate(wide)) <= 320
    page.press("#text", "Enter")
    page.locator(".cut").wait_for()
    assert max(page.evaluate(wide)) <= 320


def test_a_new_token_is_taken_from_the_address_or_from_another_tab(
    page: Any, server: Running
) -> None:
    few_tokens(page)
    address = f"http://127.0.0.1:{server.port}/#token="
    for other in (False, True):
        page.goto(f"http://127.0.0.1:{server.port}/")  # where nothing is answered unasked
        page.wait_for_load_state("networkidle")
        page.context.clear_cookies()
        page.fill("#text", "What?")
        page.press("#text", "Enter")
        page.get_by_text("No valid token").wait_for()
        page.keyboard.press("Escape")  # leaves the field for a token
        assert page.input_value("#text") == "What?"
        opened = page.context.new_page() if other else page
        opened.goto(address + TOKEN)
        page.get_by_text("No valid token").wait_for(state="detached")
        page.press("#text", "Enter")
        page.locator(".assistant").get_by_role("button", name="Retry").wait_for()
    assert page.evaluate("document.querySelectorAll('#settings input').length") > 4


def test_trouble_with_the_history_is_said(page: Any) -> None:
    body = sse(piece("Yes."), {**piece(""), "choices": [], "notice": "not kept: disk full"})
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=body + sse("[DONE]"), content_type="text/event-stream"),
    )
    assert ask(page, "What?", 1) == "Yes."
    page.get_by_text("not kept: disk full").wait_for()
