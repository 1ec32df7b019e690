"""From Python, pictures and options are taken on every road: each option is a keyword, with its
words in help(), and what is wrong is one line."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from smolvlm_mlx import Chat, Engine, Options, generate, stream_generate
from smolvlm_mlx.errors import GenerationError, PromptError, SmolVLMError
from smolvlm_mlx.generation.keywords import Keywords
from smolvlm_mlx.generation.stream import TextStream
from smolvlm_mlx.inputs.messages import VideoPart, user_message
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.options import Option, options_of
from tests.support.changes import ANSWERS, EVERY, PICTURES, VALUES
from tests.support.checkpoints import Loaded
from tests.support.pictures import PICTURE, encoded
from tests.support.videos import encode_video

import mlx.core as mx
import numpy as np
import pytest

QUESTION = "What is this?"


def one_line(error: BaseException) -> str:
    assert len(str(error)) < 300
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "cat.png").write_bytes(encoded(PICTURE, "PNG"))
    return tmp_path / "cat.png"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    path.write_bytes(encode_video(2))
    return path


# ---- every road

Answered = Callable[..., TextStream]


def roads(loaded: Loaded) -> dict[str, Answered]:
    """What answers a question with pictures and options, by name."""

    def edited(*args: Any, **kwargs: Any) -> TextStream:
        chat = Chat(*loaded, max_tokens=1)
        "".join(chat.ask("Hello"))
        return chat.edit(*args, **kwargs)

    def retried(text: str, images: Any = (), videos: Any = (), **kwargs: Any) -> TextStream:
        chat = Chat(*loaded, max_tokens=1)
        "".join(chat.ask(text, images, videos=videos, max_tiles=2))
        return chat.retry(**kwargs)

    def chosen(text: str, images: Any = (), videos: Any = (), **kwargs: Any) -> TextStream:
        return Chat(*loaded, **kwargs).ask(text, images, videos=videos)

    return {
        "stream_generate": lambda *args, **kwargs: stream_generate(*loaded, *args, **kwargs),
        "Engine.stream": lambda *args, **kwargs: TextStream(
            Engine(*loaded).stream(*args, **kwargs)
        ),
        "Chat": chosen,
        "Chat.ask": lambda *args, **kwargs: Chat(*loaded).ask(*args, **kwargs),
        "Chat.edit": edited,
        "Chat.retry": retried,
    }


ROADS = ["stream_generate", "Engine.stream", "Chat", "Chat.ask", "Chat.edit", "Chat.retry"]


def prompt_of(stream: TextStream) -> tuple[int, int]:
    """Tokens and tiles of the prompt."""
    list(stream)
    return stream.statistics.prompt_tokens, stream.statistics.tiles


@pytest.mark.parametrize("road", ROADS)
def test_a_road_takes_one_picture_and_one_video(
    road: str, loaded: Loaded, file: Path, clip: Path
) -> None:
    ask = roads(loaded)[road]
    for media in ({"images": file}, {"videos": clip}, {"images": PICTURE, "videos": str(clip)}):
        want = loaded[1]([user_message(QUESTION, **media)], ImageOptions(split=False))
        answer = ask(QUESTION, **media, split=False, max_tokens=1)
        assert prompt_of(answer) == (len(want.input_ids), len(want.tiles))


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", [option.name for option in ANSWERS])
def test_an_option_is_a_keyword(name: str, road: str, loaded: Loaded) -> None:
    before = Options(max_tokens=1, temperature=0.7)
    want = replace(before, **{name: VALUES[name]})
    assert want != before
    answer = roads(loaded)[road](QUESTION, options=before, **{name: VALUES[name]})
    assert answer.events.row.options == want


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", [option.name for option in PICTURES])
def test_an_option_of_pictures_is_a_keyword(name: str, road: str, loaded: Loaded) -> None:
    question = user_message(QUESTION, PICTURE)
    want = loaded[1]([question], ImageOptions(**{name: VALUES[name]}))
    assert len(want.tiles) != len(loaded[1]([question]).tiles)
    ask = roads(loaded)[road]
    answer = ask(QUESTION, images=PICTURE, max_tokens=1, **{name: VALUES[name]})
    assert prompt_of(answer) == (len(want.input_ids), len(want.tiles))


def test_generate_takes_them_all_together(loaded: Loaded) -> None:
    values = {**VALUES, "max_tokens": 12, "temperature": 5.0, "top_p": 0.9, "top_k": 50}
    names = [option.name for option in ANSWERS]
    options = Options(**{name: values[name] for name in names})
    image_options = ImageOptions(**{o.name: values[o.name] for o in PICTURES})
    by_keyword = {o.name: values[o.name] for o in EVERY}
    answer = generate(*loaded, QUESTION, images=PICTURE, **by_keyword)
    assert answer == generate(
        *loaded, QUESTION, options, images=PICTURE, image_options=image_options
    )
    assert answer != generate(*loaded, QUESTION, images=PICTURE, max_tokens=12)


def test_a_chats_keywords_last_and_a_questions_do_not(loaded: Loaded) -> None:
    chat = Chat(*loaded, Options(temperature=0.5), max_tokens=3, max_tiles=1)
    assert chat.options == Options(temperature=0.5, max_tokens=3)
    assert chat.image_options == ImageOptions(max_tiles=1)
    answer = chat.ask(QUESTION, PICTURE, max_tokens=2, split=False)
    list(answer)
    assert answer.events.row.options == Options(temperature=0.5, max_tokens=2)
    assert chat.options == Options(temperature=0.5, max_tokens=3)
    assert chat.image_options == ImageOptions(max_tiles=1)


def test_an_edited_question_keeps_its_pictures_unless_others_are_given(
    loaded: Loaded, file: Path
) -> None:
    chat = Chat(*loaded, max_tokens=1)
    list(chat.ask(QUESTION, file))
    list(chat.edit("Which colors?"))
    assert len(chat.messages[0].media) == 1
    list(chat.edit(QUESTION, videos=[[PICTURE]]))
    (part,) = chat.messages[0].media_parts
    assert isinstance(part, VideoPart)
    list(chat.edit(QUESTION, images=()))
    assert chat.messages[0].media_parts == []


# ---- help


FUNCTIONS = [
    generate,
    stream_generate,
    Engine.stream,
    Chat.__init__,
    Chat.ask,
    Chat.edit,
    Chat.retry,
]


def words(text: str | None) -> str:
    return " ".join((text or "").split())


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_help_explains_every_argument(function: Callable[..., Any]) -> None:
    shown, parameters = words(function.__doc__), signature(function).parameters
    assert not [p for p in parameters.values() if p.kind is Parameter.VAR_KEYWORD]
    for option in EVERY:
        assert f"{option.name} = {option.default!r}: {words(option.help)}" in shown
        found = parameters[option.name]
        assert (found.default, found.annotation) == (option.default, option.type)
    about = f"{function.__doc__} {Chat.__doc__ if function is Chat.__init__ else ''}"
    explained = about.partition("Options as keywords")[0] + about.partition("Attributes:")[2]
    single = {option.name for option in EVERY} | {"self"}
    assert not [name for name in parameters if name not in single and name not in explained]


@pytest.mark.parametrize("kind", [Options, ImageOptions])
def test_a_dataclass_of_options_documents_its_fields(kind: type) -> None:
    for option in options_of(kind):
        assert f"{option.name} = {option.default!r}: {words(option.help)}" in words(kind.__doc__)


def test_type_checkers_know_every_keyword() -> None:
    listed = get_type_hints(Keywords)
    assert listed.keys() == {option.name for option in EVERY}
    for option in EVERY:
        assert option.name == "stop" or listed[option.name] == option.type
    assert not Keywords.__required_keys__


# ---- what is no option


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("max_token", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("temp", "temperature"),
        ("image", "images"),
        ("video", "videos"),
        ("image_option", "image_options"),
        ("max_tile", "max_tiles"),
    ],
)
def test_a_mistyped_keyword_is_told_the_nearest(name: str, nearest: str, loaded: Loaded) -> None:
    keyword: Any = {name: 1}
    with pytest.raises(TypeError, match=rf"^generate\(\) .*'{name}'; did you mean {nearest}\?$"):
        generate(*loaded, QUESTION, **keyword)
    with pytest.raises(TypeError, match=rf"^Chat.ask\(\) has no argument '{name}'"):
        Chat(*loaded).ask(QUESTION, **keyword)
    with pytest.raises(TypeError, match=rf"^Chat\(\) has no argument '{name}'"):
        Chat(*loaded, **keyword)


def test_a_keyword_like_none_is_told_alone(loaded: Loaded) -> None:
    with pytest.raises(TypeError, match=r"^generate\(\) has no argument 'zzz'$"):
        generate(*loaded, QUESTION, zzz=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("wrong", ["cat.jpg", PICTURE, {"max_tokens": 5}, {}, ImageOptions()])
def test_what_is_given_for_options_is_options(wrong: Any, loaded: Loaded) -> None:
    chat, engine = Chat(*loaded), Engine(*loaded)
    inputs = loaded[1]([user_message(QUESTION)])
    calls: list[Callable[[], object]] = [
        lambda: generate(*loaded, QUESTION, wrong),
        lambda: Chat(*loaded, wrong),
        lambda: chat.ask(QUESTION, (), wrong),
        lambda: engine.batch([inputs], wrong),
    ]
    for call in calls:
        with pytest.raises(GenerationError) as raised:
            call()
        said = one_line(raised.value)
        assert "is given as options, which are Options(...); pictures are images=" in said


def test_prepared_inputs_take_no_pictures_and_no_options_of_pictures(loaded: Loaded) -> None:
    inputs = loaded[1]([user_message(QUESTION, PICTURE)])
    for more, name in (
        ({"max_tiles": 1, "split": False}, "split, max_tiles"),
        ({"images": PICTURE}, "image options"),
        ({"videos": [[PICTURE]]}, "image options"),
    ):
        with pytest.raises(GenerationError, match="prepared inputs have their pictures") as raised:
            generate(*loaded, inputs, **more)
        assert str(raised.value).endswith(f"give images, videos and {name} to the processor")
    assert generate(*loaded, inputs, max_tokens=2, images=[], image_options=ImageOptions())


def test_model_and_processor_in_another_order_are_told(loaded: Loaded, tiny: Path) -> None:
    model, processor = loaded
    wrong: list[tuple[Any, Any]] = [(processor, model), (model, processor.tokenizer), (tiny, None)]
    for first, second in wrong:
        kinds = f"^a {type(first).__name__} is given as model and a {type(second).__name__} as"
        for call in (generate, stream_generate, Chat, Engine):
            question = () if isinstance(call, type) else (QUESTION,)
            with pytest.raises(GenerationError, match=kinds) as raised:
                call(first, second, *question)
            one_line(raised.value)


# ---- values of every type

SOME: list[Any] = [
    *(None, "5", "0.7", "", b"5", True, 5, 5.0, 0.5, float("nan"), float("inf"), 10**40, 1j),
    *([], ["a"], ("a", "b"), [1], {}, Path("a"), np.array([5, 6])),
    *(np.int64(5), np.float32(0.5), np.bool_(True), np.array(5)),
    *(mx.array(5), mx.array(0.5), mx.array(True)),
]


def fits(kind: Any, value: Any) -> bool:
    """Whether a value is of one of an annotation's types, as people would say."""
    value = value.item() if getattr(value, "shape", None) == () else value
    plain = str(kind)
    return (
        (type(value) is int and any(word in plain for word in ("int", "float", "Literal[4, 8]")))
        or (type(value) is float and "float" in plain)
        or (type(value) is bool and "bool" in plain)
        or (value is None and NoneType in get_args(kind))
        or (
            "tuple[str, ...]" in plain
            and (
                isinstance(value, str)
                or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))
            )
        )
    )


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        pytest.param(kind, option, id=option.name)
        for kind in (Options, ImageOptions)
        for option in options_of(kind)
    ],
)
def test_a_value_of_another_type_is_named(kind: Any, option: Option) -> None:
    refused = 0
    for value in SOME:
        try:
            kept = getattr(kind(**{option.name: value}), option.name)
        except SmolVLMError as error:
            said = one_line(error)
            assert option.name in said
            assert fits(option.type, value) != (" must be " in said)
            refused += 1
        else:
            assert fits(option.type, value)
            assert type(kept) in (int, float, bool, tuple, NoneType)
    assert 0 < refused < len(SOME)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(GenerationError) as raised:
        Options(max_tokens="5", temperature=None, stop=3)  # type: ignore[arg-type]
    assert str(raised.value) == (
        "max_tokens is '5', must be a whole number; temperature is None, must be a number; "
        "stop is 3, must be a text or a list of texts"
    )


