"""Published benchmarks, on made-up rows in their published columns: what is asked, right, scored
and counted together."""

from pathlib import Path
from typing import Any

from smolvlm_mlx.data.benchmarks import LAYOUTS, find_beside
from smolvlm_mlx.data.rows import Row, read_rows
from smolvlm_mlx.data.samples import Sample, make_sample
from smolvlm_mlx.errors import DataError
from tests.support.rows import outcome

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PICTURE = {"bytes": b"PNG", "path": None}
IMAGE = {"type": "image", "image": b"PNG"}
OTHER = {"type": "image", "image": b"GIF"}
BRIEF = "\nGive a very brief answer."
LETTERED = "\nA. cat\nB. dog\nAnswer with the letter."

MMMU: dict[str, Any] = {
    "id": "validation_Art_Theory_3",
    "question": "Which is <image 2>?",
    "options": "['<image 1>', 'dog']",
    "explanation": "",
    "image_1": PICTURE,
    "image_2": {"bytes": b"GIF", "path": None},
    **dict.fromkeys([f"image_{number}" for number in range(3, 8)]),
    "img_type": "['Paintings']",
    "answer": "B",
    "topic_difficulty": "Easy",
    "question_type": "multiple-choice",
    "subfield": "Art",
}
MATHVISTA: dict[str, Any] = {
    "pid": "1",
    "question": "How many?",
    "image": "images/1.jpg",
    "decoded_image": PICTURE,
    "choices": None,
    "unit": None,
    "precision": 1.0,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": {"category": "math", "task": "geometry", "split": "testmini"},
    "query": "Hint: A number.\nQuestion: How many?",
}
MMSTAR: dict[str, Any] = {
    "index": 0,
    "question": "Which?\nOptions: A: cat, B: dog",
    "image": PICTURE,
    "answer": "A",
    "category": "math",
    "l2_category": "geometry",
    "meta_info": {"source": "x", "split": "val", "image_path": "images/0.jpg"},
}
AI2D = {"question": "Which?", "options": ["cat", "dog"], "answer": "1", "image": PICTURE}
SCIENCEQA = {
    "image": PICTURE,
    "question": "Which?",
    "choices": ["cat", "dog"],
    "answer": 1,
    "hint": "It barks.",
    "task": "closed choice",
    "grade": "grade2",
    "subject": "natural science",
    "topic": "biology",
    "category": "Animals",
    "skill": "x",
    "lecture": "",
    "solution": "",
}
DOCVQA = {
    "questionId": "337",
    "question": "What is the date?",
    "question_types": ["form"],
    "image": PICTURE,
    "docId": 279,
    "ucsf_document_id": "x",
    "ucsf_document_page_no": "1",
    "answers": ["1/8/93", "January 8"],
    "data_split": "val",
}
INFOVQA = {
    "questionId": "98313",
    "question": "What is the date?",
    "answers": ["1/8/93"],
    "answer_type": ["single span"],
    "image": PICTURE,
    "image_url": "https://a.b/c.jpeg",
    "ocr": "[]",
    "data_split": "val",
}
TEXTVQA = {
    "image_id": "003a8ae2ef43b901",
    "question_id": 34602,
    "question": "what brand?",
    "question_tokens": ["what", "brand"],
    "image": PICTURE,
    "image_width": 1024,
    "image_height": 664,
    "flickr_original_url": "https://a.b/o.jpg",
    "flickr_300k_url": "https://a.b/z.jpg",
    "answers": ["nokia"] * 9 + [""],
    "image_classes": ["Phone"],
    "set_name": "val",
}
VQAV2 = {
    "question_type": "what",
    "multiple_choice_answer": "net",
    "answers": [{"answer": "net", "answer_confidence": "yes", "answer_id": 1}] * 10,
    "image_id": 262148,
    "answer_type": "other",
    "question_id": 262148000,
    "question": "What is it?",
    "image": PICTURE,
}
CHARTQA = {"image": PICTURE, "query": "How many?", "label": ["14"], "human_or_machine": 0}
CHARTQA_OF_LMMS = {
    "type": "augmented_test",
    "question": "How many?",
    "answer": "14",
    "image": PICTURE,
}
OCRBENCH = {
    "dataset": "IIIT5K",
    "question": "what is written?",
    "question_type": "Regular Text Recognition",
    "answer": ["CENTRE", "CENTER"],
    "image": PICTURE,
}
VIDEO_MME = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Biology",
    "url": "https://www.youtube.com/watch?v=abc_D-1",
    "videoID": "abc_D-1",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "Which?",
    "options": ["A. cat", "B. dog"],
    "answer": "B",
}
CINEPILE = {
    "movie_name": "Movie",
    "year": 2000,
    "yt_clip_title": "Scene",
    "yt_clip_link": "https://youtube.com/watch?v=abc_D-1",
    "movie_scene": "x",
    "subtitles": "Hello.",
    "question": "Which?",
    "choices": ["cat", "dog"],
    "answer_key": "dog",
    "answer_key_position": 1,
    "question_category": "Narrative and\nPlot Analysis",
    "hard_split": "False",
    "visual_reliance": "True",
}
MVBENCH = {
    "video": "abc_D-1.mp4",
    "question": "Which?",
    "candidates": ["cat", "dog"],
    "answer": "dog",
    "start": 1.5,
    "end": 4,
}
MLVU = {
    "video": "abc_D-1.mp4",
    "duration": 480.0,
    "question": "Which?",
    "candidates": ["cat", "dog"],
    "answer": "dog",
    "question_type": "plotQA",
}
MLVU_DEV: dict[str, Any] = {
    "video_name": "abc_D-1.mp4",
    "duration": 480.0,
    "question": "Which?\n(A) cat\n(B) dog",
    "candidates": ["cat", "dog"],
    "answer": "B",
    "task_type": "plotQA",
}
PICTURES: dict[str, tuple[dict[str, Any], str, list[Any], str, str]] = {
    # the row, what is asked, the answers, the metric, the category
    "MathVista": (MATHVISTA, MATHVISTA["query"], ["1.2"], "open", "geometry"),
    "MathVista, choices": (
        {**MATHVISTA, "question_type": "multi_choice", "choices": ["cat", "dog"], "answer": "dog"}
        | {"query": "Hint: A letter.\nQuestion: Which?\nChoices:\n(A) cat\n(B) dog"},
        "Hint: A letter.\nQuestion: Which?\nChoices:\n(A) cat\n(B) dog",
        ["dog"],
        "choice",
        "geometry",
    ),
    "MathVista, a list": (
        {**MATHVISTA, "answer_type": "list", "answer": "[1, 2]"},
        MATHVISTA["query"],
        ["[1, 2]"],
        "exact",
        "geometry",
    ),
    "MMStar": (MMSTAR, f"{MMSTAR['question']}\nAnswer with the letter.", ["A"], "choice", "math"),
    "MMStar, VLMEvalKit": (
        {**MMSTAR, "question": "Which?", "A": "cat", "B": "dog"},
        f"Which?{LETTERED}",
        ["A"],
        "choice",
        "math",
    ),
    "AI2D": (AI2D, f"Which?{LETTERED}", ["dog"], "", ""),
    "ScienceQA": (
        SCIENCEQA,
        f"Context: It barks.\nWhich?{LETTERED}",
        ["dog"],
        "choice",
        "natural science",
    ),
    "DocVQA": (DOCVQA, f"What is the date?{BRIEF}", ["1/8/93", "January 8"], "anls", ""),
    "InfographicVQA": (INFOVQA, f"What is the date?{BRIEF}", ["1/8/93"], "anls", ""),
    "TextVQA": (TEXTVQA, f"what brand?{BRIEF}", ["nokia"] * 9 + [""], "vqa", ""),
    "VQAv2": (VQAV2, f"What is it?{BRIEF}", ["net"] * 10, "vqav2", "other"),
    "ChartQA": (CHARTQA, f"How many?{BRIEF}", ["14"], "relaxed", "human"),
    "ChartQA, lmms-lab": (CHARTQA_OF_LMMS, f"How many?{BRIEF}", ["14"], "relaxed", "machine"),
    "OCRBench": (
        OCRBENCH,
        f"what is written?{BRIEF}",
        ["CENTRE", "CENTER"],
        "contains",
        "Regular Text Recognition",
    ),
    "OCRBench, formulas": (
        {**OCRBENCH, "dataset": "HME100k", "answer": "x ^ 2"},
        f"what is written?{BRIEF}",
        ["x ^ 2"],
        "formula",
        "Regular Text Recognition",
    ),
}
VIDEOS: dict[str, tuple[dict[str, Any], str, list[Any], str]] = {
    "Video-MME": (VIDEO_MME, f"Which?{LETTERED}", ["B"], "short"),
    "CinePile": (
        CINEPILE,
        f"Subtitles:\nHello.\n\nWhich?{LETTERED}",
        ["dog"],
        "Narrative and Plot Analysis",
    ),
    "MVBench": (MVBENCH, f"Which?{LETTERED}", ["dog"], ""),
    "MLVU": (MLVU, f"Which?{LETTERED}", ["dog"], "plotQA"),
    "MLVU, dev": (MLVU_DEV, MLVU_DEV["question"], ["B"], "plotQA"),
}


