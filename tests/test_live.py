"""Live: the answers are those of `generate`, what can be reused is, and a pipe and a terminal show
what happened."""

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from examples import demo
from smolvlm_mlx import Options, generate, stream_generate
from smolvlm_mlx.cli import live as live_command
from smolvlm_mlx.errors import GenerationError
from smolvlm_mlx.events import Event, Statistics, Text
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.generation.stream import Stream, TextStream
from smolvlm_mlx.inputs.camera import Frame
from smolvlm_mlx.inputs.image import Pixels
from smolvlm_mlx.inputs.processor import Inputs
from smolvlm_mlx.inputs.video import VideoSampling, decode
from smolvlm_mlx.tasks import live as live_module
from smolvlm_mlx.tasks.live import CLEAR, SAME, Description, Judge, Live, difference
from tests.support.checkpoints import Loaded
from tests.support.cli import check_refused, start
from tests.support.http import Running, question
from tests.support.pictures import data_url
from tests.support.videos import encode_video

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

DESCRIBE = "Describe the picture."


def picture(color: str = "red", at: int = 10) -> Image.Image:
    """A circle at the left, or elsewhere."""
    image = Image.new("RGB", (128, 96), "white")
    ImageDraw.Draw(image).ellipse((at, 10, at + 40, 50), fill=color)
    return image


def asked(bundled: Loaded, image: Image.Image, question_first: bool = False) -> Inputs:
    """What `generate` is given, and `live` ought to be."""
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": image},
        {"type": "text", "text": DESCRIBE},
    ]
    content = parts[::-1] if question_first else parts
    processor = bundled[1]
    return processor([{"role": "user", "content": content}], processor.one_tile)


def describe_one(live: Live, image: Image.Image) -> Description:
    description = live.describe(Frame(image))
    assert "".join(description.stream) == description.text
    return description


# ---- what the model is asked, and answers


@pytest.mark.parametrize("question_first", [False, True])
def test_answers_are_those_of_generate_and_the_prompt_before_the_picture_is_reused(
    bundled: Loaded, question_first: bool
) -> None:
    model, processor = bundled
    options = Options(max_tokens=24)
    live = Live(model, processor, DESCRIBE, options, question_first=question_first)
    reused: list[int] = []
    for image in (picture("red"), picture("blue", 70), picture("green", 40)):
        description = describe_one(live, image)
        inputs = asked(bundled, image, question_first)
        alone = stream_generate(model, processor, inputs, options)
        assert description.text == "".join(alone) != ""
        assert description.stream.token_ids == alone.token_ids
        assert (description.statistics.tiles, alone.statistics.reused_tokens) == (1, 0)
        before = inputs.input_ids.tolist().index(model.config.image_token_id)
        assert description.statistics.reused_tokens == (before if reused else 0)
        reused.append(before)
    start_of_prompt = [
        processor.tokenizer.decode([id]) for id in inputs.input_ids[: reused[0]].tolist()
    ]
    assert (DESCRIBE in "".join(start_of_prompt)) is question_first


def test_the_picture_stands_first_unless_it_is_asked_for(bundled: Loaded) -> None:
    def kinds(**options: Any) -> list[str]:
        (message,) = Live(*bundled, DESCRIBE, **options).messages(picture())
        return [type(part).__name__ for part in message.parts]

    assert kinds() == ["ImagePart", "TextPart"]
    assert kinds(question_first=True) == ["TextPart", "ImagePart"]


def test_split_is_asked_for(bundled: Loaded) -> None:
    live = Live(*bundled, DESCRIBE, Options(max_tokens=2), split=True)
    assert describe_one(live, picture()).statistics.tiles > 1


def test_a_picture_that_stands_still_is_not_read_again(bundled: Loaded) -> None:
    live = Live(*bundled, DESCRIBE, Options(max_tokens=8))
    first, second = describe_one(live, picture()), describe_one(live, picture())
    assert first.text == second.text
    assert second.statistics.reused_tokens == second.statistics.prompt_tokens - 1
    assert not second.unchanged  # nor is the picture another


