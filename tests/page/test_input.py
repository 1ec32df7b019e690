"""What people have written, chosen and marked stays when something comes or fails meanwhile."""

import json
from pathlib import Path
from typing import Any

from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.tasks.history import new_id
from tests.support.browser import ask, few_tokens, seen, show_pictures, shown, sse, wait_for
from tests.support.http import Running, wait_until
from tests.support.pictures import noise

import pytest

BUSY = {"status": 503, "json": {"error": {"message": "33 answers wait"}}}


def hold(page: Any, pattern: str) -> list[Any]:
    """The requests that match, which get no answer before they are told to."""
    held: list[Any] = []

    def keep(route: Any) -> None:
        held.append(route)

    page.route(pattern, keep)
    return held


def came(page: Any, held: list[Any], count: int = 1) -> Any:
    """The last request that is held, once there are so many."""
    wait_for(page, lambda: len(held) >= count)
    return held[-1]


def begin_new(page: Any) -> None:
    page.locator("#list-toggle").click()
    page.get_by_role("button", name="New conversation").click()


def test_what_comes_leaves_what_is_there(page: Any, server: Running) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    (talk,) = server.history.list()
    long = text_message("assistant", "A line.\n\n" * 200)
    messages = [*server.history.load(talk.id), user_message("Going on"), long]
    server.history.save(talk.id, messages)
    page.get_by_text("Going on", exact=True).wait_for(state="attached")
    page.evaluate("document.querySelector('#talk').scrollTop = 0")
    page.locator("#newest").wait_for()
    about = page.locator(".about").nth(1).inner_text()
    assert "tokens" in about
    page.evaluate(
        "{ window.before = [...document.querySelectorAll('.message')];"
        " getSelection().selectAllChildren(before[0].querySelector('.text')); null }"
    )
    server.history.save(
        talk.id, [*messages, user_message("Last"), text_message("assistant", "Yes")]
    )
    page.get_by_text("Last", exact=True).wait_for(state="attached")
    assert page.evaluate("before.every(node => node.isConnected)")
    assert page.evaluate("getSelection().toString()") == "First"
    assert page.locator("#talk").evaluate("talk => talk.scrollTop") == 0
    assert "tokens" in page.locator(".about").nth(1).inner_text()


def left_on_its_way(page: Any) -> Any:
    """A question that is held back, and left for a new conversation."""
    held = hold(page, "**/v1/chat/completions")
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    request = came(page, held)
    begin_new(page)
    page.locator(".empty").wait_for()
    return request


@pytest.mark.parametrize("end", ["refused", "answered"])
def test_a_question_that_is_left_on_its_way_is_not_lost(
    end: str, page: Any, server: Running, tmp_path: Path
) -> None:
    few_tokens(page)
    show_pictures(page, tmp_path, "a.png")
    request = left_on_its_way(page)
    if end == "answered":
        request.continue_()
        wait_until(lambda: [talk.title for talk in server.history.list()] == ["Hello"])
        return
    request.fulfill(**BUSY)
    told = "A question in another conversation was not answered: 33 answers wait"
    page.get_by_text(told).wait_for()
    assert page.input_value("#text") == ""
    page.get_by_role("button", name="Go back to it").click()
    assert page.input_value("#text") == "Hello"
    assert page.locator("#waiting img").get_attribute("title") == "a.png"


def test_a_question_on_its_way_is_shown_where_it_was_asked(page: Any) -> None:
    few_tokens(page)
    request = left_on_its_way(page)
    page.go_back()
    page.get_by_text("Hello", exact=True).wait_for()
    assert page.locator("#stop-answer").is_visible()
    request.continue_()
    page.get_by_role("button", name="Retry").wait_for()
    assert shown(page)[0] == "Hello"


