"""The text of an answer is the same wherever it is asked for: tags of a document checkpoint are in
it, the template's space is not."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx import Chat, Options, generate, load, stream_generate
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.tasks.documents import PROMPT
from tests.support.checkpoints import Loaded
from tests.support.http import Running, question, serving
from tests.support.speaking import PAGE, TAGS, make_family, make_granite

import pytest
from PIL import Image

TAGS_OF_PAGE = re.findall(r"<[^<>]+>", PAGE)
WORDS = "\tRed"  # what the checkpoint without tags says after the template's space


@pytest.fixture(scope="module", params=["granite", "family"])
def document_checkpoint(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It would go on after the page."""
    out = tmp_path_factory.mktemp("checkpoints") / request.param
    if request.param == "granite":
        return make_granite(out, f"{PAGE}x")
    return make_family(out, f" {PAGE}x", TAGS)


@pytest.fixture(scope="module")
def reader(document_checkpoint: Path) -> Loaded:
    return load(document_checkpoint)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without tags."""
    out = tmp_path_factory.mktemp("checkpoints") / "spoken"
    return make_family(out, f" {WORDS}<end_of_utterance>")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "page.png"
    Image.new("RGB", (64, 64), "white").save(path)
    return path


@pytest.fixture(scope="module")
def serving_documents(
    document_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with serving(document_checkpoint, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def serving_words(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(spoken, tmp_path_factory.mktemp("data")) as running:
        yield running


def post(server: Running, page: Path, **more: Any) -> tuple[str, str]:
    """An answer of the server and its finish reason."""
    url = f"data:image/png;base64,{base64.b64encode(page.read_bytes()).decode()}"
    reply = server.complete(question(PROMPT, url, **more))
    assert reply.status_code == 200, reply.text
    if not more.get("stream"):
        (choice,) = reply.json()["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    choices = [json.loads(line)["choices"][0] for line in lines if line != "[DONE]"]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, choices[-1]["finish_reason"]


# ---- a document checkpoint


def test_a_stand_in_of_granite_docling(tmp_path: Path) -> None:
    _, processor = load(make_granite(tmp_path / "granite", PAGE))
    tokenizer, added = processor.tokenizer, processor.tokenizer.added
    assert len(set(TAGS)) == 96
    assert set(TAGS) < added.keys()
    assert "<end_of_utterance>" not in added
    assert tokenizer.end_ids == {added["<|end_of_text|>"]}
    inputs = processor([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(inputs.input_ids.tolist(), skip_special_tokens=False) == (
        "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    )


def test_a_page_by_the_command(document_checkpoint: Path, page: Path, call: Any) -> None:
    code, out, err = call("document", "--model", document_checkpoint, "--output", "doctags", page)
    assert (code, out, err) == (0, f"{PAGE}\n", "")


def test_a_page_from_python(reader: Loaded, page: Path) -> None:
    """Each tag comes by itself."""
    stream = stream_generate(*reader, PROMPT, images=page)
    pieces = list(stream)
    assert "".join(pieces) == PAGE
    assert [piece for piece in pieces if piece in TAGS] == TAGS_OF_PAGE
    assert set(TAGS_OF_PAGE) == set(TAGS)
    assert stream.statistics.finish_reason == "stop"
    prompt = reader[1]([{"role": "user", "content": PROMPT}])
    assert Engine(*reader).batch([prompt] * 2) == [(PAGE, "stop")] * 2
    chat = Chat(*reader)
    assert "".join(chat.ask(PROMPT, [page])) == chat.messages[-1].text == PAGE


@pytest.mark.parametrize("stream", [False, True])
def test_a_page_by_the_api(serving_documents: Running, page: Path, stream: bool) -> None:
    """Also if the client says so, as docling's does."""
    for skip in ({}, {"skip_special_tokens": False}):
        assert post(serving_documents, page, stream=stream, **skip) == (PAGE, "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_page_without_its_tags_by_the_api(
    serving_documents: Running, page: Path, stream: bool
) -> None:
    words = re.sub(r"<[^<>]+>", "", PAGE)
    text, finish = post(
        serving_documents, page, stream=stream, skip_special_tokens=True, max_tokens=130
    )
    assert text.startswith(f"{words}x")  # no tag is there to end it
    assert finish == "length"


