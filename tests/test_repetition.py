"""Answers that go in circles: what a loop is and what is none, where its text ends, and who honours
it."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from smolvlm_mlx import Chat, Options, load, stream_generate
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.repetition import (
    OTHER,
    SENTENCES,
    WORDS,
    RepetitionDetector,
    ends_twice,
    rule_of,
)
from smolvlm_mlx.tasks.options import CHAT
from tests.support.checkpoints import Loaded
from tests.support.http import Running, question, serving
from tests.support.pictures import PICTURE
from tests.support.speaking import make_family

import pytest

SENTENCE = "The cat sat on a mat. "
SAID = " abcdefghij."


def found_at(text: str) -> tuple[int, str] | None:
    """After how many characters, each of which is a token, it is a loop, and what is before its
    second copy."""
    detector = RepetitionDetector(lambda ids: "".join(map(chr, ids)))
    for count, character in enumerate(text, 1):
        detector.push(ord(character))
        if detector.found:
            return count, text[: detector.begins]
    return None


def shown(text: str, tokens: int = 9999) -> tuple[str, str]:
    """What is shown of an answer whose tokens are characters, and how it ended."""
    tokenizer: Any = Characters()
    row = Row(Options(tokens, end_loops=True), tokenizer)
    row.begin([], tokens)
    row.start()
    pieces = []
    for character in [*map(ord, text), Characters.END]:
        pieces.append(row.push(character))
        if row.over:
            break
    return "".join(pieces), row.statistics.finish_reason


class Characters:
    """A tokenizer of characters."""

    END = -7
    end_ids, doctags_end = frozenset([END]), None

    def bytes_of(self, id: int, skip_special_tokens: bool = True) -> bytes:
        return chr(id).encode()

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))


# ---- what a loop is


@pytest.mark.parametrize("size", [1, 2, 7, 8, 64, 100, 256])
def test_loops_of_every_length_are_told_at_their_least_length_and_not_before(size: int) -> None:
    block = "Abcdefghijklmnopqrstuvwxyz"[:size]
    block += "".join(Random(size).choices("abcdefgh", k=size - len(block)))
    rule = rule_of(block, len({*block}))
    assert rule == (WORDS if size < 8 else SENTENCES)
    least = max(rule.tokens, rule.copies * size)
    text = block * 256
    assert found_at("xyz" + text[:least]) == (3 + least, "xyz" + block)
    assert found_at("xyz" + text[: least - 1]) is None
    assert found_at(text[:least]) == (least, block)
    assert found_at("".join(f"{block}{number}." for number in range(30))) is None
    if size == 256:  # which is the longest
        assert found_at((block + "-") * 9) is None


@pytest.mark.parametrize(
    "text",
    [
        "0, " * 340,
        "| --- " * 160 + "|",
        "." * 1000,
        "ha " * 80,
        "<fcel>n/a" * 90,
        "self.next(a[0])\n        " * 10,
        "[None, None, None, None],\n" * 9,
        '<li><a href="#">Link</a></li>\n' * 8,
        SENTENCE * 3,
        (SENTENCE * 3 + "It is time to go. ") * 3,
    ],
    ids=range(10),
)
def test_what_is_repeated_on_purpose_is_no_loop_and_is_shown(text: str) -> None:
    assert found_at(text) is None
    assert shown(text) == (text, "stop")


def test_what_text_it_is() -> None:
    assert rule_of(SENTENCE, 12) == rule_of("猫坐在垫子上面看着鸟。", 11) == SENTENCES
    assert rule_of("ha ", 2) == rule_of("print(x[0])", 11) == WORDS
    assert rule_of("xt>The same cat again.</text><te", 12) == WORDS
    assert rule_of("cel>no cat is here<f", 20) == rule_of("no cat is here<fcel>", 20) == OTHER
    assert rule_of("0.00 ", 3) == rule_of("loc_50></text><text><", 9) == OTHER


def test_random_text_is_no_loop() -> None:
    random = Random(5)
    assert all(found_at("".join(random.choices("abc", k=1500))) is None for _ in range(5))


def test_a_loop_is_found_wherever_it_begins() -> None:
    before = "".join(Random(1).choices("abcdefgh ", k=700))
    for size in (0, 1, 255, 256, 257, 700):
        assert found_at(before[:size] + SENTENCE * 9) is not None


# ---- what is shown of it


def test_of_a_loop_two_copies_are_shown() -> None:
    assert shown(f"Hello. {SENTENCE * 50}") == (f"Hello. {SENTENCE * 2}".rstrip(), "repetition")
    words = "the cat sat on the mat and "  # without an end one more
    assert shown(words * 50) == (words * 3, "repetition")


def test_what_was_held_back_is_shown_where_the_answer_goes_on_or_ends() -> None:
    for end in ("", " And so on."):
        text = SENTENCE * 4 + end
        assert shown(text) == (text, "stop")
    assert shown(SENTENCE * 4, 70) == ((SENTENCE * 4)[:70], "length")


def test_at_the_longest_length_fewer_tokens_are_a_loop() -> None:
    short = "The cat sat. "
    assert shown(short * 9, 6 * len(short)) == (short * 2, "repetition")
    assert shown(short * 9, 3 * len(short)) == (short * 3, "length")
    assert shown("ha " * 50, 60) == ("ha " * 6 + "h", "repetition")
    assert shown("0, " * 50, 90) == (("0, " * 30), "length")


def test_it_is_ended_where_that_is_asked_for_alone() -> None:
    tokenizer: Any = Characters()
    row = Row(Options(400), tokenizer)
    row.begin([], 400)
    row.start()
    pieces = [row.push(ord(character)) for character in (SENTENCE * 30)[:400]]
    assert ("".join(pieces), row.statistics.finish_reason) == ((SENTENCE * 30)[:400], "length")


# ---- who honours it


@pytest.fixture(scope="module")
def circling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says one thing without end."""
    return make_family(tmp_path_factory.mktemp("circling"), SAID, in_circles=True)


