"""Checkpoint folder -> another one: cast, quantize and write, tensor by tensor, and all or nothing.

One tensor is in memory at a time, so a 2.2B model converts on an 8 GB laptop. The result is made in
a temporary folder beside the target, synced and checked, and then renamed: a crash leaves the
target absent, never partial. The source is only read. The result has mlx-community's layout: one
model.safetensors, and config.json with a `quantization` block.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import device
from ..config import ModelConfig
from ..errors import ConversionError, quote
from ..events import Reading, Work, at_once
from ..files import expanded, new_folder, write_file
from ..model import SmolVLM
from .adapters import fingerprint, load_adapter
from .choices import FORMS, KEPT, RECIPES, Form, Recipe
from .hub import find
from .quantization import Quantization, check_quantization, dequantized, quantize_modules
from .reader import DTYPES, Checkpoint, open_checkpoint
from .safetensors import write_safetensors_in_steps

# What goes along, when it is there. No code, no weights.
COMPANIONS = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "merges.txt chat_template.json chat_template.jinja additional_chat_templates/default.jinja "
    "preprocessor_config.json processor_config.json generation_config.json"
).split()


@dataclass(frozen=True)
class Report:
    """What a conversion did. Sizes in bytes; `parts` holds (parameters, bytes) of each part of the
    result."""

    out: Path
    source_bytes: int
    out_bytes: int
    parts: Mapping[str, tuple[int, int]]

    @property
    def bits_per_weight(self) -> float:
        return (
            8
            * sum(size for _, size in self.parts.values())
            / sum(count for count, _ in self.parts.values())
        )


def convert_in_steps(
    source: str | Path,
    out: str | Path,
    recipe: Recipe | str = KEPT,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
) -> Generator[Reading, None, Report]:
    """Convert a checkpoint (folder or hub id) into the new folder `out`.

    Args:
        recipe: the name of one of `choices.RECIPES`, or one of your own; by default 16 bits, and
            what is quantized in the source stays so.
        adapter: folder of a LoRA or DoRA adapter, to be fused into the weights.

    Raises:
        CheckpointError: the source cannot be used.
        AdapterError: the adapter is damaged or belongs to another base.
        ConversionError: the recipe does not fit it, or `out` exists or cannot be written.
    """
    recipe, out = _recipe(recipe), expanded(out)
    checkpoint = open_checkpoint(find(source, revision))
    _check(checkpoint, recipe, out)
    device.limit_memory()
    plan = _Plan.of(checkpoint, recipe, adapter)
    out_bytes, parts = yield from _write_folder(plan, out, plan.arrays())
    return Report(out, checkpoint.nbytes, out_bytes, parts)


convert = at_once(convert_in_steps)


def _check(checkpoint: Checkpoint, recipe: Recipe, out: Path) -> None:
    if os.path.lexists(out):
        raise ConversionError(f"{out} exists; choose another name, or delete it first")
    if checkpoint.folder.resolve() in out.resolve().parents:
        raise ConversionError(
            f"{out} is inside {checkpoint.folder}, which is only read; choose another place"
        )
    if checkpoint.quantization is not None and recipe.quantizes:
        raise ConversionError(
            f"{checkpoint.folder} is quantized already ({checkpoint.quantization.default}); "
            "convert the original checkpoint, or dequantize this one with recipe bf16"
        )


def write_trained(checkpoint: Checkpoint, weights: Mapping[str, mx.array], out: Path) -> None:
    """Write trained `weights`, named as in the module tree, as a new checkpoint in bfloat16 beside
    `checkpoint`'s files.

    Raises:
        ConversionError: `out` cannot be written.
    """
    plan = _Plan.of(checkpoint, RECIPES["bf16"])
    arrays = (weights[name].astype(form.dtype) for name, form in plan.forms.items())
    Work(_write_folder(plan, out, arrays)).finish()


def _recipe(recipe: Recipe | str) -> Recipe:
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ConversionError(f"recipe {quote(recipe)} is not one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if recipe.dtype not in DTYPES:
        raise ConversionError(f"dtype {quote(recipe.dtype)} is not one of {', '.join(DTYPES)}")
    if recipe.mode not in FORMS:
        raise ConversionError(f"mode {quote(recipe.mode)} is not one of {', '.join(FORMS)}")
    parts = [bits for bits in (recipe.embedding_bits, recipe.vision_bits) if bits is not None]
    forms = [form for form in recipe.modules.values() if form is not None]
    forms += map(recipe.of_bits, parts)
    if recipe.bits is not None:
        forms.append(Form(recipe.bits, recipe.group_size, recipe.mode))
    for form in forms:
        if problem := check_quantization(*form):
            raise ConversionError(f"recipe: {problem}")
    return recipe


def _write_folder(
    plan: "_Plan", out: Path, arrays: Iterator[mx.array]
) -> Generator[Reading, None, tuple[int, dict[str, tuple[int, int]]]]:
    """Write and check the new folder; returns its weights' bytes, and those of each part."""
    try:
        with new_folder(out) as partial:
            free = shutil.disk_usage(partial).free
            needed = sum(form.nbytes for form in plan.forms.values()) + 32 * 2**20
            if free < needed:
                raise ConversionError(
                    f"{out.parent}: {free >> 20} MiB free, {needed >> 20} MiB needed"
                )
            yield from write_safetensors_in_steps(partial / "model.safetensors", plan.forms, arrays)
            config = json.dumps(plan.config_json(), indent=2) + "\n"
            write_file(partial / "config.json", config.encode())
            for name in COMPANIONS:
                if (plan.checkpoint.folder / name).is_file():
                    if not (partial / name).parent.is_dir():
                        (partial / name).parent.mkdir()
                    write_file(partial / name, (plan.checkpoint.folder / name).read_bytes())
            written = open_checkpoint(partial)  # names, shapes, dtypes are what its config says
            return written.nbytes, written.parts()
    except OSError as error:
        reason = (
            f"{error.strerror or error}: {error.filename}"
            if error.filename
            else error.strerror or error
        )
        raise ConversionError(f"{out}: cannot be made ({reason})") from error


