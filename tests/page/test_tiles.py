"""What the model saw, in the page: a picture with its tiles over it, what they cost and where they
came from; and what a question costs before it is sent."""

import json
from pathlib import Path
from typing import Any

from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.inputs.tiles import plan_tiles, tile_boxes
from tests.support.browser import (
    ask,
    change,
    few_tokens,
    open_settings,
    piece,
    show_pictures,
    sse,
    watch_requests,
)
from tests.support.http import Running
from tests.support.pictures import noise
from tests.support.videos import encode_video

import pytest
from PIL import Image

COST = "13 tiles · 239 tokens"  # of a picture of 90 x 60


def line(page: Any) -> str:
    """What the cost of the next question is said to be."""
    return str(page.locator("#cost-line").inner_text()).replace("\u00a0", " ")


def wait_for_line(page: Any, text: str) -> None:
    page.locator("#cost-line", has_text=text).wait_for()
    assert line(page) == text


def wait_for_title(page: Any, name: str, place: str) -> None:
    page.locator("#viewer-name", has_text=name).wait_for()
    assert page.inner_text("#viewer-place") == place
    page.locator("#viewer-about p").first.wait_for()


def about(page: Any) -> list[str]:
    """What the viewer says of a picture, and of where its tiles came from."""
    page.locator("#viewer-about p").first.wait_for()
    return [text.strip() for text in page.inner_text("#viewer-about").splitlines() if text.strip()]


def boxes(page: Any) -> list[list[float]]:
    """Where the tiles are drawn, in parts of the picture: left, top, right, bottom."""
    script = """([picture]) => [...picture.querySelectorAll('.tile')].map(tile => {
        const all = picture.querySelector('img').getBoundingClientRect();
        const {left, top, right, bottom} = tile.getBoundingClientRect();
        return [(left - all.left) / all.width, (top - all.top) / all.height,
            (right - all.left) / all.width, (bottom - all.top) / all.height];
    })"""
    page.locator("#viewer-shown .tile").first.wait_for()
    return list(page.locator("#viewer-shown .seen:not(.whole)").evaluate_all(script))


def planned(server: Running, width: int, height: int, **options: Any) -> list[list[float]]:
    """Where the processor cuts them, without the global tile."""
    settings = ImageOptions(**options).applied(server.service.processor.settings)
    layout = plan_tiles((width, height), settings)
    sides = (width, height, width, height)
    *tiles, _ = tile_boxes(layout, (width, height))
    return [[place / side for place, side in zip(box, sides, strict=True)] for box in tiles]


def test_a_picture_opens_by_click_and_by_keys(page: Any, tmp_path: Path) -> None:
    few_tokens(page)
    show_pictures(page, tmp_path, "a.png", "b.png")
    ask(page, "What?", 1)
    show_pictures(page, tmp_path, "c.png")
    page.locator("#talk").get_by_role("button", name="a.png").click()
    wait_for_title(page, "a.png", "1 of 3")
    assert about(page)[0].startswith("90 × 60 pixels · ")
    for key, name, place in (
        ("ArrowRight", "b.png", "2 of 3"),
        ("ArrowRight", "c.png", "3 of 3"),
        ("ArrowRight", "a.png", "1 of 3"),
        ("ArrowLeft", "c.png", "3 of 3"),
    ):
        page.keyboard.press(key)
        wait_for_title(page, name, place)
    page.keyboard.press("Escape")
    page.locator("#viewer").wait_for(state="hidden")
    # Where one was is where one goes on.
    page.wait_for_function("() => document.activeElement.title === 'c.png'")
    for key in ("Enter", "Space"):
        page.locator("#talk img").nth(1).focus()
        page.keyboard.press(key)
        wait_for_title(page, "b.png", "2 of 3")
        page.get_by_role("button", name="Close").click()
        page.locator("#viewer").wait_for(state="hidden")
        page.wait_for_function("() => document.activeElement.title === 'b.png'")
    page.locator("#talk img").nth(1).click()
    page.get_by_role("button", name="The next picture").click()
    wait_for_title(page, "c.png", "3 of 3")
    page.mouse.click(2, 2)  # beside it
    page.locator("#viewer").wait_for(state="hidden")


