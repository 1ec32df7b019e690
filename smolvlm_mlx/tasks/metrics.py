"""Scores of an answer, each as its benchmark defines it: from 0 to 1, of a prediction, the right
answers and the choices.

vqa        TextVQA, VQAv2: arXiv:1505.00468 and the TextVQA evaluator (m4c_evaluators.py of
           github.com/facebookresearch/mmf)
anls       DocVQA, InfoVQA: arXiv:1907.00490
relaxed    ChartQA: arXiv:2203.10244, as in github.com/google-research/pix2struct, metrics.py
choice     MMMU, MMStar, AI2D, ScienceQA: parse_multi_choice_response of eval/eval_utils.py in
           github.com/MMMU-Benchmark/MMMU
contains   OCRBench: arXiv:2305.07895, github.com/Yuliang-Liu/MultimodalOCR, example.py
formula    OCRBench's handwritten formulas (HME100k), compared without spaces
exact      equal, but for spaces around
"""

import re
import string
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from statistics import fmean

LETTERS = string.ascii_uppercase
Metric = Callable[[str, Sequence[str], Sequence[str]], float]


def exact(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    return float(prediction.strip() in [answer.strip() for answer in answers])


def contains(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Whether an answer is somewhere in the prediction, whatever the case."""
    said = prediction.lower().strip().replace("\n", " ")
    return float(any(answer.lower().strip().replace("\n", " ") in said for answer in answers))


def formula(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    def bare(text: str) -> str:
        return text.strip().replace("\n", " ").replace(" ", "")

    return float(any(bare(answer) in bare(prediction) for answer in answers))


def anls(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Normalized Levenshtein similarity with the nearest answer; 0 if it is half different or more,
    as in the paper.

    Many scripts, also the challenge's own, let exactly half count as 0.5.
    """

    def similarity(answer: str) -> float:
        said, right = (" ".join(text.strip().lower().split()) for text in (prediction, answer))
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

    Beyond MMMU's own script this knows "B. ", as MMMU-Pro's does, and "B) ", and looks for choices
    in answers of up to five words too. What it does not find is wrong; the script draws a letter at
    random then.
    """
    right = [
        LETTERS[choices.index(answer)] if answer in choices else answer.strip().upper()
        for answer in answers
    ]
    return float(chosen_letter(prediction, choices) in right)


def chosen_letter(prediction: str, choices: Sequence[str]) -> str | None:
    """The letter a free answer chooses: "(B)", then " B ", " B. " or " B) ", then a choice repeated
    in it.

    The last if several; of choices that are part of each other, such as 0 and 10, the longest.
    """
    letters, text = LETTERS[: len(choices)], f" {prediction.strip(MARKS)} "
    for form in ("({})", " {} ", " {}. ", " {}) "):
        places = {letter: text.rfind(form.format(letter)) for letter in letters}
        if said := {letter: place for letter, place in places.items() if place >= 0}:
            return max(said, key=said.__getitem__)
    text, ends = prediction.lower(), {}
    for letter, option in zip(letters, choices, strict=False):
        words = option.lower().rstrip(MARKS)
        if words and words in text:
            ends[letter] = (text.rfind(words) + len(words), len(words))
    return max(ends, key=ends.__getitem__, default=None)


def vqa(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Agreement with people: min(1, matches / 3), averaged over all ways to leave one person
    out."""
    said, people = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    if len(people) == 1:
        return float(said == people[0])
    return fmean(
        min(1.0, others.count(said) / 3) for others in combinations(people, len(people) - 1)
    )


def normalize_answer(text: str) -> str:
    """TextVQA's form of an answer: lower case, no articles, no punctuation, digits for number
    words, apostrophes in place."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    bare = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_space else " ")
    bare = re.sub(r"\.(?!\d)", "", bare)
    words = [NUMBERS.get(word, word) for word in bare.lower().split()]
    return " ".join(
        CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the")
    )


MARKS = ",.!?;:'"
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
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
    metric.__name__: metric for metric in (vqa, anls, relaxed, choice, contains, formula, exact)
}
