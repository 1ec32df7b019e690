"""Side by side with mlx-vlm, transformers and llama.cpp: the same pictures, the same shapes, the
same machine, in turn.

    python tests/bench/peers.py CHECKPOINT --peer-python PEER [--transformers-python PYTHON
    --hf-checkpoint FOLDER]
        [--llama-bench BINARY --gguf FILE] [--before CHECKOUT] [--without-openblas] [--big
        CHECKPOINT] [--jobs JOB ...] [--rounds 3]

CHECKPOINT is a float32 checkpoint in mlx-community's layout, which we and mlx-vlm load
(`smolvlm-mlx convert SOURCE OUT --dtype float32`); random weights do. PEER is the Python of an
environment with mlx-vlm and no torch, PYTHON one with transformers, torch and PyAV, FOLDER the same
checkpoint in Hugging Face's layout. Every job is a process of its own (`worker.py`), and the peers
take turns job by job. The table has medians, and beside each peer the ratio of ours to it: of the
medians, with the smallest and largest of a round. `-` is for what a peer has not, or does not
finish within --limit. Progress goes to stderr.

With --without-openblas this checkout is measured a second time as on a machine without OpenBLAS,
which is hidden from it (Linux).

CHECKOUT is another state of this project, such as its last release
(`git worktree add ../before TAG`). It is measured like a peer, and where this one is worse by more
than WORSE in every round, that is said, and the exit code is 1.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Row(NamedTuple):
    """A row of the table: the name of its number in a job's answer, and what is shown."""

    job: str
    name: str
    title: str
    unit: str


ROWS = (
    Row("text", "first_token", "cold start to first token, text", "s"),
    Row(
        "one-tile",
        "first_token_picture",
        "cold start to first token, 800 x 600 JPEG as one tile",
        "s",
    ),
    Row("preprocess", "preprocess_512x512", "preprocessing, 512 x 512 JPEG", "ms"),
    Row("preprocess", "preprocess_800x600", "preprocessing, 800 x 600 JPEG", "ms"),
    Row("preprocess", "preprocess_1600x1067", "preprocessing, 1600 x 1067 JPEG", "ms"),
    Row("preprocess", "preprocess_4000x3000", "preprocessing, 4000 x 3000 JPEG", "ms"),
    Row("vision", "vision_1", "vision, 1 tile", "s"),
    Row("picture", "vision_13", "vision, 13 tiles", "s"),
    Row("prefill", "prefill_100", "prefill, 100 tokens", "s"),
    Row("prefill", "prefill_872", "prefill, 872 tokens (a 13-tile picture and a question)", "s"),
    Row("prefill", "prefill_4000", "prefill, 4,000 tokens", "s"),
    Row("decode", "decode_100", "decode after 100 tokens", "tokens/s"),
    Row("decode", "decode_2000", "decode after 2,000 tokens", "tokens/s"),
    Row("answer", "memory", "peak memory, one 13-tile picture to its first token", "MB"),
    Row("turns", "first_turn", "chat, first turn about a 13-tile picture, to its first token", "s"),
    Row(
        "turns", "second_turn", "chat, second turn about the same picture, to its first token", "s"
    ),
    Row("video", "video", "video of 64 frames, one tile each, to its first token", "s"),
    Row("video", "video_tokens", "that video's prompt", "tokens"),
    Row(
        "folder",
        "pictures",
        "folder of 8 pictures, one tile each, answers of 16 tokens",
        "pictures/s",
    ),
    Row("convert", "convert", "conversion to 4 bits, whole process", "s"),
    Row("convert", "convert_memory", "conversion to 4 bits, peak memory", "MB"),
    Row("big", "convert", "conversion of the big checkpoint to 4 bits, whole process", "s"),
    Row("big", "convert_memory", "conversion of the big checkpoint to 4 bits, peak memory", "MB"),
)
JOBS = tuple(dict.fromkeys(row.job for row in ROWS))
CAN = {  # which jobs a peer has
    "ours": set(JOBS),
    "mlx-vlm": set(JOBS) - {"big"},
    "before": set(JOBS),
    "no OpenBLAS": set(JOBS) - {"big"},
    "transformers": set(JOBS) - {"turns", "folder", "convert", "big"},
    "llama.cpp": {"prefill", "decode"},
}

