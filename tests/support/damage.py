"""Files with some bytes changed, the same for a seed, and what comes of them through the process
that decodes."""

import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from smolvlm_mlx.errors import SmolVLMError
from smolvlm_mlx.inputs import sandbox
from smolvlm_mlx.inputs.image import STRANGERS
from smolvlm_mlx.inputs.video import VideoSampling
from tests.support.pdfs import nested_pdf, pictures_as_pdf
from tests.support.pictures import animated, encoded, noise
from tests.support.videos import encode_video

FINE, REFUSED, ENDED = "fine", "refused", "ended"  # the last: a decoder crashed, alone
PICTURE_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to eight bytes changed, half of the times in the first 200; one in eight files is cut."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        end = min(200, len(changed)) if rng.random() < 0.5 else len(changed)
        changed[rng.randrange(end)] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.125 else changed)


@cache
def whole_pictures() -> list[bytes]:
    files = [encoded(noise(60, 40), kind) for kind in PICTURE_KINDS]
    files.append(encoded(noise(60, 40), "JPEG", progressive=True))
    return [*files, *(animated(kind) for kind in ("GIF", "PNG", "WEBP", "AVIF"))]


@cache
def whole_videos() -> list[bytes]:
    return [encode_video(6), animated("GIF"), animated("WEBP"), animated("PNG")]


@cache
def whole_pdfs() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pdf"
        return [pictures_as_pdf(path).read_bytes(), nested_pdf(path, 5).read_bytes()]


def outcome(work: Callable[[], object]) -> str:
    """FINE, REFUSED by one line, or ENDED by another. Raises what else is raised, and
    AssertionError where a line is none, or says that time was over."""
    try:
        work()
    except SmolVLMError as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert " takes more than " not in line, line
        return ENDED if "its decoder ended" in line else REFUSED
    return FINE


def picture(seed: int) -> str:
    rng = random.Random(seed)
    data = damaged(rng.choice(whole_pictures()), rng)
    return outcome(lambda: sandbox.decode_image(data, STRANGERS, "it", 4096))


def video(seed: int) -> str:
    rng = random.Random(seed)
    data = damaged(rng.choice(whole_videos()), rng)
    sampling = VideoSampling(max_frames=3)
    return outcome(lambda: list(sandbox.decode_video(data, sampling, lambda frame: frame.size)))


def pdf(seed: int) -> str:
    rng = random.Random(seed)
    data = damaged(rng.choice(whole_pdfs()), rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pdf"
        path.write_bytes(data)

        def work() -> None:
            for number in range(min(sandbox.count_pages(path), 3)):
                sandbox.render_page(path, number + 1)

        return outcome(work)
