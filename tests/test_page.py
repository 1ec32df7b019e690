"""The page in a real browser: a whole conversation with a picture. Needs Chromium and the `browser`
extra."""

import base64
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.generation.scheduler import Job
from smolvlm_mlx.inputs.media import Attachment, Video
from smolvlm_mlx.inputs.messages import VideoPart, text_message, user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.options import options_of
from smolvlm_mlx.server.start import WITHOUT, Start
from smolvlm_mlx.tasks.history import new_id
from tests.support.http import TOKEN, Running, always
from tests.support.pictures import PICTURE, noise
from tests.support.videos import encode_video

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


@pytest.fixture
def page(server: Running) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_context(
            viewport={"width": 390, "height": 760}, permissions=["camera"]
        ).new_page()
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on(
            "console",
            lambda said: problems.extend([said.text] if "Content Security" in said.text else []),
        )
        opened.add_init_script(WATCH_POLICY)
        opened.on(
            "request",
            lambda request: problems.extend(
                [request.url]
                if "127.0.0.1" not in request.url[:20]
                and not request.url.startswith(("data:", "blob:"))
                else []
            ),
        )
        opened.goto(f"http://127.0.0.1:{server.port}/#token={TOKEN}")
        yield opened
        assert problems == []
        browser.close()


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
    assert page.locator(".user .text").all_inner_texts() == [words.strip(), "And more"]
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
    ask(page, "Hi", 1)
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
    ask(page, "Hi", 1)
    assert bodies[1]["temperature"] == 0.75
    monkeypatch.setattr(server.service, "start", Start(typed))
    page.reload()
    ask(page, "Hi", 1)
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
    assert bodies[0]["conversation"] == id
    assert said[0] == {"role": "system", "content": "Be brief."}
    (clip, question), (picture, words) = said[1]["content"], said[3]["content"]
    assert (clip["fps"], clip["end"]) == (2.0, 2.5)  # what was seen of the video is seen again
    assert (question["text"], words["text"]) == ("Before?", "And this?")
    assert picture["name"] == "cat.png"
    # Once: loaded again, the page is empty, and has its instructions.
    page.reload()
    page.locator(".empty").wait_for()
    page.locator("#max_tokens").wait_for(state="attached")
    assert page.input_value("#system") == "Be brief."
    assert page.locator("#waiting img").count() == 0
    server.history.delete(id)
