"""How a browser gets into the page: with the printed address, the token pasted, or a cookie of
before; and what the page does over plain http from another machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.browser import reload_without_cookies
from tests.support.http import INSECURE, TOKEN, Running, always
from tests.support.served import serving_alone

import pytest

FRAGMENT = f"#token={TOKEN.replace(' ', '%20')}"


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A browser that has been nowhere. The token is in no request's address, Referer or body, and
    in nothing that it says."""
    opened = browser.new_context(viewport={"width": 390, "height": 760}, reduced_motion="reduce")
    problems: list[str] = []
    opened.on("weberror", lambda error: problems.append(str(error.error)))
    opened.on("console", lambda said: problems.extend([said.text] if TOKEN in said.text else []))

    def check(request: Any) -> None:
        sent = f"{request.url} {request.headers.get('referer', '')} {request.post_data}"
        if re.search("right.{1,3}token|#", sent):
            problems.append(sent)

    opened.on("request", check)
    yield opened
    assert problems == []
    opened.close()


@pytest.fixture
def address(server: Running) -> str:
    return f"http://127.0.0.1:{server.port}/"


def is_in(page: Any) -> bool:
    """Whether the page has come in, which it has or asks for the token."""
    page.locator("#token-dialog[open], #model:not(:empty)").first.wait_for()
    return not page.locator("#token-dialog").is_visible()


def open_in(context: Any, address: str) -> Any:
    page = context.new_page()
    page.goto(address)
    return page


def paste(page: Any, text: str) -> None:
    page.fill("#token-field", text)
    page.keyboard.press("Enter")


def kept(page: Any) -> str:
    """Where a script could find a secret."""
    return str(
        page.evaluate(
            "JSON.stringify([location.href, document.cookie, localStorage, sessionStorage])"
        )
    )


def test_the_printed_address_opens_once_and_then_none_is_needed(context: Any, address: str) -> None:
    """Second tabs, a bookmark, a link from elsewhere; and what scripts could read is no way in."""
    first = open_in(context, address + FRAGMENT)
    assert is_in(first)
    assert first.url == address
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    found = kept(first)
    assert "page-key" in found
    assert not any(secret in found for secret in ("right", cookie["value"], cookie["name"]))
    first.reload()
    assert is_in(first)
    assert is_in(open_in(context, address))
    elsewhere = open_in(context, "data:text/html,<a href='" + address + "'>the page</a>")
    elsewhere.get_by_text("the page").click()
    assert is_in(elsewhere)
    # Another name of the server is another place to a browser.
    assert not is_in(open_in(context, address.replace("127.0.0.1", "localhost")))
    # As at another port of this host: the cookie is sent, the key is not there.
    first.evaluate("localStorage.clear()")
    assert not is_in(open_in(context, address))


def test_a_tab_that_has_the_page_takes_the_address(context: Any, address: str) -> None:
    page = open_in(context, address)
    assert not is_in(page)
    page.evaluate("document.title = 'the same'")
    page.evaluate(f"location.href = '{address}{FRAGMENT}'")
    page.locator("#token-dialog").wait_for(state="hidden")
    page.locator("#model:not(:empty)").wait_for()
    assert (page.url, page.title()) == (address, "the same")  # nothing was loaded again
    page.locator("#settings input").nth(4).wait_for(state="attached")
    context.clear_cookies()
    page.evaluate(f"location.hash = '{FRAGMENT}x'")
    page.locator("#list-toggle").click()
    page.fill("#search", "w")
    page.get_by_text("That is not the token").wait_for()
    assert page.url == address


PASTED = {
    "the token": TOKEN,
    "with spaces around": f"  {TOKEN} ",
    "the address": f"http://127.0.0.1:1/{FRAGMENT}",
    "a line": f"page: http://127.0.0.1:1/{FRAGMENT}",
    "the other line": f"API:  http://127.0.0.1:1/v1  token: {TOKEN}",
}


@pytest.mark.parametrize("kind", PASTED)
def test_a_token_is_pasted(kind: str, context: Any, address: str) -> None:
    """After some that are none; other tabs that wait come in as well."""
    page, other = open_in(context, address), open_in(context, address)
    assert not is_in(page)
    assert not is_in(other)
    assert page.evaluate("document.activeElement.id") == "token-field"
    for text in ("wrong", "wröng", "#token=%", "#token="):
        page.fill("#token-field", "")
        page.evaluate("document.getElementById('token-problem').textContent = ''")
        paste(page, text)
        page.get_by_text("That is not the token of this server").wait_for()
    page.route("**/v1/models", lambda route: route.abort("connectionrefused"))
    paste(page, "right")
    page.get_by_text("The server cannot be reached").wait_for()
    page.unroute("**/v1/models")
    paste(page, PASTED[kind])
    for tab in (page, other):
        tab.locator("#token-dialog").wait_for(state="hidden")
        assert is_in(tab)
        tab.locator("#settings input").nth(4).wait_for(state="attached")
    assert page.input_value("#token-field") == ""


