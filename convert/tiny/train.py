"""Make the tiny checkpoint: `python -m convert.tiny.train OUT`. It goes on where it was stopped.

convert/README.md has the recipe, its curve, and what the result can do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from convert.random_checkpoint import (
    LATER,
    SPECIAL,
    preprocessor_config,
    tokenizer_config,
    write_weights,
)
from convert.tiny.conversations import (
    Question,
    make_conversation,
    make_count,
    make_easy,
    make_search,
)
from convert.tiny.pretraining import pretrain
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.files import new_folder
from smolvlm_mlx.inputs.processor import Processor
from smolvlm_mlx.inputs.prompt import FAMILY_TEMPLATE
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.training.dataset import Batch, collate, make_example
from smolvlm_mlx.training.loop import Settings, Trainer
from smolvlm_mlx.training.run import draw_curve, write_curve

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 576
TILE, LONGEST_EDGE = 64, 128
TEXT = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "pad_token_id": 2,
    "eos_token_id": VOCABULARY - 1,
}
VISION = {
    "model_type": "smolvlm_vision",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": 8,
}
BATCHES, BATCH_SIZE = 4, 10  # of a step


@dataclass(frozen=True)
class Stage:
    """A run of the trainer on samples of `make`."""

    name: str
    make: Callable[[Random], Question]
    trains_tower: bool
    settings: Settings


STAGES = (
    Stage(
        "one-tile",
        make_easy,
        False,
        Settings(steps=3000, learning_rate=1.5e-3, warmup=100, weight_decay=0.02),
    ),
    Stage(
        "all",
        make_conversation,
        True,
        Settings(steps=2500, learning_rate=1e-3, warmup=100, weight_decay=0.02),
    ),
    Stage(
        "search",
        make_search,
        False,
        Settings(steps=1800, learning_rate=1e-3, warmup=50, weight_decay=0.02),
    ),
    Stage(
        "count",
        make_count,
        False,
        Settings(steps=1200, learning_rate=1e-3, warmup=50, weight_decay=0.02),
    ),
)
PORT = 15051  # and those after it, on this machine only
# One thread each; and freed memory is kept, as the same sizes are wanted again at once (glibc;
# others take no notice).
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_TOP_PAD_": str(2**28),
}


def write_files(out: Path) -> None:
    """All of SmolVLM2's file set but the weights."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer.model.save(str(out))  # vocab.json, merges.txt
    ids = tokenizer.get_vocab()
    files: dict[str, dict[str, Any]] = {
        "config.json": {
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "image_token_id": ids["<image>"],
            "pad_token_id": 2,
            "scale_factor": 2,
            "text_config": TEXT,
            "vision_config": VISION,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
        "chat_template.json": {"chat_template": FAMILY_TEMPLATE},
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": 2,
        },
        "preprocessor_config.json": {
            **preprocessor_config("smolvlm"),
            "size": {"longest_edge": LONGEST_EDGE},
        },
        "processor_config.json": {"image_seq_len": 16, "processor_class": "SmolVLMProcessor"},
        "tokenizer_config.json": tokenizer_config("smolvlm"),
        "added_tokens.json": {token: ids[token] for token in LATER},
        "special_tokens_map.json": {
            **{
                name: value
                for name, value in tokenizer_config("smolvlm").items()
                if name.endswith("_token")
            },
            "additional_special_tokens": LATER[-3:],
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE on the text of conversations, with the family's special tokens in the family's
    places.

    The texts in pictures are left out, so that they are spelled character by character.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(LATER),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_words(seed) for seed in range(3000)), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (*SPECIAL, *LATER)]
    )
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"{tokenizer.get_vocab_size()} tokens instead of {VOCABULARY}")
    return tokenizer


def _words(seed: int) -> str:
    messages = make_conversation(Random(seed)).messages
    texts = [
        part["text"]
        for message in messages
        for part in message["content"]
        if part["type"] == "text"
    ]
    return " ".join(
        word
        for word in " ".join(texts).split()
        if not word.strip(".,;").isupper() and word.isascii()
    )


