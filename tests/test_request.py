"""What may be asked of the server: every field is obeyed or refused by name, messages come in the
forms of many clients, and an error names the part that is wrong."""

import base64
import json
from dataclasses import replace
from typing import Any

from smolvlm_mlx import Options
from smolvlm_mlx.errors import PromptError
from smolvlm_mlx.inputs.image import STRANGERS
from smolvlm_mlx.inputs.media import Attachment, Recent, Video
from smolvlm_mlx.inputs.messages import ImagePart, Message, to_json
from smolvlm_mlx.inputs.settings import ImageOptions
from smolvlm_mlx.inputs.video import VideoSampling
from smolvlm_mlx.options import options_of
from smolvlm_mlx.server.budget import Budget, Spent
from smolvlm_mlx.server.fields import RequestError
from smolvlm_mlx.server.request import ChatRequest
from tests.support.changes import CHANGES, UNSEEN, VALUES
from tests.support.http import Running, always, question
from tests.support.pictures import PICTURE, data_url
from tests.support.videos import encode_video

import pytest
from hypothesis import given
from hypothesis import strategies as st

LIMITS = replace(STRANGERS, allow_urls=False)
HELLO = [{"role": "user", "content": "Hello"}]
SERVER = Options(max_tokens=99, temperature=0.5, stop=("server",), top_k=9)
PICTURES = ImageOptions(longest_edge=999, split=True, max_tiles=9)
ONE_TILE = ImageOptions(longest_edge=64, split=False)


def ask(**fields: Any) -> ChatRequest:
    return ChatRequest.parse(json.dumps({"messages": HELLO, **fields}).encode())


def spent() -> Spent:
    return Spent(Budget(), VideoSampling())


def said(*messages: Any) -> list[Message]:
    return ask(messages=messages).read(LIMITS, Recent(), ONE_TILE, spent())


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(**fields).read(LIMITS, Recent(), ONE_TILE, spent())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    return caught.value


# ---- options

REFUSED = {"kv_bits": 4}
OPTIONS = [(kind, each.name) for kind in (Options, ImageOptions) for each in options_of(kind)]


@pytest.mark.parametrize(("kind", "name"), OPTIONS)
def test_an_option_reaches_the_engine_or_is_refused_by_name(kind: type, name: str) -> None:
    if name in REFUSED:
        assert refusal(**{name: REFUSED[name]}).param == name
        assert ask(**{name: None}).options(SERVER) == SERVER
        return
    value = VALUES[name]
    for asked, changes in ((value, {name: value}), (None, {})):
        request = ask(**{name: asked})
        options, cut = request.options(SERVER), request.image_options(PICTURES)
        assert options == replace(SERVER, **(changes if kind is Options else {}))
        assert cut == replace(PICTURES, **(changes if kind is ImageOptions else {}))


@pytest.mark.parametrize(("kind", "name"), OPTIONS)
def test_an_option_is_described_as_everywhere(kind: type, name: str) -> None:
    described = ChatRequest.model_json_schema()["properties"]
    own = {"max_tokens", "seed", "stop"}  # in OpenAI's form
    if name not in REFUSED:
        help = next(each.help for each in options_of(kind) if each.name == name)
        assert name in described
        assert name in own or described[name]["description"] == help


def test_what_is_ours_is_explained() -> None:
    described = ChatRequest.model_json_schema()["properties"]
    explained = {name for name, each in described.items() if "description" in each}
    theirs = {"max_tokens", "max_completion_tokens", "seed", "n", "tools"}
    theirs |= {"continue_final_message", "add_generation_prompt"}  # vLLM's
    assert explained == theirs | ({name for _, name in OPTIONS} - {"stop", *REFUSED})


def test_what_comes_in_two_forms_is_described_in_both() -> None:
    def kinds(schema: Any) -> list[str]:
        if "anyOf" in schema:
            return [kind for each in schema["anyOf"] for kind in kinds(each)]
        return [schema.get("type", "object")]

    schema = ChatRequest.model_json_schema()
    of = {name: each["properties"] for name, each in schema["$defs"].items()}
    assert kinds(schema["properties"]["stop"]) == ["string", "array", "null"]
    assert kinds(of["RequestMessage"]["content"]) == ["string", "array", "null"]
    assert kinds(of["ImageUrlPart"]["image_url"]) == ["object", "string"]
    assert kinds(of["VideoUrlPart"]["video_url"]) == ["object", "string"]


