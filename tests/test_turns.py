"""Clients take turns, however many of theirs wait."""

from smolvlm_mlx.generation.turns import Turns

import pytest


def waiting(*clients: str) -> Turns[str]:
    """What came of clients, `address/name` or an address alone, in this order, numbered."""
    turns = Turns[str]()
    for number, client in enumerate(clients):
        turns.push(f"{client}{number}", client.split("/"))
    return turns


def all_of(turns: Turns[str]) -> list[str]:
    return [turns.pop() for _ in range(len(turns))]


def test_one_client_in_the_order_it_came_in() -> None:
    turns = Turns[int]()
    for number in range(5):
        turns.push(number)
    assert list(turns) == [turns.pop() for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        turns.pop()


def test_addresses_in_turns_and_names_within_them() -> None:
    assert all_of(waiting("a", "a", "a", "b", "c", "b")) == ["a0", "b3", "c4", "a1", "b5", "a2"]
    mixed = waiting("a/x", "a/x", "a/y", "a/z", "b/x", "b/x", "b/x")
    assert all_of(mixed) == ["a/x0", "b/x4", "a/y2", "b/x5", "a/z3", "b/x6", "a/x1"]


def test_who_comes_later_has_its_turn_after_those_who_wait() -> None:
    turns = waiting("a", "a", "b")
    assert turns.pop() == "a0"
    turns.push("c3", ["c"])
    assert all_of(turns) == ["b2", "a1", "c3"]


def test_the_last_of_who_has_most_makes_room() -> None:
    turns = waiting("a/x", "a/x", "a/y", "b/x")
    assert turns.shed(["a", "x"]) is None  # it has most itself
    assert waiting("a", "a", "b").shed(["b"]) is None  # it would have as many
    assert turns.shed(["c", "x"]) == "a/x1"
    assert list(turns) == ["a/x0", "a/y2", "b/x3"]
    names = waiting("a/x", "a/x", "a/y")
    assert names.shed(["a", "y"]) is None
    assert names.shed(["a", "z"]) == "a/x1"
    assert names.shed() is None


def test_those_who_left_are_left_out() -> None:
    turns = waiting("a", "b", "a")
    turns.push("own")
    turns.keep(lambda each: each == "a2")
    assert (len(turns), all_of(turns)) == (1, ["a2"])
    turns = waiting("a", "b")
    turns.keep(lambda each: False)
    assert turns.shed(["c"]) is None
    assert len(turns) == 0
