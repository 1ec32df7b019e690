"""Answers that are JSON, or fit a JSON schema, by construction: tokens that cannot go on are never
chosen (llguidance), nor those after which too few tokens are left to end the answer."""

import json
import threading
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from math import lcm

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ..errors import GenerationError, cut
from ..inputs.tokenizer import Tokenizer
from ..model import ints
from .endings import LIMITS, Effort, Endings, NoEndError, Place, after, begin, completes
from .sampling import Sampler

MOST_TRIES = 8  # of choosing a token that leaves room for an end
# States that are tried for an end: of a schema, and of each token where one is known and where none
# was found, as all answers wait meanwhile.
OF_SCHEMA, OF_TOKEN, WITHOUT_END = 12_000, 1200, 120
CHECKED = 128  # schemas whose ends are known: more than wait, for answers wait where one is not
# Of all `multipleOf` together, without their decimal points: each answer takes time and memory for
# as many remainders.
MOST_MULTIPLE = 10_000


class PlainText:
    """A tokenizer as llguidance wants it. Text becomes no added token here either: what a schema
    spells, such as `<image>`, is letters, and so is what ends an answer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: list[int]):
        self.eos_token_id = end_ids[0]
        self.special_token_ids = sorted({*tokenizer.added.values(), *end_ids})
        self.tokens = [tokenizer.bytes_of(id, False) for id in range(vocab_size)]
        self._encode = tokenizer.encode_text

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class Grammars:
    """Makes constraints for one tokenizer, whose model has logits of width V.

    Raises:
        GenerationError: no token ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.end_ids = sorted(id for id in tokenizer.end_ids if 0 <= id < vocab_size)
        if not self.end_ids:
            raise GenerationError(
                "the checkpoint has no end token, so no answer can fit a JSON schema; copy "
                "generation_config.json from the original checkpoint"
            )
        plain = PlainText(tokenizer, vocab_size, self.end_ids)
        self._special_ids, self._texts = frozenset(plain.special_token_ids), plain.tokens
        self.endings = Endings(
            {
                text: id
                for id, text in reversed([*enumerate(plain.tokens)])
                if text and id not in self._special_ids
            }
        )
        self._tokenizer = LLTokenizer(TokenizerWrapper(plain), vocab_size, self.end_ids)
        self._checked = lru_cache(CHECKED)(self._check)
        self._one = threading.Lock()

    def text_of(self, token: int) -> bytes:
        """The bytes of a token; none of one that is no text."""
        return b"" if token in self._special_ids else self._texts[token]

    def size(self, closing: bytes) -> int:
        """Tokens of what completes an answer, and of its end."""
        return len(self.endings.tokenize(closing)) + 1

    def first(self, closing: bytes) -> int:
        """The first of these tokens."""
        return [*self.endings.tokenize(closing), self.end_ids[0]][0]

    def json(
        self, schema: Mapping[str, object] | None = None, max_tokens: int | None = None
    ) -> "Constraint":
        """For one answer: a JSON object, or what a JSON schema describes.

        Raises:
            GenerationError: the schema is none, or uses what is not supported, or nothing fits it,
                or not in so many tokens.
        """
        grammar, shortest = self.check(schema, max_tokens)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        return Constraint(self, matcher, grammar, shortest)

    def check(
        self, schema: Mapping[str, object] | None = None, max_tokens: int | None = None
    ) -> tuple[str, bytes | None]:
        """The grammar of a schema, for llguidance, and the shortest answer, if it was found. What
        was checked lately is not checked again.

        Raises:
            GenerationError: as `json`.
        """
        compact = {**(schema or {"type": "object"}), "x-guidance": {"whitespace_flexible": False}}
        try:
            check_multiples(compact)
            with self._one:  # a search takes a second and some memory
                grammar, shortest, problem = self._checked(json.dumps(compact))
        except (ValueError, RecursionError) as error:
            grammar, shortest, problem = "", None, str(error)
        if problem:
            raise GenerationError(
                f"the JSON schema cannot be used: {cut(' '.join(problem.split()))}"
            )
        if max_tokens is not None and shortest is not None:
            check_room(self.size(shortest), max_tokens)
        return grammar, shortest

    def _check(self, schema: str) -> tuple[str, bytes | None, str]:
        """The grammar of a schema, the shortest answer, and what is wrong with it."""
        grammar = LLMatcher.grammar_from_json_schema(schema)
        if problem := LLMatcher.validate_grammar(grammar, self._tokenizer):
            return grammar, None, problem
        try:
            return grammar, self.endings.shortest(begin(grammar), Effort(OF_SCHEMA)), ""
        except NoEndError:
            return grammar, None, "nothing fits it, however long; loosen it"


