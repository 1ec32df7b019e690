"""Every option is obeyed, or refused by name, alone, in a stream, a conversation or a batch, and
where several answers are made at once."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
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
from smolvlm_mlx.inputs.processor import Inputs
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.options import completed, option, options_of
from smolvlm_mlx.training.plan import Plan
from tests.support.changes import ANSWERS, CHANGES, PICTURES, UNSEEN
from tests.support.checkpoints import Loaded

import pytest
import typer
from PIL import Image

Road = Callable[[Inputs, Options], list[str]]  # answers to one prompt, once or several times

SHORT = Options(max_tokens=24)
WARM = replace(SHORT, temperature=1.5, seed=1)
REFUSED = {"scheduler": {"kv_bits"}}
PHOTO = Image.radial_gradient("L").resize((400, 300)).convert("RGB")  # 4 x 3 tiles and the whole
QUESTION = "Which colors are there?"


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Loaded:
    model, processor = load(tiny, "float32")
    processor.tokenizer.end_ids = frozenset()  # answers go on, and so have time to differ
    return model, processor


@pytest.fixture(scope="module")
def question(loaded: Loaded) -> Inputs:
    return loaded[1]([{"role": "user", "content": QUESTION}])


@pytest.fixture(scope="module")
def scheduler(loaded: Loaded) -> Iterator[Scheduler]:
    scheduler = Scheduler(lambda: Engine(*loaded, conversations=4))
    scheduler.start()
    yield scheduler
    scheduler.close()


def together(scheduler: Scheduler, inputs: Inputs, several: Sequence[Options]) -> list[str]:
    """The answers to one prompt, each with other options, that are made at once."""
    texts, errors = [""] * len(several), list[SmolVLMError]()
    ends = [threading.Event() for _ in several]

    def job(number: int) -> Job:
        def put(event: Event | SmolVLMError) -> None:
            texts[number] += event.piece if isinstance(event, Text) else ""
            errors.extend([event] if isinstance(event, SmolVLMError) else [])
            if isinstance(event, End | SmolVLMError):
                ends[number].set()

        return Job(inputs, several[number], put)

    for number in range(len(several)):
        scheduler.submit(job(number))
    assert all(end.wait(60) for end in ends)
    assert not errors
    return texts


@pytest.fixture(scope="module")
def roads(loaded: Loaded, scheduler: Scheduler) -> dict[str, Road]:
    return {
        "stream": lambda inputs, options: ["".join(stream_generate(*loaded, inputs, options))],
        "batch": lambda inputs, options: [
            text for text, _ in Engine(*loaded).batch([inputs] * 3, options)
        ],
        "scheduler": lambda inputs, options: together(scheduler, inputs, [options] * 2),
    }


@pytest.fixture(scope="module")
def alone(loaded: Loaded, question: Inputs) -> Callable[[Options], str]:
    """The answer to the question by itself."""
    return cache(lambda options: generate(*loaded, question, options))


@pytest.fixture(scope="module")
def seen(loaded: Loaded) -> Callable[[ImageOptions], str]:
    """The answer about the photo, as it is cut."""
    return cache(lambda cut: generate(*loaded, "What?", SHORT, images=PHOTO, image_options=cut))


def changed(name: str) -> tuple[Options, Options]:
    """Options without and with a change of this one."""
    beside, value = CHANGES[name]
    before = replace(SHORT, **beside)
    return before, replace(before, **{name: value})


@pytest.mark.parametrize("name", [o.name for o in ANSWERS if o.name not in UNSEEN])
def test_an_option_says_the_same_everywhere(
    name: str,
    roads: dict[str, Road],
    loaded: Loaded,
    question: Inputs,
    alone: Callable[[Options], str],
) -> None:
    before, options = changed(name)
    want = alone(options)
    assert want != alone(before)
    for road, answers in roads.items():
        if name in REFUSED.get(road, ()):
            with pytest.raises(GenerationError, match=name):
                answers(question, options)
        else:
            assert set(answers(question, options)) == {want}, road
    chat = Chat(*loaded, options)
    assert "".join(chat.ask(QUESTION)) == want
    assert "".join(chat.retry(before)) != want


def test_answers_made_at_once_each_obey_their_own_options(
    question: Inputs, scheduler: Scheduler, alone: Callable[[Options], str]
) -> None:
    several = [changed(option.name)[1] for option in ANSWERS if option.name != "kv_bits"]
    assert together(scheduler, question, several) == [alone(options) for options in several]


@pytest.mark.parametrize("name", [option.name for option in PICTURES])
def test_an_option_of_pictures_says_the_same_everywhere(
    name: str, roads: dict[str, Road], loaded: Loaded, seen: Callable[[ImageOptions], str]
) -> None:
    options = ImageOptions(**{name: CHANGES[name][1]})
    want = seen(options)
    assert want != seen(ImageOptions())
    inputs = loaded[1]([user_message("What?", PHOTO)], options)
    for road, answers in roads.items():
        assert set(answers(inputs, SHORT)) == {want}, road
    assert "".join(Chat(*loaded, SHORT, image_options=options).ask("What?", PHOTO)) == want


def test_more_than_there_are_is_all(
    roads: dict[str, Road], question: Inputs, alone: Callable[[Options], str]
) -> None:
    for answers in roads.values():
        assert set(answers(question, replace(WARM, top_k=10**30))) == {alone(WARM)}


# ---- what is said about them


@dataclass(frozen=True)
class Few:
    length: int = option(5, " ".join("a" * 60))
    words: tuple[str, ...] = option(("a",), "Of a list.")


def test_a_docstring_has_its_options_in_lines() -> None:
    fields = [
        "Fields:",
        "    length = 5: " + " ".join("a" * 40),  # one more would make it 97 long
        "        " + " ".join("a" * 20),
        "    words = ('a',): Of a list.",
    ]
    assert completed(None, "Fields", Few).splitlines() == fields
    doc = completed("Some.\n\n        More.\n    ", "Fields", Few)
    assert doc.splitlines() == ["Some.", "", "More.", "", *fields]


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
    for each in (*ANSWERS, *PICTURES):
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
