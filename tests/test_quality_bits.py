"""Bits that are chosen by what they cost: never larger than was asked for, better the more may be
used, and never worse than a recipe of that size."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.checkpoint.choices import RECIPES, Form, Recipe
from smolvlm_mlx.checkpoint.convert import convert, planned_bytes
from smolvlm_mlx.checkpoint.reader import load, open_checkpoint
from smolvlm_mlx.errors import ConversionError
from smolvlm_mlx.quality import mix
from smolvlm_mlx.quality.examples import answer
from smolvlm_mlx.quality.mix import FORMS, Choice, Mixer, choose, measure
from smolvlm_mlx.quality.prompts import built_in
from smolvlm_mlx.quality.report import check
from smolvlm_mlx.quality.sensitivity import Replay, groups, rounded

import mlx.core as mx
import numpy as np
import pytest

COUNTS: dict[Any, int] = {"text": 2, "picture": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of few layers, an odd width among them."""
    return make(tmp_path_factory.mktemp("checkpoints") / "small", layers=(1, 2))


@pytest.fixture(scope="module")
def mixer(source: Path) -> Mixer:
    return measure(source, counts=COUNTS)


@pytest.mark.parametrize("name", [*RECIPES])
def test_a_size_is_known_beforehand(tiny: Path, tmp_path: Path, name: str) -> None:
    planned = planned_bytes(open_checkpoint(tiny), RECIPES[name])
    report = convert(tiny, tmp_path / "out", name)
    assert planned == report.out_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_no_mix_is_larger_than_its_target_and_more_is_better(
    source: Path, mixer: Mixer, tmp_path: Path
) -> None:
    least = planned_bytes(mixer.checkpoint, mixer.for_size(10**9).recipe)
    sizes = np.linspace(0.3, 1, 4) * least
    found = [mixer.for_size(int(size)) for size in sizes]
    for size, each in zip(sizes, found, strict=True):
        assert each.size <= size
        assert each.size > 0.9 * size
        assert planned_bytes(mixer.checkpoint, each.recipe) == each.size
    kls = [each.kl for each in found]
    assert kls == sorted(kls, reverse=True)
    report = convert(source, tmp_path / "out", found[1].recipe)
    assert report.out_bytes == found[1].size
    load(tmp_path / "out")


@pytest.mark.parametrize("name", ["3bit", "4bit", "4bit-8bit-embeddings", "4bit-vision", "nvfp4"])
def test_no_mix_loses_to_a_recipe(mixer: Mixer, name: str) -> None:
    """By what it was chosen by, and with the rest held too."""
    size = planned_bytes(mixer.checkpoint, RECIPES[name])
    mix = mixer.for_size(size)
    assert name in mix.recipes
    assert all(mix.kl <= kl for kl in mix.recipes.values())
    assert mix.kl < mix.recipes[name]


def test_all_stays_in_16_bits_where_it_fits(mixer: Mixer) -> None:
    size = planned_bytes(mixer.checkpoint, RECIPES["bf16"])
    assert {*mixer.for_size(size).recipe.modules.values()} == {None}
    assert {*mixer.for_size(size - 1).recipe.modules.values()} > {None}


