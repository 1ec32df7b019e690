"""Answers that go in circles: one block of tokens again and again, exactly, up to the last token.

What is repeated on purpose is not ended: it is short (a refrain, laughter), or it is no text (cells
of tables, numbers, dots, rules, code), of which more has to come. Measured on true texts:
tests/bench/loops.py.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LONGEST_BLOCK = 256  # tokens; what is repeated in a loop is no longer
LEAST_HELD = 16  # tokens of all copies


@dataclass(frozen=True)
class Rule:
    """How much of one kind of text, in all its copies, is a loop."""

    tokens: int
    copies: int


SENTENCES = Rule(96, 4)
WORDS = Rule(256, 6)  # such as `ha ha ha`, lines of code, or labels with numbers
OTHER = Rule(1024, 6)  # no letters, or cells of a table: a table of empty cells is no loop

CELLS = frozenset(("ecel", "fcel", "lcel", "ucel", "xcel", "ched", "rhed", "srow", "nl"))  # OTSL
_TAG = re.compile(r"<[^<>]*>|^[^<>]*>|<[^<>]*$")  # a block may begin in the middle of one
_CELL = re.compile(f"<(?:{'|'.join(sorted(CELLS))})>")
_END = re.compile(r"[.!?…。！？>\n]\W*\Z")  # of a sentence, a line, an element
LEAST_TOKENS = 8  # different ones in a block of sentences
LEAST_CHARACTERS, MOST_CHARACTERS = 8, 4096  # of what a text ends in, twice; of both
LEAST_LETTERS = 0.85  # of the characters of sentences, without spaces
# By place of the window: the distance to the last token, and how many tokens have to equal those a
# block before, until what follows is held back: there are two copies then.
_SIZES = np.arange(LONGEST_BLOCK, 0, -1)
_NEAR = np.maximum(_SIZES, LEAST_HELD - _SIZES) + 1
LEAST_RUN = int(_NEAR.min())


def rule_of(block: str, different: int) -> Rule:
    """Return the rule for repeated text, whose block has so many different tokens."""
    twice = block * 2
    letters = sum(map(str.isalpha, _TAG.sub("", twice)))
    if not letters or _CELL.search(twice):
        return OTHER
    few = different < LEAST_TOKENS or letters < LEAST_LETTERS * len("".join(twice.split()))
    return WORDS if few else SENTENCES


def ends_twice(text: str) -> bool:
    """Whether a text ends in the same words twice, as an answer does that was ended because it went
    in circles. Spaces do not count."""
    bare = "".join(text[-MOST_CHARACTERS:].split())
    lengths = range(LEAST_CHARACTERS, len(bare) // 2 + 1)
    return any(bare.endswith(bare[-2 * length : -length]) for length in lengths)


class RepetitionDetector:
    """Tells when an answer goes in circles. A token takes the same time, however long the answer.

    Attributes:
        size: tokens of the shortest block of text that has come twice and comes again; 0: of none.
        found: it is a loop.
        begins: how many tokens are before the loop's second copy.

    Args:
        text_of: the text of tokens, with those that are special.
    """

    def __init__(self, text_of: Callable[[Sequence[int]], str]):
        self.size, self.found, self.begins = 0, False, 0
        self._text_of, self._count = text_of, 0
        # The last tokens, twice, so that from any place on they lie in their order; and by place of
        # that window, how many of the last tokens equal those so far before.
        self._tokens = np.full(2 * LONGEST_BLOCK, -1, np.int64)
        self._runs = np.zeros(LONGEST_BLOCK, np.int64)
        self._rules = dict[int, Rule]()  # by size, of what repeats now

    def push(self, token: int) -> None:
        """Take the next token of the answer."""
        at = self._count % LONGEST_BLOCK
        self._runs += 1
        self._runs *= self._tokens[at : at + LONGEST_BLOCK] == token
        self._tokens[at] = self._tokens[at + LONGEST_BLOCK] = token
        self._count += 1
        runs = self._near() if self._runs.max() >= LEAST_RUN else {}
        self._rules = {size: self._rules.get(size) or self._rule(size) for size in runs}
        self.size = next((size for size, rule in self._rules.items() if rule != OTHER), 0)
        for size, rule in self._rules.items():
            if runs[size] + size >= max(rule.tokens, rule.copies * size):
                self.found, self.begins = True, self._count - runs[size]
                return

    def end(self) -> None:
        """The answer is as long as it may be: so many copies of text are a loop, however short."""
        for size, rule in self._rules.items():
            run = int(self._runs[LONGEST_BLOCK - size])
            if rule != OTHER and run + size >= rule.copies * size:
                self.found, self.begins = True, self._count - run
                return

    def _near(self) -> dict[int, int]:
        """How many tokens repeat those a block before, by the block's size, the shortest first: of
        what may be a loop. Several copies are no longer block of their own."""
        near = np.flatnonzero(self._runs >= _NEAR)[::-1]
        sizes, runs, found = _SIZES[near], self._runs[near], dict[int, int]()
        while sizes.size:
            size, run = int(sizes[0]), int(runs[0])
            found[size] = run
            others = (sizes % size != 0) | (sizes + runs != size + run)
            sizes, runs = sizes[others], runs[others]
        return found

    def _rule(self, size: int) -> Rule:
        end = (self._count - 1) % LONGEST_BLOCK + 1 + LONGEST_BLOCK
        block = self._tokens[end - size : end].tolist()
        return rule_of(self._text_of(block), len({*block}))


class RepetitionGate:
    """Holds text back that has come twice and comes again: it is seen if the answer then goes on
    otherwise or ends by itself, and not if that was a loop. Shut at the end of a sentence, or where
    none ends, a copy later."""

    def __init__(self) -> None:
        self._last, self._held, self._waited, self._is_shut = "", "", 0, False

    def push(self, piece: str, size: int) -> str:
        """Take the text of a token; what may be seen.

        Args:
            size: of `RepetitionDetector`, after this token.
        """
        if not size:
            self._waited, self._is_shut = 0, False
            return self.flush() + self._seen(piece)
        self._is_shut = self._is_shut or self._waited >= size or bool(_END.search(self._last))
        self._waited += 1
        if not self._is_shut:
            return self._seen(piece)
        self._held += piece
        return ""

    def flush(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return self._seen(held)

    def _seen(self, piece: str) -> str:
        self._last = (self._last + piece)[-8:]
        return piece
