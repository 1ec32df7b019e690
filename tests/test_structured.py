"""Answers that fit a JSON schema: what it spells is text, whatever the tokenizer calls a token; and
they end within their tokens."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import GenerationError
from smolvlm_mlx.generation.detokenizer import StreamingDetokenizer
from smolvlm_mlx.generation.endings import LONG, Effort, begin
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.generation.sampling import greedy, make_sampler
from smolvlm_mlx.generation.structured import Grammars
from smolvlm_mlx.inputs.tokenizer import Tokenizer
from tests.support.checkpoints import Loaded
from tests.support.family import FIRST, SECOND
from tests.support.places import REAL_FILES
from tests.support.schemas import SCHEMAS, random_schema

import mlx.core as mx
import pytest

jsonschema_rs = pytest.importorskip("jsonschema_rs")  # which schemathesis brings


class Answers:
    """What a schema leaves of a model that would rather have white space than other text, and any
    added token rather than that."""

    def __init__(self, tokenizer: Tokenizer, width: int):
        self.tokenizer, self.grammars = tokenizer, Grammars(tokenizer, width)
        spaces = [float(tokenizer.bytes_of(id, False).isspace()) for id in range(width)]
        added = [2.0 * (id in tokenizer.added.values()) for id in range(width)]
        self.logits = (mx.array(added) + mx.array(spaces))[None]

    def ids(
        self,
        schema: dict[str, Any],
        tokens: int = 100,
        sampler: Callable[[mx.array], mx.array] = greedy,
    ) -> list[int]:
        """Of an answer, its end included."""
        constraint, ids = self.grammars.json(schema, tokens), list[int]()
        constraint.begin(tokens)
        while not ids or ids[-1] not in self.tokenizer.end_ids:
            assert len(ids) < tokens, self.tokenizer.decode(ids)
            ids.append(constraint.choose(self.logits, sampler, tokens - len(ids)))
        return ids

    def answer(self, schema: dict[str, Any], *more: Any) -> str:
        return self.tokenizer.decode(self.ids(schema, *more))


@pytest.fixture(scope="module")
def answers(loaded: Loaded) -> Answers:
    return Answers(loaded[1].tokenizer, loaded[0].config.text_config.vocab_size)


def shortest(answers: Answers, schema: dict[str, Any]) -> bytes:
    found = answers.grammars.check(schema)[1]
    assert found is not None
    return found


# ---- what a schema spells


def check_spelled(answers: Answers, tokens: list[str]) -> None:
    for token in tokens:
        for text in (token, f"a {token}b{token}"):
            ids = answers.ids({"const": text}, 200)
            for skip in (True, False):
                stream = StreamingDetokenizer(answers.tokenizer, skip_special_tokens=skip)
                pieces = [stream.add_token(id) for id in ids]
                assert "".join(pieces) + stream.finalize() == json.dumps(text)
                assert stream.ended


def test_every_added_token_is_text_where_a_schema_spells_it(answers: Answers) -> None:
    tokens = sorted(answers.tokenizer.added)
    assert {"<image>", "<end_of_utterance>", "<|endoftext|>", "<row_1_col_1>"} <= {*tokens}
    check_spelled(answers, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_every_added_token_of_the_family(name: str, family: Path) -> None:
    width = {FIRST: 49155, SECOND: 49280}[name]
    answers = Answers(Tokenizer.from_folder(family / name), width)
    check_spelled(answers, ["</s>", *sorted(answers.tokenizer.added)])


def test_the_published_tokenizers_are_tried(request: pytest.FixtureRequest) -> None:
    if not REAL_FILES.is_dir():
        pytest.skip("no published files beside the checkout")
    answers = Answers(Tokenizer.from_folder(REAL_FILES / SECOND), 49280)
    check_spelled(answers, ["<image>", "</s>", "<|im_end|>", "<end_of_utterance>"])


@pytest.mark.parametrize("token", ["<image>", "<end_of_utterance>", "<|im_end|>", "</s>"])
def test_keys_choices_and_patterns_are_text_as_well(token: str, answers: Answers) -> None:
    pattern = "^" + token.replace("|", r"\|") + "$"
    for value in ({"enum": [token]}, {"type": "string", "pattern": pattern, "title": token}):
        item = {"type": "object", "properties": {token: value}, "required": [token]}
        schema = {**item, "additionalProperties": False}
        assert json.loads(answers.answer(schema)) == {token: token}


def test_no_added_token_stands_within_a_string(answers: Answers) -> None:
    answer = answers.answer({"type": "string", "minLength": 9, "maxLength": 9})
    assert len(json.loads(answer)) == 9
    assert not any(token in answer for token in answers.tokenizer.added)


def test_a_letter_that_ends_answers_is_no_text(tiny: Path) -> None:
    """As a generation_config.json may have it."""
    tokenizer = Tokenizer.from_folder(tiny)
    (letter,) = tokenizer.encode_text("a")
    tokenizer.end_ids = frozenset([letter, 10**6])
    answers = Answers(tokenizer, 299)
    answers.logits[0, letter] = 9.0
    schema = {"type": "string", "minLength": 5, "maxLength": 5}
    ids = answers.ids(schema)
    assert (ids.index(letter), len(ids)) == (len(ids) - 1, 8)
    assert len(json.loads(tokenizer.decode(ids[:-1]))) == 5


def test_without_an_end_token(tiny: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny)
    for ends in ([], [299, -1]):
        tokenizer.end_ids = frozenset(ends)
        with pytest.raises(GenerationError, match="the checkpoint has no end token"):
            Grammars(tokenizer, 299)


def test_there_is_no_white_space_to_go_on_with_for_ever(answers: Answers) -> None:
    item = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert answers.answer({**item, "additionalProperties": False}) == '{"a":1}'


# ---- an end in time


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_fits_and_ends_within_any_number_of_tokens(name: str, answers: Answers) -> None:
    schema, size = SCHEMAS[name]
    text = shortest(answers, schema)
    assert len(text) == size
    least = len(answers.ids(schema, answers.grammars.size(text)))
    fits = jsonschema_rs.validator_for(schema or {"type": "object"})
    for tokens in (least, least + 1, least + 2, least + 7, least + 30):
        for seed in range(3):
            sampler = make_sampler(Options(temperature=1.0, seed=seed))
            ids = answers.ids(schema, tokens, sampler)
            assert len(ids) <= tokens
            assert fits.is_valid(json.loads(answers.tokenizer.decode(ids)))
    said = f"max_tokens {least - 1}: the shortest answer that fits the JSON schema has {least}"
    with pytest.raises(GenerationError, match=said):
        answers.grammars.json(schema, least - 1)
    with pytest.raises(GenerationError, match=said):
        answers.grammars.json(schema).begin(least - 1)


def test_numbers_are_such_as_can_be_read(answers: Answers) -> None:
    (nine,) = answers.tokenizer.encode_text("9")
    (power,) = answers.tokenizer.encode_text("e")
    for wanted in (nine, power):
        logits = mx.where(mx.arange(299) == wanted, 9.0, answers.logits)
        answers_ = Answers(answers.tokenizer, 299)
        answers_.logits = mx.where(mx.arange(299) == nine, 5.0, logits)
        for schema in ({"type": "number"}, {"type": "integer"}, {"type": "array", "minItems": 2}):
            value = json.loads(answers_.answer(schema, 90))
            assert "inf" not in repr(value)
    assert answers.answer({"const": 10**40}) == str(10**40)
    assert json.loads(answers.answer({"type": "string", "pattern": "^9{40}$"})) == "9" * 40


def test_random_schemas(answers: Answers) -> None:
    rng = random.Random(0)
    for seed in range(60):
        schema = random_schema(rng)
        tokens = answers.grammars.size(shortest(answers, schema)) + rng.choice([0, 1, 5, 40])
        ids = answers.ids(schema, tokens, make_sampler(Options(temperature=1.0, seed=seed)))
        answer = json.loads(answers.tokenizer.decode(ids))
        assert jsonschema_rs.is_valid(schema, answer), (schema, answer)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": []},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "string", "pattern": "^(?!a)"},
        {"not": {}},
        {"allOf": [{"const": 1}, {"const": 2}]},
        {"$ref": "#"},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": 5},
    ],
    ids=str,
)
def test_what_nothing_fits_is_refused(schema: dict[str, Any], answers: Answers) -> None:
    with pytest.raises(GenerationError, match="the JSON schema cannot be used: "):
        answers.grammars.json(schema)


def test_an_end_that_is_not_found_is_looked_for_on_the_way(answers: Answers) -> None:
    """What a pattern asks for somewhere may come late; once it has come, the answer ends in
    time."""
    schema = {"type": "string", "pattern": "zq"}
    assert answers.grammars.check(schema, 1)[1] is None
    constraint, ids = answers.grammars.json(schema, 20), list[int]()
    wanted = answers.tokenizer.encode_text('"zq')
    while not ids or ids[-1] not in answers.tokenizer.end_ids:
        token = wanted[len(ids)] if len(ids) < len(wanted) else 0
        logits = mx.where(mx.arange(299) == token, 9.0, answers.logits)
        ids.append(constraint.choose(logits, greedy, 20 - len(ids)))
        assert len(ids) <= 20
    assert "zq" in json.loads(answers.tokenizer.decode(ids))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "zq"},
        {"type": "string", "minLength": 100_000},
        {"type": "array", "minItems": 100_000},
    ],
    ids=str,
)
def test_an_answer_whose_end_is_never_found_is_an_error(
    schema: dict[str, Any], loaded: Loaded
) -> None:
    """And not half of one."""
    engine = Engine(*loaded)
    with pytest.raises(GenerationError, match="the answer did not come to its end"):
        for _ in engine.stream("Hello", Options(max_tokens=20), schema=schema):
            pass


def test_what_comes_behind_a_long_text_costs_more(answers: Answers) -> None:
    closing = answers.grammars.endings
    for schema in ({"type": "string", "minLength": 9000}, {"type": "array", "minItems": 9000}):
        effort = Effort(12_000)
        assert closing.shortest(begin(answers.grammars.check(schema)[0]), effort) is None
        assert -9000 // LONG < effort.states <= 0
        assert closing.shortest(begin(answers.grammars.check({})[0]), effort) is None


def test_searches_of_a_token_share_their_effort(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other answers wait for them."""
    searched, shortest = list[Effort](), answers.grammars.endings.shortest

    def watched(state: Any, effort: Effort) -> bytes | None:
        searched.append(effort)
        return shortest(state, effort)

    monkeypatch.setattr(answers.grammars.endings, "shortest", watched)
    zq = {"type": "string", "pattern": "zq"}
    constraint = answers.grammars.json({"anyOf": [{"const": 1}, {"type": "array", "items": zq}]})
    for left in range(60, 50, -1):
        searched.clear()
        constraint.choose(-answers.logits, make_sampler(Options(temperature=9.0)), left)
        assert len({*map(id, searched)}) <= 1