def test_captions_are_words_unless_tags_are_asked_for(
    document_checkpoint: Path, page: Path, tmp_path: Path, call: Any
) -> None:
    model = ("--model", document_checkpoint, "--max-tokens", 140)
    words = re.sub(r"<[^<>]+>", "", PAGE)
    for number, (flags, want) in enumerate(
        [
            (("--preset", "ocr"), f"{words}x"),
            (("--preset", "ocr", "--prompt", "Read it."), f"{words}x"),
            (("--no-skip-special-tokens",), PAGE),
            (("--prompt", PROMPT), PAGE),
            (("--prompt", PROMPT, "--skip-special-tokens"), f"{words}x"),
        ]
    ):
        out = tmp_path / f"{number}.jsonl"
        assert call("caption", *model, *flags, page.parent, "--out", out)[0] == 0
        (line,) = out.read_text().splitlines()
        caption = json.loads(line)["caption"]
        assert caption == want if want == PAGE else caption.startswith(want)


def test_scores_are_of_words_unless_tags_are_asked_for(
    document_checkpoint: Path, page: Path, tmp_path: Path, call: Any
) -> None:
    words = re.sub(r"<[^<>]+>", "", PAGE)
    answers = [words[:8], PAGE]
    row = {"image": str(page), "question": "What?", "answers": answers}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    command = ("evaluate", tmp_path / "rows.jsonl", "--model", document_checkpoint)
    for flags, score in (((), 0.0), (("--no-skip-special-tokens",), 1.0)):
        more = ("--metric", "exact", "--json", "--max-tokens", 140, *flags)
        code, out, _ = call(*command, *more, "--out", tmp_path / f"{score}")
        assert (code, json.loads(out)[0]["mean"]) == (0, score)
        (results,) = (tmp_path / f"{score}").glob("*.jsonl")
        said = json.loads(results.read_text().splitlines()[1])["prediction"]
        assert said == PAGE if flags else said.startswith(words)


def test_a_page_without_its_tags_goes_on(reader: Loaded, page: Path) -> None:
    words = re.sub(r"<[^<>]+>", "", PAGE)
    answer = generate(*reader, PROMPT, images=page, skip_special_tokens=True, max_tokens=130)
    assert answer.startswith(f"{words}x")


@pytest.mark.parametrize("stop", ["</doctag>", ["</doctag>", "<|end_of_text|>"]], ids=str)
def test_an_end_that_a_client_names_is_no_part_of_the_text(
    serving_documents: Running, page: Path, stop: Any
) -> None:
    """As OpenAI's API has it; docling names these."""
    assert post(serving_documents, page, stop=stop) == (PAGE.removesuffix("</doctag>"), "stop")


# ---- the template's space


def test_the_space_is_in_no_answer_from_python(spoken: Path) -> None:
    loaded = load(spoken)
    prompt = loaded[1]([{"role": "user", "content": "What?"}])
    assert generate(*loaded, "What?") == WORDS
    assert "".join(stream_generate(*loaded, "What?")) == WORDS
    assert Engine(*loaded).batch([prompt] * 2) == [(WORDS, "stop")] * 2
    chat = Chat(*loaded)
    assert "".join(chat.ask("What?")) == chat.messages[-1].text == WORDS
    assert generate(*loaded, "What?", Options(stop=("Red",))) == "\t"


@pytest.mark.parametrize("stream", [False, True])
def test_the_space_is_in_no_answer_of_the_api(
    serving_words: Running, page: Path, stream: bool
) -> None:
    assert post(serving_words, page, stream=stream) == (WORDS, "stop")
    assert post(serving_words, page, stream=stream, stop=" ") == (WORDS, "stop")


def test_the_space_is_in_no_answer_of_a_command(
    spoken: Path, page: Path, tmp_path: Path, call: Any
) -> None:
    model = ("--model", spoken)
    assert call("generate", *model, "What?")[1] == f"{WORDS}\n"
    assert json.loads(call("generate", *model, "--json", "What?")[1])["text"] == WORDS
    assert call("chat", *model, "--no-history", stdin="What?\n")[1] == f"{WORDS}\n"
    # These take white space off at both ends.
    assert call("document", *model, "--output", "text", page)[1] == f"{WORDS.strip()}\n"
    call("caption", *model, page.parent, "--out", tmp_path / "captions.jsonl")
    (line,) = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert json.loads(line)["caption"] == WORDS.strip()
