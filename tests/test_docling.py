"""DocTags in markdown, html and json: every element and every word of a page is there."""

import html
import json
import re
from collections.abc import Callable
from random import Random

from smolvlm_mlx.tasks.docling import FORMATS, export, lost_note, lost_words

import pytest

pytest.importorskip("docling_core")

TABLE = "<otsl><ched>Fruit<ched>Price<nl><fcel>Pear<fcel>3 & 4<nl></otsl>"
PAGE = (
    "<doctag><section_header_level_1><loc_50><loc_0><loc_450><loc_50>Fruit "
    "[1]</section_header_level_1>\n"
    f"<text><loc_50><loc_100><loc_450><loc_150>Zwölf Äpfel.</text>\n{TABLE}\n</doctag>"
)
CELL = "p<0.05 and q>1"
FORMULA = "a<b, c>d"


def markdown(page: str) -> str:
    text, lost = export([f"<doctag>{page}</doctag>"], "markdown")
    assert lost == {}
    return text


def body(page: str) -> str:
    """Of the html."""
    text, lost = export([f"<doctag>{page}</doctag>"], "html")
    assert lost == {}
    return text[text.index("<div class='page'>") :]


def rows_of(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|") and "---" not in line
    ]


# ---- `<` and other odd text


def test_less_than_in_cells_and_formulas_is_no_tag() -> None:
    page = f"<otsl><fcel>{CELL}<fcel>x<nl></otsl>\n<formula><loc_1><loc_2>{FORMULA}</formula>"
    assert rows_of(markdown(page)) == [[CELL, "x"]]
    assert f"$${FORMULA}$$" in markdown(page)
    assert f"<td>{html.escape(CELL)}</td>" in body(page)
    assert html.escape(FORMULA) in body(page)
    found = json.loads(export([page], "json")[0])
    assert found["tables"][0]["data"]["table_cells"][0]["text"] == CELL
    assert found["texts"][0]["text"] == FORMULA


def test_html_in_text_is_shown_and_not_obeyed() -> None:
    text = '<div class="x">a & b &lt;'
    assert markdown(f"<text>{text}</text>") == '&lt;div class="x">a & b &amp;lt;'
    assert markdown(f"<otsl><fcel>{text}<nl></otsl>").splitlines()[0] == (
        '| &lt;div class="x">a & b &amp;lt;   |'
    )
    assert '<p>&lt;div class="x"&gt;a &amp; b &amp;lt;</p>' in body(f"<text>{text}</text>")


# Words -> markdown in which a renderer shows these words, and drops or joins none.
MARKUP = [
    ("a<b", "a<b"),
    ("p<0.05 and q>1", "p<0.05 and q>1"),
    ("a<b and c>d", "a&lt;b and c>d"),
    ("<div", "&lt;div"),
    ("2*3*4", r"2\*3*4"),
    ("2 * 3", "2 * 3"),
    ("p<0.05*", "p<0.05*"),
    ("__init__", r"\_\_init__"),
    ("use `Vec<int>`", r"use \`Vec&lt;int>`"),
    ("[1](2)", r"[1\](2)"),
    ("[1]: y", r"[1\]: y"),
    (r"\*a*", r"\\\*a*"),
]


@pytest.mark.parametrize(("text", "shown"), MARKUP)
def test_text_that_would_be_markup_is_shown(text: str, shown: str) -> None:
    assert rows_of(markdown(f"<otsl><fcel>{text}<fcel>x<nl></otsl>")) == [[shown, "x"]]
    others = re.sub(r"(?<!\\)_", r"\_", shown)  # docling-core escapes all, but in cells
    assert markdown(f"<footnote>{text}</footnote>") == others


def test_a_formula_is_no_tag_and_stays_the_same_formula() -> None:
    assert markdown("<formula>a<b c>d, e<f</formula>") == "$$a< b c>d, e<f$$"
    assert markdown(f"<text>a <formula>{FORMULA}</formula></text>") == f"a ${FORMULA}$"
    assert json.loads(export(["<formula>a<b>c</formula>"], "json")[0])["texts"][0]["text"] == (
        "a<b>c"
    )


def test_the_first_line_of_code_keeps_its_indent() -> None:
    assert markdown("<code><_Python_>\n    a\n  b\n</code>") == "```\n    a\n  b\n```"
    assert markdown("<code> a </code>") == "```\na\n```"


