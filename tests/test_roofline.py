"""Operations and bytes against counts by hand."""

from smolvlm_mlx.bench.roofline import Sizes, Work, decoder, vision, vision_flops
from smolvlm_mlx.checkpoint.presets import SIZES, random_model
from smolvlm_mlx.model import SmolVLM
from tests.support.bundled import BUNDLED, HEAD, LAYERS, machine

import mlx.core as mx
import pytest


def sizes(model: SmolVLM, kv_width: int) -> Sizes:
    return Sizes.of(
        model.config,
        {name: array.nbytes for name, array in model.named_parameters().items()},
        kv_width,
    )


def test_decoder_flops_and_bytes() -> None:
    assert LAYERS == 1_622_016
    found = sizes(SmolVLM(BUNDLED), 4)
    norms = 4 * 2 * 192
    assert (found.layers, found.head) == (4 * (LAYERS + norms), 4 * (HEAD + 192))
    assert found.kv_token == 4 * 2 * 4 * 3 * 32
    prefill = decoder(BUNDLED, found, 100)
    assert prefill.flops == 2 * LAYERS * 100 + 2 * 100**2 * 6 * 32 * 4 + 2 * HEAD
    assert prefill.bytes == found.layers + found.head + 100 * 3072
    step = decoder(BUNDLED, found, 1, cached=100, kernels=7)
    assert step.flops == 2 * (LAYERS + HEAD) + (2 + 400) * 6 * 32 * 4
    assert step.bytes == found.layers + found.head + 101 * 3072
    assert step.kernels == 7


def test_a_prompt_in_two_parts_is_the_same_attention() -> None:
    found = sizes(SmolVLM(BUNDLED), 4)
    whole, first, second = (
        decoder(BUNDLED, found, *part).flops for part in ((100,), (60,), (40, 60))
    )
    assert first + second == whole + 2 * HEAD


def test_tied_head_is_the_table() -> None:
    assert sizes(SmolVLM(BUNDLED, tied=True), 4) == sizes(SmolVLM(BUNDLED), 4)


def test_vision_flops() -> None:
    layer = 2 * 64 * (4 * 128 * 128 + 2 * 128 * 512) + 4 * 64 * 64 * 128
    assert vision_flops(BUNDLED) == 4 * layer + 2 * 64 * 128 * 192 + 2 * 16 * 512 * 192
    found = sizes(SmolVLM(BUNDLED), 4)
    assert found.vision == 4 * (826_240 + 98_304)  # tower and connector
    assert vision(BUNDLED, found, 3) == Work(3 * vision_flops(BUNDLED), found.vision)


def test_quantized_weights_count_as_stored() -> None:
    found = sizes(random_model(BUNDLED, mx.bfloat16, bits=4), 2)
    each = 0.5 + 2 * 2 / 64  # 4 bits, and a scale and a bias of 16 bits for 64 weights
    assert found.layers == LAYERS * each + 4 * 2 * 192 * 2
    assert found.head == HEAD * each + 192 * 2
    assert found.vision == 2 * (826_240 + 98_304)


def test_the_design_notes_numbers() -> None:
    assert (
        round(vision_flops(SIZES["256M"]) / 1e9) == round(vision_flops(SIZES["500M"]) / 1e9) == 215
    )
    assert round(vision_flops(SIZES["2.2B"]) / 1e9) == 670
    m4, config = machine(bandwidth=120e9, flops=4e12, kernel_seconds=0), SIZES["256M"]
    model = SmolVLM(config)
    model.set_dtype(mx.bfloat16)
    found = sizes(model, 2)
    assert round(1 / decoder(config, found, 1, cached=999).limit(m4)) == 411  # tokens a second
    turn = vision(config, found, 13) + decoder(config, found, 876)
    assert round(turn.limit(m4) * 1e3) == pytest.approx(751, abs=2)


def test_limits() -> None:
    work = Work(flops=20e9, bytes=1e9, kernels=1000)  # 2 s, 1 s, 1 ms
    assert work.limit(machine()) == pytest.approx(2.001)
    assert work.limit(machine(flops=100e9)) == pytest.approx(1.001)
    bounds = [
        work.bound(machine(**change)) for change in ({}, {"flops": 100e9}, {"kernel_seconds": 1})
    ]
    assert bounds == ["compute", "memory", "kernels"]
    assert work + work == Work(40e9, 2e9, 2000)
