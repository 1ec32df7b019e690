"""Encoded videos: when their frames are shown, and any of those frames.

Only this file, `animation` and `camera` know PyAV. Files are opened here and read from memory, in
formats that name no other files: ffmpeg never gets their path or an address to open.

What a decoder gives from the first packet to the last is the truth. Packets tell it faster, but not
always: AVI and ASF keep the order of decoding, recordings begin and end anywhere, a packet may hold
no frame, or half of one. So what packets tell is checked against each frame that comes.
"""

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, dropwhile, islice, pairwise, takewhile, tee
from math import inf
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from PIL import Image

from ..errors import VideoError, quote
from .image import CUT_OFF_NOTE, MAX_PIXELS
from .rgb import to_rgb
from .timeline import Timeline, unwrap

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Demuxers that read one file and nothing else; no playlists, no concat.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,ivf,"
    "h264,hevc,mpegvideo,m4v,apng"
)
# Those of them that keep presentation times of codecs whose frames are decoded in another order
# than they are shown in.
KEEP_ORDER = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "mpeg", "flv")
NAMES_LENGTH = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv")  # at the beginning of a file
NO_TIMES, JUMPING = 0x80, 0x200  # ffmpeg's AVFMT_NOTIMESTAMPS, AVFMT_TS_DISCONT
FALLBACK_FPS = 24.0  # of frames without one, as the reference has it
JUMP = 10.0  # seconds without a frame that are a new count of time, where a format has such
NEAR = 12  # frames ahead that are reached by decoding on, without a seek
EARLY = 1.0  # seconds by which a video may be shorter than its file says
LAG = 64  # most packets that decoders, with all their threads, take before a frame comes


