"""The command line in a process of its own, and what it says when it refuses. In this process: the
fixture `call`."""

import os
import subprocess
import sys
from typing import Any

from tests.support.places import ROOT

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "120"}


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "smolvlm_mlx", *map(str, arguments)]
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **options,
    }
    return subprocess.Popen(command, cwd=ROOT, **{"env": ENVIRONMENT, **options})


def run(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """In a process of its own: exit code, stdout, stderr."""
    text = options.pop("input", None)
    if text is not None:
        options["stdin"] = subprocess.PIPE
    process = start(*arguments, **options)
    out, err = process.communicate(None if text is None else text.encode(), timeout=60)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


def check_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert (code, out) == (1, "")
    assert err.startswith("smolvlm-mlx: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert all(part in err for part in parts), err
