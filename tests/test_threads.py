"""A model is not bound to the thread that made it: every step below is a thread of its own, which
has ended before the next."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from smolvlm_mlx import Chat, Options, generate, load, stream_generate
from smolvlm_mlx.events import Reading, Text
from smolvlm_mlx.generation import image_cache as features_module
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.image_cache import ImageCache, encode_tiles, tiles_at_once
from smolvlm_mlx.generation.stream import TextStream
from tests.support.pictures import noise

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

T = TypeVar("T")
SHORT = Options(max_tokens=8)
PICTURE = noise(150, 100)
LAZY = pytest.mark.parametrize("lazy", [False, True, "vision"])


def elsewhere(step: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(step).result()


def numbers(image_tokens: mx.array | None) -> NDArray[np.float32]:
    assert image_tokens is not None
    return np.array(image_tokens.astype(mx.float32))


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are encoded one at a time, so that there is something between them."""
    monkeypatch.setattr(features_module, "CHUNK", dict.fromkeys(features_module.CHUNK, 1))


@LAZY
def test_every_piece_in_another_thread(tiny: Path, lazy: Any) -> None:
    want = generate(*load(tiny), "What is this?", SHORT, images=[PICTURE])
    loaded = elsewhere(lambda: load(tiny, lazy=lazy))
    stream = elsewhere(lambda: stream_generate(*loaded, "What is this?", SHORT, images=[PICTURE]))
    pieces: list[str] = []
    while (piece := elsewhere(lambda: next(stream, None))) is not None:
        pieces.append(piece)
    assert "".join(pieces) == want
    assert generate(*loaded, "What is this?", SHORT, images=[PICTURE]) == want


@LAZY
@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_a_conversation_goes_on_in_another_thread(tiny: Path, lazy: Any, pieces: int) -> None:
    """Loaded in one, asked in a second, closed in a third after some pieces, and asked again in a
    fourth."""
    chat = elsewhere(lambda: Chat(*load(tiny, lazy=lazy), SHORT))
    stream = elsewhere(lambda: chat.ask("What is this?", [PICTURE]))
    elsewhere(lambda: [next(stream) for _ in range(pieces)])
    elsewhere(stream.close)
    assert list(stream) == []
    have = "".join(elsewhere(lambda: list(chat.ask("And now?"))))
    model, processor = load(tiny)
    assert have == generate(model, processor, chat.messages[:-1], SHORT).strip()


@LAZY
def test_a_picture_is_cancelled_halfway(tiny: Path, lazy: Any, one_by_one: None) -> None:
    chat = elsewhere(lambda: Chat(*load(tiny, lazy=lazy), SHORT))
    seen: list[int] = []

    def stop_after_two() -> None:
        for event in chat.ask("What is this?", [PICTURE]).events:
            if isinstance(event, Reading) and event.what == "tiles":
                assert event.total > 3
                seen.append(event.done)
                if event.done == 2:
                    chat.stop()

    elsewhere(stop_after_two)
    assert seen == [0, 1, 2]
    assert chat.messages[-1].interrupted
    left: list[int] = []
    pieces: list[str] = []

    def go_on() -> None:
        for event in chat.retry().events:
            if isinstance(event, Reading) and event.what == "tiles":
                left.append(event.total)
            if isinstance(event, Text):
                pieces.append(event.piece)

    elsewhere(go_on)
    have = "".join(pieces)
    assert have == generate(*load(tiny), "What is this?", SHORT, images=[PICTURE]).strip()
    # Those that are still to do.
    assert left[0] == elsewhere(lambda: len(chat.processor(chat.messages[:-1]).tiles)) - 2


