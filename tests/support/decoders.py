"""The processes that decode for another one, as the system sees them."""

import os
import subprocess

from smolvlm_mlx.inputs.children import CODE


def decoders(parent: int) -> list[int]:
    """Those of a process, also those that ended and were not waited for."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split(None, 3) for line in listed.stdout.splitlines()]
    return [
        int(row[0])
        for row in rows
        if int(row[1]) == parent and (row[2].startswith("Z") or CODE in row[3])
    ]


def alive(pid: int) -> bool:
    """Whether a process is there, and goes on."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def descriptors() -> int:
    """How many files this process has open."""
    count = 0
    for number in range(1024):
        try:
            os.fstat(number)
        except OSError:
            continue
        count += 1
    return count
