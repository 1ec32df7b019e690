"""The page for everyone: what axe-core finds, where the focus goes, what a screen reader is told,
the keys, and what people have set for all pages.

With SCREENSHOTS=folder each state of `tests/support/states.py` is drawn there, light and dark, on a
phone and on a desktop.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolvlm_mlx.inputs.messages import Message, text_message
from smolvlm_mlx.tasks.history import new_id
from tests.support.browser import (
    begin,
    few_tokens,
    show_pictures,
    shown,
    wait_for_words,
    watch_requests,
)
from tests.support.http import Running, always
from tests.support.states import STATES, TALK, open_talk

import pytest

base = pytest.importorskip("axe_playwright_python.base")

WIDTHS = (390, 768, 1280, 1920)
SIZES = {"phone": (390, 760), "desktop": (1280, 800)}
AXE = """async () => {
    const rules = {"target-size": {enabled: true}};
    const {violations} = await axe.run(document, {resultTypes: ["violations"], rules});
    return violations.flatMap(({id, nodes}) => nodes.map(({html}) => `${id}: ${html}`));
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(
    state: str, theme: str, page: Any, server: Running, tmp_path: Path
) -> None:
    page.emulate_media(color_scheme=theme)
    STATES[state](page, server, tmp_path)
    page.evaluate(base.AXE_SCRIPT)
    found = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        found[width] = page.evaluate(AXE)
    assert found == {width: [] for width in WIDTHS}
    if folder := os.environ.get("SCREENSHOTS"):
        for device, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            page.screenshot(path=Path(folder) / f"{state}-{device}-{theme}.png")


# ---- how it fits


# By name: the width of the window, and what is changed before.
ROOMS: dict[str, tuple[int, str]] = {
    "narrow": (320, ""),
    "phone": (390, ""),
    "tablet": (768, ""),
    "phone, page at 200 %": (195, ""),
    "tablet, page at 200 %": (384, ""),
    "laptop, page at 200 %": (640, ""),
    "screen, page at 200 %": (960, ""),
    "phone, text at 200 %": (390, "document.documentElement.style.fontSize = '200%'"),
    "tablet, text at 200 %": (768, "document.documentElement.style.fontSize = '200%'"),
    "laptop, text at 200 %": (1280, "document.documentElement.style.fontSize = '200%'"),
    "phone, from right to left": (390, "document.documentElement.dir = 'rtl'"),
    "laptop, from right to left": (1280, "document.documentElement.dir = 'rtl'"),
}
# What can be pressed and lies outside of the window, is too small, or is scrolled sideways to.
MISFITS = """() => {
    const name = node => `${node.tagName} ${node.id} ${node.className} ${node.textContent.trim()}`;
    const scope = document.querySelector("dialog[open]") ?? document.body;
    const controls = [...scope.querySelectorAll("button, input, select, textarea, summary")];
    const seen = controls.filter(node => node.checkVisibility() && !node.closest(".hidden"));
    const parts = scope.querySelectorAll("nav, main, #talk, form");
    const boxes = [scope, document.documentElement, ...parts];
    const outside = seen.filter(node => {
      const {left, right, width, height} = node.getBoundingClientRect();
      return left < 0 || right > innerWidth || width < 24 || height < 24;
    });
    const wide = boxes.filter(node => node.scrollWidth > node.clientWidth + 1);
    return [...outside, ...wide].map(name);
}"""


@pytest.mark.parametrize("state", STATES)
def test_it_fits_at_every_width_zoom_and_direction(
    state: str, page: Any, server: Running, tmp_path: Path
) -> None:
    STATES[state](page, server, tmp_path)
    found = {}
    for name, (width, change) in ROOMS.items():
        page.set_viewport_size({"width": width, "height": 700})
        page.evaluate(change or "0")
        found[name] = page.evaluate(MISFITS)
        page.evaluate("document.documentElement.removeAttribute('style')")
        page.evaluate("document.documentElement.removeAttribute('dir')")
    assert found == {name: [] for name in ROOMS}


# ---- where the focus goes


def focused(page: Any) -> str:
    """The name or text of what has it."""
    script = "document.activeElement.ariaLabel ?? document.activeElement.textContent"
    return str(page.evaluate(script)).strip()


def press(page: Any, name: str, key: str = "Enter") -> None:
    """Press the last button of this name, as somebody without a mouse."""
    button = page.get_by_role("button", name=name, exact=True).last
    button.focus()
    page.keyboard.press(key)


def wait_for_focus(page: Any, name: str) -> None:
    script = "n => (document.activeElement.ariaLabel ?? document.activeElement.textContent) === n"
    page.wait_for_function(script, arg=name)


@pytest.mark.usefixtures("slow_model")
def test_the_focus_goes_from_retry_to_stop_and_back(page: Any) -> None:
    begin(page, "Hello")
    press(page, "Stop")
    wait_for_focus(page, "Question")  # beside it, and Stop is gone
    press(page, "Retry")
    wait_for_focus(page, "Stop")
    wait_for_words(page)
    page.keyboard.press("Space")
    wait_for_focus(page, "Retry")
    press(page, "Continue")
    wait_for_focus(page, "Stop")
    page.keyboard.press("Enter")
    wait_for_focus(page, "Continue")
    press(page, "Edit")
    wait_for_focus(page, "Question")
    page.keyboard.press("Escape")
    assert page.input_value("#text") == ""
    assert focused(page) == "Question"


def test_the_focus_stays_when_retry_fails(page: Any, server: Running) -> None:
    open_talk(page, server, TALK)
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    press(page, "Retry")
    page.get_by_text("The server cannot be reached").wait_for()
    wait_for_focus(page, "Retry")


def test_the_focus_is_where_one_asks_after_send(page: Any) -> None:
    few_tokens(page)
    page.fill("#text", "Hello")
    press(page, "Send")
    page.get_by_role("button", name="Retry").wait_for()
    assert focused(page) == "Question"


def test_the_focus_stays_at_what_is_removed_from_a_list(
    page: Any, server: Running, tmp_path: Path
) -> None:
    show_pictures(page, tmp_path, "a.png", "b.png", "c.png")
    press(page, "Remove b.png")
    wait_for_focus(page, "Remove c.png")
    page.keyboard.press("Enter")
    wait_for_focus(page, "Remove a.png")
    page.keyboard.press("Enter")
    wait_for_focus(page, "Question")


def test_the_focus_stays_in_the_list_of_conversations(page: Any, server: Running) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    few_tokens(page)
    for name in ("One", "Two", "Three"):
        server.history.save(new_id(), [text_message("user", name)])
    page.reload()
    press(page, "More: Two")
    wait_for_focus(page, "Rename")
    press(page, "Delete")
    wait_for_focus(page, "Undo")
    page.get_by_role("button", name="Three", exact=True).focus()
    server.history.save(new_id(), [text_message("user", "Four")])
    page.evaluate("document.dispatchEvent(new Event('answered'))")  # the list is made anew
    page.get_by_role("button", name="Four", exact=True).wait_for()
    assert focused(page) == "Three"
    page.keyboard.press("Enter")
    page.locator(".message").wait_for()
    wait_for_focus(page, "Question")


@pytest.mark.parametrize("size", SIZES)
def test_a_closed_dialog_or_list_gives_the_focus_back(size: str, page: Any) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    for name in ("Settings", "List of keys", "Take a picture"):
        press(page, name)
        page.locator("dialog[open]").wait_for()
        page.keyboard.press("Escape")
        page.locator("dialog[open]").wait_for(state="detached")
        wait_for_focus(page, name)
    page.evaluate("document.activeElement.blur()")
    page.evaluate("document.getElementById('settings').showModal()")
    page.keyboard.press("Escape")
    wait_for_focus(page, "Question")
    if size == "phone":
        press(page, "☰ Conversations")
        page.keyboard.press("Tab")
        page.focus("#search")
        page.keyboard.press("Escape")
        assert page.locator("#search").is_hidden()
        wait_for_focus(page, "☰ Conversations")


def test_the_focus_can_be_seen_wherever_it_is(page: Any, server: Running) -> None:
    """In both themes, and in a system's own colours."""
    open_talk(page, server, TALK)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    for media in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"forced_colors": "active"}):
        page.emulate_media(**media)
        page.focus("#text")
        stops = []
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                continue  # the browser's own controls
            stops.append((focused(page), page.evaluate(outline)))
        assert {"Send", "Settings", "Live", "Edit", "Copy", "Retry"} <= {name for name, _ in stops}
        assert {style for _, style in stops} == {"solid"}


