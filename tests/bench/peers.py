"""Side by side with mlx-vlm: the same checkpoint, the same picture, the same machine, in turn.

    python tests/bench/peers.py CHECKPOINT --peer-python OTHER/.venv/bin/python [--rounds 3]

CHECKPOINT is a float32 checkpoint in mlx-community's layout, which both load (`smolvlm-mlx convert SOURCE OUT --dtype
float32`); random weights do. OTHER's environment has mlx-vlm and no torch. Every measurement is a process of its own; the two
take turns, and the table has the ratio of the medians, with the smallest and largest ratio of a round. On Linux both compute
with OpenBLAS.
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

QUESTION, AGAIN = "Describe this image", "What is in the background?"
TEXT = "Write a short story about a lighthouse keeper who finds a message in a bottle. " * 5
DECODED = 96

# name, unit, whether more is better
PHASES = {
    "first_token": ("process start to first token, text", "s", False),
    "preprocess": ("preprocessing, 1600 x 1067 JPEG", "ms", False),
    "vision": ("vision encode, 13 tiles", "s", False),
    "prefill": ("prefill, 13 tiles in the prompt", "s", False),
    "decode": ("decode, about 100 tokens of context", "tokens/s", True),
    "memory": ("peak memory, one 13-tile picture", "MB", False),
    "first_turn": ("chat, first turn to its first token", "s", False),
    "second_turn": ("chat, second turn about the same picture", "s", False),
}
JOBS = ("text", "picture", "answer", "turns")  # each a process of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS, help="what to measure; picture takes minutes")
    parser.add_argument("--worker", choices=["ours", "mlx-vlm"], help=argparse.SUPPRESS)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--picture", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker = Ours if args.worker == "ours" else MLXVLM
        print(json.dumps({"version": worker.version(), **measure(worker, args.job, args.checkpoint, args.picture)}))
        return
    for file in args.checkpoint.glob("*.safetensors"):
        file.read_bytes()  # into the page cache, for the first as for the last
    with tempfile.TemporaryDirectory() as folder:
        picture = draw(Path(folder) / "picture.jpg")
        pythons = {"ours": sys.executable, "mlx-vlm": str(args.peer_python)}
        rounds = [
            {name: run(python, name, args.checkpoint, picture, args.jobs) for name, python in pythons.items()}
            for _ in range(args.rounds)
        ]
    print_table(rounds)


def draw(path: Path) -> Path:
    """A photograph-like JPEG of 1600 x 1067 pixels: smooth colours with fine noise. 12 tiles and the global one."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (11, 16, 3), np.uint8)).resize((1600, 1067), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse).astype(int) + rng.integers(-12, 13, (1067, 1600, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=90)
    return path


def run(python: str, worker: str, checkpoint: Path, picture: Path, jobs: Sequence[str]) -> dict[str, Any]:
    """The jobs of one peer, each in a fresh process."""
    results: dict[str, Any] = {}
    for job in jobs:
        command = [python, __file__, str(checkpoint), "--peer-python", python]
        command += ["--worker", worker, "--job", job, "--picture", str(picture)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "STARTED": repr(time.time())}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            sys.exit(f"{worker}, {job}: {done.stderr[-3000:]}")
        results |= json.loads(done.stdout.splitlines()[-1])
    return results


def measure(worker: "type[Ours] | type[MLXVLM]", job: str, checkpoint: Path, picture: Path) -> dict[str, Any]:
    """In the worker's process: one job."""
    if sys.platform == "linux":
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    peer = worker(checkpoint, pictures=job != "text")
    if job == "text":
        pieces = peer.stream(TEXT)
        next(pieces)
        first_token, started = time.time() - float(os.environ["STARTED"]), time.perf_counter()
        for _ in range(DECODED):
            next(pieces)
        return {
            "first_token": first_token,
            "decode": DECODED / (time.perf_counter() - started),
        }
    if job == "answer":
        next(peer.stream(QUESTION, picture))
        return {
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        }
    peer.read()
    if job == "turns":
        turns = peer.turns(picture)
        return {"first_turn": timed(lambda: next(turns))[0], "second_turn": timed(lambda: next(turns))[0]}
    times = [timed(lambda: peer.preprocess(picture)) for _ in range(9)]
    inputs = times[0][1]
    vision, image_tokens = timed(lambda: peer.encode(inputs))
    prefill, _ = timed(lambda: peer.prefill(inputs, image_tokens))
    median = statistics.median(seconds for seconds, _ in times)
    return {"preprocess": median * 1e3, "vision": vision, "prefill": prefill}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