@pytest.mark.parametrize("end", ["left", "asked", "refused"])
def test_a_draft_stays_while_a_question_is_edited(end: str, page: Any, tmp_path: Path) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    show_pictures(page, tmp_path, "a.png")
    page.fill("#text", "A draft")
    page.get_by_role("button", name="Edit").click()
    assert page.input_value("#text") == "First"
    assert page.locator("#waiting img").count() == 0
    if end == "refused":
        page.route("**/v1/chat/completions", lambda route: route.fulfill(**BUSY))
    if end != "left":
        page.fill("#text", "Edited")
        page.press("#text", "Enter")
    if end == "asked":
        page.get_by_text("Edited", exact=True).wait_for()
        page.locator(".assistant").get_by_role("button", name="Retry").wait_for()
    if end == "refused":
        page.get_by_text("33 answers wait").wait_for()
        assert page.input_value("#text") == "Edited"
    if end != "asked":
        page.press("#text", "Escape")
    assert page.input_value("#text") == "A draft"
    assert page.locator("#waiting img").get_attribute("title") == "a.png"
    assert shown(page)[0] == ("Edited" if end == "asked" else "First")


def test_what_was_written_of_an_edit_is_there_again(page: Any, tmp_path: Path) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    ask(page, "Second", 2)
    page.fill("#text", "A draft")
    page.get_by_role("button", name="Edit").first.click()
    page.fill("#text", "First, edited")
    page.click("#list-toggle")
    page.click("#new")
    page.locator(".empty").wait_for()
    assert page.input_value("#text") == "A draft"
    page.go_back()
    page.get_by_role("button", name="Edit").nth(1).wait_for()
    page.wait_for_function("() => document.querySelector('#text').value === 'First, edited'")
    page.get_by_role("button", name="Edit").nth(1).click()
    assert page.input_value("#text") == "Second"
    page.press("#text", "Escape")
    assert page.input_value("#text") == "A draft\nFirst, edited"


def test_a_question_does_not_go_to_a_conversation_opened_meanwhile(
    page: Any, tmp_path: Path
) -> None:
    page.add_init_script("window.FileReader = class { readAsDataURL() { window.reader = this; } }")
    page.reload()
    noise(90, 60).save(tmp_path / "a.png")
    page.set_input_files("#files", tmp_path / "a.png")
    page.wait_for_function("() => window.reader")
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    page.locator("#send[aria-busy=true]").wait_for()
    begin_new(page)
    page.evaluate("{ reader.result = 'data:image/png;base64,AA=='; reader.onload(); null }")
    page.get_by_text("Not sent: another conversation was opened").wait_for()
    assert (page.input_value("#text"), seen(page)) == ("Hello", [])


def test_a_picture_that_was_still_read_is_told_of_when_the_page_is_loaded_again(
    page: Any, tmp_path: Path
) -> None:
    show_pictures(page, tmp_path, "a.png")
    page.evaluate("{ FileReader.prototype.readAsDataURL = () => {}; null }")
    noise(90, 60).save(tmp_path / "b.png")
    page.set_input_files("#files", tmp_path / "b.png")
    page.locator("#waiting figure").nth(1).wait_for()
    page.reload()
    page.get_by_text("Add again what was not kept: b.png").wait_for()
    assert page.locator("#waiting figure").count() == 1


def test_a_question_that_is_still_to_come_is_awaited(page: Any, server: Running) -> None:
    held = hold(page, "**/v1/chat/completions")
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    id = came(page, held).request.post_data_json["conversation"]
    page.reload()
    page.wait_for_function("() => document.querySelector('#text').value === 'Hello'")
    assert page.url.endswith(f"/c/{id}")
    server.history.save(id, [user_message("Hello")])
    page.locator(".user").get_by_text("Hello", exact=True).wait_for()
    assert page.input_value("#text") == ""


def test_what_is_chosen_last_is_opened(page: Any, server: Running) -> None:
    ids = {name: new_id() for name in ("One", "Two")}
    for name, id in ids.items():
        server.history.save(id, [user_message(name), text_message("assistant", "Yes")])
    page.reload()
    held = hold(page, f"**/conversations/{ids['One']}")
    page.locator("#list-toggle").click()
    page.get_by_role("button", name="One", exact=True).click()
    request = came(page, held)
    page.get_by_role("button", name="Two", exact=True).click()
    page.locator(".user").get_by_text("Two", exact=True).wait_for()
    with page.expect_response(f"**/conversations/{ids['One']}") as late:
        request.continue_()
    late.value.finished()
    page.evaluate("new Promise(requestAnimationFrame)")
    assert shown(page)[0] == "Two"
    assert page.url.endswith(ids["Two"])


