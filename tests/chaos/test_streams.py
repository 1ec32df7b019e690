"""Streams that are closed, full or left by their reader, under each command: no traceback, no
"Exception ignored"; an error is one line on stderr, and never on stdout; what cannot be said is an
exit code."""

import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from smolvlm_mlx.checkpoint.hub import TINY
from tests.support.cli import ENVIRONMENT
from tests.support.pictures import noise
from tests.support.places import ROOT
from tests.support.tally import Tally, tally

# Each command, its exit code, and whether it has something to say on stdout.
COMMANDS = {
    "generate -m {m} -n 2 Hello": (0, True),
    "generate -m {m} -n 2 Hello --json": (0, True),
    "generate -m {m} -i {f}/none.png Hello": (1, False),
    "chat -m {m} -n 2 --no-history": (0, True),
    "live -m {m} -n 2 {f}/c.gif --count 1": (0, True),
    "convert {m} {o}": (0, True),
    "info": (0, True),
    "caption {f}/c.png -m {m} -n 2 --out {o}.jsonl": (0, False),
    "document {f}/c.png -m {m} -n 2 --output text": (0, True),
    "evaluate {f}/rows.jsonl -m {m} --out {o} -n 2": (0, True),
    "finetune {f}/rows.jsonl {o} -m {m} --steps 1 --batch-size 1 --estimate": (0, False),
    "history": (0, False),
    "--help": (0, True),
    "nothing": (2, False),
}
STREAMS = (">&-", "2>&-", ">/dev/full", "| true")


def test_commands(tmp_path: Path) -> None:
    noise(60, 40).save(tmp_path / "c.png")
    noise(60, 40).save(tmp_path / "c.gif", save_all=True, append_images=[noise(60, 40, 1)])
    (tmp_path / "rows.jsonl").write_text('{"image": "c.png", "question": "q", "answer": "a"}\n' * 3)
    (tmp_path / "out").mkdir()
    streams = [each for each in STREAMS if "full" not in each or Path("/dev/full").exists()]
    with tally("closed and full streams") as count, ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda case: run(case[0], case[1], tmp_path, count), product(COMMANDS, streams)
            )
        )


def run(line: str, stream: str, folder: Path, count: Tally) -> None:
    """Run a command with its streams so, which ends as it always does, or with 1 where what it says
    on stdout is lost."""
    right, says = COMMANDS[line]
    out = folder / "out" / secrets.token_hex(8)
    words = line.format(m=TINY, f=folder, o=out)
    shell = f'"$0" -W ignore -m smolvlm_mlx {words} {stream}; exit ${{PIPESTATUS[0]}}'
    home = {"XDG_DATA_HOME": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache")}
    try:
        done = subprocess.run(
            ["bash", "-c", shell, sys.executable],
            input=b"Hello\n",
            cwd=ROOT,
            env={**ENVIRONMENT, **home},
            capture_output=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        count.case(False, "hung", f"{line} {stream}")
        return
    told = done.stderr.decode()
    is_lost = says and stream.startswith(">")
    codes = {1 if is_lost else right, *([1] if stream == "| true" else [])}
    is_clear = (
        "Traceback" not in told and "ignored" not in told and b"smolvlm-mlx:" not in done.stdout
    )
    if is_lost:
        is_clear &= told.count("stdout cannot be written") == 1
    note = f"{line} {stream}: {done.returncode}, not {codes}; {told[-300:]}"
    count.case(done.returncode in codes and is_clear, "wrong", note)
