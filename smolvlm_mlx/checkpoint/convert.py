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
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

import mlx.core as mx

from .. import device
from ..errors import ConversionError, quote
from ..events import Reading, Work, at_once
from ..files import expanded, new_folder, write_file
from .card import README, Origin, card_of, fetch_papers, origin_of, papers_of
from .choices import FORMS, KEPT, RECIPES, Form, Layout, Recipe
from .hub import find, find_folder
from .names import resolve
from .plan import CURVE, Learned, Plan
from .quantization import check_quantization
from .reader import DTYPES, Checkpoint, open_checkpoint
from .safetensors import file_bytes

# What goes along, when it is there. No code, no weights.
COMPANIONS = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "merges.txt chat_template.json chat_template.jinja additional_chat_templates/default.jinja "
    "preprocessor_config.json processor_config.json generation_config.json"
).split()


class CardWords(NamedTuple):
    """What a result's card says beside what it is: its name, else the folder's, and the command
    that made it."""

    name: str | None = None
    command: str | None = None


# Finds a quantization; closed, it goes on another time.
Learner = Callable[[Plan], Generator[Reading, None, Learned]]


@dataclass(frozen=True)
class Report:
    """What a conversion did. Sizes in bytes; `parts` holds (parameters, bytes) of each part of the
    result, `origin` what its card says of the source, `kept` how source and result are quantized
    both, `drift` how far a learned result's hidden states are from the source's at the end."""

    out: Path
    source_bytes: int
    out_bytes: int
    parts: Mapping[str, tuple[int, int]]
    origin: Origin
    kept: Form | None = None
    drift: float | None = None

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
    learner: Learner | None = None,
    card: CardWords = CardWords(),
) -> Generator[Reading, None, Report]:
    """Convert a checkpoint (folder or hub id) into the new folder `out`.

    Args:
        recipe: the name of one of `choices.RECIPES`, or one of your own; by default what is
            quantized in the source stays so, and all else has 16 bits.
        adapter: folder of a LoRA or DoRA adapter, to be fused into the weights.
        layout: "huggingface" for what transformers loads: not quantized, in files of 5 GB.
        learner: finds what weights are quantized to; else they are rounded.

    Raises:
        CheckpointError: the source cannot be used.
        AdapterError: the adapter is damaged or belongs to another base.
        ConversionError: the recipe does not fit it, or `out` exists or cannot be written.
    """
    recipe, out = _recipe(recipe), expanded(out)
    checkpoint = open_source(source, out, recipe, revision, layout)
    device.limit_memory()
    plan = Plan.of(checkpoint, recipe, adapter, layout)
    if learner is not None:
        check_place(out, file_bytes(plan.forms))
        plan = replace(plan, learned=(yield from learner(plan)))
    if find_folder(source) is None:
        fetch_papers(resolve(str(source)), checkpoint.folder)
    origin = plan.origin(adapter)
    out_bytes, parts = yield from _write_folder(plan, out, plan.arrays(), origin, card)
    drift = plan.learned.drift
    return Report(out, checkpoint.nbytes, out_bytes, parts, origin, plan.kept, drift)


convert = at_once(convert_in_steps)


def open_source(
    source: str | Path,
    out: Path | None,
    recipe: Recipe,
    revision: str | None = None,
    layout: Layout = "mlx",
) -> Checkpoint:
    """Open a checkpoint that is to be converted, into the new folder `out`, before any work.

    Raises:
        CheckpointError: it cannot be used.
        ConversionError: the recipe does not fit it, or `out` exists.
    """
    checkpoint = open_checkpoint(find(source, revision))
    _check(checkpoint, recipe, None if out is None else expanded(out), layout)
    return checkpoint


def planned_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes that model.safetensors of a conversion will have.

    Raises:
        ConversionError: the recipe does not fit the checkpoint.
    """
    return file_bytes(Plan.of(checkpoint, _recipe(recipe)).forms)


def check_place(out: Path, needed: int) -> None:
    """Find out whether a folder of so many bytes of weights can be made, before work that takes
    long.

    Raises:
        ConversionError: no folder, no access, no space.
    """
    out = expanded(out)
    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "cannot be written into" if above.is_dir() else "is no folder"
        raise ConversionError(f"{out}: cannot be made ({above} {why})")
    _check_space(out, above, needed)


def _check_space(out: Path, above: Path, needed: int) -> None:
    """With room for what is beside the weights."""
    free, needed = shutil.disk_usage(above).free, needed + 32 * 2**20
    if free < needed:
        raise ConversionError(f"{out.parent}: {free >> 20} MiB free, {needed >> 20} MiB needed")


def _check(checkpoint: Checkpoint, recipe: Recipe, out: Path | None, layout: Layout) -> None:
    if layout not in get_args(Layout):
        raise ConversionError(f"layout {quote(layout)} is not one of {', '.join(get_args(Layout))}")
    if layout == "huggingface" and recipe.quantizes:
        raise ConversionError(
            "layout huggingface is for transformers, which does not read MLX's quantization; leave "
            "out the bits, or choose layout mlx"
        )
    if out is not None and os.path.lexists(out):
        raise ConversionError(f"{out} exists; choose another name, or delete it first")
    if out is not None and checkpoint.folder.resolve() in out.resolve().parents:
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
    plan = Plan.of(checkpoint, RECIPES["bf16"])
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
    plan: Plan,
    out: Path,
    arrays: Iterator[mx.array],
    origin: Origin,
    card: CardWords = CardWords(),
) -> Generator[Reading, None, tuple[int, dict[str, tuple[int, int]]]]:
    """Write and check the new folder; returns its weights' bytes, and those of each part."""
    try:
        with new_folder(out) as new:
            _check_space(out, new, sum(form.nbytes for form in plan.forms.values()))
            yield from plan.write_in_steps(new, arrays)
            config = json.dumps(plan.config_json(), indent=2) + "\n"
            write_file(new / "config.json", config.encode())
            for name in (*COMPANIONS, *papers_of(plan.checkpoint.folder)):
                if (plan.checkpoint.folder / name).is_file():
                    if not (new / name).parent.is_dir():
                        (new / name).parent.mkdir()
                    write_file(new / name, (plan.checkpoint.folder / name).read_bytes())
            if plan.learned.curve:
                write_file(new / CURVE, plan.learned.csv().encode())
            written = open_checkpoint(new)  # names, shapes, dtypes are what its config says
            text = card_of(written, origin, name=card.name or out.name, command=card.command)
            write_file(new / README, text.encode())
            return written.nbytes, written.parts()
    except OSError as error:
        reason = (
            f"{error.strerror or error}: {error.filename}"
            if error.filename
            else error.strerror or error
        )
        raise ConversionError(f"{out}: cannot be made ({reason})") from error
