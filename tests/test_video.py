"""Videos: which frames, which words, and what becomes of odd files."""

import hashlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from threading import Event
from typing import Any

from smolvlm_mlx import Chat, Options, device, stream_generate
from smolvlm_mlx.errors import FetchError, PromptError, VideoError
from smolvlm_mlx.events import Reading, Work
from smolvlm_mlx.generation import image_cache
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.inputs.fetch import FetchLimits
from smolvlm_mlx.inputs.media import VIDEO_SUFFIXES, Attachment, Video, attach, is_named_video
from smolvlm_mlx.inputs.video import (
    LIMITS,
    Clip,
    VideoSampling,
    decode,
    decode_in_steps,
    in_words,
    read_video,
    sample,
    words,
)
from smolvlm_mlx.inputs.video_file import VideoFile
from smolvlm_mlx.model import SmolVLM
from tests.support.checkpoints import Loaded
from tests.support.messages import media_of
from tests.support.videos import encode_video, grays, sound

import av
import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

# ---- which frames


@pytest.mark.parametrize(
    ("count", "fps", "values", "want"),
    [
        (50, 10, {}, [0, 12, 24, 36, 49]),
        (1, 10, {}, [0]),
        (7, 30, {}, [0]),
        (50, 10, {"fps": 2, "max_frames": 3}, [0, 24, 49]),
        # Long: a second is left out at both ends.
        (700, 10, {"max_frames": 4}, [10, 236, 463, 690]),
        (50, 10, {"start": 2, "end": 4}, [20, 39]),
        (50, 10, {"start": 4.9, "end": 100}, [49]),
        (50, 10, {"start": 100}, [49]),
        (50, 10, {"start": 4}, [40]),
        (50, 10, {"end": 2}, [0, 19]),
        (100, 10, {"end": 2.5}, [0, 24]),
        (100, 10, {"end": 2.6}, [0, 12, 25]),
        (100, 100, {"fps": 100, "start": 0.29, "end": 0.57}, list(range(29, 57))),
        # So much longer than frames are wanted of it, and just not.
        (61, 10, {"max_frames": 4}, [10, 23, 37, 51]),
        (60, 10, {"max_frames": 4}, [0, 19, 39, 59]),
        (5, 2.4, {"fps": 0.05, "max_frames": 1}, [0]),
    ],
)
def test_sampling(count: int, fps: float, values: dict[str, Any], want: list[int]) -> None:
    assert sample(count, fps, VideoSampling().changed(values)) == want


def test_sampling_that_a_checkpoint_names() -> None:
    usual = VideoSampling(1.0, 64, 512, with_times=True, start=None, end=None)
    assert VideoSampling() == usual
    nothing: list[Any] = [None, {}, 0]
    for size in nothing:
        given = VideoSampling.from_dict({"video_sampling": {"video_size": size}}, 96)
        assert given == replace(usual, longest_edge=96)
    for size in (384, {"longest_edge": 384}):
        sampling = {"fps": 2, "max_frames": 8, "video_size": size}
        given = VideoSampling.from_dict({"video_sampling": sampling}, 96)
        assert given == VideoSampling(2, 8, 384)
    first = VideoSampling(float("inf"), 50, 96, with_times=False)
    assert VideoSampling.from_dict({"video_sampling": None}, 96) == first


@pytest.mark.parametrize("size", [-1, 96 * 64 + 1, "x", [5], True, 0.5, {"longest_edge": 10**400}])
def test_a_size_of_frames_is_some_tiles(size: Any) -> None:
    with pytest.raises(VideoError, match=r"^video_size is .*, not up to 64 tiles$"):
        VideoSampling.from_dict({"video_sampling": {"video_size": size}}, 96)