def test_no_tokens_at_all_fit_no_description() -> None:
    kinds = ChatRequest.model_json_schema()["properties"]["max_tokens"]["anyOf"]
    assert kinds == [{"type": "integer", "minimum": -1, "not": {"const": 0}}, {"type": "null"}]


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"max_tokens": -1}, {"max_tokens": 2**31}),
        ({"max_completion_tokens": 3, "max_tokens": 5}, {"max_tokens": 3}),
        ({"max_completion_tokens": None, "max_tokens": 5}, {"max_tokens": 5}),
        ({"stop": ""}, {"stop": ()}),
        ({"stop": []}, {"stop": ()}),
        ({"stop": ["", "x"]}, {"stop": ("x",)}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"seed": -2}, {"seed": 2**64 - 2}),
        ({"seed": 2**64 + 3}, {"seed": 3}),
        (
            {"top_k": 4.0, "temperature": 1, "max_tokens": 5e0},
            {"top_k": 4, "temperature": 1.0, "max_tokens": 5},
        ),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"seed": 2.0**53 - 1}, {"seed": 2**53 - 1}),
    ],
)
def test_a_value_means_what_it_means_elsewhere(
    fields: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert ask(**fields).options(SERVER) == replace(SERVER, **changes)


def test_64_texts_may_end_an_answer() -> None:
    assert len(ask(stop=["x"] * 64).options().stop) == 64
    assert refusal(stop=["x"] * 65).param == "stop"


def test_no_text_cuts_an_answer_that_is_json() -> None:
    for kind in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}}):
        error = refusal(response_format=kind, stop=["}"])
        assert (str(error), error.param) == (
            "stop: would cut JSON, which ends by itself; leave it out",
            "stop",
        )
        assert ask(response_format=kind, stop=[]).options(SERVER).stop == ()
    assert ask(response_format={"type": "text"}).options(SERVER).stop == SERVER.stop


def test_seed_minus_1_is_another_one_each_time() -> None:
    seeds = {ask(seed=-1).options(replace(SERVER, seed=3)).seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"temperature": 11}, "temperature: 11.0 is not in 0..10"),
        ({"temperature": "hot"}, "temperature: must be a valid number, not 'hot'"),
        ({"temperature": True}, "temperature: must be a valid number, not true"),
        ({"top_p": 0}, "top_p: 0.0 is not above 0 and up to 1"),
        ({"top_k": 2.5}, "top_k: must be a valid integer, not 2.5"),
        ({"top_k": [1]}, "top_k: must be a valid integer, not a list"),
        ({"max_tokens": 0}, "max_tokens: must be above 0, or -1: as long as there is room"),
        ({"max_tokens": -2}, "max_tokens: must be greater than or equal to -1, not -2"),
        ({"max_tokens": True}, "max_tokens: must be a valid integer, not true"),
        ({"max_tiles": 0}, "max_tiles: is 0, must be a whole number above 0"),
        ({"split": "yes"}, "split: must be a valid boolean, not 'yes'"),
        ({"n": 0}, "n: must be greater than or equal to 1, not 0"),
        ({"n": 17}, "n: 17 answers; the limit is 16"),
        ({"seed": 2.0**53}, "seed: must be a valid integer, not 9007199254740992.0"),
        ({"split": 10**40}, f"split: must be a valid boolean, not 1{'0' * 36}..."),
        (
            {"conversation": "../x"},
            "conversation: String should match pattern '^[0-9a-f]{8,32}$'",
        ),
        ({"stop": 5}, "stop: must be a text or a list of texts"),
        ({"top_k": -2}, "top_k: -2 is negative"),
        ({"stop": [None]}, "stop.0: must be a valid string, not null"),
        ({"stream": "no"}, "stream: must be a valid boolean, not 'no'"),
        ({"stream_options": 5}, "stream_options: must be an object, not 5"),
        ({"live": "../x"}, "live: String should match pattern '^[0-9a-f]{8,32}$'"),
        (
            {"response_format": {"type": "x" * 999}},
            "response_format.type: must be 'text', 'json_object' or 'json_schema', not "
            f"'{'x' * 35}...'",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema: missing; give {name, schema}",
        ),
    ],
)
def test_a_value_that_cannot_be_is_one_line_that_names_it(
    fields: dict[str, Any], error: str
) -> None:
    refused = refusal(**fields)
    assert (str(refused), refused.param) == (error, error.partition(":")[0])


