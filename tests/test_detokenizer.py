"""Tokens become the text of an answer: without the template's space, up to its end, with or
without special tokens."""

from collections.abc import Iterable
from typing import Any

from smolvlm_mlx.generation.detokenizer import StreamingDetokenizer
from smolvlm_mlx.inputs.tokenizer import END_OF_TEXT, END_OF_UTTERANCE, Tokenizer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as BPETokenizer
from tokenizers.models import BPE

TAGS = ("<doctag>", "</doctag>", "<text>", "</text>")


def make_tokenizer(*special: str) -> Tokenizer:
    """A token a byte, and one of two spaces."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: id for id, letter in enumerate([*letters, "ĠĠ"])}
    bpe = BPETokenizer(BPE(vocabulary, [("Ġ", "Ġ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True) for token in special])
    return Tokenizer(bpe)


PLAIN = make_tokenizer(END_OF_UTTERANCE, END_OF_TEXT, "<image>")
DOCTAGS = make_tokenizer(END_OF_UTTERANCE, END_OF_TEXT, "<image>", *TAGS)


def read(
    tokenizer: Tokenizer, said: str, stop: Iterable[str] = (), skip: bool | None = None
) -> tuple[list[str], bool, int]:
    """Pieces of what a model says, whether it ended, and how many tokens it took until then."""
    stream = StreamingDetokenizer(tokenizer, tuple(stop), skip)
    pieces = []
    for token in tokenizer.encode_prompt(said, "\ufdd0"):
        pieces.append(stream.add_token(token))
        if stream.ended:
            return pieces, True, len(pieces)
    return [*pieces, stream.finalize()], stream.ended, len(pieces)


def text_of(*arguments: Any, **options: Any) -> str:
    return "".join(read(*arguments, **options)[0])


# ---- the template's space


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (" A cat", "A cat"),
        ("A cat ", "A cat "),
        ("  A cat", " A cat"),
        ("   A cat", "  A cat"),
        (" \n A cat", "\n A cat"),
        ("\n A cat", "\n A cat"),
        ("\t A cat", "\t A cat"),
        ("\u00a0A cat", "\u00a0A cat"),
        (" ", ""),
        ("", ""),
        ("<image> A", "A"),
        (" <image> A", " A"),
        (" é", "é"),
    ],
)
def test_one_space_at_the_very_beginning_is_no_part_of_the_text(said: str, text: str) -> None:
    assert text_of(PLAIN, said) == text
    assert text_of(PLAIN, f"{said}{END_OF_UTTERANCE}more") == text


@given(st.text(st.sampled_from(" \nab€"), max_size=12))
def test_no_other_character_is_lost(said: str) -> None:
    assert text_of(PLAIN, said) == said.removeprefix(" ")


@pytest.mark.parametrize(
    ("said", "stop", "text", "ended", "tokens"),
    [
        (" A cat", " ", "A", True, 3),
        (" A cat", " A", "A cat", False, 6),
        (" A cat", "A", "", True, 2),
        ("  A cat", " ", "", True, 1),
        (" A A cat", " A", "A", True, 4),
    ],
)
def test_stop_strings_see_the_text_without_it(
    said: str, stop: str, text: str, ended: bool, tokens: int
) -> None:
    """And end the answer with the token that completes them."""
    pieces, *found = read(PLAIN, said, [stop])
    assert ("".join(pieces), found) == (text, [ended, tokens])


def test_a_stop_string_that_waited_for_a_longer_one_ends_the_answer() -> None:
    pieces, ended, _ = read(PLAIN, "xab", ["b", "abc"])
    assert ("".join(pieces), ended) == ("xa", True)


# ---- special tokens, and the end of a page

PAGE = "<doctag><text>Words</text></doctag>"


@pytest.mark.parametrize("skip", [None, False])
def test_tags_are_kept_and_their_end_ends_the_answer(skip: bool | None) -> None:
    pieces, ended, tokens = read(DOCTAGS, f" {PAGE}<text>more", skip=skip)
    assert ("".join(pieces), ended, tokens) == (PAGE, True, len(" Words") + 4)
    assert pieces[1] == "<doctag>"  # each tag comes with its token


def test_tags_that_are_left_out_end_nothing() -> None:
    pieces, ended, _ = read(DOCTAGS, f"{PAGE}more", skip=True)
    assert ("".join(pieces), ended) == ("Wordsmore", False)


def test_other_checkpoints_leave_special_tokens_out_untold() -> None:
    assert text_of(PLAIN, "a<image>b") == text_of(PLAIN, "a<image>b", skip=True) == "ab"
    assert text_of(PLAIN, "a<image>b", skip=False) == "a<image>b"


@pytest.mark.parametrize("end", [END_OF_UTTERANCE, END_OF_TEXT])
@pytest.mark.parametrize("skip", [None, True, False])
def test_an_end_token_is_no_part_of_the_text(end: str, skip: bool | None) -> None:
    pieces, ended, tokens = read(DOCTAGS, f"a{end}b", skip=skip)
    assert ("".join(pieces), ended, tokens) == ("a", True, 2)


def test_a_stop_string_comes_before_the_end_of_the_page() -> None:
    assert text_of(DOCTAGS, PAGE, ["</doctag>"]) == PAGE.removesuffix("</doctag>")
    assert text_of(DOCTAGS, PAGE, ["</text>"]) == "<doctag><text>Words"


def test_what_was_held_back_for_a_stop_string_is_in_the_page() -> None:
    pieces, ended, _ = read(DOCTAGS, PAGE, ["</doctag>\n", "ds</text></doctag>!"])
    assert ("".join(pieces), ended) == (PAGE, True)


def test_a_character_that_is_unfinished_at_the_end_of_the_page_is_marked() -> None:
    stream = StreamingDetokenizer(DOCTAGS)
    (half, *_) = DOCTAGS.encode_text("é")
    end = DOCTAGS.doctags_end
    assert end is not None
    assert stream.add_token(half) + stream.add_token(end) == "\ufffd</doctag>"


@pytest.mark.parametrize("ends", [True, False])
def test_a_character_that_is_unfinished_is_marked_at_the_end_alone(ends: bool) -> None:
    """An answer that was cut off may go on."""
    stream = StreamingDetokenizer(PLAIN)
    (half, *_), (end,) = PLAIN.encode_text("é"), PLAIN.encode_prompt(END_OF_UTTERANCE, "\ufdd0")
    assert stream.add_token(half) == ""
    assert (stream.add_token(end) if ends else stream.finalize()) == "\ufffd" * ends
    assert stream.ended is ends
