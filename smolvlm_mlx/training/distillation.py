"""Convert a checkpoint with a quantization that is learned: codes, scales and biases are such that
the predictions stay the source's, on conversations with the source's own answers.

Block after block is quantized as `compensation` has it. What is done stands in a folder beside the
result, from which a run goes on that was ended at any moment, to the same bytes. The result depends
on the source, the recipe and the data alone (and on how a device adds up).
"""

import hashlib
import json
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import device
from ..checkpoint.choices import RECIPES, Form, Recipe
from ..checkpoint.convert import CardWords, Report, convert_in_steps
from ..checkpoint.plan import Learned, Plan
from ..checkpoint.reader import DTYPES
from ..errors import ConversionError, DeviceError, TrainingError
from ..events import Reading, Work, at_once
from ..files import expanded, lock, written
from ..generation.image_cache import ImageCache
from ..inputs.processor import Inputs, Processor
from ..inputs.tiles import normalize
from ..model import SmolVLM
from ..model.arrays import dequantized
from ..quality.examples import (
    MAX_TOKENS,
    TOGETHER,
    Example,
    answer_in_steps,
    image_tokens,
    with_answer,
)
from ..quality.prompts import Prompt
from .blocks import (
    Batch,
    Block,
    Packed,
    decoder_blocks,
    distance,
    learn_block,
    learn_table,
    tower_blocks,
)
from .lessons import lessons
from .memory import learning_bytes
from .saved import Saved

TILES = 24  # that a tower learns from, evenly from all
CONNECTOR = "connector.modality_projection.proj"
TABLE = "language_model.embed_tokens"


def learn_in_steps(
    source: str | Path,
    out: str | Path,
    recipe: Recipe | str,
    *,
    data: str | Path | None = None,
    adapter: str | Path | None = None,
    revision: str | None = None,
    card: CardWords = CardWords(),
) -> Generator[Reading, None, Report]:
    """Convert a checkpoint as `convert_in_steps`, with a quantization that is learned. Run again
    after a stop, it goes on.

    Args:
        data: a folder of pictures, or rows as `read_rows` has them: what is asked about in place of
            built-in pictures, beside built-in questions in words.

    Raises:
        CheckpointError, AdapterError, ConversionError: as of `convert_in_steps`.
        ConversionError: the recipe quantizes nothing, or not to affine grids.
        DataError, ImageError: `data` cannot be used.
        DeviceError: it takes more memory than there is.
        TrainingError: what an earlier run left belongs to something else, or is damaged.
    """
    _check(RECIPES.get(recipe) if isinstance(recipe, str) else recipe)
    out, prompts = expanded(out), lessons(data)
    folder = out.with_name(f"{out.name}.learning")

    def learner(plan: Plan) -> Generator[Reading, None, Learned]:
        return _learn(plan, prompts, folder)

    with written(folder, TrainingError), lock(folder):
        report = yield from convert_in_steps(
            source, out, recipe, adapter=adapter, revision=revision, learner=learner, card=card
        )
        shutil.rmtree(folder, ignore_errors=True)
    return report


learn = at_once(learn_in_steps)


def _check(recipe: Recipe | None) -> None:
    if recipe is None:
        return  # whose name `convert` refuses
    if not recipe.quantizes:
        raise ConversionError("nothing is learned without bits to quantize to; add --bits 4")
    forms = [form for form in recipe.modules.values() if form is not None]
    odd = [mode for mode in (recipe.mode, *(form.mode for form in forms)) if mode != "affine"]
    if odd:
        raise ConversionError(
            f"{odd[0]} is not learned: its scales are 8-bit floats; use --bits, or no --learn"
        )


# ---- what is learned from


@dataclass(frozen=True)
class _Lessons:
    """Conversations with the source's answers, and inputs of their prompts."""

    examples: Sequence[Example]
    inputs: Sequence[Inputs]

    @property
    def positions(self) -> int:
        return sum(len(each.input_ids) for each in self.examples)


