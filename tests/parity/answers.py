"""Answers as models give them, drawn by chance: letters in many forms, numbers with signs and
units, words with articles, contractions and marks, and near misses of all of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Case:
    """What a metric is given."""

    prediction: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()


def draw_case(metric: str, rng: Random) -> Case:
    """A question's answers and what a model says, of the kind that the metric is for."""
    if metric == "choice":
        return draw_choice(rng)
    right = draw_answer(rng)
    count = 10 if metric.startswith("vqa") else rng.randint(1, 3)
    answers = tuple(_person(right, rng) for _ in range(count))
    said = vary(rng.choice(answers), rng)
    if metric == "open" or rng.random() < 0.1:
        said = rng.choice(SENTENCES).replace("#", said).replace("@", draw_answer(rng))
    return Case(said, answers)


def _person(right: str, rng: Random) -> str:
    if rng.random() < 0.4:
        return right
    return vary(right, rng) if rng.random() < 0.8 else draw_answer(rng)


# ---- choices

# # is a letter, @ its choice, % another choice.
LETTER_FORMS = (
    "#|#.|#,|#!|(#)|(#).|#)|#:|[#]|{#}|**#**|*#*|_#_|`#`|\"#\"|'#'| # |#\n|\n#|#. @|#) @|(#) @|"
    "#: @|# @|[#] @|**#.** @|**# - @**|#\n@|Answer: #|Answer:#|Answer: (#)|Answer: #.|"
    "**Answer:** #|**Answer: #**|ANSWER: #|Final answer: #|The answer is #|The answer is #.|"
    "The answer is (#).|The answer is **#**.|The correct answer is # because it fits.|"
    "The correct option is #.|Option #|Option # is right|option (#)|Choice #|I choose #|"
    "I think it is #.|It is # I think|I would say #, as it looks so.|\\boxed{#}|$\\boxed{#}$|"
    "\\boxed{\\text{#}}|<answer>#</answer>|<answer> # </answer>|It is @, so #.|(#) @ is right|"
    "It can not be %. So (#) is right.|@|@.|It is @.|It is @|@, and not %|not % but @|# or so|"
    "Looking at the picture, I see that it must be @.|The picture shows % and @ beside each other|"
    "Both # and #|Answer: @|Answer: @ (#)|The answer is @|A cat sits on the mat|A picture of %|"
    "I do not know|I can not see any of them here|None|A %|I see @|USA today|It is in the USA.|"
    "B-cells|Sorry|?|The letter is #|# is right, % is not|"
    "#\n\nUnlike A it is round|A is not round.\n\n#|#. It is round, unlike A|"
    "#: unlike (A) it is round|The answer would be #, as A is not round|The best option is #, not A"
).split("|")
CHOICES = (
    "Paris|New York|York|Rome|a circle|A square|the square|red|dark red|10|100|0|0.5|5 cm|5|Apple|"
    "vitamin C|Vitamin A|layer B|Bear|cat|A cat|cats and dogs|None of the above|All of the above|"
    "men|women|x + y|Yes|No|it's up|left, then right|The end.|30%|$4.50|πr²|été|north-east|U.S.A.|"
    "I and II|II"
).split("|")


def draw_choice(rng: Random) -> Case:
    count = rng.randint(2, 10)
    choices = rng.choices(CHOICES, k=count) if rng.random() < 0.1 else rng.sample(CHOICES, count)
    said = rng.choice(LETTER_FORMS)
    letters = LETTERS[: count + (rng.random() < 0.05)]
    right = rng.choice(letters)
    if rng.random() < 0.1:
        said += rng.choice(". |, |\n|.\n|; ".split("|")) + rng.choice(LETTER_FORMS)
    own = choices[min(LETTERS.index(right), count - 1)]
    other = rng.choice(choices)
    text = said.replace("@", own).replace("%", other)
    text = re.sub("#", lambda _: rng.choice(letters) if rng.random() < 0.1 else right, text)
    text = rng.choice((str, str, str, str, str, str, str.lower))(text)
    return Case(text, (right,), tuple(choices))


# ---- other answers