# ---- what a screen reader is told

LISTEN = """
  window.told = [];
  for (const name of ["status", "problem"]) {
    const node = document.getElementById(name);
    new MutationObserver(() => {
      if (node.textContent) told.push(`${node.getAttribute("role")}: ${node.textContent}`);
    }).observe(node, {childList: true, characterData: true, subtree: true});
  }
"""


def test_an_answer_is_told_once_when_it_is_whole(page: Any) -> None:
    page.evaluate(LISTEN)
    text = "A **red** circle"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(
            post_data=json.dumps({**route.request.post_data_json, **always(text)})
        ),
    )
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.get_by_role("button", name="Retry").wait_for()
    assert page.evaluate("told") == ["status: Answering", 'status: "A red circle"']
    live = "[aria-live], [role=log], [role=status], [role=alert], output"
    talk = page.locator("#talk")
    assert talk.locator(live).count() == 0
    assert talk.evaluate("(node, live) => node.closest(live)", live) is None


@pytest.mark.usefixtures("slow_model")
def test_an_answer_that_another_tab_asked_for_is_told_too(page: Any, server: Running) -> None:
    begin(page, "Hello")
    other = page.context.new_page()
    other.goto(page.url)
    wait_for_words(other)
    other.evaluate(LISTEN)
    page.click("#stop-answer")
    other.get_by_role("button", name="Retry").wait_for()
    said = " ".join(other.locator(".assistant .text").inner_text().split())
    assert other.evaluate("told") == [f"status: {said} The answer is not whole."]
    other.close()