@pytest.mark.parametrize(
    "code",
    ["<loc_1><caption>List 1</caption><_C_>a<b>c;", "<loc_1><_C_>a<b>c;<caption>List 1</caption>"],
)
def test_a_caption_of_code_is_no_code(code: str) -> None:
    found = json.loads(export([f"<code>{code}</code>"], "json")[0])["texts"]
    assert {(item["label"], item["text"]) for item in found} == {
        ("caption", "List 1"),
        ("code", "a<b>c;"),
    }


def test_code_is_as_it_was_written() -> None:
    code = '<div class="x">\n  <title>a &lt; b</title>\n</div>'
    page = f"<code><_HTML_>{code}</code>"
    assert markdown(page) == f"```\n{code}\n```"
    assert f"<pre><code>{html.escape(code, quote=False)}</code></pre>" in body(page)
    (item,) = json.loads(export([page], "json")[0])["texts"]
    assert (item["text"], item["code_language"]) == (code, "HTML")


def test_bars_and_line_breaks_stay_in_their_cells() -> None:
    page = "<otsl><fcel>a|b<fcel>c\nd<nl><fcel>$5<fcel>e<nl></otsl>"
    assert rows_of(markdown(page)) == [["a&#124;b", "c d"], ["$5", "e"]]


# ---- elements


@pytest.mark.parametrize(
    ("page", "shown", "in_html"),
    [
        ("<list_item>a</list_item><list_item>b</list_item>", "- a\n- b", "<li>a</li>\n<li>b</li>"),
        ("<section_header_level_5>a</section_header_level_5>", "###### a", "<h6>a</h6>"),
        ("<section_header_level_9>a</section_header_level_9>", "###### a", "<h6>a</h6>"),
        ("<section_header_level_0>a</section_header_level_0>", "## a", "<h2>a</h2>"),
        ("<title>a</title>", "# a", "<h1>a</h1>"),
        ("<page_header>a</page_header>", "a", "<p>a</p>"),
        ("<page_footer>a</page_footer>", "a", "<p>a</p>"),
        ("<footnote>a</footnote>", "a", "<p>a</p>"),
        ("<caption>a</caption>", "a", ">a<"),
        ("<checkbox_selected>a</checkbox_selected>", "- [x] a", "<p>☑ a</p>"),
        ("<checkbox_unselected>a</checkbox_unselected>", "- [ ] a", "<p>☐ a</p>"),
        ("<picture><smiles>CC(O)=O</smiles></picture>", "CC(O)=O", "<p>CC(O)=O</p>"),
        ("<picture><caption>a</caption></picture>", "a\n\n<!-- image -->", ">a</div></figcaption>"),
        ("<handwritten_text>a</handwritten_text>", "a", "<p>a</p>"),
        ("<reference>a</reference>", "a", "<p>a</p>"),
        ("<group><text>a</text></group>", "a", "<p>a</p>"),
        ("<inline><text>a</text><formula>x</formula></inline>", "a $x$", "a <math"),
        ("<text>a <formula>x</formula> b</text>", "a $x$ b", "a <math"),
        ("<inline><otsl><fcel>a<nl></otsl>b</inline>", "| a   |\n|-----|\n\nb", "<p>b</p>"),
        (
            "<ordered_list><list_item>a<unordered_list><list_item>b</list_item></unordered_list>"
            "</list_item><list_item>c</list_item></ordered_list>",
            "1. a\n    - b\n2. c",
            "<ul>\n<li>b</li>\n</ul>",
        ),
        (
            "<ordered_list><list_item>a</list_item><unordered_list><list_item>b</list_item>"
            "</unordered_list><list_item>c</list_item></ordered_list>",
            "1. a\n    - b\n2. c",
            "<ul>\n<li>b</li>\n</ul>",
        ),
        (
            "<key_value_region><loc_1><loc_2><loc_3><loc_4><key_0><loc_1>Name:<link_1></key_0>"
            "<value_1>Ada</value_1></key_value_region>",
            "Name: Ada",
            "<p>Name: Ada</p>",
        ),
        ("<document_index><fcel>a<fcel>7<nl></document_index>", "| a   | 7   |", "<td>a</td>"),
        ("words outside of an element", "words outside of an element", "<p>words outside"),
    ],
)
def test_every_element_is_shown(page: str, shown: str, in_html: str) -> None:
    assert shown in markdown(page)
    assert in_html in body(page)
    assert export([page], "json")[1] == {}


def test_a_chart_has_its_kind_its_caption_and_its_table() -> None:
    page = "<chart><bar_chart><caption>Sales</caption><fcel>2025<fcel>9<nl></chart>"
    assert rows_of(markdown(page)) == [["2025", "9"]]
    assert markdown(page).startswith("Sales\n\n<!-- image -->")
    (picture,) = json.loads(export([page], "json")[0])["pictures"]
    assert picture["meta"]["classification"]["predictions"][0]["class_name"] == "bar_chart"
    assert picture["meta"]["tabular_chart"]["chart_data"]["num_cols"] == 2