def test_going_on_in_a_full_context_offers_room(page: Any) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    ask(page, "Second", 2)
    before = seen(page)
    full = {"message": "too long", "forget": {"messages": 2}}
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": full})
    )
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Forget the oldest turn").click()
    page.get_by_role("button", name="Forget the 2 oldest turns").wait_for()
    assert seen(page) == before  # nothing is forgotten for what is not answered
    assert "tokens" in page.locator(".assistant .about").nth(1).inner_text()
    page.reload()
    page.locator(".assistant").nth(1).wait_for()
    assert seen(page) == before


# ---- keys, the clipboard and the camera


def test_the_enter_of_an_input_method_sends_nothing(page: Any) -> None:
    """In Safari it is none of a composition any more, and has its code."""
    few_tokens(page)
    page.fill("#text", "Hello")
    page.evaluate(
        "document.querySelector('#text').dispatchEvent(new KeyboardEvent('keydown', "
        "{key: 'Enter', keyCode: 229, bubbles: true, cancelable: true}))"
    )
    page.evaluate("new Promise(requestAnimationFrame)")
    assert (page.input_value("#text"), seen(page)) == ("Hello", [])


def test_copying_twice_copies_the_same(page: Any, server: Running) -> None:
    id = new_id()
    answers = [text_message("assistant", text) for text in ("Before", "Newest")]
    server.history.save(id, [user_message("A"), answers[0], user_message("B"), answers[1]])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"http://127.0.0.1:{server.port}/c/{id}")
    page.get_by_role("button", name="Retry").wait_for()
    page.focus("#talk")
    page.keyboard.press("c")
    page.get_by_role("button", name="Copied").wait_for()
    page.keyboard.press("c")
    page.evaluate("new Promise(requestAnimationFrame)")
    assert page.evaluate("navigator.clipboard.readText()") == "Newest"


PASTE = """types => {
    const files = [new File(['x'], 'image.png', {type: 'image/png'})];
    const event = new Event('paste', {cancelable: true});
    dispatchEvent(Object.assign(event, {clipboardData: {files, types}}));
    return event.defaultPrevented;
}"""


def test_cells_are_pasted_as_their_text_and_a_picture_as_one(page: Any) -> None:
    assert not page.evaluate(PASTE, ["text/plain", "text/html", "Files"])
    assert page.locator("#waiting figure").count() == 0
    assert page.evaluate(PASTE, ["text/html", "Files"])
    page.locator("#waiting figure").wait_for()


def test_the_camera_is_opened_once_and_has_a_picture_first(page: Any) -> None:
    page.evaluate(
        "{ window.asked = 0; window.stream = null; const { mediaDevices } = navigator;"
        " const get = mediaDevices.getUserMedia.bind(mediaDevices);"
        " mediaDevices.getUserMedia = options => { asked += 1; return get(options); };"
        " const button = document.querySelector('#camera'); button.click(); button.click(); null }"
    )
    page.locator("#shot[open]").wait_for()
    assert page.evaluate("asked") == 1
    page.evaluate("{ const v = document.querySelector('#video'); stream = v.srcObject; }")
    page.evaluate("document.querySelector('#video').srcObject = null")
    page.click("#take")
    assert page.locator("#shot[open]").count() == 1
    assert page.locator("#waiting figure").count() == 0
    page.evaluate("document.querySelector('#video').srcObject = stream; null")
    page.locator("#shot[open]").wait_for(state="detached")
    page.locator("#waiting figure").wait_for()


