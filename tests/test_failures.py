"""MLX's own errors are one line that says what helps, wherever answers are made."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx import Chat, Options, generate, load
from smolvlm_mlx.errors import EngineError, GenerationError
from smolvlm_mlx.generation import image_cache
from smolvlm_mlx.generation.decoding import Decoder
from smolvlm_mlx.generation.failures import BUG, Contained, computing
from smolvlm_mlx.generation.prefill import PromptReader
from tests.support.pictures import PICTURE, encoded, noise
from tests.support.videos import encode_video

import pytest

SHORT = Options(max_tokens=4)
ERRORS = [RuntimeError("[metal::malloc] too large"), MemoryError("std::bad_alloc"), MemoryError()]
SAID = (
    r"the answer could not be computed "
    r"\((\[metal::malloc\] too large|std::bad_alloc|out of memory)\); what helps: fewer tiles "
    r"\(--max-tiles\), a shorter answer \(--max-tokens\), a checkpoint of 4 bits "
    r"\(convert --bits 4\)"
)


def raising(error: BaseException) -> Callable[..., Any]:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    return broken


@pytest.mark.parametrize("error", ERRORS, ids=["runtime", "bad_alloc", "python"])
def test_errors_of_mlx(error: Exception) -> None:
    with pytest.raises(EngineError, match=f"^{SAID}$") as told, computing():
        raise error
    assert told.value.__cause__ is error


@pytest.mark.parametrize(
    "kind", [NotImplementedError, RecursionError, ValueError, KeyboardInterrupt]
)
def test_other_errors_are_left_as_they_are(kind: type[BaseException]) -> None:
    with pytest.raises(kind), computing():
        raise kind("x")


def test_an_error_that_python_makes_of_a_bug_is_one() -> None:
    def empty() -> Iterator[int]:
        yield next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"), computing():
        next(empty())


@pytest.mark.parametrize("kind", [ZeroDivisionError, NotImplementedError, StopIteration])
def test_a_bug_is_told_in_general_and_logged_once(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    told = list[Exception]()
    with Contained(told.append):
        raise kind("secret")
    assert [(type(error), str(error)) for error in told] == [(EngineError, BUG)]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info is not None
    assert "secret" in caplog.text


def test_what_a_user_can_fix_is_told_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    told, error = list[Exception](), GenerationError("x")
    with Contained(told.append):
        raise error
    assert told == [error]
    assert caplog.records == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_end_is_not_contained(kind: type[BaseException]) -> None:
    with pytest.raises(kind), Contained(lambda error: None):
        raise kind


# ---- where answers are made

PLACES = [(Decoder, "step"), (PromptReader, "read"), (image_cache, "_encode")]


@pytest.mark.parametrize("place", PLACES, ids=["step", "prompt", "picture"])
def test_a_chat_goes_on(place: tuple[Any, str], tiny: Path, monkeypatch: Any) -> None:
    """The question is taken back, and asked again answered as if nothing had been."""
    loaded = load(tiny, "float32")
    chat = Chat(*loaded, SHORT)
    "".join(chat.ask("Hello"))
    before = list(chat.messages)
    with monkeypatch.context() as patch:
        patch.setattr(*place, raising(ERRORS[0]))
        with pytest.raises(EngineError, match=SAID):
            "".join(chat.ask("What is this?", PICTURE))
    assert chat.messages == before
    answer = "".join(chat.ask("What is this?", PICTURE))
    assert answer == generate(*loaded, chat.messages[:-1], SHORT)


COMMANDS = ["generate", "chat", "document", "evaluate", "live"]
# Pictures that are answered together have a way of their own to read prompts.
CASES = [(command, place) for command in COMMANDS for place in PLACES]
CASES += [("caption", place) for place in (PLACES[0], PLACES[2])]


@pytest.mark.parametrize(
    ("command", "place"), CASES, ids=[f"{name}-{place[1]}" for name, place in CASES]
)
def test_a_command_tells_it_in_a_line(
    command: str, place: tuple[Any, str], call: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    picture, rows, clip = (tmp_path / name for name in ("a.png", "rows.jsonl", "a.mp4"))
    picture.write_bytes(encoded(noise(30, 20), "PNG"))
    clip.write_bytes(encode_video(2))
    rows.write_text('{"image": "a.png", "question": "x", "answer": "y"}\n')
    arguments = {
        "generate": ["What?", "--image", picture],
        "chat": ["--image", picture, "--no-history"],
        "document": [picture, "--output", "text"],
        "caption": [picture, "--out", tmp_path / "out.jsonl"],
        "live": [clip, "--count", 1],
        "evaluate": [rows, "--out", tmp_path / "results"],
    }[command]
    monkeypatch.setattr(*place, raising(ERRORS[0]))
    code, stdout, stderr = call(command, *arguments, "-m", "tiny", stdin="Hello\n")
    assert code == 1
    assert "the answer could not be computed ([metal::malloc] too large); what" in stderr
    assert "Traceback" not in stdout + stderr
