"""Damaged and hostile checkpoints are refused in one line, or load."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support import as_metal
from tests.support.mutated import make_small
from tests.support.places import ROOT
from tests.support.tally import tally

SECONDS, MOST = 20.0, 400

# Seeds one by one in a process of their own, until the time is over; a line for each.
PROGRAM = """
import json, sys, time, warnings
from pathlib import Path
from tests.support.mutated import checkpoint
warnings.simplefilter("ignore")
end = time.monotonic() + float(sys.argv[2])
for seed in range(int(sys.argv[3])):
    if time.monotonic() > end:
        break
    print(json.dumps([seed, "begun"]), flush=True)
    try:
        found = checkpoint(seed, Path(sys.argv[1]))
    except BaseException as error:
        found = f"{type(error).__name__}: {error}"
    print(json.dumps([seed, found]), flush=True)
"""


def test_checkpoints(tiny: Path, tmp_path: Path) -> None:
    folder = make_small(tiny, tmp_path / "small")
    command = [sys.executable, "-c", PROGRAM, str(folder), str(SECONDS), str(MOST)]
    environment = as_metal.environment(ROOT)
    with tally("checkpoints, one file damaged") as count:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90
            )
            lines = done.stdout.splitlines()
        except subprocess.TimeoutExpired as error:
            lines = str(error.stdout or b"", "utf-8").splitlines()
            count.case(False, "hung", lines[-1:])
        found = dict(json.loads(line) for line in lines)
        for seed, outcome in found.items():
            count.case(outcome in ("fine", "refused"), note=(seed, outcome))
        assert {"fine", "refused"} <= set(found.values())
