r"""A free answer -> the letter that it chooses, such as B of "(B)", "**B**", "\boxed{B}" or "It is
a square.".

What the scripts of MMMU (mmmu/utils/eval_utils.py of github.com/MMMU-Benchmark/MMMU) and MMMU-Pro
(mmmu-pro/evaluate.py there) find is found here too, in their order: what is said to be the answer,
"(B)", " B ", then a choice that is repeated. They draw a letter at random where they find none;
here more forms are looked for, and at last there is none. Before theirs goes what leaves no doubt:
an answer that is a choice as a whole, a letter alone in a line or with its label in front.
docs/metrics.md counts the differences.
"""

import re
import string
from collections.abc import Sequence

LETTERS = string.ascii_uppercase
MARKS = ",.!?;:'"


def chosen_letter(prediction: str, choices: Sequence[str]) -> str | None:
    """The letter a free answer chooses, the last one of the first form that is in it.

    Args:
        choices: their texts; empty ones if they are known by letter alone.
    """
    text, letters = _plain(prediction), LETTERS[: len(choices)]
    return (
        _whole(text, choices)
        or _last(SAID, text, letters)
        or _set_apart(text, letters)
        or next(filter(None, (_last(form, text, letters) for form in FORMS)), None)
        or _repeated(text, choices)
    )


def label(answer: str) -> str | None:
    """The letter of an answer that is one: "B", "(b)", or with a text behind it, "B. Rome"."""
    text = _plain(answer)
    found = ONE_LETTER.fullmatch(text) or re.match(r"\(?([A-Za-z])[).:]\s", text)
    return found[1].upper() if found else None


def letter_of(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that is the right answer: it is one, has the letter, or differs in
    case and spaces alone."""
    if answer in choices:
        return LETTERS[choices.index(answer)]
    letter = label(answer)
    if letter and letter in LETTERS[: len(choices)]:
        return letter
    same = [each.strip().lower() == answer.strip().lower() for each in choices]
    return LETTERS[same.index(True)] if sum(same) == 1 else None


def _plain(text: str) -> str:
    return text.translate(FULL_WIDTH).strip(MARKS + string.whitespace)


def _whole(text: str, choices: Sequence[str]) -> str | None:
    """The letter if the text is one, a letter with its own choice, or a choice as it stands."""
    if found := ONE_LETTER.fullmatch(text):
        letter = found[1].upper()
        return letter if letter in LETTERS[: len(choices)] else None
    known = {letter: _plain(each).lower() for letter, each in zip(LETTERS, choices, strict=False)}
    found, said = LABEL.match(text), text.lower()
    if found and known.get(found[1].upper()) == _plain(text[found.end() :]).lower():
        return found[1].upper()
    return next((letter for letter, each in known.items() if each and each == said), None)


def _last(form: re.Pattern[str], text: str, letters: str) -> str | None:
    """The last letter of a form."""
    found = [each for each in form.finditer(text) if each[1].upper() in letters]
    return next((each[1].upper() for each in found[::-1] if not _is_word(each)), None)


def _set_apart(text: str, letters: str) -> str | None:
    """The letter alone in the last or first line; or the label in front, as in "B. a square, unlike
    A", if no other choice has one, as in "A: a circle, B: a square"."""
    lines = text.splitlines()
    alone = [ONE_LETTER.fullmatch(line) for line in (*lines[-1:], *lines[:1])]
    labels = {each[1].upper() for each in CLAUSE_LABEL.finditer(text)}
    found = next(filter(None, alone), CLAUSE_LABEL.match(text) if len(labels) == 1 else None)
    return found[1].upper() if found and found[1].upper() in letters else None


def _is_word(letter: re.Match[str]) -> bool:
    """Whether it is the article of "A cat sits", or the pronoun of "I think": a small letter's word
    follows, and an A begins a sentence or is small."""
    text, start = letter.string, letter.start(1)
    follower = re.match(r"\s+([a-z][\w'’]*)", text[start + 1 :])
    if letter[1] not in "AaIi" or not follower or follower[1] in FOLLOWERS[letter[1].upper()]:
        return False
    return letter[1] != "A" or not re.search(r"[\w,]\s*$", text[:start])


def _repeated(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that is last in the text; of choices that are part of each other,
    such as 0 and 10, the longest."""
    text, ends = text.lower(), {}
    for letter, option in zip(LETTERS, choices, strict=False):
        words = option.translate(FULL_WIDTH).lower().strip().rstrip(MARKS)
        if words and words in text:
            ends[letter] = (text.rfind(words) + len(words), len(words))
    return max(ends, key=ends.__getitem__, default=None)


FULL_WIDTH = {0xFF01 + place: 0x21 + place for place in range(94)} | {0x3000: " "}
# Of words in Latin letters: others, such as Chinese, may stand right beside a letter.
_WORD = r"A-Za-z0-9À-ɏ"
_BEFORE = rf"(?<![{_WORD}])(?<![{_WORD}][.'’_-])"
_AFTER = rf"(?![{_WORD}]|['’-][{_WORD}]|\.[{_WORD}](?![{_WORD}]))"  # not B-cells, A.M.
ONE_LETTER = re.compile(rf"[^{_WORD}]*([A-Za-z])[^{_WORD}]*")
LABEL = re.compile(rf"[(\[{{*\"\s]*([A-Za-z]){_AFTER}[)\]}}*\".:,\s–-]*")
# At the beginning of a line or clause.
CLAUSE_LABEL = re.compile(
    r"(?:^|[\n.,;])[*_\"'\s]{0,9}([A-Za-z])[*_\"']{0,3}[.:)][*_\"']{0,3}(?=\s)"
)
_OPENING = r"[\s:*_(\[{\"'`$]*"
SAID = re.compile(
    r"(?i:<answer>|\\boxed\{|\b(?:answer|option|choice|letter)[*_]*\s*"
    rf"(?:is\b|(?:would|should|must)\s+be\b|[:=])){_OPENING}"
    rf"(?i:(?:the\s+)?(?:correct\s+)?(?:option|choice|letter)\b{_OPENING})?"
    rf"(?:\\\w+\{{{_OPENING})?([A-Za-z]){_AFTER}"
)
BRACKETS = re.compile(r"\(([A-Z])\)")
ALONE = re.compile(r"(?<!\S)([A-Z])(?!\S)")
MARKED = re.compile(f"{_BEFORE}([A-Z]){_AFTER}")
SMALL = re.compile(
    rf"(?:^[ \t]*(?=[a-z][).:\]])|(?<![{_WORD}])[(\[{{*\"'`](?=[a-z][.:]?[)\]}}*\"'`])"
    rf"|(?i:\b(?:option|choice|letter)\s+))([a-z]){_AFTER}",
    re.MULTILINE,
)
FORMS = (BRACKETS, ALONE, MARKED, SMALL)
# Words that follow a letter, and no article or pronoun.
FOLLOWERS = {"I": {"a", "an", "the", "and", "or", "because", "since", "is", "not", "but", "as"}}
FOLLOWERS["A"] = FOLLOWERS["I"] | set(
    "was has does would should seems looks shows fits matches means it if in on at to for with by "
    "than from".split()
)
