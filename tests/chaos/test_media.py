"""Damaged pictures, videos and PDFs through the processes that decode, which are killed too: each
is a picture or a line, this process goes on, and nothing is left."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from smolvlm_mlx.inputs import sandbox
from smolvlm_mlx.inputs.image import STRANGERS
from smolvlm_mlx.inputs.video import VideoSampling
from tests.support import bombs, damage
from tests.support.damage import ENDED, FINE, REFUSED
from tests.support.decoders import decoders, descriptors
from tests.support.http import Running
from tests.support.pictures import PICTURE, data_url, encoded, png, tall
from tests.support.tally import Tally, tally
from tests.support.videos import encode_video

import pytest

USUAL_SECONDS, MOST_SECONDS = 0.5, 5.0  # of answers that need no model: of 19 of 20, and of all


def count_case(count: Tally, case: object, seed: int) -> None:
    """Count one; one that took too long is an AssertionError of `damage`."""
    assert callable(case)
    try:
        result = case(seed)
    except AssertionError as error:
        is_late = " takes more than " in str(error)
        count.case(False, "hung" if is_late else "wrong", f"seed {seed}: {error}")
    else:
        count.case(result in (FINE, REFUSED, ENDED), note=f"seed {seed}: {result}")


def test_pictures() -> None:
    with tally("pictures, bytes changed") as count:
        for seed in range(2000):
            count_case(count, damage.picture, seed)


def test_videos() -> None:
    with tally("videos, bytes changed") as count:
        for seed in range(100):
            count_case(count, damage.video, seed)


def test_pdfs() -> None:
    pytest.importorskip("pypdfium2")
    with tally("PDFs, bytes changed") as count:
        for seed in range(100):
            count_case(count, damage.pdf, seed)


def test_kills() -> None:
    """In the middle of a video; the next picture is decoded by another process."""
    video, picture = encode_video(6), encoded(PICTURE, "PNG")
    want = sandbox.decode_image(picture, STRANGERS, "it", 4096).image.tobytes()
    before = None
    with tally("decoders, ended") as count:
        for number in range(50):
            steps = sandbox.decode_video(video, VideoSampling(), lambda frame: frame)
            next(steps)
            steps.close()
            have = sandbox.decode_image(picture, STRANGERS, "it", 4096).image.tobytes()
            count.case(have == want, note=f"picture {number}")
            if number % 10 == 0:
                left = descriptors(), len(decoders(os.getpid()))
                before = before or left
                count.case(left == before, "lost", f"descriptors, processes: {before}, {left}")


def test_the_server_answers_while_bombs_are_decoded(server: Running) -> None:
    """Scans at and above the limit, and large pictures that are a few bytes."""
    files = [bombs.jpeg_of_scans(100, (2000, 2000)), bombs.jpeg_of_scans(5000), tall()]
    files.append(png(7000, 8, 0, bytes(7000), height=7000))
    urls = [data_url(file) for file in files]

    def ask(number: int) -> int:
        part = {"type": "image_url", "image_url": {"url": urls[number % len(urls)]}}
        body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
        return client.post("/v1/chat/completions", json=body).status_code

    with (
        tally("server, bombs") as count,
        server.client() as client,
        server.client() as other,
        ThreadPoolExecutor(12) as pool,
    ):
        times = list[float]()
        asked = [pool.submit(ask, number) for number in range(42)]
        while not all(each.done() for each in asked):
            for path in ("/", "/health"):
                started = time.monotonic()
                status = other.get(path).status_code
                times.append(time.monotonic() - started)
                fine = status == 200 and times[-1] < MOST_SECONDS
                count.case(fine, "hung", f"{path}: {status} after {times[-1]} s")
        late = sorted(times)[len(times) * 19 // 20]
        count.case(late < USUAL_SECONDS, "hung", f"one in 20 takes {late} s or more")
        for each in asked:
            count.case(each.result() in (200, 400, 503), note=each.result())
