"""Scores beside those of the benchmarks' own scripts, over answers as models give them: a table of
how often they agree, and why not where they do not.

    git clone https://github.com/MMMU-Benchmark/MMMU CHECKOUTS/MMMU     (and the others of SOURCES)
    python -m tests.parity.metrics CHECKOUTS --count 30000

Ends with exit code 1 if a difference has no reason. `--golden FILE` stores some of the cases with
the official results, for tests/test_metrics.py.
"""

import __future__

import argparse
import ast
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from smolvlm_mlx.data.letters import LETTERS, chosen_letter
from smolvlm_mlx.tasks.metrics import METRICS
from tests.parity.answers import Case, draw_case

SOURCES = {  # folder of a checkout: where it is from, and the commit of docs/metrics.md
    "MMMU": ("MMMU-Benchmark/MMMU", "bb0b95a"),
    "mmf": ("facebookresearch/mmf", "b0ffc7f"),
    "VQA": ("GT-Vision-Lab/VQA", "a013f00"),
    "pix2struct": ("google-research/pix2struct", "945f27e"),
    "MultimodalOCR": ("Yuliang-Liu/MultimodalOCR", "794c36d"),
    "lmms-eval": ("EvolvingLMMs-Lab/lmms-eval", "75571cf"),
}
KEPT = 60  # cases of each script in the golden
Result = float | str | None  # a score, or the letter that is chosen
Score = Callable[[Case], Result]


# ---- the scripts, of which only functions and classes are run: their imports are heavy


