"""Numbers: those of transformers (tests/goldens/model.json, model_16bit.json), and the fast paths
equal to the slow one."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from convert.random_checkpoint import TILE, make
from smolvlm_mlx import device, load
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.generation.prefill import prefill
from smolvlm_mlx.model import BatchKVCache, KVCache, QuantizedKVCache, SmolVLM, optimize
from smolvlm_mlx.model.activations import gelu_tanh, swiglu
from smolvlm_mlx.model.fast import cpu, gpu, kernels
from smolvlm_mlx.model.language import Attention, LanguageModel
from tests.support.bundled import BUNDLED
from tests.support.checkpoints import copy

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

GOLDENS, GOLDENS_16BIT = (
    json.loads((Path(__file__).parent / "goldens" / name).read_text())
    for name in ("model.json", "model_16bit.json")
)
# A GPU's float32 products are not a CPU's.
ATOL = 1e-4 if device.name() == "cpu" else 5e-3
# In 16 bits each rounding is off by 0.29 of the type's epsilon (1 / sqrt(12), the root of the mean
# square). About 60 follow one another through five layers, on both sides: 0.29 * sqrt(2 * 60) =
# 3.2. What is measured is 3.6 at most, in either type.
EPSILONS = 6


def pattern(tiles: int) -> mx.array:
    """Normalized tiles, as in convert/goldens/model.py."""
    n, y, x, c = np.meshgrid(range(tiles), range(TILE), range(TILE), range(3), indexing="ij")
    levels = ((n * 37 + y * 5 + x * 3 + c * 50 + (x * y) // 7) % 256).astype(np.uint8)
    return mx.array(((levels / 255 - 0.5) / 0.5).astype(np.float32))


@pytest.fixture(params=["smolvlm", "idefics3"])
def golden(
    request: pytest.FixtureRequest, tiny: Path, tiny_v1: Path
) -> tuple[dict[str, Any], Path]:
    return GOLDENS[request.param], tiny if request.param == "smolvlm" else tiny_v1


def close(have: mx.array, want: list[float]) -> None:
    np.testing.assert_allclose(np.array(have).flatten(), want, rtol=0, atol=ATOL)


def load_as(form: str, folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> SmolVLM:
    """Plain, fast on this device, or with what is fast on a GPU."""
    model, _ = load(folder, dtype, fuse=form == "fast")
    if form == "fast on a GPU":
        with monkeypatch.context() as patch:
            patch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
            optimize(model)
    return model


def stages(model: SmolVLM, golden: dict[str, Any]) -> dict[str, mx.array]:
    """What convert/goldens/model.py keeps of each stage."""
    pixel_values = pattern(3)
    return {
        "image_features": model.vision_model(pixel_values)[:, ::21, ::32],
        "image_tokens": model.encode_images(pixel_values)[:, ::5, ::32],
        "logits": model(mx.array([golden["input_ids"]]), pixel_values)[0, ::16, ::16],
        "text_logits": model(mx.array([golden["text_input_ids"]]))[0, ::4, ::16],
    }


FORMS = ["plain", "fast", "fast on a GPU"]


@pytest.mark.parametrize("form", FORMS)
def test_stages_and_logits_are_the_references(
    golden: tuple[dict[str, Any], Path], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, folder = golden
    model = load_as(form, folder, "float32", monkeypatch)
    joined = form == "fast on a GPU" or (form == "fast" and device.name() != "cpu")
    assert ("qkv_proj" in model.language_model.layers[0].self_attn) == joined
    for name, have in stages(model, want).items():
        close(have, want[name])


SCALED: list[dict[str, object]] = [
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
]


@pytest.mark.parametrize("scaling", SCALED, ids=["linear", "llama3"])
def test_scaled_positions_turn_by_their_periods(
    tiny: Path, tmp_path: Path, scaling: dict[str, object]
) -> None:
    """As the formula has it: halves x, y become x cos - y sin, y cos + x sin."""
    text = json.loads((tiny / "config.json").read_text())["text_config"]
    folder = copy(tiny, tmp_path / "a", text_config={**text, "rope_scaling": scaling})
    model, _ = load(folder, "float32", fuse=False)
    attention, periods = (
        model.language_model.layers[0].self_attn,
        model.config.text_config.rope_periods,
    )
    x = pattern(5)[0, :1, :8, :1] * mx.arange(1, 33, dtype=mx.float32)  # (1, 8, 32)
    angles = np.arange(70, 78)[:, None] / np.array(periods)
    left, right = np.split(np.array(x), 2, axis=-1)
    want = np.concatenate(
        [
            left * np.cos(angles) - right * np.sin(angles),
            right * np.cos(angles) + left * np.sin(angles),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(np.array(attention.rope(x[None], 70)[0]), want, atol=1e-4)


@pytest.mark.parametrize("scaling", SCALED, ids=["linear", "llama3"])
def test_scaled_positions_are_the_same_in_all_forms(
    tiny: Path, tmp_path: Path, scaling: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.loads((tiny / "config.json").read_text())["text_config"]
    folder = copy(tiny, tmp_path / "a", text_config={**text, "rope_parameters": scaling})
    ids, want = GOLDENS["smolvlm"]["text_input_ids"], None
    unscaled = load(tiny, "float32", fuse=False)[0](mx.array([ids]))
    for form in FORMS:
        model = load_as(form, folder, "float32", monkeypatch)
        whole, cache = model(mx.array([ids])), model.language_model.make_cache()
        steps = mx.concatenate([model.language_model(mx.array([[id]]), cache) for id in ids], 1)
        want = whole if want is None else want
        for have in (whole, steps):
            assert float(mx.abs(have - want).max()) < 2e-5
    assert want is not None
    assert float(mx.abs(unscaled - want).max()) > 1e-2


def distance(have: mx.array, want: list[float]) -> float:
    """Of all numbers together, in epsilons of the type that `have` is in: what became float32 on
    its way is far off."""
    numbers = np.array(have.astype(mx.float32)).flatten()
    return float(np.linalg.norm(numbers - want) / np.linalg.norm(want) / mx.finfo(have.dtype).eps)


def far_in_16_bits(model: SmolVLM, model_type: str, dtype: str) -> dict[str, float]:
    """Stages that are not the reference's, with their distances; the decoder also token by
    token."""
    golden, want = GOLDENS[model_type], GOLDENS_16BIT[model_type][dtype]
    have, cache = stages(model, golden), model.language_model.make_cache()
    steps = [model.language_model(mx.array([[token]]), cache) for token in golden["text_input_ids"]]
    distances = {name: distance(have[name], want[name]) for name in want}
    distances["steps"] = distance(mx.concatenate(steps, axis=1)[0, ::4, ::16], want["text_logits"])
    return {name: found for name, found in distances.items() if not found < EPSILONS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
def test_16_bits_are_the_references(
    model_type: str,
    dtype: str,
    form: str,
    tiny: Path,
    tiny_v1: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_as(form, tiny if model_type == "smolvlm" else tiny_v1, dtype, monkeypatch)
    assert far_in_16_bits(model, model_type, dtype) == {}


def query_one_further(model: SmolVLM) -> None:
    class Shifted(Attention):
        def rope(self, x: mx.array, offset: Any) -> mx.array:
            return super().rope(x, offset + (x.shape[1] == self.heads))

    model.language_model.layers[1].self_attn.__class__ = Shifted


FAULTS: dict[str, Callable[[SmolVLM], object]] = {
    "decoder layer twice": lambda model: model.language_model.layers.insert(
        1, model.language_model.layers[1]
    ),
    "decoder layer left out": lambda model: model.language_model.layers.pop(1),
    "tower's layer twice": lambda model: model.vision_model.encoder.layers.append(
        model.vision_model.encoder.layers[-1]
    ),
    "norm without weight": lambda model: model.language_model.layers[1].input_layernorm.update(
        {"weight": mx.ones(128, mx.bfloat16)}
    ),
    "last norm without weight": lambda model: model.language_model.norm.update(
        {"weight": mx.ones(128, mx.bfloat16)}
    ),
    "queries one position further": query_one_further,
    "image tokens a tenth larger": lambda model: model.connector.modality_projection.proj.update(
        {"weight": model.connector.modality_projection.proj.weight * 1.1}
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_16_bits_would_be_seen(tiny: Path, fault: str) -> None:
    model, _ = load(tiny, "bfloat16", fuse=False)
    FAULTS[fault](model)
    assert far_in_16_bits(model, "smolvlm", "bfloat16")


def test_greedy_tokens_are_the_references(golden: tuple[dict[str, Any], Path]) -> None:
    want, folder = golden
    model, processor = load(folder, "float32")
    assert processor.tokenizer.encode_prompt(want["prompt"], "\ufdd0") == want["input_ids"]
    cache = model.language_model.make_cache()
    logits = prefill(model, mx.array([want["input_ids"]]), model.encode_images(pattern(3)), cache)
    tokens = []
    for _ in want["generated"]:
        token = mx.argmax(logits, axis=-1)
        tokens.append(token.item())
        logits = model.language_model(token[None], cache)[:, -1]
    assert tokens == want["generated"]


def test_cached_and_chunked_equal_whole(tiny: Path) -> None:
    model, _ = load(tiny, "float32")
    ids = mx.array([[5, 9, 200, 31, 7, 7, 120, 64, 3, 18, 77]])
    whole = model(ids)
    for sizes in ([1] * 11, [4, 4, 3], [10, 1], [11]):
        cache, rows, start = model.language_model.make_cache(capacity=2), [], 0
        for size in sizes:
            rows.append(model.language_model(ids[:, start : start + size], cache))
            start += size
        np.testing.assert_allclose(
            np.array(mx.concatenate(rows, axis=1)), np.array(whole), rtol=0, atol=ATOL
        )


def test_cache_grows_trims_and_makes_masks() -> None:
    cache, rng = KVCache(capacity=2), np.random.default_rng(0)
    parts = [mx.array(rng.standard_normal((1, 2, n, 4), np.float32)) for n in (1, 3, 5)]
    columns = []
    for part in parts:
        keys, values = cache.update_and_fetch(part, part * 2)
        columns.append(cache.keys.shape[2])
    assert columns == [2, 4, 16]  # twice as many, and again, until it is enough
    assert cache.is_trimmable()
    np.testing.assert_array_equal(np.array(keys), np.array(mx.concatenate(parts, axis=2)))
    np.testing.assert_array_equal(np.array(values), 2 * np.array(keys))
    assert (cache.offset, cache.trim(4), cache.offset, cache.trim(99), cache.offset) == (
        9,
        4,
        5,
        5,
        0,
    )
    assert cache.make_mask(1) is None
    assert cache.make_mask(3) == "causal"
    cache.offset = 2
    assert np.array(cache.make_mask(2, return_array=True)).tolist() == [
        [True, True, True, False],
        [True] * 4,
    ]


def test_a_cache_is_made_once_for_what_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pad, part = Mock(wraps=mx.pad), mx.ones((1, 2, 2, 4))
    monkeypatch.setattr(mx, "pad", pad)
    cache = KVCache(capacity=4)
    for _ in range(2):
        cache.update_and_fetch(part, part)
    assert pad.call_count == 2  # keys and values
    cache.update_and_fetch(part, part)
    assert pad.call_count == 4


@pytest.mark.skipif(device.name() != "cpu", reason="the CPU's own step")
@pytest.mark.parametrize("read", [1, 37, 5000])
def test_cpu_steps_are_mlx_steps(tiny: Path, read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny, "float32")[0].language_model
    rng, hidden, caches = np.random.default_rng(read), [], []
    parts = [rng.standard_normal((1, model.layers[0].self_attn.kv_heads, read, 32), np.float32)] * 2
    if read == 37:  # and scores that are far apart
        parts[0] = parts[0] * np.array([1, 100], np.float32)[:, None, None]
    step = Mock(wraps=cpu.decode_step)
    monkeypatch.setattr(cpu, "decode_step", step)
    for each in (model, load(tiny, "float32", fuse=False)[0].language_model):
        cache = each.make_cache(read)
        for layer in cache:
            layer.update_and_fetch(*map(mx.array, parts))
        hidden.append([np.array(each(mx.array([[token]]), cache)) for token in (5, 9, 200)])
        caches.append([np.array(layer.row()[0][..., : layer.offset, :]) for layer in cache])
    assert step.call_count == 3
    np.testing.assert_allclose(hidden[0], hidden[1], rtol=0, atol=ATOL)
    np.testing.assert_allclose(caches[0], caches[1], rtol=0, atol=ATOL)


def test_a_fork_keeps_what_it_had(tiny: Path) -> None:
    model = load(tiny, "float32")[0].language_model
    cache = model.make_cache(64)
    model(mx.array([[5, 9, 200, 31]]), cache)
    model(mx.array([[7]]), cache)
    fork = [layer.fork() for layer in cache]
    for layer in cache:
        layer.trim(3)
    for token in (77, 18, 3, 64, 120):  # over what the fork has
        model(mx.array([[token]]), cache)
    want = model(mx.array([[5, 9, 200, 31, 7, 64]]))[:, -1]
    np.testing.assert_allclose(
        np.array(model(mx.array([[64]]), fork)[:, -1]), np.array(want), rtol=0, atol=ATOL
    )
    want = model(mx.array([[5, 9, 77, 18, 3, 64, 120, 1]]))[:, -1]
    np.testing.assert_allclose(
        np.array(model(mx.array([[1]]), cache)[:, -1]), np.array(want), rtol=0, atol=ATOL
    )


@pytest.mark.parametrize("trimmed", [1, 2])
def test_what_goes_on_from_a_fork_or_a_batch_writes_nowhere_else(tiny: Path, trimmed: int) -> None:
    model = load(tiny, "float32")[0].language_model
    ids = [5, 9, 200, 31, 7]
    cache = model.make_cache(64)
    model(mx.array([ids]), cache)
    batched = [BatchKVCache([layer, layer]).extract(1) for layer in cache]
    for others in ([layer.fork() for layer in cache], batched):
        for layer in others:
            layer.trim(trimmed)
        for layer in cache:
            layer.trim(trimmed)
        # A shorter one, which does not make the longer rows anyone's own.
        [layer.fork() for layer in cache]
        kept = [np.array(layer.keys) for layer in cache]
        have = model(mx.array([[77]]), others)[:, -1]
        want = model(mx.array([[*ids[:-trimmed], 77]]))[:, -1]
        np.testing.assert_allclose(np.array(have), np.array(want), rtol=0, atol=ATOL)
        for layer, keys in zip(cache, kept, strict=True):
            np.testing.assert_array_equal(np.array(layer.keys), keys)
            layer.offset = len(ids)


def test_rows_of_a_batch_come_and_go(tiny: Path) -> None:
    """Of any lengths, at any time: each sees its own tokens, at their own positions."""
    model, rng = load(tiny, "float32")[0].language_model, np.random.default_rng(0)
    rows: list[list[int]] = []
    batch: list[Any] = []
    for turn in range(12):
        if turn % 3 == 0:
            prompts = rng.integers(3, 200, (1 + turn // 3 % 2, 3 + int(rng.integers(9))))
            cache: list[Any] = model.make_cache(4)
            model(mx.array(prompts), cache)
            batch = (
                [BatchKVCache(pair) for pair in zip(batch, cache, strict=True)] if batch else cache
            )
            rows += prompts.tolist()
        elif turn % 3 == 1 and len(rows) > 2:
            gone = int(rng.integers(len(rows)))
            alone = [layer.extract(gone) for layer in batch]
            have = model(mx.array([[7]]), alone)[:, -1]
            want = model(mx.array([[*rows.pop(gone), 7]]))[:, -1]
            np.testing.assert_allclose(np.array(have), np.array(want), rtol=0, atol=ATOL)
            for layer in batch:
                layer.keep(mx.array([row for row in range(len(rows) + 1) if row != gone]))
        tokens = rng.integers(3, 200, (len(rows), 1 + turn % 2))
        have = model(mx.array(tokens), batch)[:, -1]
        for row, more in enumerate(tokens.tolist()):
            rows[row] += more
            want = model(mx.array([rows[row]]))[:, -1]
            np.testing.assert_allclose(
                np.array(have[row : row + 1]), np.array(want), rtol=0, atol=ATOL
            )
    assert len({len(row) for row in rows}) > 2


def test_a_shorter_fork_leaves_a_longer_one_its_own(tiny: Path) -> None:
    model = load(tiny, "float32")[0].language_model
    cache = model.make_cache(64)
    model(mx.array([[5, 9, 200, 31, 7]]), cache)
    longer = [layer.fork() for layer in cache]
    kept = [np.array(layer.keys) for layer in longer]
    for layer in cache:
        layer.trim(1)
        layer.fork()
    mx.eval(model(mx.array([[77]]), cache))  # where the longer one has its last token
    for layer, keys in zip(longer, kept, strict=True):
        np.testing.assert_array_equal(np.array(layer.keys), keys)


def test_a_batch_holds_no_columns_that_none_of_its_rows_needs() -> None:
    short, long = (
        KVCache.of(mx.ones((1, 2, tokens, 4)) * tokens, mx.ones((1, 2, tokens, 4)))
        for tokens in (3, 9)
    )
    batch = BatchKVCache([short, long])
    assert (batch.end, batch.offset.tolist()) == (9, [3, 9])
    batch.keep(mx.array([0]))
    assert (batch.end, batch.offset.tolist()) == (3, [3])
    assert (
        np.array(batch.keys[..., : batch.end, :]).tolist() == (3 * np.ones((1, 2, 3, 4))).tolist()
    )


def test_a_batch_grows_with_what_comes() -> None:
    rng = np.random.default_rng(0)
    rows = [mx.array(rng.standard_normal((1, 2, tokens, 4), np.float32)) for tokens in (3, 9)]
    batch = BatchKVCache([KVCache.of(row, -row) for row in rows])
    assert batch.keys.shape[2] == 9 + 256
    even = BatchKVCache([KVCache.of(rows[0], rows[0])] * 2)  # which hides nothing from one token
    assert (even.make_mask(1), batch.make_mask(1) is None) == (None, False)
    assert np.array(even.make_mask(2))[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    columns = []
    for tokens in (1, 300, 5, 250, 800):
        new = mx.array(rng.standard_normal((2, 2, tokens, 4), np.float32))
        keys, values = batch.update_and_fetch(new, -new)
        columns.append(batch.keys.shape[2])
        for number, row in enumerate(rows):
            rows[number] = mx.concatenate([row, new[number : number + 1]], axis=2)
            length = rows[number].shape[2]
            assert batch.offset[number].item() == length
            for have, want in ((keys, rows[number]), (values, -rows[number])):
                np.testing.assert_array_equal(
                    np.array(have[number : number + 1, :, -length:]), np.array(want)
                )
    # By as many as there are, or as come.
    assert columns == [265, 565, 565, 565, 1365]


def test_quantized_cache_is_close(tiny: Path) -> None:
    model, _ = load(tiny, "float32")
    ids = mx.array([[5, 9, 200, 31, 7, 7, 120, 64]])
    cache = [QuantizedKVCache(8, group_size=32) for _ in model.language_model.layers]
    first = model.language_model(ids[:, :5], cache)
    rest = model.language_model(ids[:, 5:], cache)
    have = np.array(mx.concatenate([first, rest], axis=1))
    want = np.array(model(ids))
    assert 0 < np.abs(have - want).max() < 0.05 * np.abs(want).max()


def test_mlx_lm_caches_work(tiny: Path) -> None:
    from mlx_lm.models.cache import make_prompt_cache

    model, _ = load(tiny, "float32")
    ids = mx.array([[5, 9, 200, 31]])
    cache = make_prompt_cache(model.language_model)
    rows = [
        model.language_model(ids[:, :3], cache=cache),
        model.language_model(ids[:, 3:], cache=cache),
    ]
    np.testing.assert_allclose(
        np.array(mx.concatenate(rows, axis=1)), np.array(model(ids)), rtol=0, atol=ATOL
    )


def test_norms_and_masks_are_as_config_and_cache_say(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.loads((tiny / "config.json").read_text())
    raw["text_config"] |= {"rms_norm_eps": 0.25, "num_hidden_layers": 1}
    raw["vision_config"]["layer_norm_eps"] = 0.5
    model = SmolVLM(ModelConfig.from_dict(raw))
    norms = {type(m): set[float]() for m in (model.language_model.norm, nn.LayerNorm(1))}
    for module in model.modules():
        if type(module) in norms:
            norms[type(module)].add(module.eps)
    assert norms == {nn.RMSNorm: {0.25}, nn.LayerNorm: {0.5}}
    assert not model.language_model.checkpointed
    assert not model.vision_model.encoder.checkpointed
    asked, make_mask = Mock(return_value=None), KVCache.make_mask
    monkeypatch.setattr(KVCache, "make_mask", asked)
    model(mx.array([[5, 9, 200]]))
    assert asked.call_args.args == (3,)
    assert not asked.call_args.kwargs["return_array"]  # the causal, by name
    assert make_mask(KVCache(), 3) == "causal"


@pytest.mark.skipif(device.name() != "cpu", reason="the CPU's own kernels")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numpy_multiplies_in_float32_and_only_there(
    dtype: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers of six matrices, the patches', the connector's, three of seven, and the head's."""
    model, _ = load(make(tmp_path / "a", tied=tied), dtype)
    calls = {}
    for name in ("product", "attention", "gelu_tanh", "swiglu"):
        calls[name] = Mock(wraps=getattr(cpu, name))
        monkeypatch.setattr(cpu, name, calls[name])
    mx.eval(model(mx.array([[5, *[model.config.image_token_id] * 16, 9, 200]]), pattern(1)))
    want = {"product": 2 * 6 + 1 + 1 + 3 * 7 + 1, "attention": 5, "gelu_tanh": 2, "swiglu": 3}
    found = {name: call.call_count for name, call in calls.items()}
    assert found == (want if dtype == "float32" else dict.fromkeys(want, 0))


