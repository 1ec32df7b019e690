"""Our input_ids are transformers': random conversations, and the counts that were published."""

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

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
