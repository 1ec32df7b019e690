"""How answers look in the page: Markdown, formulas and code, whole and while they come, and what
does not get in."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.http import TOKEN, Running

import pytest

# Answers come as the test says them, and all that the policy forbids is a problem.
SCRIPT = """
    addEventListener("securitypolicyviolation",
      ({violatedDirective, blockedURI}) =>
        console.error("Content Security Policy:", violatedDirective, blockedURI));
    const ask = window.fetch;
    window.fetch = (path, options) => {
      if (path !== "/v1/chat/completions") return ask(path, options);
      const bytes = new TextEncoder();
      return Promise.resolve(new Response(new ReadableStream({start(stream) {
        const send = (content, finish_reason = null) => stream.enqueue(bytes.encode(
          `data: ${JSON.stringify({choices: [{delta: {content}, finish_reason}]})}\\n\\n`));
        window.say = text => send(text);
        window.end = () => {
          send("", "stop");
          stream.enqueue(bytes.encode("data: [DONE]\\n\\n"));
          stream.close();
        };
      }})));
    };
"""
SHOW = """async ([text, isWhole]) => {
    const { showMarkdown } = await import("/page/markdown.js");
    document.querySelector("#place")?.remove();
    const place = document.createElement("div");
    place.id = "place";
    place.className = "text";
    document.querySelector("#talk").append(place);
    showMarkdown(place, text, isWhole);
    return place.innerHTML;
}"""

RICH = """# Title

