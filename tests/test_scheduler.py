"""Answers that are made together are those that are made alone; each ends as it should, and leaves
its cache to the next."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx import Options, generate, load
from smolvlm_mlx.errors import CheckpointError, ContextFullError, GenerationError, SmolVLMError
from smolvlm_mlx.events import End, Event, Reading, Text
from smolvlm_mlx.generation import prefill
from smolvlm_mlx.generation.decoding import Decoder
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.prefix_cache import PrefixCache
from smolvlm_mlx.generation.scheduler import BusyError, Job, Scheduler
from smolvlm_mlx.inputs.processor import Processor
from tests.support.pictures import PICTURE

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


class Asked(Job):
    """A job that keeps its answer."""

    def __init__(self, processor: Processor, question: Any, options: Options, schema: Any = None):
        super().__init__(processor(messages(question)), options, self.take, schema)
        self.pieces: list[str] = []
        self.error: SmolVLMError | None = None
        self.over = threading.Event()

    def take(self, event: Event | SmolVLMError) -> None:
        if isinstance(event, Text):
            self.pieces.append(event.piece)
        if isinstance(event, SmolVLMError):
            self.error = event
        if isinstance(event, End | SmolVLMError):
            self.over.set()

    def wait(self) -> str:
        assert self.over.wait(60)
        if self.error is not None:
            raise self.error
        return "".join(self.pieces)


class Started(Scheduler):
    """A scheduler that keeps what it has loaded."""

    def start(self) -> Engine:
        engine = super().start()
        self.model, self.processor = engine.model, engine.processor
        return engine


def messages(question: Any) -> Any:
    return [{"role": "user", "content": question}] if isinstance(question, str) else question


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

    def joined() -> None:
        closing.set()
        join()

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
    assert (waiting.statistics.generated_tokens, waiting.over.is_set()) == (0, False)
    assert not thread.is_alive()
    with pytest.raises(BusyError, match="answers are waiting already"):
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

    scheduler = Scheduler(fail)
    with pytest.raises(CheckpointError, match="no such folder"):
        scheduler.start()
    scheduler.close()


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

    scheduler = Scheduler(broken)
    with pytest.raises(ZeroDivisionError):
        scheduler.start()
    scheduler.close()
    assert uncaught == [ZeroDivisionError]


@pytest.mark.parametrize("where", ["add", "step"])
def test_a_bug_leaves_nobody_waiting(
    where: str, engine: Started, uncaught: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is told once."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Decoder, where, broken)
    job, put = Asked(engine.processor, "Hello", Options(max_tokens=12)), list[object]()
    job.put = lambda event: (put.append(event), job.take(event))[1]  # type: ignore[func-returns-value]
    engine.submit(job)
    with pytest.raises(GenerationError, match="the engine has failed"):
        job.wait()
    engine.close()
    assert uncaught == [ZeroDivisionError]
    assert [type(event) for event in put if not isinstance(event, Reading)] == [GenerationError]
    with pytest.raises(BusyError, match="the engine has failed"):
        ask(engine, "Hello")
    assert engine.failed


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
