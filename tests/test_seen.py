"""What pictures and videos are to the model: told of a size as the processor makes it of a picture
of that size, and at the end of an answer as it was."""

import base64
import json
from pathlib import Path
from typing import Any

from smolvlm_mlx.inputs.image import MAX_SIDE
from smolvlm_mlx.inputs.media import Video
from smolvlm_mlx.inputs.messages import VideoPart, user_message
from smolvlm_mlx.inputs.processor import Inputs, Processor
from smolvlm_mlx.inputs.prompt import FAKE
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.inputs.tiles import make_tiles, plan_tiles, tile_boxes
from smolvlm_mlx.server.budget import Budget
from smolvlm_mlx.server.openai import Seen
from smolvlm_mlx.server.seen import Size
from smolvlm_mlx.tasks.history import new_id
from tests.support.checkpoints import load_processor
from tests.support.family import FIRST, SECOND
from tests.support.http import Running, question
from tests.support.pictures import data_url, encoded, noise
from tests.support.videos import encode_video

import numpy as np
import pytest
from PIL import Image, ImageDraw

SIZES = [
    *[(1, 1), (3, 2), (90, 60), (60, 90), (512, 512), (513, 512), (640, 480), (480, 640)],
    *[(1600, 1067), (1067, 1600), (2048, 2049), (300, 3), (3, 300), (5000, 600)],
]
# With more than a few tiles each picture takes a tenth of a second.
FEW: list[dict[str, Any]] = [
    *({"max_tiles": most} for most in (1, 2, 5)),
    {"split": False},
    {"longest_edge": 700},
]
MANY: list[dict[str, Any]] = [{}, {"max_tiles": 12}]


def tell(processor: Processor, size: tuple[int, int], **more: Any) -> Seen:
    """What is told of a size."""
    query = {"width": size[0], "height": size[1], **more}
    asked = Size.parse({name: str(value) for name, value in query.items()}, Budget())
    return asked.seen(processor, ImageOptions(), Budget())


def tokens_of_media(processor: Processor, inputs: Inputs) -> int:
    """From the first mark of a picture in a prompt to the last."""
    marks = np.flatnonzero(inputs.input_ids == processor.tokenizer.added[FAKE])
    return int(marks[-1] - marks[0] + 1)


@pytest.mark.parametrize("name", [FIRST, SECOND])
@pytest.mark.parametrize("options", [*FEW, *MANY], ids=str)
def test_a_size_costs_what_a_picture_of_it_costs(
    name: str, options: dict[str, Any], family: Path
) -> None:
    processor = load_processor(family / name)
    for size in SIZES if options in FEW else SIZES[2:8]:
        message = user_message("What?", [Image.new("RGB", size)])
        inputs = processor([message], ImageOptions(**options))
        told = tell(processor, size, **options)
        (layout,) = inputs.layouts
        assert (told.rows, told.cols, told.tiles) == (layout.rows, layout.cols, layout.tiles)
        assert told.tokens == tokens_of_media(processor, inputs)
        assert told.tokens > told.tiles * processor.tokens_per_tile
        assert len(told.boxes) == told.tiles
        assert told.most_tiles == tell(processor, size, **{**options, "max_tiles": 10_000}).tiles