Some *words*, **strong** and `code`, see [here](https://example.com/a) for $5 or $6.
A second line of https://example.org/b.

| Item | Price |
|------|------:|
| Cake | 6.50 |
| Tea | $x^2$ |

1. One
   - inner
2. Two \\(a_b\\)

$$
\\frac{a}{b} = c_1
$$

```python
def f(x):
    return x  # **no**
```

> Said
> twice

---

The end, ![a cat](https://example.com/cat.png) <b>tag</b> ~~gone~~
"""


@contextmanager
def opened(browser: Any, server: Running) -> Iterator[Any]:
    """The page, which says nothing and asks no other server for anything."""
    context = browser.new_context(
        viewport={"width": 390, "height": 760},
        permissions=["clipboard-read", "clipboard-write"],
        reduced_motion="reduce",
    )
    problems: list[str] = []
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on(
        "console",
        lambda said: problems.extend([said.text] if "Content Security" in said.text else []),
    )
    host = f"http://127.0.0.1:{server.port}/"
    context.on(
        "request",
        lambda request: None if request.url.startswith(host) else problems.append(request.url),
    )
    context.add_init_script(SCRIPT)
    page = context.new_page()
    page.goto(f"{host}#token={TOKEN}")
    page.locator("#max_tokens").wait_for(state="attached")
    yield page
    assert problems == []
    context.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    with opened(browser, server) as page:
        yield page


@pytest.fixture(scope="module")
def shared(browser: Any, server: Running) -> Iterator[Any]:
    """For what only looks at elements."""
    with opened(browser, server) as page:
        load_libraries(page)
        yield page


def load_libraries(page: Any) -> None:
    page.evaluate(SHOW, ["$a$\n\n```python\nx = 1\n```", True])
    page.locator("#place math").wait_for()
    page.locator("#place .hljs-number").wait_for()


def begin(page: Any, question: str = "What?") -> None:
    page.fill("#text", question)
    page.press("#text", "Enter")
    page.locator(".assistant").last.get_by_text("…").wait_for()
    page.evaluate("import('/page/markdown.js').then(() => null)")


def say(page: Any, text: str) -> None:
    """More of the answer, and a frame in which it is shown."""
    page.evaluate(
        """async text => {
        window.say(text);
        for (let n = 0; n < 3; n += 1) {
          await new Promise(done => setTimeout(done));
          await new Promise(requestAnimationFrame);
        }
    }""",
        text,
    )


def end(page: Any) -> None:
    page.evaluate("window.end()")
    page.get_by_role("button", name="Retry").last.wait_for()


LINK = 'target="_blank" rel="noopener noreferrer"'
CODE = (
    '<div class="code" dir="ltr"><div class="bar"><span>{0}</span><button type="button" '
    'aria-label="Copy code">Copy</button></div><pre tabindex="0"><code{1}>{2}</code></pre></div>'
)
LOOKS = {
    "plain": ("one\ntwo", '<p dir="auto">one<br>two</p>'),
    "heading": ("## Two", '<h2 aria-level="4" dir="auto">Two</h2>'),
    "list": ("3. a\n4. b", '<ol start="3" dir="auto"><li>a</li><li>b</li></ol>'),
    "quote": ("> a", '<blockquote dir="auto"><p>a</p></blockquote>'),
    "table": (
        "|a|b|\n|-|-:|\n|c|d|",
        '<div class="table" tabindex="0" dir="auto"><table><thead><tr><th>a</th>'
        '<th style="text-align: right;">b</th></tr></thead><tbody><tr><td>c</td>'
        '<td style="text-align: right;">d</td></tr></tbody></table></div>',
    ),
    "code": ("```\n<b>\n```", CODE.format("", "", "&lt;b&gt;")),
    "prices": ("$5 and $6, a $ b$", '<p dir="auto">$5 and $6, a $ b$</p>'),
    "tags": ("<b>x</b>&amp;", '<p dir="auto">&lt;b&gt;x&lt;/b&gt;&amp;</p>'),
    "references": ("[a]: ftp://b", '<p dir="auto">[a]: ftp://b</p>'),
    "doctags": ("<doctag><loc_1>", '<p dir="auto">&lt;doctag&gt;&lt;loc_1&gt;</p>'),
    "picture": (
        "![cat](https://a.example/c.png)",
        f'<p dir="auto"><a href="https://a.example/c.png" title="" {LINK}>cat</a></p>',
    ),
    "mail": (
        "<a@b.example>",
        f'<p dir="auto"><a href="mailto:a@b.example" title="" {LINK}>a@b.example</a></p>',
    ),
}


@pytest.mark.parametrize("name", LOOKS)
def test_markdown_becomes_elements(name: str, shared: Any) -> None:
    text, html = LOOKS[name]
    assert shared.evaluate(SHOW, [text, True]) == html


HALF = {
    "strong": ("a **b", '<p dir="auto" class="open">a <strong>b</strong></p>'),
    "code": ("a `b*c", '<p dir="auto" class="open">a <code>b*c</code></p>'),
    "link": ("a [b](https://c", '<p dir="auto" class="open">a b</p>'),
    "fence": (
        "```py\nx = 1",
        CODE.format("py", ' data-language="py"', "x = 1").replace('"code"', '"code open"'),
    ),
    "formula": (
        "$$\na_b\n\n- c",
        '<div class="math open" tabindex="0" dir="auto">a_b\n\n- c</div>',
    ),
    "formula in text": (
        "a \\(b_c_",
        '<p dir="auto" class="open">a <span class="math">b_c_</span></p>',
    ),
    "table's head": (
        "| a | b |",
        '<div class="table open" tabindex="0" dir="auto"><table><thead><tr><th>a</th><th>b</th>'
        "</tr></thead></table></div>",
    ),
}
HALF["table's line"] = ("| a | b |\n|--", HALF["table's head"][1])


@pytest.mark.parametrize("name", HALF)
def test_what_is_half_there_looks_as_it_will(name: str, shared: Any) -> None:
    text, html = HALF[name]
    assert shared.evaluate(SHOW, [text, False]) == html


def test_a_half_formula_of_a_whole_answer_is_text(shared: Any) -> None:
    assert shared.evaluate(SHOW, ["$$\na", True]) == '<p dir="auto">$$<br>a</p>'
    assert shared.evaluate(SHOW, ["\\(a", True]) == '<p dir="auto">(a</p>'


GROW = """async ([text, step]) => {
    const { showMarkdown } = await import("/page/markdown.js");
    const place = document.createElement("div"), whole = document.createElement("div");
    document.querySelector("#talk").append(place, whole);
    let changed = 0, most = 0;
    for (let length = 1; length < text.length; length += step) {
      const before = [...place.children];
      const html = before.map(node => node.outerHTML);
      showMarkdown(place, text.slice(0, length), false);
      before.slice(0, -2).forEach((node, at) => {
        changed += node !== place.children[at] || node.outerHTML !== html[at];
      });
      most = Math.max(most, place.children.length);
    }
    showMarkdown(place, text, true);
    showMarkdown(whole, text, true);
    return {changed, most, came: place.innerHTML, whole: whole.innerHTML};
}"""


def test_an_answer_that_comes_ends_as_it_would_look_at_once(shared: Any) -> None:
    """Blocks before the last two stay the same nodes, and do not change."""
    grown = shared.evaluate(GROW, [RICH, 3])
    assert grown["changed"] == 0
    assert grown["most"] == 9
    assert grown["came"] == grown["whole"]
    for wanted in ("<math", "hljs-keyword", "<table", "<blockquote", "<hr"):
        assert wanted in grown["whole"]


UNSTEADY = [
    *("a\n\nb\n***c***", "a\n\nb\n#c", "a\n\nb\n```c`d", "- a\n\n  b\n\nc\n--", "a\n1. b\n\n   c"),
    *("a \\(b\n\nc", "$$\na\n\nb", "\\[a\n\nb\\]"),
]


@pytest.mark.parametrize("text", UNSTEADY)
def test_a_line_that_turns_out_to_be_another(text: str, shared: Any) -> None:
    grown = shared.evaluate(GROW, [f"first\n\n{text}\n\nlast", 1])
    assert grown["changed"] == 0
    assert grown["came"] == grown["whole"]


HOSTILE = [
    "<script>hit()</script>",
    "<img src=x onerror=hit()>",
    "<svg/onload=hit()>",
    "<a href='javascript:hit()'>x</a>",
    "[x](javascript:hit())",
    "[x](JaVaScRiPt:hit())",
    "[x](java\nscript:hit())",
    "[x](&#106;avascript:hit())",
    "[x](javascript&colon;hit())",
    "[x](\\javascript:hit())",
    "[x](<javascript:hit()>)",
    "[x](data:text/html,<script>hit()</script>)",
    "[x](vbscript:hit())",
    "[x](file:///etc/passwd)",
    "[x](//evil.example)",
    "[x](/conversations)",
    "[x]\n\n[x]: javascript:hit()",
    "<javascript:hit()>",
    "![x](javascript:hit())",
    "![x](data:image/svg+xml,<svg onload=hit()>)",
    "[![x](https://evil.example/a.png)](javascript:hit())",
    '[x](https://a.example "\\" onmouseover=hit() x=\\"")',
    '![x](https://a.example/"onerror="hit())',
    '```"><img src=x onerror=hit()>\n</code><script>hit()</script>\n```',
    "```html\n<script>hit()</script><img src=x onerror=hit()>\n```",
    "$\\href{javascript:hit()}{x}$ $\\url{javascript:hit()}$",
    "$\\includegraphics{https://evil.example/a.png}$ $\\class{x}{y}$ $\\style{color:red}{x}$",
    "$\\text{<img src=x onerror=hit()>}$ $\\unicode{x3c}script$",
    "|<script>hit()</script>|\n|-|\n|<img src=x onerror=hit()>|",
    "\x00<scr\x00ipt>hit()</scr\x00ipt>",
    "<!--><img src=x onerror=hit()>-->",
    "<![CDATA[><script>hit()</script>]]>",
    "&lt;script&gt;hit()&lt;/script&gt;",
    "<style>@import 'https://evil.example'</style>",
    "<iframe srcdoc='<script>hit()</script>'></iframe><form action=https://evil.example>",
]
FOUND = """place => {
    const all = [...place.querySelectorAll("*")];
    const links = all.filter(({tagName}) => tagName.toLowerCase() === "a");
    return {
      tags: [...new Set(all.map(({tagName}) => tagName.toLowerCase()))],
      handlers: all.flatMap(node => [...node.attributes])
        .filter(({name}) => /^(on|src|action)/.test(name)).length,
      links: links.map(node => node.getAttribute("href")),
      safe: links.every(({target, rel}) => target === "_blank" && rel === "noopener noreferrer"),
    };
}"""
KNOWN = {
    *"p br a code pre div span button ul ol li table thead tbody tr th td".split(),
    *"math semantics annotation mrow mi mo mn mtext mstyle merror mpadded mspace".split(),
}


def test_nothing_of_an_answer_is_run_or_fetched(shared: Any) -> None:
    shared.evaluate("window.hit = () => console.error('hit'); null")
    for text in HOSTILE:
        for whole in (False, True):
            shared.evaluate(SHOW, [text, whole])
            found = shared.locator("#place").evaluate(FOUND)
            assert {*found["tags"]} <= KNOWN, text
            assert found["handlers"] == 0, text
            assert all(link.startswith("https://") for link in found["links"]), text
            assert found["safe"], text
            shared.evaluate("document.querySelectorAll('#place a').forEach(a => a.focus())")


N = 10_000
HEAVY = {
    "brackets": "[" * N,
    "closed brackets": "[" * N + "a" + "]" * N,
    "links": "[" * N + "a" + "](b)" * N,
    "half links": "[a](" * N,
    "pictures": "![" * N,
    "stars": "*a " * N,
    "many stars": "*" * N + "a" + "*" * N,
    "lines": "_a __b " * N,
    "ticks": "".join("a" + "`" * count for count in range(400)),
    "addresses": "http://" * N,
    "tags": "<a " * N,
    "comments": "<!--" * N,
    "dollars": "$a " * N,
    "formulas": "\\(a" * N,
    "formulas of lines": "\\[\n" * N,
    "spaces": "a" + " " * N + "b",
    "quotes": "> " * N + "a",
    "deep lists": "\n".join("  " * depth + "* a" for depth in range(300)),
    "references": "[a]: b\n" * N,
    "rows": "|a|b|\n|-|-|\n" + "|a|b|\n" * N,
    "ragged tables": ("|" + "a|" * 255 + "\n|" + "-|" * 255 + "\n" + "|a\n" * 255 + "\n") * 20,
    "columns": "|" * N + "\n" + "|-" * N + "\n" + "|a" * N,
    "code": "```c\n" + "x" * 20_000 + "\n```",
    "a formula": "$$" + "{" * N + "$$",
    "a formula of macros": "$\\def\\a{\\b\\b}\\def\\b{\\c\\c}\\def\\c{\\a\\a}\\a$",
}
MEASURE = """async ([text, isWhole]) => {
    const { showMarkdown } = await import("/page/markdown.js");
    const place = document.createElement("div"), began = performance.now();
    showMarkdown(place, text, isWhole);
    return [performance.now() - began, place.textContent.length];
}"""


@pytest.mark.parametrize("name", HEAVY)
def test_a_text_that_is_made_to_take_long_does_not(name: str, shared: Any) -> None:
    for whole in (True, False):
        took, length = shared.evaluate(MEASURE, [HEAVY[name], whole])
        assert took < 2_000, f"{took} ms"
        assert length > 0


def test_what_is_too_long_to_be_read_is_shown_as_it_came(shared: Any) -> None:
    html = '<p class="plain" dir="auto">'
    assert shared.evaluate(SHOW, ["**a** " * 20_000, True]).startswith(html + "**a** **a**")
    assert shared.evaluate(SHOW, ["**a** " * 4_000, False]).startswith(html + "**a** **a**")
    assert '<span class="plain">**a**' in shared.evaluate(SHOW, ["**a** " * 1_000, True])
    assert "<strong>a</strong>" in shared.evaluate(SHOW, ["**a** " * 800, True])
    assert '<span class="plain">[[[' in shared.evaluate(SHOW, ["[" * 500 + "](" * 500, True])


def test_what_becomes_too_much_is_shown_as_it_came(shared: Any) -> None:
    """A table has as many cells in each row as in its head, so that 1.8 kB would be 63,000."""
    table = "|" + "a|" * 250 + "\n|" + "-|" * 250 + "\n" + "|a\n" * 250
    count = "document.querySelectorAll('#place *').length"
    for whole in (True, False):
        html = shared.evaluate(SHOW, [f"a\n\n{table}\n# b\n", whole])
        assert html.startswith('<p dir="auto">a</p><p class="plain')
        assert shared.evaluate(count) == 3
    tables = "\n\n".join(["|" + "a|" * 40 + "\n|" + "-|" * 40 + "\n" + "|a\n" * 40] * 20)
    shared.evaluate(SHOW, [tables, True])
    assert shared.evaluate(count) < 8_000
    assert shared.locator("#place table").count() == 2


# ---- in the conversation


def test_an_answer_is_markdown_and_copied_as_it_came_and_a_question_is_neither(page: Any) -> None:
    begin(page, "# What  is\n  *this*?")
    say(page, RICH)
    end(page)
    assert page.locator(".user .text").inner_html() == "# What  is\n  *this*?"
    answer = page.locator(".assistant .text")
    answer.locator("math").nth(2).wait_for()
    answer.locator(".hljs-keyword").first.wait_for()
    assert answer.locator("h1").inner_text() == "Title"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert answer.locator("math[display=block], math.tml-display").count() == 1
    assert answer.locator("img, b").count() == 0
    page.get_by_role("button", name="Copy code").click()
    page.get_by_role("button", name="Copy code", exact=True).get_by_text("Copied").wait_for()
    copied = "navigator.clipboard.readText()"
    assert page.evaluate(copied) == "def f(x):\n    return x  # **no**"
    page.get_by_role("button", name="Copy", exact=True).click()
    page.wait_for_function(f"async text => await {copied} === text", arg=RICH)


def test_the_first_paint_is_small_and_libraries_come_when_they_are_needed(
    browser: Any, server: Running
) -> None:
    context = browser.new_context()
    context.add_init_script(SCRIPT)
    page = context.new_page()
    sizes: dict[str, int] = {}

    def count(request: Any) -> None:
        size = request.sizes()
        path = request.url.partition(str(server.port))[2]
        sizes[path] = size["responseBodySize"] + size["responseHeadersSize"]

    finished: list[Any] = []
    page.on("requestfinished", lambda request: finished.append(request))
    page.goto(f"http://127.0.0.1:{server.port}/#token={TOKEN}")
    page.locator("#max_tokens").wait_for(state="attached")
    page.locator("#model:not(:empty)").wait_for()
    for request in finished:
        count(request)
    assert not [path for path in sizes if re.search("temml|highlight|markdown-it", path.lower())]
    assert sum(sizes.values()) < 70_000, sizes
    with page.expect_response("**/markdown-it.esm.min.mjs"):
        begin(page)
    say(page, "Words and $5, `code`.")
    assert not [r.url for r in finished if "temml" in r.url.lower() or "highlight" in r.url]
    with page.expect_response("**/temml.min.js"):
        say(page, " $a$\n\n")
    with page.expect_response("**/highlight.min.js"):
        say(page, "```python\nx = 1\n```\n\nSo.")
    page.locator(".assistant math").wait_for()
    context.close()


SELECTED = "getSelection().toString()"


def test_what_is_selected_stays_selected_to_the_end_of_the_answer(page: Any) -> None:
    begin(page)
    say(page, "First **words** here.\n\nThe second")
    page.evaluate(
        """getSelection().setBaseAndExtent(
          document.querySelector(".assistant strong").firstChild, 1,
          document.querySelector(".assistant p:last-child").firstChild, 6)"""
    )
    chosen = page.evaluate(SELECTED)
    assert chosen.split() == ["ords", "here.", "The", "se"]
    for piece in (" line **of", " it** `on", "`.\n\n", "| a | b |", "\n|-|-|\n| c |", "\n\nEnd"):
        say(page, piece)
        assert page.evaluate(SELECTED) == chosen
    end(page)
    assert page.evaluate(SELECTED) == chosen


def fill(page: Any) -> None:
    begin(page)
    say(page, "\n\n".join(f"Paragraph {number}" for number in range(60)))


def scroll_up(page: Any, pixels: int) -> None:
    page.evaluate(f"document.querySelector('#talk').scrollBy(0, -{pixels})")
    page.locator("#newest").wait_for()


def where(page: Any) -> int:
    """Where a paragraph is in the window."""
    box = page.locator("#talk").get_by_text("Paragraph 59").bounding_box()
    return round(float(box["y"]))


def is_at_end(page: Any) -> bool:
    script = "talk => talk.scrollHeight - talk.scrollTop - talk.clientHeight < 2"
    return bool(page.locator("#talk").evaluate(script))


def test_the_page_follows_the_answer_unless_one_scrolls_up(page: Any) -> None:
    fill(page)
    assert is_at_end(page)
    say(page, "\n\nMore" * 20)
    assert is_at_end(page)
    assert page.locator("#newest").is_hidden()
    scroll_up(page, 60)
    there = where(page)
    say(page, "\n\nAnd more, of $a$" * 20)
    page.locator(".assistant math").first.wait_for()
    assert where(page) == there
    end(page)
    assert where(page) == there
    page.get_by_role("button", name="To the newest").click()
    page.locator("#newest").wait_for(state="hidden")
    assert is_at_end(page)


def test_a_question_goes_to_the_end(page: Any) -> None:
    fill(page)
    end(page)
    scroll_up(page, 500)
    begin(page, "And now?")
    assert is_at_end(page)
    assert page.locator("#newest").is_hidden()
    say(page, "Yes.\n\n" * 30)
    assert is_at_end(page)
    end(page)
    assert is_at_end(page)


def test_an_answer_from_right_to_left(page: Any) -> None:
    page.evaluate(SHOW, ["- שלום\n\nEnglish\n\n```\nx\n```", True])
    directions = "nodes => nodes.map(node => getComputedStyle(node).direction)"
    assert page.locator("#place > *").evaluate_all(directions) == ["rtl", "ltr", "ltr"]


def test_on_paper_there_is_all_of_the_conversation(page: Any) -> None:
    fill(page)
    end(page)
    page.emulate_media(media="print")
    heights = page.locator("#talk").evaluate("talk => [talk.scrollHeight, talk.clientHeight]")
    assert heights[0] == heights[1]
    assert page.locator("header, nav, #ask, #newest").evaluate_all(
        "nodes => nodes.every(node => getComputedStyle(node).display === 'none')"
    )
