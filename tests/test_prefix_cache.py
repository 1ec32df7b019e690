"""KV caches go to the prompts that begin like them, and conversations do not take them from each
other."""

from pathlib import Path

from smolvlm_mlx import Options, load, stream_generate
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.prefix_cache import PrefixCache, common, prefix_keys
from smolvlm_mlx.generation.stream import TextStream
from smolvlm_mlx.model import KVCache, QuantizedKVCache

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image


def layers(tokens: int, quantized: bool = False) -> list[KVCache]:
    made: list[KVCache] = [QuantizedKVCache(8) if quantized else KVCache(8) for _ in range(2)]
    for layer in made:
        layer.update_and_fetch(mx.ones((1, 1, tokens, 64)), mx.ones((1, 1, tokens, 64)))
    return made


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [("", "", 0), ("abc", "abd", 2), ("abc", "abc", 3), ("ab", "abc", 2), ("x", "abc", 0)],
)
def test_common(first: str, second: str, count: int) -> None:
    assert common([*first.encode()], [*second.encode()]) == count


def test_keys_name_tiles(tiny: Path) -> None:
    model, processor = load(tiny)
    picture, other = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    content = [{"type": "image", "image": image} for image in (picture, other, picture)]
    inputs = processor([{"role": "user", "content": content}])
    keys = prefix_keys(inputs, model.config.image_token_id, processor.tokens_per_tile)
    is_placeholder = inputs.input_ids == model.config.image_token_id
    assert [isinstance(key, bytes) for key in keys] == is_placeholder.tolist()
    names = [key for key in keys if isinstance(key, bytes)]
    assert names[:16] == names[-16:] == [names[0]] * 16
    assert len(set(names)) == 2


def test_the_longest_beginning_is_found_and_one_token_left() -> None:
    cache = PrefixCache(entries=3)
    cache.put([1, 2, 3], layers(3))
    cache.put([1, 2, 9, 9, 9], layers(5))
    assert cache.pop([7, 8]) == (None, 0)
    taken, count = cache.pop([1, 2, 3])
    assert taken is not None
    assert (count, [layer.offset for layer in taken]) == (2, [2, 2])
    taken, count = cache.pop([1, 2, 9, 9, 9, 4])
    assert taken is not None
    assert (count, taken[0].offset) == (5, 5)
    assert cache.pop([1, 2, 9, 9, 9, 4])[1] == 2  # it was taken out


def test_what_another_conversation_holds_is_not_taken_from_it() -> None:
    cache = PrefixCache(entries=2)
    cache.put([1, 2, 3, 4], layers(4))
    taken, count = cache.pop([1, 2, 5])
    assert taken is not None
    assert count == 2
    for layer in taken:
        layer.update_and_fetch(mx.zeros((1, 1, 3, 64)), mx.zeros((1, 1, 3, 64)))
    first, count = cache.pop([1, 2, 3, 4, 5])
    assert first is not None
    assert first[0].keys is not None
    assert count == 4
    np.testing.assert_array_equal(np.array(first[0].keys[..., :4, :]), np.ones((1, 1, 4, 64)))


def test_what_another_begins_with_takes_no_place() -> None:
    cache = PrefixCache(entries=3)
    for keys in ([7, 8], [1, 2], [1, 2, 3], [1, 2, 3]):
        cache.put(keys, layers(len(keys)))
    cache.put([1, 2, 3, 4], layers(4, quantized=True), 8)
    assert cache.pop([1, 2, 3, 4])[1] == 3
    assert cache.pop([1, 2, 3, 4, 5], 8)[1] == 4
    assert cache.pop([7, 8, 9])[1] == 2


def test_bounds() -> None:
    one = sum(array.nbytes for layer in layers(4) for array in layer.state)
    cache = PrefixCache(entries=9, most_bytes=2 * one)
    for number in range(4):
        cache.put([number, 0, 0, 0], layers(4))
    assert [cache.pop([number, 0, 0, 0])[1] for number in range(4)] == [0, 0, 3, 3]
    cache = PrefixCache(entries=9, most_bytes=1)
    cache.put([1, 2, 3, 4], layers(4))  # the last is held however large it is
    assert cache.pop([1, 2])[1] == 1
    for keys in ([1, 2, 3, 4], [5, 6, 7, 8]):
        cache.put(keys, layers(4))
    assert [cache.pop([*keys, 9])[1] for keys in ([1, 2, 3, 4], [5, 6, 7, 8])] == [0, 4]
    cache = PrefixCache()  # one conversation alone: it is taken out, and not copied
    cache.put([1, 2, 3, 4], layers(4))
    assert [cache.pop([1, 2, 9])[1] for _ in range(2)] == [2, 0]


def test_an_interrupt_between_two_layers_leaves_the_tokens_that_all_have() -> None:
    cache = PrefixCache()
    cache.put([1, 2, 3, 4], [*layers(3), *layers(2), *layers(4)])
    taken, count = cache.pop([1, 2, 3, 4])
    assert taken is not None
    assert (count, [layer.offset for layer in taken]) == (2, [2] * 6)


def test_nothing_takes_no_place() -> None:
    cache = PrefixCache()
    cache.put([1, 2, 3], layers(3))
    cache.put([7], [*layers(1), *layers(0)])
    assert cache.pop([1, 2, 3, 4])[1] == 3


def test_quantized_caches_are_apart() -> None:
    cache = PrefixCache(entries=4)
    cache.put([1, 2, 3], layers(3, quantized=True), 8)
    assert cache.pop([1, 2, 3])[1] == 0
    taken, count = cache.pop([1, 2, 9], 8)
    assert taken is not None
    assert (count, taken[0].offset) == (2, 2)
    keys, _ = taken[0].update_and_fetch(mx.zeros((1, 1, 1, 64)), mx.zeros((1, 1, 1, 64)))
    assert keys[0, 0, :, 0].tolist() == [1, 1, 0]
    taken, _ = cache.pop([1, 2, 3, 4], 8)
    assert taken is not None
    assert taken[0].update_and_fetch(mx.zeros((1, 1, 1, 64)), mx.zeros((1, 1, 1, 64)))[0][
        0, 0, :, 0
    ].tolist() == [
        *(1, 1, 1),
        0,
    ]


@pytest.mark.usefixtures("on_the_cpu")
def test_several_conversations_share_one_cache(tiny: Path) -> None:
    model, processor = load(tiny, "float32")
    engine, options = Engine(model, processor, conversations=3), Options(max_tokens=4)
    conversations = [
        [{"role": "user", "content": f"Question {number} of three?"}] for number in range(3)
    ]
    for turn in range(3):
        for messages in conversations:
            stream = TextStream(engine.stream(messages, options))
            text = "".join(stream)
            fresh = stream_generate(model, processor, messages, options)
            assert text == "".join(fresh)
            assert (stream.statistics.reused_tokens > stream.statistics.prompt_tokens // 2) == (
                turn > 0
            )
            messages += [
                {"role": "assistant", "content": text.strip()},
                {"role": "user", "content": "And?"},
            ]