def make_batches(
    processor: Processor, step: int, stage: Stage, split: str = "train"
) -> list[Batch]:
    """The batches of a step, of examples that are made for it and never again; of like lengths in
    each."""
    examples = []
    for number in range(BATCHES * BATCH_SIZE):
        rng = Random(f"{split} {stage.name} {step * BATCHES * BATCH_SIZE + number}")
        sample = stage.make(rng)
        messages = [*sample.messages, {"role": "assistant", "content": sample.answer}]
        examples.append(make_example(processor, messages, ImageOptions(split=sample.split)))
    examples.sort(key=lambda example: example.input_ids.size)
    short, medium, long, longest = (
        collate(examples[start : start + BATCH_SIZE])
        for start in range(0, len(examples), BATCH_SIZE)
    )
    # Two processes, which take turns, have about the same to do.
    return [short, medium, longest, long]


def train(out: Path) -> None:
    """Pretrain the tower, train the stages, write the weights; each of several processes does its
    share."""
    run, is_first = out.with_name(f"{out.name}-run"), mx.distributed.init().rank() == 0
    config = ModelConfig.from_dict(json.loads((out / "config.json").read_text()))
    mx.random.seed(0)
    model, processor = SmolVLM(config), Processor.from_folder(out, config)
    tower = run / "tower" / "weights.safetensors"
    if tower.exists():
        model.load_weights(str(tower), strict=False)
    else:
        measured = pretrain(model, processor.settings)
        if is_first:
            with new_folder(tower.parent) as partial:
                weights = model.named_parameters().items()
                tensors = {
                    name: array for name, array in weights if name.startswith("vision_model.")
                }
                mx.save_safetensors(str(partial / tower.name), tensors)
            print({name: f"{share:.0%}" for name, share in measured.items()}, flush=True)
    for stage in STAGES:
        train_stage(stage, model, processor, run / stage.name, is_first)
    if is_first:
        write_weights(out / "model.safetensors", model.named_parameters(), "bfloat16")


def train_stage(
    stage: Stage, model: SmolVLM, processor: Processor, folder: Path, is_first: bool
) -> None:
    """Train from where `folder` has the stage, up to its end."""
    model.unfreeze()
    if not stage.trains_tower:
        model.vision_model.freeze()
    trainer = Trainer(model, stage.settings, folder)
    trainer.resume()
    validation = [
        batch for step in range(2) for batch in make_batches(processor, step, stage, "validation")
    ]
    started, first = time.perf_counter(), trainer.step
    steps = trainer.run_in_steps(
        lambda step: make_batches(processor, step, stage), lambda: validation
    )
    for record in steps if first < stage.settings.steps else ():
        if is_first and record.step % 10 == 0:
            pace = (time.perf_counter() - started) / (record.step - first)
            validated = (
                ""
                if record.validation_loss is None
                else f"  validation {record.validation_loss:.4f}"
            )
            print(
                f"{stage.name} {record.step}  loss {record.loss:.4f}  {pace:.2f} s a "
                f"step{validated}",
                flush=True,
            )
    if is_first:
        write_curve(trainer.history, folder / "loss.csv")
        draw_curve(trainer.history, folder / "loss.png")


def start(out: Path, processes: int) -> int:
    """Run `train` in several processes, which add up their gradients (MLX's ring); their worst exit
    code."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{PORT + rank}"] for rank in range(processes)]))
        environment = {**os.environ, **ENVIRONMENT, "MLX_HOSTFILE": str(hosts)}
        command = [sys.executable, "-m", "convert.tiny.train", str(out), "--worker"]
        workers = [
            subprocess.Popen(command, env={**environment, "MLX_RANK": str(rank)})
            for rank in range(processes)
        ]
        while all(worker.poll() is None for worker in workers):
            time.sleep(1)
        if any(worker.poll() for worker in workers):  # one failed: the others would wait for it
            for worker in workers:
                worker.terminate()
        return max(abs(worker.wait()) for worker in workers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "out", type=Path, help="Folder of the checkpoint; OUT-run beside it keeps the state."
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        choices=(1, 2, 4),
        help="That share the work: one a core.",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        train(args.out)
    else:
        write_files(args.out)
        sys.exit(start(args.out, args.processes))


if __name__ == "__main__":
    main()
