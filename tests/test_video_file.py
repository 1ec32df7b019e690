"""Every frame is the one that a player shows at its time, in every container and codec, however its
key frames lie."""

import io
import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

from smolvlm_mlx.errors import VideoError
from smolvlm_mlx.inputs.video import VideoSampling, decode
from smolvlm_mlx.inputs.video_file import TimesError, VideoFile, opened
from tests.support.videos import (
    CODECS,
    GOPS,
    called_keys,
    decode_sequentially,
    encode_numbers,
    read_number,
    remux,
    with_empty,
)

import av
import numpy as np
import pytest

COUNT = 70
DENSE = VideoSampling(fps=10, max_frames=64)
SPARSE = VideoSampling(fps=1, max_frames=64)


def combinations(container: str) -> Iterator[tuple[str, str]]:
    """The codecs of a container that can be encoded here, and structures of their key frames."""
    for codec in CODECS[container].split():
        if codec in av.codecs_available:
            yield from ((codec, gop) for gop in GOPS[: 5 if codec == "libx264" else 4])


def check(data: bytes, sampling: VideoSampling, rate: float = 25) -> None:
    """Sampled frames are pixel by pixel those that a sequential decode has at their times."""
    frames, clip = decode_sequentially(data), decode(data, sampling)
    assert clip.duration == pytest.approx(len(frames) / rate, abs=0.5 / rate)
    assert len(clip.frames) == sampling.count(clip.duration)
    for frame, time in zip(clip.frames, clip.times, strict=True):
        assert np.array_equal(np.asarray(frame), frames[round(time * rate)]), (
            read_number(frame),
            time,
        )


def check_single(data: bytes, rng: Random, requests: int, rate: float = 25) -> None:
    """What is shown at a second is what a sequential decode has there."""
    frames = decode_sequentially(data)
    for _ in range(requests):
        start = rng.uniform(0, len(frames) / rate)
        part = VideoSampling(max_frames=1, start=start, end=start + rng.uniform(0.01, 3))
        clip = decode(data, part)
        assert np.array_equal(np.asarray(clip.frames[0]), frames[int(start * rate)]), start
        assert list(clip.times) == pytest.approx([int(start * rate) / rate], abs=0.5 / rate)


@pytest.mark.parametrize("container", CODECS)
def test_sampled_frames_are_those_of_a_sequential_decode(container: str) -> None:
    codec = next(codec for codec, _ in combinations(container))
    for gop in ("closed", "open"):
        data = encode_numbers(COUNT, container, codec, gop)
        check(data, DENSE)
        check(data, SPARSE)
        check_single(data, Random(container), 4)


@pytest.mark.slow
@pytest.mark.parametrize("container", CODECS)
def test_sampled_frames_in_all_codecs_and_structures(container: str) -> None:
    for codec, gop in combinations(container):
        data = encode_numbers(COUNT, container, codec, gop)
        check(data, DENSE)
        check(data, SPARSE)


@pytest.mark.slow
@pytest.mark.parametrize("container", CODECS)
def test_four_hundred_single_frames(container: str) -> None:
    """400 over all containers: none is another, none is missing."""
    rng, tried = Random(container), list(combinations(container))
    for number in range(400 // len(CODECS) + 1):
        codec, gop = tried[number % len(tried)]
        check_single(encode_numbers(COUNT, container, codec, gop), rng, 1)


# ---- times

IRREGULAR = [0, 40, 80, 1000, 1040, 3000, *range(3010, 3200, 10), 6000, *range(7000, 8600, 40)]


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "mpegts", "flv"])
def test_the_frame_of_a_variable_rate_is_the_one_on_the_screen(container: str) -> None:
    data = encode_numbers(len(IRREGULAR), container, "libx264", times=IRREGULAR)
    clip = decode(data, VideoSampling(fps=2))
    seconds = [time / 1000 for time in IRREGULAR]
    assert clip.duration == pytest.approx(8.6, abs=0.05)
    assert [read_number(frame) for frame in clip.frames] == [
        seconds.index(pytest.approx(time, abs=0.002)) for time in clip.times
    ]
    gaps = [after - before for before, after in pairwise(clip.times)]
    assert max(gaps) < 3  # as long as a frame stays
    rng = Random(container)
    for _ in range(10):
        start = rng.uniform(0, 8.6)
        clip = decode(data, VideoSampling(max_frames=1, start=start, end=start + 1))
        assert seconds[read_number(clip.frames[0])] == max(at for at in seconds if at <= start)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[VideoFile]:
    """Videos whose times were taken from all frames, decoded, which is not quick."""
    files: list[VideoFile] = []
    watch = VideoFile.watch

    def counted(file: VideoFile) -> None:
        files.append(file)
        watch(file)

    monkeypatch.setattr(VideoFile, "watch", counted)
    return files