def _learn(
    plan: Plan, prompts: Sequence[Prompt], folder: Path
) -> Generator[Reading, None, Learned]:
    assert plan.quantization is not None
    processor = Processor.from_folder(plan.checkpoint.folder, plan.checkpoint.config)
    inputs = [processor(each.messages, each.image_options) for each in prompts]
    forms = {
        name.removesuffix(".scales"): plan.quantization.of(name.removesuffix(".scales"))
        for name in plan.forms
        if name.endswith(".scales")
    }
    _check_memory(plan, inputs)
    model = plan.model()
    saved = Saved(folder, _about(plan, model, inputs))
    cache = ImageCache(model)
    answers = yield from _answer(model, processor, prompts, saved, cache)
    examples = [
        with_answer(prompt, each.input_ids, answer)
        for prompt, each, answer in zip(prompts, inputs, answers, strict=True)
    ]
    learner = _Learner(model, DTYPES[plan.dtype], forms, saved)
    layers = yield from learner.run_in_steps(_Lessons(examples, inputs), cache)
    return Learned(layers, learner.curve)


def _check_memory(plan: Plan, inputs: Sequence[Inputs]) -> None:
    weights = sum(4 * int(np.prod(shape)) for shape in plan.shapes.values())
    prompts, tiles = [len(each.input_ids) for each in inputs], TILES * _has_tower(plan)
    needed = learning_bytes(plan.config, weights, prompts, MAX_TOKENS, tiles)
    if needed > device.memory_limit():
        raise DeviceError(
            f"learning takes {needed / 1e9:.1f} GB by estimate, more than the "
            f"{device.memory_limit() / 1e9:.1f} GB that it may take; leave out --learn"
        )


def _has_tower(plan: Plan) -> bool:
    return any(name.startswith("vision_model.") for name in plan.forms if "scales" in name)


def _about(plan: Plan, model: SmolVLM, inputs: Sequence[Inputs]) -> dict[str, object]:
    """What has to be the same for a run to go on."""
    base, data = hashlib.sha256(), hashlib.sha256()
    for name, array in sorted(model.named_parameters().items()):
        base.update(name.encode() + np.array(array).tobytes())
    for each in inputs:
        data.update(each.input_ids.tobytes() + each.tiles.tobytes())
    recipe: dict[str, object] = json.loads(json.dumps(asdict(plan.recipe)))
    return {"source": base.hexdigest(), "recipe": recipe, "data": data.hexdigest()}


def _answer(
    model: SmolVLM,
    processor: Processor,
    prompts: Sequence[Prompt],
    saved: Saved,
    cache: ImageCache,
) -> Generator[Reading, None, list[list[int]]]:
    """The source's answers, each without its prompt."""
    answers = saved.answers()
    while len(answers) < len(prompts):
        yield Reading(len(answers), len(prompts), "answers")
        part = prompts[len(answers) : len(answers) + TOGETHER]
        examples = Work(answer_in_steps(model, processor, part, cache=cache)).finish()
        answers += [each.input_ids[each.is_answer].tolist() for each in examples]
        saved.keep_answers(answers)
    yield Reading(len(prompts), len(prompts), "answers")
    return answers


# ---- learning