ONE = {"const": 1}


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        ({"type": "json_object", "schema": ONE}, ONE),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": ONE}}, ONE),
        ({"type": "json_schema", "json_schema": {"strict": True, "schema": ONE}}, ONE),
        ({"type": "json_schema", "json_schema": {"name": "x", "strict": None}}, {}),
    ],
)
def test_the_form_of_an_answer(wanted: Any, schema: Any) -> None:
    assert ask(response_format=wanted).schema_wanted() == schema


@pytest.mark.parametrize(
    ("fields", "wants"),
    [
        ({}, False),
        ({"stream_options": {}}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": True}}, True),
        ({"live": "00000000"}, True),
        ({"live": "00000000", "stream_options": {"include_usage": False}}, True),
    ],
)
def test_a_stream_ends_with_the_usage_where_it_is_wanted(
    fields: dict[str, Any], wants: bool
) -> None:
    assert ask(stream=True, **fields).wants_usage() is wants


# ---- fields that are none here


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # OpenAI's
        ("best_of", 2), ("logit_bias", {"50256": -100}), ("logprobs", True), ("top_logprobs", 2),
        ("modalities", ["text", "audio"]), ("audio", {"voice": "alloy"}), ("verbosity", "low"),
        ("prediction", {"type": "content", "content": "x"}), ("web_search_options", {"a": 1}),
        # vLLM's
        ("guided_json", {"type": "object"}), ("guided_regex", "a"), ("guided_choice", ["a"]),
        ("guided_grammar", "x"), ("structured_outputs", {"choice": ["a"]}), ("min_tokens", 5),
        ("ignore_eos", True), ("stop_token_ids", [1]), ("bad_words", ["a"]), ("echo", True),
        ("length_penalty", 2.0), ("use_beam_search", True), ("prompt_logprobs", 1),
        ("include_stop_str_in_output", True), ("truncate_prompt_tokens", 5),
        ("allowed_token_ids", [1]), ("chat_template", "x"), ("chat_template_kwargs", {"x": 1}),
        ("chat_template_kwargs", "x"), ("chat_template_kwargs", {"thinking": True, "x": 1}),
        ("add_generation_prompt", False), ("continue_final_message", True), ("documents", [{}]),
        ("mm_processor_kwargs", {"max_pixels": 9}), ("return_token_ids", True),
        # llama.cpp's, LM Studio's and Ollama's
        ("grammar", "root ::= x"), ("json_schema", ONE), ("n_predict", 5), ("typical_p", 0.5),
        ("mirostat", 2), ("tfs_z", 0.5), ("dry_multiplier", 0.8), ("xtc_probability", 0.5),
        ("dynatemp_range", 0.5), ("repeat_penalty", 1.1), ("repeat_last_n", 64), ("n_probs", 5),
        ("samplers", ["top_k"]), ("top_n_sigma", 1), ("options", {"temperature": 1}),
        ("num_predict", 5), ("num_ctx", 4096), ("format", "json"), ("images", ["aaa"]),
        ("system", "Be brief."), ("template", "x"), ("draft_model", "x"),
        # others'
        ("max_new_tokens", 5), ("do_sample", False), ("repetition_context_size", 20),
        ("adapters", "x"), ("resize_shape", [9, 9]), ("no_repeat_ngram_size", 3), ("temp", 0),
        ("extra_body", {"top_k": 1}), ("sampling_params", {"top_k": 1}), ("prompt", "x"),
        ("input", "x"), ("instructions", "x"), ("max_output_tokens", 5), ("stop_sequences", ["a"]),
        ("detail", "low"), ("fps", 1), ("max_frames", 8), ("random_seed", 1), ("max_time", 5),
        ("stop_sequence", "a"), ("stop_regex", "a"), ("regex", "a"), ("ebnf", "x"),
        # misspelled
        ("temprature", 0.5), ("Temperature", 0.5), ("maxTokens", 5), ("max_token", 5),
        ("topP", 0.5), ("top-k", 5), ("topK", 5), ("minp", 0.1), ("seeds", 1), ("stops", ["a"]),
        ("response_fromat", {}), ("repetitionPenalty", 1.5), ("max_tile", 1), ("longest-edge", 64),
    ],
)  # fmt: skip
def test_a_field_that_would_change_the_answer_is_refused_by_name(name: str, value: Any) -> None:
    refused = refusal(**{name: value})
    assert refused.param == name
    assert str(refused).startswith(f"{name}: ")


