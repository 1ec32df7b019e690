"""Very many damaged files, over time: goes on from where it was stopped.

    python -m tests.chaos.fuzz pictures --count 200000 --state pictures.json
    python -m tests.chaos.fuzz pdfs --count 20000 --state pdfs.json

Each case is made of its seed. Cases run in a process of their own, a batch in each, so that one
that crashes or hangs is seen, noted and left out.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import damage
from tests.support.mutated import checkpoint, small_checkpoint
from tests.support.places import ROOT

# What is tried, by name: what comes of a seed, "fine", "refused" or, of a process that decodes,
# "ended"; what else comes is raised.
CASES: dict[str, Callable[[int], str]] = {
    "checkpoints": lambda seed: checkpoint(seed, small_checkpoint()),
    "pictures": damage.picture,
    "pdfs": damage.pdf,
    "videos": damage.video,
}
BATCH = 1000
CASE_SECONDS = 300.0  # a case that says nothing for so long hangs


def run_batch(name: str, first: int, end: int) -> None:
    """In the process of the cases: a line of each, as soon as it is there."""
    for seed in range(first, end):
        try:
            told = CASES[name](seed)
        except Exception as error:  # noqa: BLE001
            told = f"raised: {type(error).__name__}: {str(error)[:200]}"
        print(json.dumps([seed, told]), flush=True)


def outcomes(name: str, first: int, end: int, seconds: float) -> list[tuple[int, str]]:
    """What came of the seeds from `first` on, up to one that crashes or hangs, or to `end`."""
    python = [sys.executable, "-W", "ignore", "-m", "tests.chaos.fuzz"]
    command = [*python, name, "--batch", f"{first}", f"{end}"]
    lines = queue.SimpleQueue[str]()
    found: list[tuple[int, str]] = []
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as work:

        def read() -> None:
            assert work.stdout is not None
            for line in work.stdout:
                lines.put(line)
            lines.put("")

        reader = threading.Thread(target=read)
        reader.start()
        try:
            while line := lines.get(timeout=seconds):
                seed, told = json.loads(line)
                found.append((seed, told))
        except queue.Empty:
            found.append((first + len(found), "hung"))
        finally:
            work.kill()
            reader.join()
    if len(found) < end - first and found[-1:] != [(first + len(found) - 1, "hung")]:
        found.append((first + len(found), f"crashed: exit code {work.returncode}"))
    return found


def fuzz(name: str, count: int, seed: int, state: Path, seconds: float) -> dict[str, Any]:
    """Try `count` seeds from `seed` on, less those that the state file has; return its state."""
    done: dict[str, Any] = {"name": name, "seed": seed, "next": seed, "counts": {}, "notes": []}
    if state.exists():
        done = json.loads(state.read_text())
        if (done["name"], done["seed"]) != (name, seed):
            sys.exit(f"{state}: of {done['name']} from seed {done['seed']}; choose another --state")
    counts = Counter[str](done["counts"])
    while done["next"] < seed + count:
        first = done["next"]
        for at, told in outcomes(name, first, min(first + BATCH, seed + count), seconds):
            counts[told.partition(":")[0]] += 1
            if told not in (damage.FINE, damage.REFUSED, damage.ENDED):
                done["notes"].append([at, told])
            done["next"] = at + 1
        done["counts"] = dict(counts)
        beside = state.with_suffix(".new")
        beside.write_text(json.dumps(done))
        os.replace(beside, state)
        now = time.strftime("%H:%M:%S")
        print(f"{now} {name}: {done['next'] - seed} of {count}, {done['counts']}", flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description="Try damaged files, over time.")
    parser.add_argument("name", choices=CASES)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=CASE_SECONDS)
    parser.add_argument("--batch", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.batch:
        return run_batch(given.name, *given.batch)
    state = given.state or Path(f"fuzz-{given.name}.json")
    done = fuzz(given.name, given.count, given.seed, state, given.seconds)
    for seed, told in done["notes"]:
        print(f"seed {seed}: {told}")
    sys.exit(bool(done["notes"]))


if __name__ == "__main__":
    main()
