"""What decodes the pictures, videos and PDFs of strangers: as the direct way, within a time and a
memory, and gone when it should be."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from smolvlm_mlx.errors import ImageError, SmolVLMError, VideoError
from smolvlm_mlx.inputs import children, sandbox
from smolvlm_mlx.inputs.animation import as_video
from smolvlm_mlx.inputs.children import SECONDS_SETTING, is_sound
from smolvlm_mlx.inputs.fetch import DEFAULT_LIMITS
from smolvlm_mlx.inputs.image import STRANGERS, Decoded, decode_here, decode_image
from smolvlm_mlx.inputs.media import Video
from smolvlm_mlx.inputs.pdf import count_pages, render_page
from smolvlm_mlx.inputs.scans import MAX_SCANS, USUAL_SCANS, check_scans, count_scans
from smolvlm_mlx.inputs.video import LIMITS as VIDEO_LIMITS
from smolvlm_mlx.inputs.video import VideoSampling, decode
from smolvlm_mlx.inputs.wire import END, ERROR, FRAME, PICTURE, Head
from tests.support import bombs
from tests.support.decoders import alive, decoders, descriptors
from tests.support.pdfs import nested_pdf, pictures_as_pdf
from tests.support.pictures import PICTURE as GREY
from tests.support.pictures import animated, draw, encoded, noise, png
from tests.support.places import ROOT
from tests.support.videos import encode_video

import numpy as np
import pytest
from PIL import Image

FOREIGN_VIDEO = replace(VIDEO_LIMITS, max_pixels=10**7)
SMALL = encoded(GREY, "PNG")


@cache
def pictures() -> dict[str, bytes]:
    cut = encoded(noise(300, 200), "JPEG")
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        **{kind: encoded(GREY, kind) for kind in kinds},
        **{mode: encoded(draw(mode, 61, 40), "PNG") for mode in ("RGBA", "LA", "L", "1", "P")},
        "turned": encoded(draw("RGB", 61, 40), "JPEG", exif=exif),
        "16 bits": png(2, 16, 0, b"\x12\x34\xff\xff", key=b"\xff\xff"),
        "frames": animated("GIF"),
        "cut": cut[: len(cut) // 2],
        "nothing": b"",
        "no picture": b"%PDF-1.7",
        "damaged": encoded(GREY, "PNG")[:50] + bytes(50),
        "too large": png(60_000, 8, 0, bytes(60_000)),
        "too many scans": bombs.jpeg_of_scans(MAX_SCANS + 1),
        "too many pixels": encoded(Image.new("1", (9000, 9000)), "PNG"),
    }


def outcome(decoded: Decoded | SmolVLMError) -> object:
    if isinstance(decoded, SmolVLMError):
        return type(decoded), str(decoded)
    return decoded.image.mode, decoded.image.tobytes(), decoded.size, decoded.note


@pytest.mark.parametrize("kind", pictures())
def test_a_picture_is_as_of_the_direct_way(kind: str) -> None:
    data, have = pictures()[kind], list[object]()
    for way in (decode_here, sandbox.decode_image):
        try:
            have.append(outcome(way(data, STRANGERS, "'a.png'", 4096)))
        except SmolVLMError as error:
            have.append(outcome(error))
    assert have[0] == have[1]


def test_a_large_jpeg_is_decoded_smaller() -> None:
    data = encoded(Image.new("RGB", (9000, 6000), "navy"), "JPEG")
    here = decode_here(data, DEFAULT_LIMITS, "it", 100)
    there = sandbox.decode_image(data, DEFAULT_LIMITS, "it", 100)
    assert outcome(here) == outcome(there)
    assert there.size == (9000, 6000) > there.image.size


@pytest.mark.parametrize("data", [encode_video(20), animated("WEBP")])
def test_a_video_is_as_of_the_direct_way(data: bytes) -> None:
    sampling = VideoSampling(max_frames=5)
    here = decode(as_video(data)[0], sampling)
    steps = sandbox.decode_video(data, sampling, lambda frame: frame)
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            there = end.value
            break
    assert [frame.tobytes() for frame in here.frames] == [f.tobytes() for f in there.frames]
    assert (here.times, here.duration, here.note) == (there.times, there.duration, there.note)
    assert [count for _, count in seen] == [len(here.frames)] * len(here.frames)
    foreign, own = Video(data, FOREIGN_VIDEO), Video(data)
    assert foreign.preview.tobytes() == own.preview.tobytes()
    assert (foreign.size, foreign.duration, foreign.note) == (own.size, own.duration, own.note)


@pytest.mark.parametrize("data", [b"", b"abc", encode_video(2)[:300]])
def test_what_is_no_video_is_told(data: bytes) -> None:
    with pytest.raises(VideoError) as here:
        Video(data or b"x" * 20)
    with pytest.raises(VideoError) as there:
        Video(data or b"x" * 20, FOREIGN_VIDEO)
    assert str(here.value) == str(there.value)


def test_a_page_is_as_of_the_direct_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2")
    monkeypatch.chdir(tmp_path)
    path = pictures_as_pdf(Path("three.pdf"))
    assert sandbox.count_pages(path) == count_pages(path) == 3
    assert sandbox.render_page(path, 2).tobytes() == render_page(path, 2).tobytes()
    for number in (0, 4):
        with pytest.raises(ImageError) as here:
            render_page(path.absolute(), number)
        with pytest.raises(ImageError) as there:
            sandbox.render_page(path, number)
        assert str(here.value) == str(there.value)


# ---- limits


def test_a_page_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pypdfium2")
    path = nested_pdf(tmp_path / "n.pdf", 40, pages=2)
    monkeypatch.setenv(SECONDS_SETTING, "0.3")
    words = r"n.pdf': page 1 takes more than 0.3 s; make it smaller or simpler, or set SMOLVLM_D"
    with pytest.raises(ImageError, match=words):
        sandbox.render_page(path, 1)
    monkeypatch.delenv(SECONDS_SETTING)
    assert sandbox.render_page(path, 2).size == (200, 200)


@pytest.mark.parametrize("given", ["", "x", "0", "-1", "nan", "inf"])
def test_the_setting_is_a_number_of_seconds(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECONDS_SETTING, given)
    with pytest.raises(SmolVLMError, match=f"^{SECONDS_SETTING} is '{given}', not a number of s"):
        sandbox.decode_image(SMALL, STRANGERS, "it", 4096)


def test_a_picture_that_takes_too_much_memory_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(7000, 8, 0, bytes(7000), height=7000)
    pixels = STRANGERS.max_pixels or 0
    monkeypatch.setattr(sandbox, "PICTURE_MEMORY", 2**24 - sandbox.PIXEL_MEMORY * pixels)
    with pytest.raises(ImageError, match="it does not fit into memory; make it smaller"):
        sandbox.decode_image(data, STRANGERS, "it", 4096)
    monkeypatch.undo()
    assert sandbox.decode_image(data, STRANGERS, "it", 4096).size == (7000, 7000)


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSEGV])
def test_a_decoder_that_is_killed_costs_one_page(way: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    path = nested_pdf(tmp_path / "n.pdf", pages=2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(sandbox.render_page, path, 1)
        while not first.done():
            for pid in decoders(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, way)
        words = rf"n.pdf': page 1 cannot be decoded: its decoder ended \({way.name}\); it is"
        with pytest.raises(ImageError, match=words):
            first.result()
    assert sandbox.render_page(path, 2).size == (200, 200)


def test_nothing_is_left_of_those_that_were_ended() -> None:
    def end_one() -> None:
        steps = sandbox.decode_video(encode_video(3), VideoSampling(), lambda frame: frame)
        next(steps)
        steps.close()

    end_one()
    before = descriptors(), len(decoders(os.getpid()))
    for _ in range(3):
        end_one()
    assert (descriptors(), len(decoders(os.getpid()))) == before


def test_who_waits_for_a_busy_one_for_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "WAIT_SECONDS", 0.1)
    video = encode_video(3)
    held = [
        sandbox.decode_video(video, VideoSampling(), lambda frame: frame)
        for _ in range(children.CHILDREN)
    ]
    try:
        for steps in held:
            next(steps)
        with pytest.raises(ImageError, match="all decoders are busy; try again later"):
            decode_image(encoded(GREY, "PNG"), STRANGERS)
        held.pop().close()
        assert decode_image(encoded(GREY, "PNG"), STRANGERS).size == GREY.size
    finally:
        for steps in held:
            steps.close()


def test_threads_share_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(200, 100), "PNG")
    want = outcome(decode_here(data, STRANGERS, "it", 4096))
    with ThreadPoolExecutor(8) as pool:
        have = pool.map(
            lambda _: outcome(sandbox.decode_image(data, STRANGERS, "it", 4096)), range(40)
        )
        assert all(each == want for each in have)
    assert len(decoders(os.getpid())) <= children.CHILDREN


@pytest.mark.parametrize(
    "head",
    [
        Head(PICTURE, 2, 2, size=11),
        Head(PICTURE, 2**31, 2**31, size=12),
        Head(FRAME, 1, 1, size=4),
        Head(END, size=0),
        Head(END, size=9),
        Head(END, size=8, seconds=float("nan")),
        Head(ERROR, own=(4, 0)),
        Head(ERROR, size=1),
        Head(b"?", size=1),
    ],
)
def test_a_reply_that_cannot_be_is_not_believed(head: Head) -> None:
    assert Head.unpack(head.pack()) == head or head.seconds != head.seconds
    assert not is_sound(head)


# ---- processes

WORK = """
import sys
from smolvlm_mlx.inputs import sandbox
from pathlib import Path
sandbox.count_pages(Path(sys.argv[1]))
print("begun", flush=True)
sandbox.render_page(Path(sys.argv[1]), 1)
"""


@pytest.fixture
def working(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """A process that waits for a page that takes for ever."""
    pytest.importorskip("pypdfium2")
    path = nested_pdf(tmp_path / "n.pdf")
    work = subprocess.Popen(
        [sys.executable, "-c", WORK, str(path)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert work.stdout is not None
    assert work.stdout.readline() == "begun\n"
    with work:
        yield work
        work.kill()


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_they_end_with_whoever_asks(way: signal.Signals, working: "subprocess.Popen[str]") -> None:
    (pid,) = decoders(working.pid)
    working.send_signal(way)
    started = time.monotonic()
    errors = working.communicate(timeout=60)[1]
    assert working.returncode == -way
    assert ("KeyboardInterrupt" in errors) == (way == signal.SIGINT)
    while alive(pid):
        assert time.monotonic() - started < 15, "the decoder goes on"
        time.sleep(0.01)


FORK = """
import os, sys
from smolvlm_mlx.inputs import sandbox
from smolvlm_mlx.inputs.image import STRANGERS

