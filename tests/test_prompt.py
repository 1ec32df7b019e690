"""Messages, chat templates and their homes; and what a hostile template can do: nothing, and that
quickly."""

import base64
import hashlib
import json
import os
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import CheckpointError, PromptError
from smolvlm_mlx.inputs import prompt as template
from smolvlm_mlx.inputs.media import Attachment, Frames
from smolvlm_mlx.inputs.messages import (
    Message,
    Part,
    TextPart,
    VideoPart,
    from_json,
    parse_messages,
    text_message,
    to_json,
    user_message,
)
from smolvlm_mlx.inputs.prompt import FAMILY_TEMPLATE, ChatTemplate, free_character, image_text
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.tiles import plan_tiles
from smolvlm_mlx.inputs.tokenizer import chat_template, special_tokens
from tests.support.checkpoints import load_processor
from tests.support.places import REAL_FILES

import numpy as np
import pytest
from PIL import Image

PICTURE: dict[str, Any] = {"type": "image", "image": Image.new("RGB", (4, 4))}
TEXT = {"type": "text", "text": "Hi"}


def render(
    source: str | None,
    messages: Any = ({"role": "user", "content": "Hi"},),
    generation: bool = True,
) -> str:
    return ChatTemplate(source).render(plain(messages), generation)


def plain(messages: Any) -> list[dict[str, Any]]:
    """What a template gets of messages: no pictures."""

    def bare(part: Part) -> dict[str, str]:
        return (
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        )

    parsed = parse_messages(messages)
    return [
        {"role": message.role, "content": [bare(part) for part in message.parts]}
        for message in parsed
    ]


# ---- messages


