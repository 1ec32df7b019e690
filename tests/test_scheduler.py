"""Answers that are made together are those that are made alone; each ends as it should, and leaves
its cache to the next."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, generate, load
from smolvlm_mlx.errors import (
    CheckpointError,
    ContextFullError,
    EngineError,
    GenerationError,
    SmolVLMError,
)
from smolvlm_mlx.events import Event, Reading, Text
from smolvlm_mlx.generation import image_cache, prefill, scheduler
from smolvlm_mlx.generation.decoding import Decoder, Row
from smolvlm_mlx.generation.detokenizer import StreamingDetokenizer
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.prefix_cache import PrefixCache
from smolvlm_mlx.generation.scheduler import BusyError, ClosingError, Scheduler
from tests.support.crowd import Asked, messages
from tests.support.http import wait_until
from tests.support.pictures import PICTURE

import mlx.core as mx
import pytest

SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["color", "count"],
    "additionalProperties": False,
}


class Started(Scheduler):
    """A scheduler that keeps what it has loaded."""

    def start(self) -> Engine:
        engine = super().start()
        self.model, self.processor = engine.model, engine.processor
        return engine


def with_picture(text: str) -> Any:
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": text}],
        }
    ]


@pytest.fixture
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Started]:
    entries = getattr(request, "param", 8)

    made = Started(
        lambda: Engine(*load(tiny, "float32"), conversations=entries),
        most_answers=4,
        most_waiting=12,
    )
    made.start()
    yield made
    made.close()


def ask(
    engine: Started, question: Any, options: Options | None = None, schema: Any = None
) -> Asked:
    job = Asked(engine.processor, question, options or Options(max_tokens=12), schema)
    engine.submit(job)
    return job


def test_together_as_alone(engine: Started, tiny: Path) -> None:
    model, processor = load(tiny, "float32")
    questions = [f"What is {number} times {number * 7}?" * (number % 3 + 1) for number in range(10)]
    asked = [*questions, with_picture("What?"), with_picture("And now?")]
    jobs = [ask(engine, question, Options(max_tokens=6 + n)) for n, question in enumerate(asked)]
    for n, (job, question) in enumerate(zip(jobs, asked, strict=True)):
        assert job.wait() == generate(
            model, processor, messages(question), Options(max_tokens=6 + n)
        )
        assert job.statistics.prompt_tokens == len(job.inputs.input_ids)
        assert job.statistics.finish_reason in ("stop", "length")
    assert jobs[-2].statistics.tiles == jobs[-1].statistics.tiles > 0


def test_what_goes_on_reuses(engine: Started) -> None:
    first = ask(engine, "What is this about?")
    answer = first.wait()
    talk = [
        {"role": "user", "content": "What is this about?"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Sure?"},
    ]
    second = ask(engine, talk)
    second.wait()
    assert second.statistics.reused_tokens >= first.statistics.prompt_tokens
    picture = ask(engine, with_picture("What?"))
    picture.wait()
    other = ask(engine, with_picture("Another question"))
    other.wait()
    assert other.statistics.reused_tokens > other.statistics.image_tokens


@pytest.mark.parametrize("engine", [2], indirect=True)
def test_several_answers_to_a_prompt_take_one_place(engine: Started) -> None:
    first = Asked(engine.processor, "What is this about?", Options(max_tokens=12))
    all_wait = threading.Event()

    def put(event: Event | SmolVLMError) -> None:
        assert all_wait.wait(60)  # and so does the engine
        first.take(event)

    first.put = put
    engine.submit(first)
    inputs = engine.processor(messages("And what else is there?"))
    jobs = [
        Asked(engine.processor, "", Options(max_tokens=2 + seed, temperature=2.0, seed=seed))
        for seed in range(6)  # of which 4 are made at once
    ]
    for job in jobs:
        job.inputs = inputs
        engine.submit(job)
    all_wait.set()
    assert len({job.wait() for job in jobs}) > 1
    assert [job.statistics.reused_tokens for job in jobs[1:]] == [len(inputs.input_ids) - 1] * 5
    again = ask(engine, "What is this about?")
    again.wait()
    assert again.statistics.reused_tokens == again.statistics.prompt_tokens - 1


def test_of_several_answers_to_a_prompt_that_of_the_last_to_end_is_kept(
    engine: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.processor.tokenizer, "end_ids", frozenset())
    kept, put, both_wait = list[int](), PrefixCache.put, threading.Event()

    def counted(self: PrefixCache, keys: Any, *others: Any) -> None:
        kept.append(len(keys))
        put(self, keys, *others)

    monkeypatch.setattr(PrefixCache, "put", counted)
    first, second = (
        Asked(engine.processor, "Hello", Options(max_tokens=tokens)) for tokens in (12, 3)
    )
    second.inputs = first.inputs
    take = first.take

    def held(event: Event | SmolVLMError) -> None:
        assert both_wait.wait(60)
        take(event)

    first.put = held
    for job in (first, second):
        engine.submit(job)
    both_wait.set()
    for job in (first, second):
        job.wait()
    prompt = len(first.inputs.input_ids)
    assert kept == [prompt, prompt, prompt + 12]  # what each begins beside the other, and the end


@pytest.mark.parametrize("engine", [1], indirect=True)
def test_a_cancelled_question_leaves_what_it_took(
    engine: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(engine, "What is this about? " * 20)
    answer = first.wait()
    talk = [
        {"role": "user", "content": "What is this about? " * 20},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Sure?"},
    ]
    job = Asked(engine.processor, talk, Options(max_tokens=12))
    kind = type(engine.model.language_model)
    hidden_states = kind.hidden_states

    def cancelled(*arguments: Any) -> Any:
        """While its prompt is read."""
        job.cancel()
        return hidden_states(*arguments)

    monkeypatch.setattr(kind, "hidden_states", cancelled)
    engine.submit(job)
    again = ask(engine, talk)
    again.wait()
    assert job.cancelled
    assert job.pieces == []
    assert not job.over.is_set()
    assert (
        again.statistics.reused_tokens
        >= job.statistics.reused_tokens
        >= first.statistics.prompt_tokens
    )


def test_stop_strings_and_seeds(engine: Started) -> None:
    whole = ask(engine, "Hello").wait()
    stopped = ask(engine, "Hello", Options(max_tokens=12, stop=(whole[3:5],)))
    assert stopped.wait() == whole[: whole.index(whole[3:5])]
    assert stopped.statistics.finish_reason == "stop"
    options = Options(max_tokens=12, temperature=1.0, seed=7)
    alone = ask(engine, "Hello", options).wait()
    beside = [
        ask(engine, "Hello", options),
        ask(engine, "Other", Options(max_tokens=12, temperature=1.0)),
    ]
    assert beside[0].wait() == alone
    beside[1].wait()


def test_json_that_fits_its_schema(engine: Started) -> None:
    """Beside answers that fit another, or none."""

    def asked(number: int, schema: Any) -> Asked:
        options = Options(max_tokens=80, temperature=1.0, seed=number)
        return ask(engine, f"Give {number}", options, schema)

    fitting, objects, free = (
        [asked(number, schema) for number in range(3)] for schema in (SCHEMA, {}, None)
    )
    for job in fitting:
        value = json.loads(job.wait())
        assert value.keys() == {"color", "count"}
        assert value["color"] in ("red", "blue")
        assert value["count"] in range(10)
        assert job.statistics.finish_reason == "stop"
    for job in objects:  # of which a random model finds no end
        assert job.wait().startswith("{")
    for job in free:
        assert not job.wait().startswith("{")
    with pytest.raises(
        GenerationError, match="the JSON schema cannot be used: Invalid type: nonsense"
    ):
        ask(engine, "Give", schema={"type": "nonsense"}).wait()


def test_cancelled_ends_within_a_token_or_two(engine: Started) -> None:
    first = threading.Event()
    job = ask(engine, "Hello", Options(max_tokens=3000))
    job.put = lambda event: first.set() if isinstance(event, Text) else None
    assert first.wait(60)
    seen = job.statistics.generated_tokens
    job.cancel()
    ask(engine, "Other", Options(max_tokens=3)).wait()
    assert job.statistics.generated_tokens <= seen + 4
    assert not job.over.is_set()
    waiting = ask(engine, "Never begun")
    waiting.cancel()
    ask(engine, "Other").wait()
    assert waiting.statistics.generated_tokens == 0
    assert engine.occupancy == (0, 0)


@pytest.mark.parametrize("tokens", [1, 3])
def test_nothing_is_put_after_a_cancel(
    tokens: int, engine: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the token that was under way, nor the end that came with it."""
    job = Asked(engine.processor, "Hello", Options(max_tokens=tokens))
    step, steps = Decoder.step, list[int]()
    put = list[Event | SmolVLMError]()

    def cancelled(decoder: Decoder) -> Any:
        made = step(decoder)
        steps.append(len(steps))
        if len(steps) == tokens:
            job.cancel()
            put.clear()
        return made

    monkeypatch.setattr(Decoder, "step", cancelled)
    job.put = put.append
    engine.submit(job)
    ask(engine, "Other", Options(max_tokens=3)).wait()
    assert job.cancelled
    assert put == []


