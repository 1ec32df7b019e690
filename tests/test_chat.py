"""A conversation answers as if nothing were reused, reuses all it can, and loses nothing when it is
interrupted."""

import base64
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from examples.demo import draw
from smolvlm_mlx import Chat, Options, load, stream_generate
from smolvlm_mlx.errors import (
    ContextFullError,
    GenerationError,
    ImageError,
    PromptError,
    SmolVLMError,
)
from smolvlm_mlx.events import Reading
from smolvlm_mlx.generation.stream import TextStream
from smolvlm_mlx.inputs import media
from smolvlm_mlx.inputs.fetch import MAX_IMAGE_BYTES, FetchLimits
from smolvlm_mlx.inputs.image import read_image
from smolvlm_mlx.inputs.media import Attachment, Frames, Recent
from smolvlm_mlx.inputs.messages import (
    Message,
    TextPart,
    VideoPart,
    from_json,
    parse_messages,
    text_message,
    to_json,
    user_message,
)
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.tasks.chat import oldest_turn
from smolvlm_mlx.tasks.history import History
from tests.support.checkpoints import Loaded
from tests.support.messages import media_of
from tests.support.pictures import encoded, noise
from tests.support.videos import encode_video

import mlx.core as mx
import numpy as np
import pytest

SHORT = Options(max_tokens=6)
PICTURES = [noise(90, 60, number) for number in range(4)]


@pytest.fixture
def exact(tiny: Path, on_the_cpu: None) -> Loaded:
    """Where a token more or less in a pass changes no sum."""
    return load(tiny, "float32")


def finish(stream: Any) -> Any:
    for _ in stream:
        pass
    return stream


def said(chat: Chat) -> list[str]:
    return [message.text for message in chat.messages]


def random_step(chat: Chat, rng: Random) -> Any:
    """What a person may do next; None where no answer comes of it."""
    asked = [message for message in chat.messages if message.role == "user"]
    kind = rng.choice(("ask", "ask", "ask", "retry", "edit", "undo", "system")) if asked else "ask"
    text = rng.choice(("What?", "And now?", "Which of them is it?"))
    images = rng.sample(PICTURES, rng.choice((0, 0, 1, 2)))
    if kind == "ask":
        return chat.ask(text, images)
    if kind == "retry":
        return chat.retry()
    if kind == "edit":
        return chat.edit(text, rng.choice((None, images)), turn=rng.randrange(len(asked)))
    if kind == "undo":
        chat.undo()
    else:
        chat.system = rng.choice((None, "Be brief.", "Be kind."))
    return None


def converse(loaded: Loaded, seed: int, kv_bits: Any = None) -> tuple[int, int]:
    """A random conversation, each answer compared with an uncached run's; returns tokens reused,
    and tokens in all."""
    rng = Random(seed)
    chat = Chat(*loaded, Options(max_tokens=6, kv_bits=kv_bits))
    reused, total = 0, 0
    for _ in range(6):
        stream = random_step(chat, rng)
        if stream is None:
            continue
        finish(stream)
        uncached = finish(stream_generate(*loaded, chat.messages[:-1], chat.options))
        assert stream.token_ids == uncached.token_ids
        assert stream.statistics.prompt_tokens == uncached.statistics.prompt_tokens
        reused = reused + stream.statistics.reused_tokens
        total = total + stream.statistics.prompt_tokens
    return reused, total


@pytest.mark.parametrize("seed", range(8))
def test_answers_as_if_nothing_were_reused(seed: int, exact: Loaded) -> None:
    converse(exact, seed)


@pytest.mark.slow
def test_answers_as_if_nothing_were_reused_200_times(exact: Loaded) -> None:
    counts = [converse(exact, seed) for seed in range(200)]
    assert sum(reused for reused, _ in counts) > 0.3 * sum(total for _, total in counts)


