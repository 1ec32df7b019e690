"""DocTags to elements: what is a token and what is text, and tables that are ragged."""

from random import Random

from smolvlm_mlx.tasks.doctags import (
    DEEPEST,
    Cell,
    Element,
    close_tags,
    key_values,
    parse,
    table_cells,
    texts,
)

import pytest

TOKENS = ("<doctag>", "</doctag>", "<otsl>", "</otsl>", "<text>", "</text>")


def first(page: str) -> Element:
    """The first element of a page."""
    return parse(f"<doctag>{page}</doctag>").elements[0].elements[0]


def cells(table: str) -> list[Cell]:
    return table_cells(first(f"<otsl>{table}</otsl>"))


def test_open_elements_are_closed_and_others_left_alone() -> None:
    page = "<doctag><text>a</text><otsl><fcel>b<nl></otsl></doctag>"
    assert close_tags(page, TOKENS) == page
    open_page = "<doctag><otsl><fcel>a<nl>"
    assert close_tags(open_page, TOKENS) == f"{open_page}</otsl></doctag>"
    assert close_tags("<doctag><unknown>a</text>", TOKENS) == "<doctag><unknown>a</text></doctag>"
    assert close_tags("", TOKENS) == ""


@pytest.mark.parametrize(
    "text",
    [
        "p<0.05 and q>1",
        "a<b, c>d",
        "Vec<int> and <div class='x'></div>",
        "&lt;b&gt; stays as it is",
        "<loc_ and <loc_x> and <unknown> and < fcel>",
        "<map>, <table> and <person> are words outside of a picture",
        "class <_Foo_>, <__init__> and <link_5>",
        "<!-- no comment -->",
        "a | b and $5 and <",
        "<<b>>",
    ],
)
@pytest.mark.parametrize("name", ["text", "title", "list_item", "caption", "code", "formula"])
def test_what_is_no_token_is_text(name: str, text: str) -> None:
    assert first(f"<{name}><loc_1><loc_2><loc_3><loc_4>{text}</{name}>") == Element(
        name, [text], [1, 2, 3, 4]
    )


def test_nothing_is_a_token_in_code_and_formulas_but_their_end() -> None:
    code = first("<code><loc_1><_HTML_>\n<title>a</title><text>b</code>")
    assert code == Element("code", [Element("_HTML_"), "\n<title>a</title><text>b"], [1])
    assert first("<formula>a<text>b</formula>").parts == ["a<text>b"]
    twice = first("<code><caption>a</caption><caption>b</caption></code>")
    assert twice.parts == [Element("caption", ["a"]), Element("caption", ["b"])]
    open_code = first("<code>a<text>b</text>")  # without an end
    assert open_code.parts == ["a", Element("text", ["b"])]


def test_an_end_closes_what_is_open_in_it_and_is_nothing_without_a_beginning() -> None:
    page = parse("<text>a<checkbox_selected>b</text>c</title>d")
    assert page.parts == [Element("text", ["a", Element("checkbox_selected", ["b"])]), "c", "d"]


def test_elements_nest_no_deeper_than_can_be_followed() -> None:
    page = parse("<unordered_list><list_item>" * 5000 + "a")
    depth = 0
    while page.elements:
        page, depth = page.elements[0], depth + 1
    assert depth == DEEPEST - 1 == 39
    assert page.text == "a"


def test_a_table_is_rows_of_cells() -> None:
    assert cells("<ched>a<ched>b<nl><fcel>c<ecel><nl>") == [
        Cell(0, 0, "a"),
        Cell(0, 1, "b"),
        Cell(1, 0, "c"),
        Cell(1, 1, ""),
    ]


def test_cells_span_rows_and_columns() -> None:
    assert cells("<fcel>a<lcel><fcel>b<nl><ucel><xcel><ucel><nl>") == [
        Cell(0, 0, "a", rows=2, cols=2),
        Cell(0, 2, "b", rows=2),
    ]


def test_ragged_tables_keep_their_cells_where_they_are() -> None:
    """A cell spans rows that are shorter; a row begins with a token that continues nothing."""
    assert cells("<fcel>a<fcel>b<nl><fcel>c<xcel><nl><ucel>") == [
        Cell(0, 0, "a"),
        Cell(0, 1, "b", rows=2),
        Cell(1, 0, "c", rows=2),
    ]
    assert cells("<lcel><fcel>a<nl><fcel>b") == [Cell(0, 1, "a"), Cell(1, 0, "b")]


def test_words_in_cells_that_should_have_none_are_kept() -> None:
    assert cells("before<fcel>a<lcel>b<nl><ucel>c<ecel>d") == [
        Cell(0, 0, "before"),
        Cell(0, 1, "a"),
        Cell(0, 2, "b"),
        Cell(1, 0, "c"),
        Cell(1, 1, "d"),
    ]


def test_no_cell_lies_over_another_in_any_table() -> None:
    random = Random(4)
    names = ["ecel", "fcel", "lcel", "ucel", "xcel", "ched", "rhed", "srow", "nl"]
    for _ in range(500):
        parts = [f"<{random.choice(names)}>{random.choice(['', 'x'])}" for _ in range(30)]
        found = cells("".join(parts))
        places = [
            (cell.row + row, cell.col + col)
            for cell in found
            for row in range(cell.rows)
            for col in range(cell.cols)
        ]
        assert len(places) == len(set(places))
        assert sum(cell.text.count("x") for cell in found) == "".join(parts).count(">x")


def test_keys_have_the_values_they_link_to_and_others_stand_alone() -> None:
    region = first(
        "<key_value_region><key_1>Name<link_2><link_3></key_1><value_2>Ada</value_2>"
        "<value_3>King</value_3><key_4>Born</key_4><value_4>1815</value_4><key_9>Died</key_9>"
        "<value_7>London</value_7><key_value_map></key_value_map><key_10><text>Wrote</text></key_10></key_value_region>"
    )
    assert key_values(region) == [
        ("Name", ["Ada", "King"]),
        ("Born", ["1815"]),
        ("Died", []),
        ("Wrote", []),
        ("", ["London"]),
    ]


def test_texts_come_in_order() -> None:
    page = parse("a<text>b<formula>c</formula>d</text><otsl><fcel>e<nl></otsl>f")
    assert list(texts(page)) == ["a", "b", "c", "d", "e", "f"]