@pytest.mark.parametrize(
    "messages",
    [None, [], (), "Hello", b"Hello", {"role": "user", "content": "Hi"}, 5, iter([])],
    ids=lambda messages: type(messages).__name__,
)
def test_messages_that_are_no_list(messages: Any) -> None:
    with pytest.raises(PromptError, match=r"^messages must be a non-empty list"):
        parse_messages(messages)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("Hello", "is a str, not an object"),
        (None, "is a NoneType, not an object"),
        ({}, "role"),
        ({"content": "Hi"}, "role"),
        ({"role": None, "content": "Hi"}, "role"),
        ({"role": 5, "content": "Hi"}, "role"),
        ({"role": "", "content": "Hi"}, "role"),
        ({"role": "<image>", "content": "Hi"}, "role"),
        ({"role": "user\n", "content": "Hi"}, "role"),
        ({"role": "u" * 99 + " ", "content": "Hi"}, "role"),
        ({"role": "user"}, "content must be"),
        ({"role": "user", "content": None}, "content must be"),
        ({"role": "user", "content": []}, "content must be"),
        ({"role": "user", "content": 7}, "content must be"),
        ({"role": "user", "content": {"type": "text", "text": "Hi"}}, "content must be"),
        ({"role": "user", "content": b"Hi"}, "part"),
        ({"role": "user", "content": ["Hi"]}, "part 'str' is not 'text'"),
        ({"role": "user", "content": [None]}, "part 'NoneType' is not 'text'"),
        ({"role": "user", "content": [{}]}, "part 'dict' is not 'text'"),
        ({"role": "user", "content": [{"type": "audio"}]}, "part 'audio' is not 'text'"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "is not 'text'"),
        ({"role": "user", "content": [{"type": "text"}]}, "a text part without text"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "a text part without text"),
        (
            {"role": "user", "content": [{"type": "text", "text": b"Hi"}]},
            "a text part without text",
        ),
        ({"role": "user", "content": [{"type": "image"}]}, "it has none"),
        ({"role": "user", "content": [{"type": "image", "path": None}]}, "it has none"),
        (
            {"role": "user", "content": [{"type": "image", "path": "a", "url": "b"}]},
            "it has path, url",
        ),
        ({"role": "user", "content": [{"type": "image_url"}]}, "it has none"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "it has none"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_errors_name_the_message(message: Any, problem: str) -> None:
    good = {"role": "user", "content": "Hi"}
    with pytest.raises(PromptError) as raised:
        parse_messages([good, message])
    text = str(raised.value)
    assert text.startswith("message 2")
    assert problem in text
    assert "\n" not in text
    assert len(text) < 300


def test_one_form(tmp_path: Path) -> None:
    PICTURE["image"].save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    openai = {"type": "image_url", "image_url": {"url": url}}
    ours = {"type": "image", "path": str(tmp_path / "a.png"), "detail": 1}
    (message,) = parse_messages([{"role": "user", "name": "left out", "content": (openai, ours)}])
    assert message.role == "user"
    assert [(held.data, held.name) for held in message.media] == [
        (data, "picture"),
        (data, "a.png"),
    ]
    assert parse_messages(({"role": "assistant", "content": ""},)) == [
        text_message("assistant", "")
    ]
    assert parse_messages([message]) == [message]
    built = user_message("Hi", [tmp_path / "a.png", openai, message.parts[0], message.media[1]])
    assert [held.data for held in built.media] == [data] * 4
    assert built.parts[-1] == TextPart("Hi")
    assert user_message("Hi", message.media) == Message("user", (*message.parts, TextPart("Hi")))


def test_json_and_back(tmp_path: Path) -> None:
    """Also frames that are given one by one."""
    frames = {"type": "video", "frames": [PICTURE["image"]] * 2, "fps": 2}
    messages = parse_messages(
        [{"role": "user", "content": [PICTURE, frames, TEXT]}, text_message("assistant", "So")]
    )
    messages[1] = replace(messages[1], interrupted=True)
    again = from_json(json.loads(json.dumps(to_json(messages))))
    assert to_json(again) == to_json(messages)
    assert again[1] == messages[1]


def test_frames() -> None:
    held = Attachment(PICTURE["image"])
    frames = [held, {"image": held}, {"type": "image", "image": held}, PICTURE["image"], PICTURE]
    (message,) = parse_messages(
        [{"role": "user", "content": [{"type": "video", "frames": frames, "fps": 2}, TEXT]}]
    )
    (part,) = message.media_parts
    assert isinstance(part, VideoPart)
    assert isinstance(part.video, Frames)
    assert [frame is held for frame in part.video.frames] == [True, True, True, False, False]
    video = np.zeros((3, 48, 64, 3), np.uint8)
    for given in (video, iter(video)):
        (message,) = parse_messages(
            [{"role": "user", "content": [{"type": "video", "frames": given}]}]
        )
        (part,) = message.media_parts
        assert isinstance(part, VideoPart)
        assert isinstance(part.video, Frames)
        assert [frame.size for frame in part.video.frames] == [(64, 48)] * 3
    for wrong in (5, "ab", {"a": 1}, True):
        with pytest.raises(PromptError, match=r"message 1: frames .* are no list of pictures"):
            parse_messages([{"role": "user", "content": [{"type": "video", "frames": wrong}]}])


# ---- templates


def test_the_familys_template() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [PICTURE, TEXT, PICTURE]},
        {"role": "assistant", "content": [TEXT]},
        {"role": "user", "content": [TEXT, PICTURE]},
    ]
    assert render(None, messages) == (
        "<|im_start|>System: Be brief.<end_of_utterance>\nUser:<image>Hi<image><end_of_utterance>\n"
        "Assistant: Hi<end_of_utterance>\nUser: Hi<image><end_of_utterance>\nAssistant:"
    )
    assert render(None, messages, generation=False).endswith("User: Hi<image><end_of_utterance>\n")
    as_list: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        *messages[1:],
    ]
    assert render(None, messages) == render(None, as_list)


def test_the_sandbox_renders_the_familys_template_as_jinja_does() -> None:
    messages: list[Any] = [
        {"role": "user", "content": [PICTURE, TEXT]},
        {"role": "assistant", "content": "{{ x }} <b> &amp;"},
    ]
    assert not ChatTemplate(FAMILY_TEMPLATE + "{# changed #}").is_known
    assert ChatTemplate(FAMILY_TEMPLATE).is_known
    assert render(FAMILY_TEMPLATE + "{# changed #}", messages) == render(None, messages)


def test_the_familys_template_is_the_published_one() -> None:
    digest = "830005085ddd94cec605b6e21b885b28ffad6e3f82ee6a212c523533e8f04f01"
    assert hashlib.sha256(FAMILY_TEMPLATE.encode()).hexdigest() == digest
    published = [path for path in REAL_FILES.glob("*") if path.is_dir()]
    assert {chat_template(folder) for folder in published} <= {FAMILY_TEMPLATE}


