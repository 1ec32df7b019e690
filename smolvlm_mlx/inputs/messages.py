"""Messages, parsed once: what a caller wrote -> frozen parts, which own their pictures and videos;
and JSON, and back.

A message is `{"role": ..., "content": text or [parts]}`, transformers' chat schema and OpenAI's,
with parts `{"type": "text", "text": ...}`,
`{"type": "image", "image" | "path" | "url" | "base64": ...}` or
`{"type": "image_url", "image_url": {"url": ...}}`,
`{"type": "video", "video" | "path" | "url" | "base64" | "frames": ...}` or `video_url`, with `fps`,
`max_frames`, `start`, `end` and, of pictures and videos, `name`, if wanted. An `image` is what
`image.load_image` takes or an `Attachment`; a `video` what `video.read_video` takes, a `Video`, or
its frames as a list. Nothing below knows of these keys.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import PromptError, escaped, quote
from .fetch import DEFAULT_LIMITS, FetchLimits, one_of
from .image import IMAGE_KEYS
from .media import Attachment, Frames, Recent, Video
from .rgb import shape_of
from .settings import ImageOptions
from .video import LIMITS as VIDEO_LIMITS
from .video import VIDEO_OPTIONS

RawMessage = Mapping[str, Any]
VIDEO_KEYS = ("video", "frames", "path", "url", "base64")


@dataclass(frozen=True)
class TextPart:
    """Words.

    Raises:
        PromptError: they are no text.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise PromptError(f"the text of a message is {quote(self.text)}, which is no text")


@dataclass(frozen=True)
class ImagePart:
    """A picture; `options` are its own, before those of all pictures."""

    image: Attachment
    options: ImageOptions = ImageOptions()


@dataclass(frozen=True)
class VideoPart:
    """A video, or frames of one; `options` are its own `fps`, `max_frames`, `start` and `end`."""

    video: Video | Frames
    options: Mapping[str, Any] = field(default_factory=dict)


Part = TextPart | ImagePart | VideoPart


@dataclass(frozen=True)
class Message:
    """What somebody said. An answer that was cut off is `interrupted`."""

    role: str
    parts: tuple[Part, ...]
    interrupted: bool = False

    @property
    def text(self) -> str:
        """Its words alone."""
        return " ".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def media(self) -> list[Attachment | Video]:
        """Its pictures and videos, in order."""
        held = [
            part.image if isinstance(part, ImagePart) else part.video for part in self.media_parts
        ]
        return [each for each in held if not isinstance(each, Frames)]

    @property
    def media_parts(self) -> list[ImagePart | VideoPart]:
        """The parts that hold pictures, videos and frames, in order."""
        return [part for part in self.parts if not isinstance(part, TextPart)]


Messages = Sequence[Message | RawMessage]


def notes(messages: Sequence[Message]) -> list[str]:
    """What is unusual about the pictures and videos of messages, each with its name."""
    return [
        f"{escaped(media.name)}: {media.note}"
        for message in messages
        for media in message.media
        if media.note
    ]


def text_message(role: str, text: str) -> Message:
    """A message of words alone."""
    return Message(role, (TextPart(text),))


# ---- pictures and videos beside a text or messages


def user_message(text: str, images: object = (), videos: object = ()) -> Message:
    """A user's message with its pictures and videos before its text.

    Args:
        images: one or several: paths, URLs, bytes, open files, PIL pictures, arrays, `Attachment`s,
            parts; also `Video`s.
        videos: one or several: paths, URLs, bytes, open files, `Video`s, parts; or the frames of
            each as a list or array.

    Raises:
        PromptError: the text is none, or a part is no part.
        ImageError, VideoError, FetchError: one cannot be read.
    """
    words, parser = TextPart(text), _Parser()
    media = [
        parser.part(_filled({"type": kind}, source), f"{kind} {number}")
        for kind, sources in (("image", images), ("video", videos))
        for number, source in enumerate(listed(sources), 1)
    ]
    return Message("user", (*(read() for read in media), words))


