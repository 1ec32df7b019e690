"""Tokens, one by one -> the text of an answer, up to its end."""

import codecs
from collections.abc import Sequence

from ..inputs.tokenizer import Tokenizer


class StreamingDetokenizer:
    """Turns tokens into text as they come, up to an end token or a stop string.

    A character whose bytes are spread over tokens appears when it is whole; text that could still
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

    def add_token(self, token: int) -> str:
        """The text that this token makes certain."""
        if token in self._tokenizer.end_ids:
            self.ended = True
            return self.finalize()
        piece = self._push(self._tokenizer.bytes_of(token, self._skip_special_tokens))
        if token == self._last and not self.ended:
            self.ended = True
            piece += self.finalize()
        return piece

    def finalize(self) -> str:
        """What was held back, when no more tokens come; a replacement character for an unfinished
        one."""
        rest = self._push(b"", final=True) + self._stop.flush()
        self.ended = self.ended or self._stop.found
        return rest

    def _push(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        if text and not self._is_begun:
            self._is_begun, text = True, text.removeprefix(" ")
        piece = self._stop.push(text)
        self.ended = self.ended or self._stop.found
        return piece


class StopStrings:
    """Holds text back while it could still become a stop string; what comes after one is
    dropped."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held, self.found = tuple(stops), "", False

    def push(self, text: str) -> str:
        """The part of the text so far that is certainly part of the answer."""
        self._held += text
        hit, held = self._hit(), self._held
        # A stop string may have begun before the hit, and wait for its end.
        starts = (
            at for stop in self._stops for at in range(max(len(held) - len(stop) + 1, 0), len(held))
        )
        unfinished = min(
            (at for at in starts if any(stop.startswith(held[at:]) for stop in self._stops)),
            default=hit,
        )
        self.found = self.found or (hit < len(held) and hit <= unfinished)
        ready = held[: min(hit, unfinished)]
        self._held = "" if self.found else held[len(ready) :]
        return ready

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        hit, held, self._held = self._hit(), self._held, ""
        self.found = self.found or hit < len(held)
        return held[:hit]

    def _hit(self) -> int:
        if self.found:
            return 0
        return min(
            (at for at in map(self._held.find, self._stops) if at >= 0), default=len(self._held)
        )