def test_numbers_and_texts_are_brought_to_their_types() -> None:
    loose: dict[str, Any] = {"max_tokens": np.int64(5), "top_p": mx.array(0.5), "stop": ["a", "b"]}
    assert Options(**loose) == Options(max_tokens=5, top_p=0.5, stop=("a", "b"))
    assert Options(stop="a") == Options(stop=("a",))  # type: ignore[arg-type]
    assert ImageOptions(max_tiles=np.int32(3)) == ImageOptions(max_tiles=3)  # type: ignore[arg-type]


def test_annotations_are_read_once_for_all_options() -> None:
    """That takes longer than all else about them."""
    assert options_of(Options) is options_of(Options)


def test_options_are_values() -> None:
    """Keys, copies and pickles of them are equal, whatever the numbers came as."""
    loose: dict[str, Any] = {"max_tokens": np.int64(5), "stop": ["a"], "temperature": np.float64(1)}
    options = Options(**loose)
    assert {options: 1}[Options(max_tokens=5, stop=("a",), temperature=1)] == 1
    assert pickle.loads(pickle.dumps(options)) == copy.deepcopy(options) == replace(options)
    assert replace(options, stop="a") == options  # type: ignore[arg-type]
    assert json.loads(json.dumps(asdict(options)))["stop"] == ["a"]