@pytest.mark.parametrize("dtypes", list(product((mx.float32, mx.bfloat16), repeat=2)), ids=str)
def test_inputs_and_weights_of_two_dtypes(dtypes: tuple[mx.Dtype, mx.Dtype]) -> None:
    """As the plain kinds do."""
    x = pattern(1)[0, :1, :8, :1].reshape(1, 1, 8).astype(dtypes[0])
    config = replace(BUNDLED.text_config, hidden_size=8, intermediate_size=16, vocab_size=30)
    layer, decoder = nn.Linear(8, 5), LanguageModel(config, tied=True)
    decoder.set_dtype(dtypes[1])
    layer.set_dtype(dtypes[1])
    want = layer(x), decoder.head(x), decoder.layers[0].mlp(x)
    for module in (layer, decoder, *decoder.layers[0].mlp.leaf_modules().values()):
        cpu.swap(module)
    for have, plain in zip(
        (layer(x), decoder.head(x), decoder.layers[0].mlp(x)), want, strict=True
    ):
        assert have.dtype == plain.dtype
        assert bool(mx.allclose(have, plain, rtol=0.02, atol=0.02))


def test_placeholders_and_image_tokens_must_be_equal_in_number(tiny: Path) -> None:
    model, _ = load(tiny, "float32")
    ids = mx.array([[model.config.image_token_id] * 15 + [5]])
    with pytest.raises(ValueError, match="15 image placeholders in input_ids for 16 image tokens"):
        model(ids, pattern(1))
    with pytest.raises(ValueError, match="15 image placeholders in input_ids for 0 image tokens"):
        model(ids)


