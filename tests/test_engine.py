"""The token loop: joined stream = generate, every way to end, and errors that leave the model
usable."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, generate, load, stream_generate
from smolvlm_mlx.errors import GenerationError, PromptError
from smolvlm_mlx.events import Reading, Statistics, Text
from smolvlm_mlx.generation import image_cache, prefill
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.image_cache import ImageCache
from smolvlm_mlx.generation.prefill import PromptReader
from smolvlm_mlx.generation.prefix_cache import PrefixCache
from smolvlm_mlx.generation.scheduler import Scheduler
from smolvlm_mlx.generation.stream import Stream, TextStream
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.model import KVCache, QuantizedKVCache, optimize
from smolvlm_mlx.model.language import LanguageModel
from tests.support.checkpoints import Loaded
from tests.support.pictures import noise

import mlx.core as mx
import numpy as np
import pytest

SHORT = Options(max_tokens=12)
PICTURE = noise(90, 60)


def finish(stream: Any) -> str:
    return "".join(stream)


def ids_of(loaded: Loaded, question: Any = "Hello", options: Options = SHORT) -> list[int]:
    stream = stream_generate(*loaded, question, options)
    finish(stream)
    return stream.token_ids


@pytest.fixture
def ends(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes other tokens the ends of answers; none at first, so that lengths are known."""

    def use(*ids: int) -> None:
        monkeypatch.setattr(loaded[1].tokenizer, "end_ids", frozenset(ids))

    use()
    return use


def test_stream_generate_and_statistics(loaded: Loaded, ends: Any) -> None:
    stream = stream_generate(*loaded, "What is this?", SHORT, images=[PICTURE])
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == generate(*loaded, "What is this?", SHORT, images=[PICTURE])
    text = loaded[1].tokenizer.decode(stream.token_ids)
    assert "".join(pieces) == text.rstrip("\ufffd")  # it is cut off in a character
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": PICTURE},
                {"type": "text", "text": "What is this?"},
            ],
        }
    ]
    inputs = loaded[1](messages)
    for question in (messages, inputs):
        again = stream_generate(*loaded, question, SHORT)
        assert (finish(again), again.token_ids) == ("".join(pieces), stream.token_ids)
    found = stream.statistics
    assert (found.finish_reason, found.generated_tokens, len(stream.token_ids)) == (
        "length",
        12,
        12,
    )
    assert found.prompt_tokens == len(inputs.input_ids)
    assert found.tiles == len(inputs.tiles) > 1
    assert found.image_tokens == found.tiles * loaded[1].tokens_per_tile
    assert (
        min(
            found.preprocess_seconds,
            found.vision_seconds,
            found.prefill_seconds,
            found.decode_seconds,
        )
        > 0
    )
    assert found.tokens_per_second == pytest.approx(11 / found.decode_seconds)
    assert found.peak_memory > 0


def test_statistics_in_a_line() -> None:
    statistics = Statistics("stop", 200, 0, 64, 3, 31, 0.25, 0.15, 0.1, 0.75, 2_000_000_000)
    phases = "preprocess 250 ms · vision 150 ms · prefill 100 ms"
    assert (
        statistics.describe()
        == "3 tiles · 200 + 31 tokens · first after 0.50 s · then 40.0 tokens/s · 2.00 GB"
    )
    assert statistics.describe_phases() == f"{phases} · 40.0 tokens/s"
    cut = replace(
        statistics,
        finish_reason="length",
        reused_tokens=7,
        tiles=0,
        generated_tokens=1,
        peak_memory=0,
    )
    assert (
        cut.describe()
        == "200 + 1 tokens, 7 reused · first after 0.50 s · cut off at the longest length"
    )
    assert cut.describe_phases() == phases
    assert Statistics().describe() == "0 + 0 tokens · first after 0.00 s · interrupted"


def test_one_token_has_no_speed(loaded: Loaded, ends: Any) -> None:
    stream = stream_generate(*loaded, "Hi", Options(max_tokens=1))
    finish(stream)
    assert (stream.statistics.generated_tokens, stream.statistics.tokens_per_second) == (1, 0.0)
    assert (stream.statistics.tiles, stream.statistics.image_tokens) == (0, 0)


