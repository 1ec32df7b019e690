"""Both families, and what a checkpoint says in place of the defaults: through videos, conversations
that are kept, and captions."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from convert.random_checkpoint import TILE, preprocessor_config
from smolvlm_mlx import Chat, Options, generate, load
from smolvlm_mlx.inputs.media import Video
from smolvlm_mlx.inputs.messages import VideoPart, from_json, to_json, user_message
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.tiles import make_tiles
from smolvlm_mlx.inputs.video import VIDEO_OPTIONS, VideoSampling, decode, sample
from smolvlm_mlx.tasks.captions import Captioner, Task
from smolvlm_mlx.tasks.history import History
from tests.support.checkpoints import copy, load_processor
from tests.support.videos import encode_video

import numpy as np
import pytest

SHORT = Options(max_tokens=4)
CLIP = encode_video(40, 10)  # of four seconds
FAMILIES = ["smolvlm", "idefics3"]


@pytest.fixture
def family(request: pytest.FixtureRequest, tiny: Path, tiny_v1: Path) -> Path:
    return {"smolvlm": tiny, "idefics3": tiny_v1}[request.param]


both = pytest.mark.parametrize("family", FAMILIES, indirect=True)


def read(processor: Processor, *parts: Any) -> tuple[str, np.ndarray]:
    """The prompt, and the tiles."""
    inputs = processor([user_message("What?", parts)])
    ids = inputs.input_ids.tolist()
    return processor.tokenizer.decode(ids, skip_special_tokens=False), inputs.tiles


# ---- which frames, as the checkpoint says


@pytest.mark.parametrize(
    ("sampling", "numbers"),
    [
        ({"fps": 2, "max_frames": 64}, sample(40, 10, VideoSampling(fps=2))),
        ({"fps": 2, "max_frames": 3}, sample(40, 10, VideoSampling(max_frames=3))),
        ({"fps": 0.5}, sample(40, 10, VideoSampling(fps=0.5))),
        ({"max_frames": 2}, sample(40, 10, VideoSampling(max_frames=2))),
    ],
    ids=str,
)
def test_a_checkpoints_own_sampling_is_used(
    sampling: dict[str, Any], numbers: list[int], tiny: Path, tmp_path: Path
) -> None:
    folder = copy(tiny, tmp_path / "own")
    config = preprocessor_config("smolvlm")
    config["video_sampling"] = {**sampling, "video_size": {"longest_edge": TILE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    processor = load_processor(folder)
    _, tiles = read(processor, Video(CLIP))
    frames = decode(CLIP, VideoSampling(fps=10)).frames  # all of them
    settings = processor.one_tile.applied(processor.settings)
    want = [make_tiles(frames[number], settings).tiles[0] for number in numbers]
    assert len(numbers) != 4  # as by the defaults
    np.testing.assert_array_equal(tiles, want)


def test_a_checkpoints_own_size_of_frames_is_used(tiny: Path, tmp_path: Path) -> None:
    """Of the frame, before it becomes a tile: a smaller one is less sharp."""
    folder, config = copy(tiny, tmp_path / "own"), preprocessor_config("smolvlm")
    config["video_sampling"]["video_size"]["longest_edge"] = 16
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    processor = load_processor(folder)
    _, (first, *_) = read(processor, Video(CLIP))
    frame = decode(CLIP, VideoSampling()).frames[0]
    settings = replace(processor.settings, split=False, longest_edge=16)
    np.testing.assert_array_equal(first, make_tiles(frame, settings).tiles[0])
    assert not np.array_equal(first, read(load_processor(tiny), Video(CLIP))[1][0])


def test_the_first_family_sees_fifty_frames_and_no_words(tiny_v1: Path) -> None:
    processor = load_processor(tiny_v1)
    prompt, tiles = read(processor, Video(encode_video(120, 10)))
    assert len(tiles) == 50
    tile = "<fake_token_around_image><global-img>" + "<image>" * processor.tokens_per_tile
    frames = (tile + "<fake_token_around_image>") * 50
    assert prompt == f"<|im_start|>User:{frames}What?<end_of_utterance>\nAssistant:"
    assert len(read(processor, Video(CLIP))[1]) == 40  # all there are


# ---- what is asked with a video is kept with it

# By option: a value that changes what is seen.
ASKED_WITH: dict[str, float] = {"fps": 2.0, "max_frames": 3, "start": 1.0, "end": 2.0}


def test_every_option_of_a_video_is_tried() -> None:
    assert ASKED_WITH.keys() == {*VIDEO_OPTIONS}


@both
@pytest.mark.parametrize("option", ASKED_WITH)
def test_a_conversation_that_is_kept_keeps_what_a_video_is_asked_with(
    option: str, family: Path, tmp_path: Path
) -> None:
    processor = load_processor(family)
    part = VideoPart(Video(CLIP, name="clip.mp4"), {option: ASKED_WITH[option]})
    if option == "fps":  # of which the first family has as many as there are
        part = replace(part, options={**part.options, "max_frames": 7})
    asked = user_message("What?", [part])
    want = processor([asked])
    bare = processor([user_message("What?", [part.video])])
    assert len(want.tiles) != len(bare.tiles)
    history = History(tmp_path / "history.sqlite3")
    history.save("a", [asked])
    for (kept,) in (history.load("a"), from_json(json.loads(json.dumps(to_json([asked]))))):
        (again,) = kept.media_parts
        assert isinstance(again, VideoPart)
        assert again.options == part.options
        inputs = processor([kept])
        assert inputs.input_ids.tolist() == want.input_ids.tolist()
        np.testing.assert_array_equal(inputs.tiles, want.tiles)


@both
def test_a_conversation_about_a_video_goes_on_from_its_file(family: Path, tmp_path: Path) -> None:
    loaded = load(family, "float32")
    chat = Chat(*loaded, SHORT)
    part = VideoPart(Video(CLIP), {"start": 1, "end": 3, "max_frames": 2})
    first = chat.ask("What happens?", [part])
    "".join(first)
    assert first.statistics.tiles == 2
    chat.save(tmp_path / "talk.json")
    other = Chat(*loaded, SHORT)
    other.open(tmp_path / "talk.json")
    answers = [talk.ask("And then?") for talk in (chat, other)]
    assert "".join(answers[0]) == "".join(answers[1])
    assert [answer.statistics.tiles for answer in answers] == [2, 2]
    assert [answer.statistics.reused_tokens > 0 for answer in answers] == [True, False]


@both
def test_a_video_is_captioned(family: Path, tmp_path: Path) -> None:
    loaded, task = load(family, "float32"), Task("What happens?", SHORT.max_tokens)
    (tmp_path / "clip.mp4").write_bytes(encode_video(5, 1))
    (line,) = Captioner(*loaded, task).write([tmp_path / "clip.mp4"], tmp_path / "a.jsonl")
    question = [user_message("What happens?", [Video(tmp_path / "clip.mp4")])]
    assert line["caption"] == generate(*loaded, question, SHORT).strip()


# ---- how pictures are cut, as the checkpoint says

# The first is that of the tower, the second no checkpoint's.
NOT_SAID = {"tile_size", "max_tiles"}
# By field: its key in preprocessor_config.json, with another value, and what that is here.
SAID: dict[str, tuple[str, Any, Any]] = {
    "longest_edge": ("size", {"longest_edge": 128}, 128),
    "split": ("do_image_splitting", False, False),
    "mean": ("image_mean", [0.1, 0.2, 0.3], (0.1, 0.2, 0.3)),
    "std": ("image_std", [0.4, 0.5, 0.6], (0.4, 0.5, 0.6)),
    "rescale_factor": ("rescale_factor", 0.01, 0.01),
    "resample": ("resample", 0, 0),
}


@pytest.mark.parametrize(
    "name", [field.name for field in fields(ImageSettings) if field.name not in NOT_SAID]
)
def test_each_setting_of_a_checkpoint_changes_what_the_model_sees(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    key, raw, value = SAID[name]
    folder = copy(tiny, tmp_path / "own")
    config = preprocessor_config("smolvlm") | {key: raw}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    processor, picture = load_processor(folder), np.arange(90 * 60 * 3).reshape(90, 60, 3) % 251
    assert getattr(processor.settings, name) == value
    asked = [user_message("What?", [picture.astype(np.uint8)])]
    own, usual = processor(asked).pixel_values, load_processor(tiny)(asked).pixel_values
    assert own.shape != usual.shape or not np.array_equal(own, usual)