def test_what_was_typed_stays_when_the_token_is_refused(context: Any, address: str) -> None:
    assert is_in(open_in(context, address + FRAGMENT))
    page = open_in(context, address)  # nothing is answered here that sets a cookie
    assert is_in(page)
    context.pages[0].close()
    context.clear_cookies()
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.locator("#token-dialog[open]").wait_for()
    page.get_by_role("button", name="Not now").click()
    page.get_by_text("No valid token").wait_for()
    assert page.input_value("#text") == "What?"
    page.press("#text", "Enter")
    page.locator("#token-dialog[open]").wait_for()
    paste(page, TOKEN)
    page.locator("#problem:empty").wait_for(state="attached")
    page.press("#text", "Enter")
    page.get_by_role("button", name="Retry").wait_for()


def test_a_page_that_was_not_let_in_begins_when_it_is(context: Any, address: str) -> None:
    page = open_in(context, address)
    assert not is_in(page)
    page.keyboard.press("Escape")
    page.get_by_text("No valid token").wait_for()
    assert is_in(open_in(context, address + FRAGMENT))  # in another tab
    page.locator("#model:not(:empty)").wait_for()
    page.locator("#settings input").nth(4).wait_for(state="attached")


def test_a_browser_without_cookies_is_let_in_for_as_long_as_the_page_is_open(
    context: Any, address: str
) -> None:
    context.add_init_script("Object.defineProperty(navigator, 'cookieEnabled', {value: false})")
    page = open_in(context, address + FRAGMENT)
    assert is_in(page)
    context.clear_cookies()
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.get_by_role("button", name="Retry").wait_for()
    reload_without_cookies(page)
    assert not is_in(page)


@pytest.mark.slow
def test_the_server_is_started_again(context: Any, tmp_path: Path) -> None:
    """At the same port, with the same token, and then with another."""
    port, pages = 0, list[Any]()
    for flags in ((), (), ("--new-token",)):
        options = ("serve", "-m", "tiny", "--dtype", "float32", "--port", str(port), *flags)
        with serving_alone(tmp_path, options=options) as served:
            port, printed = served.port, served.page.split()[1]
            for page in pages:
                page.press("#text", "Enter")
            pages.append(open_in(context, printed if not pages else printed.partition("#")[0]))
            if flags:
                assert not any(map(is_in, pages))
                paste(pages[0], printed)
            for page in pages:
                page.locator("#token-dialog").wait_for(state="hidden")
                assert is_in(page)
                page.fill("#text", "What?")
                page.press("#text", "Enter")
                page.get_by_role("button", name="Retry").wait_for()
            served.process.kill()
        for page in pages:
            page.fill("#text", "Are you there?")
            page.press("#text", "Enter")
            page.get_by_text("The server cannot be reached").wait_for()
            assert page.input_value("#text") == "Are you there?"


# ---- over http from another machine


def test_what_secure_pages_alone_may_do_is_done_or_explained(context: Any, server: Running) -> None:
    address = f"http://{INSECURE}:{server.port}/"
    page = open_in(context, address + FRAGMENT)
    assert is_in(page)
    assert page.evaluate("[isSecureContext, navigator.clipboard, navigator.mediaDevices]") == [
        *(False, None, None)
    ]
    assert is_in(open_in(context, address))
    page.bring_to_front()
    page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(
            post_data=json.dumps({**route.request.post_data_json, **always("one **two**")})
        ),
    )
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.get_by_role("button", name="Copy").click()
    assert page.evaluate("document.activeElement.textContent") in ("Copy", "Copied")
    page.focus("#text")
    page.keyboard.press("ControlOrMeta+v")
    assert page.input_value("#text") == '"one **two**"'
    for button in ("#camera", "#live-toggle"):
        page.evaluate("document.getElementById('problem').textContent = ''")
        page.click(button)
        page.get_by_text("no camera: browsers open it on secure pages alone").wait_for()
        said = page.inner_text("#problem")
        assert f"ssh -L {server.port}:localhost:{server.port} {INSECURE} and open" in said
        assert f"http://localhost:{server.port}/" in said
    assert page.get_attribute("#live-toggle", "aria-pressed") == "false"
