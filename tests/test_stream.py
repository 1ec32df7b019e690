"""An answer's events: made one at a time, by any thread, until any thread ends them."""

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

from smolvlm_mlx import Options
from smolvlm_mlx.events import End, Event, Reading, Text
from smolvlm_mlx.generation.decoding import Row
from smolvlm_mlx.generation.stream import Stream, TextStream

import pytest


class Made:
    """Events, each as soon as it may be; what happened to them."""

    def __init__(self) -> None:
        self.row = Row(Options())
        self.begun, self.may = threading.Event(), threading.Event()
        self.is_closed = False
        self.may.set()

    def events(self) -> Generator[Event]:
        try:
            yield Reading(0, 1, "tokens")
            for piece in ("a", "", "b"):
                self.begun.set()
                assert self.may.wait(60)
                yield Text(piece)
            yield End(self.row.statistics)
        finally:
            self.is_closed = True


def test_all_events_come_in_order_and_then_no_more() -> None:
    made = Made()
    stream = Stream(made.events(), made.row)
    assert not made.begun.is_set()
    texts = [Text(piece) for piece in ("a", "", "b")]
    assert list(stream) == [Reading(0, 1, "tokens"), *texts, End(made.row.statistics)]
    assert list(stream) == []
    assert stream.statistics is made.row.statistics
    assert stream.token_ids is made.row.token_ids


def test_a_texts_pieces_are_those_that_say_something() -> None:
    made = Made()
    stream = TextStream(Stream(made.events(), made.row))
    assert list(stream) == ["a", "b"]
    assert stream.statistics is made.row.statistics
    assert stream.token_ids is made.row.token_ids


@pytest.mark.parametrize("wait", [False, True])
def test_closing_ends_it_at_once(wait: bool) -> None:
    made = Made()
    stream = TextStream(Stream(made.events(), made.row))
    assert next(stream) == "a"
    stream.close(wait)
    assert made.is_closed
    assert list(stream) == []
    assert list(stream.events) == []
    stream.close(wait)


def test_what_is_wrong_at_first_is_told_by_who_makes_it() -> None:
    def events() -> Generator[Event]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        Stream(events(), Row(Options()))


@pytest.mark.parametrize("wait", [False, True])
def test_another_thread_ends_it_after_the_step_that_is_made(wait: bool) -> None:
    """And waits for that only where it is told to."""
    made = Made()
    stream = Stream(made.events(), made.row)
    made.may.clear()
    assert next(stream) == Reading(0, 1, "tokens")
    with ThreadPoolExecutor(2) as pool:
        event = pool.submit(next, stream)
        assert made.begun.wait(60)
        closing = pool.submit(stream.close, wait)
        if wait:
            assert wait_for([closing], timeout=0.05).not_done
        else:
            closing.result(60)
        assert not made.is_closed
        made.may.set()
        assert event.result(60) == Text("a")
        closing.result(60)
    assert made.is_closed == wait  # else with the next that is asked for
    assert list(stream) == []
    assert made.is_closed


@pytest.mark.parametrize("wait", [False, True])
def test_it_may_be_closed_by_its_own_step(wait: bool) -> None:
    streams = list[Stream]()

    def events() -> Generator[Event]:
        yield Reading(0, 1, "tokens")
        streams[0].close(wait)
        yield Text("a")
        raise ZeroDivisionError

    streams.append(Stream(events(), Row(Options())))
    assert list(streams[0]) == [Reading(0, 1, "tokens"), Text("a")]


def test_who_waits_for_the_end_waits_for_who_ends_it() -> None:
    """Also the thread that made the event before."""
    ending, may = threading.Event(), threading.Event()

    def events() -> Generator[Event]:
        try:
            yield Reading(0, 1, "tokens")
            yield Text("a")
        finally:
            ending.set()
            assert may.wait(60)

    stream = Stream(events(), Row(Options()))
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as other:
        assert [pool.submit(next, stream).result(60) for _ in range(2)][1] == Text("a")
        closing = other.submit(stream.close)
        assert ending.wait(60)
        waiting = pool.submit(stream.close, True)
        assert wait_for([waiting], timeout=0.05).not_done
        may.set()
        closing.result(60)
        waiting.result(60)
