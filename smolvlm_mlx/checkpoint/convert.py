"""Checkpoint folder -> another one: cast, quantize and write, tensor by tensor, and all or nothing.

One tensor is in memory at a time, so a 2.2B model converts on an 8 GB laptop. The result is made in
a temporary folder beside the target, synced and checked, and then renamed: a crash leaves the
target absent, never partial. The source is only read. The result has mlx-community's layout (one
model.safetensors, and config.json with a `quantization` block), or Hugging Face's, see
`huggingface`.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn

from .. import device
from ..config import ModelConfig
from ..errors import ConversionError, quote
from ..events import Reading, Work, at_once
from ..files import expanded, new_folder, write_file
from ..model import SmolVLM
from .adapters import AdapterMerger, fingerprint
from .card import README, Origin, card_of, fetch_papers, origin_of, papers_of, public_name
from .choices import FORMS, KEPT, RECIPES, Dtype, Form, Layout, Recipe
from .hub import find, find_folder
from .huggingface import hf_config, write_shards_in_steps
from .lora import HEAD, TABLE
from .names import resolve
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
    result, `origin` what its card says of the source, `kept` how source and result are quantized
    both."""

    out: Path
    source_bytes: int
    out_bytes: int
    parts: Mapping[str, tuple[int, int]]
    origin: Origin
    kept: Form | None = None

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
    layout: Layout = "mlx",
) -> Generator[Reading, None, Report]:
    """Convert a checkpoint (folder or hub id) into the new folder `out`.

    Args:
        recipe: the name of one of `choices.RECIPES`, or one of your own; by default what is
            quantized in the source stays so, and all else has 16 bits.
        adapter: folder of a LoRA or DoRA adapter, to be fused into the weights.
        layout: "huggingface" for what transformers loads: not quantized, in files of 5 GB.

    Raises:
        CheckpointError: the source cannot be used.
        AdapterError: the adapter is damaged or belongs to another base.
        ConversionError: the recipe does not fit it, or `out` exists or cannot be written.
    """
    recipe, out = _recipe(recipe), expanded(out)
    checkpoint = open_checkpoint(find(source, revision))
    _check(checkpoint, recipe, out, layout)
    device.limit_memory()
    plan = _Plan.of(checkpoint, recipe, adapter, layout)
    if find_folder(source) is None:
        fetch_papers(resolve(str(source)), checkpoint.folder)
    tuned = None if adapter is None else f"the adapter {public_name(adapter)}"
    lost = kept = None
    if checkpoint.quantization is not None:
        form = checkpoint.quantization.default
        lost, kept = (str(form), None) if plan.quantization is None else (None, form)
    origin = replace(origin_of(checkpoint.folder), tuned=tuned, dequantized=lost)
    out_bytes, parts = yield from _write_folder(plan, out, plan.arrays(), origin)
    return Report(out, checkpoint.nbytes, out_bytes, parts, origin, kept)


convert = at_once(convert_in_steps)


def _check(checkpoint: Checkpoint, recipe: Recipe, out: Path, layout: Layout) -> None:
    if layout not in get_args(Layout):
        raise ConversionError(f"layout {quote(layout)} is not one of {', '.join(get_args(Layout))}")
    if layout == "huggingface" and recipe.quantizes:
        raise ConversionError(
            "layout huggingface is for transformers, which does not read MLX's quantization; leave "
            "out the bits, or choose layout mlx"
        )
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
    origin = replace(origin_of(checkpoint.folder), tuned="weights that were fine-tuned")
    Work(_write_folder(plan, out, arrays, origin)).finish()


