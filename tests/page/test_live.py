"""The camera's picture, described again and again."""

import base64
import io
import json
import re
from typing import Any

from smolvlm_mlx.generation.scheduler import Job
from tests.support.browser import wait_for
from tests.support.http import Running, always

import numpy as np
import pytest
from PIL import Image

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
    wait_for(page, lambda: len(bodies) >= seen + 2 and len(beside) >= len(bodies))
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
    page.locator("#live-toggle[aria-pressed=false]").wait_for()
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

    page.route("**/v1/chat/completions", watch)
    turn_live_on(page, every="0.1")
    wait_for(page, lambda: len(notices) == 6)
    assert set(notices) == {""}  # nothing changes, and so nothing is odd
    changes = True
    wait_for(page, lambda: notices[-1] == "The answer stays the same although the picture changes.")
    assert notices.count(notices[-1]) == 1
    text = "other"
    wait_for(page, lambda: notices[-1] == "")
    assert len(set(ids)) == 1
    page.click("#live-toggle")
    page.click("#live-toggle")
    wait_for(page, lambda: ids[-1] != ids[0])  # begins anew
    page.get_by_text("frame 1 ").wait_for()
    page.click("#live-toggle")
    page.locator("#live-toggle[aria-pressed=false]").wait_for()
    page.unroute_all(behavior="wait")


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
    page.locator("#live-toggle[aria-pressed=false]").wait_for()
    assert page.locator("#live").is_hidden()
