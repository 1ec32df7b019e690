"""The settings of the page: each option, and who goes before whom."""

from pathlib import Path
from typing import Any

from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.options import options_of
from smolvlm_mlx.server.start import WITHOUT, Start
from tests.support.browser import ask, change, open_settings, seen, show_pictures, watch_requests
from tests.support.http import TOKEN, Running

import pytest

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
    "end_loops": ("off", False),
    "longest_edge": ("128", 128),
    "split": ("off", False),
    "max_tiles": ("3", 3),
}


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
    for name in SETTINGS:  # empty is as usual
        change(page, name, "")
    page.get_by_role("button", name="Done").click()
    ask(page, "Hi", 2)
    told = {"repetition_penalty": 1.1, "end_loops": True}  # in which a chat differs from a request
    assert {name: bodies[1][name] for name in SETTINGS if name in bodies[1]} == told


def test_what_was_typed_for_the_server_goes_before_what_the_browser_keeps(
    page: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.evaluate("localStorage.setItem('temperature', '1.5'); localStorage.setItem('top_k', '7')")
    options = Options(max_tokens=5, temperature=0.25, stop=("x", "y z"))
    monkeypatch.setattr(server.service, "options", options)
    monkeypatch.setattr(server.service, "image_options", ImageOptions(split=False))
    typed = ("max_tokens", "temperature", "stop", "split")
    monkeypatch.setattr(server.service, "start", Start(typed, options=options))
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
    monkeypatch.setattr(server.service, "start", Start(typed, options=options))
    page.reload()
    ask(page, "Hi", 3)
    assert "temperature" not in bodies[2]


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