def _recipe(recipe: Recipe | str) -> Recipe:
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ConversionError(f"recipe {quote(recipe)} is not one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if recipe.dtype is not None and recipe.dtype not in DTYPES:
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
    plan: "_Plan", out: Path, arrays: Iterator[mx.array], origin: Origin
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
            yield from plan.write_in_steps(partial, arrays)
            config = json.dumps(plan.config_json(), indent=2) + "\n"
            write_file(partial / "config.json", config.encode())
            for name in (*COMPANIONS, *papers_of(plan.checkpoint.folder)):
                if (plan.checkpoint.folder / name).is_file():
                    if not (partial / name).parent.is_dir():
                        (partial / name).parent.mkdir()
                    write_file(partial / name, (plan.checkpoint.folder / name).read_bytes())
            written = open_checkpoint(partial)  # names, shapes, dtypes are what its config says
            write_file(partial / README, card_of(written, origin, name=out.name).encode())
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
    merger: AdapterMerger
    layout: Layout

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        recipe: Recipe,
        adapter: str | Path | None = None,
        layout: Layout = "mlx",
    ) -> "_Plan":
        merger = AdapterMerger({}, {}, checkpoint.is_tied)
        if adapter is not None:
            unread = SmolVLM(checkpoint.config, checkpoint.is_tied)
            merger = AdapterMerger.of(unread, adapter, fingerprint(dict(checkpoint.read())))
        if recipe.keeps and layout == "mlx":
            recipe = _keeping(checkpoint, recipe, merger.is_tied)
        config = _padded(checkpoint.config, recipe)
        target = SmolVLM(config, merger.is_tied)
        shapes = {name: array.shape for name, array in _in_order(target)}
        quantization = _quantize(target, recipe)
        floats = DTYPES[recipe.dtype or "bfloat16"]
        forms = {
            name: a.astype(floats) if mx.issubdtype(a.dtype, mx.floating) else a
            for name, a in _in_order(target)
        }
        return cls(checkpoint, recipe, config, quantization, shapes, forms, merger, layout)

    @property
    def dtype(self) -> Dtype:
        return self.recipe.dtype or "bfloat16"

    def config_json(self) -> dict[str, Any]:
        """The source's config.json, with what has changed."""
        kept = {
            key: value
            for key, value in self.checkpoint.raw_config.items()
            if not key.startswith("quantization")
        }
        text = {**kept.get("text_config", {}), "tie_word_embeddings": self.merger.is_tied}
        vision = {
            **kept.get("vision_config", {}),
            "intermediate_size": self.config.vision_config.intermediate_size,
        }
        changed = {
            **kept,
            "text_config": text,
            "vision_config": vision,
            "tie_word_embeddings": self.merger.is_tied,
        }
        changed["torch_dtype"] = self.dtype
        for section in (changed, text, vision):
            section.update(
                (key, self.dtype) for key in ("torch_dtype", "dtype") if section.get(key)
            )
        if self.layout == "huggingface":
            return hf_config(changed, self.dtype)
        return (
            changed
            if self.quantization is None
            else {**changed, "quantization": self.quantization.to_config()}
        )

    def write_in_steps(self, folder: Path, arrays: Iterator[mx.array]) -> Generator[Reading]:
        """Write the weights into the result's folder."""
        if self.layout == "huggingface":
            return write_shards_in_steps(folder, self.forms, arrays)
        return write_safetensors_in_steps(folder / "model.safetensors", self.forms, arrays)

    def arrays(self) -> Iterator[mx.array]:
        """The tensors of the result, each read and made when it is asked for."""
        source = dict(self.checkpoint.read())
        if not self.merger.is_tied and f"{HEAD}.weight" not in source:
            table = {n: a for n, a in source.items() if n.startswith(f"{TABLE}.")}
            source |= {name.replace(TABLE, HEAD): array for name, array in table.items()}
        for name, shape in self.shapes.items():
            module = name.removesuffix(".weight")
            if f"{module}.scales" not in self.forms:
                yield _padded_to(shape, self._float(name, source))
            elif f"{module}.scales" in source and not self.merger.changes(name):
                for part in ("weight", "scales", "biases"):
                    if f"{module}.{part}" in self.forms:
                        array = source.pop(f"{module}.{part}")
                        yield array.astype(self.forms[f"{module}.{part}"].dtype)
            else:
                assert self.quantization is not None
                array = _padded_to(shape, self._float(name, source))
                bits, group_size, mode = self.quantization.of(module)
                yield from mx.quantize(array, group_size, bits, mode)

    def _float(self, name: str, source: dict[str, mx.array]) -> mx.array:
        """A source tensor in the result's dtype, dequantized if need be."""
        array, module = source.pop(name), name.removesuffix(".weight")
        if array.dtype == mx.uint32:
            assert self.checkpoint.quantization is not None
            stored = TABLE if module == HEAD and not self.checkpoint.has_head else module
            array = dequantized(
                array,
                source.pop(f"{module}.scales"),
                source.pop(f"{module}.biases", None),
                self.checkpoint.quantization.of(stored),
            )
        return self.merger.merged(name, array).astype(DTYPES[self.dtype])


def _keeping(checkpoint: Checkpoint, recipe: Recipe, is_tied: bool) -> Recipe:
    """The recipe with the forms of a quantized source, and with its dtype, if it has none."""
    quantization = checkpoint.quantization
    if quantization is None:
        return recipe
    scales = [name for name in checkpoint.tensors if name.endswith(".scales")]
    modules = {m: quantization.of(m) for m in (name.removesuffix(".scales") for name in scales)}
    if checkpoint.is_tied:
        modules.pop(HEAD, None)
        if not is_tied and TABLE in modules:
            modules[HEAD] = modules[TABLE]
    stored = checkpoint.tensors["language_model.norm.weight"].dtype
    names: dict[str, Dtype] = {"F16": "float16", "F32": "float32"}
    return replace(recipe, modules=modules, dtype=recipe.dtype or names.get(stored))


def _padded_to(shape: tuple[int, ...], array: mx.array) -> mx.array:
    return mx.pad(array, [(0, new - old) for old, new in zip(array.shape, shape, strict=True)])


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
