"""The six published checkpoints, by their numbers: configs and tokenizers that stand in for their
files."""

import json
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

from convert.random_checkpoint import MARKERS, byte_level, preprocessor_config, tokenizer_config
from smolvlm_mlx.inputs.prompt import FAMILY_TEMPLATE
from tests.support.places import REAL_FILES

from tokenizers import Tokenizer, pre_tokenizers

# What the published files hold of the keys that shape a model; all else in them is left out, as the
# files leave out much.
TEXT_256M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000,
    "vocab_size": 49280,
}
TEXT_500M = {
    **TEXT_256M,
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
} | {
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
}
TEXT_22B = {  # no head counts
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 130000,
    "vocab_size": 49280,
}
VISION_VIDEO = {"hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16}
VISION_22B = {
    "image_size": 384,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
SMALL_IDS = {"image_token_id": 49190, "scale_factor": 4}
FAMILY: dict[str, dict[str, Any]] = {
    "SmolVLM-256M-Instruct": {
        "model_type": "idefics3",
        **SMALL_IDS,
        "text_config": TEXT_256M,
        "vision_config": {**VISION_VIDEO, "intermediate_size": 3072, "num_hidden_layers": 12},
    },
    "SmolVLM-500M-Instruct": {
        "model_type": "idefics3",
        **SMALL_IDS,
        "text_config": TEXT_500M,
        "vision_config": {**VISION_VIDEO, "intermediate_size": 3072, "num_hidden_layers": 12},
    },
    "SmolVLM-Instruct": {
        "model_type": "idefics3",
        "image_token_id": 49153,
        "scale_factor": 3,
        "text_config": {
            **TEXT_22B,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 49155,
        }
        | {"rope_theta": 273768.0, "rope_scaling": None, "max_position_embeddings": 16384},
        "vision_config": {**VISION_22B, "hidden_size": 1152, "num_attention_heads": 16},
    },
    "SmolVLM2-2.2B-Instruct": {
        "model_type": "smolvlm",
        "image_token_id": 49190,
        "scale_factor": 3,
        "text_config": TEXT_22B,
        "vision_config": VISION_22B,
    },
    "SmolVLM2-500M-Video-Instruct": {
        "model_type": "smolvlm",
        **SMALL_IDS,
        "text_config": TEXT_500M,
        "vision_config": VISION_VIDEO,
    },
    "SmolVLM2-256M-Video-Instruct": {
        "model_type": "smolvlm",
        **SMALL_IDS,
        "text_config": TEXT_256M,
        "vision_config": VISION_VIDEO,
    },
}
# The tokenizers: the first family's; SmolVLM2's, which the small ones of the first have too.
FIRST, SECOND = "SmolVLM-Instruct", "SmolVLM2-2.2B-Instruct"
# Where tests find them: made by `make_tokenizer_folder`, and, beside the checkout, the real files.
SOURCES = ("stand-in", "published") if REAL_FILES.is_dir() else ("stand-in",)

_AT_0 = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"),
    *("<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>"),
    *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>"),
    *("<jupyter_script>", "<empty_output>"),
)
_FAKE, _IMAGE, _END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
_AT_49152 = {
    FIRST: (_FAKE, _IMAGE, _END),
    SECOND: (
        *MARKERS,
        _FAKE,
        _IMAGE,
        *(f"<|reserved_special_token_{n}|>" for n in range(88)),
        _END,
    ),
}
# Words of a prompt that are one token each, or two, as in the published vocabulary.
_WORDS = (
    "Ġthis",
    "Ġimage",
    "User",
    "Ass",
    "istant",
    "Describe",
    "row",
    "col",
    "global",
    "img",
    "ĊĊ",
)


def make_tokenizer_folder(out: Path, name: str) -> Path:
    """Write config, tokenizer and preprocessor of FIRST or SECOND into the folder `out`: added
    tokens have their ids, the vocabulary its size, and the words of a prompt their tokens."""
    out.mkdir(parents=True)
    raw = FAMILY[name]
    tile = raw["vision_config"]["image_size"]
    files: dict[str, dict[str, Any]] = {
        "config.json": raw,
        "chat_template.json": {"chat_template": FAMILY_TEMPLATE},
        "generation_config.json": {"eos_token_id": 49151 + len(_AT_49152[name])},
        "preprocessor_config.json": preprocessor_config(raw["model_type"])
        | {"size": {"longest_edge": 4 * tile}, "max_image_size": {"longest_edge": tile}},
        "tokenizer_config.json": tokenizer_config(raw["model_type"]),
    }
    for file, content in files.items():
        (out / file).write_text(json.dumps(content))
    _tokenizer(_AT_49152[name]).save(str(out / "tokenizer.json"))
    return out


def _tokenizer(later: Sequence[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(word[:n], word[n]) for word in _WORDS for n in range(1, len(word))]
    # The rest are pairs of bytes, which no merge makes: parts of characters, when they are decoded.
    tokens = [*_AT_0, *alphabet, *map("".join, merges), *map("".join, product(alphabet, alphabet))]
    vocabulary = {token: id for id, token in enumerate(islice(dict.fromkeys(tokens), 49152))}
    return byte_level(vocabulary, merges, (*_AT_0, *later))