def test_the_nearest_of_all_that_was_measured(
    mixer: Mixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of recipes, of mixes that were grown, and of those whose bits were traded; each once."""
    replay, kls = mixer.replay, dict[str, float]()
    measured = replay.kl

    def recorded(forms: Choice) -> float:
        assert str(forms) not in kls
        kls[str(forms)] = measured(forms)
        return kls[str(forms)]

    monkeypatch.setattr(replay, "kl", recorded)
    size = planned_bytes(mixer.checkpoint, RECIPES["4bit-vision"])
    found = Mixer(mixer.checkpoint, replay, mixer.costs).for_size(size)
    assert found.kl == min(kls.values()) == kls[str(found.recipe.modules)]
    assert {*found.recipes.values()} <= {*kls.values()}


def test_bits_are_traded_where_growing_alone_is_far(
    mixer: Mixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a real decoder at the size of 3 bits: so many layers of 2 bits as growing makes cost
    more together than each alone, and a few are worth it."""
    replay, recipe = mixer.replay, RECIPES["3bit"]

    def distance(forms: Choice) -> float:
        bits = [16 if form is None else form.bits for form in forms.values()]
        return bits.count(2) ** 2 - sum(each > 3 for each in bits)

    monkeypatch.setattr(replay, "kl", distance)
    decoder = {name for name, paths in mixer.groups.items() if paths[0].startswith("language")}
    costs = {name: mixer.costs[name] for name in decoder}
    size = planned_bytes(mixer.checkpoint, recipe)
    found = Mixer(mixer.checkpoint, replay, costs).for_size(size, recipe.form)
    assert found.kl < found.recipes["3bit"]


def test_what_is_held_keeps_its_form(source: Path) -> None:
    model = open_checkpoint(source).build(tied=False)
    paths = [path for each in groups(model).values() for path in each]
    decoder = [path for path in paths if path.startswith("language_model.")]
    mixer = measure(source, only=decoder, kinds=("text",), counts=COUNTS)
    recipe = RECIPES["4bit-vision"]
    mix = mixer.for_size(planned_bytes(mixer.checkpoint, recipe), recipe.form)
    held = set(paths) - set(decoder)
    assert {path: mix.recipe.modules[path] for path in held} == {
        path: recipe.form(path) for path in held
    }
    assert mix.kl < mix.recipes["4bit-vision"]


def test_what_is_measured_is_what_the_result_does(source: Path, tmp_path: Path) -> None:
    """The distance of rounded layers is that of the converted folder."""
    model, processor = load(source, "float32")
    examples = answer(model, processor, built_in(COUNTS, "choose"))
    replay = Replay(model, processor, examples)
    recipe = RECIPES["4bit-vision"]
    forms = {path: recipe.form(path) for paths in groups(model).values() for path in paths}
    before = model.named_parameters()
    kl = replay.kl(forms)
    assert all(model.named_parameters()[name] is array for name, array in before.items())
    convert(source, tmp_path / "out", recipe)
    result, _ = load(tmp_path / "out", "float32")
    total = 0.0
    for example, want in zip(examples, replay.wanted, strict=True):
        inputs = example.prompt(processor)
        tiles = mx.array(inputs.pixel_values) if len(inputs.tiles) else None
        have = np.array(result(mx.array(example.input_ids)[None], tiles)[0])
        have = have[example.positions(model.config.image_token_id)]
        have = have - np.log(np.exp(have).sum(axis=-1, keepdims=True))
        p = np.array(want)
        total += float((np.exp(p) * (p - have)).sum())
    # Norms and biases, which are not rounded here, have 16 bits in the folder.
    assert kl == pytest.approx(total / replay.positions, rel=0.05)


def test_from_a_layer_on_is_as_from_the_start(source: Path) -> None:
    model, processor = load(source, "float32")
    examples = answer(model, processor, built_in(COUNTS, "choose"))
    replay = Replay(model, processor, examples)
    for paths in groups(model).values():
        forms = dict.fromkeys(paths, Form(2))
        fast = replay.kl(forms, paths[0])
        assert fast > 0
        assert fast == pytest.approx(replay.kl(forms), rel=1e-3, abs=1e-6)


def test_rounding_is_mlxs() -> None:
    weight = mx.random.normal((5, 200), key=mx.random.key(0))
    padded = mx.pad(weight.astype(mx.bfloat16), [(0, 0), (0, 56)])
    packed, scales, biases = mx.quantize(padded, 64, 3)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    want = mx.dequantize(packed, scales, biases, 64, 3)[:, :200]
    assert mx.array_equal(rounded(weight, Form(3)), want)
    assert mx.array_equal(rounded(weight, None), weight.astype(mx.bfloat16).astype(mx.float32))


def test_layers_that_share_an_input_have_one_form(mixer: Mixer) -> None:
    """So that they stay one product on a GPU."""
    modules = mixer.for_size(400_000).recipe.modules
    for layer in range(2):
        attention = f"language_model.layers.{layer}.self_attn"
        assert len({modules[f"{attention}.{part}_proj"] for part in "qkv"}) == 1
    assert len(set(modules.values())) > 2
    assert set(modules.values()) <= set(FORMS)


def test_an_impossible_size_is_refused_before_any_work(
    source: Path, tmp_path: Path, call: Any
) -> None:
    code, _, err = call("convert", source, tmp_path / "out", "--target-size", "100kB")
    assert code == 1
    assert "target_size 0.1 MB: the smallest possible is 0.3 MB, with 2 bits everywhere" in err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConversionError, match="exists"):
        choose(source, tmp_path, target_size=10**6)


