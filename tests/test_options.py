"""Every option is obeyed, or refused by name, alone, in a batch, and where several answers are made at once."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, generate, load
from smolvlm_mlx.errors import GenerationError, PromptError, SmolVLMError
from smolvlm_mlx.events import End, Event, Text
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.scheduler import Job, Scheduler
from smolvlm_mlx.inputs.processor import Inputs, Processor
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.server.openai import ChatRequest

import pytest

Road = Callable[[Options], list[str]]  # answers to one question that was asked several times

SHORT = Options(max_tokens=24)
WARM = replace(SHORT, temperature=1.5, seed=1)
# By name: options, and others that differ in this one and give another answer.
CHANGES: dict[str, tuple[Options, Any]] = {
    "max_tokens": (SHORT, 12),
    "temperature": (replace(SHORT, seed=1), 1.5),
    "top_p": (WARM, 0.3),
    "top_k": (WARM, 2),
    "min_p": (WARM, 0.9),
    "repetition_penalty": (SHORT, 3.0),
    "seed": (WARM, 2),
    "stop": (SHORT, ("^6",)),
    "kv_bits": (SHORT, 4),
    "skip_special_tokens": (SHORT, False),
}
REFUSED = {"scheduler": {"kv_bits"}}


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> tuple[SmolVLM, Processor]:
    model, processor = load(tiny, "float32")
    processor.tokenizer.end_ids = frozenset()  # answers go on, and so have time to differ
    return model, processor


@pytest.fixture(scope="module")
def question(loaded: tuple[SmolVLM, Processor]) -> Inputs:
    return loaded[1]([{"role": "user", "content": "Which colors are there?"}])


@pytest.fixture(scope="module")
def roads(loaded: tuple[SmolVLM, Processor], question: Inputs) -> Iterator[dict[str, Road]]:
    engine = Engine(*loaded, conversations=4)
    scheduler = Scheduler(lambda: engine)
    scheduler.start()

    def served(options: Options) -> list[str]:
        texts, ends = ["", ""], [threading.Event(), threading.Event()]
        errors: list[SmolVLMError] = []

        def job(number: int) -> Job:
            def put(event: Event | SmolVLMError) -> None:
                texts[number] += event.piece if isinstance(event, Text) else ""
                errors.extend([event] if isinstance(event, SmolVLMError) else [])
                if isinstance(event, End | SmolVLMError):
                    ends[number].set()

            return Job(question, options, put)

        for number in range(2):
            scheduler.submit(job(number))
        assert all(end.wait(60) for end in ends)
        assert not errors
        return texts

    yield {
        "batch": lambda options: [text for text, _ in Engine(*loaded).batch([question] * 3, options)],
        "scheduler": served,
    }
    scheduler.close()


@pytest.mark.parametrize("road", ["batch", "scheduler"])
@pytest.mark.parametrize("name", [field.name for field in fields(Options)])
def test_an_option_says_the_same_everywhere(
    name: str, road: str, roads: dict[str, Road], loaded: tuple[SmolVLM, Processor], question: Inputs
) -> None:
    before, value = CHANGES[name]
    options = replace(before, **{name: value})
    want = generate(*loaded, question, options)
    assert want != generate(*loaded, question, before)
    if name in REFUSED.get(road, ()):
        with pytest.raises(GenerationError, match=name):
            roads[road](options)
    else:
        assert set(roads[road](options)) == {want}


@pytest.mark.parametrize("road", ["batch", "scheduler"])
def test_more_than_there_are_is_all(
    road: str, roads: dict[str, Road], loaded: tuple[SmolVLM, Processor], question: Inputs
) -> None:
    want = generate(*loaded, question, WARM)
    assert generate(*loaded, question, replace(WARM, top_k=10**30)) == want
    assert set(roads[road](replace(WARM, top_k=10**30))) == {want}


@pytest.mark.parametrize("name", [field.name for field in fields(Options)])
def test_a_request_says_it_or_is_refused(name: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    without, empty = (json.dumps({"messages": messages, **more}).encode() for more in ({}, {name: None}))
    assert ChatRequest.parse(empty).options() == ChatRequest.parse(without).options()
    value = min(CHANGES[name][1], 1.9) if name == "temperature" else CHANGES[name][1]
    body = json.dumps({"messages": messages, name: value}).encode()
    if name in ("kv_bits", "skip_special_tokens"):
        with pytest.raises(PromptError, match=name):
            ChatRequest.parse(body)
    else:
        assert getattr(ChatRequest.parse(body).options(), name) == value