@pytest.mark.parametrize(
    ("method", "arguments", "questions"),
    [("ask", ("And now?",), 2), ("retry", (), 1), ("edit", ("And now?", PICTURE), 1)],
)
def test_the_next_question_waits_for_the_thread_of_the_last(
    method: str,
    arguments: tuple[Any, ...],
    questions: int,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that are not read yet may be used by one thread at a time."""
    chat = Chat(*load(tiny, lazy=True), SHORT)
    encode, inside, released, working = type(chat.model).encode_images, Event(), Event(), []

    def held(self: Any, pixel_values: mx.array) -> mx.array:
        working.append(1)
        assert len(working) == 1
        inside.set()
        assert released.wait(60)
        image_tokens = encode(self, pixel_values)
        mx.eval(image_tokens)
        working.pop()
        return image_tokens

    monkeypatch.setattr(type(chat.model), "encode_images", held)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: list(chat.ask("What is this?", [PICTURE])))
        assert inside.wait(60)
        chat.stop()
        second = pool.submit(lambda: "".join(getattr(chat, method)(*arguments)))
        released.set()
        assert first.result() == []
        have = second.result()
    assert [message.role for message in chat.messages] == ["user", "assistant"] * questions
    monkeypatch.undo()
    assert have == generate(*load(tiny), chat.messages[:-1], SHORT).strip()


def test_what_is_undone_while_it_is_answered_elsewhere_changes_no_answer_before(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(*load(tiny), SHORT)
    chat.processor.tokenizer.end_ids = frozenset()  # answers go on
    list(chat.ask("What is this?"))
    before, inside, released, answer = list(chat.messages), Event(), Event(), chat.ask("And now?")
    next(answer)
    logits = type(chat.model.language_model).logits

    def held(self: Any, hidden: mx.array) -> mx.array:
        inside.set()
        assert released.wait(60)
        return logits(self, hidden)

    monkeypatch.setattr(type(chat.model.language_model), "logits", held)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: list(answer))
        assert inside.wait(60)
        undone = pool.submit(chat.undo)
        with suppress(TimeoutError):
            undone.result(0.05)  # it waits for the step
        released.set()
        first.result()
        assert undone.result().text == "And now?"
    assert chat.messages == before


def test_a_stop_before_the_first_piece_keeps_the_question(tiny: Path) -> None:
    chat = Chat(*load(tiny), SHORT)
    stream = chat.ask("Hello")
    chat.stop()
    assert list(stream) == []
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[-1].interrupted


def test_a_stream_that_is_let_go_gives_back_what_it_computed(tiny: Path) -> None:
    model, processor = load(tiny)
    engine = Engine(model, processor)
    gc.disable()
    try:
        for event in engine.stream("Hello", SHORT):
            if isinstance(event, Text):
                break
        again = engine.stream("Hello", SHORT)
        list(again)
    finally:
        gc.enable()
    assert again.statistics.reused_tokens > 0


def test_an_interrupt_leaves_nothing_half_computed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a step's graph is made and not begun: what is kept of it can be used by another
    thread."""
    model, processor = load(tiny)
    chat, decoder = Chat(model, processor, SHORT), type(model.language_model)
    logits, calls = decoder.logits, iter(range(100))

    def interrupted(self: Any, hidden: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return logits(self, hidden)

    monkeypatch.setattr(decoder, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        elsewhere(lambda: list(chat.ask("Hello")))
    have = "".join(elsewhere(lambda: list(chat.ask("And now?"))))
    assert have == generate(model, processor, chat.messages[:-1], SHORT).strip()


def test_seeds(tiny: Path) -> None:
    loaded, options = load(tiny), Options(max_tokens=8, temperature=1.0, top_p=0.95, seed=5)
    stream = stream_generate(*loaded, "Hello", options)
    while elsewhere(lambda: next(stream, None)) is not None:
        pass
    again = stream_generate(*loaded, "Hello", options)
    list(again)
    assert stream.token_ids == again.token_ids


def test_a_video(tiny: Path, tmp_path: Path) -> None:
    frames = [noise(64, 48, number) for number in range(1, 6)]
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000)
    messages = [
        {
            "role": "user",
            "content": [{"type": "video", "path": str(path)}, {"type": "text", "text": "What?"}],
        }
    ]
    loaded = elsewhere(lambda: load(tiny, lazy=True))
    stream = elsewhere(lambda: stream_generate(*loaded, messages, SHORT))
    assert "".join(elsewhere(lambda: list(stream))) == generate(*load(tiny), messages, SHORT)


def test_kept_tiles(tiny: Path, tmp_path: Path) -> None:
    """Each holds its own memory, not its chunk's; and what comes from the file may be used
    anywhere, too."""
    model, processor = elsewhere(lambda: load(tiny, "float32"))
    inputs = processor([{"role": "user", "content": [{"type": "image", "image": PICTURE}]}])
    count = min(len(inputs.tiles), tiles_at_once(model))
    tiles, settings = inputs.tiles[:count], inputs.settings
    first = ImageCache(model, tmp_path)
    want = numbers(elsewhere(lambda: encode_tiles(model, tiles, settings, first)))
    for features in (first, ImageCache(model, tmp_path)):
        known: dict[bytes, mx.array] = elsewhere(
            partial(features.get, inputs.tile_digests[:count], settings)
        )
        assert len(known) == count
        again = encode_tiles(model, tiles, settings, features)
        np.testing.assert_array_equal(numbers(again), want)
    engine = Engine(model, processor, cache_folder=tmp_path)
    answers = [elsewhere(lambda: list(TextStream(engine.stream(inputs, SHORT)))) for _ in range(2)]
    assert answers[0] == answers[1]
