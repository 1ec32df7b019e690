"""A conversation in a real browser: asked, stopped, edited, opened again."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.inputs.media import Attachment, Video
from smolvlm_mlx.inputs.messages import (
    Message,
    TextPart,
    VideoPart,
    parse_messages,
    text_message,
    user_message,
)
from smolvlm_mlx.server.start import Start
from smolvlm_mlx.tasks.history import new_id
from tests.support.browser import (
    ask,
    few_tokens,
    seen,
    shown,
    wait_for_words,
    watch_requests,
)
from tests.support.http import Running
from tests.support.pictures import PICTURE, encoded, noise
from tests.support.videos import encode_video

import pytest


def test_a_whole_conversation(page: Any, server: Running, tmp_path: Path) -> None:
    noise(90, 60).save(tmp_path / "cat.png")
    assert "token" not in page.url
    page.click("#open-settings")
    page.fill("#max_tokens", "6")
    page.get_by_role("button", name="Done").click()
    page.set_input_files("#files", tmp_path / "cat.png")
    page.locator("#waiting img").wait_for()
    first = ask(page, "What is <b>this</b> [red]?", 1)
    assert "What is <b>this</b> [red]?" in page.inner_text("#talk")
    assert "13 tiles" in page.inner_text("#talk")
    ask(page, "And now?", 2)
    assert "reused" in page.inner_text("#talk")
    page.get_by_role("button", name="Retry").click()
    page.locator(".assistant").nth(1).get_by_role("button", name="Retry").wait_for()
    page.locator(".user").nth(1).get_by_role("button", name="Edit").click()
    assert page.input_value("#text") == "And now?"
    ask(page, "And then?", 2)
    assert page.locator(".message").count() == 4
    # It is in the history, and comes back from it.
    (talk,) = server.history.list()
    assert (talk.title, talk.turns) == ("What is <b>this</b> [red]?", 2)
    page.reload()
    page.locator("#list-toggle").click()
    page.get_by_role("button", name="What is <b>this</b> [red]?", exact=True).click()
    page.locator(".user img").wait_for()
    assert page.locator(".assistant .text").first.inner_text() == first
    assert page.locator(".user img").first.evaluate("image => image.naturalWidth") == 90
    page.locator("#list-toggle").click()
    page.get_by_role("button", name="More: What is").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("Deleted “What is <b>this</b> [red]?”.").wait_for()
    page.locator(".empty").wait_for()
    assert server.history.list() == []


@pytest.mark.usefixtures("slow_model")
def test_stopping_pasting_and_errors(page: Any, server: Running) -> None:
    page.evaluate("localStorage.setItem('max_tokens', '3000')")
    page.reload()
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    wait_for_words(page)
    page.locator("#stop-answer").click()
    page.get_by_text("interrupted").wait_for()
    server.wait_until_idle()
    page.locator("#camera").click()
    page.locator("#take").click()
    page.locator("#waiting img").wait_for()
    page.get_by_role("button", name="Remove camera.png").click()
    page.evaluate(
        "navigator.clipboard, dispatchEvent(Object.assign(new Event('paste'), {clipboardData: "
        "{files: [new File(['no picture'], 'x.png', {type: 'image/png'})]}}))"
    )
    page.locator("#waiting figure").wait_for()
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.get_by_text("is text; put it into the question").wait_for()


def test_a_full_context_asks_what_to_forget(page: Any, tmp_path: Path) -> None:
    noise(90, 60).save(tmp_path / "cat.png")
    # With a penalty the answers, and so the room that they leave, are others.
    greedy = "localStorage.setItem('max_tokens', '4'); localStorage.repetition_penalty = '1'"
    page.evaluate(greedy)
    page.reload()
    page.set_input_files("#files", tmp_path / "cat.png")
    page.locator("#waiting img").wait_for()
    ask(page, "First", 1)
    words = "word " * 750
    ask(page, words, 2)
    page.fill("#text", "And more")
    page.evaluate("document.querySelector('#system').value = 'x'.repeat(100)")
    page.press("#text", "Enter")
    page.get_by_role("button", name="… but keep its pictures").click()
    # The picture is still too much.
    page.get_by_role("button", name="Forget the 2 oldest turns").wait_for()
    # Nothing is forgotten for a question that is not answered.
    assert page.locator(".user .text").all_inner_texts() == ["First", words.strip()]
    assert page.input_value("#text") == "And more"
    assert page.locator(".user").nth(0).locator("img").count() == 1
    page.get_by_role("button", name="Forget the 2 oldest turns").click()
    page.locator(".assistant").nth(1).wait_for(state="detached")
    page.locator(".assistant").get_by_role("button", name="Retry").wait_for()
    assert page.locator(".message .text").count() == 2
    assert page.locator(".user .text").inner_text() == "And more"
    assert page.locator(".user img").count() == 0
    assert page.inner_text("#problem") == ""


def test_the_page_begins_with_pictures_instructions_and_a_conversation(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = new_id()
    video = VideoPart(Video(encode_video(30, 10)), {"fps": 2.0, "end": 2.5})
    before = [text_message("system", "Be long."), user_message("Before?", [video])]
    server.history.save(id, [*before, text_message("assistant", "Yes.")])
    short = Options(max_tokens=4)
    start = Start(("max_tokens",), "Be brief.", [Attachment(PICTURE, name="cat.png")], id, short)
    monkeypatch.setattr(server.service, "start", start)
    monkeypatch.setattr(server.service, "options", short)
    bodies = watch_requests(page)
    page.reload()
    page.locator("#waiting img[title='cat.png']").wait_for()
    page.get_by_text("Yes.").wait_for()
    ask(page, "And this?", 2)
    said = bodies[0]["messages"]
    assert bodies[0]["conversation"] == id
    assert said[0] == {"role": "system", "content": "Be brief."}
    (clip, question), (picture, words) = said[1]["content"], said[3]["content"]
    assert (clip["fps"], clip["end"]) == (2.0, 2.5)  # what was seen of the video is seen again
    assert (question["text"], words["text"]) == ("Before?", "And this?")
    assert picture["name"] == "cat.png"
    # Once: loaded again, the page has what was said since.
    page.reload()
    page.locator(".assistant").nth(1).wait_for()
    page.locator("#max_tokens").wait_for(state="attached")
    assert page.input_value("#system") == "Be brief."
    assert page.locator("#waiting img").count() == 0


@pytest.mark.parametrize("road", ["list", "address", "command line", "file"])
def test_a_conversation_of_any_form_opens_again(
    road: str, page: Any, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_tokens(page)
    picture = {
        "type": "image",
        "base64": base64.b64encode(encoded(PICTURE, "PNG")).decode(),
        "name": "cat.png",
    }
    id = new_id()
    raw: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Before"}, picture]},
        {"role": "assistant", "content": "One", "interrupted": True},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Two"}]},
    ]
    server.history.save(id, parse_messages(raw))
    if road == "list":
        page.reload()
        page.locator("#list-toggle").click()
        page.get_by_role("button", name="Before", exact=True).click()
    elif road == "address":
        page.goto(f"http://127.0.0.1:{server.port}/c/{id}")
    elif road == "command line":
        monkeypatch.setattr(server.service, "start", Start(conversation=id))
        page.reload()
    else:
        (tmp_path / "talk.json").write_text(json.dumps({"messages": raw}))
        page.set_input_files("#files", tmp_path / "talk.json")
    page.get_by_role("button", name="Retry").wait_for()
    assert seen(page) == ["cat.png|Before", "One", "What?", "Two"]
    assert page.input_value("#system") == "Be brief."
    assert page.locator(".assistant").first.get_by_text("interrupted").count() == 1
    bodies = watch_requests(page)
    ask(page, "And?", 3)
    sent = bodies[0]["messages"][1]["content"]
    assert [part["type"] for part in sent] == ["text", "image_url"]  # as it was said
    talks = {talk.id: server.history.load(talk.id) for talk in server.history.list()}
    (here,) = [messages for messages in talks.values() if len(messages) == 7]
    assert [message.text for message in here[:-1]] == [
        *("Be brief.", "Before", "One", "What?", "Two", "And?")
    ]
    assert here[2].interrupted
    assert len(talks) == (2 if road == "file" else 1)


def test_a_file_that_is_no_conversation_is_one_line(page: Any, tmp_path: Path) -> None:
    parts = ({"type": "text"}, {"type": "text", "text": 5}, {"type": "image_url", "image_url": 5})
    odd = [json.dumps({"messages": [{"role": "user", "content": [part]}]}) for part in parts]
    texts = ("", "[]", "{}", '{"messages": 5}', '{"messages": [5]}', *odd)
    for number, text in enumerate(texts):
        name = f"{number}.json"
        (tmp_path / name).write_text(text)
        page.set_input_files("#files", tmp_path / name)
        page.get_by_text(f"{name} is no conversation that was saved").wait_for()
    page.locator(".empty").wait_for()


def test_edit_and_retry_keep_the_branch_before(page: Any, server: Running) -> None:
    few_tokens(page)
    bodies = watch_requests(page)
    ask(page, "First", 1)
    ask(page, "Second", 2)
    before = shown(page)
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("Sampled at temperature 0.7: at 0 it would be the same").wait_for()
    page.get_by_role("button", name="Retry").wait_for()
    assert (bodies[-1]["temperature"], bodies[-1]["seed"]) == (0.7, -1)
    page.locator(".user").nth(1).get_by_role("button", name="Edit").click()
    ask(page, "Edited", 2)
    edited = shown(page)
    assert edited[2] == "Edited"
    # With the keyboard alone, there and back.
    arrows = page.locator(".user").nth(1).locator(".branches")
    assert arrows.inner_text() == "‹2/2›"
    assert arrows.get_by_role("button", name="The next one").is_disabled()
    arrows.get_by_role("button", name="The one before").focus()
    page.keyboard.press("Enter")
    page.get_by_text("Second", exact=True).wait_for()
    assert page.evaluate("document.activeElement.ariaLabel") == "The next one"
    page.reload()  # it stays there
    page.get_by_text("Second", exact=True).wait_for()
    answers = page.locator(".assistant").nth(1).locator(".branches")
    if answers.count():  # the sampled answer was another
        answers.get_by_role("button", name="The one before").click()
        answers.get_by_text("1/2").wait_for()
    assert shown(page) == before
    page.locator(".user").nth(1).get_by_role("button", name="The next one").click()
    page.get_by_text("Edited", exact=True).wait_for()
    assert shown(page) == edited
    (talk,) = server.history.list()
    assert [message.text for message in server.history.load(talk.id)][::2] == ["First", "Edited"]


def test_an_answer_that_was_cut_off_goes_on(page: Any, server: Running) -> None:
    few_tokens(page)
    first = ask(page, "First", 1)
    page.get_by_text("cut off at the longest length").wait_for()
    page.evaluate("localStorage.setItem('max_tokens', '9')")
    bodies = watch_requests(page)
    page.reload()  # which it is offered after, too
    page.get_by_role("button", name="Continue").click()
    page.locator(".about", has_text=" tokens").wait_for()  # of what came to it
    question, whole = shown(page)
    assert question == "First"
    assert len(whole) > len(first)
    assert whole.startswith(first.rstrip())
    assert bodies[0]["messages"][-1]["content"] == [{"type": "text", "text": first.rstrip()}]
    (talk,) = server.history.list()
    assert len(server.history.branches(talk.id)) == 1
    assert len(server.history.load(talk.id)) == 2


def test_an_answer_that_went_in_circles_goes_on_sampled(page: Any, server: Running) -> None:
    few_tokens(page)
    circles = Message("assistant", (TextPart("It goes on. It goes on."),), interrupted=True)
    id = new_id()
    server.history.save(id, [user_message("First"), circles])
    bodies = watch_requests(page)
    page.goto(f"http://127.0.0.1:{server.port}/c/{id}")
    page.get_by_role("button", name="Continue").click()
    told = "Sampled at temperature 0.7: at 0 it would go in the same circle."
    page.get_by_text(told).wait_for()
    page.locator(".about", has_text=" tokens").wait_for()
    (body,) = bodies
    assert body["continue_final_message"]
    assert (body["temperature"], body["seed"]) == (0.7, -1)
    assert shown(page)[1].startswith("It goes on. It goes on.")


def test_back_and_forward_go_through_conversations(page: Any, server: Running) -> None:
    few_tokens(page)
    root = page.url
    ask(page, "First", 1)
    first = page.url
    assert re.fullmatch(f"{root}c/[0-9a-f]{{16}}", first)
    page.locator("#list-toggle").click()
    page.get_by_role("button", name="New conversation").click()
    assert page.url == root
    ask(page, "Second", 1)
    second = page.url
    page.go_back()
    page.locator("#talk").get_by_text("First", exact=True).wait_for()
    assert page.url == first
    page.go_forward()
    page.locator("#talk").get_by_text("Second", exact=True).wait_for()
    assert page.url == second
    assert {talk.title for talk in server.history.list()} == {"First", "Second"}
