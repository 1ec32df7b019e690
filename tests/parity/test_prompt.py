"""Our input_ids are transformers': random conversations, and the counts that were published."""

import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.random_checkpoint import make
from smolvlm_mlx.inputs.prompt import ChatTemplate
from smolvlm_mlx.inputs.tokenizer import chat_template, special_tokens
from tests.support.checkpoints import load_processor
from tests.support.messages import random_text
from tests.support.places import REAL_FILES

import pytest
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor

pytestmark = pytest.mark.parity
TILE = 28  # pixels; the layout, not the pixels, is what is compared here


def reference(name: str) -> Any:
    """The reference's processor, with the pre-tokenizer of tokenizer.json.

    transformers 5 builds a `GPT2Tokenizer`, the class that v1 checkpoints name, anew and without
    the Digits step of tokenizer.json; 4.x used the file as it is, and so do SmolVLM2's classes and
    the training of SmolLM2. They differ where more than one space or newline comes before a digit.
    """
    processor = AutoProcessor.from_pretrained(REAL_FILES / name)
    backend = processor.tokenizer.backend_tokenizer
    backend.pre_tokenizer = Tokenizer.from_file(
        str(REAL_FILES / name / "tokenizer.json")
    ).pre_tokenizer
    return processor


def random_conversation(rng: random.Random) -> list[dict[str, Any]]:
    messages = []
    for _ in range(rng.randrange(1, 5)):
        parts: list[dict[str, Any]] = []
        for _ in range(rng.randrange(1, 5)):
            if rng.random() < 0.3:
                size = (rng.randrange(1, 400), rng.randrange(1, 400))
                parts.append({"type": "image", "image": Image.new("RGB", size)})
            else:
                parts.append({"type": "text", "text": random_text(rng)})
        messages.append({"role": rng.choice(["user", "assistant", "system"]), "content": parts})
    return messages


def holds_control_text(messages: list[dict[str, Any]], added: Iterable[str]) -> bool:
    """Here we differ on purpose: a literal `<image>` in a user's text is text to us, a control
    token to the reference."""
    text = "".join(part.get("text", "") for message in messages for part in message["content"])
    return any(token in text for token in added)


@pytest.mark.parametrize(
    "name",
    [
        "SmolVLM-Instruct",
        "SmolVLM-256M-Instruct",
        "SmolVLM2-500M-Video-Instruct",
        "SmolVLM2-2.2B-Instruct",
    ],
)
def test_random_conversations(name: str) -> None:
    ours, theirs = load_processor(REAL_FILES / name), reference(name)
    # Fewer tokens a tile than the model has: the same number in both, and several times faster.
    ours.tokens_per_tile = theirs.image_seq_len = 4
    rng = random.Random(name)
    images_seen = 0
    for number in range(2500):
        messages = random_conversation(rng)
        generation = rng.random() < 0.5
        split = rng.random() < 0.7
        while holds_control_text(messages, ours.tokenizer.added):
            messages = random_conversation(rng)
        edge = TILE * rng.randrange(1, 5)
        ours.settings = replace(ours.settings, tile_size=TILE, longest_edge=edge, split=split)
        images = [
            part["image"]
            for message in messages
            for part in message["content"]
            if part["type"] == "image"
        ]
        images_seen += len(images)
        prompt = theirs.apply_chat_template(messages, add_generation_prompt=generation)
        want = theirs(
            text=prompt,
            images=[images] if images else None,
            size={"longest_edge": edge},
            max_image_size={"longest_edge": TILE},
            do_image_splitting=split,
            add_special_tokens=False,
        )["input_ids"]
        want = want[0] if isinstance(want[0], list) else want
        have = ours(messages, add_generation_prompt=generation).input_ids.tolist()
        assert have == list(want), f"conversation {number}: {prompt!r}"
    assert images_seen > 2500


def test_the_reference_loses_the_digits_step_of_v1() -> None:
    """Why `reference` puts it back. If this fails, transformers has repaired it, and `reference`
    can go."""
    theirs = AutoProcessor.from_pretrained(REAL_FILES / "SmolVLM-256M-Instruct").tokenizer
    ours = load_processor(REAL_FILES / "SmolVLM-256M-Instruct").tokenizer
    assert theirs("\n\n3", add_special_tokens=False)["input_ids"] != ours.encode_text("\n\n3")
    assert theirs("\n\nx3", add_special_tokens=False)["input_ids"] == ours.encode_text("\n\nx3")
    newer = AutoProcessor.from_pretrained(REAL_FILES / "SmolVLM2-2.2B-Instruct").tokenizer
    assert newer("\n\n3", add_special_tokens=False)["input_ids"] == ours.encode_text("\n\n3")