def test_the_first_family_takes_fifty_frames_without_words() -> None:
    sampling = VideoSampling.from_dict({}, 64)
    assert len(sample(3000, 30, sampling)) == 50
    assert sample(20, 30, sampling) == list(range(20))
    assert words(Clip((None,) * 3, (0.0,) * 3, 1.0), sampling.with_times) == [""] * 4


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"fps": 0}, "fps is 0, not a positive number"),
        ({"fps": "fast"}, "fps is 'fast'"),
        ({"max_frames": 0}, "max_frames is 0"),
        *[({"max_frames": 1.5}, "max_frames is 1.5"), ({"max_frames": True}, "max_frames is True")],
        *[
            ({"start": -1}, "start is -1"),
            ({"end": -1}, "end is -1"),
            ({"end": True}, "end is True"),
        ],
        *[({"start": "1"}, "start is '1'"), ({"fps": float("nan")}, "fps is nan, not a positive")],
        *[({"end": 0}, "end 0 is not after start 0.0"), ({"start": 3, "end": 2}, "end 2 is not")],
        ({"start": 3, "end": 3}, "end 3 is not after start 3"),
    ],
)
def test_odd_sampling(values: dict[str, Any], error: str) -> None:
    with pytest.raises(VideoError, match=error):
        VideoSampling().changed(values)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        *[
            (0, "zero"),
            (1, "one"),
            (10, "ten"),
            (13, "thirteen"),
            (19, "nineteen"),
            (20, "twenty"),
            (21, "twenty-one"),
        ],
        *[
            (64, "sixty-four"),
            (90, "ninety"),
            (99, "ninety-nine"),
            (100, "one hundred"),
            (101, "one hundred and one"),
        ],
        *[(342, "three hundred and forty-two"), (800, "eight hundred"), (1000, "one thousand")],
        *[
            (1001, "one thousand and one"),
            (1100, "one thousand, one hundred"),
            (2000, "two thousand"),
        ],
        *[(1234, "one thousand, two hundred and thirty-four"), (10_000, "ten thousand")],
        *[
            (100_000, "one hundred thousand"),
            (100_342, "one hundred thousand, three hundred and forty-two"),
        ],
        (123_456, "one hundred and twenty-three thousand, four hundred and fifty-six"),
        (999_999, "nine hundred and ninety-nine thousand, nine hundred and ninety-nine"),
    ],
)
def test_numbers_in_words(number: int, said: str) -> None:
    """What num2words, with which the reference counts frames, says."""
    assert in_words(number) == said


def test_words_of_all_numbers_to_2000() -> None:
    digest = "020523f21d20683fd1a5f5850323e3e608ca3b6beed47ea7ce5eeff9d9341066"  # of num2words' own
    text = "\n".join(map(in_words, range(2001)))
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_words_around_frames(loaded: Loaded) -> None:
    clip = decode(encode_video(125, 1), VideoSampling(max_frames=3))
    assert words(clip, True) == [
        "You are provided the following series of three frames from a 0:02:05 [H:MM:SS] "
        "video.\n\nFrame from 00:01:",
        "\nFrame from 01:02:",
        "\nFrame from 02:04:",
        "\n\n",
    ]
    content = [
        {"type": "video", "frames": clip.frames, "fps": 1},
        {"type": "text", "text": "What?"},
    ]
    inputs = loaded[1]([{"role": "user", "content": content}])
    text = "".join(
        loaded[1].tokenizer.decode([id], skip_special_tokens=False)
        for id in inputs.input_ids.tolist()
    )
    text = text.replace("<image>" * 16, "[tile]")
    frame = "<fake_token_around_image><global-img>[tile]<fake_token_around_image>"
    assert text == (
        "<|im_start|>User: You are provided the following series of three frames from a 0:00:03 "
        "[H:MM:SS] video.\n"
        f"\nFrame from 00:00:{frame}\nFrame from 00:01:{frame}\nFrame from "
        f"00:02:{frame}\n\nWhat?<end_of_utterance>\n"
        "Assistant:"
    )


# ---- files


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "mpegts", "flv"])
def test_containers(container: str) -> None:
    codec = "flv1" if container == "flv" else "mpeg2video" if container == "mpegts" else "mpeg4"
    rate = 25 if container == "mpegts" else 10
    data = encode_video(31, rate, container, codec)
    wanted = sample(31, rate, VideoSampling(fps=3))
    assert grays(data, VideoSampling(fps=3)) == pytest.approx(wanted, abs=1)