def test_escape_in_the_search_stops_no_answer(page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    held = hold(page, "**/v1/chat/completions")
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    came(page, held)
    stops = hold(page, "**/stop")
    page.focus("#search")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "talk"
    assert page.locator("#stop-answer").is_visible()
    assert stops == []


# ---- what cannot be had


def test_settings_that_do_not_come_are_asked_for_again_and_told(page: Any) -> None:
    trials = 0

    def busy(route: Any) -> None:
        nonlocal trials
        trials += 1
        route.fulfill(**BUSY) if trials % 2 else route.continue_()

    page.route("**/page/start", busy)
    page.reload()
    page.locator("#max_tokens").wait_for(state="attached")
    page.unroute("**/page/start")
    page.route("**/page/start", lambda route: route.fulfill(**BUSY))
    page.reload()
    page.get_by_text("Load the page again, it has no settings: 33 answers wait").wait_for()


def test_a_watched_answer_that_cannot_be_read_is_told(page: Any, server: Running) -> None:
    id = new_id()
    server.history.save(id, [user_message("First")])
    leaf = server.history.places(id)[-1].id
    events = sse({"leaf": leaf, "answer": {"after": leaf, "text": "Half"}}, {"leaf": new_id()})
    page.route("**/events", lambda route: route.fulfill(**BUSY))
    page.route(
        "**/events",
        lambda route: route.fulfill(body=events, content_type="text/event-stream"),
        times=1,
    )
    page.route(f"**/conversations/{id}", lambda route: route.fulfill(**BUSY))
    page.route(f"**/conversations/{id}", lambda route: route.continue_(), times=1)
    page.goto(f"http://127.0.0.1:{server.port}/c/{id}")
    page.get_by_text("Cut off: 33 answers wait").wait_for()
    assert page.locator("#stop-answer").is_hidden()


def test_instructions_that_are_written_stay(page: Any, server: Running) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    (talk,) = server.history.list()
    more = [user_message("Last"), text_message("assistant", "Yes")]
    server.history.save(talk.id, [*server.history.load(talk.id), *more])
    page.get_by_text("Last", exact=True).wait_for(state="attached")
    assert page.input_value("#system") == "Be brief."


def test_of_several_conversations_none_is_opened(page: Any, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    page.set_input_files("#files", [tmp_path / "a.json", tmp_path / "b.json"])
    page.get_by_text("One conversation is opened at a time").wait_for()
    assert seen(page) == []


def test_a_picture_is_shown_before_its_tiles_are_known(page: Any, tmp_path: Path) -> None:
    show_pictures(page, tmp_path, "a.png")
    page.wait_for_function("() => !document.querySelector('#waiting [aria-busy=true]')")
    held = hold(page, "**/tiles?*")
    page.reload()  # its cost is not known then
    page.locator("#waiting img").click()
    page.locator("#viewer-shown img").wait_for()
    came(page, held).continue_()
    page.locator("#viewer-shown .tile").first.wait_for()


def test_a_conversation_of_a_file_has_no_address_before_it_is_asked_in(
    page: Any, server: Running, tmp_path: Path
) -> None:
    few_tokens(page)
    parts = [{"type": "text", "text": "So?"}, {"type": "video", "frames": []}]
    raw: list[Any] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": parts},
    ]
    (tmp_path / "talk.json").write_text(json.dumps({"messages": raw}))
    page.set_input_files("#files", tmp_path / "talk.json")
    page.get_by_text("It has videos of single frames, which are not shown here").wait_for()
    assert page.evaluate("location.pathname") == "/"
    page.get_by_role("button", name="Retry").click()
    page.locator(".assistant").nth(1).get_by_role("button", name="Retry").wait_for()
    (talk,) = server.history.list()
    assert page.url.endswith(f"/c/{talk.id}")


def test_an_address_that_cannot_be_opened_is_not_that_of_another(
    page: Any, server: Running
) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    first = page.url
    begin_new(page)
    ask(page, "Second", 1)
    second = page.url
    page.route(f"**/conversations/{first[-16:]}", lambda route: route.fulfill(**BUSY))
    page.go_back()
    page.get_by_text("33 answers wait").wait_for()
    page.wait_for_function("address => location.href === address", arg=second)
