"""Scores of an answer, each as its benchmark's own script gives it: from 0 to 1, of a prediction,
the right answers and the choices.

vqa         TextVQA: EvalAIAnswerProcessor and TextVQAAccuracyEvaluator of
            github.com/facebookresearch/mmf, mmf/utils/m4c_evaluators.py
vqav2       VQAv2: arXiv:1505.00468, vqaEval.py of github.com/GT-Vision-Lab/VQA
anls        DocVQA, InfoVQA: the challenge's script, which
            github.com/EvolvingLMMs-Lab/lmms-eval has in lmms_eval/api/metrics.py
anls_paper  the same as in arXiv:1907.00490, and github.com/google-research/pix2struct, metrics.py
relaxed     ChartQA: arXiv:2203.10244, as in pix2struct's metrics.py
choice      MMMU, MMStar, AI2D, ScienceQA: see `letters`
open        MMMU's questions without choices: mmmu/utils/eval_utils.py in
            github.com/MMMU-Benchmark/MMMU
contains    OCRBench: arXiv:2305.07895, github.com/Yuliang-Liu/MultimodalOCR, OCRBench/example.py
formula     OCRBench's handwritten formulas (HME100k), compared without spaces
exact       equal, but for spaces around

docs/metrics.md has how often they agree with these scripts, and why not where they do not.
"""

import re
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from statistics import fmean

from ..data.letters import LETTERS, MARKS, chosen_letter, label

Metric = Callable[[str, Sequence[str], Sequence[str]], float]
MOST_LETTERS = 10  # of choices that are in the question's text: MMMU-Pro's


