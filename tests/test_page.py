"""The page in a real browser: a whole conversation with a picture. Needs Chromium and the `browser`
extra."""

import base64
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.generation.scheduler import Job
from smolvlm_mlx.inputs.media import Attachment, Video
from smolvlm_mlx.inputs.messages import VideoPart, parse_messages, text_message, user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.model.language import LanguageModel
from smolvlm_mlx.options import options_of
from smolvlm_mlx.server import openai
from smolvlm_mlx.server.start import WITHOUT, Start
from smolvlm_mlx.tasks.history import new_id
from tests.support.http import TOKEN, Running, always, wait_until
from tests.support.pictures import PICTURE, encoded, noise
from tests.support.videos import encode_video

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
if CHROMIUM is None or find_spec("playwright") is None:
    pytest.skip("need Chromium and playwright", allow_module_level=True)

ARGUMENTS = [
    *(
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream"),
    "--use-fake-ui-for-media-stream",
]

WATCH_POLICY = """
    addEventListener("securitypolicyviolation",
      ({violatedDirective, blockedURI, sourceFile}) =>
        console.error("Content Security Policy:", violatedDirective, blockedURI, sourceFile));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    context = browser.new_context(
        viewport={"width": 390, "height": 760}, permissions=["camera"], reduced_motion="reduce"
    )
    problems: list[str] = []
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on(
        "console",
        lambda said: problems.extend([said.text] if "Content Security" in said.text else []),
    )
    context.add_init_script(WATCH_POLICY)
    context.on(
        "request",
        lambda request: problems.extend(
            [request.url]
            if "127.0.0.1" not in request.url[:20]
            and not request.url.startswith(("data:", "blob:"))
            else []
        ),
    )
    opened = context.new_page()
    opened.goto(f"http://127.0.0.1:{server.port}/#token={TOKEN}")
    yield opened
    assert problems == []
    context.close()
    for talk in server.history.list():
        server.history.delete(talk.id)


def ask(page: Any, text: str, answers: int) -> str:
    """The last answer, once there are so many."""
    page.fill("#text", text)
    page.press("#text", "Enter")
    answer = page.locator(".assistant").nth(answers - 1)
    answer.get_by_role("button", name="Retry").wait_for()
    return str(answer.locator(".text").inner_text())


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
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#list-toggle").click()
    page.get_by_role("button", name="Delete What is").click()
    page.locator(".empty").wait_for()
    assert server.history.list() == []


@pytest.mark.usefixtures("slow_model")
def test_stopping_pasting_and_errors(page: Any, server: Running) -> None:
    page.evaluate("localStorage.setItem('max_tokens', '3000')")
    page.reload()
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
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
    page.locator("#waiting img").wait_for()
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.get_by_text("is text; put it into the question").wait_for()
    page.evaluate("sessionStorage.clear()")
    page.reload()
    page.get_by_text("No valid token").wait_for()


def test_a_full_context_asks_what_to_forget(page: Any, tmp_path: Path) -> None:
    noise(90, 60).save(tmp_path / "cat.png")
    page.evaluate("localStorage.setItem('max_tokens', '4')")
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
    page.get_by_role("button", name="Forget the oldest turn").wait_for()
    assert page.locator(".user .text").all_inner_texts() == [words.strip()]
    assert page.input_value("#text") == "And more"
    assert page.locator(".user").nth(0).locator("img").count() == 1
    page.get_by_role("button", name="Forget the oldest turn").click()
    page.locator(".assistant").get_by_role("button", name="Retry").wait_for()
    assert page.locator(".message .text").count() == 2
    assert page.locator(".user .text").inner_text() == "And more"
    assert page.locator(".user img").count() == 0
    assert page.inner_text("#problem") == ""


PRETENDED = """
    const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
    canvas.width = 120; canvas.height = 80;
    window.shade = 0;
    setInterval(() => {  // red at the left; what is at the right changes
      window.shade = (window.shade + (window.step ?? 40)) % 256;
      pen.fillStyle = "#f00"; pen.fillRect(0, 0, 60, 80);
      pen.fillStyle = `rgb(0 0 ${window.shade})`; pen.fillRect(60, 0, 60, 80);
    }, 20);
    navigator.mediaDevices.getUserMedia = async () => window.pretended = canvas.captureStream(30);
"""


def turn_live_on(page: Any, every: str = "0") -> None:
    """With the keyboard alone."""
    page.evaluate(
        f"localStorage.setItem('live-every', '{every}'); localStorage.setItem('max_tokens', '4')"
    )
    page.reload()
    page.focus("#live-toggle")
    page.keyboard.press("Enter")


def test_live_describes_the_newest_frame_one_at_a_time(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.add_init_script(PRETENDED)
    bodies: list[Any] = []
    kept, submit = server.history.list(), server.scheduler.submit
    beside: list[tuple[int, int]] = []  # answers under way when another is asked for

    def submitted(job: Job) -> None:
        beside.append(server.scheduler.occupancy)
        submit(job)

    monkeypatch.setattr(server.scheduler, "submit", submitted)
    page.on(
        "request",
        lambda request: (
            bodies.append(request.post_data_json) if request.url.endswith("/completions") else None
        ),
    )
    turn_live_on(page)
    page.get_by_text("frame 3 ").wait_for()
    assert page.get_attribute("#live-toggle", "aria-pressed") == "true"
    about = page.inner_text("#live-about")
    assert re.fullmatch(
        r"frame \d+ · preprocess \d+ ms · vision \d+ ms · prefill \d+ ms · "
        r"[\d.]+ tokens/s · \d+ ms in all",
        about,
    )
    page.fill("#live-question", "What now?")
    seen = len(bodies)
    # Until what the page asked has come to the server.
    while len(bodies) < seen + 2 or len(beside) < len(bodies):
        page.wait_for_timeout(20)
    assert len(beside) >= 5
    assert set(beside) == {(0, 0)}
    first, last = bodies[0], bodies[-1]
    assert first["messages"][0]["content"][1]["text"] == "Describe this image in one sentence."
    assert last["messages"][0]["content"][1]["text"] == "What now?"
    # Mirrored where it is shown, and only there.
    assert (
        page.evaluate("getComputedStyle(document.querySelector('#live-video')).transform")
        == "matrix(-1, 0, 0, 1, 0, 0)"
    )
    image_url = last["messages"][0]["content"][0]["image_url"]
    assert image_url["detail"] == "low"
    image = Image.open(io.BytesIO(base64.b64decode(image_url["url"].partition(",")[2]))).convert(
        "RGB"
    )
    assert image.size == (120, 80)
    pixels = np.asarray(image)
    assert pixels[40, 20, 0] > 200 > 60 > pixels[40, 100, 0]  # red at the left
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.focus("#live-toggle")
    page.keyboard.press("Enter")
    assert page.get_attribute("#live-toggle", "aria-pressed") == "false"
    assert page.locator("#live").is_hidden()
    assert page.evaluate("window.pretended.getTracks().map(track => track.readyState)") == ["ended"]
    server.wait_until_idle()
    assert server.history.list() == kept


def test_live_says_once_that_an_answer_stays_the_same(page: Any) -> None:
    """As the server has it, which compares the answers, and the pictures as the model sees them."""
    page.add_init_script(PRETENDED + "window.step = 0;")
    text, changes = "same", False
    notices: list[str] = []  # when a question comes, and so after the answer before
    ids: list[str] = []

    def watch(route: Any) -> None:
        notices.append(page.inner_text("#live-notice"))
        body = route.request.post_data_json
        ids.append(body["live"])
        if changes:
            page.evaluate("window.shade = 255 - window.shade; null")
        route.continue_(post_data=json.dumps({**body, **always(text), "max_tokens": 20}))

    def wait_for(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline
            page.wait_for_timeout(20)

    page.route("**/v1/chat/completions", watch)
    turn_live_on(page, every="0.1")
    wait_for(lambda: len(notices) == 6)
    assert set(notices) == {""}  # nothing changes, and so nothing is odd
    changes = True
    wait_for(lambda: notices[-1] == "The answer stays the same although the picture changes.")
    assert notices.count(notices[-1]) == 1
    text = "other"
    wait_for(lambda: notices[-1] == "")
    assert len(set(ids)) == 1
    page.click("#live-toggle")
    page.click("#live-toggle")
    wait_for(lambda: ids[-1] != ids[0])  # begins anew
    page.get_by_text("frame 1 ").wait_for()


def test_live_without_a_camera_or_with_an_error_ends(page: Any) -> None:
    page.evaluate(
        "{ navigator.mediaDevices.getUserMedia = async () => { throw new Error('none here'); }; "
        "null }"
    )
    page.click("#live-toggle")
    page.get_by_text("no camera: none here").wait_for()
    assert page.get_attribute("#live-toggle", "aria-pressed") == "false"
    page.add_init_script(PRETENDED)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=500, body="{}"))
    turn_live_on(page)
    page.get_by_text("the server answers 500").wait_for()
    assert page.get_attribute("#live-toggle", "aria-pressed") == "false"
    assert page.locator("#live").is_hidden()


# ---- what the command line says


ANSWERS, PICTURES = options_of(Options), options_of(ImageOptions)
SETTINGS = [o.name for o in (*ANSWERS, *PICTURES) if o.name not in WITHOUT]
# By name: what is typed into a field, and what the request then says.
CHANGES: dict[str, tuple[str, object]] = {
    "max_tokens": ("6", 6),
    "temperature": ("0.5", 0.5),
    "top_p": ("0.9", 0.9),
    "top_k": ("3", 3),
    "min_p": ("0.1", 0.1),
    "repetition_penalty": ("1.5", 1.5),
    "repetition_context": ("20", 20),
    "presence_penalty": ("-1", -1),
    "frequency_penalty": ("1.5", 1.5),
    "seed": ("5", 5),
    "stop": ("a b\nc", ["a b", "c"]),
    "longest_edge": ("128", 128),
    "split": ("off", False),
    "max_tiles": ("3", 3),
}


def watch_requests(page: Any) -> list[Any]:
    """What the page asks, from now on."""
    bodies: list[Any] = []
    page.on(
        "request",
        lambda request: (
            bodies.append(request.post_data_json) if request.url.endswith("/completions") else None
        ),
    )
    return bodies


def change(page: Any, name: str, value: str) -> None:
    """Set a field of the settings, which are open, as a person does."""
    if page.locator(f"select#{name}").count():
        page.select_option(f"#{name}", value)
    else:
        page.fill(f"#{name}", value)
        page.locator(f"#{name}").blur()


def open_settings(page: Any) -> None:
    page.click("#open-settings")
    page.locator("#max_tokens").wait_for()
    page.click("#settings summary")


def test_a_wrong_value_below_more_is_shown_when_the_dialog_is_left(page: Any) -> None:
    open_settings(page)
    change(page, "max_tiles", "2.5")
    page.click("#settings summary")
    page.get_by_role("button", name="Done").click()
    page.locator("#max_tiles").wait_for()
    change(page, "max_tiles", "2")
    page.get_by_role("button", name="Done").click()
    page.locator("#settings").wait_for(state="hidden")


def test_every_option_of_the_list_is_a_setting_that_is_asked_with(page: Any) -> None:
    bodies = watch_requests(page)
    open_settings(page)
    ids = "nodes => nodes.map(node => node.id)"
    found = page.locator("#settings label :is(input, select, textarea)").evaluate_all(ids)
    assert {*found} == {"system", *SETTINGS}
    for name in SETTINGS:
        change(page, name, CHANGES[name][0])
    page.get_by_role("button", name="Done").click()
    ask(page, "Hi", 1)
    assert {name: bodies[0][name] for name in SETTINGS} == {
        name: CHANGES[name][1] for name in SETTINGS
    }
    page.reload()
    open_settings(page)
    assert {name: page.input_value(f"#{name}") for name in SETTINGS} == {
        name: CHANGES[name][0] for name in SETTINGS
    }
    for name in SETTINGS:  # empty is what the server has
        change(page, name, "")
    page.get_by_role("button", name="Done").click()
    ask(page, "Hi", 2)
    assert not {*SETTINGS} & bodies[1].keys()


def test_what_was_typed_for_the_server_goes_before_what_the_browser_keeps(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.evaluate("localStorage.setItem('temperature', '1.5'); localStorage.setItem('top_k', '7')")
    options = Options(max_tokens=5, temperature=0.25, stop=("x", "y z"))
    monkeypatch.setattr(server.service, "options", options)
    monkeypatch.setattr(server.service, "image_options", ImageOptions(split=False))
    typed = ("max_tokens", "temperature", "stop", "split")
    monkeypatch.setattr(server.service, "start", Start(typed))
    bodies = watch_requests(page)
    page.reload()
    open_settings(page)
    shown = {"max_tokens": "5", "temperature": "0.25", "stop": "x\ny z", "split": "off"}
    assert {name: page.input_value(f"#{name}") for name in shown} == shown
    assert page.input_value("#top_k") == "7"
    page.get_by_role("button", name="Done").click()
    ask(page, "Hi", 1)
    assert not {*typed} & bodies[0].keys()
    assert bodies[0]["top_k"] == 7
    # What is changed in the page holds until the server is started again.
    open_settings(page)
    change(page, "temperature", "0.75")
    page.reload()
    ask(page, "Hi", 2)
    assert bodies[1]["temperature"] == 0.75
    monkeypatch.setattr(server.service, "start", Start(typed))
    page.reload()
    ask(page, "Hi", 3)
    assert "temperature" not in bodies[2]


def test_the_page_begins_with_pictures_instructions_and_a_conversation(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = new_id()
    video = VideoPart(Video(encode_video(30, 10)), {"fps": 2.0, "end": 2.5})
    before = [text_message("system", "Be long."), user_message("Before?", [video])]
    server.history.save(id, [*before, text_message("assistant", "Yes.")])
    start = Start(("max_tokens",), "Be brief.", [Attachment(PICTURE, name="cat.png")], id)
    monkeypatch.setattr(server.service, "start", start)
    monkeypatch.setattr(server.service, "options", Options(max_tokens=4))
    bodies = watch_requests(page)
    page.reload()
    page.locator("#waiting img[title='cat.png']").wait_for()
    page.get_by_text("Yes.").wait_for()
    ask(page, "And this?", 2)
    said = bodies[0]["messages"]
    assert bodies[0]["conversation"]["id"] == id
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


# ---- what goes wrong


BROKEN = b"\x89PNG\r\n\x1a\n" + bytes(300)


def show_pictures(page: Any, tmp_path: Path, *names: str) -> None:
    """Let pictures wait; those that are called broken cannot be read."""
    for name in names:
        if "broken" in name:
            (tmp_path / name).write_bytes(BROKEN)
        else:
            noise(90, 60).save(tmp_path / name)
    page.set_input_files("#files", [tmp_path / name for name in names])
    page.locator("#waiting figure").nth(len(names) - 1).wait_for()


def seen(page: Any) -> list[str]:
    """The conversation: the pictures of each message, its text, and why it ends early."""
    script = """articles => articles.map(article => [
        ...[...article.querySelectorAll('figure > :first-child')].map(node => node.title),
        ...[...article.querySelectorAll('.text, .cut')].map(node => node.textContent)].join('|'))"""
    return list(page.locator(".message").evaluate_all(script))


def few_tokens(page: Any) -> None:
    page.evaluate("localStorage.setItem('max_tokens', '3')")


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


def sse(*events: object) -> str:
    return "".join(
        f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events
    )


def piece(text: str, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}


ERROR = {"error": {"message": "the engine failed", "type": "server_error"}}
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
    page.reload()  # it is still there, though no history has it
    page.get_by_role("button", name="Retry").wait_for()
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


def break_off(page: Any) -> None:
    """Answers end after their first word."""
    body = sse(piece("Half")) + "data: {"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=body, content_type="text/event-stream"),
    )


def test_a_question_that_was_edited_and_cut_off_stays(page: Any, server: Running) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    ask(page, "Second", 2)
    whole = seen(page)
    break_off(page)
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    page.fill("#text", "Edited")
    page.press("#text", "Enter")
    page.locator(".cut").wait_for()
    edited = seen(page)
    assert edited[0] == "Edited"
    page.reload()
    page.locator(".cut").wait_for()
    assert seen(page) == edited
    # Unless the conversation has gone on elsewhere meanwhile.
    (talk,) = server.history.list()
    kept = server.history.read(talk.id)
    server.history.save(talk.id, [*kept.messages, user_message("There")], known=[kept.version])
    page.reload()
    page.get_by_text("There", exact=True).wait_for()
    assert seen(page) == [*whole, "There"]


def test_instructions_stay_with_an_answer_that_is_cut_off(page: Any) -> None:
    few_tokens(page)
    bodies = watch_requests(page)
    break_off(page)
    page.click("#open-settings")
    change(page, "system", "Be brief.")
    page.get_by_role("button", name="Done").click()
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.locator(".cut").wait_for()
    page.reload()
    page.locator(".cut").wait_for()
    assert page.input_value("#system") == "Be brief."
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Retry").click()
    page.locator(".cut").wait_for(state="detached")
    page.get_by_role("button", name="Retry").wait_for()
    assert bodies[1]["messages"] == bodies[0]["messages"]


def test_a_connection_that_breaks_cuts_the_answer_off(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, shown = 0, threading.Event()

    def breaking(value: Any) -> bytes:
        nonlocal count
        count += 1
        if count == 4:
            shown.wait(60)  # a browser may drop what it had not read when the wire was cut
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
    page.locator(".assistant .text").get_by_text("o").wait_for()
    shown.set()
    page.get_by_text("Cut off: the connection to the server broke").wait_for()
    question, answer = seen(page)
    assert question == "What?"
    assert len(answer) > len("|Cut off: the connection to the server broke")


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
    while page.evaluate("looks.asked") == before:
        page.clock.fast_forward(16_000)
        page.wait_for_timeout(20)
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
        while not page.inner_text("#problem"):
            page.clock.fast_forward(16_000)
            page.wait_for_timeout(20)
    assert left.value.url.endswith("/v1/chat/completions")
    assert page.inner_text("#problem") == "the server no longer answers"
    assert page.input_value("#text") == "What?"


FILL = """
  STORE.clear();
  for (let size = 2 ** 22, number = 0; size >= 1; size /= 2) {
    try {
      for (;;) STORE.setItem(`f${number++}`, "x".repeat(size));
    } catch {}
  }
"""
REFUSE = "Object.defineProperty(window, 'STORE', {get() { throw new Error('refused'); }});"


@pytest.mark.parametrize("script", [FILL, REFUSE], ids=["full", "refused"])
@pytest.mark.parametrize("store", ["sessionStorage", "localStorage"])
def test_a_browser_that_keeps_nothing_asks_as_it_is_set(
    store: str, script: str, page: Any, server: Running, tmp_path: Path
) -> None:
    page.goto("about:blank")
    page.add_init_script(script.replace("STORE", store))
    page.goto(f"http://127.0.0.1:{server.port}/#token={TOKEN}")
    bodies = watch_requests(page)
    page.click("#open-settings")
    page.fill("#max_tokens", "3")
    page.get_by_role("button", name="Done").click()
    show_pictures(page, tmp_path, "a.png")
    assert ask(page, "What?", 1)
    assert seen(page)[0] == "a.png|What?"
    assert bodies[-1]["max_tokens"] == 3


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
        page.evaluate("sessionStorage.setItem('token', 'old')")
        page.reload()
        page.fill("#text", "What?")
        page.press("#text", "Enter")
        page.get_by_text("No valid token").wait_for()
        assert page.input_value("#text") == "What?"
        opened = page.context.new_page() if other else page
        opened.goto(address + TOKEN)
        page.get_by_text("No valid token").wait_for(state="detached")
        page.locator("#model", has_text="tiny").wait_for()
        page.press("#text", "Enter")
        page.get_by_role("button", name="Retry").wait_for()
    assert page.evaluate("document.querySelectorAll('#settings input').length") > 4


def test_trouble_with_the_history_is_said(page: Any) -> None:
    body = sse(piece("Yes."), {**piece(""), "choices": [], "notice": "not kept: disk full"})
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=body + sse("[DONE]"), content_type="text/event-stream"),
    )
    assert ask(page, "What?", 1) == "Yes."
    page.get_by_text("not kept: disk full").wait_for()


# ---- conversations that open again, and in several places


@pytest.mark.parametrize("road", ["list", "reload", "command line", "file"])
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
    elif road == "reload":
        page.evaluate(f"sessionStorage.setItem('open', JSON.stringify('{id}'))")
        page.reload()
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


def test_two_tabs_lose_no_turn(page: Any, server: Running) -> None:
    few_tokens(page)
    ask(page, "First", 1)
    (talk,) = server.history.list()
    other = page.context.new_page()
    other.goto(f"http://127.0.0.1:{server.port}/#token={TOKEN}")
    other.locator("#list-toggle").click()
    other.get_by_role("button", name="First", exact=True).click()
    other.get_by_role("button", name="Retry").wait_for()
    ask(page, "Here", 2)
    ask(other, "There", 2)
    other.get_by_text("has gone on elsewhere").wait_for()
    ask(other, "There again", 3)
    ask(page, "Here again", 3)
    page.locator(".user").nth(1).get_by_role("button", name="Edit").click()
    ask(page, "Here instead", 2)

    def kept() -> dict[str, list[str]]:
        return {
            talk.title: [m.text for m in server.history.load(talk.id) if m.role == "user"]
            for talk in server.history.list()
        }

    assert kept() == {
        "First": ["First", "Here instead"],
        "First (2)": ["First", "There", "There again"],
    }
    # Elsewhere it is edited, and here it is edited without knowing of that.
    other.goto("about:blank")
    server.history.save(
        talk.id,
        [*server.history.load(talk.id), user_message("Terminal")],
        known=[server.history.read(talk.id).version],
    )
    page.locator(".user").nth(1).get_by_role("button", name="Edit").click()
    ask(page, "Here at last", 2)
    assert kept() == {
        "First": ["First", "Here instead", "Terminal"],
        "First (2)": ["First", "There", "There again"],
        "First (3)": ["First", "Here at last"],
    }


def begin_second(page: Any) -> None:
    """A conversation whose second answer is under way, in a list that is open."""
    few_tokens(page)
    ask(page, "First", 1)
    page.evaluate("localStorage.setItem('max_tokens', '3000')")
    page.fill("#text", "Second")
    page.press("#text", "Enter")
    answer = page.locator(".assistant .text").nth(1)
    while answer.count() == 0 or len(answer.inner_text()) < 3:
        page.wait_for_timeout(20)
    page.locator("#list-toggle").click()


@pytest.mark.usefixtures("slow_model")
def test_what_is_deleted_does_not_come_back_with_its_answer(page: Any, server: Running) -> None:
    begin_second(page)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete First").click()
    page.locator(".empty").wait_for()
    server.wait_until_idle()
    wait_until(lambda: all(a.kept for a in server.service.answers if a.conversation))
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
        answer = page.locator(".assistant .text").nth(number)
        while answer.count() == 0 or len(answer.inner_text()) < 3:
            page.wait_for_timeout(20)
        page.locator("#stop-answer").click()
        page.locator(".assistant").nth(number).get_by_role("button", name="Retry").wait_for()
        if number == 1:
            server.wait_until_idle()
    server.wait_until_idle()
    wait_until(lambda: [talk.turns for talk in server.history.list()] == [3])
