"""The letter that a free answer chooses, in the forms that models write; and words that are no
letters."""

import string

from smolvlm_mlx.data.letters import LETTERS, chosen_letter, label, letter_of
from smolvlm_mlx.tasks.metrics import METRICS

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

CITIES = ("Paris", "Rome", "New York", "York")
UNKNOWN = ("",) * 10  # choices in the question's text
TEXT = st.text(max_size=40) | st.text(
    string.ascii_letters + string.digits + string.punctuation + "   \n\t", max_size=40
)
# # is a letter, in the first list a small one too.
FORMS = (
    "#|#.|#,|#;|#!|#:|(#)|(#).|#)|#).|[#]|{#}|**#**|**#.**|***#***|*#*|_#_|`#`|'#'|\"#\"| # |"
    "\n#\n|#. Oslo|#) Oslo|(#) Oslo|#: Oslo|[#] Oslo|**#** Oslo|**#.** Oslo|**#**: Oslo|Answer: #|"
    "Answer:#|Answer: (#)|Answer: #.|Answer: **#**|**Answer:** #|**Answer**: #|Answer = #|"
    "ANSWER: #|answer: [#]|Final answer: #|Answer:\n#|The answer is #|The answer is #.|"
    "The answer is: #|The answer is (#).|The answer is **#**.|The correct answer is option #.|"
    "Option #|Option (#)|The correct option is #.|Choice #|Choice: #|The letter is #.|\\boxed{#}|"
    "$\\boxed{#}$|\\boxed{\\text{#}}|\\boxed{(#)}|<answer>#</answer>|<answer> # </answer>|"
    "<answer>(#)</answer>|（#）|Answer：#|(Z) is wrong. The answer is #.|```\n#\n```|---\n#\n---"
).split("|")
CAPITALS = (
    "I choose #|It is #, I say|Oslo, so #.|# is right|# because it is red|# - Oslo|#; Oslo|"
    "#\nOslo|答案是#|"
    "选#。|答案：#|That's #|# and no other|#.Oslo|#/|<#>|It's #!|Oslo (#)|Oslo [#]|#?"
).split("|")


@pytest.mark.parametrize("form", FORMS + CAPITALS)
def test_a_letter_is_found_in_every_form(form: str) -> None:
    for letter in LETTERS[:10]:
        assert chosen_letter(form.replace("#", letter), UNKNOWN) == letter
        assert chosen_letter(form.replace("#", letter), ("New York",) * 10) == letter
    for letter in "ＡＢＣＤＥＦＧＨＩＪ":
        assert chosen_letter(form.replace("#", letter), UNKNOWN) == chr(ord(letter) - 0xFEE0)


@pytest.mark.parametrize("form", FORMS)
def test_a_small_letter_is_found_where_it_is_no_word(form: str) -> None:
    for letter in "abcdefghij":
        assert chosen_letter(form.replace("#", letter), UNKNOWN) == letter.upper()


NOUNS = "cat dog large circle man group picture 'big car' blue tall 3D-like woman's".split()


@pytest.mark.parametrize(
    "form",
    "A # sits|A #|A # is here.|It is a #.|a #|There is a # in it|a # and a #|The answer is a #.|"
    'Answer: A #.|**A #**|Yes. A # it is.|It shows:\nA #|"A #"'.split("|"),
)
@pytest.mark.parametrize("noun", [noun for noun in NOUNS if noun[0].islower()])
def test_an_article_is_no_letter(form: str, noun: str) -> None:
    assert chosen_letter(form.replace("#", noun), UNKNOWN) is None


