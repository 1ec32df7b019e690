"""Docling's own json: each element is of its kind, at its place, below what it is in; and which
pages lost words."""

import json
from typing import Any

from smolvlm_mlx.tasks.docling import export, lost_note

import pytest

docling = pytest.importorskip("docling_core.types.doc")

PLACE = "<loc_50><loc_100><loc_450><loc_600>"  # the last is beyond the page
LISTED = "<unordered_list><list_item>{}</list_item></unordered_list>"


def converted(*pages: str) -> Any:
    text, lost = export(pages, "json")
    assert lost == {}
    return json.loads(text)


def items_of(page: str, name: str) -> list[Any]:
    """Those of one kind on a second page."""
    items: list[Any] = converted("", page)[name]
    return items


# Elements with docling's label of each.
LABELS = {
    "text": "text",
    "smiles": "text",
    "section_header_level_1": "section_header",
    **{name: name for name in ("title", "caption", "footnote", "page_header", "page_footer")},
    **{name: name for name in ("checkbox_selected", "checkbox_unselected", "reference", "code")},
    **{name: name for name in ("handwritten_text", "paragraph", "formula")},
}


@pytest.mark.parametrize("name", LABELS)
def test_text_is_of_its_kind_and_at_its_place(name: str) -> None:
    (item,) = items_of(f"<{name}>{PLACE}Words</{name}>", "texts")
    assert (item["label"], item["text"]) == (LABELS[name], "Words")
    check_place(item, 5)
    layer = "furniture" if name in ("page_header", "page_footer") else "body"
    assert item["content_layer"] == layer


def check_place(item: Any, characters: int) -> None:
    (place,) = item["prov"]
    box = {"l": 0.1, "t": 0.2, "r": 0.9, "b": 1.0, "coord_origin": "TOPLEFT"}
    assert place == {"page_no": 2, "bbox": box, "charspan": [0, characters]}


@pytest.mark.parametrize(
    ("page", "kind", "label"),
    [
        ("<otsl>{}<fcel>a<nl></otsl>", "tables", "table"),
        ("<document_index>{}<fcel>a<nl></document_index>", "tables", "document_index"),
        ("<text>{}<fcel>a<nl></text>", "tables", "table"),
        ("<picture>{}</picture>", "pictures", "picture"),
        ("<chart>{}<fcel>a<nl></chart>", "pictures", "picture"),
    ],
)
def test_tables_and_pictures_are_at_their_places_with_their_captions(
    page: str, kind: str, label: str
) -> None:
    inner = f"{PLACE}<caption>{PLACE}One</caption><caption></caption><caption>Two</caption>"
    found = converted("", page.format(inner))
    (item,) = found[kind]
    assert item["label"] == label
    check_place(item, 0)
    one, two = (found["texts"][int(each["$ref"].rpartition("/")[2])] for each in item["captions"])
    assert [(each["label"], each["text"]) for each in (one, two)] == [
        ("caption", "One"),
        ("caption", "Two"),
    ]
    check_place(one, 3)
    assert two["prov"] == []
    assert len(found["texts"]) == 2


def test_what_is_empty_is_not_there() -> None:
    """And makes no line of the words beside it."""
    found = converted("<text>a<formula></formula></text><text></text><code></code><title> </title>")
    assert ([text["text"] for text in found["texts"]], found["groups"]) == (["a"], [])


def test_code_has_the_first_language_that_is_named() -> None:
    names = {"<_Python_>a": "Python", "<_C_>a<_Python_>b": "C", "a": "unknown", "<_x_>a": "unknown"}
    for code, language in names.items():
        found = converted(f"<code>{code}")["texts"]  # without an end, in which all would be text
        assert {text["code_language"] for text in found} == {language}


def test_less_than_four_places_are_none_and_more_are_left_out() -> None:
    first, second = items_of(
        f"<text><loc_1><loc_2><loc_3>a</text><text>{PLACE}<loc_9>Words</text>", "texts"
    )
    assert first["prov"] == []
    check_place(second, 5)


@pytest.mark.parametrize(
    "inner",
    [
        "<text>a</text>",
        "<text>a <formula>b</formula></text>",
        "<inline>a <formula>b</formula></inline>",
        "<inline>a<otsl><fcel>b<nl></otsl></inline>",
        "<otsl><fcel>a<nl></otsl>",
        "<picture></picture>",
        "<picture>a<text>b</text></picture>",
        "<code>a</code>",
        "<section_header_level_1>a</section_header_level_1>",
        "<checkbox_selected>a</checkbox_selected>",
        "<group>a</group>",
        LISTED.format("a"),
        "<key_value_region>a<text>b</text></key_value_region>",
    ],
)
@pytest.mark.parametrize("before", ["", "Words"])
def test_what_is_in_a_list_item_is_below_it(before: str, inner: str) -> None:
    found = converted(LISTED.format(before + inner))
    parents = {
        item["self_ref"]: item["parent"]["$ref"]
        for kind in ("texts", "tables", "pictures", "groups")
        for item in found[kind]
    }
    assert len(parents) > 2
    for ref in parents.keys() - {"#/groups/0", "#/texts/0"}:
        above = ref
        while above not in ("#/texts/0", "#/body"):
            above = parents[above]
        assert above == "#/texts/0", ref
    assert (parents["#/groups/0"], parents["#/texts/0"]) == ("#/body", "#/groups/0")


