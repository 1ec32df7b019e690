"""Questions about one picture, the turn before, or neither, each with its only right answer.

Each kind about a picture is a function of the scene and a `random.Random`; it returns question and
answer, or None where the scene leaves nothing to ask. Answers are short, without a full stop; only
`describe` answers in a sentence.
"""

from collections import Counter
from collections.abc import Callable
from random import Random

from convert.tiny.scenes import make_text
from convert.tiny.world import COLORS, SHAPES, WORDS, Scene, Thing

Pair = tuple[str, str]  # question, answer


def what(scene: Scene, rng: Random) -> Pair | None:
    """A place's content, or the shape of a color."""
    color = unique(rng, [thing.color for thing in scene.shapes])
    if color is not None and rng.random() < 0.35:
        answer = next(thing.shape for thing in scene.shapes if thing.color == color)
        return rng.choice((f"What shape is {color}?", f"Which shape is the {color} one?")), answer
    return what_is_in(scene, rng, rng.choice(scene.places))


def what_is_in(scene: Scene, rng: Random, place: str) -> Pair:
    form = rng.choice(("What is {}?", "What is {}?", "What do you see {}?", "And {}?"))
    return form.format(inside(place)), named(scene.at(place))


def color(scene: Scene, rng: Random) -> Pair | None:
    texts, shape = scene.texts, unique(rng, [thing.shape for thing in scene.shapes])
    if len(texts) == 1 and (shape is None or rng.random() < 0.2):
        return "What color is the text?", texts[0].color
    if shape is None:
        return None
    form = rng.choice(
        ("What color is the {}?", "What colour is the {}?", "Which color does the {} have?")
    )
    return form.format(shape), next(thing.color for thing in scene.shapes if thing.shape == shape)


def how_many(scene: Scene, rng: Random) -> Pair:
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(("How many shapes are there?", "How many shapes do you see?")), str(
            len(scene.shapes)
        )
    if kind < 0.75:
        return _count(scene, likely(rng, [thing.color for thing in scene.shapes], tuple(COLORS)))
    return _count(scene, likely(rng, [thing.shape for thing in scene.shapes], SHAPES))


def _count(scene: Scene, name: str) -> Pair:
    """How many shapes are of a kind or color."""
    plural = f"{name} shapes" if name in COLORS else f"{name}es" if name == "cross" else f"{name}s"
    return f"How many {plural} are there?", str(
        sum(name in (thing.color, thing.shape) for thing in scene.shapes)
    )


def counts(scene: Scene, rng: Random) -> list[Pair]:
    """How many there are of each kind and color in the picture, and of about as many that are not
    in it."""
    pairs = [
        _count(scene, name) for name in rng.sample((*SHAPES, *COLORS), len(SHAPES) + len(COLORS))
    ]
    there = [pair for pair in pairs if pair[1] != "0"]
    chosen = [*there, *[pair for pair in pairs if pair[1] == "0"][: max(2, len(there))]]
    rng.shuffle(chosen)
    return chosen


def where(scene: Scene, rng: Random) -> Pair | None:
    names = [*(thing.shape for thing in scene.shapes), *("text" for _ in scene.texts)]
    names += [f"{thing.color} shape" for thing in scene.shapes]
    name = unique(rng, names)
    if name is None:
        return None
    things = [
        thing
        for thing in scene.things
        if name in (thing.shape, f"{thing.color} shape") and thing.shape
    ]
    thing = (things or [*scene.texts])[0]
    if (
        thing.shape
        and rng.random() < 0.3
        and sum(other.name == thing.name for other in scene.things) == 1
    ):
        name = thing.name
    return f"Where is the {name}?", thing.place


def says(scene: Scene, rng: Random) -> Pair | None:
    if not scene.texts:
        return None
    thing = rng.choice(scene.texts)
    if len(scene.texts) > 1 or rng.random() < 0.2:
        return f"What does the text {inside(thing.place)} say?", thing.text
    return rng.choice(
        ("What does the text say?", "What does it say?", "Read the text.")
    ), thing.text


def yes_or_no(scene: Scene, rng: Random) -> Pair | None:
    """As often yes as no."""
    wanted = rng.random() < 0.5
    for _ in range(40):
        question, holds = _claim(scene, rng)
        if holds == wanted:
            return question, "yes" if holds else "no"
    return None


def _claim(scene: Scene, rng: Random) -> tuple[str, bool]:
    seen = rng.choice(scene.shapes) if scene.shapes and rng.random() < 0.7 else None
    shape = seen.shape if seen is not None else rng.choice(SHAPES)
    hue = seen.color if seen is not None and rng.random() < 0.6 else rng.choice(tuple(COLORS))
    place = rng.choice(scene.places)
    names = {thing.name for thing in scene.things}
    kind = rng.randrange(6)
    if kind == 0:
        return f"Is there a {shape}?", any(thing.shape == shape for thing in scene.shapes)
    if kind == 1:
        return f"Is there any {hue} shape?", any(thing.color == hue for thing in scene.shapes)
    if kind == 2:
        return "Is there any text?", bool(scene.texts)
    if kind == 3:
        return f"Is there anything {inside(place)}?", scene.at(place) is not None
    if kind == 4 and seen is not None and sum(thing.shape == shape for thing in scene.shapes) == 1:
        return f"Is the {shape} {hue}?", seen.color == hue
    return f"Is there {article(hue)} {hue} {shape}?", f"{hue} {shape}" in names