def test_gif_and_webm(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 24), (number * 8,) * 3) for number in range(30)]
    frames[0].save(
        tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, loop=0
    )
    assert grays((tmp_path / "a.gif").read_bytes()) == [0, 14, 29]
    if "libvpx-vp9" in av.codecs_available:
        assert grays(encode_video(31, 10, "webm", "libvpx-vp9")) == pytest.approx(
            [0, 15, 30], abs=1
        )


def test_frames_that_are_not_evenly_spaced() -> None:
    data = encode_video(30, 30, "matroska", times=[number * number * 4 for number in range(30)])
    taken = grays(data, VideoSampling(fps=100, max_frames=5))
    assert taken == pytest.approx([0, 14, 20, 25, 29], abs=1)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turned_videos_stand_upright(turn: int) -> None:
    data = bytearray(encode_video(3, 10))
    # The display matrix in the track header: 16.16 fixed-point numbers.
    at = data.index(b"\x00\x01\x00\x00" + b"\x00" * 12 + b"\x00\x01\x00\x00", data.index(b"tkhd"))
    one, minus = (65536).to_bytes(4, "big"), (-65536).to_bytes(4, "big", signed=True)
    zero = b"\x00" * 4
    a, b, c, d = {
        90: (zero, one, minus, zero),
        180: (minus, zero, zero, minus),
        270: (zero, minus, one, zero),
    }[turn]
    data[at : at + 20] = a + b + zero + c + d
    frame = np.asarray(decode(bytes(data), VideoSampling()).frames[0])
    assert frame.shape[:2] == ((64, 48) if turn != 180 else (48, 64))
    # The bar that was on the left.
    white = {90: frame[:12], 180: frame[:, -12:], 270: frame[-12:]}[turn]
    assert white.mean() > 240
    assert frame.mean() < 100


def test_what_a_cut_off_file_still_gives_is_used() -> None:
    data = encode_video(100, 10, "matroska", gop=5)
    clip = decode(data[: len(data) // 2], VideoSampling())
    assert 2 <= len(clip.frames) < 10
    damaged = bytearray(encode_video(100, 10, "mpegts", "mpeg2video", gop=5))
    damaged[len(damaged) // 3 : len(damaged) // 2] = bytes(len(damaged) // 2 - len(damaged) // 3)
    assert len(decode(bytes(damaged), VideoSampling()).frames) >= 2


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "cannot be decoded"),
        (b"nonsense" * 1000, "cannot be decoded"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be decoded"),
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
            "cannot be decoded",
        ),
        (encode_video(9)[:300], "cannot be decoded|no frame"),
    ],
)
def test_no_video_is_one_line(data: bytes, error: str) -> None:
    with pytest.raises(VideoError, match=error) as caught:
        decode(data, VideoSampling())
    assert "\n" not in str(caught.value)


def test_sound_alone_and_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VideoError, match="sound but no video"):
        decode(sound(), VideoSampling())
    with monkeypatch.context() as patch:
        patch.setattr("smolvlm_mlx.inputs.video_file.MAX_PIXELS", 100)
        with pytest.raises(VideoError, match="frames of more than 100 pixels"):
            decode(encode_video(2), VideoSampling())
    with pytest.raises(FetchError, match="no such file"):
        Video(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="a video cannot be of type int"):
        Video(5)
    data = encode_video(2)
    assert read_video(data, FetchLimits(max_bytes=len(data))) == data
    with pytest.raises(VideoError, match=rf"^a video of {len(data)} bytes; the limit is \d+$"):
        read_video(data, FetchLimits(max_bytes=len(data) - 1))
    assert FetchLimits(256 * 2**20, timeout=120.0) == LIMITS


