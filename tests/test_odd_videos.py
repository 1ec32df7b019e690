"""Odd and hostile video files: what is in them, or one clear line; and nothing else is ever
opened."""

import io
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import VideoError
from smolvlm_mlx.inputs.video import VideoSampling, decode
from tests.support.videos import encode_video, grays, remux, sound

import av
import numpy as np
import pytest
from PIL import Image

H264 = "libx264" if "libx264" in av.codecs_available else "mpeg4"
EVEN = VideoSampling(fps=1000, max_frames=5)  # frames 0, 7, 14, 21, 29 of 30


def pictures(form: str, count: int = 30, **more: Any) -> bytes:
    frames = [Image.new("RGB", (32, 24), (number * 8,) * 3) for number in range(count)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=100, **more)
    return file.getvalue()


def with_sound() -> bytes:
    """A video whose sound comes first in the file."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        audio: Any = output.add_stream("aac", rate=8000)
        video: Any = output.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        output.mux(audio.encode(frame))
        for number in range(30):
            pixels = np.full((48, 64, 3), number * 8, np.uint8)
            output.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))
    return file.getvalue()


def with_colors(transfer: int) -> bytes:
    """Ten bits a channel, with an HDR transfer curve."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, 9
        for number in range(30):
            pixels = np.full((48, 64, 3), number * 8, np.uint8)
            output.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p10le")
                )
            )
        output.mux(stream.encode(None))
    return file.getvalue()


READABLE: dict[str, Any] = {
    "gray": lambda: encode_video(30, 10, "matroska", "ffv1", pix_fmt="gray"),
    "4:4:4": lambda: encode_video(30, 10, "matroska", "ffv1", pix_fmt="yuv444p"),
    "4:2:2, ten bits": lambda: encode_video(30, 10, "matroska", "ffv1", pix_fmt="yuv422p10le"),
    "with alpha": lambda: encode_video(30, 10, "matroska", "ffv1", pix_fmt="yuva420p"),
    "RGB": lambda: encode_video(30, 10, "matroska", "ffv1", pix_fmt="bgr0"),
    "sixteen bits": lambda: encode_video(30, 10, "matroska", "ffv1", pix_fmt="gray16le"),
    "full range": lambda: encode_video(30, 10, "avi", "mjpeg", pix_fmt="yuvj420p"),
    "PQ": lambda: with_colors(16),
    "HLG": lambda: with_colors(18),
    "odd sides": lambda: encode_video(30, 10, "matroska", "ffv1", size=(37, 23), pix_fmt="yuv444p"),
    "a strip": lambda: encode_video(30, 10, "matroska", "ffv1", size=(1000, 4), pix_fmt="yuv444p"),
    "two pixels": lambda: encode_video(30, 10, "matroska", "ffv1", size=(2, 2), pix_fmt="yuv444p"),
    "key frames only": lambda: encode_video(30, 10, gop=1),
    "one key frame": lambda: encode_video(30, 10, gop=600),
    "frames out of order": lambda: encode_video(30, 10, "mp4", H264),
    "1000 a second": lambda: encode_video(30, 1000),
    "29.97 a second": lambda: encode_video(30, Fraction(30000, 1001)),
    "one in ten seconds": lambda: encode_video(30, Fraction(1, 10)),
    "late start": lambda: encode_video(
        30, 10, "matroska", times=[5_000_000 + n * 100 for n in range(30)]
    ),
    "Matroska from a pipe": lambda: remux(encode_video(30, 10), "matroska", seekable=False),
    "MPEG-TS": lambda: encode_video(30, 25, "mpegts", "mpeg2video"),
    "FLV from a pipe": lambda: remux(encode_video(30, 10, "flv", "flv1"), "flv", seekable=False),
    "MP4 in pieces": lambda: remux(
        encode_video(30, 10), "mp4", movflags="frag_keyframe+empty_moov"
    ),
    "sound first": with_sound,
    "GIF": lambda: pictures("GIF"),
    "APNG": lambda: pictures("PNG"),
    "rubbish after it": lambda: encode_video(30, 10, "avi") + os.urandom(5000),
}


@pytest.mark.parametrize("name", READABLE)
def test_readable(name: str) -> None:
    data = READABLE[name]()
    assert grays(data, EVEN) == pytest.approx([0, 7, 14, 21, 29], abs=2)