def test_a_chart_may_have_its_table_as_an_element() -> None:
    page = "<chart><pie_chart><otsl><fcel>2025<fcel>9<nl></otsl><caption>Sales</caption></chart>"
    assert rows_of(markdown(page)) == [["2025", "9"]]
    found = json.loads(export([page], "json")[0])
    assert found["tables"] == []
    assert found["pictures"][0]["meta"]["tabular_chart"]["chart_data"]["num_cols"] == 2


def test_keys_and_values_are_a_graph_in_json() -> None:
    page = "<key_value_region><key_0>Name<link_1></key_0><value_1>Ada</value_1></key_value_region>"
    (region,) = json.loads(export([page], "json")[0])["key_value_items"]
    assert [(cell["label"], cell["text"]) for cell in region["graph"]["cells"]] == [
        ("key", "Name"),
        ("value", "Ada"),
    ]
    (link,) = region["graph"]["links"]
    assert (link["source_cell_id"], link["target_cell_id"]) == (0, 1)


def test_a_ragged_table_leaves_the_rest_of_its_page_alone() -> None:
    ragged = "<otsl><fcel>a<fcel>b<nl><fcel>c<xcel><nl><ucel></otsl>"
    text, lost = export([PAGE, f"<doctag><title>T</title>{ragged}{TABLE}</doctag>"], "markdown")
    assert lost == {}
    assert "# T\n" in text
    assert ["Pear", "3 & 4"] in rows_of(text.split("# T\n")[1])
    assert rows_of(text.split("# T\n")[1])[:3] == [["a", "b"], ["c", "b"], ["c", ""]]


# ---- whole pages


def test_markdown() -> None:
    second = (
        "<doctag><unordered_list><list_item>one</list_item>\n<list_item>two</list_item>"
        "</unordered_list></doctag>"
    )
    text, lost = export([PAGE, second], "markdown")
    heading, words, *table, one, two = [line for line in text.splitlines() if line]
    assert (heading, words, one, two) == ("## Fruit [1]", "Zwölf Äpfel.", "- one", "- two")
    assert rows_of("\n".join(table)) == [["Fruit", "Price"], ["Pear", "3 & 4"]]
    assert lost == {}


def test_html_and_json() -> None:
    text, _ = export([PAGE], "html", "Fruit")
    assert ">Price</t" in text
    assert "<p>Zwölf Äpfel.</p>" in text
    found = json.loads(export([PAGE, PAGE], "json", "Fruit")[0])
    assert (found["name"], list(found["pages"])) == ("Fruit", ["1", "2"])
    box = found["texts"][1]["prov"][0]["bbox"]
    assert (found["texts"][1]["text"], box["l"], box["r"]) == ("Zwölf Äpfel.", 0.1, 0.9)


def test_pages_without_elements_are_their_words() -> None:
    assert export(["<doctag>Just words.</doctag>"], "markdown") == ("Just words.", {})
    assert export(["<doctag></doctag>"], "markdown") == ("", {})
    assert export(["", "no tags"], "markdown") == ("no tags", {})


# ---- the words before and after


def test_lost_words_are_found_as_often_as_they_are_missing() -> None:
    page = "<doctag><text>one two two three</text></doctag>"
    assert lost_words([page], "two one", "markdown") == ["two", "three"]
    assert lost_words([page], "<body><p>two<b>three</b></p><p>one</p>", "html") == ["two"]
    cells = '{"texts": [{"text": "one two", "orig": "two"}], "grid": [{"text": "three"}]}'
    assert lost_words([page], cells, "json") == ["two", "three"]
    assert lost_words([page], "two one three two", "markdown") == []


def test_lost_words_are_counted_and_some_are_named() -> None:
    assert lost_note(list("abcdefg"), "html") == (
        "7 words are not in the html: 'a', 'b', 'c', 'd', 'e', ...; doctags has them"
    )
    assert lost_note(["a"], "json") == "1 word is not in the json: 'a'; doctags has it"


