"""Questions with known answers -> scores of one or several checkpoints, by the benchmarks' own
metrics (see `metrics`).

Each answer is written to a file as soon as it is there, so that a stopped run goes on where it was.
"""

import json
import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev

from ..checkpoint.reader import load
from ..data.rows import Row, read_rows, rows_fingerprint
from ..data.samples import Sample, make_sample
from ..errors import EvaluationError, SmolVLMError, quote
from ..events import Reading, at_once
from ..files import append_file, expanded, lock, write_file, written
from ..generation.engine import generate
from ..generation.options import Options
from ..inputs.prefetch import prefetch
from ..inputs.processor import Inputs, Processor
from ..inputs.settings import ImageOptions
from ..model import SmolVLM
from .metrics import METRICS
from .options import EVALUATION

AHEAD = 4  # questions whose pictures are prepared while one is answered
Z = 1.96  # of a 95 per cent interval


@dataclass(frozen=True)
class Answer:
    """One question's outcome; `error` says why there is no prediction, which scores 0; whether it
    has a picture or a video."""

    where: str
    category: str
    prediction: str
    answers: tuple[str, ...]
    score: float
    error: str = ""
    image: bool = False
    video: bool = False


@dataclass(frozen=True)
class Score:
    """A mean of scores from 0 to 1 with its 95 per cent interval (Wilson's, which holds for shares
    near 0 and 1)."""

    count: int
    mean: float

    @property
    def interval(self) -> tuple[float, float]:
        n, p = self.count, self.mean
        center, width = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        low, high = ((center + side) / (1 + Z * Z / n) for side in (-width, width))
        return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Result:
    """All answers of one checkpoint, in the order of the data."""

    name: str
    answers: tuple[Answer, ...]

    @property
    def score(self) -> Score:
        return _score(self.answers)

    @property
    def categories(self) -> dict[str, Score]:
        """By category, in order of appearance."""
        names = dict.fromkeys(answer.category for answer in self.answers)
        return {
            name: _score([answer for answer in self.answers if answer.category == name])
            for name in names
        }

    @property
    def shown(self) -> tuple[int, int]:
        """Questions with a picture, and with a video."""
        return (
            sum(answer.image for answer in self.answers),
            sum(answer.video for answer in self.answers),
        )

    @property
    def failed(self) -> list[Answer]:
        """Those that could not be asked."""
        return [answer for answer in self.answers if answer.error]

    def agreement(self, other: "Result") -> float:
        """Share of questions to which both give the same answer."""
        return fmean(
            a.prediction == b.prediction for a, b in zip(self.answers, other.answers, strict=True)
        )

    def difference(self, other: "Result") -> tuple[float, float]:
        """How much better than the other, and half the 95 per cent interval of that, from the pairs
        of answers."""
        pairs = [a.score - b.score for a, b in zip(self.answers, other.answers, strict=True)]
        deviation = stdev(pairs) if len(pairs) > 1 else 0.0
        return fmean(pairs), Z * deviation / math.sqrt(len(pairs))


def _score(answers: Sequence[Answer]) -> Score:
    return Score(len(answers), fmean(answer.score for answer in answers))


def evaluate_in_steps(
    model_path: str | Path,
    data: str | Path | Sequence[Row],
    results: str | Path,
    *,
    metric: str = "auto",
    options: Options = EVALUATION,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    memory: int | str | None = None,
    image_options: ImageOptions | None = None,
) -> Generator[Reading, None, Result]:
    """Answer every question of the data with one checkpoint.

    Args:
        data: JSONL file, folder, hub dataset (see `data.samples`), or its rows.
        results: JSONL file of the answers; only what failed of those in it is asked again.
        metric: one of `metrics.METRICS`, or "auto": its benchmark's, choice with choices, or exact.
        image_options: for all pictures; a row's own go first.

    Raises:
        DataError, EvaluationError: the data or the results file cannot be used.
        CheckpointError, AdapterError: the model cannot.
    """
    rows = _questions(data, metric)
    path, image_options = expanded(results), image_options or ImageOptions()
    weights = _state(model_path, adapter)
    checkpoint = {"model": str(model_path), "adapter": str(adapter or ""), "weights": weights}
    run = {"dtype": dtype, "revision": revision, "metric": metric, "data": rows_fingerprint(rows)}
    asked = {"options": asdict(options), "image_options": asdict(image_options)}
    with written(path, EvaluationError), lock(path):
        done = _read_results(path, {**checkpoint, **run, **asked})
        if missing := [row for row in rows if row.where not in done]:
            loaded = load(model_path, dtype, revision, adapter=adapter, memory=memory)
            for answer in _answer(*loaded, missing, options, image_options, metric):
                append_file(path, _line(answer))
                done[answer.where] = answer
                yield Reading(len(done), len(rows), "questions")
    return Result(str(model_path), tuple(done[row.where] for row in rows))


