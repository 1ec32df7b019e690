"""The page in a real browser: a whole conversation with a picture. Needs Chromium and the `browser` extra."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.test_server import TOKEN, Running, server

import pytest
from PIL import Image

__all__ = ["server"]  # the fixture
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream"),
    "--use-fake-ui-for-media-stream",
]


@pytest.fixture
def page(server: Running) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        opened = browser.new_context(viewport={"width": 390, "height": 760}, permissions=["camera"]).new_page()
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: problems.extend([request.url] if "127.0.0.1" not in request.url[:20]
                  and not request.url.startswith(("data:", "blob:")) else []))  # fmt: skip
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
    Image.effect_noise((90, 60), 60).convert("RGB").save(tmp_path / "cat.png")
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


def test_stopping_pasting_and_errors(page: Any, server: Running) -> None:
    page.evaluate("localStorage.setItem('max_tokens', '3000'); localStorage.setItem('temperature', '1')")
    page.reload()
    page.fill("#text", "Hello")
    page.press("#text", "Enter")
    page.locator("#stop").click()
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
    page.get_by_text("is not a readable picture").wait_for()
    page.evaluate("sessionStorage.clear()")
    page.reload()
    page.get_by_text("No valid token").wait_for()


def test_a_full_context_asks_what_to_forget(page: Any, server: Running) -> None:
    page.evaluate("localStorage.setItem('max_tokens', '4')")
    page.reload()
    ask(page, "First", 1)
    words = "word " * 795
    ask(page, words, 2)
    page.fill("#text", "And more")
    page.evaluate("document.querySelector('#system').value = 'x'.repeat(30)")
    page.press("#text", "Enter")
    page.get_by_role("button", name="Forget the oldest turn").click()
    page.locator(".assistant").nth(1).get_by_role("button", name="Retry").wait_for()
    assert page.locator(".user .text").first.inner_text() == words.strip()
