"""The first impression: the empty page, the list of conversations, and files that are added."""

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from smolvlm_mlx.inputs.image import load_image
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.inputs.tiles import make_tiles
from smolvlm_mlx.tasks.history import new_id
from tests.support.browser import DAMAGED, ask, few_tokens, piece, seen, sse, watch_requests
from tests.support.http import Running
from tests.support.pictures import PICTURE, data_url, encoded, noise

import numpy as np
import pytest
from PIL import Image

CAT = Attachment(PICTURE, name="cat.png")
TALK = [user_message("What is this?", [CAT]), text_message("assistant", "A cat.")]


def listed(page: Any, server: Running) -> str:
    """The id of a conversation in the list, which is shown."""
    id = new_id()
    server.history.save(id, TALK)
    page.reload()
    page.locator("#list-toggle").click()
    page.locator("#list li").first.wait_for()
    return id


def choose(page: Any, action: str) -> None:
    page.get_by_role("button", name="More:").click()
    page.get_by_role("button", name=action).click()


def waiting(page: Any) -> list[str]:
    """The names of the pictures that wait, when all are read."""
    page.wait_for_function("() => !document.querySelector('#waiting [aria-busy=true]')")
    return list(page.locator("#waiting figure").evaluate_all("all => all.map(f => f.dataset.name)"))


# ---- the empty page


def test_an_empty_page_tells_of_the_model_and_opens_the_file_dialog(
    page: Any, server: Running
) -> None:
    page.locator(".examples button").nth(2).wait_for()
    parameters, weights = server.service.parameters, server.service.weight_bytes
    assert parameters
    assert weights
    about = page.inner_text(".empty .about")
    assert about.startswith("tiny")
    assert f"{weights / 1e6:.1f} MB of weights" in about
    assert "parameters" in about
    assert "of memory in use" in about
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    with page.expect_file_chooser() as chooser:
        page.locator(".drop").click()
    assert chooser.value.is_multiple()


def test_an_example_waits_for_a_picture_and_is_asked_with_one(page: Any, tmp_path: Path) -> None:
    few_tokens(page)
    page.get_by_role("button", name="Describe the picture.").click()
    assert page.input_value("#text") == "Describe the picture."
    assert page.locator(".message").count() == 0
    PICTURE.save(tmp_path / "cat.png")
    page.set_input_files("#files", tmp_path / "cat.png")
    assert waiting(page) == ["cat.png"]
    page.get_by_role("button", name="What does the text say?").click()
    page.get_by_role("button", name="Retry").wait_for()
    assert seen(page)[0] == "cat.png|What does the text say?"


# ---- the list


def test_a_conversation_is_renamed(page: Any, server: Running) -> None:
    id = listed(page, server)
    choose(page, "Rename")
    page.keyboard.type("<b>Kater</b>")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="What is this?", exact=True).wait_for()
    assert server.history.title(id) == "What is this?"
    choose(page, "Rename")
    page.keyboard.type("<b>Kater</b>")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="<b>Kater</b>", exact=True).wait_for()
    assert server.history.title(id) == "<b>Kater</b>"
    choose(page, "Rename")
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="What is this?", exact=True).wait_for()


def test_a_conversation_is_exported_and_opens_again(
    page: Any, server: Running, tmp_path: Path
) -> None:
    listed(page, server)
    with page.expect_download() as download:
        choose(page, "Export as Markdown")
    assert download.value.suggested_filename == "What-is-this.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.read("pictures/1-cat.png") == CAT.data
        assert "![cat.png](pictures/1-cat.png)" in archive.read("conversation.md").decode()
    with page.expect_download() as download:
        choose(page, "Export as JSON")
    assert download.value.suggested_filename == "What-is-this.json"
    download.value.save_as(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text())["title"] == "What is this?"
    page.set_input_files("#files", tmp_path / "talk.json")
    page.get_by_text("A cat.").wait_for()
    assert seen(page) == ["cat.png|What is this?", "A cat."]