@dataclass(frozen=True)
class _Plan:
    """All about the result that can be known before a weight is read, in the order in which it is
    written.

    `forms` are arrays of its shapes and dtypes that are never evaluated, `shapes` those before
    quantization.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    config: ModelConfig
    quantization: Quantization | None
    shapes: Mapping[str, tuple[int, ...]]
    forms: Mapping[str, mx.array]
    # Layers of an adapter, without the base's weights.
    adapted: Mapping[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, recipe: Recipe) -> "_Plan":
        config = _padded(checkpoint.config, recipe)
        target = SmolVLM(config, checkpoint.is_tied)
        shapes = {name: array.shape for name, array in _in_order(target)}
        quantization = _quantize(target, recipe)
        floats = DTYPES[recipe.dtype]
        forms = {
            name: a.astype(floats) if mx.issubdtype(a.dtype, mx.floating) else a
            for name, a in _in_order(target)
        }
        return cls(checkpoint, recipe, config, quantization, shapes, forms)

    def config_json(self) -> dict[str, Any]:
        """The source's config.json, with what has changed."""
        kept = {
            key: value
            for key, value in self.checkpoint.raw_config.items()
            if not key.startswith("quantization")
        }
        text = {**kept.get("text_config", {}), "tie_word_embeddings": self.checkpoint.is_tied}
        vision = {
            **kept.get("vision_config", {}),
            "intermediate_size": self.config.vision_config.intermediate_size,
        }
        changed = {
            **kept,
            "text_config": text,
            "vision_config": vision,
            "tie_word_embeddings": self.checkpoint.is_tied,
        }
        changed["torch_dtype"] = self.recipe.dtype
        for section in (changed, text, vision):
            section.update(
                (key, self.recipe.dtype) for key in ("torch_dtype", "dtype") if section.get(key)
            )
        return (
            changed
            if self.quantization is None
            else {**changed, "quantization": self.quantization.to_config()}
        )

    def arrays(self) -> Iterator[mx.array]:
        """The tensors of the result, each read and made when it is asked for."""
        source = dict(self.checkpoint.read())
        for name, shape in self.shapes.items():
            array = self._float(name, source)
            array = mx.pad(
                array, [(0, new - old) for old, new in zip(array.shape, shape, strict=True)]
            )
            module = name.removesuffix(".weight")
            if f"{module}.scales" in self.forms:
                assert self.quantization is not None
                bits, group_size, mode = self.quantization.of(module)
                yield from mx.quantize(array, group_size, bits, mode)
            else:
                yield array

    def _float(self, name: str, source: dict[str, mx.array]) -> mx.array:
        """A source tensor in the result's dtype, dequantized if need be."""
        array, module = source.pop(name), name.removesuffix(".weight")
        if array.dtype == mx.uint32:
            assert self.checkpoint.quantization is not None
            array = dequantized(
                array,
                source.pop(f"{module}.scales"),
                source.pop(f"{module}.biases", None),
                self.checkpoint.quantization.of(module),
            )
        if module in self.adapted and name.endswith(".weight"):
            layer = self.adapted[module]
            unread = layer.linear.weight
            layer.linear.weight = array.astype(mx.float32)
            array = layer.fuse().weight
            layer.linear.weight = unread  # or all that were fused would stay in memory
        return array.astype(DTYPES[self.recipe.dtype])