def exact(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    return float(prediction.strip() in [answer.strip() for answer in answers])


def contains(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Whether an answer is somewhere in the prediction, whatever the case."""

    def line(text: str) -> str:
        return text.lower().strip().replace("\n", " ")

    return float(any(_is_in(line(answer), line(prediction)) for answer in answers))


def formula(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    def bare(text: str) -> str:
        return text.strip().replace("\n", " ").replace(" ", "")

    return float(any(_is_in(bare(answer), bare(prediction)) for answer in answers))


def _is_in(answer: str, said: str) -> bool:
    return answer in said if answer else not said  # no answer is not in every text


def anls(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Normalized Levenshtein similarity with the nearest answer; 0 if it is less than half equal.

    Spaces in a row are one where texts are compared, and all count in their lengths: so does the
    script of the challenge.
    """

    def distance(answer: str) -> float:
        said, right = (" ".join(text.lower().split()) for text in (prediction, answer))
        return edit_distance(said, right) / max(len(prediction.upper()), len(answer.upper()), 1)

    similarity = 1 - min(map(distance, answers))
    return similarity if similarity >= 0.5 else 0.0


def anls_paper(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """As `anls`, but 0 for exactly half too, and every space counts."""

    def similarity(answer: str) -> float:
        said, right = prediction.lower(), answer.lower()
        distance = edit_distance(said, right) / max(len(said), len(right), 1)
        return 1 - distance if distance < 0.5 else 0.0

    return max(map(similarity, answers))


def edit_distance(one: str, other: str) -> int:
    """Count the letters to insert, delete or replace to make the one the other (Levenshtein)."""
    above = list(range(len(other) + 1))  # the row of the letters before; the first of none
    for count, letter in enumerate(one, 1):
        row = [count]
        for (diagonal, up), wanted in zip(pairwise(above), other, strict=True):
            row.append(min(diagonal + (letter != wanted), up + 1, row[-1] + 1))
        above = row
    return above[-1]


def relaxed(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Numbers may be off by 5 per cent; everything else is equal whatever the case."""

    def matches(answer: str) -> bool:
        said, right = _number(prediction), _number(answer)
        if said is not None and right:  # zero is compared as text
            return abs(said - right) / abs(right) <= 0.05
        return prediction.strip().lower() == answer.strip().lower()

    return float(any(map(matches, answers)))


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def choice(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Whether the letter that the prediction chooses is the answer's: its letter, or the choice it
    repeats.

    Without choices they are in the question's text, if an answer is a letter; else it is an open
    question, as in MMMU.
    """
    right = {letter for answer in answers for letter in _right_letters(answer, choices)}
    if not choices and not right:
        return open_answer(prediction, answers)
    last = max(map(LETTERS.index, right), default=0)
    letter = chosen_letter(prediction, choices or ("",) * max(MOST_LETTERS, last + 1))
    return float(letter in right)


def _right_letters(answer: str, choices: Sequence[str]) -> list[str]:
    """Those of the choices that are the answer (a text may be repeated); else the letter it is."""
    equal = [letter for letter, each in zip(LETTERS, choices, strict=False) if each == answer]
    letter = label(answer)
    return equal or ([letter] if letter else [])


def open_answer(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Whether an answer is in what the prediction concludes, or a number there is the answer's, to
    two decimals."""
    said = [form for text in _conclusions(prediction) for form in _open_forms(text)]
    right = [form for answer in answers for form in _open_forms(answer)]
    texts = [form for form in said if isinstance(form, str)]
    return float(
        any(
            any(form in text for text in texts) if isinstance(form, str) else form in said
            for form in right
        )
    )


def _conclusions(prediction: str) -> list[str]:
    """What follows the words of a conclusion in each line, and the numbers in it; all if there are
    no such words."""
    said = prediction.strip().strip(".").lower()
    *lines, last = said.split("\n")
    tails = [_conclusion(line, CONCLUDING) for line in lines]
    tails.append(_conclusion(last, (*CONCLUDING, "=")))
    found = [tail for tail in tails if tail not in ("", *MARKS)] or [said]
    return found + [number for tail in found for form in NUMERALS for number in form.findall(tail)]


def _conclusion(line: str, words: Sequence[str]) -> str:
    """The shortest that follows one of the words; empty if there is none."""
    shortest = ""
    for word in words:
        tail = line.split(word)[-1].strip()
        if word in line and (not shortest or len(tail) < len(shortest)):
            shortest = tail
    return shortest


def _open_forms(text: str) -> list[str | float]:
    """A number to two decimals, or the text in lower case; a single letter begins or ends a
    word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def vqa(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Agreement with people: min(1, matches / 3), averaged over all ways to leave one person
    out."""
    return _agreement(normalize_answer(prediction), [normalize_answer(each) for each in answers])


def vqav2(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """As `vqa`; but where all people say the same, it has to be said as they write it."""
    said, *people = (_one_line(text) for text in (prediction, *answers))
    if len(set(people)) > 1:
        said, *people = (_without_marks(text) for text in (said, *people))
    return _agreement(said, people)


def _agreement(said: str, people: Sequence[str]) -> float:
    if len(people) == 1:
        return float(said == people[0])
    return fmean(
        min(1.0, others.count(said) / 3) for others in combinations(people, len(people) - 1)
    )


def normalize_answer(text: str) -> str:
    """TextVQA's form of an answer: lower case, no articles, no punctuation, digits for number
    words, apostrophes in place."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _without_marks(_one_line(text.strip()))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """VQAv2's form of an answer, the last steps of TextVQA's. Punctuation goes where it is beside a
    space somewhere, or a comma is in a number; else it becomes a space."""
    has_comma = re.search(r"\d,\d", text)
    bare = text
    for mark in PUNCTUATION:
        goes = has_comma or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if goes else " ")
    bare = re.sub(r"\.(?!\d)", "", bare, count=32)  # re.UNICODE, in count's place there
    words = [NUMBERS.get(word, word) for word in bare.lower().split()]
    return " ".join(
        CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the")
    )


CONCLUDING = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMERALS = [
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
]
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
NUMBERS["none"] = "0"
CONTRACTIONS = {  # whichever one of their apostrophes is missing
    word[:place] + word[place + 1 :]: word
    for word in (
        "'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't "
        "hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've "
        "it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't "
        "shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's "
        "someone'd someone'd've someone'll someone's something'd something'd've something'll "
        "that's there'd there'd've there're there's they'd they'd've they'll they're they've "
        "wasn't we'd've we've weren't what'll what're what's what've when's where'd where's "
        "where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't "
        "wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
    ).split()
    for place, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the original has this pair the wrong way round
METRICS: dict[str, Metric] = {
    "vqa": vqa,
    "vqav2": vqav2,
    "anls": anls,
    "anls_paper": anls_paper,
    "relaxed": relaxed,
    "choice": choice,
    "open": open_answer,
    "contains": contains,
    "formula": formula,
    "exact": exact,
}
