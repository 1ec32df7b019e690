"""Rows of data with numbers, and other values, that no picture and no video can have: used, or one
line that says what is wrong; in every field, in every place."""

import json
from pathlib import Path

from smolvlm_mlx.data.rows import read_rows
from smolvlm_mlx.data.samples import make_sample
from smolvlm_mlx.errors import SmolVLMError
from smolvlm_mlx.inputs.messages import parse_messages
from tests.support.checkpoints import Loaded
from tests.support.pictures import noise
from tests.support.videos import encode_video

import pytest

# JSON, as it is written.
VALUES = (
    *("NaN", "Infinity", "-1", "0", "5", "2.5", "1e-300", "5e-324", "1e308", "1" + "0" * 400),
    *("true", '"5"', '"nan"', '"x"', "[]", "[1]", "[NaN]", "{}", "null", r'"\ud800"', r'"\u0000"'),
)
VIDEO_FIELDS = ("fps", "max_frames", "start", "end", "frames")
IMAGE_FIELDS = ("split", "longest_edge", "max_tiles")
TALK = '{"messages": [{"role": "user", "content": [%s, {"type": "text", "text": "q"}]}, %s]}'
ANSWER = '{"role": "assistant", "content": "a"}'
PLACES = {
    "a row": ('{"question": "q", "answer": "a", "image": "c.png", %s}', IMAGE_FIELDS),
    "a row with a video": ('{"question": "q", "answer": "a", "video": "v.mp4", %s}', VIDEO_FIELDS),
    "a column": (
        '{"question": "q", "answer": "a", "video": {"path": "v.mp4", %s}}',
        VIDEO_FIELDS,
    ),
    "a part": (TALK % ('{"type": "video", "video": "v.mp4", %s}', ANSWER), VIDEO_FIELDS),
    "frames": (
        TALK % ('{"type": "video", "frames": ["c.png", "c.png"], %s}', ANSWER),
        VIDEO_FIELDS,
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_value_is_used_or_told(place: str, loaded: Loaded, tmp_path: Path) -> None:
    processor, (form, fields) = loaded[1], PLACES[place]
    noise(60, 40).save(tmp_path / "c.png")
    (tmp_path / "v.mp4").write_bytes(encode_video(3))
    lines = [form % f"{json.dumps(field)}: {value}" for field in fields for value in VALUES]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    used, told = 0, list[str]()
    for row in read_rows(tmp_path / "rows.jsonl"):
        try:
            sample = make_sample(row)
            messages = parse_messages(sample.whole)
            processor(messages, sample.image_options, add_generation_prompt=False)
            used += 1
        except SmolVLMError as error:
            told.append(str(error))
    assert all(text.isprintable() and len(text) < 600 for text in told)
    assert len(fields) <= used == len(lines) - len(told) < len(lines)  # null at least