def _quantize(target: SmolVLM, recipe: Recipe) -> Quantization | None:
    """Quantize the target's modules as the recipe says; the block for its config.json."""
    layers = {
        path: m for path, m in target.named_modules() if isinstance(m, nn.Linear | nn.Embedding)
    }
    if absent := sorted(recipe.modules.keys() - layers.keys()):
        raise ConversionError(f"recipe: the model has no layer {quote(absent[0])}")
    wanted = {path: form for path in layers if (form := recipe.form(path)) is not None}
    if not wanted:
        return None
    widths = {path: layers[path].weight.shape[1] for path in wanted}
    if misfits := [path for path, form in wanted.items() if widths[path] % form.group_size]:
        size = max(wanted[path].group_size for path in misfits)
        fitting = [
            str(size)
            for size in FORMS["affine"][1]
            if not any(width % size for width in widths.values())
        ]
        odd = sorted({widths[path] for path in misfits})
        raise ConversionError(
            f"group_size {size}: layers of {', '.join(map(str, odd))} inputs do not divide into "
            f"such groups; use {' or '.join(fitting) or 'no quantization of this part'}"
        )
    ((main, _),) = Counter(wanted.values()).most_common(1)
    others = {path: form for path, form in wanted.items() if form != main}
    quantization = Quantization(main, others)
    quantize_modules(target, quantization, wanted.__contains__)
    return quantization


def _padded(config: ModelConfig, recipe: Recipe) -> ModelConfig:
    """With a quantized tower, its MLP width rounded up to whole groups (4304 to 4352 in the 2.2B,
    for groups of 64).

    Exact: the added rows of fc1 are zero, GELU of zero is zero, and so the added columns of fc2
    meet only zeros.
    """
    vision = config.vision_config
    forms = [
        recipe.form(f"vision_model.encoder.layers.{layer}.mlp.fc2")
        for layer in range(vision.num_hidden_layers)
    ]
    group = max((form.group_size for form in forms if form is not None), default=1)
    width = -(-vision.intermediate_size // group) * group
    return replace(config, vision_config=replace(vision, intermediate_size=width))


def _in_order(model: SmolVLM) -> list[tuple[str, mx.array]]:
    """Parameters module by module; in a quantized one weight, scales, biases, as `mx.quantize`
    returns them."""

    def order(item: tuple[str, mx.array]) -> tuple[str, int]:
        module, _, part = item[0].rpartition(".")
        return module, ("weight", "scales", "biases", "bias").index(part)

    return sorted(model.named_parameters().items(), key=order)
