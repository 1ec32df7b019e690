"""Checkpoints that say what they are told to, by their weights: after each token there is one next.

The decoder's layers add nothing, so that the last token's embedding reaches the head, in which the
row of the next token is that embedding. No token of what is said may come twice.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convert import random_checkpoint
from smolvlm_mlx.generation.repetition import CELLS
from smolvlm_mlx.inputs.tokenizer import Tokenizer
from smolvlm_mlx.tasks.doctags import CLASSES, END

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

ELEMENTS = (
    "caption footnote text page_header page_footer title checkbox_selected checkbox_unselected "
    "section_header_level_1 section_header_level_2 section_header_level_3 code formula list_item "
    "unordered_list ordered_list form inline smiles chart document_index group key_value_region "
    "paragraph reference picture otsl"
).split()
INSIDE = [f"<{name}>" for name in (*sorted(CELLS), *sorted(CLASSES))]
TAGS = ["<doctag>", END, *(f"<{slash}{name}>" for name in ELEMENTS for slash in ("", "/"))]
TAGS += INSIDE[: 96 - len(TAGS)]
LETTERS = "abcdefghijklmnopqrstuvwyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # x is for what comes after a page


def _page() -> str:
    """Every tag once, in elements beside one another."""
    words = dict(zip(ELEMENTS, LETTERS, strict=False))
    words["otsl"] = "".join(INSIDE[: len(CELLS)])
    words["picture"] = "".join(tag for tag in TAGS if tag in INSIDE[len(CELLS) :])
    inside = "".join(f"<{name}>{word}</{name}>" for name, word in words.items())
    return f"<doctag>{inside}{END}"


PAGE = _page()

# Roles in place of names, no mark at the beginning, and an end of its own.
ROLES = (
    "{%- for message in messages -%}<|start_of_role|>{{ message.role }}<|end_of_role|>"
    "{%- for part in message.content -%}"
    "{{ '<image>' if part.type == 'image' else part.text }}{%- endfor -%}<|end_of_text|>\n"
    "{% endfor -%}{%- if add_generation_prompt -%}<|start_of_role|>assistant<|end_of_role|>"
    "{%- endif -%}"
)
GRANITE = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")


def make_family(out: Path, said: str, tags: Sequence[str] = (), in_circles: bool = False) -> Path:
    """With the family's template; it says `said` after `Assistant:`, once or in circles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_checkpoint, "LATER", [*tags, *random_checkpoint.LATER])
        random_checkpoint.make(out, "idefics3", layers=(1, 1))
    return speak(out, f":{said}", in_circles)


def make_granite(out: Path, said: str) -> Path:
    """As granite-docling is: 96 tags, all special; chat_template.jinja alone, with other roles; no
    `<end_of_utterance>`."""
    later = [token for token in random_checkpoint.LATER if token != "<end_of_utterance>"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_checkpoint, "SPECIAL", list(GRANITE))
        # random_checkpoint wants this end; it is renamed below.
        patch.setattr(random_checkpoint, "LATER", [*TAGS, *later, "<end_of_utterance>"])
        random_checkpoint.make(out, "idefics3", layers=(1, 1))
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        if token["content"] == "<end_of_utterance>":
            token["content"] = "<|unused_0|>"
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    (out / "chat_template.json").unlink()
    (out / "chat_template.jinja").write_text(ROLES)
    _change(out / "generation_config.json", eos_token_id=0)
    named = {"bos_token": GRANITE[0], "eos_token": GRANITE[0], "pad_token": GRANITE[0]}
    _change(out / "tokenizer_config.json", **named, unk_token=GRANITE[0], extra_special_tokens={})
    return speak(out, f"<|end_of_role|>{said}")


def speak(folder: Path, text: str, in_circles: bool = False) -> Path:
    """Make a checkpoint say `text` token by token, once it is given the first; in circles all but
    that again and again."""
    tokenizer, path = Tokenizer.from_folder(folder), folder / "model.safetensors"
    ids = tokenizer.encode_prompt(text, "\ufdd0")
    assert len(set(ids)) == len(ids), "a token comes twice"
    weights = load_file(path)
    embeddings = np.random.default_rng(0).standard_normal(
        weights["model.text_model.embed_tokens.weight"].shape, np.float32
    )
    head = np.zeros_like(embeddings)
    head[ids[1:]] = embeddings[ids[:-1]]
    head[ids[1]] += embeddings[ids[-1]] * in_circles
    for name in weights:
        if name.endswith(("text_model.layers.0.self_attn.o_proj.weight", "mlp.down_proj.weight")):
            weights[name] = np.zeros_like(weights[name])
    weights["model.text_model.norm.weight"] = np.ones(embeddings.shape[1], np.float32)
    weights |= {"model.text_model.embed_tokens.weight": embeddings, "lm_head.weight": head}
    save_file(weights, path, {"format": "pt"})
    return folder


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
