"""Tokens, one by one -> the text of an answer, up to its end."""

import codecs
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

from ..inputs.tokenizer import Tokenizer


class StreamingDetokenizer:
    """Turns tokens into text as they come, up to an end token or a stop string.

    A character whose bytes are spread over tokens appears when it is whole, or as a replacement
    character where an end token comes first; text that could still
    become a stop string is held back. One space at the very beginning is no part of the text: the
    templates of the family end at `Assistant:`, and what follows begins with that space. It goes
    before stop strings see the text; any other white space stays.

    Attributes:
        ended: by an end token or a stop string, or by `</doctag>` where special tokens are kept,
            which is part of the text.

    Args:
        skip_special_tokens: leave added tokens out of the text; None: as suits the checkpoint, so
            that one that writes DocTags keeps them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        skip_special_tokens: bool | None = None,
    ):
        if skip_special_tokens is None:
            skip_special_tokens = tokenizer.doctags_end is None
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._last = None if skip_special_tokens else tokenizer.doctags_end
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopStrings(stop)
        self._is_begun = False
        self.ended = False

    def go_on(self) -> None:
        """The text goes on from one that has begun."""
        self._is_begun = True

    def add_token(self, token: int) -> str:
        """The text that this token makes certain."""
        if token in self._tokenizer.end_ids:
            self.ended = True
            return self._push(b"", final=True) + self.finalize()
        piece = self._push(self._tokenizer.bytes_of(token, self._skip_special_tokens))
        if token == self._last and not self.ended:
            self.ended = True
            piece += self.finalize()
        return piece

    def finalize(self) -> str:
        """What was held back, when no more tokens come; an unfinished character is left out, so
        that an answer can go on after it."""
        rest = self._stop.flush()
        self.ended = self.ended or self._stop.found
        return rest

    def _push(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        if text and not self._is_begun:
            self._is_begun, text = True, text.removeprefix(" ")
        piece = self._stop.push(text)
        self.ended = self.ended or self._stop.found
        return piece


class Automaton:
    """Finds any of several texts, one character at a time, in a time that does not grow with their
    number (Aho and Corasick, 1975). A state is the longest end of what was read that begins one of
    the texts; 0, where none does, is the first.

    Attributes:
        depth: characters of each state.
        whole: characters of the longest of the texts that each state ends with; 0: with none.
    """

    def __init__(self, texts: Sequence[str]):
        self._following: list[dict[str, int]] = [{}]
        self._shorter, self.depth, self.whole = [0], [0], [0]
        for text in texts:
            state = 0
            for depth, character in enumerate(text, 1):
                state = self._following[state].setdefault(character, len(self.depth))
                if state == len(self.depth):
                    self._following.append({})
                    self._shorter.append(0)
                    self.depth.append(depth)
                    self.whole.append(0)
            self.whole[state] = len(text)
        self._link()

    def _link(self) -> None:
        """Let each state know the next shorter one that what was read ends with, breadth first."""
        states = deque([0])
        while states:
            state = states.popleft()
            for character, after in self._following[state].items():
                if state:
                    self._shorter[after] = self.step(self._shorter[state], character)
                self.whole[after] = self.whole[after] or self.whole[self._shorter[after]]
                states.append(after)

    def step(self, state: int, character: str) -> int:
        """Return the state after one more character."""
        while state and character not in self._following[state]:
            state = self._shorter[state]
        return self._following[state].get(character, 0)


_automaton = lru_cache(8)(Automaton)  # several answers to one request share theirs


class StopStrings:
    """Holds text back while it could still become a stop string; what comes after one is
    dropped."""

    def __init__(self, stops: Sequence[str]):
        self._automaton, self._state = _automaton(tuple(stops)), 0
        self._held, self._hit, self.found = "", -1, False  # _hit: where in _held a stop begins

    def push(self, text: str) -> str:
        """The part of the text so far that is certainly part of the answer."""
        if self.found:
            return ""
        before, held, self._held = len(self._held), self._held + text, ""
        unfinished = before - self._automaton.depth[self._state]
        for end, character in enumerate(text, before + 1):
            self._state = self._automaton.step(self._state, character)
            # A stop string may have begun before the hit, and wait for its end.
            unfinished = end - self._automaton.depth[self._state]
            if whole := self._automaton.whole[self._state]:
                self._hit = end - whole if self._hit < 0 else min(self._hit, end - whole)
            if 0 <= self._hit <= unfinished:
                self.found = True
                return held[: self._hit]
        self._held = held[unfinished:]
        if self._hit >= 0:
            self._hit -= unfinished
        return held[:unfinished]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        if self._hit < 0:
            return held
        self.found = True
        return held[: self._hit]