evaluate = at_once(evaluate_in_steps)


def _line(answer: Answer) -> bytes:
    text = json.dumps(asdict(answer), ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # lone surrogates, of names of files


def _questions(data: str | Path | Sequence[Row], metric: str) -> Sequence[Row]:
    """The rows to ask, and to score by a metric that there is."""
    if metric != "auto" and metric not in METRICS:
        raise EvaluationError(f"metric {quote(metric)} is not one of auto, {', '.join(METRICS)}")
    rows = read_rows(data) if isinstance(data, str | Path) else data
    if not rows:
        raise EvaluationError("no questions to ask")
    return rows


def _answer(
    model: SmolVLM,
    processor: Processor,
    rows: Sequence[Row],
    options: Options,
    image_options: ImageOptions,
    metric: str,
) -> Iterator[Answer]:
    """In order; pictures of the next questions are prepared meanwhile."""

    def prepare(row: Row) -> tuple[Sample | None, Inputs | SmolVLMError]:
        sample = None
        try:
            sample = make_sample(row)
            return sample, processor(sample.messages, sample.image_options.over(image_options))
        except SmolVLMError as error:
            return sample, error

    for row, (sample, inputs) in zip(rows, prefetch(map(prepare, rows), AHEAD), strict=True):
        if sample is None:
            category = row.raw.get("category") if isinstance(row.raw, Mapping) else None
            yield Answer(row.where, str(category or ""), "", (), 0.0, str(inputs))
            continue
        prediction, score, problem = "", 0.0, ""
        try:
            if isinstance(inputs, SmolVLMError):
                raise inputs
            prediction = generate(model, processor, inputs, options).strip()
        except SmolVLMError as error:
            problem = str(error)
        else:
            score = _score_of(sample, prediction, metric)
        said = row.where, sample.category, prediction, sample.answers, score, problem
        yield Answer(*said, sample.shows("image"), sample.shows("video"))


def _score_of(sample: Sample, prediction: str, metric: str) -> float:
    """Nobody's words are no answer, but among those of VQA's people."""
    if metric == "auto":
        metric = sample.metric or ("choice" if sample.choices else "exact")
    answers = [answer for answer in sample.answers if answer.strip() or metric in ("vqa", "vqav2")]
    return METRICS[metric](prediction, answers, sample.choices)


def _state(*folders: str | Path | None) -> str:
    """Of the weight files of local folders, by size and time: what was trained again is another
    model."""
    try:
        wanted = [expanded(folder) for folder in folders if folder]
        files = [file for folder in wanted for file in sorted(folder.glob("*.safetensors"))]
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except (OSError, ValueError):
        return ""  # `load` says what is wrong
    return sha256(repr(state).encode()).hexdigest()[:16]


def _read_results(path: Path, run: Mapping[str, object]) -> dict[str, Answer]:
    """Answers of the same run that are there already, but for what failed; a line cut off by a
    crash is removed."""
    header = json.dumps(run).encode() + b"\n"
    found = path.read_bytes() if path.exists() else b""
    if header.startswith(found):  # nothing there yet, or a first line cut off
        write_file(path, header)
        return {}
    whole = found[: found.rfind(b"\n") + 1]
    answers = _parse_results(path, whole, json.loads(header))
    os.truncate(path, len(whole))  # not before it is known to be ours
    return answers


def _parse_results(path: Path, whole: bytes, run: Mapping[str, object]) -> dict[str, Answer]:
    try:
        first, *others = [json.loads(line) for line in whole.splitlines()]
        answers = [Answer(**{**line, "answers": tuple(line["answers"])}) for line in others]
        if first.keys() != run.keys():
            raise ValueError("another first line")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EvaluationError(
            f"{path}: holds something else than an evaluation's results"
        ) from error
    if first != run:
        changed = ", ".join(name for name in run if first[name] != run[name])
        raise EvaluationError(
            f"{path}: results of another evaluation ({changed} differ); choose another folder"
        )
    return {answer.where: answer for answer in answers if not answer.error}
