"""Built-in prompts by kind: questions in words, about one picture, several, a document, a video.

There are two sets without a prompt in common: by the one bits are chosen and scales are learned, by
the other both are checked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

from ..inputs.messages import Message, user_message
from ..inputs.settings import ImageOptions
from .pictures import DRAWN, clip, page

Kind = Literal["text", "picture", "pictures", "document", "video"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Set = Literal["choose", "check"]

_ONE_TILE = ImageOptions(split=False)
_TOPICS = (
    "the tides|volcanoes|bread|a lighthouse|the moon|bees|the Roman roads|a bicycle|glass|rain|"
    "chess|the human heart|a desert|the printing press|trains|an orchestra|salt|a forest fire|"
    "the alphabet|a bridge|whales|the stock market|paper|a thunderstorm|clocks|the immune system|"
    "an island|electricity|coffee|a mountain pass|gravity|the Silk Road|potatoes|a river delta|"
    "photography|sleep|the compass|a market day|snow|robots|the olive tree|a long winter|maps|"
    "vaccines|the guitar|a sailing ship|soil|mathematics|the post office|an eclipse|wool|"
    "a small village|antibiotics|the telephone|a garden|recycling|the violin|an old library|"
    "steam engines|a night train|honey|the equator|batteries|a football match"
).split("|")
_TASKS = (
    "What should everybody know about {}?",
    "Write a short story about {}.",
    "Explain {} to a child of eight.",
    "List five facts about {}.",
    "Write a short poem about {}.",
    "Why does {} matter? Answer in three sentences.",
    "Write an email to a friend about {}.",
    "What questions would you ask an expert on {}?",
    "Compare {} with something from everyday life.",
    "Write the opening of a newspaper article about {}.",
    "Give a definition of {} and one example.",
    "Describe {} step by step.",
    "Write a dialogue of two people who disagree about {}.",
)
_OF_PICTURE = (
    "Describe this image in detail.",
    "What do you see?",
    "Write a caption for this picture.",
    "Which colors are there, and where?",
    "What could be the story behind this picture?",
)
_OF_PICTURES = (
    "What is different between these pictures?",
    "Describe each picture in a sentence.",
    "Which of these pictures is the more colorful one, and why?",
)
_OF_DOCUMENT = (
    "Read the text of this page.",
    "What is this document about?",
    "Which numbers are in the table?",
    "Summarize this page.",
)
_OF_VIDEO = ("Describe the video.", "What moves, and in which direction?", "What happens here?")


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer, and how its pictures are cut."""

    kind: Kind
    messages: Sequence[Message]
    image_options: ImageOptions = _ONE_TILE


def prompts(kind: Kind, which: Set) -> Iterator[Prompt]:
    """Endless prompts of a kind; always the same, and none of the other set."""
    make = _MAKERS[kind]
    for number in count(0 if which == "choose" else 1, 2):
        yield make(number)


def built_in(counts: dict[Kind, int], which: Set) -> list[Prompt]:
    """So many prompts of each kind."""
    endless = {kind: prompts(kind, which) for kind in counts}
    return [next(endless[kind]) for kind, wanted in counts.items() for _ in range(wanted)]


def _text(number: int) -> Prompt:
    # 64 topics, of which a set has every second; 13 tasks, so that pairs come again after 832.
    topic, task = _TOPICS[number % len(_TOPICS)], _TASKS[number % len(_TASKS)]
    return Prompt("text", [user_message(task.format(topic))])


def _picture(number: int) -> Prompt:
    image = DRAWN[number // 2 % len(DRAWN)](number)
    return Prompt("picture", [user_message(_asked(_OF_PICTURE, number), [image])])


def _pictures(number: int) -> Prompt:
    images = [
        DRAWN[(number // 2 + place) % len(DRAWN)](number + place * 10_000) for place in (1, 2)
    ]
    return Prompt("pictures", [user_message(_asked(_OF_PICTURES, number), images)])


def _document(number: int) -> Prompt:
    # Two by two tiles and the global one: most have what is small cut out of a page.
    message = user_message(_asked(_OF_DOCUMENT, number), [page(number)])
    return Prompt("document", [message], ImageOptions(max_tiles=5))


def _video(number: int) -> Prompt:
    return Prompt("video", [user_message(_asked(_OF_VIDEO, number), videos=[clip(number)])])


def _asked(questions: Sequence[str], number: int) -> str:
    return questions[number // 2 % len(questions)]


_MAKERS: dict[Kind, Callable[[int], Prompt]] = {
    "text": _text,
    "picture": _picture,
    "pictures": _pictures,
    "document": _document,
    "video": _video,
}