WORSE = 1.25
MORE_IS_BETTER = ("tokens/s", "pictures/s")

Values = dict[tuple[str, str], list[dict[str, float]]]  # by peer and job, of each round


def main() -> None:
    args = arguments()
    peers = ["ours", *(name for name in list(CAN)[1:] if start_of(args, name))]
    jobs = [job for job in args.jobs if job != "big" or args.big]
    values: Values = {(peer, job): [] for job in jobs for peer in peers if job in CAN[peer]}
    versions: dict[str, dict[str, str]] = {}
    for checkpoint in {args.checkpoint, args.hf_checkpoint} - {None}:
        read(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(HERE / "samples.py"), folder], check=True)
        for number in range(1, args.rounds + 1):
            for peer, job in list(values):
                packages = args.before if peer == "before" else HERE
                hidden = hide_openblas(Path(folder)) if peer == "no OpenBLAS" else {}
                found = run([*start_of(args, peer, job), folder, job], args.limit, packages, hidden)
                if isinstance(found, str):
                    del values[peer, job]
                else:
                    versions[peer] = found["versions"] | versions.get(peer, {})
                    values[peer, job].append(found["values"])
                said = found if isinstance(found, str) else found["values"]
                print(f"round {number}, {peer}, {job}: {said}", file=sys.stderr, flush=True)
    print_table(peers, jobs, values)
    print(f"\nMedians; rounds: {args.rounds}. {machine()}\n")
    for peer, packages in versions.items():
        print(f"- {peer}: {', '.join(f'{name} {version}' for name, version in packages.items())}")
    worse = [row.title for row in ROWS if row.job in jobs and is_worse(row, values)]
    if worse:
        sys.exit(f"worse than before: {'; '.join(worse)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=existing)
    parser.add_argument("--peer-python", help="of an environment with mlx-vlm")
    parser.add_argument(
        "--transformers-python", help="of an environment with transformers, torch and PyAV"
    )
    parser.add_argument(
        "--hf-checkpoint",
        type=existing,
        help="the checkpoint in Hugging Face's layout, for transformers",
    )
    parser.add_argument(
        "--before", type=existing, help="another checkout of this project, to be no worse than"
    )
    parser.add_argument(
        "--without-openblas", action="store_true", help="this project with OpenBLAS hidden, too"
    )
    parser.add_argument("--llama-bench", help="llama.cpp's llama-bench")
    parser.add_argument("--gguf", type=existing, help="the decoder as llama.cpp reads it")
    parser.add_argument(
        "--big", type=existing, help="a large float32 checkpoint, for the job `big`"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--jobs",
        "--rows",
        nargs="+",
        choices=JOBS,
        default=JOBS,
        help="what to measure; all takes hours",
    )
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds after which a job is given up"
    )
    args = parser.parse_args()
    if args.transformers_python and not args.hf_checkpoint:
        parser.error("--transformers-python needs --hf-checkpoint")
    if args.llama_bench and not args.gguf:
        parser.error("--llama-bench needs --gguf")
    if list(args.jobs) == ["big"] and not args.big:
        parser.error("--jobs big needs --big")
    return args


def existing(text: str) -> Path:
    path = Path(text).resolve()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path} is not there")
    return path


