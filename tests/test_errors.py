"""What is said of an error: foreign text and reasons, cut to their length, and a file's name."""

from typing import Any

from smolvlm_mlx.errors import ImageError, VideoError, cut, named, quote, reason

import pytest


def test_what_is_long_is_cut_to_its_length() -> None:
    assert [quote("a" * 78), quote("a" * 78, end=True)] == ["'" + "a" * 78 + "'"] * 2
    assert quote("a" * 79) == "'" + "a" * 75 + "...'"
    assert quote("a" * 79, end=True) == "'..." + "a" * 75 + "'"
    assert quote([1] * 99) == f"[{'1, ' * 25}1..."
    assert [cut("a" * 120), cut("a" * 121)] == ["a" * 120, "a" * 117 + "..."]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(2, "No such file"), "No such file"),
        (OSError("x"), "x"),
        (ValueError(2, "x"), "(2, 'x')"),
    ],
)
def test_a_reason_is_what_the_system_says(error: Exception, said: str) -> None:
    assert reason(error) == said


@pytest.mark.parametrize("kind", [ImageError, VideoError])
def test_what_is_wrong_with_a_file_begins_with_the_end_of_its_name(kind: Any) -> None:
    said = [(None, "x"), ("a" * 99 + ".png", f"'...{'a' * 71}.png': x"), ("a.png", "'a.png': x")]
    for file, words in said:
        with pytest.raises(kind) as caught, named(file):
            raise kind("x")
        assert str(caught.value) == words