def test_what_a_screen_reader_is_told_of_markdown(page: Any, server: Running) -> None:
    """Its words, apart where they stand apart, without buttons and the source of formulas."""
    STATES["markdown"](page, server, Path())
    script = """async () => {
        const { spoken, messageNode } = await import("/page/message.js");
        const { showAll } = await import("/page/talk.js");
        const text = ["# One", "| a | b |\\n|---|---|\\n| c | d |", "- e\\n- f", "```py\\ng\\n```"];
        const cut = "the engine failed";
        const answer = {role: "assistant", text: text.join("\\n\\n"), pictures: [], cut};
        showAll([messageNode(answer, [])]);
        return spoken(answer);
    }"""
    assert page.evaluate(script) == "One a b c d e f g Cut off: the engine failed"


def test_an_error_is_told_once(page: Any, server: Running, tmp_path: Path) -> None:
    page.evaluate(LISTEN)
    STATES["damaged-picture"](page, server, tmp_path)
    alerts = [said for said in page.evaluate("told") if said.startswith("alert")]
    assert alerts == ["alert: A picture cannot be used: remove it, or send again without it."]


# ---- the keys


def new_conversation(page: Any, bodies: list[Any]) -> None:
    page.locator(".empty").wait_for()
    assert focused(page) == "Question"


def search(page: Any, bodies: list[Any]) -> None:
    assert focused(page) == "Search conversations"
    assert page.locator("#search").is_visible()


def retried(page: Any, bodies: list[Any]) -> None:
    page.locator(".about", has_text=" tokens").wait_for()
    texts = [part["text"] for part in bodies[0]["messages"][-1]["content"] if "text" in part]
    assert (len(bodies), texts) == (1, [TALK[2].text])


def gone_on(page: Any, bodies: list[Any]) -> None:
    page.locator(".about", has_text=" tokens").wait_for()
    assert bodies[0]["continue_final_message"] is True


def edited(page: Any, bodies: list[Any]) -> None:
    assert (focused(page), page.input_value("#text")) == ("Question", TALK[2].text)