THINKING = ("enable_thinking", "thinking", "thinking_budget", "reasoning_effort")


def test_what_is_meant_is_said() -> None:
    assert str(refusal(temprature=1)) == "temprature: is no field; did you mean temperature?"
    assert str(refusal(num_predict=1)) == "num_predict: say max_tokens"
    assert str(refusal(options={"a": 1})) == "options: say its fields, at the top level"
    assert str(refusal(min_tokens=1)) == "min_tokens: is not supported; leave it out"


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "x", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"parallel_tool_calls": True, "prompt_cache_key": "x", "safety_identifier": "x"},
        {"logprobs": False, "top_logprobs": 0, "logit_bias": {}, "modalities": ["text"]},
        {"logprobs": None, "logit_bias": None, "audio": None, "prediction": None, "n": None},
        {"best_of": 1, "length_penalty": 1.0, "typical_p": 1, "mirostat": 0, "min_tokens": 0},
        {"ignore_eos": False, "stop_token_ids": [], "add_generation_prompt": True, "echo": False},
        {"guided_json": None, "grammar": "", "options": {}, "extra_body": {}, "documents": []},
        {"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": False},
        {"chat_template_kwargs": dict.fromkeys(THINKING, 1), **dict.fromkeys(THINKING, "x")},
        {f"x{number}": number for number in range(99)},  # with messages 100
        {"reasoning_effort": "low", "thinking": {"type": "disabled"}, "think": False},
        {"n_probs": 0, "dynatemp_range": 0, "xtc_probability": 0, "dry_multiplier": 0},
        {"repeat_penalty": 1.0, "timings_per_token": False, "reasoning_effort": "medium"},
        {"cache_prompt": True, "keep_alive": "5m", "priority": 0, "request_id": "x", "ttl": 300},
        {"models": ["x"], "conversation_id": "x", "max_retries": 2, "add_special_tokens": False},
        {"chat_id": "x", "session_id": "x", "id": "x", "background_tasks": {}, "features": {}},
        {"variables": {}, "model_item": {}, "tool_ids": [], "tool_servers": [], "files": []},
        {"tools": [], "tool_choice": "auto"},
        {"tools": None, "functions": [], "tool_choice": None, "function_call": "none"},
        {"tools": [{"type": "function", "function": {"name": "x"}}], "tool_choice": "none"},
        {"functions": [{"name": "x"}], "function_call": "none"},
        {"stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"model": None, "stream": None, "stream_options": None, "response_format": None},
    ],
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert ask(**fields).options(SERVER) == SERVER
    assert ask(**fields).schema_wanted() is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools"),
        ({"tools": [{}], "tool_choice": "auto"}, "tools"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"function_call": {"name": "x"}}, "function_call"),
    ],
)
def test_tools_are_refused_in_one_sentence(fields: dict[str, Any], param: str) -> None:
    assert str(refusal(**fields)) == (
        f'{param}: tools are not supported; leave them out, or send "tool_choice": "none"'
    )


# ---- messages


def image_url(value: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": value}


def texts(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


def test_roles_become_those_that_checkpoints_know() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "größe", "arguments": "[1, 2]"}}
    messages = [
        {"role": "system", "content": ""},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Add", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": "3"}], "tool_call_id": "1"},
        {"role": "assistant", "content": "So", "function_call": {"name": "x", "arguments": ""}},
        {"role": "function", "name": "x", "content": "4"},
        {"role": "assistant", "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "Never."}]},
        {"role": "user", "content": "Why?"},
    ]
    assert texts(said(*messages)) == [
        ("system", "Be brief."),
        ("user", "Add"),
        ("assistant", '{"name": "größe", "arguments": "[1, 2]"}'),
        ("user", "3"),
        ("assistant", 'So {"name": "x", "arguments": ""}'),
        ("user", "4"),
        ("assistant", "No."),
        ("assistant", "Never."),
        ("user", "Why?"),
    ]


@pytest.mark.parametrize("content", ["", None, [], [{"type": "text", "text": ""}], ...])
def test_an_answer_may_be_empty(content: Any) -> None:
    answer = {"role": "assistant"} | ({} if content is ... else {"content": content})
    messages = said(*HELLO, answer, *HELLO)
    assert texts(messages) == [("user", "Hello"), ("assistant", ""), ("user", "Hello")]
    assert all(message.parts for message in messages)  # templates look at the first