# ---- what is asked


@pytest.mark.parametrize("text", [None, 5, b"Hi", Path("cat.jpg"), ["Hi"], {"role": "user"}])
def test_a_question_is_text(text: Any, loaded: Loaded) -> None:
    system: Any = text or 5
    for call in (lambda: Chat(*loaded).ask(text), lambda: Chat(*loaded, system=system)):
        with pytest.raises(PromptError, match=r"^the text of a message is .*, which is no text$"):
            call()
    with pytest.raises(PromptError, match="message"):
        generate(*loaded, text)
    with pytest.raises(PromptError, match="message"):
        Chat(*loaded).restart(text)


def asked(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


PLACE = {"type": "image"}


def test_a_model_cards_pattern_is_answered_as_its_parts_are(loaded: Loaded, file: Path) -> None:
    named = asked({"type": "image", "path": str(file)}, {"type": "image", "image": PICTURE})
    want = stream_generate(*loaded, named, max_tokens=4, max_tiles=2)
    list(want)
    for images in ([file, PICTURE], (file, np.asarray(PICTURE))):
        found = stream_generate(
            *loaded, asked(PLACE, PLACE), images=images, max_tokens=4, max_tiles=2
        )
        list(found)
        assert found.token_ids == want.token_ids
        assert found.statistics.tiles == want.statistics.tiles == 2
