"""What was made is kept under a key: each thing that enters one, changed alone, is another key. A
field without an entry fails."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, load
from smolvlm_mlx.cli.options import Loading
from smolvlm_mlx.events import Work
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.image_cache import ImageCache, encode_tiles
from smolvlm_mlx.generation.sampling import make_sampler
from smolvlm_mlx.inputs.media import Attachment, Video
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.settings import ImageOptions, ImageSettings
from smolvlm_mlx.inputs.tiles import TiledImage
from smolvlm_mlx.inputs.video import VideoSampling
from smolvlm_mlx.options import options_of
from smolvlm_mlx.tasks import captions
from smolvlm_mlx.tasks.captions import Captioner, Task
from smolvlm_mlx.tasks.options import CAPTIONS
from tests.support.changes import ANSWERS, PICTURES, VALUES
from tests.support.checkpoints import Loaded
from tests.support.pictures import PICTURE
from tests.support.videos import encode_video

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

# ---- captions that are there

TASK = Task("Describe the picture.")
TASKS: dict[str, Any] = {
    "prompt": "What is this?",
    "max_tokens": VALUES["max_tokens"],
    "schema": {"type": "object"},
    "most_characters": 50,
    "words": True,
}


def runs(loaded: Loaded) -> Iterator[tuple[str, str]]:
    """The names of runs that differ in one thing each."""
    usual = replace(CAPTIONS, max_tokens=TASK.max_tokens)
    yield "model", Captioner(*loaded, TASK, "other").run
    for name in (field.name for field in fields(Task)):
        if name == "max_tokens":  # which options have, where there are any
            yield name, Captioner(*loaded, replace(TASK, max_tokens=TASKS[name])).run
        else:
            yield name, Captioner(*loaded, replace(TASK, **{name: TASKS[name]}), options=usual).run
    for name in (option.name for option in ANSWERS):
        value: Any = not usual.end_loops if name == "end_loops" else VALUES[name]
        options = replace(usual, **{name: value})
        yield f"option {name}", Captioner(*loaded, TASK, options=options).run
    for name in (option.name for option in PICTURES):
        image_options = ImageOptions(**{name: VALUES[name]})
        yield f"option {name}", Captioner(*loaded, TASK, "", image_options).run


def test_captions_of_another_run_are_not_taken(loaded: Loaded) -> None:
    found = dict(runs(loaded))
    assert Captioner(*loaded, TASK).run == Captioner(*loaded, TASK).run
    found.pop("max_tokens")  # the same as that of the option
    assert len({Captioner(*loaded, TASK).run, *found.values()}) == len(found) + 1


def test_captions_of_another_checkpoint_are_not_taken(
    loaded: Loaded, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list[str]()

    class Recorded(Captioner):
        def __init__(self, model: Any, processor: Any, task: Task, name: str, *more: Any):
            names.append(name)
            super().__init__(model, processor, task, name, *more)

    monkeypatch.setattr(captions, "Captioner", Recorded)
    monkeypatch.setattr(Loading, "load", lambda self, model, lazy=False: loaded)
    PICTURE.save(tmp_path / "a.png")
    out, changes = tmp_path / "a.jsonl", {"adapter": "b", "dtype": "float16", "revision": "v2"}
    names_a_run = [each for each in options_of(Loading) if each.name in changes]
    asked = ("caption", tmp_path / "a.png", "--out", out, "-n", 2)
    assert call(*asked, "-m", "one")[0] == 0
    before = out.read_bytes()
    flags = [["--" + each.name, changes[each.name], "-m", "one"] for each in names_a_run]
    for flags_of_another in (["-m", "other"], *flags):
        code, _, error = call(*asked, *flags_of_another)
        assert code == 1
        assert "captions of another model, task or settings; choose another --out" in error
        assert out.read_bytes() == before
    assert len(set(names)) == len(names) == len(flags) + 2


# ---- image tokens

# Of settings, what becomes of a tile's pixels; all else is in the tile.
PIXELS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.5, 0.4, 0.5), "rescale_factor": 0.01}
TILES: dict[str, Any] = {
    "tile_size": 32,
    "longest_edge": 128,
    "split": False,
    "max_tiles": 3,
    "resample": 2,
}


@pytest.mark.parametrize("in_a_file", [False, True])
def test_image_tokens_are_of_a_tiles_pixels(
    in_a_file: bool, loaded: Loaded, tmp_path: Path
) -> None:
    model, settings = loaded[0], loaded[1].settings
    tiled = Attachment(PICTURE).tiled(settings)
    folder = tmp_path if in_a_file else None
    cache = ImageCache(model, folder)
    encode_tiles(model, tiled.tiles, settings, cache, tiled.digests)
    if in_a_file:
        cache = ImageCache(model, folder)
    assert cache.get(tiled.digests, settings).keys() == {*tiled.digests}
    for name in (field.name for field in fields(ImageSettings)):
        other = replace(settings, **{name: (PIXELS | TILES)[name]})
        digests = Attachment(PICTURE).tiled(other).digests
        assert not {*digests} <= {*cache.get(digests, other)}, name


def test_image_tokens_in_a_file_are_of_each_weight(tiny: Path, tmp_path: Path) -> None:
    model, processor = load(tiny, "float32")
    digests = [b"one"]
    kept = {b"one": mx.ones((model.config.tokens_per_tile, 128))}
    ImageCache(model, tmp_path).put(kept, processor.settings)
    assert ImageCache(model, tmp_path).get(digests, processor.settings)
    for part in (model.vision_model, model.connector):
        for name, weight in dict(tree_flatten(part.parameters())).items():
            part.update(tree_unflatten([(name, weight * 1.01)]))
            assert not ImageCache(model, tmp_path).get(digests, processor.settings), name
            part.update(tree_unflatten([(name, weight)]))
    assert ImageCache(model, tmp_path).get(digests, processor.settings)


# ---- prompts that were read


def test_what_was_read_of_a_picture_is_of_its_pixels(tiny: Path) -> None:
    model, processor = load(tiny, "float32")
    asked, options = [user_message("What?", [PICTURE])], Options(max_tokens=1)
    ids = processor(asked).input_ids.tolist()

    def reused(engine: Engine) -> int:
        stream = engine.stream(asked, options)
        list(stream)
        return stream.statistics.reused_tokens

    usual = processor.settings
    for name, value in PIXELS.items():
        engine = Engine(model, processor)
        reused(engine)
        whole = reused(engine)
        processor.settings = replace(usual, **{name: value})
        first = reused(engine)
        processor.settings = usual
        assert whole == len(ids) - 1
        assert first == ids.index(model.config.image_token_id), name


def test_what_was_read_is_of_its_kv_bits(loaded: Loaded) -> None:
    engine = Engine(*loaded, conversations=3)

    def reused(bits: Any) -> int:
        stream = engine.stream("Hello", Options(max_tokens=1, kv_bits=bits))
        list(stream)
        return stream.statistics.reused_tokens

    assert [reused(bits) > 0 for bits in (None, 4, 8, None, 4, 8)] == [False] * 3 + [True] * 3


# ---- pictures and videos that are cut, and samplers


def same(one: TiledImage, other: TiledImage) -> bool:
    return one.layout == other.layout and np.array_equal(one.tiles, other.tiles)


@pytest.mark.parametrize("name", [field.name for field in fields(ImageSettings)])
def test_a_picture_is_cut_anew_for_other_settings(name: str, loaded: Loaded) -> None:
    usual = loaded[1].settings
    other = replace(usual, **{name: (PIXELS | TILES)[name]})
    held = Attachment(PICTURE)
    first = held.tiled(usual)
    assert held.tiled(usual) is first
    assert same(held.tiled(other), Attachment(PICTURE).tiled(other))
    assert same(held.tiled(usual), first)
    assert same(first, held.tiled(other)) == (name in PIXELS)


SAMPLING: dict[str, Any] = {
    "fps": 2.0,
    "max_frames": 2,
    "longest_edge": 32,
    "with_times": False,  # for a long video: no second is left out at its ends
    "start": 1.0,
    "end": 2.0,
}


@pytest.mark.parametrize("name", [field.name for field in fields(VideoSampling)])
def test_a_video_is_sampled_anew_for_other_sampling(name: str, loaded: Loaded) -> None:
    usual = VideoSampling(max_frames=3)
    other, data = replace(usual, **{name: SAMPLING[name]}), encode_video(60, 10)
    held, settings = Video(data), loaded[1].one_tile.applied(loaded[1].settings)
    first = Work(held.clip(usual, settings)).finish()
    again = Work(held.clip(other, settings)).finish()
    assert again.times == Work(Video(data).clip(other, settings)).finish().times
    assert (again.times != first.times) == (name != "longest_edge")  # which settings have
    smaller = replace(settings, longest_edge=16)
    assert not same(
        Work(held.clip(other, smaller)).finish().frames[0],
        Work(held.clip(other, settings)).finish().frames[0],
    )


def test_rows_share_a_sampler_of_equal_options_alone() -> None:
    usual = Options(temperature=1.5, top_p=0.9, top_k=7, min_p=0.1)
    changes: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": 5,
        "min_p": 0.2,
        "seed": 1,
    }
    samplers = {make_sampler(replace(usual, **{name: changes[name]})) for name in changes}
    assert make_sampler(usual) is make_sampler(replace(usual, max_tokens=1))
    assert len({make_sampler(usual), *samplers}) == len(changes) + 1