URL = data_url(PICTURE)
RAW = base64.b64decode(URL.partition(",")[2])
VIDEO = "data:video/mp4;base64," + base64.b64encode(encode_video(4)).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": {"url": URL, "detail": "original"}},
        {"type": "image_url", "image_url": {"url": URL, "detail": None}, "name": None},
        {"type": "image_url", "image_url": URL},
        {"type": "image_url", "image_url": f"\n {URL}\n"},
        {"type": "image_url", "image_url": URL.rstrip("=")},
        {"type": "image_url", "image_url": URL.replace("image/png", "image/jpeg")},
        {"type": "image_url", "image_url": URL.replace("image/png", "application/octet-stream")},
        {"type": "image_url", "image_url": "data:;base64," + base64.encodebytes(RAW).decode()},
        {
            "type": "image_url",
            "image_url": "data:image/png;base64," + base64.urlsafe_b64encode(RAW).decode(),
        },
        {"type": "input_image", "image_url": URL, "detail": "auto"},
        {"type": "image", "base64": URL.partition(",")[2]},
        {"type": "image", "url": URL},
        {"type": "image", "image": URL},
    ],
)
def test_a_picture_comes_in_many_forms(part: dict[str, Any]) -> None:
    words = [{"type": "input_text", "text": "What"}, part, {"type": "text", "text": "is it?"}]
    (message,) = said({"role": "user", "content": words})
    assert message.text == "What is it?"
    (picture,) = message.media
    assert isinstance(picture, Attachment)
    assert picture.data == RAW


@pytest.mark.parametrize(
    "source",
    [
        {"type": "video_url", "video_url": {"url": VIDEO}},
        {"type": "video_url", "video_url": VIDEO},
        {"type": "video", "base64": VIDEO.partition(",")[2]},
    ],
)
def test_a_video_keeps_its_options(source: dict[str, Any]) -> None:
    options = {"fps": 2, "max_frames": 3.0, "start": 0.5, "end": None}
    (message,) = said({"role": "user", "content": [source | options]})
    (part,) = message.media_parts
    assert isinstance(message.media[0], Video)
    assert vars(part)["options"] == {"fps": 2.0, "max_frames": 3, "start": 0.5}


def test_what_conversations_are_told_as_may_be_asked_again() -> None:
    messages = said({"role": "user", "content": [{"type": "image_url", "image_url": URL}]})
    assert to_json(said(*to_json(messages))) == to_json(messages)


@pytest.mark.parametrize("form", ["within", "beside", "input_image", "image"])
def test_detail_low_is_one_tile_for_that_picture(form: str) -> None:
    def part(detail: str | None) -> dict[str, Any]:
        if form == "within":
            return image_url({"url": URL, "detail": detail})
        if form == "image":
            return {"type": form, "url": URL, "detail": detail}
        return {"type": form.replace("beside", "image_url"), "image_url": URL, "detail": detail}

    details = ["low", "high", "auto", "original", None, "low"]
    messages = [{"role": "user", "content": [part(detail) for detail in details]}]
    for fields, low in (({}, ONE_TILE), ({"max_tiles": 2}, replace(ONE_TILE, max_tiles=2))):
        (message,) = ask(messages=messages, **fields).read(
            LIMITS, Recent(), ONE_TILE, Spent(Budget(), VideoSampling())
        )
        options = [picture.options for picture in message.parts if isinstance(picture, ImagePart)]
        assert options == [low if detail == "low" else ImageOptions() for detail in details]