def repeated(data: bytes, times: int) -> bytes:
    """A video whose packets come again and again."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", format="mp4") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [(bytes(packet), packet) for packet in source.demux(video=0) if packet.size]
        length, step = len(packets), packets[1][1].dts - packets[0][1].dts  # type: ignore[operator]
        for number in range(length * times):
            content, original = packets[number % length]
            packet = av.Packet(content)
            packet.stream = stream
            packet.time_base = original.time_base
            packet.is_keyframe = original.is_keyframe
            packet.pts = packet.dts = number * step
            output.mux(packet)
    return file.getvalue()


def test_a_hundred_thousand_frames(tmp_path: Path) -> None:
    """Hardly more than those that are used are decoded, and they are what the memory is for."""
    (tmp_path / "long.mp4").write_bytes(repeated(encode_video(250, 25, size=(32, 32), gop=25), 400))
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from smolvlm_mlx.inputs import video\n"
        "from smolvlm_mlx.inputs.video import VideoSampling\n"
        "upright, used = video.upright, []\n"
        "video.upright = lambda frame: used.append(frame.pts) or upright(frame)\n"
        "clip = video.decode(open(sys.argv[1], 'rb').read(), VideoSampling())\n"
        "print(len(clip.frames), len(used), round(clip.duration))\n"
        "status = Path('/proc/self/status')\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status.read_text())[1] if status.exists() else "
        "0)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "long.mp4")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    frames, used, duration, resident = map(int, printed.split())
    assert (frames, used, duration) == (64, 64, 4000)
    assert resident * 1024 < 300e6


def test_the_page_takes_the_endings_that_the_command_line_takes() -> None:
    script = (files("smolvlm_mlx") / "server/page/pictures.js").read_text(encoding="utf-8")
    (listed,) = re.findall(r"const VIDEO_ENDINGS = (\[.*?\]);", script, re.DOTALL)
    assert tuple(json.loads(listed.replace(",\n]", "]"))) == VIDEO_SUFFIXES


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_a_file_is_a_video_by_its_ending(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix.upper()}").write_bytes(encode_video(3, 10))
    assert isinstance(attach(tmp_path / f"a{suffix.upper()}"), Video)


def test_a_video_is_known_by_the_path_of_its_url() -> None:
    assert is_named_video("https://a.example/clip.MP4?size=1.png")
    assert is_named_video("HTTP://a.example/clip.mp4#t=1")
    assert not is_named_video("https://a.example/cat.png?from=clip.mp4")
    assert is_named_video("clip?.mp4")
    assert not is_named_video("http://[/cat.png")  # no URL, as the error says that fetching it is


# ---- in a conversation


def test_a_conversation_with_a_video(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(encode_video(40, 10))
    video = attach(tmp_path / "clip.mp4")
    assert isinstance(video, Video)
    assert (video.name, video.size) == ("clip.mp4", (64, 48))
    chat = Chat(*loaded, Options(max_tokens=4))
    first = chat.ask("What happens?", [video, Attachment(Image.new("RGB", (64, 64), "red"))])
    "".join(first)
    assert first.statistics.tiles == 4 + 17
    second = chat.ask("And then?")
    "".join(second)
    assert second.statistics.reused_tokens >= first.statistics.prompt_tokens
    chat.save(tmp_path / "talk.json")
    other = Chat(*loaded, Options(max_tokens=4))
    other.open(tmp_path / "talk.json")
    assert [held.digest for held in media_of(other.messages)] == [
        held.digest for held in media_of(chat.messages)
    ]
    assert other.tokens() == chat.tokens()


def test_frames_are_used_while_the_next_are_decoded() -> None:
    used, frames = Event(), []

    def convert(frame: Image.Image) -> Image.Image:
        frames.append(frame)
        if len(frames) == 8:
            assert used.wait(60), "all frames are decoded before one is used"
        return frame

    for _ in (work := Work(decode_in_steps(VideoFile(encode_video(80)), VideoSampling(), convert))):
        used.set()
    assert list(work.result.frames) == frames
    assert len(frames) == 8


def test_a_decoder_that_is_left_early_ends_its_threads() -> None:
    before = {*threading.enumerate()}
    frames = decode_in_steps(VideoFile(encode_video(640)), VideoSampling(), lambda frame: frame)
    next(frames)
    assert not {*threading.enumerate()} <= before
    frames.close()
    assert {*threading.enumerate()} <= before


def test_frames_are_encoded_while_the_next_are_decoded(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    part = {"type": "video", "video": encode_video(60), "fps": 1}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    want = stream_generate(model, processor, processor(messages), Options(max_tokens=8))
    assert "".join(want)
    encode, encoded = SmolVLM.encode_images, list[int]()

    def counted(self: SmolVLM, pixel_values: mx.array) -> mx.array:
        encoded.append(len(pixel_values))
        return encode(self, pixel_values)

    monkeypatch.setattr(SmolVLM, "encode_images", counted)
    monkeypatch.setattr(
        image_cache,
        "CHUNK",
        dict.fromkeys(image_cache.CHUNK, 4 * model.config.vision_config.patches_per_side**2),
    )
    stream = Engine(model, processor).stream(messages, Options(max_tokens=8))
    assert encoded == []
    events = list(stream)
    assert encoded == [4, 2]  # of six; the last two wait for what else there is
    seen = [event for event in events if isinstance(event, Reading) and event.what != "tokens"]
    assert seen == [Reading(0, 6, "frames"), Reading(0, 2, "tiles"), Reading(2, 2, "tiles")]
    assert stream.token_ids == want.token_ids
    assert stream.statistics.vision_seconds > 0


def test_parts(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(encode_video(40, 10))

    def tiles(**part: Any) -> int:
        return len(loaded[1]([{"role": "user", "content": [{"type": "video", **part}]}]).tiles)

    assert tiles(path=str(tmp_path / "clip.mp4")) == 4
    assert tiles(path=str(tmp_path / "clip.mp4"), fps=2.0) == 8
    assert tiles(video=(tmp_path / "clip.mp4").read_bytes(), start=1, end=2) == 1
    assert tiles(frames=[Image.new("RGB", (9, 9))] * 3) == 3
    with pytest.raises(
        PromptError, match="a video part needs one of video, frames, path, url, base64; it has none"
    ):
        tiles()
    with pytest.raises(VideoError, match="a video of no frames"):
        tiles(frames=[])
    with pytest.raises(VideoError, match=r"clip\.mp4.*the video ends after 4 s, before start 4"):
        tiles(path=str(tmp_path / "clip.mp4"), start=4)


def test_on_the_command_line(tiny: Path, tmp_path: Path) -> None:
    from smolvlm_mlx.cli import main

    from typer.testing import CliRunner

    (tmp_path / "clip.mp4").write_bytes(encode_video(40, 10))
    clip = str(tmp_path / "clip.mp4")
    arguments = ["generate", "What?", "-m", str(tiny), "--video", clip, *"--json -n 2".split()]
    result = CliRunner().invoke(main.app, [*arguments, "--fps", "2", "--end", "2"])
    assert json.loads(result.output)["tiles"] == 4
    with pytest.raises(VideoError, match=r"end 1\.0 is not after start 2\.0"):
        CliRunner().invoke(
            main.app, [*arguments, "--start", "2", "--end", "1"], catch_exceptions=False
        )


@pytest.mark.parametrize("question", ["What?", "What? " * 9000])
def test_progress_on_a_terminal_leaves_nothing(tiny: Path, tmp_path: Path, question: str) -> None:
    (tmp_path / "clip.mp4").write_bytes(encode_video(640, 10))
    options = ["-m", str(tiny), "-n", "2", "-v", str(tmp_path / "clip.mp4")]
    command = [sys.executable, "-m", "smolvlm_mlx", "generate", *options]
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*command, question[:30_000]], stdout=subprocess.PIPE, stderr=theirs, check=False
    )
    os.close(theirs)
    told = os.read(ours, 2**16).decode()
    os.close(ours)
    *shown, last = told.split("\r\x1b[K")
    # Frames that fill no chunk, as these do not on a GPU, are read when the prompt is known to have
    # room: equal ones once.
    at_once = image_cache.CHUNK[device.name()] <= 64 * 64
    first = "reading: 0 of 64 frames" if at_once else r"reading: 0 of \d+ tiles"
    assert any(re.fullmatch(first, line) for line in shown) == (at_once or question == "What?")
    assert (
        (done.returncode, last.strip()) == (0, "")
        if question == "What?"
        else "leaves no room" in last
    )
