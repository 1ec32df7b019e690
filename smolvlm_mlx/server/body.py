"""The body of a request: bytes -> a value of JSON, which is counted before it is made.

What reads JSON holds Python while it does, and so the event loop: 64 MiB of empty lists for many
seconds. What stands outside of texts is looked at first, and is little.
"""

import json
import re
from collections import Counter

from ..errors import cut, quote
from .budget import Budget
from .fields import RequestError

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
EMPTY = re.compile(r"\[\s*\]|\{\s*\}")
BRACKETS = re.compile(r"[\[\]{}]")
NUMBER = re.compile(r"[-+.0-9eE]+")


def read_json(body: bytes, budget: Budget) -> object:
    """Return the value of a body. Stricter than `json.loads`: no NaN, each key once, and text that
    is text: pydantic and tokenizers fail on half a surrogate pair.

    Raises:
        RequestError: it is no JSON, or more than the budget has.
    """
    budget.hold("body_bytes", len(body), "bytes")
    try:
        text = body.decode(json.detect_encoding(body))
        _count(text, budget)
        value = json.loads(
            text, parse_float=_number, parse_constant=_refuse, object_pairs_hook=_once
        )
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        words = "the body holds half a surrogate pair, which is no character; remove it"
        raise RequestError(words) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {cut(str(error))}") from None


def _count(text: str, budget: Budget) -> None:
    """Count what JSON has, without making it. What is no JSON counts as if it were."""
    outside = _outside(text, budget)
    begun = outside.count(",") + outside.count("[") + outside.count("{") + 1
    budget.hold("json_values", begun - len(EMPTY.findall(outside)), "values")
    depth = deepest = 0
    for bracket in BRACKETS.findall(outside):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    budget.hold("json_depth", deepest, "lists and objects within each other")
    longest = max(map(len, NUMBER.findall(outside)), default=0)
    budget.hold("json_digits", longest, "characters in a number")


def _outside(text: str, budget: Budget) -> str:
    """Return what is in no text of JSON; a quotation mark stands for each."""
    pieces, characters, at, escaped = list[str](), 0, 0, 0
    while (begin := text.find('"', at)) >= 0:
        characters += begin - at
        budget.hold("json_characters", characters, "characters outside of texts")
        pieces.append(text[at:begin])
        # An object has as many keys as values.
        budget.hold("json_values", len(pieces) // 2, "values")
        at, is_open = begin + 1, True
        while is_open:
            end = text.find('"', at)
            if end < 0:
                return '"'.join([*pieces, ""])  # which `json.loads` tells
            slashes = end - at - len(text[at:end].rstrip("\\")) if text[end - 1] == "\\" else 0
            at, is_open = end + 1, slashes % 2 == 1
            escaped += is_open
            budget.hold("text_characters", escaped, "quotation marks in texts")
    characters += len(text) - at
    budget.hold("json_characters", characters, "characters outside of texts")
    return '"'.join([*pieces, text[at:]])


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise RequestError(f"the key {quote(twice)} is there twice; send it once")
    return value


def _number(text: str) -> float | int:
    """JSON has one kind of numbers: 5.0 is as good as 5."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