WORDS = {"type": "text", "text": "a"}
LONG_VIDEO = {"type": "video_url", "video_url": VIDEO}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, ".content: missing; give text or a list of parts"),
        ([], ".content: missing; give text or a list of parts"),
        (5, ".content: must be a text or a list of parts"),
        (["a"], ".content.0: must be an object, not 'a'"),
        ([{"type": "text"}], ".content.0.text: missing"),
        ([{"text": "a"}], ".content.0.type: missing"),
        ([WORDS, {"type": "input_audio"}], ".content.1.type: must be one of 'text', "),
        ([WORDS, {"type": ["text"]}], ".content.1.type: must be one of 'text', "),
        ([{"type": "image_url"}], ".content.0.image_url: missing"),
        ([image_url(5)], ".content.0.image_url: must be an object, not 5"),
        ([image_url({})], ".content.0.image_url.url: missing"),
        ([image_url({"url": URL, "detail": "x"})], ".content.0.image_url.detail: must be 'auto', "),
        ([image_url({"url": URL, "detale": "low"})], ".content.0.image_url.detale: is no field; "),
        ([WORDS, image_url("data:;base64,AAAA")], ".content.1: the picture is not a readable "),
        ([image_url("/etc/passwd")], ".content.0: "),
        ([image_url("https://example.com/a.png")], ".content.0: URLs are not fetched here"),
        ([{"type": "image"}], ".content.0: an image part needs one of "),
        ([{"type": "image", "url": URL, "base64": "x"}], ".content.0: an image part needs one of "),
        (
            [{"type": "image", "url": URL, "max_pixels": 9}],
            ".content.0.max_pixels: say longest_edge",
        ),
        ([LONG_VIDEO | {"fps": "x"}], ".content.0.fps: must be a valid number, not 'x'"),
        ([LONG_VIDEO | {"nframes": 4}], ".content.0.nframes: say max_frames"),
    ],
)
def test_an_error_names_the_part(content: Any, error: str) -> None:
    refused = refusal(messages=[*HELLO, {"role": "user", "content": content}])
    assert str(refused).startswith(f"messages.1{error}")
    assert refused.param == f"messages.1{error.partition(':')[0]}"


def test_256_pictures_may_be_asked_about() -> None:
    pictures = [image_url(URL)] * 256
    assert len(ask(messages=[{"role": "user", "content": [*pictures, WORDS]}]).media) == 256


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], ": List should have at least 1 item after validation, not 0"),
        ({}, ": must be a valid list, not an object"),
        ([5], ".0: must be an object, not 5"),
        ([{"content": "x"}], ".0.role: missing"),
        ([{"role": "robot", "content": "x"}], ".0.role: must be 'system', "),
        ([*HELLO, {**HELLO[0], "images": ["a"]}], ".1.images: say it in content, as parts"),
        ([{"role": "user", "contents": "x"}], ".0.contents: is no field; did you mean content?"),
        (
            [{"role": "user", "content": [image_url(URL)] * 200}, *HELLO] * 2,
            ": 400 pictures and videos; the limit is 256",
        ),
    ],
)
def test_an_error_names_the_message(messages: Any, error: str) -> None:
    assert str(refusal(messages=messages)).startswith(f"messages{error}")


# ---- a real server


