"""Answers that are JSON, or fit a JSON schema, by construction: tokens that cannot go on are never
chosen (llguidance)."""

import json
from collections.abc import Mapping
from functools import lru_cache

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ..errors import GenerationError, cut
from ..inputs.tokenizer import Tokenizer
from ..model import ints
from .sampling import LogitsProcessor


class PlainText:
    """A tokenizer as llguidance wants it. Text becomes no added token here either: what a schema
    spells, such as `<image>`, is letters."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.eos_token_id = min(tokenizer.end_ids)
        self.special_token_ids = sorted(tokenizer.added.values())
        self.tokens = [tokenizer.bytes_of(id, False) for id in range(vocab_size)]
        self._encode = tokenizer.encode_text

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class Grammars:
    """Makes constraints for one tokenizer, whose model has logits of width V."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        plain = TokenizerWrapper(PlainText(tokenizer, vocab_size))
        self._tokenizer = LLTokenizer(plain, vocab_size, sorted(tokenizer.end_ids))
        self._checked = lru_cache(16)(self._check)

    def json(self, schema: Mapping[str, object] | None = None) -> LogitsProcessor:
        """For one answer: a JSON object, or what a JSON schema describes. Of the prompt it is given
        the last token.

        Raises:
            GenerationError: the schema is none, or uses what is not supported.
        """
        matcher, read = LLMatcher(self._tokenizer, self.grammar(schema)), 1

        def constrain(tokens: mx.array, logits: mx.array) -> mx.array:
            nonlocal read
            ids = ints(tokens)
            for token in ids[read:]:
                matcher.consume_token(token)
            read = len(ids)
            # 200: may come.
            marks = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[: logits.shape[-1]]
            return mx.where(mx.array(marks == 200), logits, mx.array(-mx.inf, logits.dtype))

        return constrain

    def grammar(self, schema: Mapping[str, object] | None = None) -> str:
        """The grammar of a schema, for llguidance; what was checked lately is not checked again.

        Raises:
            GenerationError: as `json`.
        """
        compact = {**(schema or {"type": "object"}), "x-guidance": {"whitespace_flexible": False}}
        try:
            grammar, problem = self._checked(json.dumps(compact))
        except (ValueError, RecursionError) as error:
            grammar, problem = "", str(error)
        if problem:
            raise GenerationError(
                f"the JSON schema cannot be used: {cut(' '.join(problem.split()))}"
            )
        return grammar

    def _check(self, schema: str) -> tuple[str, str]:
        """The grammar of a schema, and what is wrong with it."""
        grammar = LLMatcher.grammar_from_json_schema(schema)
        return grammar, LLMatcher.validate_grammar(grammar, self._tokenizer)
