"""transformers loads the bundled checkpoint, and gives the same answers, token for token."""

from random import Random

from convert.tiny.conversations import MEASURED, make_question
from smolvlm_mlx import Options, load, stream_generate
from smolvlm_mlx.checkpoint.hub import TINY
from smolvlm_mlx.inputs.settings import ImageOptions
from tests.parity.checkpoints import reference_model

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

pytestmark = pytest.mark.parity


def test_200_answers_are_the_references() -> None:
    """With its own processor: prompt, tiles and pixels are compared as well."""
    model, processor = load(TINY, "float32")
    reference, theirs = reference_model(TINY), AutoProcessor.from_pretrained(TINY, use_fast=False)
    end = processor.tokenizer.end_ids
    for number in range(200):
        question = make_question(MEASURED[number % len(MEASURED)], Random(f"parity {number}"))
        inputs = processor(question.messages, ImageOptions(split=question.split))
        parts = [part for message in question.messages for part in message["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        batch = theirs(
            text=theirs.apply_chat_template(question.messages, add_generation_prompt=True),
            images=[images] if images else None,
            do_image_splitting=question.split,
            add_special_tokens=False,
            return_tensors="pt",
        )
        assert batch["input_ids"][0].tolist() == inputs.input_ids.tolist()
        if images:
            theirs_pixels = batch["pixel_values"][0].numpy().transpose(0, 2, 3, 1)
            np.testing.assert_array_equal(theirs_pixels, inputs.pixel_values)
        with torch.no_grad():
            want = reference.generate(**batch, max_new_tokens=48, do_sample=False)[
                0, len(inputs.input_ids) :
            ].tolist()
        stream = stream_generate(model, processor, inputs, Options(max_tokens=48))
        list(stream)
        have = [token for token in stream.token_ids if token not in end]
        assert have == [token for token in want if token not in end], (
            f"question {number}: {parts[-1]['text']}"
        )