@pytest.mark.parametrize("size", [(640, 480), (300, 900), (1000, 330), (100, 100)])
def test_boxes_are_where_the_tiles_are_cut(size: tuple[int, int], tiny: Path) -> None:
    processor = load_processor(tiny)
    layout = plan_tiles(size, processor.settings)
    *boxes, whole = tile_boxes(layout, size)
    assert whole == (0, 0, *size)
    picture = Image.new("RGB", size)
    for number, box in enumerate(boxes):  # each of another color, but at its edges
        left, top, right, bottom = box
        inner = (left + 3, top + 3, right - 3, bottom - 3)
        ImageDraw.Draw(picture).rectangle(inner, (10 * number + 50, 0, 0))
    tiles = make_tiles(picture, processor.settings).tiles
    side = processor.settings.tile_size
    for number, tile in enumerate(tiles[:-1]):
        middle = tile[side // 4 : -side // 4, side // 4 : -side // 4, 0]
        assert abs(middle.astype(int) - (10 * number + 50)).max() <= 1
    assert len(tiles) == len(boxes) + 1 == layout.tiles
    told = tell(processor, size)
    assert np.allclose(told.boxes, [*boxes, whole], atol=0.005)


def test_a_picture_that_is_not_split_is_one_box(tiny: Path) -> None:
    told = tell(load_processor(tiny), (300, 200), split="false", max_tiles=3)
    assert told.model_dump(exclude_defaults=True) == {
        "width": 300,
        "height": 200,
        "tiles": 1,
        "tokens": 19,
        "most_tiles": 1,
        "boxes": [[0, 0, 300, 200]],
    }


@pytest.mark.parametrize("count", [1, 5, 30, 700])
@pytest.mark.parametrize("options", [{}, {"fps": 2.0}, {"max_frames": 3}, {"start": 1, "end": 2}])
def test_a_length_costs_what_a_video_of_it_costs(
    count: int, options: dict[str, Any], tiny: Path
) -> None:
    if count < 30 and "start" in options:
        options = {"end": 0.1}
    processor, video = load_processor(tiny), Video(encode_video(count, 10))
    inputs = processor([user_message("What?", [VideoPart(video, options)])])
    told = tell(processor, (64, 48), seconds=video.duration, **options)
    assert told.tiles == len(inputs.pictures)
    assert told.is_video
    assert told.tokens == processor.count_tokens(
        [part if isinstance(part, str) else part.layout for part in inputs.media[0]]
    )
    # The words before and after the frames are its own, too.
    assert told.tokens > tokens_of_media(processor, inputs) > told.tiles * 19 - 1


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ({}, "width", "width: missing"),
        ({"width": 5}, "height", "height: missing"),
        ({"width": 0, "height": 5}, "width", "must be greater than or equal to 1"),
        ({"width": 5, "height": MAX_SIDE + 1}, "height", "must be less than or equal to 65535"),
        ({"width": 5, "height": "5.5"}, "height", "must be a valid integer"),
        ({"width": 5, "height": "9" * 4301}, "height", "exceeded maximum size"),
        ({"width": "nan", "height": 5}, "width", "must be a valid integer"),
        ({"width": 65535, "height": 65535}, "width and height", "the limit is 1000000000"),
        ({"width": 5, "height": 5, "max_tiles": 0}, None, "max_tiles is 0, must be a whole number"),
        ({"width": 5, "height": 5, "max_tile": 3}, "max_tile", "did you mean max_tiles?"),
        ({"width": 5, "height": 5, "split": "maybe"}, "split", "must be a valid boolean"),
        ({"width": 5, "height": 5, "longest_edge": 2**40}, None, "more than 2147483647"),
        ({"width": 5, "height": 5, "seconds": 0}, "seconds", "must be greater than 0"),
        ({"width": 5, "height": 5, "seconds": "inf"}, "seconds", "must be a finite number"),
        ({"width": 5, "height": 5, "seconds": 3601}, "seconds", "the limit is 3600"),
        (
            {"width": 5, "height": 5, "seconds": 3600, "fps": 1e9, "max_frames": 2**31 - 1},
            *("seconds", "the limit is 512"),
        ),
        ({"width": 5, "height": 5, "seconds": 5, "start": 5}, None, "before start 5"),
        ({"width": 5, "height": 5, "seconds": 5, "fps": -1}, None, "fps is -1.0, not a positive"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    query: dict[str, Any], param: str | None, words: str, server: Running
) -> None:
    with server.client() as client:
        answer = client.get("/tiles", params=query)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert "\n" not in error["message"]


def test_the_largest_answer_is_bounded(tiny: Path) -> None:
    """However many tiles are asked for: no side has more than the reference's longest."""
    told = tell(load_processor(tiny), (MAX_SIDE, 15_000), longest_edge=2**31 - 1)
    assert told.tiles == 64 * 15 + 1
    assert len(told.model_dump_json()) < 100_000


def test_the_route_tells_as_the_server_is_set(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiles(**query: Any) -> tuple[int, int]:
        with server.client() as client:
            told = client.get("/tiles", params=dict(query, width=90, height=60)).json()
        return told["tiles"], told["most_tiles"]

    assert [tiles(), tiles(max_tiles=5)] == [(13, 13), (5, 13)]
    monkeypatch.setattr(server.service, "image_options", ImageOptions(max_tiles=7))
    assert [tiles(), tiles(max_tiles=5), tiles(max_tiles=20)] == [(7, 7), (5, 7), (13, 7)]


# ---- at the end of an answer


def ask(server: Running, stream: bool, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What it was about, as its end tells."""
    answer = server.complete({**body, "max_tokens": 2, "stream": stream})
    assert answer.status_code == 200, answer.text
    if not stream:
        return list(answer.json().get("seen", []))
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line[6:7] == "{"]
    assert not any("seen" in chunk for chunk in chunks[:-1])
    return list(chunks[-1].get("seen", []))


def origins(seen: list[dict[str, Any]]) -> list[set[str]]:
    return [set(each["origins"]) for each in seen]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_tells_how_it_saw_its_pictures(stream: bool, server: Running) -> None:
    id, usage = new_id(), {"stream_options": {"include_usage": True}}
    cat = data_url(noise(90, 60, 1 + stream))
    white = data_url(Image.new("RGB", (64, 48), "snow" if stream else "white"))
    first = question("What?", cat, conversation=id, max_tiles=5, **usage)
    (told,) = ask(server, stream, first)
    with server.client() as client:
        size = {"width": 90, "height": 60, "max_tiles": 5}
        planned = client.get("/tiles", params=size).json()
    assert planned.pop("most_tiles") == 13
    assert told == {**planned, "origins": ["computed"] * 5}
    # Another question after it, with a picture whose tiles are equal to each other.
    said = [*first["messages"], {"role": "assistant", "content": "It is."}]
    second = {**first, "messages": [*said, *question("And this?", white)["messages"]]}
    again = ask(server, stream, second)
    assert origins(again)[0] == {"prompt"}
    before = again[1]["origins"][1:]
    assert before == ["features"] * len(before)
    # The same pictures in another order: nothing of the prompt is there, but their features are.
    third = question("Which?", white, cat, conversation=new_id(), max_tiles=5, **usage)
    assert origins(ask(server, stream, third)) == [{"features"}, {"features"}]


def test_a_turned_picture_is_told_as_it_stands(server: Running) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.new("RGB", (90, 30), "red"), "JPEG", exif=exif)
    url = data_url(turned).replace("png", "jpeg")
    (told,) = ask(server, False, question("What?", url, conversation=new_id()))
    assert (told["width"], told["height"]) == (30, 90)
    assert told["rows"] > told["cols"]


def test_an_answer_tells_how_it_saw_a_video(server: Running) -> None:
    video = "data:video/mp4;base64," + base64.b64encode(encode_video(30, 10)).decode()
    parts = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": "What?"}]
    body = {"messages": [{"role": "user", "content": parts}], "conversation": new_id()}
    (told,) = ask(server, False, body)
    with server.client() as client:
        size = {"width": 64, "height": 48, "seconds": 3}
        planned = client.get("/tiles", params=size).json()
    assert told == {**planned, "origins": ["computed"] * 3}
    assert (told["tiles"], told["is_video"]) == (3, True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_is_no_conversation_or_has_no_pictures_is_told_nothing(
    stream: bool, server: Running
) -> None:
    usage = {"stream_options": {"include_usage": True}}
    assert ask(server, stream, question("Hi", data_url(), **usage)) == []
    assert ask(server, stream, question("Hi", conversation=new_id(), **usage)) == []