def test_pictures_that_come_again_are_not_encoded_again_where_there_is_room(
    bundled: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoded = bundled[0], list[int]()
    encode = type(model).encode_images

    def counted(self: Any, tiles: Any) -> Any:
        encoded.append(len(tiles))
        return encode(self, tiles)

    monkeypatch.setattr(type(model), "encode_images", counted)
    one, other = picture("red"), picture("blue", 70)

    def count(*images: Image.Image) -> int:
        live = Live(*bundled, DESCRIBE, Options(max_tokens=1))
        encoded.clear()
        for image in images:
            describe_one(live, image)
        return sum(encoded)

    assert count(one, one, other, one, other) == 2
    config = model.config
    kept = config.tokens_per_tile * config.text_config.hidden_size * 4  # bytes, of float32
    for pictures, encodings in ((2, 2), (1.9, 4), (1, 4)):
        monkeypatch.setattr(live_module, "IMAGE_CACHE_BYTES", int(pictures * kept))
        assert count(one, one, other, one, other) == encodings


def test_the_notice_comes_once_when_pictures_differ_and_answers_do_not(bundled: Loaded) -> None:
    live = Live(*bundled, "Is there any text?", Options(max_tokens=1))
    colors = ["red", "red", "green", "blue", "black", "red"]
    descriptions = [describe_one(live, Image.new("RGB", (64, 64), color)) for color in colors]
    assert len({description.text for description in descriptions}) == 1
    assert [description.unchanged for description in descriptions] == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    assert SAME == 3
    assert [description.stuck for description in descriptions] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    other = describe_one(live, demo.draw())
    assert other.text != descriptions[0].text
    assert not other.unchanged


def test_a_judge_counts_equal_answers_to_clearly_different_pictures() -> None:
    judge, tiles = Judge(), [np.full((4, 4, 3), value, np.uint8) for value in (0, 2, 100, 200, 0)]

    def judged(text: str, tile: Pixels) -> tuple[int, bool, int, bool]:
        judge.judge(text, tile)
        return judge.number, judge.unchanged, judge.same, judge.is_stuck

    assert judged("same", tiles[0]) == (1, False, 1, False)
    assert judged("same", tiles[1]) == (2, False, 1, False)  # a camera's noise
    assert judged("same", tiles[2]) == (3, True, 2, False)
    assert judged("same", tiles[3]) == (4, True, SAME, True)
    assert judged("same", tiles[3]) == (5, False, 3, True)  # as it was: still stuck
    assert judged("other", tiles[4]) == (6, False, 1, False)
    assert judged("same", tiles[0]) == (7, False, 1, False)
    assert judged("same", tiles[0] + 7) == (8, False, 1, False)
    assert judged("same", tiles[0] + 8) == (9, True, 2, False)  # just clear


def test_difference() -> None:
    black, gray = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 12, np.uint8)
    white = np.full((4, 4, 3), 255, np.uint8)
    assert (difference(black, white), difference(white, black)) == (255, 255)
    assert difference(gray, gray) == 0 < CLEAR < difference(gray, black) == 12
    noise = np.random.default_rng(0).normal(128, 3, (64, 64, 3)).round().astype(np.uint8)
    assert difference(noise, np.full_like(noise, 128)) < CLEAR


# ---- one look after the other


def test_a_frame_is_asked_for_when_the_look_before_is_over(bundled: Loaded) -> None:
    live = Live(*bundled, DESCRIBE, Options(max_tokens=6))
    seen: list[Description] = []

    def frames() -> Iterator[Frame]:
        for number in range(3):
            assert len(seen) == number
            assert all(description.statistics.finish_reason == "length" for description in seen)
            yield Frame(picture(at=number * 30), dropped=number)

    for description in live.watch(frames()):
        "".join(description.stream)
        seen.append(description)
    assert [(description.number, description.dropped) for description in seen] == [
        (1, 0),
        (2, 1),
        (3, 2),
    ]


