"""One job of one peer, in this process: prints versions and numbers as one line of JSON. peers.py
starts it.

    python tests/bench/worker.py PEER CHECKPOINT FOLDER JOB         # FOLDER: what samples.py made

Times are in seconds or, of preprocessing, milliseconds; memory in MB of 1e6 bytes. On Linux MLX
computes with OpenBLAS where it was loaded first, as we do, and as is done here for mlx-vlm; torch
brings a BLAS of its own.
"""

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Protocol

QUESTION, AGAIN = "Describe this image", "What is in the background?"
TEXT = "Write a short story about a lighthouse keeper who finds a message in a bottle. " * 5
SIZES = ("512x512", "800x600", "1600x1067", "4000x3000")
PREFILLS, CONTEXTS = (100, 872, 4000), (100, 2000)  # tokens
WARM_UP, STEPS = 4, 64  # tokens before those that are timed, and those
ANSWER = 16  # tokens about each picture of a folder
OPENBLAS = "libopenblas.so.0"

CLASSES = {
    "ours": ("ours", "Ours"),
    "mlx-vlm": ("mlx_vlm_peer", "MLXVLM"),
    "transformers": ("transformers_peer", "Transformers"),
}
PACKAGES = {
    "ours": ("smolvlm-mlx", "mlx", "numpy", "Pillow"),
    "mlx-vlm": ("mlx-vlm", "mlx", "transformers", "numpy", "Pillow"),
    "transformers": ("transformers", "torch", "numpy", "Pillow"),
}
CONVERTERS = {  # decoder in 4 bits, the rest in bfloat16
    "ours": "smolvlm_mlx convert SOURCE OUT --bits 4 --dtype bfloat16",
    "mlx-vlm": "mlx_vlm convert --hf-path SOURCE --mlx-path OUT -q --q-bits 4 --dtype bfloat16",
}


class Peer(Protocol):
    """What a peer's class has for the jobs it can do (`CAN` in peers.py). Every call ends with
    finished work."""

    def __init__(self, checkpoint: Path, pictures: bool):
        """Load as the peer's own command line does, for a question with or without pictures."""

    def read(self) -> None:
        """Read the weights, where loading has not: the timed jobs must not do it."""

    def first_token(self, text: str, pictures: Sequence[Path], one_tile: bool) -> None:
        """From a question to the first token of its answer. `one_tile`: pictures are not split."""

    def preprocess(self, picture: Path, text: str, one_tile: bool) -> Any:
        """From a file and a question to what the model takes."""

    def encode(self, inputs: Any) -> int:
        """From what `preprocess` made to image tokens; how many tiles there were."""

    def tokens(self, ids: list[int], count: int) -> Iterator[Any]:
        """Prefill with token ids, and generate `count` tokens one by one, greedily."""

    def turns(self, picture: Path, questions: Sequence[str], count: int) -> Iterator[None]:
        """Yields at the first token of each turn's answer, of `count` tokens; only the first turn
        has the picture."""

    def video(self, path: Path, text: str) -> int:
        """From a file of 64 frames, which are not split, and a question to the first token; tokens
        of the prompt."""

    def folder(self, pictures: Sequence[Path], text: str, count: int) -> None:
        """Answers of `count` tokens about each picture, which is not split."""


def main() -> None:
    name, checkpoint, folder, job = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    versions = {package: version(package) for package in PACKAGES[name]}
    # Before anything large is imported: its memory would count, see `read` in peers.py.
    if job in ("convert", "big"):
        values = convert(CONVERTERS[name], checkpoint)
    else:
        if name != "transformers" and sys.platform == "linux":
            versions["OpenBLAS"] = load_openblas()
        module, kind = CLASSES[name]
        peer = getattr(import_module(module), kind)(checkpoint, pictures=job != "text")
        if job not in COLD:
            peer.read()
        values = TIMED[job](peer, folder)
    print(json.dumps({"versions": versions, "values": values}))


