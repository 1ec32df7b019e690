"""A small SmolVLM2 checkpoint with random weights, in the real layout and file set: for tests and
goldens.

    python -m convert.random_checkpoint OUT [--model-type smolvlm|idefics3] [--seed 0]

It answers nonsense, always the same. Weights come from NumPy's seeded generator, so that every
machine makes the same file.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smolvlm_mlx.checkpoint.reader import DTYPES
from smolvlm_mlx.checkpoint.safetensors import save_safetensors
from smolvlm_mlx.config import ModelConfig
from smolvlm_mlx.inputs.prompt import FAMILY_TEMPLATE
from smolvlm_mlx.model import SmolVLM

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = [
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
]
LATER = [*MARKERS, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
HF_PREFIXES = {
    "language_model.lm_head.": "lm_head.",
    "language_model.": "model.text_model.",
    "vision_model.": "model.vision_model.",
    "connector.": "model.connector.",
}
TILE, LONGEST_EDGE = 64, 256


def make(
    out: Path,
    model_type: str = "smolvlm",
    seed: int = 0,
    dtype: str = "float32",
    tied: bool = False,
    layers: tuple[int, int] = (2, 3),
) -> Path:
    """Write the checkpoint into the folder `out`, in Hugging Face's layout. About 1.5 million
    parameters.

    Args:
        layers: of the vision tower, and of the decoder.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    ids = tokenizer.get_vocab()
    raw = _config(model_type, tokenizer.get_vocab_size(), ids["<image>"], tied)
    for part, count in zip(("vision_config", "text_config"), layers, strict=True):
        raw[part]["num_hidden_layers"] = count
    files: dict[str, dict[str, Any]] = {
        "config.json": raw,
        "chat_template.json": {"chat_template": FAMILY_TEMPLATE},
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": 2,
        },
        "preprocessor_config.json": preprocessor_config(model_type),
        "processor_config.json": {
            "image_seq_len": 16,
            "processor_class": _class(model_type, "Processor"),
        },
        "tokenizer_config.json": tokenizer_config(model_type),
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    write_weights(
        out / "model.safetensors", random_weights(ModelConfig.from_dict(raw), seed, tied), dtype
    )
    return out


def byte_level(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: Iterable[str]
) -> Tokenizer:
    """Byte-level BPE as the family has it, with special tokens."""
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    return tokenizer


def _tokenizer() -> Tokenizer:
    """Without merges: a token a byte, with the family's special tokens around them."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*SPECIAL, *bytes_])}
    return byte_level(vocabulary, [], (*SPECIAL, *LATER))


def _config(model_type: str, vocab_size: int, image_token_id: int, tied: bool) -> dict[str, Any]:
    text = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": vocab_size - 1,
    }
    vision = {
        "model_type": f"{model_type}_vision" if model_type == "smolvlm" else "idefics3",
        "hidden_size": 128,
        "intermediate_size": 200,  # no multiple of a group, as 4304 in the 2.2B
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": 8,
    }
    return {
        "architectures": [_class(model_type, "ForConditionalGeneration")],
        "model_type": model_type,
        "image_token_id": image_token_id,
        "scale_factor": 2,
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
    }


def _class(model_type: str, kind: str) -> str:
    return {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[model_type] + kind


def preprocessor_config(model_type: str) -> dict[str, Any]:
    flags = (
        "do_convert_rgb",
        "do_image_splitting",
        "do_normalize",
        "do_pad",
        "do_rescale",
        "do_resize",
    )
    return {
        **dict.fromkeys(flags, True),
        "image_processor_type": _class(model_type, "ImageProcessor"),
        "processor_class": _class(model_type, "Processor"),
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": 1,
        "size": {"longest_edge": LONGEST_EDGE},
        "max_image_size": {"longest_edge": TILE},
        **(
            {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": TILE}}}
            if model_type == "smolvlm"
            else {}
        ),
    }


def tokenizer_config(model_type: str) -> dict[str, Any]:
    names = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "processor_class": _class(model_type, "Processor"),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 4096,
        "extra_special_tokens": names,
        **names,
    }


def random_weights(config: ModelConfig, seed: int, tied: bool) -> dict[str, mx.array]:
    """Parameters by their names in the model, in float32; always the same of a seed."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, array in sorted(SmolVLM(config, tied).named_parameters().items()):
        values = generator.standard_normal(array.shape, np.float32)
        if array.ndim == 1:  # norms and biases: not 1 and 0, so that a dropped or swapped one shows
            values = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            values *= 1.5 * np.float32(array[0].size) ** -0.5
        weights[name] = mx.array(values)
    return weights


def write_weights(path: Path, weights: Mapping[str, mx.array], dtype: str) -> None:
    """Write a model's parameters, by their names in it, in Hugging Face's layout."""
    tensors: dict[str, mx.array] = {}
    for name, array in sorted(weights.items()):
        if name.endswith("patch_embedding.weight"):
            array = array.transpose(0, 3, 1, 2)  # as PyTorch keeps it: (O, I, kH, kW)
        prefix = next(prefix for prefix in HF_PREFIXES if name.startswith(prefix))
        tensors[HF_PREFIXES[prefix] + name.removeprefix(prefix)] = array.astype(DTYPES[dtype])
    save_safetensors(path, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model-type", default="smolvlm", choices=["smolvlm", "idefics3"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(make(args.out, args.model_type, args.seed))


if __name__ == "__main__":
    main()
