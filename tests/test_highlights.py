"""examples/highlights.py chooses the right parts of a video, cuts them out as they are, and goes on
where it was stopped."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from convert.tiny.scenes import make_frames
from convert.tiny.world import Scene
from examples.highlights import cut, split
from smolvlm_mlx.inputs.video import VideoSampling, decode
from tests.support.places import ROOT
from tests.support.videos import encode_clip, encode_video, grays

import av
import pytest


def moving(direction: str, seed: int) -> Sequence[Scene]:
    """Four seconds of a circle that moves one way."""
    rng = Random(seed)
    while True:
        thing, way, scenes = make_frames(rng)
        if (way, thing.shape, len(scenes)) == (direction, "circle", 4):
            return scenes


def test_split() -> None:
    assert split(25, 10) == [(0, 10), (10, 25)]
    assert split(3, 10) == [(0, 3)]
    assert split(40, 10)[-1] == (30, 40)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mov", "mpegts"])
def test_cuts_are_the_frames_from_the_key_frame_on(container: str, tmp_path: Path) -> None:
    suffix = {"matroska": "mkv", "mpegts": "ts"}.get(container, container)
    source, out = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    source.write_bytes(encode_video(30, 10, container, gop=5))
    cut(source, out, [(0.7, 1.2), (2.0, 2.5)])
    with av.open(str(source)) as file:
        keys = [number for number, packet in enumerate(file.demux(video=0)) if packet.is_keyframe]
    begins = [max(key for key in keys if key <= start) for start in (7, 20)]
    assert begins[0] >= 4
    want = [*range(begins[0], 12), *range(begins[1], 25)]
    assert grays(out.read_bytes(), VideoSampling(fps=10)) == pytest.approx(want, abs=1)


def test_the_parts_that_are_asked_for(tmp_path: Path) -> None:
    ways = ["left", "right", "left"]
    scenes = [scene for seed, way in enumerate(ways) for scene in moving(way, seed)]
    source = tmp_path / "long.mp4"
    source.write_bytes(encode_clip(scenes, "mp4", "mpeg4"))
    command = [
        sys.executable,
        str(ROOT / "examples" / "highlights.py"),
        str(source),
        "--model",
        "tiny",
    ]
    command += [
        "--seconds",
        "4",
        "--question",
        "Does the circle move left?",
        "--out",
        str(tmp_path / "out"),
    ]

    def run() -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return done.stdout

    assert run().endswith("highlights.mp4: 0:00.0 to 0:04.0, 0:08.0 to 0:12.0\n")
    cuts = json.loads((tmp_path / "out" / "cuts.json").read_text())
    assert [(one["start"], one["end"]) for one in cuts] == [(0, 4), (8, 12)]
    assert all(one["description"] for one in cuts)
    assert decode((tmp_path / "out" / "highlights.mp4").read_bytes(), VideoSampling()).duration >= 8
    # Stopped after some answers: the rest is asked, what was said stays.
    notes = json.loads((tmp_path / "out" / "notes.json").read_text())
    few = dict(list(notes["said"].items())[:2])
    few[next(iter(few))] = "It was said so."
    (tmp_path / "out" / "notes.json").write_text(json.dumps({**notes, "said": few}))
    assert "0:00.0 to 0:04.0: It was said so." in run()
    source.write_bytes(encode_clip(scenes[:8], "mp4", "mpeg4"))
    other = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (other.returncode, "of another video or model" in other.stderr) == (1, True)