def start_of(args: argparse.Namespace, peer: str, job: str = "") -> list[str]:
    """The command that starts a peer's process, but for its last arguments, folder and job; empty
    without this peer."""
    if peer == "llama.cpp":
        return args.llama_bench and [
            sys.executable,
            str(HERE / "llama_cpp.py"),
            args.llama_bench,
            str(args.gguf),
        ]
    pythons = {
        "mlx-vlm": args.peer_python,
        "transformers": args.transformers_python,
        "before": args.before and sys.executable,
        "no OpenBLAS": sys.executable if args.without_openblas else None,
    }
    python = pythons.get(peer, sys.executable)
    checkpoint = (
        args.big
        if job == "big"
        else args.hf_checkpoint
        if peer == "transformers"
        else args.checkpoint
    )
    name = "ours" if peer in ("before", "no OpenBLAS") else peer
    # What is public may have moved.
    own = args.before / "tests" / "bench" if peer == "before" else HERE
    return [python, str(own / "worker.py"), name, str(checkpoint)] if python else []


def hide_openblas(folder: Path) -> dict[str, str]:
    """What has to be in the environment so that the loader finds this file first, which is no
    library."""
    (folder / "hidden").mkdir(exist_ok=True)
    (folder / "hidden" / "libopenblas.so.0").touch()
    return {"LD_LIBRARY_PATH": str(folder / "hidden")}


def read(checkpoint: Path) -> None:
    """Bring the weights into the page cache, for the first peer as for the last.

    In small pieces: on Linux a process begins with its parent's peak memory as its own (getrusage's
    ru_maxrss), so that this one has to stay small.
    """
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(2**20):
                pass


def run(command: list[str], limit: float, packages: Path, environment: dict[str, str]) -> Any:
    """What a job prints, `versions` and `values`; or why there is nothing, a string. `packages` are
    found before all others."""
    given = {"HF_HUB_OFFLINE": "1", "STARTED": repr(time.time()), "PYTHONPATH": str(packages)}
    environment = {**os.environ, **given, **environment}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    return (
        json.loads(done.stdout.splitlines()[-1])
        if done.returncode == 0
        else f"failed: {done.stderr[-1000:]}"
    )


def print_table(peers: list[str], jobs: list[str], values: Values) -> None:
    """A Markdown table: ours, and each peer with the ratio of ours to it."""
    print("|", "|".join(["", " ours ", *(f" {peer} | ratio " for peer in peers[1:])]), "|", sep="")
    print("|---" * (2 * len(peers)), "|", sep="")
    for row in ROWS:
        if row.job not in jobs:
            continue
        rounds = {
            peer: [found[row.name] for found in values.get((peer, row.job), [])] for peer in peers
        }
        cells = [row.title, shown(rounds["ours"], row.unit)]
        for peer in peers[1:]:
            cells += [shown(rounds[peer], row.unit), ratio(rounds["ours"], rounds[peer])]
        print("|", " | ".join(cells), "|")


def shown(rounds: list[float], unit: str) -> str:
    """The median with its unit."""
    if not rounds:
        return "-"
    median = statistics.median(rounds)
    return f"{median:,.0f} {unit}" if median >= 100 else f"{median:#.3g} {unit}"


def ratio(ours: list[float], theirs: list[float]) -> str:
    if not ours or not theirs:
        return "-"
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    middle = statistics.median(ours) / statistics.median(theirs)
    return f"{middle:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def is_worse(row: Row, values: Values) -> bool:
    """Whether ours is, than it was before, by more than WORSE in every round."""
    now, before = (
        [found[row.name] for found in values.get((peer, row.job), [])]
        for peer in ("ours", "before")
    )
    pairs = [
        (b, a) if row.unit in MORE_IS_BETTER else (a, b) for a, b in zip(now, before, strict=False)
    ]
    return bool(pairs) and all(mine > WORSE * other for mine, other in pairs)


def machine() -> str:
    """System, processor and number of its cores."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            name,
        )
    elif sys.platform == "darwin":
        name = subprocess.check_output(
            ["sysctl", "-n", "machdep.cpu.brand_string"], text=True
        ).strip()
    system = f"{platform.system()} {platform.machine()}"
    return f"{system}, {name}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
