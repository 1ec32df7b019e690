"""Answers that fit a JSON schema: what it spells is text, whatever the tokenizer calls a token."""

import json
from typing import Any

from smolvlm_mlx.generation.structured import Grammars
from smolvlm_mlx.model import ints
from tests.support.checkpoints import Loaded

import mlx.core as mx
import pytest


class Answers:
    """What a schema leaves of a model that would rather have white space than other text, and any
    added token rather than that."""

    def __init__(self, loaded: Loaded):
        self.tokenizer, width = loaded[1].tokenizer, loaded[0].config.text_config.vocab_size
        self._grammars = Grammars(self.tokenizer, width)
        spaces = [float(self.tokenizer.bytes_of(id, False).isspace()) for id in range(width)]
        added = [2.0 * (id in self.tokenizer.added.values()) for id in range(width)]
        self._logits = mx.array(added) + mx.array(spaces)

    def answer(self, schema: dict[str, Any]) -> str:
        constrain, ids = self._grammars.json(schema), [0]  # of the prompt the last
        while len(ids) < 100:
            ids += ints(mx.argmax(constrain(mx.array(ids), self._logits), keepdims=True))
            if ids[-1] in self.tokenizer.end_ids:
                return self.tokenizer.decode(ids[1:])
        raise AssertionError(f"no end: {self.tokenizer.decode(ids[1:])}")


@pytest.fixture(scope="module")
def answers(loaded: Loaded) -> Answers:
    return Answers(loaded)


def test_every_added_token_is_text_where_a_schema_spells_it(answers: Answers) -> None:
    tokens = sorted(answers.tokenizer.added)
    assert {"<image>", "<end_of_utterance>", "<|endoftext|>", "<row_1_col_1>"} <= {*tokens}
    for token in tokens:
        for text in (token, f"a {token}b{token}"):
            assert answers.answer({"const": text}) == json.dumps(text)


@pytest.mark.parametrize("token", ["<image>", "<end_of_utterance>", "<|im_end|>"])
def test_keys_and_choices_are_text_as_well(token: str, answers: Answers) -> None:
    item = {"type": "object", "properties": {token: {"enum": [token]}}, "required": [token]}
    schema = {**item, "additionalProperties": False}
    assert json.loads(answers.answer(schema)) == {token: token}


def test_no_added_token_stands_within_a_string(answers: Answers) -> None:
    answer = answers.answer({"type": "string", "minLength": 9, "maxLength": 9})
    assert len(json.loads(answer)) == 9
    assert not any(token in answer for token in answers.tokenizer.added)


def test_there_is_no_white_space_to_go_on_with_for_ever(answers: Answers) -> None:
    item = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert answers.answer({**item, "additionalProperties": False}) == '{"a":1}'
