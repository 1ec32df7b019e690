"""Find the highlights of a long video and cut them out, as the SmolVLM2 demo does: describe, decide
what counts, choose, cut.

    python examples/highlights.py VIDEO [--model M] [--out FOLDER] [--seconds 10] [--question "Is
    there a goal?"]

The folder gets notes.json (what the model said: a stopped run goes on from it), cuts.json (the cut
list) and the cut video. Nothing is encoded again: each cut begins at the key frame at or before its
start.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

from smolvlm_mlx import load
from smolvlm_mlx.errors import SmolVLMError
from smolvlm_mlx.files import lock, new_file, write_file
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.stream import TextStream
from smolvlm_mlx.inputs.media import Video

import av

Interval = tuple[float, float]  # seconds
DESCRIBE = "Describe this part of the video in one sentence."
DECIDE = (
    "These are the parts of a video, one after another:\n{}\n"
    "Which kinds of moments are its highlights? Answer in one short sentence."
)
CHOOSE = "The highlights are: {} Does this part of the video show one of them? Answer yes or no."


class Narrator:
    """A model that is asked about parts of one video; what it said is kept in a file, and not asked
    again."""

    def __init__(self, model: str, video: Video, notes: Path):
        self._engine = Engine(*load(model))
        self._video, self._notes = video, notes
        self._about = f"{model} {video.digest}"
        self._said: dict[str, str] = {}
        if notes.exists():
            kept = json.loads(notes.read_text())
            if kept["about"] != self._about:
                raise SystemExit(f"{notes}: of another video or model; choose another --out")
            self._said = kept["said"]

    def ask(
        self,
        text: str,
        part: Interval | None = None,
        before: Sequence[str] = (),
        max_tokens: int = 64,
    ) -> str:
        """A question about a part of the video, or about none; `before`: a question and answer that
        went before it."""
        key = json.dumps([text, part, before])
        if key not in self._said:
            start, end = part or (None, None)
            seen = (
                []
                if part is None
                else [{"type": "video", "video": self._video, "start": start, "end": end}]
            )
            turns: list[list[dict[str, Any]]] = [
                [{"type": "text", "text": said}] for said in (*before, text)
            ]
            turns[0] = [*seen, *turns[0]]
            messages = [
                {"role": ("user", "assistant")[n % 2], "content": turn}
                for n, turn in enumerate(turns)
            ]
            answer = self._engine.stream(messages, max_tokens=max_tokens)
            self._said[key] = "".join(TextStream(answer)).strip()
            write_file(
                self._notes,
                json.dumps({"about": self._about, "said": self._said}, indent=1).encode(),
            )
        return self._said[key]


def split(duration: float, seconds: float) -> list[Interval]:
    """Parts of equal length; the last takes the rest."""
    count = max(1, round(duration / seconds))
    return [(n * seconds, duration if n == count - 1 else (n + 1) * seconds) for n in range(count)]


def choose(
    narrator: Narrator, parts: Sequence[Interval], question: str | None
) -> list[dict[str, Any]]:
    """The cut list: the parts that are highlights, or to which the answer is yes, with what they
    show."""
    descriptions = []
    for part in parts:
        descriptions.append(narrator.ask(DESCRIBE, part))
        print(f"{clock(part[0])} to {clock(part[1])}: {descriptions[-1]}", flush=True)
    if question is None:
        question = CHOOSE.format(narrator.ask(DECIDE.format("\n".join(descriptions))))
    chosen = []
    for part, description in zip(parts, descriptions, strict=True):
        answer = narrator.ask(question, part, (DESCRIBE, description), max_tokens=8)
        if answer.lower().startswith("yes"):
            chosen.append({"start": part[0], "end": part[1], "description": description})
    return chosen


def cut(source: Path, out: Path, intervals: Sequence[Interval]) -> None:
    """Copy the packets of these times, counted from the first frame, one interval after another,
    from the key frame at or before each start."""
    with (
        av.open(str(source), "r") as file,
        new_file(out) as partial,
        partial.open("wb") as target,  # whose errors are raised
        av.open(target, "w") as made,
    ):
        streams = [stream for stream in file.streams if stream.type in ("video", "audio")]
        copies = {stream.index: made.add_stream_from_template(stream) for stream in streams}
        video, length = file.streams.video[0], 0.0
        begin, unit = next(file.decode(video)).time or 0.0, video.time_base or Fraction(1)
        file.seek(0)
        keys = [packet.pts or 0 for packet in file.demux(video) if packet.is_keyframe]
        for start, end in intervals:
            first, last = None, 0.0
            key = max((key for key in keys if key * unit <= begin + start + 1e-6), default=keys[0])
            for packet in packets_from(file, streams, key):
                if packet.dts is None or packet.time_base is None:
                    continue
                stamp = packet.dts if packet.pts is None else packet.pts
                shown, decoded = float(stamp * packet.time_base), packet.dts * packet.time_base
                if packet.stream is video and decoded >= begin + end:
                    break
                first = shown if first is None else first
                if shown < first:
                    continue
                last = max(last, shown + float((packet.duration or 0) * packet.time_base))
                move = round((length - first) / packet.time_base)
                packet.dts = packet.dts + move
                packet.pts = None if packet.pts is None else packet.pts + move
                packet.stream = copies[packet.stream.index]
                made.mux(packet)
            length += last - (first or 0.0)


def packets_from(file: Any, streams: Sequence[Any], key: int) -> Iterator[Any]:
    """The packets from a key frame on. Some formats seek to any frame: then from further back."""
    video = file.streams.video[0]
    for back in (0.0, *(2.0**power for power in range(20))):
        file.seek(key - int(back / video.time_base), stream=video)
        packets = file.demux(streams)
        for packet in packets:
            if packet.stream is video and packet.pts == key:
                return chain([packet], packets)
    return iter(())


def clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", default="HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
    parser.add_argument("--out", type=Path, default=Path("highlights"))
    parser.add_argument("--seconds", type=float, default=10.0, help="Length of a part.")
    parser.add_argument(
        "--question",
        help="Asked about each part; yes chooses it. Else the model decides what counts.",
    )
    args = parser.parse_args()
    try:
        with lock(args.out / "notes.json"):
            run(args)
    except (SmolVLMError, OSError, av.FFmpegError) as error:
        raise SystemExit(f"highlights: {error}") from error


def run(args: argparse.Namespace) -> None:
    video = Video(args.video)
    parts = split(video.duration, args.seconds)
    chosen = choose(Narrator(args.model, video, args.out / "notes.json"), parts, args.question)
    write_file(args.out / "cuts.json", json.dumps(chosen, indent=1).encode())
    if not chosen:
        raise SystemExit("no part was chosen; ask another --question")
    target = args.out / f"highlights{args.video.suffix}"
    cut(args.video, target, [(one["start"], one["end"]) for one in chosen])
    print(
        f"{target}: " + ", ".join(f"{clock(one['start'])} to {clock(one['end'])}" for one in chosen)
    )


if __name__ == "__main__":
    main()
