"""What a conversion makes of a checkpoint: known before a weight is read, then made tensor by
tensor."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import ModelConfig
from ..errors import ConversionError, quote
from ..events import Reading
from ..model import SmolVLM
from ..model.arrays import dequantized
from .adapters import AdapterMerger, fingerprint
from .card import Origin, origin_of, public_name
from .choices import FORMS, Dtype, Form, Layout, Recipe
from .huggingface import hf_config, write_shards_in_steps
from .lora import HEAD, TABLE
from .quantization import Quantization, quantize_modules
from .reader import DTYPES, Checkpoint
from .safetensors import write_safetensors_in_steps

CURVE = "learning.csv"


@dataclass(frozen=True)
class Learned:
    """A quantization that was not rounded.

    Attributes:
        layers: weight, scales and biases, as they are stored, by path.
        curve: how far hidden states behind each block are from the source's, as a share of these.
    """

    layers: Mapping[str, Sequence[mx.array]] = field(default_factory=dict)
    curve: Mapping[str, float] = field(default_factory=dict)

    @property
    def drift(self) -> float | None:
        """The curve's end."""
        return list(self.curve.values())[-1] if self.curve else None

    def csv(self) -> str:
        """The curve, a line a block."""
        lines = [f"{block},{difference:.6g}" for block, difference in self.curve.items()]
        return "\n".join(["block,difference", *lines, ""])


@dataclass(frozen=True)
class Plan:
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
    learned: Learned = Learned()

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        recipe: Recipe,
        adapter: str | Path | None = None,
        layout: Layout = "mlx",
    ) -> "Plan":
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
        """Of all that is not quantized, scales included."""
        return self.recipe.dtype or "bfloat16"

    @property
    def kept(self) -> Form | None:
        """How the source is quantized, if the result is too."""
        source = self.checkpoint.quantization
        return None if source is None or self.quantization is None else source.default

    def origin(self, adapter: str | Path | None) -> Origin:
        """What the result's card says of the source."""
        lost, known = None, origin_of(self.checkpoint.folder)
        if self.checkpoint.quantization is not None and self.quantization is None:
            lost = str(self.checkpoint.quantization.default)
        tuned = None if adapter is None else f"the adapter {public_name(adapter)}"
        return replace(known, tuned=tuned, dequantized=lost, learned=bool(self.learned.layers))

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
        source = self._source()
        for name in self.shapes:
            module = name.removesuffix(".weight")
            if module in self.learned.layers:
                yield from self.learned.layers[module]
            elif f"{module}.scales" not in self.forms:
                yield self._float(name, source)
            elif f"{module}.scales" in source and not self.merger.changes(name):
                for part in ("weight", "scales", "biases"):
                    if f"{module}.{part}" in self.forms:
                        array = source.pop(f"{module}.{part}")
                        yield array.astype(self.forms[f"{module}.{part}"].dtype)
            else:
                assert self.quantization is not None
                bits, group_size, mode = self.quantization.of(module)
                yield from mx.quantize(self._float(name, source), group_size, bits, mode)

    def model(self) -> SmolVLM:
        """The result before it is quantized, in float32."""
        model, source = SmolVLM(self.config, self.merger.is_tied), self._source()
        for name in self.shapes:  # evaluated one by one: what is read is let go
            array = self._float(name, source).astype(mx.float32)
            mx.eval(array)
            model.load_weights([(name, array)], strict=False)
        return model

    def _source(self) -> dict[str, mx.array]:
        source = dict(self.checkpoint.read())
        if not self.merger.is_tied and f"{HEAD}.weight" not in source:
            table = {name: a for name, a in source.items() if name.startswith(f"{TABLE}.")}
            source |= {name.replace(TABLE, HEAD): array for name, array in table.items()}
        return source

    def _float(self, name: str, source: dict[str, mx.array]) -> mx.array:
        """A tensor before it is quantized, in the result's dtype and shape; dequantized if need
        be."""
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
        array = self.merger.merged(name, array).astype(DTYPES[self.dtype])
        wider = [(0, new - old) for old, new in zip(array.shape, self.shapes[name], strict=True)]
        return mx.pad(array, wider)


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