def test_multiples_that_cost_too_much(answers: Answers) -> None:
    def check(*numbers: object) -> bytes | None:
        kinds = [{"type": "number", "multipleOf": each} for each in numbers]
        return answers.grammars.check({"allOf": kinds})[1]

    assert check(0.01, 5) == check(99, 101) == check(10_000) == b"0"
    for numbers in ([10_001], [12.3457], [99, 101, 103]):
        with pytest.raises(GenerationError, match="more than 10000 together"):
            check(*numbers)
    with pytest.raises(GenerationError, match="cannot be used"):
        check(True)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 10.0},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"temperature": 10.0, "min_p": 1.0},
        {"temperature": 1e-6, "top_p": 1e-6},
        {"temperature": 2.0, "top_k": 1},
    ],
    ids=str,
)
def test_no_option_undoes_a_schema(options: dict[str, Any], loaded: Loaded) -> None:
    schema, engine = SCHEMAS["deep"][0], Engine(*loaded)
    for tokens in (80, 120):
        stream = engine.stream("Hello", Options(max_tokens=tokens, **options), schema=schema)
        text = "".join(getattr(event, "piece", "") for event in stream)
        assert jsonschema_rs.is_valid(schema, json.loads(text))
        assert stream.statistics.finish_reason == "stop"


def test_logits_that_leave_nothing_still_make_json(answers: Answers) -> None:
    answers.logits = mx.full((1, 299), -mx.inf)
    for name in ("tree", "deep", "choice"):
        schema = SCHEMAS[name][0]
        assert jsonschema_rs.is_valid(schema, json.loads(answers.answer(schema)))
