"""Text never becomes a control token; what streams is what is decoded; damaged files are told in
one line."""

import json
import random
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import CheckpointError, PromptError
from smolvlm_mlx.generation.detokenizer import StreamingDetokenizer
from smolvlm_mlx.inputs.tokenizer import (
    MAX_TEMPLATE_BYTES,
    MAX_TOKENIZER_BYTES,
    Tokenizer,
    chat_template,
)
from tests.support.checkpoints import load_processor
from tests.support.family import FIRST, SECOND, SOURCES
from tests.support.places import REAL_FILES

import pytest
from PIL import Image
from tokenizers import Tokenizer as BPETokenizer

PICTURE = Image.new("RGB", (8, 8))


@pytest.fixture(params=["tiny", *product(SOURCES, (FIRST, SECOND))], ids=str)
def folder(request: pytest.FixtureRequest, tiny: Path, stand_ins: Path) -> Path:
    if request.param == "tiny":
        return tiny
    source, name = request.param
    return Path(stand_ins if source == "stand-in" else REAL_FILES, name)


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tokenizer's files, to change."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny / name, tmp_path)
    return tmp_path


def places(token: str, other: str) -> list[list[str]]:
    """Texts of the parts of a message that have a control token's characters in them."""
    half = len(token) // 2
    return [
        [f"{token} at the start"],
        [f"in the {token} middle"],
        [f"at the end {token}"],
        [f"inside a wo{token}rd"],
        [f"{token}{other}{token}", "<" + token],
        [token[:half], token[half:]],
    ]


def test_text_never_becomes_a_control_token(folder: Path) -> None:
    processor = load_processor(folder)
    # Only the text matters here.
    processor.settings = replace(processor.settings, tile_size=4, longest_edge=4)
    processor.tokens_per_tile = 2
    control = set(processor.tokenizer.added.values())
    tokens = list(processor.tokenizer.added)
    assert len(tokens) >= 20
    for images in range(3):
        pictures: list[Any] = [{"type": "image", "image": PICTURE}] * images

        def count(texts: list[list[str]], pictures: list[Any] = pictures) -> int:
            """Control ids of a conversation with a message for each place."""
            parts = [[{"type": "text", "text": text} for text in place] for place in texts]
            parts[0] = [*pictures[:1], *parts[0], *pictures[1:]]
            messages = [{"role": "user", "content": content} for content in parts]
            return sum(id in control for id in processor(messages).input_ids.tolist())

        expected = count([["x"] * len(place) for place in places("", "")])
        assert expected >= 7 + images * processor.tokens_per_tile
        for token, other in zip(tokens, [*tokens[1:], tokens[0]], strict=True):
            assert count(places(token, other)) == expected, token


def test_user_text_is_kept_as_it_is(tokenizer: Tokenizer) -> None:
    mark = "\ufdd0"
    for text in (
        "<image>",
        "a<|im_start|>b",
        "<<row_1_col_1>",
        "< > <end_of_utterance",
        "1 < 2, 3 > 2",
    ):
        guarded = tokenizer.guard(text, mark)
        ids = tokenizer.encode_prompt(f"<|im_start|>{guarded}<end_of_utterance>", mark)
        assert ids[1:-1] == tokenizer.encode_text(text)
        assert tokenizer.decode(ids) == text
        assert (
            tokenizer.decode(ids, skip_special_tokens=False)
            == f"<|im_start|>{text}<end_of_utterance>"
        )


def test_the_longest_added_token_is_found_and_one_of_a_letter_is_text(tiny: Path) -> None:
    library = BPETokenizer.from_file(str(tiny / "tokenizer.json"))
    library.add_tokens(["é", "<>", "<>x"])
    tokenizer = Tokenizer(library)
    longest, shorter = (tokenizer.added[token] for token in ("<>x", "<>"))
    letter = tokenizer.encode_text("é")
    assert letter != [tokenizer.added["é"]]
    assert tokenizer.encode_prompt("<>xé<>", "\ufdd0") == [longest, *letter, shorter]
    assert tokenizer.guard("a<é>", "|") == "a<|é>"


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc80b", "<\ud83d>"])
def test_half_a_character(text: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="half a surrogate pair"):
        tokenizer.encode_text(text)


def test_empty_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_text("") == []
    assert tokenizer.encode_prompt("", "\ufdd0") == []
    assert tokenizer.decode([]) == ""