def test_it_stops_at_each_end_token(loaded: Loaded, ends: Any) -> None:
    ids = ids_of(loaded)
    for end in set(ids):
        ends(end)
        stream = stream_generate(*loaded, "Hello", SHORT)
        text = finish(stream)
        assert stream.token_ids == ids[: ids.index(end) + 1]
        assert text == loaded[1].tokenizer.decode(stream.token_ids[:-1])
        assert stream.statistics.finish_reason == "stop"
        assert stream.statistics.generated_tokens == len(stream.token_ids)


def test_it_stops_at_stop_strings(loaded: Loaded, ends: Any) -> None:
    whole = generate(*loaded, "Hello", SHORT)
    for start in range(len(whole)):
        for length in (1, 3):
            stop = whole[start : start + length]
            stream = stream_generate(*loaded, "Hello", replace(SHORT, stop=(stop, "never")))
            assert finish(stream) == whole[: whole.find(stop)]
            assert stream.statistics.finish_reason == "stop"
    stream = stream_generate(*loaded, "Hello", replace(SHORT, stop=(whole + "x",)))
    assert finish(stream) == whole
    assert stream.statistics.finish_reason == "length"


def test_context(loaded: Loaded, ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = loaded
    prompt = len(processor([{"role": "user", "content": "Hello"}]).input_ids)
    config = model.config
    text = replace(config.text_config, max_position_embeddings=prompt + 3)
    monkeypatch.setattr(model, "config", replace(config, text_config=text))
    stream = stream_generate(*loaded, "Hello", SHORT)
    finish(stream)
    assert (len(stream.token_ids), stream.statistics.finish_reason) == (3, "length")

    def no_work(*args: Any) -> None:
        raise AssertionError("work on the model")

    monkeypatch.setattr(LanguageModel, "hidden_states", no_work)
    for question, images in (("Hello you", []), ("Hi", [PICTURE])):
        with pytest.raises(GenerationError) as raised:
            stream_generate(*loaded, question, SHORT, images=images)
        have = processor([{"role": "user", "content": "Hello you"}]).input_ids
        assert (f"the prompt has {len(have)} tokens (0 tiles)" in str(raised.value)) == (not images)
        assert f"context of {prompt + 3}" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_pictures_need_a_place(loaded: Loaded) -> None:
    with pytest.raises(PromptError, match="1 images, and 0 parts"):
        stream_generate(*loaded, [{"role": "user", "content": "Hi"}], images=[PICTURE])
    with pytest.raises(PromptError):
        stream_generate(*loaded, [])


@pytest.mark.parametrize("bits", [8, 4])
def test_keys_and_values_are_kept_in_so_many_bits(bits: Any, loaded: Loaded, ends: Any) -> None:
    kept = dict[Any, list[KVCache]]()
    for each in (None, bits):
        engine = Engine(*loaded)
        stream = engine.stream("Hello", replace(SHORT, kv_bits=each))
        list(stream)
        layers, count = engine.prompts.prefix_cache.pop([*stream.row.keys, -1], each)
        assert layers is not None
        kept[each] = layers
    nbytes = sum(array.nbytes for layer in kept[bits] for array in layer.state)
    # Of 32 numbers, with a scale and a bias in float32; keys and values of 3 layers and 2 heads.
    assert nbytes == (32 * bits // 8 + 8) * 2 * 3 * 2 * (count + SHORT.max_tokens - 1)
    # What they say is the same, but for a step of their scale; of the first layer, whose input is.
    exact, rough = (
        np.array(kept[each][0].update_and_fetch(*[mx.zeros((1, 2, 1, 32))] * 2)[0])[..., :count, :]
        for each in (None, bits)
    )
    groups = exact.max(-1, keepdims=True) - exact.min(-1, keepdims=True)
    assert (abs(exact - rough) <= groups / (2**bits - 1)).all()
    assert not np.array_equal(exact, rough)


def test_repetition_penalty(loaded: Loaded, ends: Any) -> None:
    plain = ids_of(loaded, options=Options(max_tokens=20))
    penalized = ids_of(loaded, options=Options(max_tokens=20, repetition_penalty=3.0))
    assert len(penalized) == 20
    assert penalized != plain
    assert len(set(penalized)) >= len(set(plain))


def test_seeds(loaded: Loaded, ends: Any) -> None:
    def sampled(seed: int) -> list[int]:
        return ids_of(loaded, options=replace(SHORT, temperature=1.5, top_p=0.95, seed=seed))

    assert sampled(3) == sampled(3)
    assert sampled(3) != sampled(4)
    assert ids_of(loaded, options=replace(SHORT, temperature=1.5, top_k=1)) == ids_of(loaded)


def test_special_tokens_in_the_text(loaded: Loaded, ends: Any) -> None:
    tokenizer = loaded[1].tokenizer
    for seed in range(5):
        options = replace(SHORT, temperature=10.0, seed=seed, skip_special_tokens=False)
        stream = stream_generate(*loaded, "Hello", options)
        assert finish(stream) == tokenizer.decode(stream.token_ids, skip_special_tokens=False)


def test_the_first_token_waits_for_no_other(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, steps = type(loaded[0].language_model), list[int]()
    run = kind.run

    def counted(self: LanguageModel, x: mx.array, caches: Any) -> mx.array:
        steps.append(x.shape[1])
        return run(self, x, caches)

    monkeypatch.setattr(kind, "run", counted)
    inputs = loaded[1]([{"role": "user", "content": "Hello"}])
    events = PromptReader(loaded[0]).answer(inputs, Row(SHORT))
    # Then the next is under way while one is read.
    assert [len(steps) for event in events if isinstance(event, Text)] == [1, *range(3, 13), 12]


def test_what_is_read_is_told(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and tiles, two at a time; what does not fill a chunk is left for the tiles."""
    patches = loaded[0].config.vision_config.patches_per_side ** 2
    monkeypatch.setattr(image_cache, "CHUNK", dict.fromkeys(image_cache.CHUNK, 2 * patches))
    video = {"type": "video", "frames": [noise(64, 64, seed) for seed in range(5)], "fps": 1}
    engine = Engine(*loaded)

    def told(part: Any) -> list[Reading]:
        events = engine.stream([{"role": "user", "content": [part]}], Options(max_tokens=1))
        return [each for each in events if isinstance(each, Reading) and each.what != "tokens"]

    read = [Reading(done, 5, "frames") for done in (0, 2)]
    assert told(video) == [*read, Reading(0, 1, "tiles"), Reading(1, 1, "tiles")]
    count = len({*loaded[1]([user_message("", [PICTURE])]).tile_digests})
    assert count > 4
    assert told({"type": "image", "image": PICTURE}) == [
        Reading(done, count, "tiles") for done in (*range(0, count, 2), count)
    ]
    assert told({"type": "image", "image": PICTURE}) == []


DEFAULTS: dict[Callable[..., Any], dict[str, object]] = {
    Engine: {"cache_folder": None, "conversations": 1, "image_cache_bytes": None},
    Engine.stream: {"schema": None, "reserve_tokens": 1, "keep_vision": True},
    stream_generate: {"keep_vision": True},
    ImageCache: {"folder": None, "memory_bytes": 256 * 2**20, "disk_bytes": 1024 * 2**20},
    PrefixCache: {"entries": 1, "most_bytes": 2048 * 2**20},
    PrefixCache.pop: {"kv_bits": None},
    PromptReader.room_after: {"reserve_tokens": 1},
    PromptReader.room_for: {"reserve_tokens": 1},
    PromptReader.read: {"reserve_tokens": 1, "keep_vision": True},
    PromptReader.answer: {"reserve_tokens": 1, "keep_vision": True},
    Scheduler: {"most_answers": 8, "most_waiting": 32},
    Stream.close: {"wait": False},
    TextStream.close: {"wait": False},
    KVCache: {"capacity": 256},
    LanguageModel.make_cache: {"capacity": 256},
    QuantizedKVCache: {"group_size": 64},
    load: {"fuse": True, "lazy": False},
    optimize: {"lazy": False},
}


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda each: each.__qualname__)
def test_what_is_not_said(function: Callable[..., Any]) -> None:
    parameters = signature(function).parameters
    defaults = {name: parameters[name].default for name in DEFAULTS[function]}
    assert defaults == DEFAULTS[function]


def test_what_is_computed_at_once() -> None:
    """Enough to fill a GPU, and no more than a CPU's memory is for."""
    assert image_cache.CHUNK == {"metal": 8192, "cuda": 8192, "cpu": 1024}
    assert prefill.CHUNK == {"metal": 2048, "cuda": 2048, "cpu": 256}
    assert prefill.LEAST_CHUNK == 64


# ---- what goes wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite(
    value: float, loaded: Loaded, ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling from them would silently give token 0."""
    healthy, rng = LanguageModel.logits, random.Random(0)
    for options in (
        SHORT,
        replace(SHORT, temperature=1.0, seed=1),
        replace(SHORT, repetition_penalty=1.2),
    ):
        for _ in range(6):
            bad, column = rng.randrange(12), rng.randrange(290)
            calls = iter(range(100))

            def logits(
                self: LanguageModel,
                x: mx.array,
                bad: int = bad,
                column: int = column,
                calls: Iterator[int] = calls,
            ) -> mx.array:
                values = healthy(self, x)
                if next(calls) == bad:
                    values[..., column] = value
                return values

            monkeypatch.setattr(LanguageModel, "logits", logits)
            stream = stream_generate(*loaded, "Hello", options)
            with pytest.raises(GenerationError, match="logits are not finite"):
                finish(stream)
            assert len(stream.token_ids) == stream.statistics.generated_tokens == bad
            monkeypatch.setattr(LanguageModel, "logits", healthy)
    assert len(ids_of(loaded)) == 12


def test_what_is_not_finite_is_not_reused(
    loaded: Loaded, ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As keys and values of a prompt that is asked again, when all is well again."""
    want, engine = ids_of(loaded), Engine(*loaded)
    kind = type(loaded[0].language_model)
    healthy = kind.run
    with monkeypatch.context() as patch:
        patch.setattr(kind, "run", lambda self, x, caches: healthy(self, x * float("nan"), caches))
        with pytest.raises(GenerationError, match="logits are not finite"):
            finish(engine.stream("Hello", SHORT))
    again = engine.stream("Hello", SHORT)
    list(again)
    assert again.token_ids == want


def test_weights_that_are_not_finite(tiny: Path) -> None:
    model, processor = load(tiny, "float32")
    model.language_model.norm.weight = model.language_model.norm.weight * float("nan")
    with pytest.raises(GenerationError, match="not finite"):
        generate(model, processor, "Hello", SHORT)


@pytest.mark.parametrize("places", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_leaving_at_any_place(places: int, loaded: Loaded, ends: Any) -> None:
    shorter = Options(max_tokens=6)
    want, rng = ids_of(loaded, options=shorter), random.Random(0)
    for number in range(places):
        after = rng.randrange(1, 6)
        stream = stream_generate(*loaded, "Hello", shorter)
        pieces = 0
        try:
            for _ in stream:
                pieces += 1
                if pieces == after and number % 2:
                    break
                if pieces == after:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert stream.token_ids == want[: len(stream.token_ids)]
        assert stream.statistics.generated_tokens == len(stream.token_ids) >= pieces
        if pieces == after and len(stream.token_ids) < len(want):
            assert stream.statistics.finish_reason == "interrupted"
    assert ids_of(loaded, options=shorter) == want


def test_an_interrupt_inside_the_model(
    loaded: Loaded, ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, healthy, rng = ids_of(loaded), LanguageModel.hidden_states, random.Random(0)
    for _ in range(25):
        at, calls = rng.randrange(12), iter(range(100))

        def interrupted(*args: Any, at: int = at, calls: Iterator[int] = calls) -> mx.array:
            if next(calls) == at:
                raise KeyboardInterrupt
            return healthy(*args)

        monkeypatch.setattr(LanguageModel, "hidden_states", interrupted)
        stream = stream_generate(*loaded, "Hello", SHORT)
        with pytest.raises(KeyboardInterrupt):
            finish(stream)
        assert stream.statistics.finish_reason == "interrupted"
        assert stream.token_ids == want[: stream.statistics.generated_tokens]
        monkeypatch.setattr(LanguageModel, "hidden_states", healthy)
    assert ids_of(loaded) == want