def load(path: Path, *names: str, **given: object) -> SimpleNamespace:
    """Functions and classes of a Python file, undecorated."""
    source = re.sub(r"(?m)^(\s+)print .*$", r"\1pass", path.read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in strings
        tree = ast.parse(source)
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    for node in tree.body:
        node.decorator_list = []  # type: ignore[attr-defined]
    scope: dict[str, Any] = {"re": re, "sys": sys, **given}
    flags = __future__.annotations.compiler_flag
    exec(compile(tree, str(path), "exec", flags=flags), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


def mmmu(path: Path) -> Score:
    """The letter; None where one is drawn at random."""
    numbers = SimpleNamespace(argmax=lambda values: values.index(max(values)))
    chance = SimpleNamespace(choice=lambda letters: None)
    script = load(path, "parse_multi_choice_response", np=numbers, random=chance)

    def letter(case: Case) -> Result:
        by_letter = dict(zip(LETTERS, case.choices, strict=False))
        found = script.parse_multi_choice_response(case.prediction, list(by_letter), by_letter)
        return None if found is None else str(found)

    return letter


def mmmu_open(path: Path) -> Score:
    names = "check_is_number normalize_str extract_numbers parse_open_response eval_open".split()
    script = load(path, *names)
    return lambda case: float(
        script.eval_open(list(case.answers), script.parse_open_response(case.prediction))
    )


def textvqa(path: Path) -> Score:
    script = load(path, "EvalAIAnswerProcessor", "TextVQAAccuracyEvaluator")
    evaluator = script.TextVQAAccuracyEvaluator()
    return lambda case: float(
        evaluator.eval_pred_list(
            [{"pred_answer": case.prediction, "gt_answers": list(case.answers)}]
        )
    )


def vqav2(path: Path) -> Score:
    script = load(path, "VQAEval")

    def score(case: Case) -> Result:
        people = [{"answer": text, "answer_id": n} for n, text in enumerate(case.answers)]
        asked = {"answers": people, "question_type": "what", "answer_type": "other"}
        data = SimpleNamespace(qa={1: asked}, getQuesIds=lambda: [1])
        said = SimpleNamespace(qa={1: {"answer": case.prediction}})
        run = script.VQAEval(data, said, n=10)
        run.updateProgress = lambda progress: None
        run.evaluate()
        return float(run.accuracy["overall"]) / 100

    return score


def ocrbench(path: Path, dataset: str) -> Score:
    """What stands in the loop of the script, for an answer of one data set."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (node,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "dataset_name == 'HME100k'"
    ]
    code = compile(ast.Module([node], []), str(path), "exec")

    def score(case: Case) -> Result:
        data = [{"result": 0}]
        scope = {"dataset_name": dataset, "i": 0, "data": data}
        exec(code, scope | {"answers": list(case.answers), "predict": case.prediction})
        return float(data[0]["result"])

    return score


def best(function: Callable[[str, str], float], form: Callable[[str], str] = str) -> Score:
    """The best of all answers, of a function of answer and prediction; None for a division by
    zero."""

    def score(case: Case) -> Result:
        try:
            said = form(case.prediction)
            return float(max(function(form(answer), said) for answer in case.answers))
        except ZeroDivisionError:
            return None

    return score


def stvqa_anls(path: Path, distance: SimpleNamespace) -> Score:
    """The class imports a package for the distance, which is given here."""
    cls = load(path, "STVQAANLSEvaluator").STVQAANLSEvaluator
    evaluator = cls.__new__(cls)
    evaluator.get_edit_distance = distance.eval
    return best(lambda answer, said: evaluator.get_anls(said, answer))


def challenge_anls(script: SimpleNamespace) -> Score:
    return lambda case: float(script.anls(list(case.answers), [case.prediction])["anls"])


# ---- why they differ


Reason = tuple[str, Callable[[Case, Result], object]]  # of a case and the script's result


def anywhere(form: str) -> Callable[[Case, Result], object]:
    """Whether a regular expression is in one of the texts."""
    found = re.compile(form)
    return lambda case, official: any(
        found.search(text) for text in (case.prediction, *case.answers)
    )


def said(form: str) -> Callable[[Case, Result], object]:
    """Whether a regular expression is in the prediction."""
    found = re.compile(form)
    return lambda case, official: found.search(case.prediction)


def is_contained(case: Case, official: Result) -> bool:
    """Whether one choice is part of another."""
    low = [choice.lower() for choice in case.choices]
    return any(one in other for one in low for other in low if one != other)


def is_marked(case: Case, official: Result) -> bool:
    """Whether a choice ends with a mark."""
    return any(choice.endswith(".") for choice in case.choices)


def is_a_choice(case: Case, official: Result) -> bool:
    """Whether the whole text is a choice, or a letter and its choice."""
    text = case.prediction.strip(" .,;\n").lower()
    return any(
        re.fullmatch(rf"(\W*{letter}\W+)?{re.escape(choice.strip('.'))}\W*", text)
        for letter, choice in zip("abcdefghij", map(str.lower, case.choices), strict=False)
    )


SAID = r"(?i)\b(?:answer|option|choice|letter)[*_]*\s*(?:[:=]|is\b|would be)|boxed|<answer>"
CHOICE: list[Reason] = [
    ("A is an article, I a pronoun", said(r"\b[AI] (?!(?:is|it|or) )[a-z]")),
    ("what is said to be the answer goes first", said(SAID)),
    ("the whole is a choice, or a letter and its choice", is_a_choice),
    ("a letter alone in a line, or in front, goes first", said(r"(?m)^\W*[A-Ja-j]\W*([.:)]|$)")),
    ("a letter with a mark goes before a choice", said(r"(?<![^\W_])[A-Ja-j](?:[^\w ]|_| -)")),
    ("the longest of choices within each other", is_contained),
    ("marks at the end of a choice do not count", is_marked),
]
PRO: list[Reason] = [
    ("it finds letters within words", said(r"\w[A-J]\b|[A-J]\w")),
    *CHOICE,
]
STRIPPED: Reason = ("spaces around do not count", anywhere(r"^\s|\s$"))
EMPTY: Reason = (
    "it finds an empty answer in every text",
    lambda case, official: not all(map(str.strip, case.answers)),
)
JOINED: Reason = (
    "spaces in a row are one, and count in the length",
    anywhere(r"\s\s|[\n\t]|^\s|\s$"),
)
LONGER: Reason = ("lengths are those of capitals (ß, SS)", anywhere("[ß\u0130]"))


# ---- the comparison


@dataclass(frozen=True)
class Row:
    """A metric beside one script."""

    metric: str
    script: str
    official: Score
    reasons: Sequence[Reason] = ()

    def compare(self, case: Case) -> tuple[Result, str]:
        """The script's result, and why it is not ours; empty if it is, or the script has none."""
        if self.metric == "choice":
            ours: Result = chosen_letter(case.prediction, case.choices)
        else:
            ours = METRICS[self.metric](case.prediction, case.answers, case.choices)
        official = self.official(case)
        if official is None or ours == official or are_close(ours, official):
            return official, ""
        reasons = (name for name, applies in self.reasons if applies(case, official))
        return official, next(reasons, "NO REASON")


def are_close(one: Result, other: Result) -> bool:
    return isinstance(one, float) and isinstance(other, float) and abs(one - other) < 1e-9


def make_rows(folder: Path) -> list[Row]:
    """All metrics that have a script, beside it."""
    mmmu_utils = folder / "MMMU/mmmu/utils/eval_utils.py"
    pix2struct, lmms = folder / "pix2struct/pix2struct/metrics.py", folder / "lmms-eval/lmms_eval"
    m4c = folder / "mmf/mmf/utils/m4c_evaluators.py"
    challenge = load(lmms / "api/metrics.py", "levenshtein_distance", "anls")
    distance = SimpleNamespace(eval=challenge.levenshtein_distance)
    struct = load(pix2struct, "anls_metric", "relaxed_correctness", editdistance=distance)
    ocr = folder / "MultimodalOCR/OCRBench/example.py"
    return [
        Row("vqa", "mmf, TextVQA", textvqa(m4c)),
        Row("vqav2", "VQA", vqav2(folder / "VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py")),
        Row("anls", "lmms-eval", challenge_anls(challenge)),
        Row("anls", "mmf, ST-VQA", stvqa_anls(m4c, distance), [JOINED, LONGER]),
        Row("anls_paper", "pix2struct", best(struct.anls_metric, str.lower)),
        Row("relaxed", "pix2struct", best(struct.relaxed_correctness), [STRIPPED]),
        Row("choice", "MMMU", mmmu(mmmu_utils), CHOICE),
        Row("choice", "MMMU-Pro", mmmu(folder / "MMMU/mmmu-pro/evaluate.py"), PRO),
        Row("open", "MMMU", mmmu_open(mmmu_utils)),
        Row("contains", "OCRBench", ocrbench(ocr, "IIIT5K"), [EMPTY]),
        Row("formula", "OCRBench", ocrbench(ocr, "HME100k"), [EMPTY]),
    ]


def print_row(row: Row, found: list[tuple[Case, Result, str]], shown: int) -> None:
    """A line of the table; then, on stderr, some cases of each difference."""
    why = Counter(reason for _, _, reason in found if reason)
    none = sum(official is None for _, official, _ in found)
    same = 1 - why.total() / (len(found) - none)
    reasons = "; ".join(f"{reason}: {count:,}" for reason, count in why.most_common())
    print(f"| {row.metric} | {row.script} | {none:,} | {100 * same:.2f} | {reasons} |", flush=True)
    for reason in why:
        for case, official, _ in [each for each in found if each[2] == reason][:shown]:
            print(f"    {reason}: {case} {official!r}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help=f"has checkouts: {', '.join(SOURCES)}")
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--show", type=int, default=0, help="cases of each difference")
    parser.add_argument("--golden", type=Path)
    given = parser.parse_args()
    missing = [
        f"{name} (https://github.com/{repository}, {commit})"
        for name, (repository, commit) in SOURCES.items()
        if not (given.folder / name).is_dir()
    ]
    if missing:
        parser.error(f"{given.folder} has no {', '.join(missing)}")
    golden, is_open = [], False
    print("| metric | script | no result there | else the same, % | differences |")
    print("|---|---|---|---|---|")
    for row in make_rows(given.folder):
        rng = Random(f"{row.metric} {row.script}")
        cases = (draw_case(row.metric, rng) for _ in range(given.count))
        found = [(case, *row.compare(case)) for case in cases]
        print_row(row, found, given.show)
        is_open |= any(reason == "NO REASON" for _, _, reason in found)
        golden += [
            [row.metric, case.prediction, case.answers, case.choices, official, bool(why)]
            for case, official, why in [each for each in found if each[1] is not None][:KEPT]
        ]
    if given.golden:
        lines = ",\n".join(json.dumps(each) for each in golden)
        given.golden.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    sys.exit(is_open)


if __name__ == "__main__":
    main()