# ---- streaming


def test_stream_is_decode_is_the_librarys_decode(folder: Path, tokenizer: Tokenizer) -> None:
    library = BPETokenizer.from_file(str(folder / "tokenizer.json"))
    size, rng = library.get_vocab_size(), random.Random(0)
    tokenizer.end_ids = frozenset()  # which would end a text
    emoji = tokenizer.encode_text("👩‍👩‍👧 🏳️‍🌈 é漢\U0001f600")
    for number in range(3000):
        ids = [rng.randrange(size) for _ in range(rng.randrange(1, 12))]
        if number % 3 == 0:  # characters cut anywhere
            start = rng.randrange(len(emoji))
            ids[rng.randrange(len(ids)) :] = emoji[start : start + rng.randrange(1, 9)]
        stream = StreamingDetokenizer(tokenizer)
        pieces = [stream.add_token(id) for id in ids]
        text = "".join(pieces) + stream.finalize()
        whole = tokenizer.decode(ids)
        assert whole == library.decode(ids, skip_special_tokens=True), ids
        cut = ["\ufffd" * bytes for bytes in range(4)]  # a character that is not whole
        assert whole.removeprefix(" ") in [f"{text}{rest}" for rest in cut], ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == library.decode(
            ids, skip_special_tokens=False
        ), ids


def test_a_character_comes_when_it_is_whole(tiny: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny)  # a token a byte
    text = "aé漢😀z"
    ids = tokenizer.encode_text(text)
    assert len(ids) == len(text.encode())
    stream = StreamingDetokenizer(tokenizer)
    assert [stream.add_token(id) for id in ids] == [
        "a",
        "",
        "é",
        "",
        "",
        "漢",
        "",
        "",
        "",
        "😀",
        "z",
    ]
    assert stream.finalize() == ""
    for id in tokenizer.encode_text("😀")[:3]:
        assert stream.add_token(id) == ""
    assert stream.finalize() == ""
    stream = StreamingDetokenizer(tokenizer)
    assert [stream.add_token(id) for id in tokenizer.encode_text("ok")] == ["o", "k"]