def sample(raw: dict[str, Any], folder: Path = Path()) -> Sample:
    return make_sample(Row("here", raw, folder))


@pytest.mark.parametrize("name", PICTURES)
def test_questions_about_pictures(name: str) -> None:
    raw, asked, answers, metric, category = PICTURES[name]
    made = sample(raw)
    assert made.messages == [{"role": "user", "content": [IMAGE, {"type": "text", "text": asked}]}]
    assert (list(made.answers), made.metric, made.category) == (answers, metric, category)


def test_the_same_from_a_folder_of_the_hub(tmp_path: Path, hub: Any) -> None:
    """Where `datasets` reads them, each picture as its bytes."""
    for number, raw in enumerate([*(row[0] for row in PICTURES.values()), MMMU]):
        folder = tmp_path / str(number)
        hub.Dataset.from_list([raw]).to_parquet(folder / "test-00000-of-00001.parquet")
        (row,) = read_rows(folder)
        assert make_sample(row) == sample(raw)


def test_mmmu_shows_its_pictures_where_they_are_named() -> None:
    made = sample(MMMU)
    texts = ["Which is ", "?\nA. ", "B. dog\nAnswer with the letter."]
    first, second, third = ({"type": "text", "text": text} for text in texts)
    assert made.messages[0]["content"] == [first, OTHER, second, IMAGE, third]
    assert (made.answers, made.metric, made.category) == (("B",), "choice", "Art_Theory")
    unnamed = sample({**MMMU, "question": "Which?", "options": "['cat', 'dog']"})
    assert unnamed.messages[0]["content"][:2] == [IMAGE, OTHER]
    missing = {**MMMU, "image_2": None}
    with pytest.raises(DataError, match="<image 2> in the text, and no such image in the row"):
        sample(missing)


