"""How good a conversion is: its predictions beside the source's, by kind of prompt."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..checkpoint.reader import load
from ..data.rows import Row
from ..data.samples import make_sample
from ..errors import CheckpointError, DataError, SmolVLMError
from ..events import Reading, Work, at_once
from ..generation.image_cache import ImageCache
from ..inputs.processor import Processor
from ..model import SmolVLM
from .divergence import Distances, Predictions, compare
from .examples import (
    TOGETHER,
    Example,
    answer_in_steps,
    keep_head,
    predict_in_steps,
    read_sample,
)
from .prompts import KINDS, Kind, Prompt, prompts

POSITIONS = 2_000  # at least, of built-in prompts; so many times five of rows, if they have them
ROWS_FACTOR = 5
# Mean KL in nats, of the kind that has most. Of SmolLM2-135M rounded to 8, 6 and 4 bits it is
# 0.003, 0.03 and 0.45 (docs/quality.json).
FAIR, POOR = 0.02, 0.1
Verdict = Literal["good", "fair", "poor", "broken"]
# Of each eight prompts. Pictures are slow, and have less to say about a decoder.
_TURNS: tuple[Kind, ...] = (
    *("text", "picture", "text", "pictures", "text", "document", "text", "picture"),
    *("text", "picture", "text", "pictures", "text", "video", "text", "picture"),
)


@dataclass(frozen=True)
class Figures:
    """Of some conversations; KL in nats.

    Attributes:
        changed: share of positions at which another token is the likeliest.
        source_perplexity, result_perplexity: of the answers' tokens.
    """

    conversations: int
    positions: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    changed: float
    source_perplexity: float
    result_perplexity: float

    @property
    def is_finite(self) -> bool:
        return isfinite(self.kl_mean) and isfinite(self.result_perplexity)


@dataclass(frozen=True)
class QualityReport:
    """A conversion beside its source: all, and by kind of prompt.

    Attributes:
        skipped: rows of data that cannot be used, where and why.
        left_out: kinds of prompts that the model does not take.
    """

    total: Figures
    kinds: Mapping[str, Figures]
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def worst(self) -> str:
        """The kind with the highest mean KL; one that is not finite is highest."""
        kls = {kind: figures.kl_mean for kind, figures in self.kinds.items()}
        return max(kls, key=lambda kind: kls[kind] if isfinite(kls[kind]) else float("inf"))

    @property
    def verdict(self) -> Verdict:
        """By the worst kind of prompt."""
        if not all(figures.is_finite for figures in (self.total, *self.kinds.values())):
            return "broken"
        kl = self.kinds[self.worst].kl_mean
        return "poor" if kl > POOR else "fair" if kl > FAIR else "good"

    def to_json(self) -> dict[str, Any]:
        """As a mapping of JSON's types; a number that is not finite is null."""
        both = {"total": self.total, **self.kinds}
        figures = {
            name: {
                key: None if isinstance(value, float) and not isfinite(value) else value
                for key, value in asdict(each).items()
            }
            for name, each in both.items()
        }
        return {"verdict": self.verdict, "total": figures.pop("total"), "kinds": figures}


def check_in_steps(
    source: str | Path,
    result: str | Path,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    rows: Sequence[Row] = (),
    positions: int = POSITIONS,
    kinds: Sequence[Kind] = KINDS,
) -> Generator[Reading, None, QualityReport]:
    """Compare the predictions of `result` with those of `source`, wherever the next token is
    predicted from one that is no image placeholder: in prompts, and in the source's own greedy
    answers to them.

    The two are loaded one after the other. Of the source are kept the hidden states and the head,
    so that no table of logits is written out.

    Args:
        revision, adapter: the source's.
        rows: of data, with answers, in place of the built-in prompts.
        positions: at least so many of built-in prompts.

    Raises:
        CheckpointError: one cannot be used, or they are not the same model.
        DataError: no row can be used.
    """
    reference = yield from measure_source_in_steps(
        source, revision=revision, adapter=adapter, rows=rows, positions=positions, kinds=kinds
    )
    model, processor = load(result)
    try:
        return (yield from reference.compared_in_steps(model, processor))
    except CheckpointError as error:
        raise CheckpointError(f"{source} and {result}: {error}") from None


check = at_once(check_in_steps)