# ---- templates of others


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoints") / "random", layers=(1, 1))


def changed(folder: Path, out: Path, name: str, **values: Any) -> Path:
    """A copy with other values in one of its files (None: without that key)."""
    shutil.copytree(folder, out)
    raw = json.loads((out / name).read_text()) if (out / name).exists() else {}
    kept = {key: value for key, value in {**raw, **values}.items() if value is not None}
    (out / name).write_text(json.dumps(kept))
    return out


TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}{{ eos_token }}"
    "{% endfor %}{{ pad_token }}{{ unk_token }}{{ sep_token }}{{ cls_token is defined }}",
    "{% for m in messages %}\n  {% if m.role == 'assistant' %}\n{% generation %} "
    "{{ m.content[0].text }}{{ eos_token }}\n{% endgeneration %}{% else %}{{ m.role }}"
    "{% continue %}{% endif %} .\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
    "{% set x = 'a' %}{% generation %}{% set x = 'b' %}{{ x }}{% endgeneration %}{{ x }}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages | tojson(true) }}"
    "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
    "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ nothing is defined }}",
    "{{ strftime_now('%d.%m.%Y') }}",
    "{%- macro show(m) -%}{{ m.role ~ '|' }}{% for p in m.content if p.type == 'text' %}{{ p.text "
    "| trim | upper }}{% endfor %}{%- endmacro -%}{% for m in messages %}{{ show(m) }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ dict(a=1) | tojson }}{{ messages[::-1][0].role }}",
]
CONVERSATIONS: list[list[tuple[str, str]]] = [
    [("user", "Hi")],
    [("user", ' é <b> & "q"\n'), ("assistant", " yes "), ("user", "")],
    [("system", "S"), ("user", "漢字 {{ bos_token }}"), ("assistant", "a"), ("user", "{% raw %}")],
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_say_the_same(folder: Path, tmp_path: Path, source: str) -> None:
    here = changed(folder, tmp_path / "a", "chat_template.json", chat_template=source)
    theirs, ours = AutoProcessor.from_pretrained(here), load_processor(here).template
    for conversation in CONVERSATIONS:
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in conversation
        ]
        for generation in (True, False):
            want = theirs.apply_chat_template(messages, add_generation_prompt=generation)
            assert ours.render(messages, generation) == want


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bos_token": "<|im_end|>", "pad_token": None, "unk_token": None},
        {"eos_token": {"content": "<end_of_utterance>", "__type": "AddedToken", "lstrip": False}},
        {"bos_token": None, "eos_token": None},
        {"tokenizer_class": "GPT2TokenizerFast", "bos_token": None, "unk_token": None},
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None},
        {"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "<|im_start|>"},
    ],
)
@pytest.mark.parametrize("with_map", [True, False])
@pytest.mark.parametrize("with_decoder", [True, False])
def test_special_tokens_are_the_same(
    folder: Path, tmp_path: Path, config: dict[str, Any], with_map: bool, with_decoder: bool
) -> None:
    decoder = {"1": {"content": "<|im_start|>", "special": True}} if with_decoder else None
    here = changed(
        folder,
        tmp_path / "a",
        "tokenizer_config.json",
        **{**config, "added_tokens_decoder": decoder},
    )
    if with_map:
        tokens = {"eos_token": "<|im_end|>", "mask_token": {"content": "<image>"}}
        (here / "special_tokens_map.json").write_text(json.dumps(tokens))
    theirs = AutoProcessor.from_pretrained(here).tokenizer
    assert special_tokens(here) == theirs.special_tokens_map


@pytest.mark.parametrize("present", range(16))
def test_the_same_template_is_used(folder: Path, tmp_path: Path, present: int) -> None:
    """Of every set of homes but the tokenizer's, which the reference's processor does not read."""
    here = shutil.copytree(folder, tmp_path / "a")
    (here / "chat_template.json").unlink()
    if present & 1:
        changed(here, tmp_path / "b", "processor_config.json", chat_template="processor's")
        shutil.copy(tmp_path / "b" / "processor_config.json", here)
    if present & 2:
        (here / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    if present & 4:
        (here / "chat_template.jinja").write_text("jinja")
    if present & 8 and not present & 2:  # the reference refuses both
        (here / "additional_chat_templates").mkdir()
        (here / "additional_chat_templates" / "default.jinja").write_text("additional")
        (here / "additional_chat_templates" / "rag.jinja").write_text("rag")
    source = chat_template(here)
    if source is None:
        assert present & 7 == 0
        return
    theirs = AutoProcessor.from_pretrained(here)
    message = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert ChatTemplate(source).render(message, True) == theirs.apply_chat_template(message)
