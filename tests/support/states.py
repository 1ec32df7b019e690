"""What the page can look like: a table of states, each with the way there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.messages import Message, TextPart, text_message, user_message
from smolvlm_mlx.tasks.history import new_id
from tests.support.browser import reload_without_cookies, show_pictures
from tests.support.http import TOKEN, Running
from tests.support.pictures import encoded

from PIL import Image, ImageDraw

# An answer that begins, and never ends.
ENDLESS = """words => {
  const ask = window.fetch;
  window.fetch = (path, options) => {
    if (path !== "/v1/chat/completions") return ask(path, options);
    const event = {choices: [{delta: {content: words}, finish_reason: null}]};
    const bytes = new TextEncoder().encode(`data: ${JSON.stringify(event)}\\n\\n`);
    return Promise.resolve(new Response(new ReadableStream({start: s => s.enqueue(bytes)})));
  };
}"""

MARKDOWN = """# What is in it

A **red circle** left of a *blue square*, see [the page](https://example.org):

| shape | colour | area |
|:--|---|--:|
| circle | red | 1,257 |
| square | blue | 1,600 |

1. The circle's area is $\\pi r^2$.
2. In code:

```python
def area(radius: float) -> float:
    return 3.14159 * radius**2  # a comment
```

$$\\int_0^r 2 \\pi x \\, dx = \\pi r^2$$

> A quote, and `code` in it.

## And a heading
"""
WIDE = " + ".join(f"x_{{{number}}}" for number in range(100))  # wider than any window
MARKDOWN += f"\n$${WIDE}$$\n"


def question(text: str) -> Message:
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 60, 150, 180), fill="red")
    draw.rectangle((190, 80, 290, 180), fill="blue")
    return user_message(text, [Attachment(encoded(image, "PNG"), name="shapes.png")])


TALK = [
    question("What is in this picture?"),
    text_message("assistant", "A red circle left of a blue square, on white."),
    text_message("user", "ما هو الشكل الأحمر؟"),
    text_message("assistant", "الشكل الأحمر دائرة."),
]


def open_talk(page: Any, server: Running, *branches: list[Message]) -> None:
    """Open a conversation that the history has, of which the last branch is shown."""
    id = new_id()
    for messages in branches:
        server.history.save(id, messages)
    page.goto(f"http://127.0.0.1:{server.port}/c/{id}#token={TOKEN}")
    page.locator(".message").nth(len(branches[-1]) - 1).wait_for()


def empty(page: Any, server: Running, folder: Path) -> None:
    page.locator("#model:not(:empty)").wait_for()


def conversation(page: Any, server: Running, folder: Path) -> None:
    open_talk(page, server, TALK)


def streaming(page: Any, server: Running, folder: Path) -> None:
    open_talk(page, server, TALK)
    page.evaluate(ENDLESS, "The blue square is right of")
    page.fill("#text", "And the blue one?")
    page.press("#text", "Enter")
    page.get_by_text("The blue square is right of").wait_for()


def settings(page: Any, server: Running, folder: Path) -> None:
    page.click("#open-settings")
    page.locator("#max_tokens").wait_for()
    page.click("#settings summary")


def open_list(page: Any) -> None:
    if page.locator("#list-toggle").is_visible():
        page.click("#list-toggle")


def history(page: Any, server: Running, folder: Path) -> None:
    server.history.save(new_id(), [question("An older question, which is rather long")])
    open_talk(page, server, TALK)
    open_list(page)
    page.locator("#list li").nth(1).wait_for()


def nothing_found(page: Any, server: Running, folder: Path) -> None:
    open_talk(page, server, TALK)
    open_list(page)
    page.fill("#search", "zebra")
    page.locator("#list li").wait_for(state="detached")


def damaged(page: Any, server: Running, folder: Path) -> None:
    show_pictures(page, folder, "a.png", "broken.png", "b.png")
    page.fill("#text", "What is this?")
    page.press("#text", "Enter")
    page.locator("figure.wrong").wait_for()


def error(page: Any, server: Running, folder: Path) -> None:
    open_talk(page, server, TALK)
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.fill("#text", "And the blue one?")
    page.press("#text", "Enter")
    page.get_by_text("The server cannot be reached").wait_for()


def cut_off(page: Any, server: Running, folder: Path) -> None:
    half = Message("assistant", (TextPart("There is a red circle, and"),), interrupted=True)
    other = [text_message("user", "And which is larger?"), text_message("assistant", "The square.")]
    open_talk(page, server, [*TALK, *other], [*TALK[:1], half])
    page.locator(".branches").wait_for()


def keys(page: Any, server: Running, folder: Path) -> None:
    page.click("#open-keys")


def token(page: Any, server: Running, folder: Path) -> None:
    reload_without_cookies(page)
    page.locator("#token-dialog[open]").wait_for()


def markdown(page: Any, server: Running, folder: Path) -> None:
    question = text_message("user", "Describe it in every way that you know.")
    open_talk(page, server, [question, text_message("assistant", MARKDOWN)])
    page.locator("math").nth(1).wait_for()
    page.locator(".hljs-keyword").first.wait_for()


def viewer(page: Any, server: Running, folder: Path) -> None:
    open_talk(page, server, TALK)
    page.locator(".user figure img").click()
    page.locator("#viewer-shown .tile").first.wait_for()


def menu(page: Any, server: Running, folder: Path) -> None:
    history(page, server, folder)
    page.get_by_role("button", name="More: An older question").click()
    page.get_by_role("button", name="Export as Markdown").wait_for()


def toast(page: Any, server: Running, folder: Path) -> None:
    menu(page, server, folder)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Undo").hover()  # and so it stays


def camera(page: Any, server: Running, folder: Path) -> None:
    page.click("#camera")
    page.wait_for_function("() => document.querySelector('#video').videoWidth > 0")


# By name, the way there from an empty page.
STATES: dict[str, Callable[[Any, Running, Path], None]] = {
    "empty": empty,
    "conversation": conversation,
    "streaming": streaming,
    "settings": settings,
    "history": history,
    "nothing-found": nothing_found,
    "damaged-picture": damaged,
    "error": error,
    "cut-off": cut_off,
    "keys": keys,
    "token": token,
    "markdown": markdown,
    "viewer": viewer,
    "menu": menu,
    "toast": toast,
    "camera": camera,
}
