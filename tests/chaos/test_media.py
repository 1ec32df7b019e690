"""Damaged pictures, videos and PDFs through the processes that decode, which are killed too: each
is a picture or a line, this process goes on, and nothing is left."""

import os

from smolvlm_mlx.inputs import sandbox
from smolvlm_mlx.inputs.image import STRANGERS
from smolvlm_mlx.inputs.video import VideoSampling
from tests.support import damage
from tests.support.damage import ENDED, FINE, REFUSED
from tests.support.decoders import decoders, descriptors
from tests.support.pictures import PICTURE, encoded
from tests.support.tally import Tally, tally
from tests.support.videos import encode_video

import pytest


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
