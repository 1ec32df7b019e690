"""Conversations as Markdown, and as archives."""

import io
import zipfile
from dataclasses import replace

from smolvlm_mlx.inputs.media import Attachment, Video
from smolvlm_mlx.inputs.messages import ImagePart, Message, TextPart, VideoPart, text_message
from smolvlm_mlx.tasks.export import as_markdown, as_zip, file_name
from tests.support.pictures import noise
from tests.support.videos import encode_video

import pytest

CAT, SAME = Attachment(noise(30, 20), name="my cat (1).png"), Attachment(noise(30, 20), name="x")
DOG, CLIP = (
    Attachment(noise(20, 30), name="../é [dog]"),
    Video(encode_video(3, 10), name="clip.mp4"),
)
TALK = [
    text_message("system", "Be brief."),
    Message("user", (TextPart("This "), ImagePart(CAT), TextPart("or that?"), ImagePart(DOG))),
    text_message("assistant", "# A *cat*.\n"),
    Message("user", (ImagePart(SAME), VideoPart(CLIP, {}), TextPart("And now?"))),
    replace(text_message("assistant", "A"), interrupted=True),
]
NAMES = ["pictures/1-my-cat-1-.png", "pictures/2-é-dog-.png", "pictures/3-clip.mp4"]


def markdown(*media: str) -> str:
    cat, dog, same, clip = media
    return (
        f"# A title\n\n## Instructions\n\nBe brief.\n\n## You\n\nThis\n\n{cat}\n\nor that?\n\n{dog}"
        f"\n\n## Answer\n\n# A *cat*.\n\n## You\n\n{same}\n\n{clip}\n\nAnd now?\n\n## Answer\n\nA"
        "\n\n*(interrupted)*\n"
    )


def test_an_archive_has_each_picture_once_where_the_text_looks_for_it() -> None:
    with zipfile.ZipFile(io.BytesIO(as_zip(TALK, "A\n title"))) as archive:
        assert archive.namelist() == ["conversation.md", *NAMES]
        text = archive.read("conversation.md").decode()
        assert [archive.read(name) for name in NAMES] == [CAT.data, DOG.data, CLIP.data]
    cat, dog, clip = NAMES
    assert text == markdown(
        f"![my cat (1).png]({cat})", f"![../é (dog)]({dog})", f"![x]({cat})", f"[clip.mp4]({clip})"
    )


def test_text_alone_has_the_names() -> None:
    assert as_markdown(TALK, "A title") == markdown(
        "*my cat (1).png*", "*../é (dog)*", "*x*", "*clip.mp4*"
    )
    assert as_markdown(TALK).startswith("# This or that?\n")
    assert as_markdown([]) == "# Conversation\n"


@pytest.mark.parametrize(
    ("title", "name"),
    [("What is <this>?", "What-is-this"), ("../..", "conversation"), ("é" * 99, "é" * 60)],
)
def test_a_title_is_a_files_name(title: str, name: str) -> None:
    assert file_name(title) == name
