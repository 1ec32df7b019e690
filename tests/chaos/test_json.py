"""Answers with a schema are JSON that fits it, whatever the model, the options and the limit."""

import json
import random

from smolvlm_mlx.errors import GenerationError
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.options import Options
from smolvlm_mlx.generation.structured import Grammars
from tests.support.checkpoints import Loaded
from tests.support.schemas import SCHEMAS, random_schema
from tests.support.tally import Tally, tally

import pytest

jsonschema_rs = pytest.importorskip("jsonschema_rs")  # which schemathesis brings


def try_one(seed: int, engine: Engine, grammars: Grammars, count: Tally) -> None:
    """A schema, a limit and options of a seed."""
    rng = random.Random(seed)
    names = sorted(SCHEMAS)
    schema = SCHEMAS[names[seed]][0] if seed < len(names) else random_schema(rng)
    shortest = grammars.check(schema)[1]
    assert shortest is not None, schema
    least = grammars.size(shortest)
    tokens = max(1, least + rng.choice([-1, 0, 0, 1, 2, 5, 40]))
    options = Options(
        max_tokens=tokens,
        temperature=rng.choice([0.0, 1.0, 2.0]),
        seed=seed,
        min_p=rng.choice([0.0, 0.5]),
        top_k=rng.choice([0, 3]),
        repetition_penalty=rng.choice([1.0, 10.0]),
        frequency_penalty=rng.choice([0.0, 2.0]),
    )
    try:
        stream = engine.stream("Hello", options, schema=schema)
        text = "".join(getattr(event, "piece", "") for event in stream)
        value = json.loads(text)
        fine = jsonschema_rs.is_valid(schema or {"type": "object"}, value) and tokens >= least
        fine = fine and stream.statistics.finish_reason == "stop"
    except GenerationError as error:
        text, fine = str(error), tokens < least
    except ValueError as error:
        fine, text = False, f"{text!r}: {error}"
    count.case(fine, note=(seed, schema, tokens, text))


def test_json(loaded: Loaded) -> None:
    engine = Engine(*loaded)
    grammars = Grammars(loaded[1].tokenizer, loaded[0].config.text_config.vocab_size)
    with tally("JSON that fits its schema") as count:
        for seed in range(150):
            try_one(seed, engine, grammars, count)
