"""How much one request may ask for: all whose cost could grow faster than its bytes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

from ..errors import ServerError, cut
from ..inputs.media import Video
from ..inputs.messages import ImagePart, Part, VideoPart
from ..inputs.video import VideoSampling
from ..options import documented, option, settle
from .fields import RequestError

MEDIA = ("image_url", "input_image", "image", "video_url", "video")  # types of parts
SOURCES = ("image_url", "video_url", "image", "video", "url", "base64")  # of a part, no text of it


class BodySizeError(RequestError):
    """A body has more bytes than may be sent."""


@documented
@dataclass(frozen=True)
class Budget:
    """The most that one request may have. What is beyond is refused with its number, and before the
    work that it would make: the first five are counted in the body as it came.

    Raises:
        ServerError: a value is no whole number.
    """

    body_bytes: int = option(64 * 2**20, "Bytes of the body.")
    json_values: int = option(20_000, "Values in all, keys not counted.")
    json_depth: int = option(64, "Lists and objects within each other.")
    json_digits: int = option(1000, "Characters of a number.")
    json_characters: int = option(2**20, "Characters of the body outside of texts, such as space.")
    fields: int = option(100, "Fields of the request, of a message and of a part.")
    text_characters: int = option(
        2**18, "Characters of texts and keys, without pictures and videos."
    )
    messages: int = option(1024, "Messages.")
    parts: int = option(2048, "Parts of all messages.")
    # More than the longest context of the family has room for.
    media: int = option(256, "Pictures and videos.")
    pixels: int = option(1_000_000_000, "Pixels of all pictures and chosen frames.")
    frames: int = option(512, "Frames of all videos that are chosen.")
    video_seconds: int = option(3600, "Seconds of all videos.")
    stops: int = option(64, "Texts that end an answer.")
    stop_characters: int = option(256, "Characters of one of them.")
    schema_characters: int = option(2**16, "Characters of the answer's JSON schema.")
    answers: int = option(16, "Answers to one request, `n`.")

    def __post_init__(self) -> None:
        settle(self, ServerError)

    def hold(self, name: str, count: float, what: str, param: str | None = None) -> None:
        """Refuse more of a thing than its limit.

        Raises:
            RequestError: there is more.
        """
        if count > getattr(self, name):
            words = f"{cut(f'{count}', 30)} {what}; the limit is {getattr(self, name)}"
            kind = BodySizeError if name == "body_bytes" else RequestError
            raise kind(words if param else f"the body has {words}", param)

    def check(self, request: Mapping[str, object]) -> None:
        """Count what a request has, before its fields are checked; what has another type than it
        should is none.

        Raises:
            RequestError: there is more of something than may be.
        """
        n, stop = request.get("n"), request.get("stop")
        self.hold("answers", n if type(n) is int else 0, "answers", "n")
        self.hold("stops", _size(stop), "texts", "stop")
        for number, text in enumerate(stop if isinstance(stop, list) else [stop]):
            where = f"stop.{number}" if isinstance(stop, list) else "stop"
            self.hold("stop_characters", _length(text), "characters", where)
        messages = request.get("messages")
        self.hold("messages", _size(messages), "messages", "messages")
        parts = media = sources = 0
        for number, message in enumerate(_objects(messages)):
            parts += _size(message.get("content"))
            self.hold("parts", parts, "parts", f"messages.{number}.content")
            for part in _objects(message.get("content")):
                media += part.get("type") in MEDIA
                sources += sum(_source_length(part.get(key)) for key in SOURCES)
        self.hold("media", media, "pictures and videos", "messages")
        characters = sum(map(len, _texts(request))) - sources
        self.hold("text_characters", characters, "characters of text")


DEFAULT_BUDGET = Budget()


class Spent:
    """Counts what the pictures and videos of a request cost while they are read.

    Args:
        sampling: of videos that say nothing else.
    """

    def __init__(self, budget: Budget, sampling: VideoSampling):
        self._budget, self._sampling = budget, sampling
        self._pixels, self._frames, self._seconds = 0, 0, 0.0

    def add(self, part: Part, where: str) -> None:
        """Count a part, before it is cut into tiles.

        Raises:
            RequestError: with it there is more than may be.
            VideoError: the options of a video are out of range.
        """
        if isinstance(part, ImagePart):
            self.add_picture(part.image.size, where)
        elif isinstance(part, VideoPart) and isinstance(part.video, Video):
            self.add_video(part.video.size, part.video.duration, part.options, where)

    def add_picture(self, size: tuple[int, int], where: str) -> None:
        """As `add`, of a picture of (width, height) pixels."""
        self._pixels += size[0] * size[1]
        self._hold(where)

    def add_video(
        self, size: tuple[int, int], duration: float, options: Mapping[str, object], where: str
    ) -> None:
        """As `add`, of a video of frames of (width, height) pixels and so many seconds."""
        sampling = self._sampling.changed(options)
        end = duration if sampling.end is None else min(sampling.end, duration)
        seconds = max(end - (sampling.start or 0.0), 0.0)
        wanted = sampling.fps * seconds if seconds else 1.0
        frames = ceil(min(max(wanted, 1.0), sampling.max_frames))
        self._frames += frames
        self._seconds += duration
        self._pixels += frames * size[0] * size[1]
        self._hold(where)

    def _hold(self, where: str) -> None:
        hold = self._budget.hold
        hold("video_seconds", self._seconds, "seconds of video", where)
        hold("frames", self._frames, "frames of videos", where)
        hold("pixels", self._pixels, "pixels of pictures and videos", where)


def _objects(values: object) -> list[dict[str, object]]:
    """What should be a list of objects; what is none stands for an empty one."""
    listed = values if isinstance(values, list) else []
    return [value if isinstance(value, dict) else {} for value in listed]


def _texts(value: object) -> Iterator[str]:
    """Yield all texts and keys in a value."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case dict() as named:
                yield from named
                waiting += named.values()
            case list() as values:
                waiting += values


def _size(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


def _length(value: object) -> int:
    return len(value) if isinstance(value, str) else 0


def _source_length(value: object) -> int:
    """How much of a picture or a video is there; an address is text."""
    source = value.get("url") if isinstance(value, dict) else value
    is_address = isinstance(source, str) and source[:4].lower() == "http"
    return 0 if is_address else _length(source)