@pytest.fixture
def goes_on(server: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Its answers do not end by themselves, and so have time to differ."""
    monkeypatch.setattr(server.service.processor.tokenizer, "end_ids", frozenset())
    return server


def content(server: Running, body: dict[str, Any]) -> str:
    answer = server.complete(body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(("kind", "name"), [o for o in OPTIONS if o[1] not in UNSEEN])
def test_an_option_changes_the_answer_of_a_server(kind: type, name: str, goes_on: Running) -> None:
    asked = question("Which colors are there?", URL)
    if name in REFUSED:
        error = goes_on.complete({**asked, name: REFUSED[name]}).json()["error"]
        assert name in error["message"]
        return
    fields, value = CHANGES[name]
    asked |= {"max_tokens": 24, **fields}
    before = content(goes_on, asked)
    value = before[4:6] if name == "stop" else value
    assert content(goes_on, {**asked, name: value}) != before


def test_the_likeliest_token_alone_is_one_answer_whatever_the_seed(goes_on: Running) -> None:
    asked = question("Hello", max_tokens=20, temperature=2)
    answers = {content(goes_on, {**asked, "seed": seed, "top_k": 1}) for seed in range(4)}
    assert answers == {content(goes_on, {**asked, "temperature": 0})}
    assert len({content(goes_on, {**asked, "seed": seed}) for seed in range(4)}) > 1


@pytest.mark.parametrize("text", ["<image>", "<end_of_utterance>", "a <|im_end|> b"])
def test_what_a_schema_spells_is_the_answer(text: str, server: Running) -> None:
    assert content(server, question("What?", **always(text))) == json.dumps(text)


def test_a_conversation_that_says_nothing_is_one_line(server: Running) -> None:
    answer = server.complete({"messages": [{"role": "system", "content": ""}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("messages")


def test_a_last_answer_is_followed_by_another(server: Running) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Good"}]
    assert content(server, {"messages": messages, "max_tokens": 5})


def test_an_error_of_a_server_has_its_param(server: Running) -> None:
    asked = question("What?", "data:image/png;base64,AAAA", max_tokens=1)
    for body, param in (
        (asked, "messages.0.content.0"),
        ({**question("What?"), "temprature": 1}, "temprature"),
        ({}, "messages"),
    ):
        answer = server.complete(body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(f"{param}: ")


@pytest.mark.slow
def test_an_answer_may_be_as_long_as_there_is_room(goes_on: Running) -> None:
    usage = goes_on.complete(question("word " * 808, max_tokens=-1)).json()["usage"]
    assert usage["prompt_tokens"] > 4040
    assert usage["total_tokens"] == 4096


def test_as_many_pictures_as_there_is_room_for(server: Running) -> None:
    asked = question("What?", *[URL] * 40, split=False, max_tokens=1)
    usage = server.complete(asked).json()["usage"]
    assert usage["timing"]["tiles"] == 40
    error = server.complete(question("What?", *[URL] * 200)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "2600 tiles" in error["message"]


# ---- bodies


HALF = "the body holds half a surrogate pair, which is no character; remove it"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "the body is not JSON: "),
        (b"{", "the body is not JSON: "),
        (b"messages=x", "the body is not JSON: "),
        (b"[" * 100_000, "the body has 100001 values; the limit is 20000"),
        (b'"' + b"\xff" * 50, "the body is not JSON: "),
        (b"1" * 5000, "the body has 5000 characters in a number; the limit is 1000"),
        (b'{"temperature\\ud83d": 1}', HALF),
        (b'{"x": {"stop": ["\\uDE00"]}}', HALF),
        (b'{"x": "\xed\xa0\xbd"}', "the body is not JSON: "),
        (b'{"messages": NaN}', "the body is not JSON: NaN is no JSON"),
        (b'{"messages": -Infinity}', "the body is not JSON: -Infinity is no JSON"),
        (b"[]", "the body is a list, not an object with messages"),
        (b"null", "the body is null, not an object with messages"),
        (b'"' + b"x" * 999 + b'"', "the body is 'xxxx"),
        (b'{"seed": 1, "seed": 2}', "the key 'seed' is there twice; send it once"),
        (b'{"n": 1, "seed": 1, "seed": 2}', "the key 'seed' is there twice; send it once"),
        (b'{"messages": [{"role": 1, "role": 2}]}', "the key 'role' is there twice; send it once"),
        (b"{}", "messages: missing"),
        (
            json.dumps({f"x{n}": n for n in range(101)}).encode(),
            "x100: 101 fields in one object",
        ),
    ],
)
def test_a_body_that_is_no_request_is_one_line(body: bytes, error: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest.parse(body)
    assert str(caught.value).startswith(error)
    assert len(str(caught.value)) < 200


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.text(max_size=9), values, max_size=3)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=9),
    lambda values: st.lists(values, max_size=3) | objects(values),
    max_leaves=5,
)
FIELDS = sorted(ChatRequest.model_json_schema()["properties"])
TYPES = ["text", "image_url", "input_image", "image", "video_url", "refusal", "x"]
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional=dict.fromkeys(("text", "image_url", "video_url", "url", "detail", "fps"), JSON),
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
    optional={"content": JSON | st.lists(PARTS, max_size=3), "tool_calls": JSON, "refusal": JSON},
)


def outcome(body: dict[str, Any]) -> ChatRequest | PromptError:
    try:
        request = ChatRequest.parse(json.dumps(body).encode())
        request.read(LIMITS, Recent(), ONE_TILE, spent())
        return request
    except PromptError as error:
        return error


@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), JSON, max_size=3),
    st.lists(MESSAGES, max_size=3),
)
def test_whatever_comes_is_a_request_or_one_line(fields: Any, messages: Any) -> None:
    got = outcome({"messages": messages, **fields})
    if isinstance(got, ChatRequest):
        assert isinstance(got.options(), Options)
        assert isinstance(got.image_options(PICTURES), ImageOptions)
    else:
        assert "\n" not in str(got)
        assert len(str(got)) < 400
        assert not any(noise in str(got) for noise in ("Input should", "TextPart", "union"))