GENEROUS = (
    "{%- set ns = namespace(first=true, n=0) -%}{% macro show(m) %}{{ m.role | upper }}{% endmacro "
    "%}{%- if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest "
    "= messages %}{% endif -%}{% for m in rest %}{% if loop.first %}{{ '[' + show(m) ~ ']' }}{% "
    "endif %}{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part.text | "
    "trim }}{% endfor %}{% set ns.n = ns.n + 2 * loop.index % 3 %}{{ ' '.join(['a', 'b']) }}{{ "
    "m['content'] | map(attribute='type') | join(',') }}{{ 'x-y'.split('-')[1] }}{{ "
    "'aXbX'.replace('X', '..') | replace('..', '+') }}{{ m | tojson }}{{ tools | default('no') "
    "}}{% if not loop.last %}{% continue %}{% endif %}{% endfor %}{{ ns.n }}{{ tools is defined }}"
)


def test_what_templates_of_others_use() -> None:
    assert render(
        GENEROUS, [{"role": "system", "content": "S"}, {"role": "user", "content": " é "}]
    ) == (
        '[USER]éa btextya+b+{"role": "user", "content": [{"type": "text", "text": " é "}]}None2True'
    )


def test_homes_of_the_template_as_transformers_has_them(tmp_path: Path) -> None:
    """The processor's before the tokenizer's; its own file of the older kind before the newer."""
    assert chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "tokenizer's"}))
    assert chat_template(tmp_path) == "tokenizer's"
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text("rag")
    assert chat_template(tmp_path) == "tokenizer's"
    (folder / "default.jinja").write_text("of several")
    assert chat_template(tmp_path) == "of several"
    (tmp_path / "chat_template.jinja").write_text("text {{ 'é' }}", encoding="utf-8")
    assert chat_template(tmp_path) == "text {{ 'é' }}"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "in json"}))
    assert chat_template(tmp_path) == "in json"
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": None}))
    assert chat_template(tmp_path) == "in json"
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": "processor's"}))
    assert chat_template(tmp_path) == "processor's"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