def size(scene: Scene, rng: Random) -> Pair | None:
    shape = unique(rng, [thing.shape for thing in scene.shapes])
    if shape is None:
        return None
    answer = next(thing.size for thing in scene.shapes if thing.shape == shape)
    return rng.choice((f"Is the {shape} small or large?", f"How large is the {shape}?")), answer


def stripes(scene: Scene, rng: Random) -> Pair | None:
    striped = [thing for thing in scene.things if thing.stripes]
    if len(striped) != 1:
        return None
    return rng.choice(
        ("Are the stripes horizontal or vertical?", "Which way do the stripes go?")
    ), striped[0].stripes


def listed(crowd: Scene) -> str:
    """All of a crowd's nine things, row by row."""
    names = [thing.text or thing.name for thing in crowd.things]
    return "; ".join(", ".join(names[row : row + 3]) for row in (0, 3, 6))


def describe(scene: Scene, rng: Random) -> Pair:
    said = [
        (
            f"{article(thing.size)} {thing.size} {thing.name}"
            if thing.shape
            else f"the text {thing.text}",
            thing.place,
        )
        for thing in scene.things
    ]
    parts = [f"{name} {inside(place)}" for name, place in said]
    sentence = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    question = rng.choice(
        ("Describe the picture.", "What is in the picture?", "Can you describe this image?")
    )
    return question, sentence[0].upper() + sentence[1:] + "."


Ask = Callable[[Scene, Random], Pair | None]
KINDS: dict[str, Ask] = {
    "what": what,
    "color": color,
    "how many": how_many,
    "where": where,
    "text": says,
    "yes or no": yes_or_no,
    "size": size,
    "stripes": stripes,
    "describe": describe,
}


# ---- no picture

FACTS = (
    ("How many corners does a triangle have?", "3"),
    ("How many corners does a square have?", "4"),
    ("How many points does a star have?", "5"),
    ("Does a circle have corners?", "no"),
    ("Which shape is round?", "circle"),
    ("What color is grass?", "green"),
    ("What color is the sky?", "blue"),
    ("What color is a lemon?", "yellow"),
    ("What color is the night?", "black"),
    ("Which shapes do you know?", "circle, square, triangle, star, diamond and cross"),
    ("Which colors do you know?", "red, orange, yellow, green, blue, purple, pink and black"),
    ("Hello!", "Hello! Show me a picture of shapes."),
    ("Who are you?", "I am a tiny model that knows shapes, colors and short texts."),
)


def text_alone(rng: Random) -> Pair:
    """Facts of this world, copying and counting."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(FACTS)
    if kind < 0.7:
        said = rng.choice(
            (make_text(rng), rng.choice(WORDS), f"{rng.choice(tuple(COLORS))} {rng.choice(SHAPES)}")
        )
        return rng.choice((f"Say {said}", f"Repeat: {said}")), said
    if kind < 0.85:
        start = rng.randint(0, 9)
        end = start + rng.randint(1, 6)
        return f"Count from {start} to {end}.", " ".join(map(str, range(start, end + 1)))
    if kind < 0.93:
        number = rng.randint(0, 20)
        return f"What comes after {number}?", str(number + 1)
    word = rng.choice(WORDS)
    return f"How many letters are in {word}?", str(len(word))


# ---- two turns


def remember(rng: Random) -> list[Pair]:
    if rng.random() < 0.5:
        hue = rng.choice(tuple(COLORS))
        return [(f"My favorite color is {hue}.", "OK."), ("What is my favorite color?", hue)]
    word = make_text(rng)
    return [(f"Remember {word}.", "OK."), ("What did I ask you to remember?", word)]


def follow_up(scene: Scene, rng: Random) -> list[Pair]:
    """A question about a place, and one about "it"."""
    shapes = scene.shapes
    if not shapes:
        return []
    thing = rng.choice(shapes)
    if rng.random() < 0.5:
        first = f"What is {inside(thing.place)}?", named(thing)
    else:
        name = unique(rng, [shape.shape for shape in shapes])
        if name is None:
            return []
        thing = next(shape for shape in shapes if shape.shape == name)
        first = f"Where is the {name}?", thing.place
    second = rng.choice(
        (
            ("Is it small or large?", thing.size),
            ("What color is it?", thing.color),
            ("What shape is it?", thing.shape),
        )
    )
    return [first, second]


# ---- words


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def inside(place: str) -> str:
    return {"left": "on the", "right": "on the", "top": "at the", "bottom": "at the"}.get(
        place, "in the"
    ) + f" {place}"


def named(thing: Thing | None) -> str:
    if thing is None:
        return "nothing"
    return f"{article(thing.name)} {thing.name}" if thing.shape else f"the text {thing.text}"


def unique(rng: Random, names: list[str]) -> str | None:
    """One of those that are there once."""
    once = [name for name, count in Counter(names).items() if count == 1]
    return rng.choice(once) if once else None


def likely(rng: Random, there: list[str], every: tuple[str, ...]) -> str:
    """Mostly one that is there."""
    return rng.choice(there) if there and rng.random() < 0.75 else rng.choice(every)