@dataclass
class _Learner:
    """Quantizes `model`, block after block."""

    model: SmolVLM
    dtype: mx.Dtype
    forms: Mapping[str, Form]
    saved: Saved
    # By block: how far hidden states behind it are from the source's.
    curve: dict[str, float] = field(default_factory=dict)

    def run_in_steps(
        self, lessons: _Lessons, cache: ImageCache
    ) -> Generator[Reading, None, dict[str, Packed]]:
        """Quantized layers by their paths."""
        source = [image_tokens(self.model, each, cache) for each in lessons.inputs]
        student, found = source, dict[str, Packed]()
        tower = tower_blocks(self.model) if self._has("vision_model.") else []
        total = len(tower) + len(self.model.language_model.layers) + 2
        if tower:
            found |= yield from self._blocks(tower, self._tiles(lessons), 0, total)
        if self._has("vision_model.", "connector."):
            self._round(CONNECTOR, self.model.connector.modality_projection.proj)
            student = [image_tokens(self.model, each) for each in lessons.inputs]
        yield Reading(len(tower), total, "blocks")
        batches = list(self._batches(lessons, source))
        if TABLE in self.forms:
            found |= self._table(batches)
        for batch, both in zip(batches, self._batches(lessons, student), strict=True):
            batch.student = both.source
        blocks = decoder_blocks(self.model)
        found |= yield from self._blocks(blocks, batches, len(tower) + 1, total)
        yield Reading(total, total, "blocks")
        return found

    def _has(self, *parts: str) -> bool:
        return any(path.startswith(parts) for path in self.forms)

    def _blocks(
        self, blocks: Sequence[Block], batches: Sequence[Batch], done: int, total: int
    ) -> Generator[Reading, None, dict[str, Packed]]:
        found: dict[str, Packed] = {}
        for number, block in enumerate(blocks, done):
            yield Reading(number, total, "blocks")
            paths = [block.name(layer) for stage in block.stages for layer in stage]
            wanted = {path: self.forms[path] for path in paths if path in self.forms}
            known = self.saved.layers(block.path, wanted, self.model, self.dtype)
            learned = learn_block(block, batches, wanted, self.dtype, known)
            if known is None:
                self.saved.keep_layers(block.path, learned)
            found |= learned
            if not block.is_last:
                self.curve[block.path] = distance(batches)
            mx.clear_cache()
        return found

    def _table(self, batches: Sequence[Batch]) -> dict[str, Packed]:
        """The table of embeddings: learned where it is the head, too, and else rounded."""
        form, table = self.forms[TABLE], self.model.language_model.embed_tokens
        if "lm_head" in self.model.language_model:
            self._round(TABLE, table)
            return {}
        wanted = {TABLE: form}
        found = self.saved.layers(TABLE, wanted, self.model, self.dtype)
        if found is None:
            found = {TABLE: learn_table(self.model, batches, form, self.dtype)}
            self.saved.keep_layers(TABLE, found)
        table.weight = dequantized(*found[TABLE], form)
        return found

    def _round(self, path: str, layer: nn.Module) -> None:
        """Quantize a layer as `convert` does. The connector has 8 bits, which cost nothing, and
        12,288 inputs, which would cost an hour."""
        if path in self.forms:
            bits, group_size, mode = self.forms[path]
            packed = mx.quantize(layer.weight.astype(self.dtype), group_size, bits, mode)
            layer.weight = dequantized(packed[0], packed[1], packed[2], self.forms[path])

    def _tiles(self, lessons: _Lessons) -> list[Batch]:
        """Embedded patches of some of all tiles."""
        found = {
            digest: (tile, each.settings)
            for each in lessons.inputs
            for tile, digest in zip(each.tiles, each.tile_digests, strict=True)
        }
        tiles = list(found.values())
        if len(tiles) < 2:
            raise TrainingError(
                "the tower learns from pictures, and DATA has not two; add some, or leave out "
                "--quantize-vision"
            )
        count = min(TILES, len(tiles))
        batches = []
        for number in range(count):
            tile, settings = tiles[number * len(tiles) // count]
            x = self.model.vision_model.embeddings(mx.array(normalize(tile[None], settings)))
            mx.eval(x)
            batches.append(Batch(x, x, np.ones(x.shape[:2], np.bool_)))
        return batches

    def _batches(self, lessons: _Lessons, tokens: Sequence[mx.array | None]) -> Iterator[Batch]:
        """Conversations of like lengths side by side, embedded, with image tokens."""
        model = self.model
        order = np.argsort([len(each.input_ids) for each in lessons.examples], kind="stable")
        for start in range(0, len(order), TOGETHER):
            part = order[start : start + TOGETHER].tolist()
            longest = max(len(lessons.examples[each].input_ids) for each in part)
            rows, real = [], np.zeros((len(part), longest), np.bool_)
            for row, each in enumerate(part):
                example = lessons.examples[each]
                prompt, rest = np.split(example.input_ids, [len(example.prompt_ids)])
                padded = np.pad(rest, (0, longest - len(example.input_ids)))
                merged = model.merge(mx.array(prompt)[None], tokens[each])
                answer = model.language_model.embed(mx.array(padded)[None])
                rows.append(mx.concatenate([merged, answer], axis=1))
                real[row, : len(example.input_ids)] = True
            x = mx.concatenate(rows)
            mx.eval(x)
            yield Batch(x, x, real)