def test_a_deleted_conversation_is_gone_and_comes_back_by_the_keyboard(
    page: Any, server: Running
) -> None:
    id = listed(page, server)
    page.get_by_role("button", name="What is this?", exact=True).click()
    page.get_by_text("A cat.").wait_for()
    page.locator("#list-toggle").click()
    page.get_by_role("button", name="More:").focus()
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Deleted “What is this?”.").wait_for()
    page.locator(".empty").wait_for(state="attached")
    assert server.history.list() == []
    assert "elsewhere" not in page.inner_text("#problem")
    page.get_by_role("button", name="Undo").and_(page.locator(":focus")).wait_for()
    page.keyboard.press("Enter")
    page.locator("#list li").wait_for(state="attached")
    page.get_by_text("A cat.").wait_for(state="attached")
    assert page.locator(".toast").count() == 0
    assert [message.text for message in server.history.load(id)] == ["What is this?", "A cat."]


def test_the_focus_stays_in_the_list_when_one_is_deleted_with_the_mouse(
    page: Any, server: Running
) -> None:
    page.route("**/conversations/*?undo=true", lambda route: None)
    server.history.save(new_id(), [user_message("Older")])
    listed(page, server)
    page.get_by_role("button", name="More: What is this?").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Older", exact=True).and_(page.locator(":focus")).wait_for()


def test_undo_stays_as_long_as_it_has_the_focus_or_the_mouse(page: Any) -> None:
    page.clock.install()
    page.evaluate(
        "import('/page/toast.js').then(({ toast }) => { toast('Gone.', 'Undo', () => {}); })"
    )
    undo = page.get_by_role("button", name="Undo")
    undo.focus()
    undo.hover()
    page.mouse.move(1, 1)
    page.clock.fast_forward(20_000)
    undo.hover()
    page.focus("#text")
    page.clock.fast_forward(20_000)
    assert undo.is_visible()
    page.mouse.move(1, 1)
    page.clock.fast_forward(20_000)
    undo.wait_for(state="detached")


def test_above_a_long_list_the_buttons_stay(page: Any, server: Running) -> None:
    for number in range(60):
        server.history.save(new_id(), [user_message(f"Question {number}"), TALK[1]])
    page.reload()
    page.click("#list-toggle")
    page.locator("#list li").nth(59).wait_for()
    for size in ({"width": 390, "height": 700}, {"width": 320, "height": 300}):
        page.set_viewport_size(size)
        for id in ("new", "search"):
            fits = "node => node.scrollHeight <= node.clientHeight && node.clientHeight >= 22"
            assert page.locator(f"#{id}").evaluate(fits), id
    page.set_viewport_size({"width": 390, "height": 700})
    page.locator("#list li").nth(59).scroll_into_view_if_needed()
    assert page.locator("#new").evaluate("node => node.getBoundingClientRect().top > 0")


def test_a_search_without_results_says_so(page: Any, server: Running) -> None:
    page.locator("#list-toggle").click()
    page.get_by_text("What you ask is kept here.").wait_for()
    listed(page, server)
    page.fill("#search", "zebra")
    page.get_by_text("No conversation has “zebra”.").wait_for()
    assert page.locator("#list li").count() == 0
    page.fill("#search", "CAT")
    page.locator("#list li").wait_for()
    assert not page.locator("#none").is_visible()


def test_a_button_says_that_it_copied(page: Any, server: Running) -> None:
    page.context.grant_permissions(["camera", "clipboard-read", "clipboard-write"])
    listed(page, server)
    page.get_by_role("button", name="What is this?", exact=True).click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "A cat."


# ---- files


def test_twenty_pictures_of_which_two_are_damaged(page: Any, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(20)]
    for number, name in enumerate(names):
        bad = number in (3, 11)
        data = DAMAGED if bad else encoded(noise(30 + number, 20, seed=number), "PNG")
        (tmp_path / name).write_bytes(data)
    good = [name for name in names if name not in ("3.png", "11.png")]
    bodies = watch_requests(page)
    timing = {"preprocess": 0, "vision": 0, "prefill": 0, "about": "done"}
    details = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}
    yes = piece("Yes", usage={**details, "timing": timing})
    page.route(
        "**/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=sse(yes, "[DONE]")),
    )
    page.set_input_files("#files", [tmp_path / name for name in names])
    page.locator("#waiting figure").nth(19).wait_for()
    assert waiting(page) == names
    wrong = page.locator("#waiting .wrong")
    assert wrong.evaluate_all("all => all.map(f => f.dataset.name)") == ["3.png", "11.png"]
    assert wrong.locator("figcaption").all_inner_texts() == ["cannot be read: damaged"] * 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("#text", "What are these?")
    page.press("#text", "Enter")
    page.get_by_text("Asked without what cannot be read: 3.png, 11.png").wait_for()
    page.get_by_role("button", name="Retry").wait_for()
    (message,) = [each for each in bodies[0]["messages"] if each["role"] == "user"]
    assert [part.get("name") for part in message["content"]] == [*good, None]