def test_an_answer_that_nobody_reads_to_its_end_is_ended(bundled: Loaded) -> None:
    live = Live(*bundled, DESCRIBE, Options(max_tokens=24))
    whole = describe_one(Live(*bundled, DESCRIBE, Options(max_tokens=24)), picture("blue")).text
    descriptions = live.watch([Frame(picture("red")), Frame(picture("blue"))])
    first = next(descriptions)
    next(iter(first.stream))
    second = next(descriptions)
    assert first.statistics.finish_reason == "interrupted"
    assert list(first.stream) == []
    assert (first.unchanged, first.stuck) == (False, False)
    assert "".join(second.stream) == whole


def test_the_least_interval(bundled: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    monkeypatch.setattr(
        live_module,
        "time",
        SimpleNamespace(monotonic=lambda: now, sleep=sleep, perf_counter=lambda: now),
    )
    live = Live(*bundled, DESCRIBE, Options(max_tokens=1))
    for description in live.watch([Frame(picture(), seconds=0.25)] * 3, every=20):
        assert description.statistics.preprocess_seconds == 0.25  # of the camera, and of ours
        "".join(description.stream)
        now += (15, 15, 30)[description.number - 1]
    assert waits == [5, 5, 0]
    list(live.watch([Frame(picture())]))
    assert waits[3:] == [0]
    with pytest.raises(GenerationError, match="the prompt has"):
        next(Live(*bundled, "word " * 3000).watch([Frame(picture())]))


# ---- the command


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(encode_video(6, 20))
    return path


def test_a_pipe_has_a_line_a_frame(tiny: Path, clip: Path, call: Any) -> None:
    code, out, err = call("live", clip, "-m", tiny, "-n", 4, "--dtype", "float32", "--count", 2)
    assert code == 0
    assert len(out.splitlines()) == 2
    lines = err.splitlines()
    assert len(lines) == 2
    stations = r"preprocess \d+ ms · vision \d+ ms · prefill \d+ ms · [\d.]+ tokens/s"
    assert re.fullmatch(rf"frame 1 · 0 dropped · {stations}", lines[0])
    assert re.fullmatch(rf"frame 2 · \d+ dropped · {stations} · \d+ of \d+ tokens reused", lines[1])
    # Without --count a file is described to its end, and no frame is lost sight of.
    code, out, err = call("live", clip, "-m", tiny, "-n", 1)
    dropped = sum(int(number) for number in re.findall(r"(\d+) dropped", err))
    assert (code, len(out.splitlines()) + dropped) == (0, 6)


def test_what_cannot_be_looked_at_is_told_before_the_model_is_loaded(
    clip: Path, tmp_path: Path, call: Any
) -> None:
    nowhere = ("-m", tmp_path / "no model")
    check_refused(call("live", tmp_path / "none.mp4", *nowhere), "no such file")
    check_refused(call("live", clip, "--camera", "0", *nowhere), "a file and --camera")
    check_refused(call("live", "--camera", tmp_path / "no camera", *nowhere), "no camera'")
    check_refused(call("live", clip, *nowhere), "no model")


def test_interrupt(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    path.write_bytes(encode_video(3, 10, "matroska", times=[0, 4000, 8000]))
    process = start("live", path, "-m", tiny, "-n", 2)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"frame 1")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"\n"


# ---- the terminal


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """The pictures that a pretended terminal shows."""
    pictures: list[Image.Image] = []

    class Inline:
        def __init__(self, image: Image.Image, width: int, height: str):
            pictures.append(image)

        def __rich__(self) -> str:
            return "(picture)"

        def cleanup(self) -> None: ...

    monkeypatch.setitem(sys.modules, "textual_image.renderable", SimpleNamespace(Image=Inline))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    return pictures


def test_the_picture_is_mirrored_for_display_only(
    bundled: Loaded, tmp_path: Path, shown: list[Image.Image], call: Any
) -> None:
    path = tmp_path / "left.gif"
    picture().save(path)
    (frame,) = decode(path.read_bytes(), VideoSampling()).frames
    assert frame != ImageOps.mirror(frame)
    straight, mirrored = (
        generate(*bundled, asked(bundled, image), Options(max_tokens=24)).strip()
        for image in (frame, ImageOps.mirror(frame))
    )
    assert straight != mirrored
    for flag, expected in (("--mirror", ImageOps.mirror(frame)), ("--no-mirror", frame)):
        shown.clear()
        options = "-m tiny --dtype float32 -n 24".split()
        code, out, _ = call("live", path, *options, "-p", DESCRIBE, flag)
        assert code == 0
        assert straight in out
        assert shown == [expected]
    assert live_command.preview(frame.resize((4000, 3000)), True).size == (1024, 768)


def test_what_the_model_writes_is_shown_and_not_obeyed(
    clip: Path, shown: list[Image.Image], call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def events() -> Generator[Event]:
        yield from map(Text, ("[red]a[/b] \x1b[2Jb", "\x9bc\x07d"))

    def outputs(**more: Any) -> tuple[str, str]:
        """Of a description that was made up: stdout and stderr."""
        description = Description(picture(), 1, 0, stuck=True, **more)
        description.stream = TextStream(
            Stream(events(), Row(Options(), statistics=Statistics(prompt_tokens=5)))
        )
        monkeypatch.setattr(Live, "watch", lambda *arguments: iter([description]))
        code, out, err = call("live", clip, "-m", "tiny")
        assert code == 0
        return out, err

    out, _ = outputs()
    assert "[red]a[/b] [2Jbcd\n" in out
    assert live_command.STUCK in " ".join(out.split())
    assert len(shown) == 1
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    out, err = outputs(text="two\nlines\r and\x85more ")
    assert out == "two lines and more\n"
    assert err.splitlines()[1] == live_command.STUCK
    assert len(shown) == 1


def test_in_a_terminal(tiny: Path, clip: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    terminal = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = start(
        "live", clip, "-m", tiny, *"-n 3 --count 2".split(), env=environment, **terminal
    )
    os.close(theirs)
    written = b""
    # Linux' way to say that the other end is closed; elsewhere nothing more comes.
    with suppress(OSError):
        while more := os.read(ours, 65536):
            written += more
    os.close(ours)
    assert process.wait(60) == 0
    text = written.decode(errors="replace")
    first, second = text.index("frame 1 · "), text.index("frame 2 · ")
    assert "▀" in text[:first]  # half blocks, where a terminal has no pictures
    assert "\x1b[H" in text[first:second]  # at the top again
    assert "▀" in text[first:second]
    assert text.index("\x1b[J", first) < second


def test_a_damaged_file_is_named(tmp_path: Path, call: Any) -> None:
    damaged = tmp_path / "clip.mp4"
    damaged.write_bytes(b"\0no video" * 100)
    result = call("live", damaged, "-m", "tiny")
    check_refused(result)
    assert re.match(r"smolvlm-mlx: [^:]*clip\.mp4': the video cannot be decoded", result[2])


# ---- over HTTP


def test_pictures_of_low_detail_are_one_tile(server: Running) -> None:
    def tiles(*details: str | None) -> Any:
        asked = question("What?", *[data_url()] * len(details), max_tokens=1)
        for part, detail in zip(asked["messages"][0]["content"], details, strict=False):
            part["image_url"]["detail"] = detail
        return server.complete(asked).json()["usage"]["timing"]

    one, several = tiles("low"), tiles("auto")
    assert (one["tiles"], several["tiles"]) == (1, 13)
    assert tiles("low", "low")["tiles"] == 2
    assert tiles("low", None)["tiles"] == 14
    assert set(one) == {
        "tiles",
        "preprocess",
        "vision",
        "prefill",
        "first_token",
        "tokens_per_second",
        "about",
    }
    assert server.complete(question("What?", max_tokens=1)).json()["usage"]["timing"]["tiles"] == 0
    refused = question("What?", data_url())
    refused["messages"][0]["content"][0]["image_url"]["detail"] = "tiny"
    assert server.complete(refused).status_code == 400
