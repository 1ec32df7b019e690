"""Prompts are read chunk by chunk, into caches with room for their answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from smolvlm_mlx import Options, generate, load, stream_generate
from smolvlm_mlx.errors import ContextFullError
from smolvlm_mlx.events import Reading, Work
from smolvlm_mlx.generation import engine as engine_module
from smolvlm_mlx.generation import image_cache
from smolvlm_mlx.generation import prefill as prefill_module
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.prefill import PromptReader, make_cache, prefill_in_steps
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.model import KVCache, QuantizedKVCache, SmolVLM
from smolvlm_mlx.model.language import LanguageModel
from tests.support.bundled import BUNDLED
from tests.support.checkpoints import Loaded
from tests.support.pictures import noise

import mlx.core as mx
import numpy as np
import pytest


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of each chunk that goes through the decoder; 256 tokens at most."""
    found, run = list[tuple[int, int]](), LanguageModel.hidden_states

    def counted(self: Any, inputs: Any, cache: Any, embeddings: Any = None) -> mx.array:
        if embeddings is not None:
            found.append(embeddings.shape[:2])
        return run(self, inputs, cache, embeddings)

    monkeypatch.setattr(LanguageModel, "hidden_states", counted)
    monkeypatch.setattr(prefill_module, "CHUNK", dict.fromkeys(prefill_module.CHUNK, 256))
    return found


@pytest.mark.parametrize(
    ("rows", "tokens", "chunks"),
    [
        (1, 256, [256]),
        (1, 600, [256, 256, 88]),
        (2, 300, [128, 128, 44]),
        (3, 90, [85, 5]),
        (5, 130, [64, 64, 2]),  # of several the least
    ],
)
def test_a_chunk_is_of_so_many_tokens(
    rows: int,
    tokens: int,
    chunks: list[int],
    loaded: Loaded,
    sizes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which is computed before the next."""
    model, ids = loaded[0], np.random.default_rng(0).integers(3, 250, (rows, tokens))
    evaluate, done = Mock(wraps=mx.eval), list[int]()
    monkeypatch.setattr(mx, "eval", evaluate)
    for read in prefill_in_steps(model, mx.array(ids), None, make_cache(model, tokens)):
        done.append(read)
        assert evaluate.call_count == len(done)
    assert sizes == [(rows, chunk) for chunk in chunks]
    assert done == np.cumsum(chunks).tolist()


def test_of_a_prompt_it_is_told_how_much_is_read(
    loaded: Loaded, sizes: list[tuple[int, int]]
) -> None:
    engine, options = Engine(*loaded), Options(max_tokens=1)

    def told(question: str) -> tuple[list[int], int]:
        stream = engine.stream(question, options)
        read = [event for event in stream if isinstance(event, Reading)]
        total = stream.statistics.prompt_tokens
        assert {(event.what, event.total) for event in read} == {("tokens", total)}
        return [event.done for event in read], total

    done, total = told("Hello there! " * 40)
    assert total > 512
    assert done == [0, *range(256, total, 256), total]
    reused = total - 1
    assert told("Hello there! " * 40) == ([0, total], total)
    assert sizes[-1] == (1, total - reused)


def test_a_cache_has_room_for_prompt_and_answer(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it does not grow while tokens come."""
    monkeypatch.setattr(loaded[1].tokenizer, "end_ids", frozenset())
    engine, options = Engine(*loaded), Options(max_tokens=21)
    stream = engine.stream("Hello", options)
    list(stream)
    layers, _ = engine.prompts.prefix_cache.pop([*stream.row.keys, -1])
    assert layers is not None
    assert {layer.keys.shape[2] for layer in layers} == {stream.statistics.prompt_tokens + 21}
    made = list[KVCache]()

    def kept(*arguments: Any) -> list[KVCache]:
        made.extend(make_cache(*arguments))
        return made

    monkeypatch.setattr(engine_module, "make_cache", kept)
    inputs = loaded[1]([{"role": "user", "content": "Hello"}])
    engine.batch([inputs], options)
    assert {layer.keys.shape[2] for layer in made} == {len(inputs.input_ids) + 21}


def test_what_is_read_is_computed(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its seconds would be another phase's."""
    evaluate = Mock(wraps=mx.eval)
    monkeypatch.setattr(mx, "eval", evaluate)
    inputs = loaded[1]([user_message("What?", noise(90, 60))])
    tiles = image_cache.encode_tiles(loaded[0], inputs.tiles, inputs.settings)
    assert evaluate.call_args.args[0] is tiles
    reading = Work(PromptReader(loaded[0]).read(inputs, Row(Options(max_tokens=4))))
    for _ in reading:
        pass
    _, logits = reading.result
    assert evaluate.call_args.args[0] is logits


def test_tiles_are_named_once(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are cut."""
    inputs = loaded[1]([user_message("What?", noise(90, 60))])
    again = Mock(side_effect=AssertionError)
    monkeypatch.setattr(image_cache, "digest_tiles", again)
    engine, options = Engine(*loaded), Options(max_tokens=2)
    ((text, _),) = engine.batch([inputs], options)
    assert generate(*loaded, inputs, options) == text


@pytest.mark.parametrize("keep", [True, False])
def test_the_tower_is_let_go_where_it_is_told(
    keep: bool, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its memory; text is answered as before."""
    model, processor = load(tiny, "float32")
    clear_cache = Mock(wraps=mx.clear_cache)
    monkeypatch.setattr(mx, "clear_cache", clear_cache)
    options, picture = Options(max_tokens=4), noise(90, 60)
    want = "".join(stream_generate(model, processor, "What?", options, images=picture))
    given = {"images": picture, "keep_vision": keep}
    assert "".join(stream_generate(model, processor, "What?", options, **given)) == want  # type: ignore[arg-type]
    assert ("vision_model" in model, "connector" in model) == (keep, keep)
    assert clear_cache.call_count == (0 if keep else 1)
    assert generate(model, processor, "Hi", options) == generate(*load(tiny), "Hi", options)


@pytest.mark.parametrize(("head_dim", "group_size"), [(32, 32), (64, 64), (128, 64)])
def test_groups_of_bits_lie_within_a_head(head_dim: int, group_size: int) -> None:
    model = SmolVLM(replace(BUNDLED, text_config=replace(BUNDLED.text_config, head_dim=head_dim)))
    for layer in make_cache(model, 9, kv_bits=4):
        assert isinstance(layer, QuantizedKVCache)
        assert (layer.bits, layer.group_size) == (4, group_size)
        keys, _ = layer.update_and_fetch(*[mx.ones((1, 1, 3, head_dim))] * 2)
        assert keys.shape == (1, 1, 3, head_dim)


def test_room_is_for_one_token_at_least(loaded: Loaded) -> None:
    reader = PromptReader(loaded[0])
    context = loaded[0].config.text_config.max_position_embeddings
    assert reader.room_for(context - 1, 0) == 1
    assert reader.room_for(context - 5, 0, 5) == 5
    for tokens, reserved in ((context, 1), (context - 4, 5)):
        with pytest.raises(ContextFullError, match=rf"has {tokens} tokens \(3 tiles\), which"):
            reader.room_for(tokens, 3, reserved)
    inputs = loaded[1]([{"role": "user", "content": "Hello"}])
    long = replace(inputs, input_ids=np.full(context - 1, 5, np.int32))
    assert reader.room_after(long) == 1
    with pytest.raises(ContextFullError):
        reader.room_after(long, 2)