def copied(page: Any, bodies: list[Any]) -> None:
    page.wait_for_function("() => document.getElementById('status').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == TALK[3].text


def before(page: Any, bodies: list[Any]) -> None:
    """The first press goes to the newest."""
    assert page.evaluate("document.activeElement.innerText").endswith("Copy\nRetry")
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert "A red circle" in page.evaluate("document.activeElement.innerText")


def after(page: Any, bodies: list[Any]) -> None:
    page.keyboard.press("k")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.innerText").endswith("Copy\nRetry")


def live(page: Any, bodies: list[Any]) -> None:
    page.locator("#live-toggle[aria-pressed=true]").wait_for()
    page.keyboard.press("l")
    page.locator("#live-toggle[aria-pressed=false]").wait_for()


def opened(id: str) -> Callable[[Any, list[Any]], None]:
    def check(page: Any, bodies: list[Any]) -> None:
        page.locator(f"#{id}[open]").wait_for()

    return check


def in_field(page: Any, bodies: list[Any]) -> None:
    assert focused(page) == "Question"
    page.keyboard.press("e")  # is a letter there
    assert page.input_value("#text") == "e"


# By key, what is true after it was pressed in a conversation.
PRESSED: dict[str, Callable[[Any, list[Any]], None]] = {
    "?": opened("keys"),
    "q": in_field,
    "n": new_conversation,
    "s": search,
    "k": before,
    "j": after,
    "r": retried,
    "g": gone_on,
    "e": edited,
    "c": copied,
    "l": live,
    ",": opened("settings"),
}


@pytest.mark.parametrize("key", PRESSED)
def test_a_listed_key_does_what_it_says(key: str, page: Any, server: Running) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write", "camera"])
    few_tokens(page)
    talk = TALK
    if key == "g":
        talk = [*TALK[:1], Message("assistant", TALK[1].parts, interrupted=True)]
    open_talk(page, server, talk)
    bodies = watch_requests(page)
    page.focus("#text")
    page.keyboard.press("Escape")  # leaves the field, in which keys are letters
    assert focused(page) != "Question"
    page.keyboard.press(key)
    PRESSED[key](page, bodies)
    assert page.evaluate("document.activeElement !== document.body")


@pytest.mark.usefixtures("slow_model")
def test_enter_and_escape_do_what_the_list_says(page: Any) -> None:
    page.evaluate("localStorage.setItem('max_tokens', '3000')")
    page.focus("#text")
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.locator("#stop-answer").wait_for()
    assert shown(page)[0] == "One\ntwo"
    wait_for_words(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Continue").wait_for()
    assert focused(page) == "Question"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "talk"


def test_the_list_has_all_keys_and_switches_letters_off(page: Any) -> None:
    page.locator("#talk").focus()
    page.keyboard.press("?")
    listed = page.locator("#keys-list dt").evaluate_all("nodes => nodes.map(n => n.innerText)")
    assert listed == [*PRESSED, "Enter", "Shift Enter", "Escape"]
    assert page.get_attribute("#new", "aria-keyshortcuts") == "n"
    page.focus("#letters")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    for _ in range(2):
        page.locator("#talk").focus()
        page.keyboard.press(",")
        page.keyboard.press("?")
        assert page.locator("dialog[open]").count() == 0
        assert page.get_attribute("#new", "aria-keyshortcuts") is None
        page.reload()  # after which it is so, too


@pytest.mark.parametrize("modifier", ["Control", "Alt", "Meta"])
def test_keys_of_the_browser_are_left_to_it(modifier: str, page: Any, server: Running) -> None:
    open_talk(page, server, TALK)
    page.locator("#talk").focus()
    page.evaluate(
        "addEventListener('keydown', event => { window.taken = event.defaultPrevented; })"
    )
    for key in PRESSED:
        page.evaluate(
            "([key, name]) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown',"
            "{key, bubbles: true, cancelable: true, [`${name}Key`]: true}))",
            [key, {"Control": "ctrl"}.get(modifier, modifier.lower())],
        )
        assert page.evaluate("window.taken") is False
    assert page.evaluate("document.activeElement.id") == "talk"


# ---- what people have set for all pages


def test_nothing_moves_where_motion_is_reduced(page: Any) -> None:
    rule = "#send { transition: all 9s; animation: x 9s infinite; scroll-behavior: smooth }"
    page.evaluate("rule => { document.styleSheets[0].insertRule(rule); }", rule)
    style = """(({transitionDuration, animationDuration, scrollBehavior}) =>
        [transitionDuration, animationDuration, scrollBehavior])(
        getComputedStyle(document.getElementById("send")))"""
    assert page.evaluate(style) == ["0s", "0s", "auto"]
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(style) == ["9s", "9s", "smooth"]


def test_text_and_page_go_from_right_to_left(page: Any, server: Running) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    open_talk(page, server, TALK)
    page.locator(".plain").first.wait_for(state="detached")
    direction = "nodes => nodes.map(node => getComputedStyle(node).direction)"
    assert page.locator(".user .text, .assistant p").evaluate_all(direction) == [
        "ltr",
        "ltr",
        "rtl",
        "rtl",
    ]
    for field in ("#text", "#search", "#system", "#live-question"):
        page.locator(field).evaluate("node => { node.value = 'سؤال'; }")
        assert page.locator(field).evaluate_all(direction) == ["rtl"]
    page.evaluate("document.documentElement.dir = 'rtl'")
    box = page.locator("nav").bounding_box()
    assert box["x"] + box["width"] == 1280
    assert page.locator("nav").evaluate("node => getComputedStyle(node).borderLeftWidth") == "1px"


def test_more_contrast_and_forced_colors_are_heeded(page: Any, server: Running) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    open_talk(page, server, TALK)
    page.locator("#list [aria-current=true]").wait_for()
    colors = "getComputedStyle(document.body)"
    page.emulate_media(contrast="more", color_scheme="light")
    assert page.evaluate(f"[{colors}.color, {colors}.backgroundColor]") == [
        *("rgb(0, 0, 0)", "rgb(255, 255, 255)")
    ]
    page.evaluate(base.AXE_SCRIPT)
    for theme in ("light", "dark"):
        page.emulate_media(contrast="more", color_scheme=theme)
        assert page.evaluate(AXE) == []
    page.emulate_media(contrast="no-preference", forced_colors="active")
    style = "node => getComputedStyle(node).outlineStyle"
    assert page.locator("#list [aria-current=true]").evaluate(style) == "solid"
    width = "nodes => nodes.map(node => getComputedStyle(node).borderInlineStartWidth)"
    assert page.locator(".message .text").evaluate_all(width) == ["8px", "1px", "8px", "1px"]