def with_media(messages: Messages, images: object = (), videos: object = ()) -> Messages:
    """Messages with these pictures and videos, of `user_message`'s kinds, in their parts
    `{"type": "image"}` and `{"type": "video"}` that name none themselves, in order.

    Raises:
        PromptError: there are more or fewer of them than such parts.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return messages  # which `parse_messages` tells
    waiting = {"image": listed(images), "video": listed(videos)}
    parts = [part for message in messages for part in _content(message)]
    for kind, sources in waiting.items():
        places = sum(_is_open(part, kind) for part in parts)
        if places != len(sources):
            raise PromptError(
                f'{len(sources)} {kind}s, and {places} parts {{"type": "{kind}"}} without a source '
                "in the messages; give one for each, in order"
            )
    if not any(waiting.values()):
        return messages

    def filled(part: object) -> object:
        kind = next((kind for kind in waiting if _is_open(part, kind)), None)
        return part if kind is None else _filled(part, waiting[kind].pop(0))

    return [
        {**message, "content": [filled(part) for part in content]}
        if isinstance(message, Mapping) and (content := _content(message))
        else message
        for message in messages
    ]


def listed(given: object) -> list[object]:
    """Several pictures or videos as a list, or as a column of a table; one alone as a list of it,
    none for None."""
    if given is None:
        return []
    shape = shape_of(given)
    is_one = isinstance(given, str | bytes | bytearray | memoryview | Mapping) or (
        shape is not None and len(shape) != 1
    )
    if is_one or hasattr(given, "read") or not isinstance(given, Iterable):
        return [given]
    return list(given)


def _content(message: object) -> Sequence[object]:
    """The parts of a raw message, which may be malformed."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, Sequence) and not isinstance(content, str) else ()


def _is_open(part: object, kind: str) -> bool:
    """Whether a part is to get its picture or video from elsewhere."""
    keys = {"image": IMAGE_KEYS, "video": VIDEO_KEYS}[kind]
    return (
        isinstance(part, Mapping)
        and part.get("type") == kind
        and all(part.get(key) is None for key in keys)
    )


def _filled(part: Any, source: object) -> object:
    """A part with its picture or video, which may be a part itself."""
    if isinstance(source, VideoPart):
        return replace(source, options={**_video_options(part), **source.options})
    if isinstance(source, ImagePart):
        return source
    if isinstance(source, Video | Frames):
        return {**part, "type": "video", "video": source}
    return {**part, **source} if isinstance(source, Mapping) else {**part, part["type"]: source}


# ---- raw messages, checked


def parse_messages(
    messages: Messages, limits: FetchLimits = DEFAULT_LIMITS, recent: Recent | None = None
) -> list[Message]:
    """Check messages and read their pictures and videos: what they name may change or vanish
    afterwards.

    Messages that were parsed already stay as they are.

    Raises:
        PromptError: naming the message and what is wrong with it.
        ImageError, VideoError, FetchError: a picture or video cannot be read within the limits.
    """
    if (
        isinstance(messages, str | bytes | Mapping)
        or not isinstance(messages, Sequence)
        or not messages
    ):
        raise PromptError(
            'messages must be a non-empty list such as [{"role": "user", "content": "Hello"}]'
        )
    parser = _Parser(limits, recent)
    # All of them are checked before a file is read.
    return [
        read()
        for read in [
            parser.message(message, f"message {n}") for n, message in enumerate(messages, 1)
        ]
    ]