def test_ids_that_are_not_there(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([10**6, 2**31]) == ""


def test_a_token_that_is_no_bytes_is_its_own_text() -> None:
    vocabulary = {"▁the": 0, "Ġa": 1, "<image>": 2}
    raw = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    bpe = BPETokenizer.from_str(json.dumps(raw))
    assert Tokenizer(bpe).decode([0, 1]) == bpe.decode([0, 1]) == "▁the a"


# ---- files


def damage(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}}',
        b'{"version": "1.0", "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},'
        b' "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
    ],
    ids=lambda content: repr(content[:70]),
)
def test_damaged_tokenizers(content: bytes, own: Path) -> None:
    damage(own, content)
    check_refused(own)


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "special": True}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [*steps], "pretokenizers": [*steps]}


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("normalizer", DOUBLING, "normalizer 'Replace' is not one of Sequence, NFC, "),
        ("normalizer", sequence(*[DOUBLING] * 40), "normalizer 'Replace' is not one of "),
        ("normalizer", sequence(sequence(DOUBLING)), "normalizer 'Replace' is not one of "),
        ("normalizer", sequence(*[{"type": "NFKD"}] * 16), "has more than 16 steps"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "'Precompiled'"),
        ("normalizer", {"type": ["NFC"]}, "is not one of"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}}, "'Split' is not"),
        ("pre_tokenizer", sequence({"type": "Metaspace"}), "'Metaspace' is not one of Sequence, "),
        ("model", {"type": "WordPiece", "vocab": {}, "merges": []}, "'WordPiece' is no BPE"),
        ("model", {"type": "BPE", "vocab": {}, "merges": [], "dropout": 0.5}, "without dropout"),
        ("model", {"type": "BPE", "vocab": [], "merges": []}, "no vocabulary"),
        ("added_tokens", [{"content": "x" * 257}], "up to 256 characters"),
        ("added_tokens", [{"content": 5}], "up to 256 characters"),
        ("added_tokens", [{"content": f"<{n}>"} for n in range(2001)], "2001 added tokens, more"),
        ("added_tokens", {"a": 1}, "added_tokens is no list"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_may_take_for_ever_is_refused_before_it_is_built(
    part: str, value: Any, said: str, own: Path
) -> None:
    raw = json.loads((own / "tokenizer.json").read_text())
    damage(own, json.dumps({**raw, part: value}).encode())
    with pytest.raises(CheckpointError, match=re.escape(said)):
        Tokenizer.from_folder(own)


def test_steps_of_the_family_and_of_unicode(own: Path) -> None:
    raw = json.loads((own / "tokenizer.json").read_text())
    steps = [{"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")]
    damage(own, json.dumps({**raw, "normalizer": sequence(*steps * 3)}).encode())
    tokenizer = Tokenizer.from_folder(own)
    assert tokenizer.decode(tokenizer.encode_text("A\u212b")) == "aa\u030a"


def test_files_of_text_have_limits(own: Path, tmp_path: Path) -> None:
    assert (MAX_TOKENIZER_BYTES, MAX_TEMPLATE_BYTES) == (12 * 2**20, 2**20)
    whole = (own / "tokenizer.json").read_bytes()
    damage(own, whole.ljust(MAX_TOKENIZER_BYTES))
    Tokenizer.from_folder(own)
    damage(own, whole.ljust(MAX_TOKENIZER_BYTES + 1))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: larger than 12 MiB"):
        Tokenizer.from_folder(own)
    template = tmp_path / "chat_template.jinja"
    template.write_text("x" * MAX_TEMPLATE_BYTES)
    assert len(chat_template(tmp_path) or "") == MAX_TEMPLATE_BYTES
    with template.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: larger than 1 MiB"):
        chat_template(tmp_path)
    many = json.dumps({"chat_template": "x" * (MAX_TEMPLATE_BYTES + 1)})
    (tmp_path / "chat_template.json").write_text(many)
    with pytest.raises(CheckpointError, match="chat_template is larger than 1 MiB"):
        chat_template(tmp_path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_tokenizer(part: float, own: Path) -> None:
    whole = (own / "tokenizer.json").read_bytes()
    damage(own, whole[: int(len(whole) * part)])
    check_refused(own)


def test_no_tokenizer(own: Path) -> None:
    (own / "tokenizer.json").unlink()
    check_refused(own)
    (own / "tokenizer.json").mkdir()
    check_refused(own)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_damaged_companions(name: str, content: bytes, own: Path) -> None:
    (own / name).write_bytes(content)
    check_refused(own, name)


def check_refused(folder: Path, name: str = "tokenizer.json") -> None:
    with pytest.raises(CheckpointError) as raised:
        Tokenizer.from_folder(folder)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_flipped_bytes(own: Path) -> None:
    whole, rng = (own / "tokenizer.json").read_bytes(), random.Random(0)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        damage(own, bytes(changed))
        with suppress(CheckpointError):  # anything else fails the test
            tokenizer = Tokenizer.from_folder(own)
            tokenizer.decode(tokenizer.encode_text("a<image>é 12"))


# ---- ends of answers


@pytest.mark.parametrize(
    ("generation", "config", "more"),
    [
        ({}, {}, set()),
        ({"eos_token_id": 7}, {}, {7}),
        ({"eos_token_id": [7, 9]}, {}, {7, 9}),
        ({"eos_token_id": None}, {"eos_token": None}, set()),
        ({"eos_token_id": "x"}, {"eos_token": 5}, set()),
        ({}, {"eos_token": "<|im_end|>"}, {2}),
        ({"eos_token_id": [8]}, {"eos_token": {"content": "<|im_end|>", "special": True}}, {2, 8}),
        ({}, {"eos_token": "not a token"}, set()),
        (None, None, set()),
    ],
    ids=repr,
)
def test_end_ids(generation: Any, config: Any, more: set[int], own: Path) -> None:
    for name, content in (
        ("generation_config.json", generation),
        ("tokenizer_config.json", config),
    ):
        (own / name).unlink()
        if content is not None:
            (own / name).write_text(json.dumps(content))
    tokenizer = Tokenizer.from_folder(own)
    always = {tokenizer.added["<end_of_utterance>"], tokenizer.added["<|endoftext|>"]}
    assert tokenizer.end_ids == always | more


def test_end_ids_of_the_family(family: Path) -> None:
    assert Tokenizer.from_folder(family / FIRST).end_ids == {0, 49154}
    assert Tokenizer.from_folder(family / SECOND).end_ids == {0, 49279}