@pytest.mark.parametrize("container", CODECS)
def test_times_are_those_of_the_packets_where_they_are_true(
    container: str, watched: list[VideoFile]
) -> None:
    codecs = dict.fromkeys(codec for codec, _ in combinations(container) if codec != "mpeg1video")
    for codec in codecs:
        file = VideoFile(encode_numbers(24, container, codec, rate=1))
        assert list(file.timeline.times) == list(range(24))
        assert file.timeline.duration == 24
        untrue = container in ("mpeg", "vob", "h264", "hevc") and codec in ("libx264", "libx265")
        assert (file in watched) is untrue


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video"])
def test_a_recording_is_read_quickly_wherever_it_begins(
    container: str, codec: str, watched: list[VideoFile]
) -> None:
    gop = GOPS[-1]
    data = remux(encode_numbers(COUNT, container, codec, gop), container, lambda n, _: n >= 5)
    assert len(VideoFile(data).timeline.times) == len(decode_sequentially(data))
    assert watched == []


def test_a_recording_without_a_key_frame_is_watched(watched: list[VideoFile]) -> None:
    def cut(number: int, packet: Any) -> bool:
        if number == 8:
            memoryview(packet).cast("B")[:] = bytes(packet.size)
        return number >= 5

    data = remux(encode_numbers(COUNT, "matroska", "mpeg4", "one key frame"), "matroska", cut)
    file = VideoFile(data)
    assert len(file.timeline.times) == len(decode_sequentially(data))
    assert watched == [file]


def test_one_of_which_nothing_can_be_decoded_is_one_line() -> None:
    with pytest.raises(VideoError, match=r"^no frame of the video can be decoded, it may be"):
        VideoFile(with_empty(encode_numbers(5, "mp4", "mjpeg"), "matroska"))


def test_a_recording_of_a_screen_is_sampled_by_the_clock() -> None:
    """A frame a second for 20 seconds, then 60 a second for 2."""
    times = [*range(0, 20_000, 1000), *range(20_000, 22_000, 16)]
    data = encode_numbers(len(times), "mov", "libx264", times=times)
    clip = decode(data, VideoSampling())
    assert clip.duration == pytest.approx(22, abs=0.03)
    assert [int(time) for time in clip.times] == list(range(22))
    part = decode(data, VideoSampling(start=5, end=15))
    assert [read_number(frame) for frame in part.frames] == list(range(5, 15))
    assert part.times == tuple(range(5, 15))


@pytest.mark.parametrize(("container", "codec"), [("h264", "libx264"), ("hevc", "libx265")])
def test_a_stream_without_times_goes_on_at_its_own_rate(container: str, codec: str) -> None:
    data = encode_numbers(COUNT, container, codec, rate=10)
    check(data, SPARSE, 10)
    check_single(data, Random(0), 3, 10)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_times_begin_anew_after_2_to_the_33(codec: str) -> None:
    data = encode_numbers(COUNT, "mpegts", codec, output_ts_offset="95442.0")
    check(data, DENSE)
    check_single(data, Random(0), 3)


def test_recordings_one_after_another_are_one_video() -> None:
    one, other = (encode_numbers(COUNT, "mpegts", "libx264", gop) for gop in ("closed", "open"))
    check(one + other, DENSE)


@pytest.mark.parametrize("frames", [17, 24])
def test_an_edit_list_is_obeyed(frames: int) -> None:
    data = bytearray(encode_numbers(COUNT, "mp4", "libx264"))
    at = data.index(b"elst") + 12
    (begin,) = struct.unpack(">i", data[at + 4 : at + 8])
    data[at : at + 8] = struct.pack(">ii", 1000, begin + frames * 512)  # 25 frames from there
    clip = decode(bytes(data), DENSE)
    assert clip.duration == 1
    want = [frames + round(time * 25) for time in clip.times]
    assert [read_number(frame) for frame in clip.frames] == want


# ---- what containers say that is not so


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_what_is_called_a_key_frame_need_not_be_one(container: str, codec: str) -> None:
    data = called_keys(encode_numbers(COUNT, "mp4", codec), container)
    check(data, SPARSE)
    check_single(data, Random(0), 3)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("gop", ["closed", "open"])
@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_a_recording_may_begin_between_key_frames(container: str, gop: str, codec: str) -> None:
    whole = encode_numbers(COUNT, container, codec, gop)
    check(remux(whole, container, lambda number, _: number >= 5), DENSE)


def test_packets_without_a_frame_do_not_count() -> None:
    """Every seventh packet holds nothing that can be decoded."""
    whole = encode_numbers(COUNT, "mp4", "mjpeg")
    data = with_empty(whole, "matroska", lambda number: number % 7 == 3)
    clip = decode(data, VideoSampling(fps=25))
    shown = [read_number(frame) for frame in clip.frames]
    assert shown == [number for number in range(COUNT) if number % 7 != 3]
    assert [round(time * 25) for time in clip.times] == shown
    assert clip.note == "10 packets could not be decoded"