WORDS = (
    "red|dark red|a dog|the dog|dogs|stop|Stop Sign|coca cola|Coca-Cola|new york|N.Y.|U.S.A.|yes|"
    "no|none|don't|dont|can't|isnt|it's|Bob's|o'clock|oclock|couldn'tve|somebody'd|Im|I'd've|lets|"
    "left/right|red and white|black & white|on the table|unanswerable|no text in the image|café|"
    'straße|ÜBER|İstanbul|中文|π|10:30 am|12/05/2019|www.site.com|a@b.com|(left)|"hi"|[x]|C|x|B|'
    "up-to-date|e=mc2|\\frac{a}{b}|x^{2} + 1|y=3|the answer|so|final|result|"
).split("|")
UNITS = ("", "", "", "%", " %", " cm", "cm", " dollars", " million", "k", "\u00b0", " people")
COUNTS = "zero one two three four five six seven eight nine ten eleven".split()
SENTENCES = (
    "#|The answer is #|The answer is #.|It could be #|so #|Therefore # is right.|x = #|@\n#|#\n@|"
    "Thus the final result is # and not @|@ = #|The result is:\n#|answer #|final answer #.|"
    "We have @. So it is #|is |The value is @, so the answer is #|# is the answer|@ is @. #"
).split("|")


def draw_answer(rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    if rng.random() < 0.2:
        return rng.choice(COUNTS)
    return rng.choice(("", "", "", "$", "-", "+", ".")) + draw_number(rng) + rng.choice(UNITS)


def draw_number(rng: Random) -> str:
    number = rng.choice(
        (rng.randint(0, 20), rng.randint(0, 99999), round(rng.random() * 100, rng.randint(1, 3)))
    )
    return rng.choice(
        (f"{number}", f"{number}", f"{number:,}", f"{number:.2f}", f"{number:e}", f"{number:.0f}")
    )


def vary(text: str, rng: Random) -> str:
    """The same, said otherwise, or nearly the same."""
    return rng.choice(VARIATIONS)(text, rng)


def _half(text: str, rng: Random) -> str:
    """Half of the characters are others: a distance of 0.5, or as near as can be."""
    places = set(rng.sample(range(len(text)), len(text) // 2))
    return "".join("#" if place in places else each for place, each in enumerate(text))


def _one_off(text: str, rng: Random) -> str:
    place = rng.randint(0, len(text))
    return text[:place] + rng.choice("aeio 0,.") + text[place + rng.randint(0, 1) :]


def _scaled(text: str, rng: Random) -> str:
    """A number times about one, at and around the five per cent that are allowed."""
    try:
        number = float(text.rstrip("%"))
    except ValueError:
        return text
    factor = rng.choice((0.94, 0.95, 0.951, 1.0, 1.049, 1.05, 1.051, 1.06, -1.0, 0.01, 100.0))
    return f"{number * factor:g}" + ("%" if text.endswith("%") else "")


VARIATIONS: tuple[Callable[[str, Random], str], ...] = (
    *[lambda text, rng: text] * 6,
    lambda text, rng: text.upper(),
    lambda text, rng: text.lower(),
    lambda text, rng: text.title(),
    lambda text, rng: f"{text}.",
    lambda text, rng: f"{text}" + rng.choice("!?,;:%"),
    lambda text, rng: f" {text}\n",
    lambda text, rng: text.replace(" ", rng.choice(("  ", "\n", "-", ""))),
    lambda text, rng: rng.choice(("({})", '"{}"', "[{}]", "- {}", "{}/", "<{}>", "{}'s")).format(
        text
    ),
    lambda text, rng: text.replace("'", ""),
    lambda text, rng: text.replace(",", ""),
    lambda text, rng: text.rstrip("%") if text.endswith("%") else text + "%",
    lambda text, rng: f"{text} {rng.choice(WORDS)}",
    lambda text, rng: text[: len(text) // 2],
    lambda text, rng: text + "x" * len(text),
    lambda text, rng: "",
    *[_half] * 3,
    *[_one_off] * 3,
    *[_scaled] * 4,
)