def test_patches_are_embedded_as_by_the_convolution(tiny: Path) -> None:
    embeddings = load(tiny, "float32", fuse=False)[0].vision_model.embeddings
    tiles = pattern(2)
    want = embeddings.patch_embedding(tiles).reshape(2, 64, -1) + embeddings.position_embedding(
        mx.arange(64)
    )
    np.testing.assert_allclose(np.array(embeddings(tiles)), np.array(want), rtol=0, atol=ATOL)


def test_every_tile_reaches_its_placeholders(tiny: Path) -> None:
    """The bug other ports had: only the first tile was used, and captions stayed fluent."""
    model, _ = load(tiny, "float32")
    ids = mx.array([[model.config.image_token_id] * 48])
    tiles = pattern(3)
    rows = model.merge(ids, model.encode_images(tiles))
    for tile in range(3):
        want = model.encode_images(tiles[tile : tile + 1])[0]
        np.testing.assert_allclose(
            np.array(rows[0, 16 * tile : 16 * tile + 16]), np.array(want), rtol=0, atol=ATOL
        )


def test_gradients_reach_every_parameter(tiny: Path) -> None:
    model, _ = load(tiny, "float32", fuse=False)
    ids = mx.array([[5, *[model.config.image_token_id] * 16, 9, 200]])

    def loss(model: SmolVLM) -> mx.array:
        return nn.losses.cross_entropy(model(ids, pattern(1))[:, :-1], ids[:, 1:]).mean()

    _, gradients = nn.value_and_grad(model, loss)(model)
    flat = dict(tree_flatten(gradients))
    assert flat.keys() == dict(tree_flatten(model.parameters())).keys()
    still = [name for name, gradient in flat.items() if not mx.any(gradient).item()]
    assert still == []


