"""Ctrl-C at any moment of any command, once or twice: it ends with 130, or is done already; no
traceback, no abort, and nothing hangs."""

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from smolvlm_mlx.checkpoint.hub import TINY
from tests.support.cli import ENVIRONMENT
from tests.support.pictures import noise
from tests.support.places import ROOT
from tests.support.tally import Tally, tally

# What is before it is Python's own: the line tells that the program begins.
PROGRAM = """
import _signal, os, sys
_signal.signal(_signal.SIGINT, _signal.SIG_DFL)
os.write(2, b"ready\\n")
from smolvlm_mlx.__main__ import main
main()
"""
COMMANDS = {
    "generate": "generate -m {m} -i {f}/c.png -n 200 Hello",
    "chat": "chat -m {m} -n 100",
    "live": "live -m {m} -n 20 {f}/c.gif",
    "convert": "convert {m} {f}/o{n} --bits 4 --check",
    "info": "info {m} -i {f}/c.png",
    "caption": "caption {f}/c.png -m {m} -n 100 --out {f}/{n}.jsonl",
    "document": "document {f}/c.png -m {m} -n 200 --output text",
    "evaluate": "evaluate {f}/rows.jsonl -m {m} --out {f}/e{n} -n 50",
    "finetune": "finetune {f}/rows.jsonl {f}/t{n} -m {m} --steps 2 --batch-size 1",
    "bench": "bench {m} --quick --runs 1",
    "history": "history",
}
TIMES = 5  # of each
ENDED = (0, 130, -signal.SIGINT)  # the shell says 130 of the last, too


def test_commands(tmp_path: Path) -> None:
    rng = random.Random(16)
    noise(60, 40).save(tmp_path / "c.png")
    frames = [noise(60, 40, seed) for seed in range(4)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:], duration=500)
    row = '{"image": "c.png", "question": "What?", "answer": "A cat."}\n'
    (tmp_path / "rows.jsonl").write_text(row * 4)
    with tally("Ctrl-C") as count, ThreadPoolExecutor(2) as pool:
        tried = []
        for number in range(TIMES):
            for name, words in COMMANDS.items():
                filled = words.format(m=TINY, f=tmp_path, n=f"{name}{number}").split()
                times = [rng.uniform(0, 1.5), *([rng.uniform(0, 0.1)] if number % 2 else [])]
                tried.append(pool.submit(interrupt, filled, times, tmp_path, count))
        for each in tried:
            each.result()


def interrupt(words: list[str], times: list[float], home: Path, count: Tally) -> None:
    """Let a command run, and interrupt it after these times."""
    home_of = {"XDG_DATA_HOME": str(home / "data"), "XDG_CACHE_HOME": str(home / "cache")}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, **home_of},
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"Hello\n" * 9)  # for the chat
        process.stdin.flush()
        process.stderr.readline()
        for seconds in times:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
        try:
            said = process.communicate(timeout=30)[1].decode()
        except subprocess.TimeoutExpired:
            process.kill()
            count.case(False, "hung", words)
            return
    is_clear = "Traceback" not in said and "Exception ignored" not in said
    note = f"{words[0]} after {times}: {process.returncode} {said[-300:]}"
    count.case(process.returncode in ENDED and is_clear, "wrong", note)
