"""No more of a video is decoded than the frames that are asked for need."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smolvlm_mlx.inputs.video_file import VideoFile, opened
from tests.support.videos import GOPS, called_keys, encode_numbers, read_number

import pytest
from av.codec.context import ThreadType


def test_several_threads_decode() -> None:
    with opened(encode_numbers(2, "mp4", "mpeg4")) as (_, stream):
        assert stream.thread_type == ThreadType.AUTO


class Counted:
    """A video and its stream, whose decoder has one thread; the packets that it gets are noted."""

    def __init__(self, own: Any, packets: list[Any]):
        self.own, self.packets, self.codec_context = own, packets, self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def demux(self, stream: "Counted") -> Any:
        return self.own.demux(stream.own)

    def seek(self, at: int, stream: "Counted", **options: Any) -> None:
        self.own.seek(at, stream=stream.own, **options)

    def decode(self, packet: Any) -> Any:
        self.packets += [packet] if packet is not None else []
        return self.own.codec_context.decode(packet)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The packets that are decoded."""
    packets: list[Any] = []

    @contextmanager
    def counted(data: bytes) -> Iterator[tuple[Counted, Counted]]:
        with opened(data) as (file, stream):
            stream.thread_type = "NONE"
            yield Counted(file, packets), Counted(stream, packets)

    monkeypatch.setattr("smolvlm_mlx.inputs.video_file.opened", counted)
    return packets


ASKED = ([0], [5], [12], [13], [200], [249], [100, 104, 200])
NO_B_FRAMES = GOPS[-1]
# With a key frame every 12: from the one before it, if it is not near. Packets to be read that are
# called key frames, and are none, are tried, further and further back.
DECODED: list[tuple[str, bool, list[int]]] = [
    (NO_B_FRAMES, False, [1, 6, 13, 2, 9, 10, 18]),
    ("closed", False, [2, 7, 14, 3, 10, 10, 20]),
    ("one key frame", False, [2, 7, 14, 15, 202, 250, 202]),
    ("all key frames", False, [1, 6, 13, 1, 1, 1, 6]),
    (NO_B_FRAMES, True, [1, 6, 13, 26, 78, 46, 152]),
    ("one key frame", True, [2, 7, 14, 571, 1496, 772, 1375]),
]


@pytest.mark.parametrize(("gop", "lies", "want"), DECODED)
def test_no_more_is_decoded_than_is_needed(
    gop: str, lies: bool, want: list[int], decoded: list[Any]
) -> None:
    for container in ("mp4",) if lies else ("mp4", "matroska"):
        data = encode_numbers(250, container, "mpeg4", gop)
        file, counts = VideoFile(called_keys(data) if lies else data), []
        for numbers in ASKED:
            decoded.clear()
            found = list(file.frames(numbers))
            assert [number for number, _ in found] == numbers
            assert [read_number(frame.to_image()) for _, frame in found] == numbers
            counts.append(len(decoded))
        assert counts == want