def test_what_cannot_be_made_is_refused_before_any_work(
    source: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the mix, or by the learning behind it."""
    monkeypatch.setattr(mix, "measure_in_steps", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()

    def refused(out: str | Path, *more: str) -> str:
        code, _, err = call("convert", source, out, "--target-size", "1MB", *more)
        assert code == 1
        return str(err)

    assert f"{tmp_path / 'there'} exists" in refused("~/there")
    assert f"cannot be made ({tmp_path / 'file'} is no folder)" in refused(tmp_path / "file/a/b")
    assert "no such file or folder" in refused(tmp_path / "new", "--learn-data", "/none")
    usage = shutil.disk_usage(tmp_path)
    full = type(usage)(usage.total, usage.used, 20 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert f"{tmp_path}: 20 MiB free, 32 MiB needed" in refused(tmp_path / "new")
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert f"cannot be made ({tmp_path} cannot be written into)" in refused(tmp_path / "new")


def test_a_distance_that_16_bits_do_not_keep_is_refused(mixer: Mixer) -> None:
    with pytest.raises(ConversionError, match=r"16 bits are .* nats from the source already"):
        mixer.for_kl(1e-12)


def test_the_smallest_that_is_near_enough(mixer: Mixer) -> None:
    near, far = mixer.for_kl(0.001), mixer.for_kl(0.2)
    assert near.kl < 0.001 < far.kl < 0.2
    assert near.size > far.size


@pytest.mark.slow
def test_the_same_is_chosen_again(source: Path, mixer: Mixer) -> None:
    assert mixer.for_kl(0.02).recipe == measure(source, counts=COUNTS).for_kl(0.02).recipe


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target-size", "1MB", "--bits", "4"), "leave out --bits"),
        (("--target-kl", "0.1", "--recipe", "4bit"), "leave out --recipe"),
        (("--target-kl", "0.1", "--target-size", "1MB"), "not both"),
        (("--target-kl", "0"), "is no distance above 0"),
        (("--target-kl", "nan"), "is no distance above 0"),
        (("--target-size", "big"), "--target-size 'big': give bytes, or a size such as 6GB"),
    ],
)
def test_what_cannot_be_is_refused(
    source: Path, tmp_path: Path, call: Any, arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = call("convert", source, tmp_path / "out", *arguments)
    assert code == 1
    assert said in err


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path, call: Any) -> None:
    """And other prompts say the same of the bundled checkpoint's."""
    fixed, out = tmp_path / "3bit", tmp_path / "out"
    size = convert("tiny", fixed, Recipe(bits=3, embedding_bits=3, vision_bits=3)).out_bytes
    target = f"{size / 1e6:.3f}MB"
    code, said, err = call("convert", "tiny", out, "--target-size", target, "--check", "--json")
    assert code == 0, err
    assert (out / "model.safetensors").stat().st_size <= float(target[:-2]) * 1e6
    raw = json.loads((out / "config.json").read_text())["quantization"]
    assert len({entry["bits"] for entry in raw.values() if isinstance(entry, dict)}) > 1
    kl = json.loads(said)["quality"]["total"]["kl_mean"]
    assert kl < check("tiny", fixed).total.kl_mean