PARTS: dict[str, Any] = {  # files that hold less than they say
    "cut in half": lambda: (d := encode_video(100, 10, "matroska", gop=5))[: len(d) // 2],
    "cut in pieces": lambda: (d := encode_video(100, 25, "mpegts", "mpeg2video", gop=5))[
        : len(d) // 3
    ],
    "a hole": lambda: (
        (d := encode_video(100, 25, "mpegts", "mpeg2video", gop=5))[:5000] + bytes(9000) + d[14000:]
    ),
    "no beginning": lambda: (d := encode_video(100, 25, "mpegts", "mpeg2video", gop=5))[
        len(d) // 2 :
    ],
    "no key frame first": lambda: remux(
        encode_video(60, 10, "matroska", gop=10), "matroska", lambda number, _: number >= 3
    ),
    "one frame": lambda: encode_video(1),
    "a still GIF": lambda: pictures("GIF", 1),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_there_is_used(name: str) -> None:
    clip = decode(PARTS[name](), VideoSampling())
    assert 1 <= len(clip.frames) <= 11
    assert all(frame.mode == "RGB" for frame in clip.frames)


UNREADABLE: dict[str, tuple[Any, str]] = {
    "nothing": (lambda: b"", "cannot be decoded"),
    "rubbish": (lambda: random.Random(0).randbytes(100_000), "cannot be decoded"),
    "text": (lambda: b"Not a video at all.\n" * 1000, "cannot be decoded"),
    "sound": (sound, "sound but no video"),
    "a list of files": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be decoded"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "cannot be decoded"),
    "DASH": (
        lambda: b'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>',
        "cannot be decoded",
    ),
    "a header alone": (lambda: encode_video(9)[:300], "cannot be decoded|no frame"),
    "no frames": (lambda: encode_video(0, container="avi"), "no frames|cannot be decoded|no video"),
    "no index": (
        lambda: (d := encode_video(30))[: d.rindex(b"moov") - 4],
        "cannot be decoded|no frame",
    ),
    "SDP": (
        lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "cannot be decoded",
    ),
    "too large": (lambda: encode_video(1, size=(8, 8)), "frames of more than 50 pixels"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, error = UNREADABLE[name]
    data = make()
    if name == "too large":
        monkeypatch.setattr("smolvlm_mlx.inputs.video_file.MAX_PIXELS", 50)
    with pytest.raises(VideoError, match=error) as caught:
        decode(data, VideoSampling())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_no_socket_and_no_other_file_is_opened(tmp_path: Path) -> None:
    """Under an audit hook for Python, and a listener for what ffmpeg would do by itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}/a.ts"
        lists = {
            "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n",
            "a.ffconcat": f"ffconcat version 1.0\nfile {address}\n",
            "a.mpd": f"<MPD><BaseURL>{address}</BaseURL></MPD>",
            "a.sdp": f"v=0\nc=IN IP4 127.0.0.1\nm=video {port} TCP/RTP/AVP 96\n",
            "a.mov": f"url {address}",
        }
        for name, text in lists.items():
            (tmp_path / name).write_text(text)
        script = (
            "import sys\n"
            "from smolvlm_mlx.errors import VideoError\n"
            "from smolvlm_mlx.inputs.video import VideoSampling\n"
            "from smolvlm_mlx.inputs.video import decode\n"
            "seen = []\n"
            "sys.addaudithook(lambda event, args: seen.append(event) if event.startswith('socket') "
            "else None)\n"
            "for path in sys.argv[1:]:\n"
            "    try:\n"
            "        decode(open(path, 'rb').read(), VideoSampling())\n"
            "        sys.exit(path + ' was read')\n"
            "    except VideoError:\n"
            "        pass\n"
            "sys.exit(len(seen))\n"
        )
        subprocess.run(
            [sys.executable, "-c", script, *(str(tmp_path / name) for name in lists)], check=True
        )
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_flipped_bytes() -> None:
    """Damage at random: frames or one line, whatever the decoder meets."""
    rng = random.Random(0)
    whole = [encode_video(20, 10, name, gop=5) for name in ("mp4", "matroska", "avi")]
    outcomes: Counter[Any] = Counter()
    for number in range(150):
        data = bytearray(whole[number % 3])
        for _ in range(rng.choice((1, 5, 40))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            frames = len(decode(bytes(data), VideoSampling(fps=3)).frames)
        except VideoError as error:
            outcomes[str(error).count("\n")] += 1
        else:
            outcomes["frames"] += frames > 0
    # No error of two lines, and no clip without frames.
    assert outcomes["frames"] + outcomes[0] == 150
    assert min(outcomes["frames"], outcomes[0]) > 3