@pytest.mark.parametrize(
    "text",
    "I do not know|I think so|As far as I see it|I'm sure|I am. I was|USA today|U.S.A.|In the USA.|"
    "B-cells|10 A.M. sharp|e.g. this|i.e. that|Bear|Apple pie|D'Artagnan|dog(s)|f(a)|MRI|.|?|()|"
    "A's|Café|Ça va|E's".split("|"),
)
def test_words_are_no_letters(text: str) -> None:
    assert chosen_letter(text, UNKNOWN) is None


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        *[("B. Rome", "B"), ("B) it is", "B"), ("The answer is (B) Rome.", "B"), ("b", "B")],
        # The last, of one form.
        *[("A or B", "B"), ("(B), not (A)", "A"), ("B or (A)", "A"), ("A. no, B. yes", "B")],
        # Not the last, but what is said to be the answer.
        *[("Answer: B. (A) is wrong", "B"), ("The answer is B, not (A).", "B")],
        *[("\\boxed{B} as (C) is no city", "B"), ("Answer: A. No, answer: B", "B")],
        *[("The answer would be B, as A is no city", "B"), ("The best option is B, not A", "B")],
        # Nor in lines with others.
        *[("B\n\nA is wrong, and C is", "B"), ("A is wrong.\n\n**B**", "B"), ("A\nor\nB", "B")],
        *[("B. It is no island, unlike A", "B"), ("**B:** unlike A it is old", "B")],
        *[("A: Paris, B: Rome. So it is B of A", "A"), ("A. Paris\nB. Rome", "B")],
        *[("The answer is not A but B", "B"), ("(A) was my answer, B is it", "A")],
        # No letters of these choices, and the word's.
        *[("E", None), ("(E)", None), ("BC", None), ("In the USA. Rome", "B"), ("vitamin C", "C")],
        *[("I think it is Rome", "B"), ("A city: Rome", "B"), ("A is Paris", "A")],
        # Choices that are repeated.
        *[("Rome", "B"), ("rome.", "B"), ("not Paris but Rome", "B"), ("New York", "C")],
        *[("Rome, I think, and not Paris", "A"), ("it is york", "D"), ("New York or York", "D")],
        *[("York, New York", "C"), ("Ｒｏｍｅ", "B")],
        *[("", None), ("I do not know.", None), ("...", None), ("Ro", None)],
        *[("I choose A instead", "A"), ("Yes, A instead", "A"), ("Yes. A better one", None)],
        *[("New\u3000York", "C"), ("It is this:\nb\nof course", None), ("e", None)],
    ],
)
def test_chosen_letters(prediction: str, letter: str | None) -> None:
    assert chosen_letter(prediction, CITIES) == letter


def test_an_answer_that_differs_in_case_is_a_choice_if_only_one_does() -> None:
    assert letter_of("red", ["Blue", "Red"]) == "B"
    assert letter_of("red", ["Red", "rED"]) is None


@pytest.mark.parametrize("choices", [("0", "10"), ("10", "0")])
def test_of_choices_that_end_in_one_place_the_longest_is_chosen(choices: tuple[str, ...]) -> None:
    assert chosen_letter("They are 10 in number", choices) == LETTERS[choices.index("10")]


def test_a_choice_within_another() -> None:
    choices = ("0", "10", "100", "The end.", ".5", "?")
    assert [chosen_letter(choice, choices) for choice in choices[:-1]] == ["A", "B", "C", "D", "E"]
    assert chosen_letter("the END", choices) == "D"
    assert chosen_letter("what?", choices) is None


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        *[("vitamin B", "A"), ("Vitamin B.", "A"), ("A. Vitamin B", "A"), ("(A) vitamin B", "A")],
        *[("A: Vitamin B.", "A"), ("A cat", "B"), ("B. A cat", "B"), ("a cat", "B")],
        *[("I and II", "C"), ("D. circle", "D"), ("A circle", "D"), ("B", "B"), ("D A", "A")],
    ],
)
def test_a_choice_as_it_stands_goes_before_the_letters_in_it(prediction: str, letter: str) -> None:
    assert chosen_letter(prediction, ("vitamin B", "A cat", "I and II", "circle")) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *[("B", "B"), ("b ", "B"), ("(b)", "B"), ("B.", "B"), ("B. Rome", "B"), ("(C) x", "C")],
        *[("Rome", None), ("A cat", None), ("12", None), ("", None), ("vitamin C", None)],
    ],
)
def test_labels(answer: str, letter: str | None) -> None:
    assert label(answer) == letter


@given(st.lists(TEXT, min_size=1, max_size=26), st.data())
def test_the_letter_itself_is_right(choices: list[str], data: st.DataObject) -> None:
    letter = data.draw(st.sampled_from(string.ascii_uppercase[: len(choices)]))
    assume(letter not in choices)
    for prediction in (letter, f"({letter})", f"{letter}.", f"The answer is {letter}."):
        assert chosen_letter(prediction, choices) == letter
        assert METRICS["choice"](prediction, [letter], choices) == 1


@given(TEXT, st.lists(TEXT, max_size=26))
def test_what_is_chosen_is_one_of_the_choices(prediction: str, choices: list[str]) -> None:
    assert chosen_letter(prediction, choices) in {None, *LETTERS[: len(choices)]}
