"""What tasks and training do untold, number by number: whoever changes one changes what people
get."""

from dataclasses import asdict
from typing import Any

from smolvlm_mlx import Options
from smolvlm_mlx.generation.repetition import LONGEST_BLOCK, OTHER, SENTENCES, WORDS
from smolvlm_mlx.tasks import captions, evaluation, live
from smolvlm_mlx.tasks.captions import TASKS, Task
from smolvlm_mlx.tasks.live import Description, Judge
from smolvlm_mlx.tasks.options import CAPTIONS, CHAT, DOCUMENTS, EVALUATION, LIVE, SERVE
from smolvlm_mlx.training.loop import Settings
from smolvlm_mlx.training.plan import PRESETS, Plan

import pytest
from PIL import Image

# The presets of captions, and a task of one's own: tokens, characters, whether words are wanted.
CAPTION_TASKS = {
    "caption": (128, None, True),
    "alt": (64, 124, True),
    "keywords": (512, None, True),
    "ocr": (1024, None, True),
    "own": (256, None, False),
}


def test_a_plan() -> None:
    assert asdict(Plan()) == {
        "method": "lora",
        "parts": ("decoder",),
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.0,
        "epochs": 3.0,
        "steps": None,
        "batch_size": 1,
        "accumulate": 8,
        "learning_rate": 2e-4,
        "warmup": 0.05,
        "weight_decay": 0.01,
        "clip": 1.0,
        "max_tokens": 4096,
        "max_tiles": None,
        "checkpoint_layers": False,
        "validation_share": 0.05,
        "validate_every": 50,
        "save_every": 50,
        "seed": 0,
        "save_as": "mlx",
    }


def test_presets_of_plans() -> None:
    common = {"max_tiles": 17, "checkpoint_layers": True}
    assert {
        "8gb": {"rank": 8, "max_tokens": 1536, **common},
        "16gb": {"rank": 16, "max_tokens": 2048, **common},
    } == PRESETS


def test_settings_of_a_trainer() -> None:
    assert Settings(7) == Settings(
        steps=7,
        learning_rate=1e-4,
        warmup=10,
        weight_decay=0.01,
        clip=1.0,
        validate_every=50,
        save_every=50,
        seed=0,
    )


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (SERVE, {"max_tokens": 1024}),
        (CHAT, {"max_tokens": 1024, "repetition_penalty": 1.1, "end_loops": True}),
        (CAPTIONS, {"end_loops": True}),
        (DOCUMENTS, {"max_tokens": 8192, "end_loops": True}),
        (LIVE, {"max_tokens": 64}),
        (EVALUATION, {"max_tokens": 64, "skip_special_tokens": True}),
    ],
    ids=["serve", "chat", "captions", "documents", "live", "evaluation"],
)
def test_options_of_answers(options: Options, given: dict[str, int]) -> None:
    usual = asdict(Options())
    assert {name: v for name, v in asdict(options).items() if v != usual[name]} == given


def test_tasks_of_captions() -> None:
    tasks = {**TASKS, "own": Task("?")}
    found = {name: (t.max_tokens, t.most_characters, t.words) for name, t in tasks.items()}
    assert found == CAPTION_TASKS
    schema: Any = TASKS["keywords"].schema
    title, description, keywords = schema["properties"].values()
    assert (title["maxLength"], description["maxLength"]) == (100, 600)
    assert (keywords["items"]["maxLength"], keywords["minItems"], keywords["maxItems"]) == (
        40,
        1,
        12,
    )
    assert schema["required"] == [*schema["properties"]]
    assert schema["additionalProperties"] is False


def test_limits() -> None:
    """Of memory, and of what is done together, which decides sums' last bits."""
    assert (captions.MOST_FILES, captions.WINDOW_BYTES, captions.USUAL_TILES) == (64, 1 << 28, 17)
    assert (captions.CACHE_BYTES, live.IMAGE_CACHE_BYTES) == (1 << 30, 1 << 24)
    rules = [(rule.tokens, rule.copies) for rule in (SENTENCES, WORDS, OTHER)]
    assert (rules, LONGEST_BLOCK) == ([(96, 4), (256, 6), (1024, 6)], 256)
    assert (live.CLEAR, live.SAME, evaluation.Z) == (8, 3, 1.96)


def test_what_nobody_has_judged_yet() -> None:
    """A description whose answer is cut off, and a judge without answers."""
    description = Description(Image.new("RGB", (1, 1)), 1, 0)
    assert (description.text, description.unchanged, description.stuck) == ("", False, False)
    judge = Judge()
    assert (judge.number, judge.unchanged, judge.same, judge.is_stuck) == (0, False, 0, False)