def test_tiles_are_drawn_where_they_are_cut(page: Any, server: Running, tmp_path: Path) -> None:
    few_tokens(page)
    noise(500, 130).save(tmp_path / "wide.png")
    page.set_input_files("#files", tmp_path / "wide.png")
    page.locator("#waiting img").click()
    assert boxes(page) == [pytest.approx(box, abs=0.01) for box in planned(server, 500, 130)]
    assert page.locator(".whole .tile").count() == 1
    assert about(page) == [
        "500 × 130 pixels · 2 rows × 4 columns and the global tile: 9 tiles · 166 tokens",
        "As it will be cut when it is sent.",
    ]
    page.keyboard.press("Escape")
    page.evaluate("localStorage.setItem('max_tiles', '5')")
    ask(page, "What?", 1)
    page.evaluate("localStorage.removeItem('max_tiles')")
    page.locator("#talk img").click()  # as it was seen, not as it would be now
    few = planned(server, 500, 130, max_tiles=5)
    assert boxes(page) == [pytest.approx(box, abs=0.01) for box in few]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_it_says_where_the_latest_answer_had_tiles_from(
    page: Any, server: Running, tmp_path: Path
) -> None:
    few_tokens(page)
    noise(90, 60, 7).save(tmp_path / "new.png")
    page.set_input_files("#files", tmp_path / "new.png")
    ask(page, "What?", 1)
    page.locator("#talk img").click()
    size = f"90 × 60 pixels · 3 rows × 4 columns and the global tile: {COST}"
    assert about(page) == [size, "For the latest answer:", "13 tiles computed"]
    assert page.locator("#viewer .tile.computed").count() == 13
    page.keyboard.press("Escape")
    page.set_input_files("#files", tmp_path / "new.png")
    ask(page, "And now?", 2)
    page.locator("#talk img").first.click()
    read = "13 tiles reused: in the prompt that was read before"
    assert about(page) == [size, "For the latest answer:", read]
    page.keyboard.press("ArrowRight")
    wait_for_title(page, "new.png", "2 of 2")
    kept = "13 tiles reused: features of an equal tile, read again"
    page.get_by_text(kept).wait_for()
    assert about(page) == [size, "For the latest answer:", kept]
    assert page.locator("#viewer .tile.features").count() == 13
    # What an answer had from where is known to the page that asked for it.
    page.reload()
    page.locator("#talk img").first.click()
    page.get_by_text("As it would be cut now").wait_for()
    assert about(page)[0] == size


def test_the_slider_bounds_the_tiles(page: Any, server: Running, tmp_path: Path) -> None:
    few_tokens(page)
    page.reload()
    bodies = watch_requests(page)
    assert page.locator("#cost").is_hidden()
    show_pictures(page, tmp_path, "a.png")
    wait_for_line(page, COST)
    slider = page.get_by_role("slider")
    assert slider.get_attribute("max") == "13"
    assert page.inner_text("#most-words") == "all"
    slider.fill("6")
    wait_for_line(page, "5 tiles · 94 tokens")
    assert page.inner_text("#most-words") == "at most 6"
    assert slider.get_attribute("aria-valuetext") == "at most 6"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#most-words", has_text="at most 5").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ask(page, "What?", 1)
    assert bodies[0]["max_tiles"] == 5
    assert "5 tiles" in page.inner_text(".assistant .about")
    assert page.locator("#cost").is_hidden()
    # It is the option of the settings, both ways.
    open_settings(page)
    assert page.input_value("#max_tiles") == "5"
    page.get_by_role("button", name="Done").click()
    show_pictures(page, tmp_path, "b.png")
    wait_for_tiles(page, "5 tiles · 94 tokens")
    slider.fill("13")
    wait_for_tiles(page, COST)
    assert page.input_value("#max_tiles") == ""
    page.click("#open-settings")
    change(page, "split", "off")
    page.get_by_role("button", name="Done").click()
    wait_for_tiles(page, "1 tile · 19 tokens")
    assert slider.is_hidden()
    ask(page, "And now?", 2)
    assert "max_tiles" not in bodies[1]


def wait_for_tiles(page: Any, text: str) -> None:
    """As `wait_for_line`, whatever seconds are said after it."""
    page.locator("#cost-line", has_text=text).wait_for()
    assert line(page).startswith(text)