def test_of_several_templates_the_one_named_default_is_used(name: str, tmp_path: Path) -> None:
    named = ["odd", {"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]
    for several in (named, {"rag": "a", "default": "b"}):
        (tmp_path / name).write_text(json.dumps({"chat_template": several}))
        assert chat_template(tmp_path) == "b"
    (tmp_path / name).write_text(json.dumps({"chat_template": named[:2]}))
    with pytest.raises(CheckpointError) as raised:
        chat_template(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path / name}: chat_template has 'rag', and none named 'default'; write the one to "
        "use into chat_template.json"
    )


def test_templates_in_a_folder_of_which_none_is_named_default(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    with pytest.raises(CheckpointError, match="'rag', and none named 'default'"):
        chat_template(tmp_path)


def test_special_tokens_are_those_of_the_tokenizers_files(tmp_path: Path) -> None:
    assert special_tokens(tmp_path) == {}
    config: dict[str, object] = {
        "bos_token": "<s>",
        "pad_token": {"content": "<pad>", "lstrip": False},
        "mask_token": None,
        "image_token": "<image>",
        "add_bos_token": False,
        "extra_special_tokens": {"row": "<row>"},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    named = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "image_token": "<image>",
        "row": "<row>",
    }
    assert special_tokens(tmp_path) == named
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert special_tokens(tmp_path) == {**named, "eos_token": "</s>"}
    config["added_tokens_decoder"] = {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert special_tokens(tmp_path) == named


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content[0].text }}{{ eos_token }}", "<s>Hi</s>"),
        ("{{ pad_token is defined }}{{ tools is none }}{{ documents is none }}", "FalseTrueTrue"),
        ("{{ strftime_now('%%') }}{{ strftime_now('%Y') | length }}", "%4"),
        ("a{% generation %}b{{ bos_token }}{% endgeneration %}c", "ab<s>c"),
        ("{%- generation -%}\n b {%- endgeneration -%}\n c", "bc"),
        ("{{ {'b': 'é', 'a': 1} | tojson }}", '{"b": "é", "a": 1}'),
        (
            "{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, separators=(',', ':'), "
            "sort_keys=true) }}",
            r'{"a":1,"b":"\u00e9"}',
        ),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for a in [1, 2] %}{{ a }}{% break %}{% endfor %}", "1"),
    ],
)
def test_templates_get_what_transformers_gives_them(source: str, text: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(plain([{"role": "user", "content": "Hi"}]), True) == text


def test_a_loaded_checkpoint_gives_its_template_its_tokens(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.json").unlink()
    config |= {
        "bos_token": "<|im_start|>",
        "chat_template": [{"name": "default", "template": "{{ bos_token }}x{{ eos_token }}"}],
        "eos_token": "<end_of_utterance>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    processor = load_processor(folder)
    added = processor.tokenizer.added
    assert processor([{"role": "user", "content": "Hi"}]).input_ids.tolist() == [
        added["<|im_start|>"],
        *processor.tokenizer.encode_text("x"),
        added["<end_of_utterance>"],
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe{{"),
        ("chat_template.json", b"{"),
        ("chat_template.json", b"[]"),
        ("chat_template.json", b'{"chat_template": 5}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}'),
    ],
)
def test_damaged_homes(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        chat_template(tmp_path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


DOUBLE = (
    "{% set ns = namespace(s='ab', l=['ab']) %}"
    "{% for i in range(200) %}{% set ns.s = %s %}{% endfor %}{{ ns.s }}"
)
BIG = "{% set b = 'a' %}" + "{% set b = b + b %}" * 21  # 2 million characters
NEST = "{% set a = ['x'] %}" + "{% set a = [a, a] %}" * 60
HOSTILE = {
    # escapes
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by getattr": "{{ ''|attr('__class__') }}",
    "class by key": "{{ ''['__class__'].__mro__ }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list | first }}"
    "{{ raise_exception('none') }}",
    "class by format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "class by format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "globals": "{{ raise_exception.__globals__['sys'] }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "func": "{{ namespace.__init__.__globals__.os.system('true') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner()() }}",
    "namespace": "{{ namespace(x=1).__class__ }}{{ namespace.mro() }}",
    "self": "{{ self._TemplateReference__context.environment.left }}",
    "environment": "{{ environment.left }}",
    "loop": "{% for m in messages %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "generator": "{{ (messages | map('upper')).gi_frame.f_builtins }}",
    "import": "{% import 'os' as os %}{{ os.system('true') }}",
    "from": "{% from 'os' import system %}",
    "include": "{% include '/etc/passwd' %}",
    "include unless there": "{% include '/etc/passwd' ignore missing %}",
    "extends": "{% extends '/etc/passwd' %}",
    "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "append": "{{ messages.append(messages[0]) }}",
    "update": "{{ messages[0].update({'role': 'x'}) }}",
    "clear": "{% set _ = messages[0]['content'].clear() %}",
    "fromkeys": "{{ {}.fromkeys(range(99999), messages) }}",
    # time
    "endless by range": "{% for a in range(99999) %}"
    "{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "huge range": "{% for a in range(10**12) %}{% endfor %}",
    "huge range without power": "{% for a in range(1000000000000) %}{% endfor %}",
    "range to text": "{{ range(99999) | map('string') | join | length }}"
    "{{ range(99999) | sort | string }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "forking macro": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "squares": "{% set ns = namespace(n=9) %}"
    "{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "rounding": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "strip by another": BIG + "{{ b.strip(b ~ 'c') }}",
    "backward search": BIG + "{{ b.rfind('b' ~ b) }}",
    "comparisons on a line": NEST.replace("60", "17") + "{{ " + "a == b or " * 3000 + "1 }}",
    "regular expression": BIG + "{{ b | urlize }}",
    "tags": "{{ '<' * 99999 | striptags }}",
    "hash": NEST.replace("[", "(").replace("]", ",)") + "{{ {a: 1} }}",
    "long expression": "{{ " + "1 + " * 16000 + "1 }}",
    "brackets": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "lists": "{{ " + "[" * 9000 + "]" * 9000 + " }}",
    "nested blocks": "{% if 1 %}" * 3000 + "x" + "{% endif %}" * 3000,
    "nested loops": "{% for a in messages %}" * 30 + "x" + "{% endfor %}" * 30,
    "not not": "{{ " + "not " * 15000 + "1 }}",
    "very long": "x" * 10**7,
    "spaces": "{%" + " " * 60000,
    "lines": "\n" * 60000 + "{{",
    "many expressions": "{{ 1 }}" * 9000 + "{{ nothing.at.all }}",
    # memory
    "times": "{{ 'a' * 1000000000 }}",
    "list times": "{{ [1] * 1000000000 }}",
    "tilde": DOUBLE.replace("%s", "ns.s ~ ns.s"),
    "plus": DOUBLE.replace("%s", "ns.s + ns.s"),
    "list plus": DOUBLE.replace("ns.s = %s", "ns.l = ns.l + ns.l"),
    "join": DOUBLE.replace("%s", "ns.s.join([ns.s, ns.s, ns.s])"),
    "join filter": DOUBLE.replace("%s", "[ns.s, ns.s] | join(ns.s)"),
    "replace": DOUBLE.replace("%s", "ns.s.replace('a', 'aaaa')"),
    "replace filter": DOUBLE.replace("%s", "ns.s | replace('a', 'aaaa')"),
    "replace by itself": DOUBLE.replace("%s", "ns.s.replace('a', ns.s)"),
    "set block": "{% set s = 'ab' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60 + "{{ s }}",
    "filter block": DOUBLE.replace(
        "{% set ns.s = %s %}", "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"
    ),
    "macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}" + DOUBLE.replace("%s", "m(ns.s)"),
    "caller": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 40
    + "a"
    + "{% endcall %}" * 40,
    "percent": "{{ '%1000000000d' % 5 }}",
    "format": "{{ '{:>1000000000}'.format(5) }}",
    "format filter": "{{ '%01000000000d' | format(5) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "zfill": "{{ '1'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "tojson indent": "{{ messages | tojson(indent=1000000000) }}",
    "date": "{{ strftime_now('%c' * 99999999) }}",
    "much generation": "{% generation %}" * 3000 + "x" + "{% endgeneration %}" * 3000,
    "tojson of many": NEST + "{{ a | tojson }}",
    "list to text": NEST + "{{ a }}",
    "list to text by tilde": NEST + "{{ a ~ '' }}",
    "list to text by filter": NEST + "{{ a | string }}",
    "list to text by join": NEST + "{{ a | join }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "sum": "{{ [[1], [2]] | sum(start=[]) }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "to_bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "encode": BIG + "{{ b.encode('utf-32') }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "split": BIG + "{{ b.split('a') | length }}",
    "split by spaces": BIG.replace("'a'", "' a'") + "{{ b.split() | length }}",
    "slices": BIG
    + "{% set ns = namespace() %}"
    + "".join(f"{{% set a{n} = b[1:] %}}" for n in range(2000))
    + "{{ a1 }}",
    "output": BIG + "{% for i in range(99999) %}{{ b }}{% endfor %}",
    "output of one line": BIG + "{{ b }}" * 5000,
    "map": BIG + "{{ range(99999) | map('replace', 1, b) | list }}",
    "upper": BIG
    + "{% set ns = namespace(l=[]) %}"
    + "{% for i in range(9999) %}{% set ns.l = ns.l + [b.upper()] %}{% endfor %}",
    "literals": BIG + "{{ [" + "b," * 20000 + "] | length }}",
    # errors
    "syntax": "{% for %}",
    "unknown tag": "{% exec 'x' %}",
    "unfinished": "{{ messages",
    "raise": "{{ raise_exception('Roles must alternate\nuser, assistant') }}",
    "raise nothing": "{{ raise_exception('') }}",
    "raise number": "{{ raise_exception(5) }}",
    "raise much": "{{ raise_exception('x' ~ messages[0].role ~ 'y' ) }}",
    "undefined attribute": "{{ messages[0].nothing.at.all }}",
    "undefined call": "{{ strftime_now('%Y') }}",
    "undefined filter": "{{ messages | nothing }}",
    "wrong type": "{{ 5 | dictsort }}",
    "wrong key": "{{ messages['a']['b'] }}",
    "division": "{{ 1 // 0 }}",
    "no arguments": "{{ ''.replace() }}{{ namespace(1) }}",
    "address": "{{ messages[0].get }}",
}


QUICK = [
    "class",
    "import",
    "endless by range",
    "recursive macro",
    "times",
    "tilde",
    "raise",
    "syntax",
    "undefined attribute",
]


def attack(name: str) -> None:
    """It ends, as one line of error or as text; Jinja makes an undefined, empty value of many an
    attempt."""
    messages = plain([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [TEXT]}])
    try:
        text, problem = ChatTemplate(HOSTILE[name]).render(messages, True), ""
    except PromptError as error:
        text, problem = "", str(error)
    assert len(text) <= template.MAX_CHARACTERS
    assert not any(secret in text for secret in ("root:", "uid=", "<class", "module"))
    assert len(problem) < 300
    assert "\n" not in problem
    assert " at 0x" not in problem


@pytest.mark.parametrize("name", QUICK)
def test_hostile_template(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "CPU_SECONDS", 1)
    attack(name)


def test_a_template_may_wait_for_the_processor_but_not_have_it_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template, "CPU_SECONDS", 1)
    source = HOSTILE["endless by range"]
    with pytest.raises(PromptError, match="template takes more than 1 s of the processor"):
        render(source)
    monkeypatch.setattr(template, "SECONDS", 0.5)
    with pytest.raises(PromptError, match=r"template takes longer than 0\.5 s"):
        render(source)


@pytest.mark.slow
def test_all_hostile_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "CPU_SECONDS", 1)
    for name in HOSTILE:
        started = sum(os.times()[2:4])
        attack(name)
        assert sum(os.times()[2:4]) - started < 2
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (
        1024 if sys.platform == "darwin" else 1
    )
    if sys.platform == "linux":  # macOS keeps no limit on a process's memory
        assert kilobytes < template.MEMORY / 1024


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("'Roles must\talternate'", "Roles must alternate"),
        ("'<a at 0xF0a> b'", "<a> b"),
        ("'x' * 167", "x" * 167),
        ("'x' * 168", "x" * 164 + "..."),
    ],
)
def test_what_a_template_raises_is_said_in_one_line(raised: str, said: str) -> None:
    with pytest.raises(PromptError) as caught:
        render(f"{{{{ raise_exception({raised}) }}}}")
    start = "the checkpoint's chat template fails: jinja2.exceptions.TemplateError: "
    assert str(caught.value) == start + said


def test_a_long_conversation_is_no_hostile_one() -> None:
    assert (template.MEMORY, template.MAX_CHARACTERS) == (2**29, 2**24)
    source = FAMILY_TEMPLATE + "{# changed #}"
    messages = [user_message("word " * 200, [PICTURE]) for _ in range(300)]
    assert render(source, messages) == render(None, messages)
    assert render(source, [user_message("x" * 2_000_000)]).count("x") == 2_000_000


# ---- text of pictures


def test_image_text() -> None:
    settings = ImageSettings(tile_size=10, longest_edge=30)
    split = image_text(plan_tiles((30, 20), settings), 2)
    two = "<image><image>"
    rows = [
        "".join(f"<fake_token_around_image><row_{r}_col_{c}>{two}" for c in (1, 2, 3)) + "\n"
        for r in (1, 2)
    ]
    whole = f"<fake_token_around_image><global-img>{two}<fake_token_around_image>"
    assert split == rows[0] + rows[1] + "\n" + whole
    assert image_text(plan_tiles((30, 20), ImageSettings(10, 30, split=False)), 2) == whole


def test_free_character() -> None:
    assert free_character([]) == "\ufdd0"
    assert free_character(["\ufdd0\ufdd1", "\ufdd3"]) == "\ufdd2"
    everything = "".join(map(chr, [*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFD)]))
    assert free_character([everything[:-1]]) == "\U000ffffc"
    with pytest.raises(PromptError, match="every character"):
        free_character([everything])


def test_a_folder_without_template_uses_the_familys(tiny: Path, tmp_path: Path) -> None:

    folder = shutil.copytree(tiny, tmp_path / "copy")
    (folder / "chat_template.json").unlink()
    processor = load_processor(folder)
    assert processor.template.source == FAMILY_TEMPLATE