class _Parser:
    """Checks messages and their parts; what it returns reads them."""

    def __init__(self, limits: FetchLimits = DEFAULT_LIMITS, recent: Recent | None = None):
        self._limits, self._own = limits, (recent or Recent()).attachment
        self._video_limits = replace(
            VIDEO_LIMITS, allow_paths=limits.allow_paths, allow_urls=limits.allow_urls
        )

    def message(self, message: object, where: str) -> Callable[[], Message]:
        if isinstance(message, Message):
            return lambda: message
        if not isinstance(message, Mapping):
            raise PromptError(
                f"{where} is a {type(message).__name__}, not an object with role and content"
            )
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role.replace("_", "").isalnum():
            raise PromptError(
                f"{where}: role {quote(role)} is not a word such as 'user', 'assistant' or 'system'"
            )
        if isinstance(content, str):
            content = [TextPart(content)]
        if not isinstance(content, Sequence) or not content:
            raise PromptError(f"{where}: content must be text or a non-empty list of parts")
        parts = [self.part(part, where) for part in content]
        return lambda: Message(
            role, tuple(read() for read in parts), message.get("interrupted") is True
        )

    def part(self, part: object, where: str) -> Callable[[], Part]:
        if isinstance(part, TextPart | ImagePart | VideoPart):
            return lambda: part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind not in (
            "text",
            "image",
            "image_url",
            "video",
            "video_url",
        ):
            raise PromptError(
                f"{where}: part {quote(kind or type(part).__name__)} is not 'text', 'image' or "
                "'video'"
            )
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise PromptError(f"{where}: a text part without text")
            return lambda: TextPart(part["text"])
        name = part["name"] if isinstance(part.get("name"), str) else None
        if kind.startswith("image"):
            key, image = _source(part, "image", IMAGE_KEYS, where)
            if isinstance(image, Attachment):
                return lambda: ImagePart(image)
            return lambda: ImagePart(self._own({key: image}, self._limits, name))
        options = _video_options(part)
        key, video = _source(part, "video", VIDEO_KEYS, where)
        if key == "frames" or (key == "video" and _are_frames(video)):
            frames = _frames(video, where)
            return lambda: VideoPart(
                Frames([self._frame(frame) for frame in frames], options.get("fps")), options
            )
        if isinstance(video, Video | Frames):
            return lambda: VideoPart(video, options)
        return lambda: VideoPart(Video({key: video}, self._video_limits, name), options)

    def _frame(self, part: object) -> Attachment:
        image = part.get("image") if isinstance(part, Mapping) else part
        return image if isinstance(image, Attachment) else self._own(part, self._limits, None)


def _video_options(part: RawMessage) -> dict[str, Any]:
    return {option: part[option] for option in VIDEO_OPTIONS if part.get(option) is not None}


def _are_frames(video: object) -> bool:
    return isinstance(video, list | tuple) or shape_of(video) is not None


def _frames(video: object, where: str) -> list[object]:
    if isinstance(video, str | bytes | Mapping) or not isinstance(video, Iterable):
        raise PromptError(f"{where}: frames {quote(video)} are no list of pictures")
    shape = shape_of(video) or ()
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        raise PromptError(
            f"{where}: an array {shape} is one picture; a video is an array (frames, H, W[, 1 | 3 "
            "| 4]) or a list of its frames"
        )
    return list(video)


def _source(part: RawMessage, kind: str, keys: Sequence[str], where: str) -> tuple[str, object]:
    """Which of its keys a part has, and what is there; OpenAI's `image_url` and `video_url` are a
    `url`."""
    if part["type"] == f"{kind}_url":
        url = part.get(f"{kind}_url")
        part = {"url": url.get("url") if isinstance(url, Mapping) else url}
    return one_of(
        part, keys, f"{where}: {'an' if kind == 'image' else 'a'} {kind} part", PromptError
    )


# ---- to JSON and back


def to_json(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Messages as JSON values that `parse_messages` knows: pictures and videos become base64
    text."""

    def whole(held: Attachment | Video) -> dict[str, object]:
        return {"base64": base64.b64encode(held.data).decode(), "name": held.name}

    return [raw_message(message, whole) for message in messages]


def raw_message(
    message: Message, media: Callable[[Attachment | Video], dict[str, object]]
) -> dict[str, object]:
    """A message as a JSON value, with what `media` says of each picture and video."""

    def raw_part(part: Part) -> dict[str, object]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        if isinstance(part, ImagePart):
            return {"type": "image", **media(part.image)}
        if isinstance(part.video, Frames):
            return {
                "type": "video",
                "frames": [media(frame) for frame in part.video.frames],
                **part.options,
            }
        return {"type": "video", **media(part.video), **part.options}

    raw: dict[str, object] = {
        "role": message.role,
        "content": [raw_part(part) for part in message.parts],
    }
    return {**raw, "interrupted": True} if message.interrupted else raw


def from_json(value: Any) -> list[Message]:
    """What `to_json` made. A path or URL in it is refused: the file may be someone else's.

    Raises:
        PromptError, ImageError, VideoError, FetchError: it is no conversation.
    """
    return parse_messages(value, replace(DEFAULT_LIMITS, allow_paths=False, allow_urls=False))