ODD = (
    "p<0.05|q>1|a<b, c>d|&|&lt;i&gt;|&amp;|$5|$x$|<div class='x'>|</div>|Vec<int>|<b>bold</b>|"
    "<!-- no -->|a_b_c|*star*|`|```|# h|- x|1. y|> q|[l](u)|\\frac{a}{b}|漢字|عربي|<|<<|>|<loc|"
    "<map>|<unknown>|\t|é|__init__|<https://x.y>|'|\"|\\|\\_|---|===|[x]: y|<br>|]]>|&nbsp;|two\nl|"
).split("|")
ODD += ["x|y", "|---|"]
LEAVES = (
    "text title caption footnote page_header page_footer checkbox_selected checkbox_unselected "
    "reference handwritten_text paragraph formula code smiles section_header_level_1 "
    "section_header_level_5 section_header_level_9"
).split()
CELLS = "ecel fcel lcel ucel xcel ched rhed srow".split()


class Pages:
    """Makes pages of all elements, in one another and with odd text; each has words of its own,
    which are numbers."""

    def __init__(self, seed: int):
        self.random, self.words = Random(seed), 0

    def page(self) -> str:
        page = f"<doctag>{self.several(lambda: self.element(0))}</doctag>"
        if self.random.random() < 0.3:  # damaged: tags are missing
            pieces = re.split(r"(</?[a-z_]+>)", page)
            page = "".join(
                piece for n, piece in enumerate(pieces) if n % 2 == 0 or self.random.random() < 0.9
            )
        return page

    def several(self, make: Callable[[], str]) -> str:
        return "".join(make() for _ in range(self.random.randrange(5)))

    def text(self) -> str:
        self.words += 1
        odd = self.random.choices(ODD, k=self.random.randrange(3))
        return self.random.choice([" ", "\n", ""]).join([*odd, f" w{self.words} "])

    def places(self) -> str:
        return self.random.choice(["", "<loc_1><loc_2><loc_300><loc_999>", "<loc_1>"])

    def element(self, depth: int) -> str:
        name = self.random.choice(
            [*LEAVES, *("otsl chart picture document_index inline group list".split() * 2), "key"]
        )
        if depth > 3 or name in LEAVES:
            name = self.random.choice(LEAVES)
            return f"<{name}>{self.places()}{self.text()}</{name}>"
        if name in ("otsl", "document_index", "chart"):
            caption = self.random.choice(["", f"<caption>{self.text()}</caption>"])
            return f"<{name}>{self.places()}{caption}{self.several(self.row)}</{name}>"
        if name == "key":
            return f"<key_value_region>{self.several(self.pair)}</key_value_region>"
        if name == "list":
            name = self.random.choice(["ordered_list", "unordered_list", "group"])
            return f"<{name}>{self.several(lambda: self.item(depth + 1))}</{name}>"
        inner = self.several(lambda: self.random.choice([self.text(), self.element(depth + 1)]))
        kind = "<bar_chart>" if name == "picture" else ""
        return f"<{name}>{self.places()}{kind}{inner}</{name}>"

    def row(self) -> str:
        return self.several(lambda: f"<{self.random.choice(CELLS)}>{self.text()}") + "<nl>"

    def pair(self) -> str:
        name = f"{self.random.choice(['key', 'value'])}_{self.random.randrange(4)}"
        link = self.random.choice(["", "<link_1>", "<link_2>"])
        return f"<{name}>{self.places()}{self.text()}{link}</{name}>"

    def item(self, depth: int) -> str:
        if self.random.random() < 0.2:
            return self.text()
        inner = self.random.choice(["", self.element(depth) + self.text()])
        return f"<list_item>{self.places()}{self.text()}{inner}</list_item>"


@pytest.mark.parametrize("form", FORMATS)
def test_no_page_loses_a_word_unsaid(form: str) -> None:
    for seed in range(120):
        page = Pages(seed).page()
        text, lost = export([page], form)
        there = set(re.findall(r"w\d+", text)) | set(lost.get(0, ()))
        assert set(re.findall(r"w\d+", page)) <= there, (seed, page)
        assert not any(re.fullmatch(r"w\d+", word) for word in lost.get(0, ())), (seed, page)


def test_docling_writes_whatever_a_model_writes() -> None:
    random = Random(3)
    names = [*LEAVES, "doctag", "unordered_list", "list_item", "otsl", "picture", "inline", "key_1"]
    parts = [f"<{slash}{name}>" for name in names for slash in ("", "/")]
    parts += [
        *(f"<{cell}>" for cell in CELLS),
        "<nl>",
        "a",
        " ",
        "\n",
        "<",
        "&",
        "<loc_",
        "<loc_9>",
    ]
    for _ in range(60):
        page = "<doctag>" + "".join(random.choices(parts, k=40))
        for form in FORMATS:
            assert export([page], form)[1] == {}