def test_seconds_are_told_as_they_were_measured(page: Any, tmp_path: Path) -> None:
    timing = {"preprocess": 1, "vision": 5, "prefill": 4, "about": "so", "tiles": 5}
    usage = {
        "prompt_tokens": 250,
        "completion_tokens": 1,
        "timing": timing,
        "prompt_tokens_details": {"cached_tokens": 50, "image_tokens": 80},
    }
    seen = [{"width": 90, "height": 60, "tiles": 3, "tokens": 57, "origins": ORIGINS}]
    stop = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    asked: list[str] = []

    def fulfill(route: Any) -> None:
        asked.append(route.request.post_data)
        more = {"usage": usage, "seen": seen} if len(asked) > 1 else {"usage": usage}
        body = sse(piece("It is."), stop, {"choices": [], **more}, "[DONE]")
        route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/v1/chat/completions", fulfill)
    show_pictures(page, tmp_path, "a.png")
    wait_for_line(page, COST)
    ask(page, "What?", 1)
    show_pictures(page, tmp_path, "b.png")
    wait_for_line(page, COST)  # no tile was measured yet
    ask(page, "What?", 2)
    show_pictures(page, tmp_path, "c.png", "d.png")
    # Two tiles in 6 seconds, 2 x 200 tokens in 8: 26 x 3 + 478 x 0.02.
    told = "26 tiles · 478 tokens · about 88 s to read"
    wait_for_line(page, told)
    page.reload()
    wait_for_line(page, told)
    # Of another run of the server, which may have another model, nothing is known.
    page.evaluate("sessionStorage.setItem('run', 'before')")
    kept = json.loads(page.evaluate("sessionStorage.getItem('speed')"))
    page.evaluate(f"sessionStorage.setItem('speed', '{json.dumps({**kept, 'run': 'before'})}')")
    page.reload()
    wait_for_line(page, "26 tiles · 478 tokens")


ORIGINS = ["prompt", "computed", "computed"]


def test_a_turned_photo_counts_as_it_stands(page: Any, tmp_path: Path) -> None:
    few_tokens(page)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(96, 30).save(tmp_path / "turned.jpg", exif=exif)
    assert Attachment(tmp_path / "turned.jpg").size == (30, 96)
    page.set_input_files("#files", tmp_path / "turned.jpg")
    page.locator("#waiting img").click()
    before = about(page)[0]
    assert before.startswith("30 × 96 pixels · 4 rows × 2 columns")
    page.keyboard.press("Escape")
    ask(page, "What?", 1)
    page.locator("#talk img").click()
    assert about(page)[:2] == [before, "For the latest answer:"]


def test_a_video_has_frames(page: Any, tmp_path: Path) -> None:
    few_tokens(page)
    (tmp_path / "clip.webm").write_bytes(encode_video(30, 10, "webm", "vp9"))
    show_pictures(page, tmp_path, "a.png")
    page.set_input_files("#files", tmp_path / "clip.webm")
    page.locator("#cost-line", has_text="frames").wait_for()
    tiles, frames, tokens = line(page).split(" · ")
    assert (tiles, frames) == ("13 tiles", "about 3 frames")
    expected = int(tokens.removeprefix("about ").removesuffix(" tokens")) - 239
    page.get_by_role("button", name="Look at clip.webm").click()
    plan = f"64 × 48 pixels · about 3 frames, a tile each · about {expected} tokens"
    assert about(page)[0] == plan
    page.keyboard.press("ArrowLeft")
    wait_for_title(page, "a.png", "1 of 2")
    page.keyboard.press("Escape")
    ask(page, "What?", 1)
    page.get_by_role("button", name="Look at clip.webm").click()
    size, _, origins = about(page)
    assert size == plan.replace("about ", "")
    assert origins == "3 tiles computed"


def test_what_the_browser_cannot_show_is_said(page: Any, tmp_path: Path) -> None:
    show_pictures(page, tmp_path, "a.png", "broken.png")
    wait_for_line(page, f"{COST} · 1 whose cost cannot be told")
    page.locator("#waiting img").nth(1).click()
    assert about(page) == ["This browser cannot show it; the model may see it."]
    assert page.locator("#viewer .tile").count() == 0
