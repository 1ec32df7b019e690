"""The page in a real browser: what people do and see there."""

import json
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.http import INSECURE
from tests.support.pictures import noise

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
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
    f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1",
]
HAS_BROWSER = CHROMIUM is not None and find_spec("playwright") is not None

WATCH_POLICY = """
    addEventListener("securitypolicyviolation",
      ({violatedDirective, blockedURI, sourceFile}) =>
        console.error("Content Security Policy:", violatedDirective, blockedURI, sourceFile));
"""


def ask(page: Any, text: str, answers: int) -> str:
    """The last answer, once there are so many."""
    page.fill("#text", text)
    page.press("#text", "Enter")
    answer = page.locator(".assistant").nth(answers - 1)
    answer.get_by_role("button", name="Retry").wait_for()
    return str(answer.locator(".text").inner_text())


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


BROKEN = b"II*\0" + bytes(300)  # a TIFF, of which the browser knows nothing
DAMAGED = b"\x89PNG\r\n\x1a\n" + bytes(300)


def show_pictures(page: Any, tmp_path: Path, *names: str) -> None:
    """Let pictures wait; those that are called broken cannot be read."""
    for name in names:
        if "broken" in name:
            (tmp_path / name).write_bytes(BROKEN)
        else:
            noise(90, 60).save(tmp_path / name)
    page.set_input_files("#files", [tmp_path / name for name in names])
    page.locator("#waiting figure").nth(len(names) - 1).wait_for()
    page.locator("#waiting [aria-busy=true]").first.wait_for(state="detached")  # read, and kept


def seen(page: Any) -> list[str]:
    """The conversation: the pictures of each message, its text, and why it ends early."""
    script = """articles => articles.map(article => [
        ...[...article.querySelectorAll('figure > :first-child')].map(node => node.title),
        ...[...article.querySelectorAll('.text, .cut')].map(node => node.textContent)].join('|'))"""
    return list(page.locator(".message").evaluate_all(script))


def reload_without_cookies(page: Any) -> None:
    """As a browser that has forgotten them."""
    url = page.url
    page.goto("about:blank")  # no answer is on its way that would set another
    page.context.clear_cookies()
    page.goto(url)


def few_tokens(page: Any) -> None:
    page.evaluate("localStorage.setItem('max_tokens', '3')")


def sse(*events: object) -> str:
    return "".join(
        f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events
    )


def piece(text: str, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}


ERROR = {"error": {"message": "the engine failed", "type": "server_error"}}


def shown(page: Any) -> list[str]:
    """The texts of the conversation."""
    return list(page.locator(".message .text").all_inner_texts())


def begin(page: Any, text: str, answers: int = 1) -> None:
    """Ask, and wait for the first words of an answer that would not end."""
    page.evaluate("localStorage.setItem('max_tokens', '3000')")
    page.fill("#text", text)
    page.press("#text", "Enter")
    wait_for_words(page, answers)


def wait_for(page: Any, done: Callable[[], object]) -> None:
    """As `wait_until`, while what the page asks for is handled here."""
    deadline = time.monotonic() + 60  # a net
    while not done():
        assert time.monotonic() < deadline, page.inner_text("body")
        page.wait_for_timeout(20)


def wait_for_words(page: Any, answers: int = 1, more_than: int = 2) -> None:
    answer = page.locator(".assistant .text").nth(answers - 1)
    wait_for(page, lambda: answer.count() and len(answer.inner_text()) > more_than)


def answer_here(page: Any) -> str:
    return shown(page)[-1].rstrip()
