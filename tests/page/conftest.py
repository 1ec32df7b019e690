"""Chromium, and the page opened in it."""

from collections.abc import Iterator
from typing import Any

from tests.support.browser import ARGUMENTS, CHROMIUM, WATCH_POLICY
from tests.support.http import TOKEN, Running

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Here alone: this file is read where nothing of the page is tested, too.
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
