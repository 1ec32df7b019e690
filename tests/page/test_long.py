"""A conversation of hundreds of turns: only what is near the window is made."""

from typing import Any

from smolvlm_mlx.inputs.messages import text_message, user_message
from smolvlm_mlx.tasks.history import new_id
from tests.support.http import TOKEN, Running

import pytest

TURNS = 500
RICH = """Some **words** of turn {0}.

- one *item*
- two `items`

| Item | Price |
|------|------:|
| Cake | {0} |
| Tea | $x^2$ |

```python
def f(x):
    return x + {0}
```

$$\\frac{{a}}{{b}} = {0}$$
"""


def keep_long(server: Running, turns: int) -> str:
    """The id of a long conversation."""
    id, messages = new_id(), []
    for turn in range(turns):
        messages.append(user_message(f"Question {turn}"))
        messages.append(text_message("assistant", RICH.format(turn)))
    server.history.save(id, messages)
    return id


def open_long(page: Any, server: Running, turns: int = TURNS) -> int:
    """Open one; returns how many of its answers are made then."""
    page.goto(f"http://127.0.0.1:{server.port}/c/{keep_long(server, turns)}#token={TOKEN}")
    page.locator(".message").nth(2 * turns - 1).wait_for()
    page.locator(".assistant table").last.wait_for()
    page.locator(".assistant math").last.wait_for()
    page.locator(".assistant .hljs-keyword").last.wait_for()
    return int(page.locator("#talk table").count())


def test_only_what_is_near_the_window_is_made(page: Any, server: Running) -> None:
    assert 3 <= open_long(page, server) <= 10
    page.locator(".assistant math").last.wait_for()
    first = page.locator(".assistant .text").first
    assert first.locator("table").count() == 0
    assert first.text_content() == RICH.format(0).rstrip()  # to be found, and copied
    page.evaluate("document.querySelector('#talk').scrollTop = 0")
    first.locator("table").wait_for()
    assert first.locator("strong").inner_text() == "words"
    assert page.locator("#talk table").count() <= 60


READ = """async pixels => {
    const talk = document.querySelector("#talk"), top = talk.getBoundingClientRect().top;
    const node = [...talk.children].find(each => each.getBoundingClientRect().top > top);
    const before = node.getBoundingClientRect().top, made = talk.querySelectorAll("table").length;
    talk.scrollBy(0, -pixels);
    for (let frame = 0; frame < 8; frame += 1) await new Promise(requestAnimationFrame);
    const moved = node.getBoundingClientRect().top - before;
    return [Math.abs(moved - pixels), talk.querySelectorAll("table").length - made];
}"""


@pytest.mark.parametrize("anchoring", ["auto", "none"])  # Safari has none
def test_what_one_reads_stays_where_it_is(anchoring: str, page: Any, server: Running) -> None:
    open_long(page, server, 60)
    page.locator("#talk").evaluate(f"talk => {{ talk.style.overflowAnchor = '{anchoring}' }}")
    steps = [page.evaluate(READ, 250) for _ in range(12)]
    assert max(jump for jump, _ in steps) < 5
    assert sum(made for _, made in steps) >= 3


def test_on_paper_all_is_made(page: Any, server: Running) -> None:
    open_long(page, server)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#talk table").count() == TURNS


OPEN = """async name => {
    const button = [...document.querySelectorAll("#list button")].find(
      each => each.textContent === name);
    const began = performance.now();
    button.click();
    while (!document.querySelector(".message")) await new Promise(done => setTimeout(done));
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - began;
}"""


@pytest.mark.slow
def test_it_opens_before_one_waits(page: Any, server: Running, capsys: Any) -> None:
    """Prints how long that took: 0.5 s at most, on a machine that does nothing else."""
    open_long(page, server)
    took = []
    for _ in range(5):
        page.locator("#new").dispatch_event("click")
        page.locator(".empty").wait_for()
        took.append(round(page.evaluate(OPEN, "Question 0")))
    with capsys.disabled():
        print(f" opened {TURNS} turns in {sorted(took)} ms ", end="")