@contextmanager
def opened(data: bytes) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """An encoded video at its beginning, and its main stream; VideoError if it cannot be decoded,
    here or within the context."""
    import av

    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(data), mode="r", options=options) as file:
            stream = file.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise VideoError(
                    f"the file holds {'sound but no' if file.streams.audio else 'no'} video"
                )
            if stream.codec_context is None:  # which PyAV's types do not tell
                raise VideoError("the video is of a kind that ffmpeg does not know")
            check_frame(stream.codec_context.width, stream.codec_context.height)
            stream.thread_type = "AUTO"  # several threads decode
            yield file, stream
    except (av.FFmpegError, ValueError, OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise VideoError(f"the video cannot be decoded, it may be damaged: {quote(why)}") from error


def check_frame(width: int, height: int) -> None:
    """Refuse frames of more than MAX_PIXELS, before one is decoded. Raises VideoError."""
    if width * height > MAX_PIXELS:
        raise VideoError(f"frames of more than {MAX_PIXELS} pixels; make the video smaller")


def upright(frame: "VideoFrame") -> Image.Image:
    """A decoded frame in RGB, on white where it is transparent."""
    has_alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    image = (
        to_rgb(Image.fromarray(frame.to_ndarray(format="rgba"))) if has_alpha else frame.to_image()
    )
    turn = round(frame.rotation) % 360
    return image.rotate(turn, expand=True) if turn in (90, 180, 270) else image


# ---- from where the file is, onwards


def play(
    file: "InputContainer", stream: "VideoStream", errors: list[Exception] | None = None
) -> "Iterator[VideoFrame]":
    """Every frame that can be decoded, in the order in which they are shown; what is wrong with
    other packets is put into `errors`."""
    errors = [] if errors is None else errors
    return _decode(stream, _packets(file, stream, errors), errors)


def _packets(
    file: "InputContainer", stream: "VideoStream", errors: list[Exception]
) -> "Iterator[Packet[VideoStream]]":
    """The packets that hold something, up to the end or to where the file is cut off."""
    import av

    is_jumping = file.format.flags & JUMPING
    with suppress(av.FFmpegError):
        for packet in file.demux(stream):
            if packet.is_corrupt and not is_jumping:
                # Half of the last: decoders with several threads would lose whole ones for it.
                errors.append(EOFError(CUT_OFF_NOTE))
            elif packet.size:
                yield packet


def _decode(
    stream: "VideoStream", packets: "Iterable[Packet[VideoStream]]", errors: list[Exception]
) -> "Iterator[VideoFrame]":
    import av

    for packet in chain(packets, [None]):  # None: what the decoder holds back
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError as error:  # the next may be whole
            errors.append(error)
        else:
            yield from frames


# ---- times


def _keeps_order(stream: "VideoStream") -> bool:
    """Whether frames have presentation times: not if they are decoded in another order than they
    are shown in, and the format has times of decoding alone, from which ffmpeg guesses others."""
    return not stream.codec_context.has_b_frames or stream.container.format.name in KEEP_ORDER


def _named_fps(stream: "VideoStream") -> float:
    """The rate that a file names."""
    has_times = not stream.container.format.flags & NO_TIMES
    # Without times the mean is ffmpeg's own 25, while the codec may know better.
    rates = (stream.average_rate, stream.guessed_rate)
    return float(next(filter(None, rates if has_times else rates[::-1]), FALLBACK_FPS))


def _named_length(file: "InputContainer", stream: "VideoStream") -> float:
    """The seconds that a file says at its beginning; 0 if it does not."""
    if file.format.name not in NAMES_LENGTH:
        return 0.0
    length = (stream.duration or 0) * (stream.time_base or 0)
    return float(length or (file.duration or 0) / 1e6)


def _note_on_end(timeline: Timeline, named: float, is_cut: bool) -> str:
    """What to say of a video that ends before its file says, such as half of a download."""
    if named - timeline.duration > EARLY:
        return f"its pictures end after {timeline.duration:.1f} of {named:.1f} seconds"
    return CUT_OFF_NOTE if is_cut else ""


def _longest_pause(stream: "VideoStream") -> float:
    """Most seconds from a frame to the next that are what they say."""
    return JUMP if stream.container.format.flags & JUMPING else inf


def _slack(stream: "VideoStream") -> float:
    """How many frames from its place at a constant rate one may be. A pack of an MPEG program
    stream has one time for all the small frames in it."""
    return 8.0 if stream.container.format.name == "mpeg" else 0.5


def play_timed(
    file: "InputContainer", stream: "VideoStream", errors: list[Exception] | None = None
) -> "Iterator[tuple[float, VideoFrame]]":
    """As `play`, with the seconds since the first frame, which may go back where frames come in
    another order than they are shown in.

    Raises:
        VideoError: there is none.
    """
    tick = float(stream.time_base or 1)
    read, frames = tee(play(file, stream, errors))
    is_told = _keeps_order(stream)
    stamps = (frame.pts * tick if is_told and frame.pts is not None else None for frame in read)
    pair = None
    for pair in zip(
        unwrap(stamps, 1 / _named_fps(stream), _longest_pause(stream)), frames, strict=True
    ):
        yield pair
    if pair is None:
        raise VideoError("no frame of the video can be decoded, it may be damaged")


# ---- what packets say, and what the decoder says


class TimesError(Exception):
    """Packets told other times than the frames have."""


@dataclass(frozen=True)
class _Index:
    """What packets say, from the first frame on that can be decoded.

    Attributes:
        pts: when frames are shown, in ticks and ascending.
        packets: these times, and a checksum of what the packet holds.
        keys: (pts, dts) of those that are called key frames.
    """

    pts: list[int]
    packets: set[tuple[int | None, int]]
    keys: list[tuple[int, int | None]]

    def numbered(self, frames: "Iterable[VideoFrame]") -> "Iterator[tuple[int, VideoFrame]]":
        """Frames with their numbers, as long as they follow each other as packets say."""
        number = -1
        for frame in frames:
            if number < 0 and frame.pts is not None:
                number = bisect_left(self.pts, frame.pts)
            if not 0 <= number < len(self.pts) or frame.pts != self.pts[number]:
                return
            yield number, frame
            number += 1

    def landings(self, after: int, number: int) -> Iterator[int]:
        """Where to seek for a frame, nearest first: the key frames behind frame `after`, by the
        times at which they are shown and at which they are decoded."""
        first = bisect_right(self.keys, self.pts[after], key=lambda key: key[0])
        place, step = bisect_right(self.keys, self.pts[number], key=lambda key: key[0]) - 1, 1
        while place >= first:
            yield from (stamp for stamp in self.keys[place] if stamp is not None)
            place, step = place - step, step * 2

    def play_from(
        self, at: int, number: int, file: "InputContainer", stream: "VideoStream"
    ) -> "Iterator[tuple[int, VideoFrame]] | None":
        """Seek to `at`, and play from the first key frame that comes; None if frame `number` is not
        reached so.

        Formats without an index seek to any packet, give the first of them wrong times, and what
        they call a key frame may be none. So packets have to be what they were in the first
        reading, and the decoder has to know the frame as a key.
        """
        import av

        target, is_found = self.pts[number], False

        def near() -> "Iterator[Packet[VideoStream]]":
            late = 0
            packets = dropwhile(lambda packet: not packet.is_keyframe, _packets(file, stream, []))
            for packet in takewhile(lambda packet: _check(packet) in self.packets, packets):
                yield packet
                late += packet.pts is None or packet.pts > target
                if late > LAG and not is_found:
                    return

        with suppress(av.FFmpegError):
            file.seek(at, stream=stream)  # or before
            frames = dropwhile(lambda frame: not frame.key_frame, _decode(stream, near(), []))
            first = next(frames, None)
            is_found = first is not None and first.pts is not None and first.pts <= target
            return self.numbered(chain([first], frames)) if first and is_found else None
        return None


def _check(packet: "Packet[VideoStream]") -> tuple[int | None, int]:
    return packet.pts, crc32(packet)


class _Told(NamedTuple):
    """What a packet says of its frame."""

    pts: int | None
    dts: int | None
    is_key: bool
    duration: int | None


def _until_key(frames: "Iterator[VideoFrame]") -> Iterator[int | None]:
    """When the first frames are shown, up to the first key frame: of what a recording has before it
    little or nothing can be decoded."""
    for frame in islice(frames, LAG):
        yield frame.pts
        if frame.key_frame:
            return


def _read_packets(data: bytes) -> tuple[_Index | None, Timeline, str] | None:
    """What packets say of the frames, and a note; None if that cannot be true. Without an index
    where they say when frames are decoded, and not which."""
    with opened(data) as (file, stream):
        told, packets, cut = list[_Told](), set[tuple[int | None, int]](), list[Exception]()
        for packet in _packets(file, stream, cut):
            packets.add(_check(packet))
            if not packet.is_discard:  # by an edit list
                told.append(_Told(packet.pts, packet.dts, packet.is_keyframe, packet.duration))
        tick, keeps_order = float(stream.time_base or 1), _keeps_order(stream)
        fps, longest, slack = _named_fps(stream), _longest_pause(stream), _slack(stream)
        named = _named_length(file, stream)
    order = [one.dts for one in told if one.dts is not None]
    if not told or order != sorted(order):
        return None
    if not keeps_order:
        if len(order) < len(told):
            return None
        timeline = Timeline.of([dts * tick for dts in order], fps, 0.0, slack)
        return None, timeline, _note_on_end(timeline, named, bool(cut))
    pts = sorted({one.pts for one in told if one.pts is not None})
    if len(pts) < len(told) or any((b - a) * tick > longest for a, b in pairwise(pts)):
        return None
    with opened(data) as (file, stream):
        opening = list(_until_key(play(file, stream)))
    begin = bisect_left(pts, opening[0]) if opening and opening[0] is not None else 0
    if not opening or opening != pts[begin : begin + len(opening)]:
        return None
    pts = pts[begin:]
    keys = sorted((one.pts, one.dts) for one in told if one.is_key and one.pts is not None)
    last = next(one.duration for one in told if one.pts == pts[-1])
    times = [(at - pts[0]) * tick for at in pts]
    timeline = Timeline.of(times, fps, (last or 0) * tick, slack)
    return _Index(pts, packets, keys), timeline, _note_on_end(timeline, named, bool(cut))


class VideoFile:
    """A video of which frames can be asked for.

    Attributes:
        timeline: when its frames are shown.
        note: what is unusual about it.

    Raises:
        VideoError: no frame can be decoded.
    """

    timeline: Timeline

    def __init__(self, data: bytes):
        self._data, self.note = data, ""
        self._index: _Index | None = None
        if told := _read_packets(data):
            self._index, self.timeline, self.note = told
        else:
            self.watch()

    def watch(self) -> None:
        """Take the times from the frames, all of which are decoded for that: always true, not
        fast."""
        times, last, errors = list[float](), 0.0, list[Exception]()
        with opened(self._data) as (file, stream):
            for time, frame in play_timed(file, stream, errors):
                if not times:
                    errors.clear()  # a recording may begin between key frames
                times.append(time)
                last = float(frame.duration * (stream.time_base or 1))
            self.timeline = Timeline.of(times, _named_fps(stream), last, _slack(stream))
            end = _note_on_end(self.timeline, _named_length(file, stream), False)
        lost = f"{len(errors)} packets could not be decoded" if errors else ""
        self._index, self.note = None, ", ".join(filter(None, (lost, end)))

    def frames(self, wanted: Sequence[int]) -> "Iterator[tuple[int, VideoFrame]]":
        """(number, frame) of the frames that are wanted, by ascending numbers.

        Raises:
            TimesError: the timeline is not that of the frames; `watch` them, and choose again.
        """
        if self._index is None:
            return self._from_start(wanted)
        return self._seeking(wanted, self._index)

    def _from_start(self, wanted: Sequence[int]) -> "Iterator[tuple[int, VideoFrame]]":
        left = set(wanted)
        with opened(self._data) as (file, stream):
            frames = play(file, stream)
            for number, frame in self._index.numbered(frames) if self._index else enumerate(frames):
                if number in left:
                    yield number, frame
                    left.remove(number)
                if not left:
                    return
        raise TimesError

    def _seeking(self, wanted: Sequence[int], index: _Index) -> "Iterator[tuple[int, VideoFrame]]":
        with opened(self._data) as (file, stream):
            frames, after = index.numbered(play(file, stream)), 0
            for place, number in enumerate(wanted):
                if number - after > NEAR and (landings := list(index.landings(after, number))):
                    tries = (index.play_from(at, number, file, stream) for at in landings)
                    frames = next(filter(None, tries), iter(()))
                pair = next((pair for pair in frames if pair[0] == number), None)
                if pair is None:
                    yield from self._from_start(wanted[place:])
                    return
                after = number
                yield pair