def decode():
    print(sandbox.decode_image(data, STRANGERS, "it", 4096).size, flush=True)

data = sys.stdin.buffer.read()
decode()
pid = os.fork()
decode()
if not pid:
    os._exit(0)
os.waitpid(pid, 0)
decode()
"""


def test_a_copy_of_the_process_has_its_own() -> None:
    forked = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK],
        cwd=ROOT,
        input=SMALL,
        capture_output=True,
        check=True,
    )
    assert (forked.stdout, forked.stderr) == (b"(90, 60)\n" * 4, b"")


PLACES = {
    "seconds": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (20, 20))",
    "memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))",
    "no folder": "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
}
ELSEWHERE = """
import sys
sys.path[0] = ROOT
PLACE
from smolvlm_mlx.inputs.image import load_image
sys.path.insert(0, "")
print(load_image(sys.stdin.buffer.read()).size)
"""


@pytest.mark.parametrize("place", PLACES)
def test_they_live_with_what_the_program_was_given(place: str, tmp_path: Path) -> None:
    """A shell's or a cluster's limits, which only fall; and a folder that is removed."""
    code = ELSEWHERE.replace("ROOT", repr(str(ROOT))).replace("PLACE", PLACES[place])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        input=encoded(GREY, "WEBP"),
        capture_output=True,
    )
    assert (done.stdout, done.stderr) == (b"(90, 60)\n", b"")


# ---- which way


def test_who_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def there(data: bytes, limits: object, name: str, edge: int) -> None:
        asked.append(name)

    monkeypatch.setattr(sandbox, "decode_image", there)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "QOI", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000"):
        decode_image(encoded(GREY, kind), DEFAULT_LIMITS, kind)
    decode_image(bombs.jpeg_of_scans(USUAL_SCANS), DEFAULT_LIMITS, "usual scans")
    decode_image(bombs.jpeg_of_scans(USUAL_SCANS + 1), DEFAULT_LIMITS, "scans")
    decode_image(encoded(GREY, "PNG"), STRANGERS, "strangers")
    assert asked == ["WEBP", "TIFF", "AVIF", "JPEG2000", "scans", "strangers"]


# ---- scans


@pytest.mark.parametrize("scans", [11, USUAL_SCANS, MAX_SCANS])
def test_as_many_scans_are_decoded(scans: int) -> None:
    data = bombs.jpeg_of_scans(scans)
    assert count_scans(data) == scans
    assert decode_here(data, STRANGERS, "it", 4096).size == (64, 64)


def test_one_more_is_refused() -> None:
    words = "^it is a JPEG of over 100 scans; the limit of its size is 100: save it again$"
    with pytest.raises(ImageError, match=words):
        decode_here(bombs.jpeg_of_scans(MAX_SCANS + 1), STRANGERS, "it", 4096)


@pytest.mark.parametrize(("side", "most"), [(3162, 100), (5000, 40), (7000, 20), (14000, 20)])
def test_large_pictures_have_fewer(side: int, most: int) -> None:
    check_scans(bombs.jpeg_of_scans(most), (side, side), "it")
    with pytest.raises(ImageError, match=f"the limit of its size is {most}:"):
        check_scans(bombs.jpeg_of_scans(most + 1), (side, side), "it")


def test_scans_of_a_thumbnail_are_none() -> None:
    exif = b"Exif\0\0" + bombs.jpeg_of_scans(300)[:60_000]
    file = io.BytesIO()
    GREY.save(file, "JPEG", exif=exif)
    assert count_scans(file.getvalue()) == 1
    assert count_scans(encoded(np_noise(), "JPEG", quality=100, restart_marker_rows=1)) == 1


def np_noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", bombs.PICTURES)
def test_a_bomb_of_each_format_is_a_picture_or_a_line(kind: str) -> None:
    with suppress(ImageError):
        sandbox.decode_image(bombs.PICTURES[kind](), STRANGERS, "it", 4096)
    assert sandbox.decode_image(SMALL, STRANGERS, "it", 4096).size == (90, 60)
