"""What is told of an answer, against what was counted beside it: tokens, tiles, seconds of a clock
that only work moves, memory."""

import gc
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from smolvlm_mlx import Chat, Options, device
from smolvlm_mlx.events import End, Event, Statistics, Text
from smolvlm_mlx.generation import image_cache, prefill
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.scheduler import Job, Scheduler
from smolvlm_mlx.inputs import media
from smolvlm_mlx.inputs.camera import Frame
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.model.language import LanguageModel
from smolvlm_mlx.server.openai import usage
from smolvlm_mlx.tasks.live import Live
from tests.support.checkpoints import Loaded
from tests.support.http import Running, question
from tests.support.pictures import PICTURE, data_url, noise

import mlx.core as mx
import pytest
from PIL import Image

SHORT = Options(max_tokens=4)
CUT, ENCODE, READ, STEP = 1.0, 10.0, 100.0, 0.125  # seconds


@dataclass
class Clock:
    """Seconds that pass by work alone."""

    now: float = 0.0


@pytest.fixture
def clock(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Cutting a picture takes CUT, a chunk of tiles ENCODE, a chunk of a prompt READ, a token after
    it STEP. No answer ends by itself."""
    clock = Clock()

    def takes(owner: Any, name: str, seconds: Callable[..., float]) -> None:
        method = getattr(owner, name)

        def call(*arguments: Any, **more: Any) -> Any:
            clock.now += seconds(*arguments)
            return method(*arguments, **more)

        monkeypatch.setattr(owner, name, call)

    takes(media, "make_tiles", lambda *_: CUT)
    takes(SmolVLM, "encode_images", lambda *_: ENCODE)
    takes(LanguageModel, "hidden_states", lambda self, ids, *_: READ if ids is None else STEP)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(image_cache, "CHUNK", dict.fromkeys(image_cache.CHUNK, 5 * 64))  # 5 tiles
    monkeypatch.setattr(prefill, "CHUNK", dict.fromkeys(prefill.CHUNK, 100))
    monkeypatch.setattr(loaded[1].tokenizer, "end_ids", frozenset())
    return clock


def asked(*pictures: Image.Image) -> Any:
    """A question; its pictures are not cut yet."""
    return [user_message("What?", pictures)]


def told(found: Statistics) -> tuple[float, ...]:
    return (
        found.preprocess_seconds,
        found.vision_seconds,
        found.prefill_seconds,
        found.decode_seconds,
    )


def test_each_phase_has_its_own_seconds(loaded: Loaded, clock: Clock) -> None:
    inputs = loaded[1](asked(PICTURE))
    tokens, tiles = len(inputs.input_ids), len(inputs.tiles)
    different = len({*inputs.tile_digests})
    encoded, chunks = -(-different // 5), -(-tokens // 100)
    assert min(encoded, chunks) > 1
    engine, clock.now = Engine(*loaded), 0.0
    stream = engine.stream(asked(PICTURE), SHORT)
    events = list(stream)
    found = stream.statistics
    # The first token comes with the prompt, and the last goes through no layer.
    assert told(found) == (CUT, ENCODE * encoded, READ * chunks, STEP * 3)
    assert found.first_token_seconds == CUT + ENCODE * encoded + READ * chunks
    assert found.tokens_per_second == 1 / STEP
    assert (found.prompt_tokens, found.reused_tokens, found.tiles) == (tokens, 0, tiles)
    assert found.image_tokens == inputs.input_ids.tolist().count(loaded[0].config.image_token_id)
    assert found.generated_tokens == sum(isinstance(event, Text) for event in events) == 4
    assert isinstance(events[-1], End)
    assert events[-1].statistics is found
    again = engine.stream(asked(PICTURE), SHORT)
    list(again)
    assert told(again.statistics) == (CUT, 0, READ, STEP * 3)  # nothing to encode, a token to read
    assert again.statistics.reused_tokens == tokens - 1


def test_a_videos_seconds_are_those_of_its_frames(loaded: Loaded, clock: Clock) -> None:
    frames = [noise(64, 64, number) for number in range(12)]
    part = {"type": "video", "frames": frames, "fps": 1}
    stream = Engine(*loaded).stream([{"role": "user", "content": [part]}], SHORT)
    list(stream)
    read = -(-stream.statistics.prompt_tokens // 100)
    assert told(stream.statistics) == (CUT * 12, ENCODE * 3, READ * read, STEP * 3)


def test_where_several_answers_are_made_each_has_its_own_numbers(
    loaded: Loaded, clock: Clock
) -> None:
    engine = Engine(*loaded)
    scheduler = Scheduler(lambda: engine)
    scheduler.start()
    over = threading.Event()

    def put(event: Event | Any) -> None:
        if isinstance(event, End):
            over.set()

    inputs = loaded[1](asked(PICTURE))
    clock.now = 0.0
    job = Job(inputs, SHORT, put)
    scheduler.submit(job)
    assert over.wait(60)
    scheduler.close()
    encoded, chunks = -(-len({*inputs.tile_digests}) // 5), -(-len(inputs.input_ids) // 100)
    assert told(job.statistics) == (0, ENCODE * encoded, READ * chunks, STEP * 3)
    assert job.statistics.generated_tokens == 4


def test_a_live_frame_has_the_seconds_of_its_camera(loaded: Loaded, clock: Clock) -> None:
    live = Live(*loaded, "What?", SHORT)
    description = live.describe(Frame(PICTURE, seconds=0.5))
    "".join(description.stream)
    read = -(-description.statistics.prompt_tokens // 100)
    assert told(description.statistics) == (CUT + 0.5, ENCODE, READ * read, STEP * 3)


def test_a_conversation_reuses_all_it_has_read(loaded: Loaded, clock: Clock) -> None:
    chat = Chat(*loaded, SHORT)
    first = chat.ask("What?", [PICTURE])
    "".join(first)
    read = chat.processor(chat.messages[:1]).input_ids.tolist() + first.token_ids[:-1]
    second = chat.ask("And?")
    "".join(second)
    asked = chat.processor(chat.messages[:-1]).input_ids.tolist()
    reused = second.statistics.reused_tokens
    assert reused >= first.statistics.prompt_tokens
    assert read[:reused] == asked[:reused]
    assert reused == len(read) or read[reused] != asked[reused]


def test_the_peak_of_memory_is_that_of_the_answer_alone(loaded: Loaded) -> None:
    gc.collect()  # models of other tests
    mx.clear_cache()
    already = mx.get_active_memory()
    before = mx.zeros((25, 2**20))
    mx.eval(before)  # 100 MB, which are gone again
    del before
    mx.clear_cache()
    assert mx.get_peak_memory() >= already + 2**20 * 100
    stream = Engine(*loaded).stream("Hello", SHORT)
    list(stream)
    # At least the keys and values of 3 layers, 2 heads and 32 numbers of 4 bytes.
    least = 2 * 3 * 2 * 32 * 4 * (stream.statistics.prompt_tokens + 3)
    assert least <= stream.statistics.peak_memory - already < 2**20 * 100
    assert 0 <= stream.statistics.peak_memory - mx.get_peak_memory() <= device.most_freed()


# ---- what the API tells


def test_usage_has_each_number_under_its_name() -> None:
    found = Statistics("length", 500, 300, 208, 13, 21, 1.00004, 2.00004, 4.00004, 9.99, 0)
    note = "a note"
    about = "13 tiles · 500 + 21 tokens, 300 reused · first after 7.00 s · then 2.0 tokens/s"
    assert usage([found], [note]).model_dump() == {
        "prompt_tokens": 500,
        "completion_tokens": 21,
        "total_tokens": 521,
        "prompt_tokens_details": {"cached_tokens": 300, "image_tokens": 208},
        "timing": {
            "tiles": 13,
            "preprocess": 1.0,
            "vision": 2.0,
            "prefill": 4.0,
            "first_token": 7.0001,
            "tokens_per_second": 2.0,
            "about": f"{about} · cut off at the longest length · {note}",
        },
    }


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (["stop", "stop"], ""),
        (["stop", "length"], " · cut off at the longest length"),
        (["interrupted", "stop", "length"], " · interrupted"),
    ],
)
def test_several_answers_are_told_of_in_one_line(ends: list[Any], said: str) -> None:
    several = [Statistics(end, 9, generated_tokens=3, decode_seconds=2.0) for end in ends]
    about = usage(several).timing.about
    speed = (3 * len(ends) - 1) / (2 * len(ends))
    counts = f"9 + {3 * len(ends)} tokens"
    assert about == f"{counts} · first after 0.00 s · then {speed:.1f} tokens/s{said}"


NOTHING = "0 + 0 tokens · first after 0.00 s · interrupted"


@pytest.mark.parametrize(
    ("found", "line", "phases"),
    [
        (Statistics(), NOTHING, "preprocess 0 ms · vision 0 ms · prefill 0 ms"),
        (
            Statistics("stop", 500, 300, 208, 13, 21, 1.0, 2.0, 4.0, 10.0, 3_000_000_000),
            "13 tiles · 500 + 21 tokens, 300 reused · first after 7.00 s · then 2.0 tokens/s · "
            "3.00 GB",
            "preprocess 1000 ms · vision 2000 ms · prefill 4000 ms · 2.0 tokens/s",
        ),
        (
            Statistics("length", 5, generated_tokens=2, decode_seconds=0.5),
            "5 + 2 tokens · first after 0.00 s · then 2.0 tokens/s · cut off at the longest length",
            "preprocess 0 ms · vision 0 ms · prefill 0 ms · 2.0 tokens/s",
        ),
    ],
)
def test_what_an_answer_took_is_a_line_for_people(
    found: Statistics, line: str, phases: str
) -> None:
    assert (found.describe(), found.describe_phases()) == (line, phases)


def test_nothing_is_counted_at_first() -> None:
    found = asdict(Statistics())
    assert (found.pop("finish_reason"), found.pop("encoded_tiles")) == ("interrupted", set())
    assert set(found.values()) == {0}


def last(answer: Any) -> Any:
    """The last thing that a stream holds before its end."""
    return json.loads(answer.text.split("data: ")[-2])


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_told_what_it_took(stream: bool, server: Running, clock: Clock) -> None:
    picture = noise(80 + stream, 60)  # which no test had before
    asked = question("What?", data_url(picture), max_tokens=4, stream=stream)
    asked |= {"stream_options": {"include_usage": True}} if stream else {}
    inputs = server.service.processor([user_message("What?", [picture])])
    tokens, placeholder = inputs.input_ids.tolist(), server.service.processor.tokenizer.added
    for cached in (None, len(tokens) - 1):
        clock.now = 5.0
        answer = server.complete(asked)
        found = (last(answer) if stream else answer.json())["usage"]
        assert found["prompt_tokens"] == len(tokens)
        assert found["total_tokens"] == len(tokens) + found["completion_tokens"]
        details, timing = found["prompt_tokens_details"], found["timing"]
        assert details["image_tokens"] == tokens.count(placeholder["<image>"])
        assert timing["tiles"] == len(inputs.tiles)
        assert timing["preprocess"] == (CUT if cached is None else 0)  # the second is the same
        if cached is not None:
            assert details["cached_tokens"] == cached
            assert (timing["vision"], timing["prefill"]) == (0, READ)
        assert timing["first_token"] == sum(
            timing[phase] for phase in ("preprocess", "vision", "prefill")
        )
        assert timing["tokens_per_second"] == 1 / STEP
