"""Logits of prompts that were read -> tokens -> text, row by row: the one loop, for one answer or
many.

Every row has its own options, and what they say is done here. Knows nothing of pictures, threads or
conversations.
"""

import time
from collections.abc import Sequence

import mlx.core as mx

from ..errors import GenerationError, SmolVLMError
from ..events import FinishReason, Statistics
from ..inputs.tokenizer import Tokenizer
from ..model import BatchKVCache, KVCache, SmolVLM, ints
from .detokenizer import StreamingDetokenizer
from .failures import Contained
from .options import Options
from .prefix_cache import Key
from .repetition import RepetitionDetector, RepetitionGate
from .sampling import (
    NOT_FINITE,
    Constraint,
    LogitsProcessor,
    Sampler,
    make_answer_penalties,
    make_penalties,
    make_sampler,
)


class Row:
    """One answer under way: its text, and how its next token is chosen.

    Attributes:
        token_ids: chosen so far, end tokens included.
        statistics: what it took so far.
        error: what ended it alone: logits that are not finite, its constraint, its detokenizer.
        keys: of its prompt, see `prefix_cache`.
        repetition: tells whether it goes in circles, where that ends it. JSON goes on: without its
            end it is none.

    Args:
        tokenizer: without one there is no text, and no end before that of `max_new_tokens`.
        constraint: chooses the tokens, after penalties.
    """

    def __init__(
        self,
        options: Options,
        tokenizer: Tokenizer | None = None,
        constraint: Constraint | None = None,
        statistics: Statistics | None = None,
    ):
        self.options = options
        self.token_ids = list[int]()
        self.statistics = statistics or Statistics()
        self.error: SmolVLMError | None = None
        self._failure: SmolVLMError | None = None  # that the next `push` tells
        self.prompt, self.keys = list[int](), list[Key]()
        self._text = None
        if tokenizer is not None:
            self._text = StreamingDetokenizer(tokenizer, options.stop, options.skip_special_tokens)
        self._sampler = make_sampler(options)
        self._processors = make_penalties(options)
        self._processors += [self._after_prompt(each) for each in make_answer_penalties(options)]
        self._constraint = constraint
        self.repetition: RepetitionDetector | None = None
        if tokenizer is not None and options.end_loops and constraint is None:
            self.repetition = RepetitionDetector(lambda ids: tokenizer.decode(ids, False))
        self._gate = RepetitionGate()

    def begin(self, prompt: list[int], max_new_tokens: int, goes_on: bool = False) -> None:
        """Its prompt is known, and how many tokens there is room for.

        Args:
            goes_on: the prompt ends within the answer.

        Raises:
            GenerationError: too few for any answer that fits the constraint.
        """
        self.prompt, self.max_new_tokens = prompt, min(self.options.max_tokens, max_new_tokens)
        self._history = mx.array(prompt if self._processors else [], mx.int32)
        if goes_on and self._text is not None:
            self._text.go_on()
        if self._constraint is not None:
            self._constraint.begin(self.max_new_tokens)

    def start(self) -> None:
        """Its prompt is read, and its tokens come from now on."""
        self._started = time.perf_counter()

    @property
    def is_constrained(self) -> bool:
        """Whether each token has to be read before the next is chosen."""
        return self._constraint is not None

    @property
    def ended(self) -> bool:
        """Whether the answer came to its end by itself."""
        return self._text is not None and self._text.ended

    @property
    def is_loop(self) -> bool:
        """Whether it was ended because it went in circles."""
        return self.repetition is not None and self.repetition.found and not self.ended

    @property
    def over(self) -> bool:
        """Whether no more comes: at its end, after as many tokens as it may have, where it goes in
        circles, or after an error."""
        is_full = len(self.token_ids) >= self.max_new_tokens
        return self.ended or is_full or self.is_loop or self.error is not None

    @property
    def sampler(self) -> Sampler | None:
        """What may choose for several rows at once; None if more than that is to be done for this
        one."""
        return None if self._processors or self.is_constrained else self._sampler

    def choose(self, logits: mx.array) -> mx.array:
        """Logits (1, V) -> the next token (1,), not evaluated. An error of what it asks beside the
        sampler is its own."""
        token = None
        if not self.over and self._failure is None:
            with Contained(self._fail):
                for process in self._processors:
                    logits = process(self._history, logits)
                if self._constraint is not None:
                    left = self.max_new_tokens - len(self.token_ids)
                    chosen = self._constraint.choose(logits, self._sampler, left)
                    token = mx.array([chosen], mx.int32)
        token = self._sampler(logits) if token is None else token
        if self._processors:
            self._history = mx.concatenate([self._history, token])
        return token

    def _after_prompt(self, process: LogitsProcessor) -> LogitsProcessor:
        """Let it see the answer's tokens alone."""
        return lambda tokens, logits: process(tokens[len(self.prompt) :], logits)

    def _fail(self, error: SmolVLMError) -> None:
        self._failure = error

    def push(self, token: int) -> str:
        """Take a token that was chosen; the text that it makes certain."""
        if token == NOT_FINITE:
            self.error = GenerationError(
                "the model's logits are not finite; use dtype bfloat16 or float32, or convert again"
            )
            return ""
        self.error = self._failure
        if self.error is not None:
            return ""
        self.token_ids.append(token)
        piece = ""
        if self._text is not None:
            with Contained(self._fail):
                piece = self._text_after(token, self._text)
            self.error = self._failure
        found = self.statistics
        found.generated_tokens = len(self.token_ids)
        found.decode_seconds = time.perf_counter() - self._started
        if self.over:
            cut_off: FinishReason = "repetition" if self.is_loop else "length"
            found.finish_reason = "stop" if self.ended else cut_off
        return piece

    def _text_after(self, token: int, text: StreamingDetokenizer) -> str:
        """The text that a token makes certain; of a loop, no more than shows that it is one."""
        piece, size = text.add_token(token), 0
        if self.repetition is not None and not self.ended:
            self.repetition.push(token)
            if len(self.token_ids) >= self.max_new_tokens:
                self.repetition.end()
            size = self.repetition.size
        if self.is_loop:
            return ""
        piece = self._gate.push(piece, size)
        if self.over:
            piece += self._gate.flush() + ("" if self.ended else text.finalize())
        return piece