@pytest.fixture
def loaded(circling: Path) -> Loaded:
    return load(circling)


@pytest.fixture(scope="module")
def server(circling: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(circling, tmp_path_factory.mktemp("data")) as running:
        yield running


KEPT = (SAID * 2).strip()


def test_from_python(loaded: Loaded) -> None:
    stream = stream_generate(*loaded, "Hi", max_tokens=200, end_loops=True)
    assert ("".join(stream), stream.statistics.finish_reason) == (KEPT, "repetition")
    assert 96 <= len(stream.token_ids) < 200
    assert stream.statistics.describe().endswith(" · went in circles and was ended")
    plain = stream_generate(*loaded, "Hi", max_tokens=200)
    assert len("".join(plain)) > len(KEPT)
    assert plain.statistics.finish_reason == "length"


def test_several_together(loaded: Loaded) -> None:
    inputs = loaded[1]([{"role": "user", "content": "Hi"}])
    answers = Engine(*loaded).batch([inputs] * 3, Options(200, end_loops=True))
    assert answers == [(KEPT, "repetition")] * 3


def test_a_chat_goes_on_after_it(loaded: Loaded) -> None:
    chat = Chat(*loaded, CHAT)
    for _ in range(2):
        assert "".join(chat.ask("Hi")) == chat.messages[-1].text == KEPT
        assert chat.messages[-1].interrupted


def test_it_goes_on_out_of_the_circle(loaded: Loaded) -> None:
    chat = Chat(*loaded, CHAT)
    "".join(chat.ask("Hi"))
    more = chat.go_on(temperature=0.7)
    assert chat.messages[-1].text == KEPT
    new = "".join(more)
    assert new.startswith(SAID[:8])  # this model has nothing else to say
    assert (len(chat.messages), chat.messages[-1].text) == (2, (KEPT + new).rstrip())
    assert ends_twice(chat.messages[-1].text)


@pytest.mark.parametrize(
    "text", [f"So. {SENTENCE * 2}", "ha " * 12, "That is it.\n That  is it.", SAID * 2]
)
def test_texts_that_end_twice(text: str) -> None:
    assert ends_twice(text)
    assert ends_twice(text.strip())
    assert not ends_twice(f"{text}Otherwise.")


@pytest.mark.parametrize("text", ["", "a", SENTENCE, "no no", f"{SENTENCE}But {SENTENCE}"])
def test_texts_that_do_not(text: str) -> None:
    assert not ends_twice(text)


def test_a_line_of_captions_says_it_and_so_does_their_end(
    circling: Path, tmp_path: Path, call: Any
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out.jsonl"
    folder.mkdir()
    PICTURE.save(folder / "a.png")
    PICTURE.save(folder / "b.png")
    command = ("caption", folder, "--prompt", "Hi", "-n", 200, "--model", circling, "--out")
    told = f"{out}: 2 of 2 files; 2 went in circles and were ended\n"
    assert call(*command, out) == (0, "", told)
    PICTURE.save(folder / "c.png")  # whose answer is that of an equal file
    told = f"{out}: 3 of 3 files; 3 went in circles and were ended\n"
    assert call(*command, out) == (0, "", told)
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(line["caption"], line["ended_by"]) for line in lines] == [(KEPT, "repetition")] * 3
    plain = tmp_path / "plain.jsonl"
    told = f"{plain}: 3 of 3 files\n"
    assert call(*command, plain, "--no-end-loops") == (0, "", told)
    assert "ended_by" not in plain.read_text("utf-8")


def test_by_the_commands(circling: Path, call: Any) -> None:
    told = "the answer went in circles and was ended"
    asked = ("generate", "Hi", "--model", circling, "--max-tokens", 200)
    assert call(*asked, "--end-loops") == (0, f"{KEPT}\n", f"smolvlm-mlx: {told}\n")
    code, text, err = call(*asked)
    assert (code, len(text) > 2 * len(KEPT), err) == (0, True, "")
    chat = call("chat", "--model", circling, "--no-history", stdin="Hi\n")
    assert chat == (
        0,
        f"{KEPT}\n",
        f"{told.capitalize()}; /continue goes on with it, /retry anew.\n",
    )


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_by_the_api(server: Running, stream: bool, n: int) -> None:
    reply = server.complete(question("Hi", stream=stream, n=n, max_tokens=200, end_loops=True))
    assert reply.status_code == 200, reply.text
    if stream:
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
        pieces = [json.loads(line)["choices"][0] for line in lines if line != "[DONE]"]
    else:
        pieces = reply.json()["choices"]
    texts, ends = dict.fromkeys(range(n), ""), dict[int, Any]()
    for piece in pieces:
        content = piece["delta" if stream else "message"].get("content")
        texts[piece["index"]] += content or ""
        if piece["finish_reason"]:
            ends[piece["index"]] = (piece["finish_reason"], piece["ended_by"])
    assert texts == dict.fromkeys(range(n), KEPT)
    assert ends == dict.fromkeys(range(n), ("length", "repetition"))


def test_a_request_that_says_nothing_of_it_is_answered_to_its_length(server: Running) -> None:
    (choice,) = server.complete(question("Hi", max_tokens=200)).json()["choices"]
    assert (choice["finish_reason"], "ended_by" in choice) == ("length", False)
    assert len(choice["message"]["content"]) > len(KEPT)


def test_json_is_not_ended_in_its_midst(loaded: Loaded) -> None:
    row = Engine(*loaded).row(Options(end_loops=True), {"type": "object"})
    assert row.repetition is None