@pytest.mark.parametrize(
    ("answer", "answers"), [("3/4", ("3/4",)), ("['24/7', '3.429']", ("24/7", "3.429"))]
)
def test_mmmu_has_open_questions(answer: str, answers: tuple[str, ...]) -> None:
    open_question = {"question_type": "open", "options": "[]", "answer": answer}
    made = sample({**MMMU, **open_question, "question": "How much is <image 1>?"})
    assert (made.answers, made.metric, made.choices) == (answers, "open", ())
    assert made.messages[0]["content"][-1]["text"] == f"?{BRIEF}"


def test_answers_that_are_not_public_are_told() -> None:
    assert outcome(Row("here", {**MMMU, "answer": "?"})).startswith("no answer: those of MMMU's")
    assert outcome(Row("here", {**DOCVQA, "answers": None})) == "no answer: answers is null"
    assert outcome(Row("here", {**TEXTVQA, "answers": [""] * 10})) == "no answer: answers is empty"


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("place", ["abc_D-1.mp4", "data/abc_D-1.mp4", "x/y/abc_D-1.mp4"])
def test_videos_that_are_only_named_are_found_beside_the_rows(
    name: str, place: str, tmp_path: Path
) -> None:
    raw, asked, answers, category = VIDEOS[name]
    file = tmp_path / "rows" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(b"video")
    made = sample(raw, tmp_path / "rows")
    video, text = made.messages[0]["content"]
    assert Path(video["path"]).samefile(file)
    assert text == {"type": "text", "text": asked}
    assert (list(made.answers), made.metric, made.category) == (answers, "choice", category)
    assert (video.get("start"), video.get("end")) == (
        (1.5, 4) if name == "MVBench" else (None,) * 2
    )


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_that_are_not_there_are_told_by_name(name: str, tmp_path: Path) -> None:
    raw = VIDEOS[name][0]
    with pytest.raises(DataError, match=r"^video 'abc_D-1(\.mp4)?' is not beside the rows in "):
        sample(raw, tmp_path)
    with pytest.raises(
        DataError, match=r"^video 'abc_D-1(\.mp4)?' is not in the dataset; download"
    ):
        sample(raw)