class Decoder:
    """Answers that are made together, one token each at a step.

    Rows come with the KV cache of their prompts, at any time, and go when they are over. The step
    after is under way while tokens are read, unless one is a row's first, which is wanted at once,
    or a constraint has to read it.
    """

    def __init__(self, model: SmolVLM):
        self._model, self._rows = model, list[Row]()
        self._cache: Sequence[KVCache | BatchKVCache] = []
        # (B,), the last that were chosen
        self._tokens, self._is_read = mx.array([], mx.int32), False

    def add(
        self, rows: Sequence[Row], cache: Sequence[KVCache | BatchKVCache], logits: mx.array
    ) -> None:
        """Begin answers.

        Args:
            cache: of their prompts, which have one length, a layer each.
            logits: after their prompts, (B, V).
        """
        self._go_on()
        for row in rows:
            row.start()
        tokens = _choose(rows, logits)
        if self._rows:
            cache = [BatchKVCache(pair) for pair in zip(self._cache, cache, strict=True)]
            tokens = mx.concatenate([self._tokens, tokens])
        self._rows = [*self._rows, *rows]
        self._cache = cache
        self._tokens = tokens
        self._is_read = False

    def step(self) -> list[tuple[Row, str]]:
        """One token for each row that is not over, and the text that it makes certain."""
        alive = [number for number, row in enumerate(self._rows) if not row.over]
        if len(alive) <= len(self._rows) // 2:
            self._keep(alive)
        self._go_on()
        tokens, following = self._tokens, None
        if any(not row.over and len(row.token_ids) + 1 < row.max_new_tokens for row in self._rows):
            read_first = any(row.is_constrained or not row.token_ids for row in self._rows)
            following = None if read_first else self._next()
        ids = ints(tokens)
        self._tokens, self._is_read = (tokens, True) if following is None else (following, False)
        pairs = [pair for pair in zip(self._rows, ids, strict=True) if not pair[0].over]
        return [(row, row.push(token)) for row, token in pairs]

    def take(self, row: Row) -> list[KVCache]:
        """Take a row out that was added alone; returns its KV cache: of its prompt, and all its
        tokens but perhaps the last."""
        number = self._rows.index(row)
        cache = [
            layer.extract(number) if isinstance(layer, BatchKVCache) else layer
            for layer in self._cache
        ]
        self._keep([other for other in range(len(self._rows)) if other != number])
        return cache

    def _keep(self, numbers: list[int]) -> None:
        self._rows = [self._rows[number] for number in numbers]
        if not numbers:
            self._cache, self._tokens = [], self._tokens[:0]
            return
        kept = mx.array(numbers)
        self._tokens = self._tokens[kept]
        for layer in self._cache:
            layer.keep(kept)
        if len(numbers) == 1:  # as if it had always been alone
            self._cache = [
                layer.extract(0) if isinstance(layer, BatchKVCache) else layer
                for layer in self._cache
            ]

    def _go_on(self) -> None:
        if self._rows and self._is_read:
            self._tokens, self._is_read = self._next(), False

    def _next(self) -> mx.array:
        hidden = self._model.language_model.hidden_states(self._tokens[:, None], self._cache)
        return _choose(self._rows, self._model.language_model.logits(hidden[:, -1]))


def _choose(rows: Sequence[Row], logits: mx.array) -> mx.array:
    """Logits (B, V) -> tokens (B,), under way; NOT_FINITE in place of one that cannot be chosen."""
    logits = logits.astype(mx.float32)
    finite, sampler = mx.isfinite(logits.sum(axis=-1)), rows[0].sampler
    if sampler is not None and all(row.sampler is sampler for row in rows):
        tokens = sampler(logits)
    else:
        tokens = mx.concatenate(
            [row.choose(logits[number : number + 1]) for number, row in enumerate(rows)]
        )
    tokens = mx.where(finite, tokens, NOT_FINITE)
    mx.async_eval(tokens)
    return tokens
