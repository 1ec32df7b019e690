"""Every option is obeyed, or refused by name, alone, in a stream, a conversation or a batch, and
where several answers are made at once."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from smolvlm_mlx import Chat, Options, generate, load, stream_generate
from smolvlm_mlx.cli.main import app
from smolvlm_mlx.cli.options import as_command, flag_of
from smolvlm_mlx.errors import GenerationError, SmolVLMError
from smolvlm_mlx.events import End, Event, Text
from smolvlm_mlx.generation.engine import Engine
from smolvlm_mlx.generation.scheduler import Job, Scheduler
from smolvlm_mlx.inputs.messages import user_message
from smolvlm_mlx.inputs.processor import Inputs, Processor
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.model import SmolVLM
from smolvlm_mlx.options import option, options_of
from smolvlm_mlx.training.plan import Plan

import pytest
import typer
from PIL import Image

Road = Callable[[Inputs, Options], list[str]]  # answers to one prompt, once or several times

SHORT = Options(max_tokens=24)
WARM = replace(SHORT, temperature=1.5, seed=1)
# By name: options, and others that differ in this one and give another answer.
CHANGES: dict[str, tuple[Options, Any]] = {
    "max_tokens": (SHORT, 12),
    "temperature": (replace(SHORT, seed=1), 1.5),
    "top_p": (WARM, 0.3),
    "top_k": (WARM, 2),
    "min_p": (WARM, 0.9),
    "repetition_penalty": (SHORT, 3.0),
    "repetition_context": (replace(SHORT, repetition_penalty=3.0), 2),
    "presence_penalty": (SHORT, 2.0),
    "frequency_penalty": (SHORT, 2.0),
    "seed": (WARM, 2),
    "stop": (SHORT, ("^6",)),
    "kv_bits": (SHORT, 4),
    "skip_special_tokens": (SHORT, False),
}
REFUSED = {"scheduler": {"kv_bits"}}
PHOTO = Image.radial_gradient("L").resize((400, 300)).convert("RGB")  # 4 x 3 tiles and the whole
IMAGE_CHANGES: dict[str, Any] = {"longest_edge": 128, "split": False, "max_tiles": 3}
ROADS = ["stream", "batch", "scheduler"]


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> tuple[SmolVLM, Processor]:
    model, processor = load(tiny, "float32")
    processor.tokenizer.end_ids = frozenset()  # answers go on, and so have time to differ
    return model, processor


@pytest.fixture(scope="module")
def question(loaded: tuple[SmolVLM, Processor]) -> Inputs:
    return loaded[1]([{"role": "user", "content": "Which colors are there?"}])


@pytest.fixture(scope="module")
def roads(loaded: tuple[SmolVLM, Processor]) -> Iterator[dict[str, Road]]:
    engine = Engine(*loaded, conversations=4)
    scheduler = Scheduler(lambda: engine)
    scheduler.start()

    def served(inputs: Inputs, options: Options) -> list[str]:
        texts, ends = ["", ""], [threading.Event(), threading.Event()]
        errors: list[SmolVLMError] = []

        def job(number: int) -> Job:
            def put(event: Event | SmolVLMError) -> None:
                texts[number] += event.piece if isinstance(event, Text) else ""
                errors.extend([event] if isinstance(event, SmolVLMError) else [])
                if isinstance(event, End | SmolVLMError):
                    ends[number].set()

            return Job(inputs, options, put)

        for number in range(2):
            scheduler.submit(job(number))
        assert all(end.wait(60) for end in ends)
        assert not errors
        return texts

    yield {
        "stream": lambda inputs, options: ["".join(stream_generate(*loaded, inputs, options))],
        "batch": lambda inputs, options: [
            text for text, _ in Engine(*loaded).batch([inputs] * 3, options)
        ],
        "scheduler": served,
    }
    scheduler.close()


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", [field.name for field in fields(Options)])
def test_an_option_says_the_same_everywhere(
    name: str,
    road: str,
    roads: dict[str, Road],
    loaded: tuple[SmolVLM, Processor],
    question: Inputs,
) -> None:
    before, value = CHANGES[name]
    options = replace(before, **{name: value})
    want = generate(*loaded, question, options)
    assert want != generate(*loaded, question, before)
    if name in REFUSED.get(road, ()):
        with pytest.raises(GenerationError, match=name):
            roads[road](question, options)
    else:
        assert set(roads[road](question, options)) == {want}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", [option.name for option in options_of(ImageOptions)])
def test_an_option_of_pictures_says_the_same_everywhere(
    name: str, road: str, roads: dict[str, Road], loaded: tuple[SmolVLM, Processor]
) -> None:
    changed = ImageOptions(**{name: IMAGE_CHANGES[name]})
    want = generate(*loaded, "What?", SHORT, images=[PHOTO], image_options=changed)
    assert want != generate(*loaded, "What?", SHORT, images=[PHOTO])
    inputs = loaded[1]([user_message("What?", [PHOTO])], changed)
    assert set(roads[road](inputs, SHORT)) == {want}


@pytest.mark.parametrize("name", [field.name for field in fields(Options)])
def test_a_conversation_obeys_every_option(name: str, loaded: tuple[SmolVLM, Processor]) -> None:
    before, value = CHANGES[name]
    options = replace(before, **{name: value})
    want = generate(*loaded, "Which colors are there?", options)
    chat = Chat(*loaded, options)
    assert "".join(chat.ask("Which colors are there?")) == want
    assert "".join(chat.retry(before)) != want


@pytest.mark.parametrize("name", [option.name for option in options_of(ImageOptions)])
def test_a_conversation_obeys_every_option_of_pictures(
    name: str, loaded: tuple[SmolVLM, Processor]
) -> None:
    changed = ImageOptions(**{name: IMAGE_CHANGES[name]})
    want = generate(*loaded, "What?", SHORT, images=[PHOTO], image_options=changed)
    assert "".join(Chat(*loaded, SHORT, image_options=changed).ask("What?", [PHOTO])) == want


@pytest.mark.parametrize("road", ROADS)
def test_more_than_there_are_is_all(
    road: str, roads: dict[str, Road], loaded: tuple[SmolVLM, Processor], question: Inputs
) -> None:
    want = generate(*loaded, question, WARM)
    assert generate(*loaded, question, replace(WARM, top_k=10**30)) == want
    assert set(roads[road](question, replace(WARM, top_k=10**30))) == {want}


# ---- the command line


def flags(command: str) -> dict[str, Any]:
    """Flags of a command, each with its parameter."""
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {
        flag: parameter
        for parameter in parameters
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


LEFT_OUT = {
    "chat": {"skip_special_tokens"},
    "document": {"skip_special_tokens"},
    "live": {"longest_edge", "max_tiles"},
}


@pytest.mark.parametrize("command", ["generate", "chat", "live", "caption", "document", "evaluate"])
def test_a_command_has_every_option_but_those_it_cannot_honour(command: str) -> None:
    known = flags(command)
    for each in (*options_of(Options), *options_of(ImageOptions)):
        if each.name in LEFT_OUT.get(command, ()):
            assert flag_of(each) not in known
        else:
            assert known[flag_of(each)].help == each.help
            assert {each.short} <= {"", *known[flag_of(each)].opts}


def test_finetune_has_every_option_of_a_plan() -> None:
    known = flags("finetune")
    for each in options_of(Plan):
        assert known[flag_of(each)].help == each.help


@dataclass(frozen=True)
class More(Options):
    tone: Literal["dry", "warm"] = option("dry", "How it sounds.", short="-w")
    words: tuple[str, ...] = option(("a",), "Of a list.")
    loud: bool | None = option(None, "Shout.")


def test_a_new_option_takes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The flag with its help, type and default is made of the field."""
    seen: list[More] = []
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @as_command
    def ask(more: More = More(temperature=1.0)) -> None:
        seen.append(more)

    for arguments in (
        [],
        ["-w", "warm", "--words", "b", "--words", "c", "--no-loud", "--top-k", "2"],
    ):
        app(arguments, standalone_mode=False)
    changed = More(temperature=1.0, top_k=2, tone="warm", words=("b", "c"), loud=False)
    assert seen == [More(temperature=1.0), changed]
    with pytest.raises(SystemExit):
        app(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "-w, --tone [dry|warm] How it sounds. [default: dry]" in shown
    assert "--loud / --no-loud Shout." in shown
