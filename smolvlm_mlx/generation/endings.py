"""How an answer that has a grammar can end: the shortest text that completes it, in tokens.

Looked for byte by byte, where a grammar's state costs less than a microsecond. Of texts of one
length and structure, after which the same may come, one is tried: what is found is nearly always
the shortest.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

END = 256  # ends an answer, behind the numbers of the bytes
MOST_BYTES = 2**17  # of what completes an answer
DEEP = 5  # states that are tried by rank for each that is tried by length
LONG = 128  # bytes after which a state costs twice as much to go on from
FEW = 16  # bytes that may follow are all tried; of more one of those after which the same follows
FIRST = b"0aA- "  # of many bytes
ENDING = b'"]},:0n'  # what ends things, or is short

# Of a number that JSON readers can read: more digits than these are none.
_NUMBER = re.compile(rb"-?\d{0,17}(\.\d{0,17})?([eE][+-]?\d{0,2})?")
STRUCTURE = (b'"', b",", b":", b"[", b"]", b"{", b"}")
LIMITS = LLParserLimits(verbose_errors=False)


@dataclass(frozen=True)
class Place:
    """Where in an answer a text ends: within a string, and behind what of a number."""

    in_string: bool = False
    is_escaped: bool = False
    number: bytes = b""

    def after(self, text: bytes) -> "Place | None":
        """The place after more text; None behind a number too long to be read."""
        in_string, is_escaped, number = self.in_string, self.is_escaped, self.number
        for byte in text:
            if in_string:
                in_string = is_escaped or byte != ord('"')
                is_escaped = byte == ord("\\") and not is_escaped
            elif byte in b"0123456789+-.eE":
                number += bytes([byte])
                if not _NUMBER.fullmatch(number):
                    return None
            else:
                in_string, number = byte == ord('"'), b""
        return Place(in_string, is_escaped, number)


class NoEndError(Exception):
    """Nothing can complete an answer."""


class _Bytes:
    """A tokenizer with a token a byte, as llguidance wants it."""

    bos_token_id, eos_token_id, special_token_ids = None, END, (END,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


BYTES = LLTokenizer(TokenizerWrapper(_Bytes()), END + 1, [END])


def begin(grammar: str) -> LLMatcher:
    """The state of a grammar before its first byte."""
    return LLMatcher(BYTES, grammar, log_level=0, limits=LIMITS)


def after(state: LLMatcher, text: bytes) -> LLMatcher | None:
    """The state after a text; None where it cannot come."""
    state = state.deep_copy()
    return state if state.consume_tokens(list(text)) else None


def completes(state: LLMatcher, text: bytes) -> bool:
    """Whether a text may end the answer."""
    ended = after(state, text)
    return ended is not None and ended.is_accepting()


@dataclass
class Effort:
    """What is left to spend on searches.

    Attributes:
        states: of a grammar that may be looked at; one behind a long text counts for several.
    """

    states: int


class Endings:
    """Finds what completes an answer, for one vocabulary.

    Args:
        tokens: bytes of a token -> its id.
    """

    def __init__(self, tokens: Mapping[bytes, int]):
        self._tokens = tokens
        self._longest = min(64, max(map(len, tokens)))
        known = [byte for byte in range(256) if bytes([byte]) in tokens]
        self._ordered = sorted(known, key=lambda byte: (byte not in FIRST, byte))

    def tokenize(self, text: bytes) -> list[int]:
        """Ids of a text, each of the longest token that fits: what is left after the first has the
        same ids as before."""
        ids, at = list[int](), 0
        while at < len(text):
            size = next(
                size
                for size in range(min(self._longest, len(text) - at), 0, -1)
                if text[at : at + size] in self._tokens
            )
            ids.append(self._tokens[text[at : at + size]])
            at += size
        return ids

    def shortest(self, state: LLMatcher, effort: "Effort") -> bytes | None:
        """The shortest text that completes an answer; None if it is not found with this effort.

        Raises:
            NoEndError: there is none.
        """
        for by_rank in (False, True):
            search, least = _Search(state, self._ordered, by_rank), 0
            if not by_rank:
                least = effort.states * DEEP // (DEEP + 1)
            while search.waiting and effort.states > least:
                effort.states -= 1 + search.waiting[0][1] // LONG
                found = search.step()
                if found is not None:
                    return found
            if not search.waiting and search.is_whole:
                raise NoEndError
        return None


def _rank(text: bytes) -> int:
    at = ENDING.find(text[:1])
    return len(ENDING) if at < 0 else at


class _Search:
    """One search, state by state: from short texts to long ones, or by rank from those that take
    what ends things wherever they can.

    Attributes:
        waiting: states that were not looked at, the one after the shortest text first.
        is_whole: nothing was left out so far.
    """

    def __init__(self, state: LLMatcher, known: Sequence[int], by_rank: bool):
        self._known, self._number, self._by_rank = known, count(), by_rank
        # Ranks, length, number, structure, text. States behind long texts are large: but for the
        # first and the last one looked at they are made again.
        self.waiting = [(0, 0, next(self._number), 0, b"")]
        self._first, self._last = state, (b"", state)
        self.is_whole = True
        self._seen = set[tuple[bytes, int, int]]()
        self._kinds = dict[bytes, list[bytes]]()  # by mask, bytes to try of many

    def step(self) -> bytes | None:
        """Look at one state; its text, if that is all."""
        ranks, length, _, structure, text = heappop(self.waiting)
        known, before = self._last if text.startswith(self._last[0]) else (b"", self._first)
        state = after(before, text[len(known) :])
        if state is None:
            return None
        self._last = text, state
        if state.is_accepting():
            return text
        alike = (state.compute_bitmask(), length, structure)
        if alike in self._seen:
            self.is_whole = False
            return None
        self._seen.add(alike)
        following = sorted(self._following(state), key=_rank)
        for rank, more in enumerate(following):
            if length + len(more) < MOST_BYTES:
                marks = structure + sum(map(more.count, STRUCTURE))
                place = (ranks + rank * self._by_rank, length + len(more), next(self._number))
                heappush(self.waiting, (*place, marks, text + more))
        return None

    def _following(self, state: LLMatcher) -> list[bytes]:
        """What may come next: what has to, or one byte or another. Escapes and letters beyond ASCII
        only where nothing else may come."""
        if forced := state.compute_ff_bytes():
            return [forced] if set(forced).issubset(self._known) else []
        marks = state.compute_logit_bias()
        allowed = [bytes([byte]) for byte in self._known if marks[byte]]
        plain = [byte for byte in allowed if byte < b"\x80" and byte != b"\\"]
        if len(allowed) <= FEW:
            return allowed
        self.is_whole = False
        mask = state.compute_bitmask()
        if mask not in self._kinds:
            found = dict[bytes, bytes]()
            for byte in plain or allowed:
                if (grown := after(state, byte)) is not None:
                    found.setdefault(grown.compute_bitmask(), byte)
            self._kinds[mask] = [*found.values()]
        return self._kinds[mask]