def check_multiples(schema: object) -> None:
    """Check that `multipleOf` asks for what can be held.

    Raises:
        GenerationError: its numbers are too large.
    """
    together, waiting = 1, [schema]
    while waiting:
        match waiting.pop():
            case dict() as fields:
                number = fields.get("multipleOf")
                if type(number) in (int, float) and number:
                    digits = Decimal(repr(number)).as_tuple().digits
                    together = lcm(together, int("".join(map(str, digits)).rstrip("0") or 1))
                if together > MOST_MULTIPLE:
                    raise GenerationError(
                        "the JSON schema cannot be used: numbers of multipleOf come to more than "
                        f"{MOST_MULTIPLE} together (their least common multiple, without decimal "
                        "points); choose smaller ones"
                    )
                waiting += fields.values()
            case list() as values:
                waiting += values


def check_room(tokens: int, most: int) -> None:
    """Check that so many tokens, of the shortest answer and its end, may be made.

    Raises:
        GenerationError: they may not.
    """
    if tokens > most:
        raise GenerationError(
            f"max_tokens {most}: the shortest answer that fits the JSON schema has {tokens} "
            "tokens; raise max_tokens, or loosen the schema"
        )


class Constraint:
    """Chooses the tokens of one answer, so that it fits a grammar and ends in time.

    At each token a text is known that would complete the answer. A token is taken when what
    completes the answer after it has a place among the tokens that are left; when none are to
    spare, that text is what comes. Where none is found, as after some patterns, any token that may
    come is taken, but in the place of the last an end.
    """

    def __init__(self, grammars: Grammars, matcher: LLMatcher, grammar: str, closing: bytes | None):
        self._grammars, self._matcher, self._state = grammars, matcher, begin(grammar)
        self._closing, self._place = closing, Place()

    def begin(self, max_new_tokens: int) -> None:
        """Check that there is room for an answer.

        Raises:
            GenerationError: there is not.
        """
        if self._closing is not None:
            check_room(self._grammars.size(self._closing), max_new_tokens)

    def choose(self, logits: mx.array, sampler: Sampler, left: int) -> int:
        """Choose and take the next token, one of `left` that may come.

        Args:
            logits: (1, V).

        Raises:
            GenerationError: nothing may come, or no end where one has to.
        """
        marks = self._allowed(logits.shape[-1], left)
        self._effort = Effort(WITHOUT_END if self._closing is None else OF_TOKEN)
        is_spare = self._closing is None or left > self._grammars.size(self._closing)
        for _ in range(MOST_TRIES if is_spare else 0):
            masked = mx.where(mx.array(marks), logits, mx.array(-mx.inf, logits.dtype))
            (token,) = ints(sampler(masked))
            # Else penalties have left nothing of what may come.
            if not (0 <= token < len(marks) and marks[token]):
                break
            closing = self._closing_after(token, left - 1)
            if closing is not None or self._closing is None:
                return self._take(token, closing)
            marks[token] = False
        if self._closing is None:
            raise self._broken()
        token = self._grammars.first(self._closing)
        return self._take(token, self._closing[len(self._grammars.text_of(token)) :])

    def _allowed(self, width: int, left: int) -> npt.NDArray[np.bool_]:
        """Which tokens may come, (V,): without a known end in the place of the last only an end.

        Raises:
            GenerationError: none.
        """
        # 200: may come.
        bias = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)[:width]
        marks: npt.NDArray[np.bool_] = bias == 200
        if not marks.any():
            raise self._broken()
        if self._closing is None and left == 1:
            ends = np.zeros_like(marks)
            ends[self._grammars.end_ids] = marks[self._grammars.end_ids]
            if not ends.any():
                raise GenerationError(
                    "the answer did not come to its end, and how it could have fit the JSON schema "
                    "in so few tokens was not found; raise max_tokens, or loosen the schema"
                )
            return ends
        return marks

    def _closing_after(self, token: int, left: int) -> bytes | None:
        """What completes the answer after a token: what is left of what is known, else what is
        found; None if it has more than `left` tokens."""
        if token in self._grammars.end_ids:
            return b""
        text, size = self._grammars.text_of(token), self._grammars.size
        state, known = after(self._state, text), self._closing
        if state is None or self._place.after(text) is None:
            return None
        if known is not None:
            rest = known[len(text) :]
            if known.startswith(text) and size(rest) <= left:
                return rest
            for each in (rest, known):
                if size(each) <= left and completes(state, each):
                    return each
        try:
            found = self._grammars.endings.shortest(state, self._effort)
        except NoEndError:
            return None
        return found if found is not None and size(found) <= left else None

    def _take(self, token: int, closing: bytes | None) -> int:
        """Go on after a token, which `closing` completes."""
        if token not in self._grammars.end_ids:
            text = self._grammars.text_of(token)
            state = after(self._state, text)
            if state is None or not self._matcher.consume_token(token):
                raise self._broken()
            self._state, self._closing = state, closing
            self._place = self._place.after(text) or Place()  # what a schema spells may be longer
        return token

    def _broken(self) -> GenerationError:
        why = " ".join(self._matcher.get_error().split()) or "nothing may come next"
        return GenerationError(
            f"the answer broke off: the JSON schema is too much for its checker ({cut(why)}); "
            "make it simpler"
        )