@pytest.mark.parametrize(
    ("container", "options", "note"),
    [
        ("mp4", {"moov_size": "9000"}, r"its pictures end after \d\.\d of 4\.[01] seconds"),
        ("matroska", {}, r"its pictures end after \d\.\d of 4\.[01] seconds"),
        ("flv", {}, r"its pictures end after \d\.\d of 4\.[01] seconds"),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}, "its last bytes are missing"),
    ],
)
def test_half_of_a_download_is_said_and_its_last_whole_frame_is_there(
    container: str, options: dict[str, Any], note: str
) -> None:
    data = remux(encode_numbers(100, "mp4", "libx264"), container, **options)
    half = data[: len(data) * 7 // 10]
    clip = decode(half, VideoSampling(fps=25, max_frames=100))
    assert re.fullmatch(note, clip.note)
    assert len(clip.frames) == len(decode_sequentially(half))
    assert decode(data, VideoSampling()).note == ""


@pytest.mark.parametrize(
    ("seconds", "note"),
    [(3.0, ""), (3.1, "its pictures end after 2.0 of 3.1 seconds"), (0.5, ""), (0.0, "")],
)
def test_a_second_may_be_missing_of_what_a_file_says(seconds: float, note: str) -> None:
    data = bytearray(encode_numbers(50, "matroska", "mpeg4"))
    at = data.index(b"\x44\x89\x88") + 3  # Duration, in milliseconds
    data[at : at + 8] = struct.pack(">d", seconds * 1000)
    file = VideoFile(bytes(data))
    assert (file.timeline.duration, file.note) == (2, note)
    file.watch()
    assert (file.timeline.duration, file.note) == (2, note)


def test_frames_of_the_most_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_numbers(2, "mp4", "mpeg4")
    monkeypatch.setattr("smolvlm_mlx.inputs.video_file.MAX_PIXELS", 64 * 48)
    assert len(decode(data, VideoSampling()).frames) == 1
    monkeypatch.setattr("smolvlm_mlx.inputs.video_file.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match=r"^frames of more than 3071 pixels; make the video small"):
        VideoFile(data)


def test_what_cannot_be_decoded_is_said_in_the_words_of_ffmpeg() -> None:
    for wrong, said in (
        (b"\1" * 999, "Invalid data found when processing input"),
        (encode_numbers(9, "mp4", "mpeg4"), "odd"),
    ):
        with pytest.raises(VideoError) as caught, opened(wrong):
            raise ValueError("odd")
        start = "the video cannot be decoded, it may be damaged: "
        assert str(caught.value) == f"{start}'{said}'"


def test_frames_are_not_those_of_the_packets_where_one_holds_none() -> None:
    whole = encode_numbers(COUNT, "mp4", "mjpeg")
    file = VideoFile(with_empty(whole, "matroska", lambda number: number == 3))
    with pytest.raises(TimesError):
        list(file.frames([10]))
    file.watch()
    ((number, frame),) = file.frames([10])
    assert (number, read_number(frame.to_image())) == (10, 11)


def test_sound_may_be_longer() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        audio: Any = output.add_stream("aac", rate=8000)
        video: Any = output.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in range(32):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts = 8000, number * 1024
            output.mux(audio.encode(samples))
        pixels = np.zeros((48, 64, 3), np.uint8)
        for _ in range(10):
            output.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))
    whole = VideoFile(file.getvalue())
    assert (whole.timeline.duration, whole.note) == (1, "")


@pytest.mark.parametrize("container", CODECS)
def test_a_rate_is_constant_in_every_container(container: str) -> None:
    codec = next(codec for codec, _ in combinations(container))
    told = VideoFile(encode_numbers(COUNT, container, codec)).timeline
    assert told.is_constant
    assert (told.fps, told.duration) == pytest.approx((25, COUNT / 25))


@pytest.mark.parametrize(
    ("container", "times", "duration"),
    [
        ("mp4", [0, 40, 80, 1000], 1.04),
        ("matroska", [0, 1000, 1040], 1.08),
        ("flv", [0, 40, 80, 1000], 1.92),  # which does not say it: as long as the one before
    ],
)
def test_the_last_frame_is_shown_as_long_as_its_packet_says(
    container: str, times: list[int], duration: float
) -> None:
    codec = "flv" if container == "flv" else "mpeg4"
    file = VideoFile(encode_numbers(len(times), container, codec, GOPS[-1], times=times))
    assert file.timeline.duration == pytest.approx(duration)
    file.watch()
    assert file.timeline.duration == pytest.approx(duration)


@pytest.mark.parametrize(("late", "is_constant"), [(18, True), (25, False)])
def test_a_rate_is_not_constant_if_a_frame_is_late(late: int, is_constant: bool) -> None:
    times = [number * 40 + late * (number == 3) for number in range(30)]
    told = VideoFile(encode_numbers(30, "matroska", "mpeg4", GOPS[-1], times=times)).timeline
    assert told.is_constant is is_constant