def load_openblas() -> str:
    """For what is loaded after it; returns its version, or that it is not there."""
    try:
        library = ctypes.CDLL(OPENBLAS, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return "none"
    library.openblas_get_config.restype = ctypes.c_char_p
    return str(library.openblas_get_config().decode().split()[1])


def convert(converter: str, source: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        places = {"SOURCE": str(source), "OUT": str(Path(folder) / "out")}
        command = [sys.executable, "-m", *(places.get(word, word) for word in converter.split())]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        seconds = time.perf_counter() - started
    return {"convert": seconds, "convert_memory": peak_memory(resource.RUSAGE_CHILDREN)}


def text(peer: Peer, folder: Path) -> dict[str, float]:
    peer.first_token(TEXT, [], False)
    return {"first_token": time.time() - float(os.environ["STARTED"])}


def one_tile(peer: Peer, folder: Path) -> dict[str, float]:
    peer.first_token(QUESTION, [folder / "800x600.jpg"], True)
    return {"first_token_picture": time.time() - float(os.environ["STARTED"])}


def answer(peer: Peer, folder: Path) -> dict[str, float]:
    peer.first_token(QUESTION, [folder / "1600x1067.jpg"], False)
    return {"memory": peak_memory(resource.RUSAGE_SELF)}


def preprocess(peer: Peer, folder: Path) -> dict[str, float]:
    values = {}
    for size in SIZES:
        times = [
            timed(peer.preprocess, folder / f"{size}.jpg", QUESTION, False)[0] for _ in range(6)
        ]
        values[f"preprocess_{size}"] = statistics.median(times[1:]) * 1e3
    return values


def vision(peer: Peer, folder: Path) -> dict[str, float]:
    inputs = peer.preprocess(folder / "800x600.jpg", QUESTION, True)
    results = [timed(peer.encode, inputs) for _ in range(4)]
    assert results[0][1] == 1
    return {"vision_1": statistics.median(seconds for seconds, _ in results[1:])}


def picture(peer: Peer, folder: Path) -> dict[str, float]:
    seconds, tiles = timed(peer.encode, peer.preprocess(folder / "1600x1067.jpg", QUESTION, False))
    assert tiles == 13
    return {"vision_13": seconds}


def prefill(peer: Peer, folder: Path) -> dict[str, float]:
    list(peer.tokens(some_ids(100), 1))
    values = {}
    for length in PREFILLS:
        times = [
            timed(list, peer.tokens(some_ids(length), 1))[0]
            for _ in range(3 if length < 1000 else 1)
        ]
        values[f"prefill_{length}"] = statistics.median(times)
    return values


def decode(peer: Peer, folder: Path) -> dict[str, float]:
    values = {}
    for context in CONTEXTS:
        tokens = peer.tokens(some_ids(context), WARM_UP + STEPS + 2)
        deque(islice(tokens, WARM_UP), 0)
        seconds, _ = timed(deque, islice(tokens, STEPS), 0)
        values[f"decode_{context}"] = STEPS / seconds
    return values


def turns(peer: Peer, folder: Path) -> dict[str, float]:
    asked = peer.turns(folder / "1600x1067.jpg", (QUESTION, AGAIN), 8)
    return {"first_turn": timed(next, asked)[0], "second_turn": timed(next, asked)[0]}


def video(peer: Peer, folder: Path) -> dict[str, float]:
    seconds, tokens = timed(peer.video, folder / "video.mp4", QUESTION)
    return {"video": seconds, "video_tokens": tokens}


def many(peer: Peer, folder: Path) -> dict[str, float]:
    pictures = sorted((folder / "many").iterdir())
    peer.folder(pictures[:1], QUESTION, ANSWER)  # imports what it needs
    seconds, _ = timed(peer.folder, pictures, QUESTION, ANSWER)
    return {"pictures": len(pictures) / seconds}


COLD = ("text", "one-tile", "answer")  # which include the start of the process, or its memory
TIMED: dict[str, Callable[[Peer, Path], dict[str, float]]] = {
    "text": text,
    "one-tile": one_tile,
    "answer": answer,
    "preprocess": preprocess,
    "vision": vision,
    "picture": picture,
    "prefill": prefill,
    "decode": decode,
    "turns": turns,
    "video": video,
    "folder": many,
}


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds and result."""
    started = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - started, result


def some_ids(count: int) -> list[int]:
    """Token ids of text, in every vocabulary of the family."""
    return Random(0).choices(range(10, 200), k=count)


def peak_memory(who: int) -> float:
    """MB of 1e6 bytes: getrusage counts bytes on macOS, KiB on Linux."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    main()
