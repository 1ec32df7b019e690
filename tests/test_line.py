"""What a person types is read whole: each picture and video that a line names is attached or
missing by name, and what completion writes is what the command reads."""

import re
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from random import Random
from urllib.parse import quote

from smolvlm_mlx.cli.chat.completion import CommandCompleter, conversation, paths, setting
from smolvlm_mlx.cli.chat.line import read_line
from smolvlm_mlx.cli.chat.paths import no_such_file, read_path, read_sources, split_words
from smolvlm_mlx.errors import FetchError
from smolvlm_mlx.inputs.messages import text_message
from smolvlm_mlx.tasks.history import History

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

SCREENSHOT = "Screenshot 2026-01-01 at 9.41.00\u202fAM.png"
# The names on the disk, and as they are typed.
THERE = {
    "cat.jpg": "cat.jpg",
    "b.JPG": "b.JPG",
    "Bob's photo.jpg": "Bob's photo.jpg",
    "Ann’s cat.webp": "Ann's cat.webp",
    "two words.png": "two words.png",
    SCREENSHOT: SCREENSHOT.replace("\u202f", " "),
    unicodedata.normalize("NFD", "Café à Köln.jpeg"): unicodedata.normalize(
        "NFC", "Café à Köln.jpeg"
    ),
    unicodedata.normalize("NFC", "Crème.png"): unicodedata.normalize("NFD", "Crème.png"),
    "photo(1).png": "photo(1).png",
    "写真.jpg": "写真.jpg",
    "-v1_final.mp4": "-v1_final.mp4",
    "100%.gif": "100%.gif",
    "sub/in here.mov": "sub/in here.mov",
}
NOT_THERE = (
    "dog.jpg",
    "nope.PNG",
    "sub/none.mp4",
    "/no/where.png",
    "~/nothing.webp",
    "x-1_y(2).gif",
)
BRACKETS = ('""', "''", "``", "()", "[]", "<>", "“”", "‘’", "«»", "„“", "「」", "（）", "**")
DECORATIONS: dict[str, Callable[[str], str]] = {
    "bare": lambda name: name,
    **{f"before {mark}": f"{{}}{mark}".format for mark in "?!.,;:…。？！、؟،"},
    **{f"in {pair[0]}{pair[1]}": "{}".join(pair).format for pair in BRACKETS},
    "Markdown's picture": lambda name: f"![a picture]({name})",
    "Markdown's link": lambda name: f"[this one](<{name}>)",
    "a shell's escapes": lambda name: re.sub(r"([\s'\"\\()])", r"\\\1", name),
    "a shell's quotes": shlex.quote,
    "a URL's escapes": quote,
    "@": lambda name: f"@{name}",
    "a BOM": lambda name: f"\ufeff{name}",
    "zero width": lambda name: f"\u200b{name}\u200b",
    "question in brackets": lambda name: f"(what is {name}?)",
    "label": lambda name: f"picture:{name}",
    "possessive": lambda name: f"{name}'s",
    "no space in Japanese": lambda name: f"これは{name}ですか",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds THERE, and is the home of its user too."""
    (tmp_path / "sub").mkdir()
    for name in THERE:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("decoration", DECORATIONS)
def test_a_name_is_found_whatever_is_around_it(decoration: str, folder: Path) -> None:
    for name, typed in THERE.items():
        for path in (typed, f"./{typed}", f"{folder}/{typed}"):
            line = f"What's in {DECORATIONS[decoration](path)} then"
            read = read_line(line)
            assert [str(found) for found in read.sources] == [
                str(Path(path).with_name(Path(name).name))
            ]
            assert (read.missing, read.text) == ([], line)


@pytest.mark.parametrize("decoration", DECORATIONS)
def test_a_name_without_a_file_is_missing_whatever_is_around_it(
    decoration: str, folder: Path
) -> None:
    for name in NOT_THERE:
        read = read_line(f"What's in {DECORATIONS[decoration](name)} then")
        assert read.sources == []
        (missing,) = read.missing
        assert missing.endswith(name)


def some_line(rng: Random, folder: Path) -> tuple[str, list[Path], list[str]]:
    """A sentence with names in it, the files that it names, and the names of none."""
    words, files, missing = list[str](), list[Path](), list[str]()
    for _ in range(rng.randint(1, 4)):
        words += rng.choices(
            ("What's", "in", "it's", "a .png or *.jpg", "e.g.", "3.14", "🙂"), k=rng.randint(0, 3)
        )
        decorate = DECORATIONS[rng.choice([*DECORATIONS])]
        if rng.random() < 0.5:
            name = rng.choice([*THERE])
            before = rng.choice(("", "./", "sub/../", "~/", f"{folder}/"))
            words.append(decorate(before + THERE[name]))
            files.append(folder / name)
        else:
            missing.append(rng.choice(NOT_THERE))
            words.append(decorate(missing[-1]))
    return rng.choice((" ", "  ", "\n", "\t", ", ", "; ")).join(words), files, missing


@pytest.mark.parametrize("seed", range(8))
def test_no_picture_of_10000_lines_is_dropped_unsaid(seed: int, folder: Path) -> None:
    rng = Random(seed)
    for _ in range(1_250):
        line, files, missing = some_line(rng, folder)
        read = read_line(line)
        assert [Path(found).resolve() for found in read.sources] == files, line
        assert len(read.missing) == len(missing), line
        assert all(told.endswith(name) for told, name in zip(read.missing, missing, strict=True)), (
            line
        )
        assert read.text in ("", line.strip().strip("\ufeff\u200b").strip())


@pytest.mark.parametrize(
    "line",
    [
        "what does a .png file mean",
        "is jpg better than png?",
        "rename it to a .jpg",
        "Convert *.png, .jpeg/.webp or '.gif' to (.mp4).",
        "e.g. pi is 3.14, see file.txt, notes.pdf.zip and cat.jpgs",
        "~nobody and \0",
        "What's 5 + 5?",
        "H.264 or H.265, AVC/H.264, h.264 and x.265?",
        'He asked "is that a .png" and `ls -l *.png`',
        ":)",
        "...",
        "// TODO: rename",
        "/* a comment */",
    ],
)
def test_prose_names_nothing(line: str, folder: Path) -> None:
    read = read_line(line)
    assert (read.text, read.sources, read.missing, read.pages) == (line.strip(), [], [], [])


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("cat.jpg", "cat.jpg"),
        ("\ufeff cat.jpg, b.JPG.\n", "cat.jpg b.JPG"),
        ("![a picture](cat.jpg)", "cat.jpg"),
        ("[b](<b.JPG>) `cat.jpg`", "b.JPG cat.jpg"),
        ("@cat.jpg @b.JPG", "cat.jpg b.JPG"),
        ("cat.jpg+b.JPG", "cat.jpg b.JPG"),
    ],
)
def test_a_line_of_names_alone_asks_nothing(line: str, names: str, folder: Path) -> None:
    read = read_line(line)
    assert (read.text, [str(name) for name in read.sources]) == ("", names.split())


@pytest.mark.parametrize("line", ["cat.jpg?", "cat.jpg 🤔", "cat.jpg 写真", "1 cat.jpg"])
def test_a_word_or_a_question_mark_asks(line: str, folder: Path) -> None:
    assert read_line(line).text == line


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("two words.png", "two words.png"),  # the longest, though there is words.png
        ("see words.png", "words.png"),
        ('"two words.png"', "two words.png"),
        ("file:two%20words.png", "two words.png"),
        ("file://localhost{folder}/two%20words.png", "two words.png"),
        ("file://host{folder}/two%20words.png", "two words.png"),
        ("FILE://{folder}/cat.jpg", "cat.jpg"),
        ("file://~/cat.jpg", "cat.jpg"),
        ("file://cat.jpg", "cat.jpg"),
        ("'Bob'\\''s photo.jpg'", "Bob's photo.jpg"),
        ('sub/"in here.mov"', "sub/in here.mov"),
        ("_cat.jpg_", "cat.jpg"),
        ("…cat.jpg...b.JPG", "cat.jpg b.JPG"),
        ("l'cat.jpg", "cat.jpg"),
        ("cat.jpg.Now b.JPG", "cat.jpg b.JPG"),
        ("{folder}/of.another.kind what is it?", "of.another.kind"),
        ("'{folder}/of another kind' what is it?", "of another kind"),
        ("~/of\\ another\\ kind", "of another kind"),
    ],
)
def test_one_name_is_what_is_meant(line: str, found: str, folder: Path) -> None:
    for name in ("words.png", "of.another.kind", "of another kind"):
        (folder / name).touch()
    read = read_line(line.format(folder=folder))
    expected = [found] if (folder / found).exists() else found.split()
    assert [str(Path(s).resolve().relative_to(folder)) for s in read.sources] == expected
    assert read.missing == []


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("my-cat.jpg", "my-cat.jpg"),
        ("bobcat.jpg", "bobcat.jpg"),
        ("_cat.jpg", "_cat.jpg"),
        ("../cat.jpg", "../cat.jpg"),
        ("none/cat.jpg", "none/cat.jpg"),
        ("my\\ cat.jpg", "my cat.jpg"),
        ("'no such.png' and \"nor this.png\"", "no such.png|nor this.png"),
        ("{folder}/my cat.jpg", "{folder}/my cat.jpg"),
        ('"~/my cat.jpg"', "~/my cat.jpg"),
        ("./no such cat.jpg", "./no such cat.jpg"),
        ("ftp://a.example/cat.jpg", "ftp://a.example/cat.jpg"),
        ("file:///none/my%20cat.jpg", "/none/my cat.jpg"),
        ("IMG_*.jpg", "IMG_*.jpg"),
        ("~\0dog.jpg", "dog.jpg"),
    ],
)
def test_no_other_file_is_taken_for_one_that_is_not_there(
    line: str, missing: str, folder: Path
) -> None:
    read = read_line(f"See {line.format(folder=folder)} now")
    assert (read.sources, read.missing) == ([], missing.format(folder=folder).split("|"))


@pytest.mark.parametrize(
    "line",
    ["Both {folder} and cat.jpg", "in /no/folder, and cat.jpg", "/ or cat.jpg", "a /b cat.jpg"],
)
def test_a_slash_before_a_name_is_no_part_of_it(line: str, folder: Path) -> None:
    read = read_line(line.format(folder=folder))
    assert ([str(name) for name in read.sources], read.missing) == (["cat.jpg"], [])


@pytest.mark.parametrize(
    "line",
    [
        'How do I use cv2.imread("test.jpg")?',
        "<img src='image.png'> or <img src=image.png>",
        "```python\nphoto: image.png\n``` What does this do?",
        "ffmpeg -i in.mp4 -vf fps=10 out.gif",
        '{"picture": "image.png"}',
        "\\includegraphics{fig.png} or url(bg.png)",
        "f'{number}.png', frame_%04d.png, $name.png and <name>.png",
        'for f in *.png; do convert "$f" "${f%.png}.jpg"; done',
        "How do I compile src/main.ts, and what is a .d.ts file?",
        "image.png.txt and invoice.jpg.exe",
        "这是.png文件吗",
        ".jpgと.pngの違い",
    ],
)
def test_names_in_code_and_of_other_kinds_are_told_and_asked(line: str, folder: Path) -> None:
    read = read_line(line)
    assert (read.text, read.sources, read.missing) == (line, [], [])
    assert read.mentioned


def test_a_file_that_is_there_is_attached_from_code_too(folder: Path) -> None:
    (folder / "main.ts").touch()
    read = read_line('open("cat.jpg") -i main.ts')
    assert [str(found) for found in read.sources] == ["cat.jpg", "main.ts"]


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("```\ndog.jpg\nmy dog.jpg\n``` what is it?", "dog.jpg|dog.jpg"),
        ("```x = 1``` and dog.jpg", "dog.jpg"),
        ("Look at this: 'dog.jpg' - what is it?", "dog.jpg"),
        ("<b>dog.jpg</b> ->dog.jpg", "<b>dog.jpg|->dog.jpg"),
        ("~/clip.ts and /tmp/no/clip.mts", "~/clip.ts|/tmp/no/clip.mts"),
    ],
)
def test_a_name_beside_code_is_meant(line: str, missing: str, folder: Path) -> None:
    assert read_line(line).missing == missing.split("|")


def test_a_written_picture_is_attached(folder: Path) -> None:
    url = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg=="
    assert read_line(f"What is {url}?").sources == [url]
    assert read_line("What does data:image/png;base64,... mean?").sources == []


def test_a_url_of_a_file_ends_before_the_next_path(folder: Path) -> None:
    read = read_line(f"file:two%20words.png and {folder}/cat.jpg")
    assert [Path(found).name for found in read.sources] == ["two words.png", "cat.jpg"]


def test_another_kind_of_file_is_text(folder: Path) -> None:
    (folder / "cat.jpg.zip").touch()
    read = read_line("cat.jpg.zip")
    assert (read.text, read.sources, read.missing) == ("cat.jpg.zip", [], [])


def test_the_name_of_a_picture_of_the_conversation_is_that_picture(folder: Path) -> None:
    known = ["my dog.jpg", "cat.jpg"]
    read = read_line("What else is in my dog.jpg, and in cat.jpg?", known)
    assert ([str(name) for name in read.sources], read.missing) == (["cat.jpg"], [])
    assert read_line("my dog.jpg", known).missing == ["my dog.jpg"]  # which is no question


URL = "https://a.example/x/cat.jpg"


@pytest.mark.parametrize(
    ("line", "sources", "pages"),
    [
        (f"What is {URL}?", [URL], []),
        (f"({URL}), <{URL}> “{URL}” '{URL}'", [URL] * 4, []),
        (f"{URL}?size=2&f=a.png, ok", [f"{URL}?size=2&f=a.png"], []),
        (f"[this]({URL}?w=(1)).", [f"{URL}?w=(1)"], []),
        (f"{URL},{URL}?a=1,{URL}", [URL, f"{URL}?a=1", URL], []),
        (f"{URL}を {URL}。", [URL, URL], []),
        ("HTTP://a.example/猫.JPG#top", ["HTTP://a.example/猫.JPG#top"], []),
        ("https://a.example/clip.mp4?t=1", ["https://a.example/clip.mp4?t=1"], []),
        ("See https://a.example/a.jpg/b.", [], ["https://a.example/a.jpg/b"]),
        ("See (https://a.example/?u=cat.jpg)", [], ["https://a.example/?u=cat.jpg"]),
        ("https://a.example/a.jpg.html", [], ["https://a.example/a.jpg.html"]),
    ],
)
def test_urls_of_pictures_are_attached_and_others_are_text(
    line: str, sources: list[str], pages: list[str], folder: Path
) -> None:
    read = read_line(line)
    assert (read.sources, read.pages, read.missing) == (sources, pages, [])


# ---- arguments of commands


def test_words_are_a_shells() -> None:
    assert split_words('a \'b c\' d\\ e "f\\"g"') == ["a", "b c", "d e", 'f"g']
    assert split_words(" it's ") == ["it's"]


@given(st.lists(st.text()))
def test_words_that_a_shell_quotes_are_read_back(words: list[str]) -> None:
    assert split_words(shlex.join(words)) == words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cat.jpg b.JPG", ["cat.jpg", "b.JPG"]),
        ("two words.png cat.jpg", ["two words.png", "cat.jpg"]),
        ("Bob's photo.jpg, 'b.JPG'", ["Bob's photo.jpg", "b.JPG"]),
        ("cat.jpg,b.JPG", ["cat.jpg", "b.JPG"]),
        (f"{URL} cat.jpg", [URL, "cat.jpg"]),
        (f"cat.jpg two words.png {URL}", ["cat.jpg", "two words.png", URL]),
        (SCREENSHOT.replace("\u202f", " "), [SCREENSHOT]),
        ("file:Bob's%20photo.jpg", ["Bob's photo.jpg"]),
    ],
)
def test_files_are_a_commands_arguments(text: str, found: list[str], folder: Path) -> None:
    assert [str(source) for source in read_sources(text)] == found


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("cat.jpg cta.jpg", "no such file: 'cta.jpg' .the nearest name is 'cat.jpg'"),
        ("'my dog.jpg', cat.jpg", "no such file: 'my dog.jpg'"),
        ("cat.jpg What is this?", "no such file: 'What'"),
        ("sub", "'sub' is no file"),
    ],
)
def test_an_argument_that_is_no_file_is_told(text: str, error: str, folder: Path) -> None:
    with pytest.raises(FetchError, match=error):
        read_sources(text)


def test_one_path_may_be_written_without_quotes(folder: Path) -> None:
    assert read_path("my notes.json") == read_path("'my notes.json'") == "my notes.json"
    assert read_path("a\\\\b%20.json") == "a\\b%20.json"
    assert read_path("file:///tmp/my%20notes.json") == "/tmp/my notes.json"
    assert read_path("Bob's photo.jpg") == "Bob's photo.jpg"


def test_the_nearest_name_is_told_of_a_file_or_a_folder(folder: Path) -> None:
    assert no_such_file("Cat.jgp") == "no such file: 'Cat.jgp' (the nearest name is 'cat.jpg')"
    assert no_such_file("sbu/in here.mov").endswith("(the nearest name is 'sub')")
    assert no_such_file("sub/x/y.png") == "no such file: 'sub/x/y.png'"


# ---- completion


def complete(line: str) -> list[str]:
    """The lines that completion makes of this one."""
    arguments = {**dict.fromkeys(("/image", "/save"), paths), "/set": setting}
    completer = CommandCompleter({"/image": "", "/save": "", "/undo": ""}, arguments)
    found = completer.get_completions(Document(line), CompleteEvent())
    return [line[: len(line) + each.start_position] + each.text for each in found]


def test_commands_and_files_are_completed(folder: Path) -> None:
    assert complete("/im") == ["/image"]
    assert complete("hi") == complete("/undo ca") == complete("/image none") == []
    assert complete("/image ca") == complete("/image 'ca") == ["/image cat.jpg"]
    assert complete("/image cat.jpg Bob") == ["/image cat.jpg Bob\\'s\\ photo.jpg"]
    assert complete("/image Bob's ph") == complete("/image \"Bob's ph")
    assert complete("/image two wo") == ["/image two\\ words.png"]
    assert complete("/save ~/su") == ["/save ~/sub/"]
    assert complete("/save ~/sub/in\\ ") == ["/save ~/sub/in\\ here.mov"]
    assert complete("/image Café") == [
        "/image " + unicodedata.normalize("NFD", "Café") + "\\ a\u0300\\ Ko\u0308ln.jpeg"
    ]


def test_files_are_completed_within_a_question(folder: Path) -> None:
    (folder / "notes.txt").touch()
    assert complete("what is in ca") == ["what is in cat.jpg"]
    assert complete("what's in ~/su") == ["what's in ~/sub/"]
    assert complete("what's in ./sub/in\\ h") == ["what's in ./sub/in\\ here.mov"]
    assert (
        complete("is it in 'two w") == complete("is it in two\\ w") == ["is it in two\\ words.png"]
    )
    assert complete("the same (as b") == ["the same (as b.JPG"]
    assert complete("the same (b") == ["the same (b.JPG"]
    assert complete("/tm") == ["/tmp/"] or not Path("/tmp").is_dir()
    assert complete("not a notes") == complete("what is nothing") == []
    assert "look at sub/" in complete("look at ")


@pytest.mark.parametrize("name", THERE)
def test_a_name_completed_within_a_question_is_read(name: str, folder: Path) -> None:
    begun = re.sub(r"([\s\\'\"])", r"\\\1", name[: max(len(name) // 2, 5)])
    (line,) = complete(f"what's in {begun}")
    (found,) = read_line(f"{line} and why?").sources
    assert Path(found).samefile(folder / name)


def test_settings_are_completed() -> None:
    assert complete("/set temp") == ["/set temperature "]
    assert complete("/set top") == ["/set top_k ", "/set top_p "]
    assert complete("/set --top-k") == ["/set top_k "]
    assert complete("/set split ") == [f"/set split {value}" for value in ("on", "off", "default")]
    assert complete("/set kv_bits ") == [f"/set kv_bits {value}" for value in ("4", "8", "default")]
    assert complete("/set temperature d") == ["/set temperature default"]
    assert complete("/set nothing ") == []


def test_conversations_are_completed(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3")
    for id in ("abc1", "abd2"):
        history.save(id, [text_message("user", f"Of {id}")])
    found = [*conversation(history)("ab")]
    assert [(each.text, each.display_meta_text) for each in found] == [
        ("abd2", "Of abd2"),
        ("abc1", "Of abc1"),
    ]
    assert [each.text for each in conversation(None)("abd")] == []


def test_a_pattern_names_several(folder: Path) -> None:
    def names(text: str) -> list[str]:
        return [str(source) for source in read_sources(text)]

    (folder / "[1].png").touch()
    assert names("*.jpg") == ["Bob's photo.jpg", "cat.jpg", "写真.jpg"]
    assert names("cat.jpg ~/sub/*") == ["cat.jpg", f"{folder}/sub/in here.mov"]
    assert names("[1].png") == ["[1].png"]  # which is there
    assert names("[bc]*.JPG") == ["b.JPG"]
    assert names("two words.png *.gif") == ["two words.png", "100%.gif"]
    for nothing in ("*.tiff", "cat.jpg *.tiff", "none/*.jpg", "*\0"):
        with pytest.raises(FetchError, match=r"no picture or video is named '.*\*"):
            read_sources(nothing)


FILE_NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
    | st.sampled_from("'\"\\ \n~$%.-"),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILE_NAMES, st.integers(1, 12))
@example("Bob's photo.jpg", 3)
@example("a\\ b", 1)
@example("~root", 1)
@example("data:x", 2)
@example("100%25", 2)
@example("ends with a space ", 4)
@example("e\u0301t\u00e9", 1)
def test_a_completed_name_is_read_as_the_file(empty: Path, name: str, typed: int) -> None:
    for old in empty.iterdir():
        old.unlink()
    (empty / name).touch()
    begun = re.sub(r"([\s\\'\"])", r"\\\1", name[:typed])
    (line,) = complete(f"/image {begun}")
    (found,) = read_sources(line.removeprefix("/image "))
    assert Path(found).samefile(empty / name)
    assert Path(read_path(line.removeprefix("/image "))).samefile(empty / name)