def test_nothing_is_asked_when_no_picture_can_be_read(page: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(DAMAGED)
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "c.zip").write_bytes(b"PK")
    page.set_input_files("#files", [tmp_path / name for name in ("a.png", "b.jpg", "c.zip")])
    page.get_by_text("c.zip is no picture and no video").wait_for()
    assert waiting(page) == ["a.png", "b.jpg"]
    page.fill("#text", "What?")
    page.press("#text", "Enter")
    page.get_by_text("Remove what cannot be read, and ask again: a.png, b.jpg").wait_for()
    assert page.locator(".message").count() == 0
    assert page.input_value("#text") == "What?"


def drop(page: Any, *paths: Path) -> None:
    """Drop files and folders, as from a window of the system."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [*map(str, paths)], "dragOperationsMask": 1}
    where = {"x": 200, "y": 300, "data": data}
    for _ in range(100):  # a page that is not drawn yet takes no drag
        session.send("Input.dispatchDragEvent", {"type": "dragEnter", **where})
        session.send("Input.dispatchDragEvent", {"type": "dragOver", **where})
        if page.locator("body.dropping").count():
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail("the page takes no drag")
    session.send("Input.dispatchDragEvent", {"type": "drop", **where})


def test_a_folder_is_dropped_with_all_below_in_the_order_of_names(
    page: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for name in ("10.png", "2.png", "sub/b.png", "sub/a.png", "x.png", ".hidden/z.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(30, 20).save(folder / name)
    (folder / "notes.txt").write_text("x")
    (folder / "sub/list.csv").write_text("x")
    noise(30, 20).save(tmp_path / "last.png")
    drop(page, folder, tmp_path / "last.png")
    page.locator("#waiting figure").nth(5).wait_for()
    assert waiting(page) == ["2.png", "10.png", "a.png", "b.png", "x.png", "last.png"]
    assert page.inner_text("#problem") == "Passed over: 2 files of other kinds."


GATHER = """async count => {
    const { gather } = await import("/page/files.js");
    const file = number => ({ isFile: true, name: `${number}.png`,
      file: done => done(new File(["x"], `${number}.png`, { type: "image/png" })) });
    const folder = entries => ({ isDirectory: true, name: "endless",
      createReader: () => ({ readEntries: done => done(entries.splice(0, 100)) }) });
    const deep = () => ({ isDirectory: true, name: "a",
      createReader: () => { const left = [deep(), file(1)];
        return { readEntries: done => done(left.splice(0)) }; } });
    const many = folder(Array.from({ length: count }, (_, at) => file(at)));
    const wanted = () => true;
    const first = await gather({ dropped: [many], html: "", list: "" }, wanted);
    const second = await gather({ dropped: [deep()], html: "", list: "" }, wanted);
    return [first.files.map(({ name }) => name), first.problems, second.files.length];
}"""


def test_folders_have_a_bound(page: Any) -> None:
    names, problems, deep = page.evaluate(GATHER, 250)
    assert names == [f"{number}.png" for number in range(100)]
    assert problems == ["Only the first 100 pictures were added."]
    assert deep == 16


DROP = """data => {
    const dataTransfer = new DataTransfer();
    for (const [type, text] of Object.entries(data)) dataTransfer.setData(type, text);
    document.querySelector("#talk").dispatchEvent(
      new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


def test_a_picture_of_another_tab_is_dropped_or_it_is_said_what_to_do(page: Any) -> None:
    page.evaluate(DROP, {"text/html": f'<img src="{data_url()}" alt="x">', "text/uri-list": "x:y"})
    page.locator("#waiting img").wait_for()
    assert waiting(page) == ["picture"]
    page.evaluate(DROP, {"text/uri-list": page.evaluate("location.origin + '/favicon.ico'")})
    page.locator("#waiting figure").nth(1).wait_for()
    assert waiting(page) == ["picture", "favicon.ico"]
    page.evaluate(DROP, {"text/html": '<img src="https://pictures.example/a/cat.jpg?w=5">'})
    page.get_by_text(
        "cat.jpg is on pictures.example, where this page may not look: copy the picture there and "
        "paste it here, or save it and drop the file."
    ).wait_for()
    page.evaluate(DROP, {"text/uri-list": "blob:https://pictures.example/1-2"})
    page.get_by_text("is on").wait_for(state="detached")
    page.get_by_text("belongs to another page").wait_for()
    page.evaluate(DROP, {"text/uri-list": "data:,"})
    page.get_by_text("belongs to").wait_for(state="detached")
    assert waiting(page) == ["picture", "favicon.ico"]


# ---- pictures that are larger than what the model sees


def photo(kind: str) -> tuple[bytes, int]:
    """A large file, and by how much pixels may differ."""
    if kind == "PNG":
        return encoded(noise(1900, 1000), "PNG"), 0
    smooth = noise(1400, 800).resize((3500, 2000), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[274] = 6
    return encoded(smooth, "JPEG", quality=100, subsampling=0, exif=turned), 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_is_sent_as_small_as_it_is_seen(
    kind: str, page: Any, server: Running, tmp_path: Path
) -> None:
    data, most = photo(kind)
    assert len(data) > 2**22
    (tmp_path / f"photo.{kind.lower()}").write_bytes(data)
    bodies = watch_requests(page)
    few_tokens(page)
    page.set_input_files("#files", tmp_path / f"photo.{kind.lower()}")
    page.locator("#waiting figure").wait_for()
    waiting(page)
    ask(page, "What is this?", 1)
    url = bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    sent = base64.b64decode(url.partition(",")[2])
    assert len(sent) < len(data)
    assert Image.open(io.BytesIO(sent)).format == kind
    settings = server.service.processor.settings
    small, large = load_image({"image": sent}), load_image({"image": data})
    assert max(small.size) == settings.longest_edge
    got, wanted = make_tiles(small, settings), make_tiles(large, settings)
    assert got.layout == wanted.layout
    difference = np.abs(got.tiles.astype(int) - wanted.tiles)
    assert difference.max() <= most
    assert difference.mean() <= most / 8


NOISE = """
  const get = OffscreenCanvasRenderingContext2D.prototype.getImageData;
  OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...box) {
    const found = get.apply(this, box);
    found.data[8] ^= 1;
    return found;
  };
"""
WORKERS = {
    "changes pixels": lambda route: route.fulfill(
        body=NOISE + route.fetch().text(), content_type="text/javascript"
    ),
    "has no worker": lambda route: route.abort(),
}


@pytest.mark.parametrize("kind", WORKERS)
def test_where_the_browser_cannot_make_it_smaller_the_file_is_sent(
    kind: str, page: Any, tmp_path: Path
) -> None:
    data, _ = photo("PNG")
    (tmp_path / "photo.png").write_bytes(data)
    page.route("**/resize.js", WORKERS[kind])
    bodies = watch_requests(page)
    few_tokens(page)
    page.set_input_files("#files", tmp_path / "photo.png")
    page.locator("#waiting figure").wait_for()
    waiting(page)
    ask(page, "What is this?", 1)
    url = bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.partition(",")[2]) == data


def deep(side: int) -> Image.Image:
    """Noise of 16 bits."""
    values = np.random.default_rng(0).integers(0, 2**16, (side, side), np.uint16)
    return Image.fromarray(values)


FILES = {
    "small": noise(3000, 20),
    "tall, so that Pillow goes vertically first": noise(300, 8000),
    "of 16 bits": deep(1500),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_the_server_makes_smaller_otherwise_is_sent_as_it_is(
    kind: str, page: Any, tmp_path: Path
) -> None:
    data = encoded(FILES[kind], "PNG")
    assert (len(data) > 2**22) == (kind != "small")
    (tmp_path / "wide.png").write_bytes(data)
    bodies = watch_requests(page)
    few_tokens(page)
    page.set_input_files("#files", tmp_path / "wide.png")
    page.locator("#waiting img").wait_for()
    ask(page, "What is this?", 1)
    url = bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.partition(",")[2]) == data