def test_a_turn_reads_only_what_is_new(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(*loaded, SHORT)
    first = finish(chat.ask("What is this?", [PICTURES[0]])).statistics
    monkeypatch.setattr(type(loaded[0]), "encode_images", None)  # nothing is left to encode
    second = finish(chat.ask("Are you sure?")).statistics
    assert second.reused_tokens >= first.prompt_tokens
    assert second.tiles == first.tiles
    retried = finish(chat.retry()).statistics
    assert retried.reused_tokens == retried.prompt_tokens - 1 == second.prompt_tokens - 1
    chat.undo()
    chat.undo()
    assert chat.messages == []
    again = finish(chat.ask("Is this a cat?", [PICTURES[0]])).statistics
    assert again.reused_tokens > again.image_tokens  # the picture comes before the words


def test_equal_looking_prompts_share_only_equal_pictures(loaded: Loaded) -> None:
    chat = Chat(*loaded, SHORT)
    finish(chat.ask("What?", [PICTURES[0], PICTURES[1]]))
    other = finish(chat.edit("What?", [PICTURES[0], PICTURES[2]])).statistics
    one = len(
        loaded[1](
            [{"role": "user", "content": [{"type": "image", "image": PICTURES[0]}]}]
        ).input_ids
    )
    assert other.image_tokens // 2 < other.reused_tokens < one + 12
    assert finish(chat.edit("What?", [PICTURES[3]])).statistics.reused_tokens < 30


def test_progress_counts_tiles_that_are_new(loaded: Loaded) -> None:
    chat = Chat(*loaded, SHORT)

    def read(stream: TextStream) -> list[tuple[int, int]]:
        readings = [
            event for event in stream.events if isinstance(event, Reading) and event.what == "tiles"
        ]
        return [(reading.done, reading.total) for reading in readings]

    stream = chat.ask("What?", [PICTURES[0]])
    seen, tiles = read(stream), stream.statistics.tiles
    assert seen[0] == (0, tiles)
    assert seen[-1] == (tiles, tiles)
    assert read(chat.ask("And?", [PICTURES[0]])) == [(0, 0)]


def test_an_interrupted_answer_stays_and_is_marked(loaded: Loaded) -> None:
    chat = Chat(*loaded, Options(max_tokens=40))
    whole = "".join(chat.ask("Hello"))
    assert chat.messages[-1].interrupted  # at the longest length
    pieces = iter(chat.retry())
    begun = next(pieces) + next(pieces)
    finish(chat.ask("Go on"))  # while the first is under way: it ends there
    assert chat.messages[1] == Message("assistant", (TextPart(begun.strip()),), interrupted=True)
    assert whole.startswith(begun)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2


@pytest.mark.parametrize("tokens", [1, 9, 20])
def test_an_answer_goes_on_as_if_it_had_not_been_cut_off(tokens: int, bundled: Loaded) -> None:
    chat, picture = Chat(*bundled), draw()
    whole = "".join(chat.ask("Describe the picture.", picture))
    assert not chat.messages[-1].interrupted
    with pytest.raises(PromptError, match="there is nothing to continue: no answer was stopped"):
        chat.go_on()
    chat.restart()
    begun = "".join(chat.ask("Describe the picture.", picture, max_tokens=tokens)).rstrip()
    assert chat.messages[-1].interrupted
    reused = chat.go_on()
    assert begun + "".join(reused) == whole == chat.messages[-1].text
    assert (len(chat.messages), chat.messages[-1].interrupted) == (2, False)
    assert reused.statistics.reused_tokens > reused.statistics.prompt_tokens - 3  # picture and all


def test_an_answer_that_was_stopped_goes_on(bundled: Loaded) -> None:
    chat = Chat(*bundled)
    whole = "".join(chat.ask("Describe the picture.", draw()))
    stream = chat.retry()
    begun = next(stream) + next(stream)
    chat.stop()
    assert chat.messages[-1].text == begun.rstrip()
    assert begun.rstrip() + "".join(chat.go_on()) == whole


@pytest.mark.parametrize("method", ["ask", "retry", "edit", "undo", "restart", "open", "stop"])
def test_what_a_person_does_next_ends_the_answer_under_way(
    method: str, loaded: Loaded, tmp_path: Path
) -> None:
    """Nothing more comes of it, also if somebody goes on reading."""
    chat = Chat(*loaded, Options(max_tokens=40))
    finish(chat.ask("Hello", options=SHORT))
    chat.save(tmp_path / "chat.json")
    answer = chat.ask("And now?")
    next(answer)
    arguments = {"ask": ("Go on",), "edit": ("Go on",), "open": (tmp_path / "chat.json",)}
    getattr(chat, method)(*arguments.get(method, ()))
    before = list(chat.messages)
    assert list(answer) == []
    assert answer.statistics.finish_reason == "interrupted"
    assert chat.messages == before
    assert len(before) == {"ask": 6, "undo": 2, "restart": 0, "open": 2}.get(method, 4)


def test_tokens_are_those_of_the_conversation_without_what_begins_an_answer(
    loaded: Loaded,
) -> None:
    chat = Chat(*loaded, SHORT)
    assert chat.tokens() == 0
    finish(chat.ask("Hello", [PICTURES[0]]))
    parts = [loaded[1](chat.messages, add_generation_prompt=begun) for begun in (False, True)]
    without, begun = (len(inputs.input_ids) for inputs in parts)
    assert chat.tokens() == without < begun
    chat.image_options = ImageOptions(split=False)
    assert chat.tokens() < without


def test_pictures_of_a_chat_are_cut_as_it_says(loaded: Loaded) -> None:
    chat = Chat(*loaded, SHORT, image_options=ImageOptions(split=False))
    assert finish(chat.ask("Hello", [PICTURES[0]])).statistics.tiles == 1


def test_interrupted_by_the_keyboard(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(*loaded, SHORT)
    finish(chat.ask("Hello"))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(loaded[0]), "encode_images", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finish(chat.ask("And this?", [PICTURES[0]]))
    assert chat.messages[-1] == Message("assistant", (TextPart(""),), interrupted=True)
    retried = finish(chat.retry())
    assert (
        retried.token_ids == finish(stream_generate(*loaded, chat.messages[:-1], SHORT)).token_ids
    )


def test_what_cannot_be_asked_changes_nothing(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = Chat(*loaded, SHORT)
    finish(chat.ask("Hello"))
    before = list(chat.messages)
    with pytest.raises(SmolVLMError, match="no such file"):
        chat.ask("What?", [tmp_path / "none.png"])
    with pytest.raises(ImageError, match="is text; put it into the question"):
        chat.ask("What?", [b"nonsense"])
    for turn in (7, 1, -2):
        with pytest.raises(PromptError, match=f"no question {turn}; the conversation has 1"):
            chat.edit("What?", turn=turn)
    model = type(loaded[0].language_model)
    monkeypatch.setattr(model, "logits", lambda self, hidden: mx.full((1, 300), float("nan")))
    with pytest.raises(GenerationError, match="not finite"):
        finish(chat.ask("What?"))
    assert chat.messages == before


def test_a_full_context_is_told_and_the_oldest_turns_can_go(loaded: Loaded) -> None:
    chat = Chat(*loaded, SHORT)
    finish(chat.ask("First", [PICTURES[0]]))
    finish(chat.ask("Second", [PICTURES[1]]))
    before = chat.tokens()
    words = "word " * ((chat.context - before) // 5)
    with pytest.raises(
        ContextFullError,
        match=rf"leaves no room for an answer in the model's context of {chat.context}",
    ):
        chat.ask(words)
    assert said(chat)[::2] == ["First", "Second"]
    pictures = media_of(chat.messages)
    assert oldest_turn(chat.messages) == slice(0, 2)
    later = said(chat)[2:]
    chat.drop_oldest(keep_pictures=True)
    assert said(chat) == later
    assert media_of(chat.messages) == pictures
    finish(chat.ask("Third"))
    chat.drop_oldest()
    assert said(chat)[0] == "Third"
    assert media_of(chat.messages) == []
    with pytest.raises(PromptError, match="there is no question 1; the conversation has 1"):
        chat.drop_oldest()


@pytest.mark.parametrize(("longest", "room"), [(1, 1), (5, 5), (256, 256), (257, 256), (5000, 256)])
def test_there_is_room_for_an_answer_of_some_length(
    longest: int, room: int, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    tokens = len(processor([user_message("Hello")]).input_ids)
    config, chat = model.config, Chat(*loaded, Options(max_tokens=longest))
    for context in (tokens + room, tokens + room - 1):
        text = replace(config.text_config, max_position_embeddings=context)
        monkeypatch.setattr(model, "config", replace(config, text_config=text))
        if context == tokens + room:
            chat.ask("Hello")
            chat.undo()
        else:
            with pytest.raises(ContextFullError, match="leaves no room for an answer"):
                chat.ask("Hello")
    assert chat.messages == []


def test_the_oldest_turn_is_the_first_question_and_all_before_the_second() -> None:
    def turn(*roles: str) -> slice:
        return oldest_turn([text_message(role, "") for role in roles])

    assert turn("system", "user", "assistant", "user") == slice(1, 3)
    assert turn("user", "user") == slice(0, 1)  # a question that was never answered
    assert turn("assistant", "user", "assistant", "user", "assistant", "user") == slice(1, 3)
    for roles in ((), ("system", "assistant"), ("system", "user", "assistant")):
        with pytest.raises(PromptError, match="there is no question"):
            turn(*roles)


def test_edit_keeps_what_a_video_is_asked_with(loaded: Loaded) -> None:
    chat, frames = Chat(*loaded, SHORT), Frames([Attachment(picture) for picture in PICTURES[:3]])
    first = finish(
        chat.ask("What?", [VideoPart(frames, {"max_frames": 2}), PICTURES[0]])
    ).statistics
    again = finish(chat.edit("What?")).statistics
    assert again.prompt_tokens == first.prompt_tokens
    assert chat.messages[0].media_parts[0] == VideoPart(frames, {"max_frames": 2})
    finish(chat.edit("What?", videos=frames))  # in place of both
    assert chat.messages[0].media_parts == [VideoPart(frames)]
    finish(chat.edit("What?", PICTURES[1]))
    assert [picture.size for picture in media_of(chat.messages)] == [PICTURES[1].size]


def test_system(loaded: Loaded) -> None:
    chat = Chat(*loaded, SHORT, system="Be brief.")
    finish(chat.ask("Hello"))
    assert [message.role for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.system == "Be brief."
    chat.system = None
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    assert chat.system is None


def test_saved_and_opened(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURES[0].save(path)
    chat = Chat(*loaded, SHORT, system="Be brief.")
    finish(chat.ask("What is this?", [path]))
    next(iter(chat.ask("And?")))
    chat.stop()
    path.unlink()  # the conversation owns its pictures
    chat.save(tmp_path / "chat.json")
    assert (tmp_path / "chat.json").read_text().startswith('{\n "messages": [\n  {\n')
    other = Chat(*loaded, SHORT)
    other.open(tmp_path / "chat.json")
    assert said(other) == said(chat)
    assert other.messages[-1].interrupted
    (mine,), (theirs,) = media_of(chat.messages), media_of(other.messages)
    assert (mine.data, mine.name, mine.size) == (theirs.data, theirs.name, theirs.size)
    assert theirs.name == "picture.png"
    assert finish(other.retry()).token_ids == finish(chat.retry()).token_ids
    # And the file is in the message schema itself.
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert (
        loaded[1](messages).input_ids.tolist()
        == loaded[1](other.messages[:-1] + messages[-1:]).input_ids.tolist()
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nonsense", "no conversation that can be read"),
        ("[]", "messages must be a non-empty list"),
        (
            '{"messages": [{"role": "user", "content": '
            '[{"type": "image", "path": "/etc/passwd"}]}]}',
            "local files are not read here",
        ),
        (
            '{"messages": [{"role": "user", "content": '
            '[{"type": "image", "url": "https://a.example/b"}]}]}',
            "URLs are not fetched here",
        ),
    ],
)
def test_no_conversation(text: str, error: str, loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(text)
    chat = Chat(*loaded, SHORT)
    finish(chat.ask("Hello"))
    before = list(chat.messages)
    with pytest.raises(SmolVLMError, match=error):
        chat.open(tmp_path / "chat.json")
    assert chat.messages == before
    with pytest.raises(PromptError, match=r"cannot be written \(No such file or directory\)"):
        chat.save(tmp_path / "none" / "chat.json")


@pytest.mark.parametrize("file", ["cat.png", "two.mp4"])
def test_a_conversation_from_elsewhere_leads_nowhere(
    file: str, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it names is there, and could be read."""
    (tmp_path / "cat.png").write_bytes(encoded(PICTURES[0], "PNG"))
    (tmp_path / "two.mp4").write_bytes(encode_video(2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path, chat = tmp_path / file, Chat(*loaded, SHORT)
    image, video = ("image", "path", "url", "base64"), ("video", "path", "url", "base64")
    with socket.create_server(("127.0.0.1", 0)) as trap:
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/{file}"
        for name in (str(path), file, f"./{file}", f"~/{file}", path.as_uri(), url):
            parts: list[dict[str, Any]] = [{"type": "image", key: name} for key in image]
            parts += [{"type": "video", key: name} for key in video]
            parts += [{"type": "video", "frames": [{key: name}]} for key in image]
            parts += [{"type": "video", key: [name]} for key in ("video", "frames")]
            parts += [{"type": f"{kind}_url", f"{kind}_url": name} for kind in ("image", "video")]
            for part in parts:
                talk = {"messages": [{"role": "user", "content": [part]}]}
                (tmp_path / "chat.json").write_text(json.dumps(talk))
                with pytest.raises(SmolVLMError):
                    chat.open(tmp_path / "chat.json")
                assert chat.messages == []
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_a_save_replaces_only_what_is_an_earlier_state_of_the_conversation(
    loaded: Loaded, tmp_path: Path
) -> None:
    chat, mine = Chat(*loaded, SHORT), tmp_path / "mine.json"
    with pytest.raises(PromptError, match="there is nothing to save yet"):
        chat.save(mine)
    finish(chat.ask("One", [PICTURES[0]]))
    chat.save(mine)
    finish(chat.ask("Two"))
    chat.save(mine)
    chat.undo()
    chat.save(mine)  # the same conversation, though shorter
    resumed = Chat(*loaded, SHORT)
    resumed.restart([*chat.messages, *chat.messages])
    resumed.save(mine)  # which begins so
    resumed.restart(chat.messages)
    before = mine.read_bytes()
    with pytest.raises(PromptError, match="exists already, and is not this conversation"):
        resumed.save(mine)  # which has less than the file, and is not known to be the same
    with pytest.raises(PromptError, match="exists already"):
        chat.save(mine)  # which another one wrote meanwhile
    resumed.open(mine)
    resumed.undo()
    assert mine.read_bytes() == before
    resumed.save(mine)


@pytest.mark.parametrize(
    "name", ["b.jpg", "notes.json", "list.json", "empty.json", "folder", "pipe"]
)
def test_a_save_never_replaces_what_is_no_conversation(
    name: str, loaded: Loaded, tmp_path: Path
) -> None:
    PICTURES[0].save(tmp_path / "b.jpg")
    for file, text in {"notes": '{"a": 1}', "list": "[1]", "empty": '{"messages": []}'}.items():
        (tmp_path / f"{file}.json").write_text(text)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    chat = Chat(*loaded, SHORT)
    finish(chat.ask("One"))
    with pytest.raises(PromptError, match="exists already, and is not this conversation"):
        chat.save(tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_an_attachment_is_decoded_once(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    attachment = Attachment(PICTURES[0])
    assert attachment.size == PICTURES[0].size
    message = {"role": "user", "content": [{"type": "image", "image": attachment}]}
    bare = loaded[1]([{"role": "user", "content": [{"type": "image", "image": PICTURES[0]}]}])
    inputs = loaded[1]([message])
    assert inputs.input_ids.tolist() == bare.input_ids.tolist()
    assert (inputs.tiles == bare.tiles).all()
    assert inputs.tile_digests == bare.tile_digests
    assert "data" not in vars(attachment)  # and encoded as PNG only for who asks for it
    for name in ("media.decode_image", "media.make_tiles", "tiles.digest_tiles"):
        monkeypatch.setattr(f"smolvlm_mlx.inputs.{name}", None)
    again = loaded[1]([message])
    assert (again.tiles == bare.tiles).all()
    assert again.tile_digests == bare.tile_digests


def test_a_picture_that_comes_twice_in_a_conversation_is_cut_once(
    monkeypatch: pytest.MonkeyPatch, loaded: Loaded, tmp_path: Path
) -> None:
    PICTURES[0].save(tmp_path / "twice.png")
    part = {"type": "image", "path": tmp_path / "twice.png"}
    calls = {name: getattr(media, name) for name in ("decode_image", "make_tiles")}
    counts = dict.fromkeys(calls, 0)

    def counted(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return calls[name](*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(media, name, counted(name))
    loaded[1]([{"role": "user", "content": [part, part]}])
    assert counts == {"decode_image": 1, "make_tiles": 1}


@pytest.mark.parametrize("source", [PICTURES[0], np.asarray(PICTURES[0])], ids=["PIL", "array"])
def test_a_decoded_picture_is_converted_once(
    source: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[object]()

    def counted(part: object, *limits: FetchLimits) -> object:
        calls.append(part)
        return read_image(part, *limits)

    monkeypatch.setattr("smolvlm_mlx.inputs.media.read_image", counted)
    parse_messages([{"role": "user", "content": [{"type": "image", "image": source}]}])
    assert len(calls) == 1


def test_a_picture_beyond_the_usual_limits_stays_readable(loaded: Loaded, tmp_path: Path) -> None:
    picture = noise(2700, 2700)
    data = encoded(picture, "BMP")
    assert len(data) > MAX_IMAGE_BYTES
    held = Attachment(data, FetchLimits(max_bytes=len(data)))
    first, settings = held.tiled(loaded[1].settings), loaded[1].settings
    assert held.tiled(replace(settings, split=False)).layout != first.layout
    assert held.preview.size == (1024, 1024)
    kept = History(tmp_path / "history.sqlite3")
    message = user_message("What?", [held, picture])  # of which one becomes a PNG of its own
    kept.save("a", [message])
    for (again,) in (kept.load("a"), from_json(to_json([message]))):
        assert [picture.size for picture in again.media] == [(2700, 2700)] * 2


def test_a_picture_that_is_sent_again_is_the_same_attachment() -> None:
    recent = Recent(most=2)

    def sent(number: int, name: str | None = None) -> Any:
        part = {
            "type": "image",
            "base64": base64.b64encode(Attachment(PICTURES[number]).data).decode(),
            "name": name,
        }
        return parse_messages([{"role": "user", "content": [part]}], recent=recent)[0].media[0]

    first = sent(0)
    assert sent(0) is first
    assert sent(0, "cat.png").name == "cat.png"
    assert sent(1).digest != first.digest
    assert sent(0) is not first  # forgotten: two others came since