@dataclass(frozen=True)
class Reference:
    """What a source predicts; its model is a head alone."""

    examples: Sequence[Example]
    predictions: Sequence[Predictions]
    model: SmolVLM
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()

    def compared_in_steps(
        self, model: SmolVLM, processor: Processor
    ) -> Generator[Reading, None, QualityReport]:
        """Compare another model's predictions.

        Raises:
            CheckpointError: it is another model.
        """
        ours, theirs = self.model.config, model.config
        if ours.text_config.vocab_size != theirs.text_config.vocab_size:
            raise CheckpointError("not the same model: their vocabularies differ")
        found = list[tuple[Example, Distances]]()
        predicted = yield from predict_in_steps(model, processor, self.examples)
        for example, want, have in zip(self.examples, self.predictions, predicted, strict=True):
            following = example.input_ids[1:][example.positions(ours.image_token_id)]
            found.append((example, compare(want, have, following)))
        groups = {kind: [pair for pair in found if pair[0].kind == kind] for kind in KINDS}
        by_kind: dict[str, Figures] = {
            kind: _figures(group, ours.image_token_id) for kind, group in groups.items() if group
        }
        total = _figures(found, ours.image_token_id)
        return QualityReport(total, by_kind, self.skipped, self.left_out)

    compared = at_once(compared_in_steps)


def measure_source_in_steps(
    source: str | Path,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    rows: Sequence[Row] = (),
    positions: int = POSITIONS,
    kinds: Sequence[Kind] = KINDS,
) -> Generator[Reading, None, Reference]:
    """What a source predicts, for several results to be compared with; as `check_in_steps`."""
    model, processor = load(source, revision=revision, adapter=adapter)
    cache = ImageCache(model)
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    if rows:
        examples, skipped = yield from _read(model, processor, rows, ROWS_FACTOR * positions)
    else:
        able = [kind for kind in kinds if kind != "video" or model.config.model_type == "smolvlm"]
        left_out = tuple(kind for kind in kinds if kind not in able)
        examples = yield from _answered(model, processor, able, positions, cache)
    predictions = yield from predict_in_steps(model, processor, examples, cache)
    keep_head(model)
    return Reference(examples, predictions, model, skipped, left_out)


measure_source = at_once(measure_source_in_steps)


def _answered(
    model: SmolVLM,
    processor: Processor,
    kinds: Sequence[Kind],
    positions: int,
    cache: ImageCache,
) -> Generator[Reading, None, list[Example]]:
    """Built-in prompts with the model's own answers, until there are so many positions."""
    examples, done, asked = list[Example](), 0, _in_turns(kinds)
    while done < positions:
        part = [next(asked) for _ in range(TOGETHER)]
        work = Work(answer_in_steps(model, processor, part, cache=cache))
        for _ in work:
            yield Reading(done, positions, "positions")
        examples += work.result
        done = sum(len(each.positions(model.config.image_token_id)) for each in examples)
    yield Reading(positions, positions, "positions")
    return examples


def _in_turns(kinds: Sequence[Kind]) -> Iterator[Prompt]:
    """Endless prompts of these kinds."""
    endless = {kind: prompts(kind, "check") for kind in kinds}
    return (next(endless[kind]) for kind in cycle(_TURNS) if kind in endless)


def _read(
    model: SmolVLM, processor: Processor, rows: Sequence[Row], positions: int
) -> Generator[Reading, None, tuple[list[Example], tuple[tuple[str, str], ...]]]:
    """Conversations of rows from the first on, until there are so many positions; and rows that
    cannot be used."""
    examples, skipped, done = list[Example](), list[tuple[str, str]](), 0
    for number, row in enumerate(rows):
        yield Reading(number, len(rows), "rows")
        try:
            example = read_sample(processor, make_sample(row))
        except SmolVLMError as error:
            skipped.append((row.where, str(error)))
            continue
        tokens, context = len(example.input_ids), model.config.text_config.max_position_embeddings
        if tokens > context:
            skipped.append((row.where, f"{tokens} tokens, more than {context}"))
            continue
        examples.append(example)
        done += len(example.positions(model.config.image_token_id))
        if done >= positions:
            break
    if not examples:
        where, why = skipped[0]
        raise DataError(f"no row can be compared on: {where}: {why}")
    return examples, tuple(skipped)


def _figures(found: Sequence[tuple[Example, Distances]], image_token_id: int) -> Figures:
    kl = np.concatenate([distances.kl for _, distances in found])
    changed = np.concatenate([distances.changed for _, distances in found])
    follows = np.concatenate(
        [example.is_answer[1:][example.positions(image_token_id)] for example, _ in found]
    )
    losses = (
        np.concatenate([getattr(distances, name) for _, distances in found])[follows]
        for name in ("source_loss", "result_loss")
    )
    with np.errstate(over="ignore", invalid="ignore"):  # said by the verdict
        perplexities = [float(np.exp(loss.astype(np.float64).mean())) for loss in losses]
        mean, median, p99 = kl.astype(np.float64).mean(), np.median(kl), np.quantile(kl, 0.99)
    numbers = map(float, (mean, median, p99, changed.mean()))
    return Figures(len(found), len(kl), *numbers, *perplexities)