@pytest.mark.parametrize("raw", [VIDEO_MME, CINEPILE, MLVU])
def test_a_video_that_a_row_has_itself_is_shown(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "own.mp4").touch()
    for video in ("own.mp4", {"bytes": None, "path": "own.mp4"}):
        (part, _) = sample({**raw, "video": video}, tmp_path).messages[0]["content"]
        assert part == {"type": "video", "path": str(tmp_path / "own.mp4")}


def test_videos_in_a_folder_beside_that_of_the_rows_are_found(tmp_path: Path) -> None:
    """As MLVU has them: json/1_plotQA.json and video/1_plotQA/movie.mp4."""
    (tmp_path / "json").mkdir()
    (tmp_path / "video" / "1_plotQA").mkdir(parents=True)
    (tmp_path / "video" / "1_plotQA" / "abc_D-1.mp4").touch()
    (video, _) = sample(MLVU, tmp_path / "json").messages[0]["content"]
    assert video["path"].endswith("/video/1_plotQA/abc_D-1.mp4")


def test_only_files_of_that_kind_are_found_beside_the_rows(tmp_path: Path) -> None:
    for folder in ("a/clip.mp4", "b"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("b/clip.mp4", "b/clip.txt", "own.mp4", "b/own.mp4"):
        (tmp_path / name).touch()
    assert find_beside("clip", tmp_path, (".mp4",)) == str(tmp_path / "b" / "clip.mp4")
    for name in ("own.mp4", "https://a.b/clip.mp4"):  # it is there itself
        assert find_beside(name, tmp_path, (".mp4",)) == name


def test_a_name_that_is_there_twice_is_told(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "abc_D-1.mp4").touch()
    with pytest.raises(DataError, match=r"'abc_D-1\.mp4' is there twice: .*/a/abc.* and .*/b/abc"):
        sample(MVBENCH, tmp_path)


def test_cut_videos_of_mvbench_are_seen_whole(tmp_path: Path) -> None:
    (tmp_path / "Charades_segment").mkdir()
    (tmp_path / "Charades_segment" / "abc_D-1.mp4").touch()
    (video, _) = sample(MVBENCH, tmp_path).messages[0]["content"]
    assert set(video) == {"type", "path"}


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({key: value for key, value in TEXTVQA.items() if key != "image"}, "003a8ae2ef43b901.jpg"),
        ({"imgname": "417.png", "query": "How many?", "label": "14"}, "417.png"),
    ],
)
def test_pictures_that_are_only_named_are_found_too(
    raw: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """As TextVQA and ChartQA publish them."""
    assert outcome(Row("here", raw, tmp_path)).startswith(f"picture '{name[:3]}")
    (tmp_path / "again" / "png").mkdir(parents=True)
    (tmp_path / "again" / "png" / name).touch()
    image = sample(raw, tmp_path / "again").messages[0]["content"][0]
    assert image["path"].endswith(f"png/{name}")


def test_rows_of_ones_own_with_such_columns_stay_what_they_are() -> None:
    raw = {"type": "hard", "question": "Which?", "answer": "14", "image": "a.jpg"}
    made = sample(raw)
    assert (made.metric, made.messages[0]["content"][-1]["text"]) == ("", "Which?")


ODD = st.sampled_from([None, 0, 1.5, "", "x", "?", [], ["x"], {}, {"x": 1}, b"x", True, "['x']"])


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
@settings(deadline=None)  # the machine may be busy
@given(data=st.data())
def test_any_values_in_the_columns_of_a_benchmark_are_a_sample_or_a_line(
    number: int, data: Any
) -> None:
    columns = sorted(LAYOUTS[number][0] | {"id", "metadata", "query", "label", "hint"})
    raw = {"question": "Which?", **{column: data.draw(ODD) for column in columns}}
    assert outcome(Row("here", raw)) is not None
    assert outcome(Row("here", {**raw, "question": "Which?"})) is not None