def test_joining_needs_equal_forms() -> None:
    a, b = nn.Linear(64, 8), nn.Linear(64, 16)
    x = mx.random.normal((3, 64))
    joined = gpu.join(a, b)
    assert joined is not None
    np.testing.assert_allclose(
        np.array(joined(x)), np.array(mx.concatenate([a(x), b(x)], axis=-1)), atol=1e-5
    )
    quantized = [nn.QuantizedLinear.from_linear(layer, 64, 4) for layer in (a, b)]
    joined = gpu.join(*quantized)
    assert joined is not None
    want = mx.concatenate([layer(x) for layer in quantized], axis=-1)
    np.testing.assert_allclose(np.array(joined(x)), np.array(want), atol=1e-5)
    assert gpu.join(a, quantized[1]) is None
    assert gpu.join(quantized[0], nn.QuantizedLinear.from_linear(b, 64, 8)) is None
    assert gpu.join(a, nn.Linear(64, 8, bias=False)) is None
    assert gpu.join(a, nn.Linear(32, 8)) is None
    b.set_dtype(mx.bfloat16)
    assert gpu.join(a, b) is None
    assert joined.trainable_parameters() == {}


def test_an_activation_is_one_kernel_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made once, for all shapes."""

    def double(x: mx.array) -> mx.array:
        return x * 2

    compile_ = Mock(return_value=swiglu)
    monkeypatch.setattr(mx, "compile", compile_)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert gpu.compiled(double) is double
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert gpu.compiled(double) is gpu.compiled(double) is swiglu
    compile_.assert_called_once_with(double, shapeless=True)


@pytest.mark.skipif(device.name() != "cpu", reason="a GPU lets go of memory later")
def test_joining_takes_the_memory_of_one_layer_at_a_time(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load(tiny, "float32", fuse=False)
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with monkeypatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
        optimize(model)
    mx.eval(model.parameters())
    largest = model.language_model.layers[0].mlp.gate_up_proj.weight.nbytes
    assert 0 < mx.get_peak_memory() - before < 2 * largest


@pytest.mark.parametrize("kind", ["none", "causal", "true and false", "numbers"])
@pytest.mark.parametrize(("T", "C"), [(7, 7), (5, 300), (2, 9), (1, 9)])
def test_cpu_attention_is_mlx_attention(T: int, C: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    queries, keys, values = (
        rng.standard_normal((2, h, n, 8), np.float32) for h, n in ((6, T), (3, C), (3, C))
    )
    seen = rng.random((2, 1, T, C)) < 0.7
    seen[0, 0, 0] = False  # a row of padding, which sees nothing
    masks = {
        "none": None,
        "causal": "causal",
        "true and false": mx.array(seen),
        "numbers": mx.array(seen * 2.0 - 1),
    }
    have = kernels.attention(queries, keys, values, 0.3, cpu.added_by(masks[kind], T, C))
    arrays = (mx.array(array) for array in (queries, keys, values))
    want = mx.fast.scaled_dot_product_attention(*arrays, scale=0.3, mask=masks[kind])
    np.testing.assert_allclose(have, np.array(want), rtol=0, atol=1e-5)


def test_a_mask_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="mask 'sliding' is not causal"):
        cpu.added_by("sliding", 3, 3)


def test_cpu_attention_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.standard_normal((2, h, 50, 8), np.float32) for h in (6, 3, 3))
    whole = kernels.attention(queries, keys, values, 0.3, kernels.future(50))
    monkeypatch.setattr(kernels, "SCORES", 1)
    monkeypatch.setattr(kernels, "BLOCK", 150)
    np.testing.assert_allclose(
        kernels.attention(queries, keys, values, 0.3, kernels.future(50)), whole, rtol=0, atol=1e-6
    )


def test_cpu_activations_are_mlx_activations() -> None:
    x = np.linspace(-120, 120, 200_000, dtype=np.float32).reshape(1, 2, -1)
    gelu = np.array(gelu_tanh(mx.array(x)))
    np.testing.assert_allclose(gelu, np.array(nn.gelu_approx(mx.array(x))), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kernels.gelu_tanh(x.copy()), gelu, rtol=1e-5, atol=1e-5)
    gate, up = np.ascontiguousarray(x[..., ::2]), np.ascontiguousarray(x[..., 1::2])
    want = np.array(swiglu(mx.array(gate), mx.array(up)))
    np.testing.assert_allclose(kernels.swiglu(gate, up), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_gelu_in_16_bits_is_float32_rounded_once(dtype: mx.Dtype) -> None:
    """Of every number from -12 to 12 that the type has, by the formula; also as a GPU's kernel."""
    numbers = mx.arange(2**16, dtype=mx.uint32).astype(mx.uint16).view(dtype)
    x = np.array(numbers.astype(mx.float32))
    x = x[np.isfinite(x) & (np.abs(x) < 12)].astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    exact = 0.5 * x * (1 + np.tanh(inner))
    for form in (gelu_tanh, gpu.compiled(gelu_tanh)):
        have = form(mx.array(x, mx.float32).astype(dtype))
        assert have.dtype == dtype
        off = np.abs(np.array(have.astype(mx.float32), np.float64) - exact)
        # Half a step of the type, and a little for float32.
        assert (off <= np.abs(exact) * mx.finfo(dtype).eps * 0.502 + 1e-7).all()