def test_cells_are_where_they_are_and_as_wide() -> None:
    (table,) = items_of("<otsl><fcel>a<lcel><fcel>b<nl><ucel><xcel><fcel>c<nl></otsl>", "tables")
    names = ["row_span", "col_span", "start_row_offset_idx", "end_row_offset_idx"]
    names += ["start_col_offset_idx", "end_col_offset_idx"]
    cells = {cell["text"]: tuple(cell[n] for n in names) for cell in table["data"]["table_cells"]}
    assert cells == {"a": (2, 2, 0, 2, 0, 2), "b": (1, 1, 0, 1, 2, 3), "c": (1, 1, 1, 2, 2, 3)}
    assert (table["data"]["num_rows"], table["data"]["num_cols"]) == (2, 3)
    (empty,) = items_of("<otsl><nl></otsl>", "tables")
    assert (empty["data"]["num_rows"], empty["data"]["num_cols"]) == (0, 0)


@pytest.mark.parametrize(
    ("name", "kind", "title"),
    [
        ("<bar_chart>", "bar_chart", "bar_chart"),
        ("<dot_line>", "line_chart", "line_chart"),
        ("", None, "other"),
    ],
)
@pytest.mark.parametrize("table", ["{}", "<otsl>{}</otsl>"])
def test_a_chart_has_its_kind_and_its_numbers(
    table: str, name: str, kind: str | None, title: str
) -> None:
    page = f"<chart>{name}{table.format('<fcel>2025<fcel>9<nl>')}</chart>"
    found = converted(page)
    meta = found["pictures"][0]["meta"]
    assert meta["tabular_chart"]["title"] == title
    assert [cell["text"] for cell in meta["tabular_chart"]["chart_data"]["table_cells"]] == [
        "2025",
        "9",
    ]
    said = [{"confidence": 1.0, "class_name": kind}] if kind else None
    assert (meta.get("classification") or {}).get("predictions") == said
    assert (found["tables"], found["texts"]) == ([], [])


def test_what_a_picture_shows_beside_its_table_stays() -> None:
    """A table in a picture that is no chart is one of its own, as is a chart's second."""
    table = "<otsl><fcel>{}<nl></otsl>"
    found = converted(f"<picture><logo>{table.format(1)}a</picture>")
    assert (len(found["tables"]), [text["text"] for text in found["texts"]]) == (1, ["a"])
    assert "tabular_chart" not in found["pictures"][0]["meta"]
    found = converted(f"<chart>{table.format(1)}{table.format(2)}a</chart>")
    assert [table["data"]["table_cells"][0]["text"] for table in found["tables"]] == ["2"]
    assert [text["text"] for text in found["texts"]] == ["a"]


def test_lists_are_numbered_or_not() -> None:
    item = f"<list_item>{PLACE}a</list_item>"
    for name, markers in (("ordered_list", ["1.", "2."]), ("unordered_list", ["", ""])):
        found = converted("", f"<{name}>{item}{item}</{name}>")
        items = found["texts"]
        assert [each["marker"] for each in items] == markers
        assert {each["enumerated"] for each in items} == {name == "ordered_list"}
        assert found["groups"][0]["name"] == "list"
        for each in items:
            check_place(each, 1)


def test_a_region_of_keys_keeps_what_is_no_pair() -> None:
    """Several values, a value without a key, words and elements beside them."""
    page = (
        "<key_value_region>a<key_0>b<link_1><link_2></key_0><value_1>c</value_1>"
        "<value_2>d</value_2><value_7>e</value_7><text>f</text></key_value_region>"
    )
    found = converted(page)
    graph = found["key_value_items"][0]["graph"]
    cells = [
        (cell["cell_id"], cell["label"], cell["text"], cell["orig"]) for cell in graph["cells"]
    ]
    values = [(number, "value", text, text) for number, text in ((1, "c"), (2, "d"), (3, "e"))]
    assert cells == [(0, "key", "b", "b"), *values]
    links = [(link["source_cell_id"], link["target_cell_id"]) for link in graph["links"]]
    assert links == [(0, 1), (0, 2)]
    assert {link["label"] for link in graph["links"]} == {"to_value"}
    assert [text["text"] for text in found["texts"]] == ["a", "f"]
    assert export([page], "markdown") == ("b: c, d\n\ne\n\na\n\nf", {})


def test_pages_are_squares_and_text_is_as_it_is_written() -> None:
    text, _ = export(["<text>Zwölf</text>", ""], "json")
    pages = json.loads(text)["pages"]
    assert [page["size"] for page in pages.values()] == [{"width": 1, "height": 1}] * 2
    assert [page["page_no"] for page in pages.values()] == [1, 2]
    assert '"Zwölf"' in text
    assert text.startswith('{\n "')  # a line each


# ---- words that are lost


def test_a_lost_word_is_named_on_the_first_page_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def export_to_markdown(self: object, **options: object) -> str:
        return "two"

    monkeypatch.setattr(docling.DoclingDocument, "export_to_markdown", export_to_markdown)
    assert export(["one two", "two"], "markdown") == ("two", {0: ["one", "two"]})
    assert export(["two", "three one", "one one"], "markdown")[1] == {
        1: ["three", "one"],
        2: ["one", "one"],
    }
    assert export(["two"], "markdown")[1] == {}


@pytest.mark.parametrize(
    ("count", "some"), [(2, "'a', 'b'"), (5, "'a', 'b', 'c', 'd', 'e'"), (6, "'d', 'e', ...")]
)
def test_five_lost_words_are_named(count: int, some: str) -> None:
    note = lost_note(list("abcdefg")[:count], "html")
    assert note.startswith(f"{count} words are not in the html: 'a', 'b'")
    assert note.endswith(f"{some}; doctags has them")
