"""Kills what writes, at random moments, and looks at what is there afterwards."""

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from smolvlm_mlx.checkpoint.reader import load
from smolvlm_mlx.errors import SmolVLMError
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.tasks.history import History
from tests.support import as_metal
from tests.support.pictures import noise
from tests.support.places import ROOT
from tests.support.tally import Tally
from tests.support.writing import Bench

# ---- the history

WRITER = """
import sys
from pathlib import Path
from smolvlm_mlx.tasks.history import History
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.messages import text_message, user_message
history, messages = History(Path(sys.argv[1])), []
picture = Attachment(bytes.fromhex(sys.argv[2]))
for turn in range(1000):
    messages.append(user_message(f"question {turn}", [picture]))
    messages.append(text_message("assistant", f"answer {turn}" * 50))
    history.save(sys.argv[3], messages)
    print(turn, flush=True)
"""


def kill_saving(path: Path, times: int, seed: int, count: Tally) -> None:
    """A turn that was reported is there, and the file is whole, wherever the kill came. Counts
    turns."""
    rng = random.Random(seed)
    for number in range(times):
        _kill_saving(path, f"talk {number}", rng.uniform(0, 0.3), count)


def _kill_saving(path: Path, id: str, delay: float, count: Tally) -> None:
    picture = Attachment(noise(30, 20)).data
    command = [sys.executable, "-c", WRITER, str(path), picture.hex(), id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        reported = [first, *writer.stdout.read().splitlines()]
    with closing(sqlite3.connect(path)) as database:
        whole = database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    count.case(whole, "wrong", f"{id}: the file is damaged")
    there = [message.text for message in History(path).load(id)]
    turns = range(len(there) // 2)
    said = [line for turn in turns for line in (f"question {turn}", f"answer {turn}" * 50)]
    count.case(there == said, "wrong", f"{id}: other messages")
    for turn in range(int(reported[-1]) + 1):
        count.case(turn in turns, "lost", f"{id}: turn {turn}")


# ---- a conversion

CONVERTER = """
import sys, time
from smolvlm_mlx.checkpoint import convert as conversion, safetensors
write = safetensors.write_safetensors_in_steps
def slow(*arguments):  # so that there is time to be killed in
    for step in write(*arguments):
        time.sleep(0.001)
        yield step
conversion.write_safetensors_in_steps = slow
print("ready", flush=True)
for number in range(1000):
    conversion.convert(sys.argv[1], f"{sys.argv[2]}/{number}", sys.argv[3])
"""


def kill_converting(source: Path, parent: Path, times: int, seed: int, count: Tally) -> None:
    """What is there after a kill is whole, and the source as it was. Counts folders and kills."""
    rng, before = random.Random(seed), fingerprint(source)
    for at in range(times):
        target = parent / str(at)
        target.mkdir(parents=True)
        recipe = rng.choice(["bf16", "8bit"])
        command = [sys.executable, "-W", "ignore", "-c", CONVERTER]
        environment = {**os.environ, **as_metal.environment(ROOT)}
        with subprocess.Popen(
            [*command, str(source), str(target), recipe], stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        count.case(fingerprint(source) == before, "lost", "the source has changed")
        for out in target.iterdir():
            if not out.name.startswith("."):
                try:
                    load(out)
                    count.case()
                except SmolVLMError as error:
                    count.case(False, "wrong", error)
        shutil.rmtree(target)


def fingerprint(folder: Path) -> dict[str, str]:
    """The digest of each file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# ---- fine-tuning


def kill_training(base: Path, data: Path, folder: Path, times: int, count: Tally) -> None:
    """A run that is killed again and again ends as one that is not. Counts the kills and runs."""
    whole, out = folder / "whole", folder / "killed"
    started = time.monotonic()
    _train(base, data, whole).wait()
    longest, rng, kills = time.monotonic() - started, random.Random(0), 0
    while kills < times:
        with _train(base, data, out) as process:
            time.sleep(rng.uniform(0.4, 1) * longest)
            process.send_signal(signal.SIGKILL)
        if process.returncode == -signal.SIGKILL:
            kills += 1
            count.case()
        if (out / "adapter").exists():  # finished before the kill: begin again
            count.case(same_run(out, whole), "wrong", f"after {kills} kills")
            shutil.rmtree(out)
    _train(base, data, out).wait()
    count.case(same_run(out, whole), "wrong", f"after {kills} kills")


def _train(base: Path, data: Path, out: Path) -> subprocess.Popen[bytes]:
    options = (
        "--steps 12 --batch-size 2 --accumulate 1 --max-tiles 2 "
        "--save-every 1 --validate-every 4 --dropout 0.1"
    ).split()
    resume = ["--resume"] if list(out.glob("run/state-*")) else []
    command = [sys.executable, "-m", "smolvlm_mlx", "finetune", str(data), str(out)]
    return subprocess.Popen(
        [*command, "-m", str(base), *options, *resume], cwd=ROOT, stderr=subprocess.DEVNULL
    )


def same_run(out: Path, whole: Path) -> bool:
    """Whether two runs have the same adapter and losses, to the last bit."""
    return all(
        (out / name).read_bytes() == (whole / name).read_bytes()
        for name in ("adapter/adapters.safetensors", "loss.csv")
    )


# ---- learning a quantization

LEARNER = """
import sys
from smolvlm_mlx.checkpoint.choices import Recipe
from smolvlm_mlx.training import distillation, lessons
lessons.TEXTS["text"], distillation.TILES = 12, 2
lessons.PICTURES = {"picture": 2}
distillation.learn(sys.argv[1], sys.argv[2], Recipe(3, 32, 4, 4))
"""


def kill_learning(source: Path, folder: Path, times: int, count: Tally) -> None:
    """Learning that is killed again and again ends in the same bytes as without. Counts the kills
    and results."""
    whole, out = folder / "whole", folder / "killed"
    started = time.monotonic()
    assert _learn(source, whole).wait() == 0
    longest, rng, kills = time.monotonic() - started, random.Random(0), 0
    while kills < times:
        with _learn(source, out) as process:
            time.sleep(rng.uniform(0.2, 0.7) * longest)
            process.send_signal(signal.SIGKILL)
        if process.returncode == -signal.SIGKILL:
            kills += 1
            count.case()
        if out.exists():  # finished before the kill: begin again
            count.case(same_weights(out, whole), "wrong", f"after {kills} kills")
            shutil.rmtree(out)
    if not out.exists():
        assert _learn(source, out).wait() == 0
    count.case(same_weights(out, whole), "wrong", f"after {kills} kills")


def _learn(source: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", LEARNER, str(source), str(out)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def same_weights(out: Path, whole: Path) -> bool:
    """Whether two checkpoints have the same weights, to the last bit."""
    return all(
        (out / name).read_bytes() == (whole / name).read_bytes()
        for name in ("model.safetensors", "config.json")
    )


# ---- other commands


def kill_writing(bench: Bench, times: int, seed: int, count: Tally) -> None:
    """What is there after a kill is whole, or goes on to it with the same command. Counts both."""
    rng = random.Random(seed)
    started = time.monotonic()
    with bench.start(bench.new()) as process:
        assert process.wait() == 0
    longest = time.monotonic() - started
    for number in range(times):
        out = bench.new()
        with bench.start(out) as process:
            time.sleep(rng.uniform(0.4, 1) * longest)
            process.send_signal(signal.SIGKILL)
        bench.check_left(count, out, f"kill {number}")