def test_no_more_are_decoded_together_or_wait_than_may(
    engine: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    step, go = Decoder.step, threading.Event()

    def counting(self: Decoder) -> Any:
        assert go.wait(60)
        found = list(step(self))
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Decoder, "step", counting)
    jobs = [ask(engine, "Hello", Options(max_tokens=40))]
    while engine.occupancy != (1, 0):  # it is begun, and waits in its first step
        time.sleep(0.01)
    jobs += [ask(engine, f"Hello {number}", Options(max_tokens=40)) for number in range(12)]
    assert engine.occupancy == (1, 12)
    with pytest.raises(BusyError, match="12 answers are waiting already; try again in a moment"):
        ask(engine, "Hello")
    go.set()
    for job in jobs:
        job.wait()
    assert max(sizes) == 4


def test_answers_go_on_while_a_prompt_is_read(
    engine: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between each two of its chunks a token, of each answer."""
    monkeypatch.setattr(engine.processor.tokenizer, "end_ids", frozenset())
    monkeypatch.setattr(prefill, "CHUNK", dict.fromkeys(prefill.CHUNK, 64))
    long = Asked(engine.processor, "What is this about? " * 20, Options(max_tokens=2))
    order, read = list[str](), len(long.inputs.input_ids)
    first = Asked(engine.processor, "Hello", Options(max_tokens=60))

    def put(event: Event | SmolVLMError) -> None:
        if isinstance(event, Text):
            if not order:
                engine.submit(long)
            order.append("answer")
        first.take(event)

    def also(event: Event | SmolVLMError) -> None:
        order.append("read" if isinstance(event, Reading) else "said")
        long.take(event)

    first.put, long.put = put, also
    engine.submit(first)
    first.wait()
    long.wait()
    begun = order.index("read")
    chunks = 1 + -(-read // 64)
    assert chunks > 3
    assert order[begun : begun + 2 * chunks - 1] == ["read", "answer"] * (chunks - 1) + ["read"]


def test_closing_ends_what_is_made_and_takes_no_more(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, before = Started(lambda: Engine(*load(tiny, "float32")), 1), threading.enumerate()
    engine.start()
    monkeypatch.setattr(engine.processor.tokenizer, "end_ids", frozenset())
    (thread,) = [
        each for each in threading.enumerate() if each.name == "engine" and each not in before
    ]
    assert thread.daemon  # or the process would not end while an answer is made
    begun, closing, join = threading.Event(), threading.Event(), thread.join

    def joined(seconds: float | None) -> None:
        closing.set()
        join(seconds)

    monkeypatch.setattr(thread, "join", joined)
    job = Asked(engine.processor, "Hello", Options(max_tokens=1000))

    def put(event: Event | SmolVLMError) -> None:
        if isinstance(event, Text):
            begun.set()
            assert closing.wait(60)

    job.put = put
    engine.submit(job)
    waiting = ask(engine, "Never begun")
    assert begun.wait(60)
    engine.close()
    assert 0 < job.statistics.generated_tokens < 9  # with what was under way
    assert isinstance(waiting.error, ClosingError)
    assert (waiting.statistics.generated_tokens, waiting.pieces) == (0, [])
    assert not thread.is_alive()
    with pytest.raises(ClosingError, match="the server is shutting down"):
        ask(engine, "Hello")


def test_a_full_queue(engine: Started) -> None:
    jobs = []

    def fill() -> None:
        for _ in range(40):
            jobs.append(ask(engine, "Hello", Options(max_tokens=1500)))  # noqa: PERF401

    with pytest.raises(BusyError, match="answers are waiting already; try again"):
        fill()
    assert len(jobs) >= 12
    for job in jobs:
        job.cancel()


def test_one_bad_answer_is_its_own(engine: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * engine.model.config.text_config.max_position_embeddings
    with pytest.raises(ContextFullError, match=r"the prompt has .* leaves no room"):
        ask(engine, long)
    answer = ask(engine, "Hello").wait()
    kind = type(engine.model.language_model)
    logits = kind.logits
    with monkeypatch.context() as patch:
        patch.setattr(kind, "logits", lambda self, hidden: logits(self, hidden) * float("nan"))
        with pytest.raises(GenerationError, match="not finite"):
            ask(engine, "Hello again").wait()
    assert ask(engine, "Hello").wait() == answer


def test_what_cannot_be_loaded_is_told() -> None:
    def fail() -> Any:
        raise CheckpointError("no such folder")

    made = Scheduler(fail)
    with pytest.raises(CheckpointError, match="no such folder"):
        made.start()
    made.close()


def test_what_may_fit_is_checked_before_pictures_are_cut(engine: Started) -> None:
    config = engine.model.config
    most = (config.text_config.max_position_embeddings - 1) // config.tokens_per_tile
    engine.check(most, SCHEMA, 99)
    with pytest.raises(ContextFullError, match=rf"\({most + 1} tiles\)"):
        engine.check(most + 1, None, 1)
    with pytest.raises(GenerationError, match="the JSON schema cannot be used"):
        engine.check(0, {"type": "nonsense"}, 99)
    with pytest.raises(GenerationError, match="max_tokens 3: the shortest answer that fits the"):
        engine.check(0, {"const": "four"}, 3)


@pytest.fixture
def uncaught(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What ended a thread, and would be shown with its traceback."""
    found, others = list[object](), threading.excepthook

    def hook(args: Any) -> None:
        if args.thread is not None and args.thread.name == "engine":
            found.append(args.exc_type)
        else:
            others(args)

    monkeypatch.setattr(threading, "excepthook", hook)
    return found


def test_a_bug_while_loading_is_told_and_shown(uncaught: list[object]) -> None:
    def broken() -> Any:
        raise ZeroDivisionError

    made = Scheduler(broken)
    with pytest.raises(ZeroDivisionError):
        made.start()
    made.close()
    assert uncaught == [ZeroDivisionError]


# ---- errors while answers are made


KINDS = {
    "no memory": RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"),
    "bad_alloc": MemoryError("std::bad_alloc"),
    "bug": ZeroDivisionError("secret"),
}
SAID = {
    "no memory": r"could not be computed \(\[metal::malloc\] .* what helps: fewer tiles",
    "bad_alloc": r"could not be computed \(std::bad_alloc\); what helps: .* \(--max-tiles\)",
    "bug": "^the engine failed; its log says why$",
}


def fail_once(patch: pytest.MonkeyPatch, kind: Any, name: str, error: Exception) -> None:
    """A method raises at its next call."""
    healthy = getattr(kind, name)

    def broken(*_: Any, **__: Any) -> Any:
        setattr(kind, name, healthy)
        raise error

    patch.setattr(kind, name, broken)


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("where", ["take", "add", "step", "push"])
def test_an_error_ends_the_answers_of_its_step_alone(
    where: str,
    what: str,
    engine: Started,
    uncaught: list[object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those that wait are answered, and the next are as if nothing had been."""
    want = [ask(engine, text).wait() for text in ("Hello", "Other")]
    puts, begun = list[object](), threading.Event()
    failing = Asked(engine.processor, "Another", Options(max_tokens=12))
    take = failing.put

    def put(event: Event | SmolVLMError) -> None:
        if not puts:
            fail_once(monkeypatch, Decoder, where, KINDS[what]) if where != "push" else None
            waiting.extend(ask(engine, text) for text in ("Hello", "Other"))
            begun.set()
        if where == "push" and len(puts) == 3:
            fail_once(monkeypatch, StreamingDetokenizer, "add_token", KINDS[what])
        puts.append(event)
        take(event)

    waiting = list[Asked]()
    failing.put = put
    engine.submit(failing)
    with pytest.raises(EngineError, match=SAID[what]) as error:
        failing.wait()
    assert "secret" not in str(error.value)
    assert [type(event) for event in puts if isinstance(event, SmolVLMError)] == [EngineError]
    assert begun.is_set()
    answers = [job.wait() if job.over.wait(60) and job.error is None else "" for job in waiting]
    assert [answer in ("", right) for answer, right in zip(answers, want, strict=True)] == [
        True
    ] * 2
    if where == "push":
        assert answers == want
    assert [ask(engine, text).wait() for text in ("Hello", "Other")] == want
    state = engine.state()
    assert (state.status, state.running, state.waiting, state.errors) == ("ok", 0, 0, 1)
    assert str(error.value).startswith(state.last_error.removesuffix("..."))
    shown = [record for record in caplog.records if record.exc_info]
    assert len(shown) == (what == "bug")  # its traceback, once
    assert len(caplog.records) == 1
    assert uncaught == []


def test_an_error_while_a_prompt_is_read_is_of_its_answer(
    engine: Started, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are being made go on to their ends."""
    want = ask(engine, "Hello", Options(max_tokens=40)).wait()
    first = Asked(engine.processor, "Hello", Options(max_tokens=40))
    second = Asked(engine.processor, with_picture("What?"), Options(max_tokens=4))
    take = first.put

    def put(event: Event | SmolVLMError) -> None:
        if isinstance(event, Text) and not first.pieces:
            fail_once(monkeypatch, image_cache, "_encode", RuntimeError("no memory"))
            engine.submit(second)
        take(event)

    first.put = put
    engine.submit(first)
    with pytest.raises(EngineError, match="no memory"):
        second.wait()
    assert first.wait() == want
    again = ask(engine, with_picture("What?"), Options(max_tokens=4))
    model, processor = load(tiny, "float32")
    assert again.wait() == generate(model, processor, with_picture("What?"), Options(max_tokens=4))


def test_an_error_of_a_grammar_is_of_its_answer(
    engine: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = ask(engine, "Hello", Options(max_tokens=40)).wait()
    row = Engine.row

    class Broken:
        chosen = 0

        def begin(self, max_new_tokens: int) -> None:
            pass

        def choose(self, logits: mx.array, sampler: Any, left: int) -> int:
            self.chosen += 1
            if self.chosen > 3:
                raise ValueError("no such state")
            return int(sampler(logits).item())

    def broken(self: Engine, options: Options, schema: Any, statistics: Any) -> Any:
        if schema is None:
            return row(self, options, schema, statistics)
        return Row(options, self.processor.tokenizer, Broken(), statistics)

    monkeypatch.setattr(Engine, "row", broken)
    jobs = [ask(engine, "Hello", Options(max_tokens=40)), ask(engine, "Give", schema={})]
    with pytest.raises(EngineError, match="its log says why"):
        jobs[1].wait()
    assert jobs[0].wait() == want


def test_the_engine_is_failing_until_a_step_is_made(
    engine: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, Decoder, "step", RuntimeError("no memory"))
    with pytest.raises(EngineError):
        ask(engine, "Hello").wait()
    state = engine.state()
    assert (state.status, state.errors, state.idle_seconds) == ("failing", 1, None)
    ask(engine, "Hello").wait()
    assert engine.state().status == "ok"


def test_an_engine_without_a_step_for_long_is_stuck(
    engine: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun = threading.Event(), threading.Event()
    job = Asked(engine.processor, "Hello", Options(max_tokens=2))
    take = job.put

    def held(event: Event | SmolVLMError) -> None:
        begun.set()
        assert go.wait(60)
        take(event)

    job.put = held
    engine.submit(job)
    assert begun.wait(60)
    state = engine.state()
    assert (state.status, state.running) == ("ok", 1)
    assert state.idle_seconds is not None
    monkeypatch.setattr(scheduler, "STUCK_SECONDS", 0.0)
    assert engine.state().status == "stuck"
    go.set()
    job.wait()
    wait_until(lambda: engine.state().status == "ok")


def test_a_thread_that_ends_leaves_nobody_waiting(
    engine: Started, uncaught: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is told once."""

    def broken(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(Decoder, "step", broken)
    jobs = [ask(engine, text, Options(max_tokens=12)) for text in ("Hello", "Other")]
    for job in jobs:
        with pytest.raises(GenerationError, match="the engine has failed"):
            job.wait()
    engine.close()
    with pytest.raises(BusyError, match="the engine has failed"):
        ask(engine, "Hello")
    assert engine.state().status == "failed"


# ---- who waits


def test_those_who_left_take_no_place(engine: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    step, go = Decoder.step, threading.Event()

    def held(self: Decoder) -> Any:
        assert go.wait(60)
        return step(self)

    monkeypatch.setattr(Decoder, "step", held)
    jobs = [ask(engine, "Hello", Options(max_tokens=4))]
    wait_until(lambda: engine.occupancy == (1, 0))
    for _ in range(40):
        ask(engine, "Hello").cancel()
    assert engine.occupancy == (1, 0)
    jobs += [ask(engine, "Hello", Options(max_tokens=4)) for _ in range(12)]
    assert engine.occupancy == (1, 12)
    go.set()
    for job in jobs:
        job.wait()


def test_clients_take_turns(engine: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a question does not wait for all of one with many, and finds a place."""
    begun, go = list[str](), threading.Event()
    read = prefill.PromptReader.read

    def named(self: Any, inputs: Any, row: Any) -> Any:
        assert go.wait(60)
        begun.append(names[id(inputs)])
        return read(self, inputs, row)

    monkeypatch.setattr(prefill.PromptReader, "read", named)
    names, jobs = dict[int, str](), list[Asked]()

    def asked(client: str, program: str, number: int) -> None:
        job = Asked(engine.processor, "Hello", Options(max_tokens=2))
        job.client, names[id(job.inputs)] = (client, program), f"{client}{program}{number}"
        jobs.append(job)
        engine.submit(job)
        wait_until(lambda: engine.state().running == 1)

    for number in range(13):
        asked("a", "x", number)
    with pytest.raises(BusyError, match="12 answers are waiting already"):
        asked("a", "x", 13)
    jobs.pop()
    asked("b", "x", 0)
    asked("a", "y", 0)
    asked("b", "x", 1)
    assert [isinstance(job.error, BusyError) for job in jobs[10:]] == [True] * 3 + [False] * 3
    go.set()
    for job in jobs[:10] + jobs[13:]:
        job.wait()
    assert begun[:6] == ["ax0", "ax1", "bx0", "ay0", "bx1", "ax2"]
    assert begun[6:] == [f"ax{number}" for number in range(3, 10)]


@pytest.mark.slow
def test_many_at_once_are_faster_than_one_by_one(endless: Path) -> None:
    """On a CPU, where an answer alone takes NumPy's steps, which are twice as fast as those of a
    batch."""

    engine = Started(lambda: Engine(*load(endless, "float32"), conversations=8))
    engine.start()

    def pace(count: int) -> float:
        started = time.perf_counter()
        for job in [
            ask(engine, f"Hello {number}", Options(max_tokens=400)) for number in range(count)
        ]:
            job.wait()
        return 400 * count / (time.perf_counter() - started)

    pace(8)
    ratios = sorted(pace(8) / pace(1) for _ in range(5))
    engine.close()
    print("8 at once, to one:", [round(ratio, 2) for ratio in ratios])
    assert ratios[2] > 1.3
