"""Ctrl-C in any layer, while a prompt is read or an answer is made, costs no more than what was
under way: asked again, the answer is that of a run without it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from smolvlm_mlx import Chat, Options, generate, load
from smolvlm_mlx.errors import SmolVLMError
from smolvlm_mlx.events import End, Event
from smolvlm_mlx.generation import prefill
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.scheduler import Job, Scheduler
from smolvlm_mlx.generation.stream import TextStream
from smolvlm_mlx.model import BatchKVCache, KVCache, QuantizedKVCache
from tests.support.checkpoints import Loaded

import pytest

CHUNK, LAYERS = 8, 3
QUESTION = "Why?"  # 23 tokens with the template: three chunks
SHORT = Options(max_tokens=3)
PLACES = LAYERS * (3 + 2)  # the last token goes through no layer
Bits = Literal[4, 8] | None


@pytest.fixture
def exact(tiny: Path, on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """Prompts are read in chunks, whose places change no sum; answers never end by themselves."""
    monkeypatch.setattr(prefill, "CHUNK", dict.fromkeys(prefill.CHUNK, CHUNK))
    monkeypatch.setattr(prefill, "LEAST_CHUNK", 1)
    model, processor = load(tiny, "float32")
    monkeypatch.setattr(processor.tokenizer, "end_ids", frozenset())
    return model, processor


@contextmanager
def at_layer(number: int, then: Callable[[], None], after: bool = False) -> Iterator[None]:
    """Do something when a layer's keys and values are taken up for the `number`th time, from 0, or
    just `after`."""
    calls = count()

    def watched(method: Any) -> Any:
        def call(cache: Any, *arguments: Any) -> Any:
            is_now = next(calls) == number
            if is_now and not after:
                then()
            result = method(cache, *arguments)
            if is_now and after:
                then()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for kind in (KVCache, QuantizedKVCache, BatchKVCache):
            patch.setattr(kind, "update_and_fetch", watched(kind.update_and_fetch))
        patch.setattr(KVCache, "row", watched(KVCache.row))  # of NumPy's steps
        yield


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("bits", [None, 8])
def test_an_engine_keeps_the_chunks_that_all_layers_have(
    bits: Bits, after: bool, exact: Loaded
) -> None:
    options = replace(SHORT, kv_bits=bits)
    whole = Engine(*exact).stream(QUESTION, options)
    list(whole)
    tokens = whole.statistics.prompt_tokens
    for place in range(PLACES):
        engine = Engine(*exact)
        with pytest.raises(KeyboardInterrupt), at_layer(place, interrupt, after):
            list(engine.stream(QUESTION, options))
        again = engine.stream(QUESTION, options)
        list(again)
        assert again.token_ids == whole.token_ids, place
        # One token at least is read again.
        read = min((place + after) // LAYERS * CHUNK, tokens - 1)
        assert again.statistics.reused_tokens == read, place


@pytest.mark.parametrize("place", range(PLACES))
def test_a_conversation_goes_on_as_if_nothing_had_been(place: int, exact: Loaded) -> None:
    chat = Chat(*exact, SHORT)
    "".join(chat.ask("Hello"))
    with pytest.raises(KeyboardInterrupt), at_layer(place, interrupt):
        list(chat.ask(QUESTION))
    assert chat.messages[-1].interrupted
    retried = "".join(chat.retry())
    assert retried == generate(*exact, chat.messages[:-1], SHORT)
    assert len(chat.messages) == 4


# ---- where several answers are made at once


class Asked(Job):
    """A job that keeps how it ended."""

    def __init__(self, loaded: Loaded, question: str):
        inputs = loaded[1]([{"role": "user", "content": question}])
        super().__init__(inputs, SHORT, self.take)
        self.over, self.error = threading.Event(), ""

    def take(self, event: Event | SmolVLMError) -> None:
        if isinstance(event, SmolVLMError):
            self.error = str(event)
        if isinstance(event, SmolVLMError | End):
            self.over.set()


@pytest.fixture
def engine(exact: Loaded) -> Engine:
    return Engine(*exact)


@pytest.fixture
def scheduler(engine: Engine) -> Scheduler:
    scheduler = Scheduler(lambda: engine)
    scheduler.start()
    return scheduler


@pytest.fixture
def want(exact: Loaded) -> str:
    return generate(*exact, QUESTION, SHORT)


@pytest.mark.parametrize("place", range(PLACES))
def test_a_question_that_is_cancelled_in_a_layer_leaves_what_is_right(
    place: int, exact: Loaded, engine: Engine, scheduler: Scheduler, want: str
) -> None:
    left, waiting = Asked(exact, QUESTION), Asked(exact, "Hello")
    with at_layer(place, left.cancel):
        scheduler.submit(left)
        scheduler.submit(waiting)
        assert waiting.over.wait(60)
    scheduler.close()
    assert left.cancelled
    assert not left.over.is_set()
    assert "".join(TextStream(engine.stream(QUESTION, SHORT))) == want


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("place", range(PLACES))
def test_an_error_in_a_layer_is_told_to_all_and_leaves_what_is_right(
    place: int, exact: Loaded, engine: Engine, scheduler: Scheduler, want: str
) -> None:
    asked = [Asked(exact, QUESTION), Asked(exact, "Hello")]
    with at_layer(place, interrupt):
        for job in asked:
            scheduler.submit(job)
        assert all(job.over.wait(60) for job in asked)
    assert {job.error for job in asked} == {"the engine has failed; start the server again"}
    assert scheduler.failed
    scheduler.close()
    assert "".join(TextStream(engine.stream(QUESTION, SHORT))) == want
