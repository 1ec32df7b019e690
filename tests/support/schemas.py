"""JSON schemas of every kind, and what fits them."""

import random
from typing import Any

Schema = dict[str, Any]


def whole(**properties: Schema) -> Schema:
    """An object that has all of these, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


NODE = whole(value={"type": "integer"}, children={"type": "array", "items": {"$ref": "#/$defs/n"}})
LINK = whole(value={"type": "null"}, next={"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]})
CIRCLE = whole(kind={"const": "circle"}, radius={"type": "number"})
SQUARE = whole(kind={"const": "square"}, side={"type": "number"}, name={"type": "string"})
FORMATS = "date time date-time uuid email ipv4 ipv6 hostname uri".split()

# With the number of bytes of the shortest answer.
SCHEMAS: dict[str, tuple[Schema, int]] = {
    "any object": ({}, 2),
    "string": ({"type": "string"}, 2),
    "number": ({"type": "number"}, 1),
    "null": ({"type": "null"}, 4),
    "several types": ({"type": ["string", "integer", "null"]}, 1),
    "at least": ({"type": "integer", "minimum": 1000}, 4),
    "between": ({"type": "number", "minimum": 0.5, "maximum": 0.75}, 3),
    "multiple": ({"type": "integer", "multipleOf": 7, "minimum": 50}, 3),
    "long": ({"type": "string", "minLength": 30}, 32),
    "pattern": ({"type": "string", "pattern": r"^[A-Z]{2}-\d{4}$"}, 9),
    "letters": ({"type": "string", "pattern": "^[éà]{2}x$"}, 7),
    "date": ({"type": "string", "format": "date"}, 12),
    "email": ({"type": "string", "format": "email"}, 5),
    "choice": ({"enum": ["a long one that costs", "red", None, 12345678]}, 4),
    "choices": ({"type": "array", "items": {"enum": ["abc", "abd", "x"]}, "minItems": 9}, 37),
    "nested": ({"type": "array", "items": {"type": "array", "minItems": 2}, "minItems": 1}, 7),
    "union": ({"anyOf": [SQUARE, CIRCLE]}, 28),
    "tree": ({"$defs": {"n": NODE}, "$ref": "#/$defs/n"}, 25),
    "list": ({"$defs": {"n": LINK}, "$ref": "#/$defs/n"}, 26),
    "optional": ({"type": "object", "properties": {"a": {"const": "y" * 40}}}, 2),
    "deep": (whole(a=whole(b={"type": "array", "items": CIRCLE, "minItems": 2})), 71),
    "spelled": (whole(a={"const": "<image></s><|im_end|>"}), 29),
}


def random_schema(rng: random.Random, depth: int = 3) -> Schema:
    """A schema that something fits."""
    kinds = ["string", "number", "integer", "boolean", "enum", "pattern", "format"]
    kind = rng.choice(kinds + (["array", "object", "union"] * 2 if depth else []))
    if kind == "string":
        least = rng.choice([0, 0, 1, 5])
        return {"type": kind, "minLength": least, "maxLength": least + rng.choice([0, 3, 50])}
    if kind in ("number", "integer"):
        low = rng.randint(-1000, 1000)
        return {"type": kind} | rng.choice([{}, {"minimum": low, "maximum": low + 7}])
    if kind == "enum":
        return {"enum": rng.sample(["red", "dark blue", 7, None, True, "<image>", -0.5], 3)}
    if kind == "pattern":
        patterns = [r"^[a-z]+$", r"^\d{3}(-\d{2})?$", "^(yes|no|<image>)$", "^[A-F0-9]{4}$"]
        return {"type": "string", "pattern": rng.choice(patterns)}
    if kind == "format":
        return {"type": "string", "format": rng.choice(FORMATS[:5])}
    if kind == "array":
        least = rng.randint(0, 2)
        return {"type": kind, "items": random_schema(rng, depth - 1), "minItems": least}
    if kind == "union":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
    if kind == "object":
        names = rng.sample(["a", "colour", "b c", "é", "<end_of_utterance>"], rng.randint(1, 3))
        properties = {name: random_schema(rng, depth - 1) for name in names}
        return whole(**properties) | {"required": rng.sample(names, rng.randint(0, len(names)))}
    return {"type": kind}
