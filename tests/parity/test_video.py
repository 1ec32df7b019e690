"""Videos become the reference's prompts, and frames within one 8-bit step of its own."""

import random
from fractions import Fraction
from typing import Any

from smolvlm_mlx.inputs.media import Video
from smolvlm_mlx.inputs.video import VideoSampling, sample
from tests.parity.checkpoints import picture
from tests.support.checkpoints import load_processor
from tests.support.messages import random_text
from tests.support.places import REAL_FILES, SHARED
from tests.support.videos import encode_video

import numpy as np
import pytest
import torch
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

pytest.importorskip("torchvision")
pytestmark = pytest.mark.parity
NAME = "SmolVLM2-256M-Video-Instruct"


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoProcessor.from_pretrained(SHARED / "checkpoints" / NAME)


def reference(
    theirs: Any, messages: Any, videos: list[np.ndarray], rates: list[float], **options: Any
) -> Any:
    """Decoded frames (n, H, W, 3) and their rates -> the reference's batch, which samples them
    itself."""
    metadata = [
        VideoMetadata(total_num_frames=len(v), fps=rate, duration=len(v) / rate)
        for v, rate in zip(videos, rates, strict=True)
    ]
    bare = [
        {
            "role": m["role"],
            "content": [{k: p[k] for k in ("type", "text") if k in p} for p in m["content"]],
        }
        for m in messages
    ]
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    text = theirs.apply_chat_template(bare, DEFAULT_CHAT_TEMPLATE, add_generation_prompt=True)
    return theirs(
        text=text,
        videos=[torch.from_numpy(v).permute(0, 3, 1, 2) for v in videos],
        video_metadata=metadata,
        do_sample_frames=True,
        add_special_tokens=False,
        return_tensors="pt",
        **options,
    )


def test_a_clip_of_five_seconds_is_428_tokens() -> None:
    ours = load_processor(REAL_FILES / NAME)
    content = [
        {"type": "video", "video": Video(encode_video(50, 10))},
        {"type": "text", "text": "Describe the video."},
    ]
    inputs = ours([{"role": "user", "content": content}])
    assert (len(inputs.input_ids), len(inputs.tiles)) == (428, 5)


def test_prompts_of_random_videos(theirs: Any) -> None:
    """Length, rate and container at random, in random conversations."""
    ours, rng = load_processor(REAL_FILES / NAME), random.Random(0)
    for number in range(200):
        rate = rng.choice((1, 5, 10, 24, 25, 30, Fraction(30000, 1001)))
        count = rng.choice(
            (1, 2, 7, rng.randrange(1, 400), rng.randrange(1, 3000) if number % 20 == 0 else 30)
        )
        container, codec = rng.choice(
            (("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("mov", "mpeg4"))
        )
        data = encode_video(count, rate, container, codec, size=(32, 32), gop=50)
        content: list[Any] = [
            {"type": "text", "text": random_text(rng)},
            {"type": "video", "video": Video(data)},
        ]
        content += [{"type": "text", "text": random_text(rng)}] if rng.random() < 0.5 else []
        if rng.random() < 0.4:
            content.reverse()
        messages = [{"role": "user", "content": content}]
        have = ours(messages).input_ids.tolist()
        frames = np.zeros((count, 32, 32, 3), np.uint8)
        want = reference(theirs, messages, [frames], [float(rate)], num_frames=64, fps=1)[
            "input_ids"
        ][0].tolist()
        assert have == want, (number, count, rate, container)


def test_sampled_sets_are_the_references(theirs: Any) -> None:
    """2,000 at random: lengths, rates, settings."""
    rng = random.Random(0)
    for _ in range(2000):
        fps = rng.choice((1, 5, 10, 23.976, 24, 25, 29.97, 30, 50, 60, rng.uniform(0.1, 240)))
        count = rng.randrange(1, rng.choice((50, 2000, 200_000)))
        wanted = {"fps": rng.choice((1, 2, 0.5, rng.uniform(0.05, 30)))}
        wanted["max_frames"] = rng.choice((1, 2, 8, 50, 64, rng.randrange(1, 200)))
        metadata = VideoMetadata(total_num_frames=count, fps=fps, duration=count / fps)
        want = theirs.video_processor.sample_frames(
            metadata, num_frames=wanted["max_frames"], fps=wanted["fps"]
        )
        have = sample(count, fps, VideoSampling().changed(wanted))
        assert have == want.tolist(), (count, fps, wanted)


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (640, 360), (98, 62), (1280, 720)])
def test_frames_are_the_references(size: tuple[int, int], theirs: Any) -> None:
    """Within one step of 8 bits, and two in less than one value of a thousand.

    transformers overwrites `video_size` of `video_sampling`, to which frames are brought before
    they become squares, by the `size` of pictures. So the reference is given the models' own.
    """
    ours = load_processor(REAL_FILES / NAME)
    for hard in (False, True):
        frames = [picture(seed, size) for seed in range(3)]
        if hard:
            for frame in frames:
                frame.paste("white", (0, 0, size[0] // 4, size[1]))
                frame.paste("black", (0, 0, size[0], size[1] // 5))
        messages = [{"role": "user", "content": [{"type": "video", "frames": frames, "fps": 1}]}]
        inputs = ours(messages)
        batch = reference(
            theirs,
            messages,
            [np.stack([np.asarray(frame) for frame in frames])],
            [1.0],
            num_frames=9,
            fps=1,
            videos_kwargs={"size": {"longest_edge": ours.sampling.longest_edge}},
        )
        assert batch["input_ids"][0].tolist() == inputs.input_ids.tolist()
        theirs_pixels = batch["pixel_values"][0].numpy().transpose(0, 2, 3, 1)
        steps = np.abs(theirs_pixels - inputs.pixel_values) * 127.5
        assert steps.mean() < 0.02
        assert (steps > 1.01).mean() < 0.001
        assert steps.max() < 2.01