class Ours:
    """This project."""

    def __init__(self, checkpoint: Path, pictures: bool):
        from smolvlm_mlx import load

        lazy = True if pictures else "vision"  # as the command line does
        self.model, self.processor = load(checkpoint, dtype="float32", lazy=lazy)  # type: ignore[arg-type]

    @staticmethod
    def version() -> str:
        from smolvlm_mlx import __version__

        return f"smolvlm-mlx {__version__}"

    def stream(self, text: str, picture: Path | None = None) -> Iterator[Any]:
        from smolvlm_mlx.generation import Statistics, generate_tokens
        from smolvlm_mlx.inputs.prompt import user_message
        from smolvlm_mlx.sampling import Options

        inputs = self.processor([user_message(text, [picture] if picture else [])])
        yield from generate_tokens(self.model, inputs, Options(), DECODED + 2, Statistics(), keep_vision=False)

    def preprocess(self, picture: Path) -> Any:
        from smolvlm_mlx.inputs.prompt import user_message

        inputs = self.processor([user_message(QUESTION, [picture])])
        assert len(inputs.tiles) == 13  # uint8; `encode` makes floats of them, and counts it
        return inputs

    def encode(self, inputs: Any) -> Any:
        from smolvlm_mlx.features import encode_tiles

        return encode_tiles(self.model, inputs.tiles, inputs.settings)

    def read(self) -> None:
        """Read the weights, which the timed phases must not do."""
        import mlx.core as mx

        mx.eval(self.model.parameters())

    def prefill(self, inputs: Any, image_tokens: Any) -> Any:
        from smolvlm_mlx.generation import prefill

        import mlx.core as mx

        logits = prefill(self.model, inputs.input_ids, image_tokens, self.model.language_model.make_cache(1024))
        mx.eval(logits)
        return logits

    def turns(self, picture: Path) -> Iterator[Any]:
        """Yields at the first token of each of two turns, the first of which is answered to its end."""
        from smolvlm_mlx import Chat, Options

        chat = Chat(self.model, self.processor, Options(max_tokens=8))
        for question, images in ((QUESTION, [picture]), (AGAIN, [])):
            pieces = iter(chat.ask(question, images))
            yield next(pieces, None)
            list(pieces)


class MLXVLM:
    """mlx-vlm through its public functions: load, prepare_inputs, get_input_embeddings, generate_step."""

    def __init__(self, checkpoint: Path, pictures: bool):
        from mlx_vlm import load

        self.model, self.processor = load(str(checkpoint))

    def read(self) -> None:
        """They are read already."""

    @staticmethod
    def version() -> str:
        from importlib.metadata import version

        return f"mlx-vlm {version('mlx-vlm')}, mlx {version('mlx')}"

    def _prompt(self, text: str, images: int) -> str:
        from mlx_vlm.prompt_utils import apply_chat_template

        prompt: str = apply_chat_template(self.processor, self.model.config, text, num_images=images)
        return prompt

    def stream(self, text: str, picture: Path | None = None) -> Iterator[Any]:
        from mlx_vlm import stream_generate

        prompt, image = self._prompt(text, int(picture is not None)), str(picture) if picture else None
        yield from stream_generate(
            self.model, self.processor, prompt, image=image, max_tokens=DECODED + 2, temperature=0.0
        )

    def preprocess(self, picture: Path) -> Any:
        import mlx.core as mx
        from mlx_vlm.utils import prepare_inputs

        inputs = prepare_inputs(self.processor, images=[str(picture)], prompts=self._prompt(QUESTION, 1))
        mx.eval(inputs["pixel_values"])
        return inputs

    def encode(self, inputs: Any) -> Any:
        import mlx.core as mx

        rest = {key: value for key, value in inputs.items() if key not in ("input_ids", "pixel_values")}
        embeddings = self.model.get_input_embeddings(inputs["input_ids"], inputs["pixel_values"], **rest).inputs_embeds
        mx.eval(embeddings)
        return embeddings

    def prefill(self, inputs: Any, image_tokens: Any) -> Any:
        import mlx.core as mx
        from mlx_vlm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model.language_model)
        logits = self.model.language_model(inputs["input_ids"], inputs_embeds=image_tokens, cache=cache).logits[:, -1]
        mx.eval(logits)
        return logits

    def turns(self, picture: Path) -> Iterator[Any]:
        """As mlx_vlm's own chat (chat.py) asks: with its vision cache and its prompt cache."""
        from mlx_vlm import stream_generate
        from mlx_vlm.generate import PromptCacheState
        from mlx_vlm.prompt_utils import apply_chat_template
        from mlx_vlm.vision_cache import VisionFeatureCache

        vision, prompts = VisionFeatureCache(), PromptCacheState()
        history: list[dict[str, Any]] = []
        for question in (QUESTION, AGAIN):
            history.append({"role": "user", "content": [{"type": "text", "text": question}]})
            prompt = apply_chat_template(self.processor, self.model.config, history, num_images=1)
            pieces = stream_generate(
                self.model,
                self.processor,
                prompt,
                image=[str(picture)],
                max_tokens=8,
                temperature=0.0,
                vision_cache=vision,
                prompt_cache_state=prompts,
            )
            first = next(pieces)
            yield None
            text = first.text + "".join(chunk.text for chunk in pieces)
            history.append({"role": "assistant", "content": [{"type": "text", "text": text}]})


def print_table(rounds: list[dict[str, dict[str, Any]]]) -> None:
    names = list(rounds[0])
    print(f"{', '.join(rounds[0][name]['version'] for name in names)}; {len(rounds)} rounds, medians, float32")
    print(f"{'':40} {'ours':>10} {'mlx-vlm':>10}  ratio (smallest to largest of a round)")
    for phase, (title, unit, _) in PHASES.items():
        if phase not in rounds[0]["ours"]:
            continue
        ours, theirs = ([each[name][phase] for each in rounds] for name in names)
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        middle = statistics.median(ours) / statistics.median(theirs)
        medians = f"{statistics.median(ours):10.2f} {statistics.median(theirs):10.2f}"
        print(f"{title:40} {medians}  {middle:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), {unit}")


if __name__ == "__main__":
    main()
