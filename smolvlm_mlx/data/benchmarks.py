"""Published benchmarks, known by their columns: how each is asked, scored and grouped.

The columns are those of the datasets that lmms-eval and VLMEvalKit load. Short answers are asked
for in the words SmolVLM was trained with. Videos that rows only name are looked for beside them.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import DataError, quote
from ..inputs.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from .columns import is_empty
from .layouts import LETTER_PROMPT, unpacked

Raw = dict[str, Any]
BRIEF = "Give a very brief answer."
FOLDERS = ("video", "videos", "data")  # beside the rows' own folder


def recognize(raw: Raw, folder: Path) -> tuple[Raw, str]:
    """A row in our columns, and the metric of its benchmark; as it is and "" if it is of none."""
    for columns, adapt in LAYOUTS:
        asked = "question" if "question" in columns else "query"
        if columns <= raw.keys() and isinstance(raw[asked], str):
            adapted = {**raw, **adapt(raw, folder)}
            return adapted, adapted.pop("metric")
    return raw, ""


def _mmmu(raw: Raw, folder: Path) -> Raw:
    """Pictures stand where the question or an option has `<image 1>`."""
    if raw["answer"] == "?":
        raise DataError("no answer: those of MMMU's test are not public; use --subset validation")
    subject = re.fullmatch(r"[a-z]+_(.+)_\d+", str(raw.get("id")))
    said: Raw = {"category": subject[1] if subject else raw.get("subfield")}
    if raw["question_type"] == "multiple-choice":
        return {**said, "metric": "choice"}
    answers = unpacked(raw["answer"])  # several are written as a list
    answers = answers if isinstance(answers, list) else [raw["answer"]]
    said |= {"options": None, "answer": None, "answers": answers}
    return {**said, "question": _brief(raw["question"]), "metric": "open"}


def _mathvista(raw: Raw, folder: Path) -> Raw:
    """The published `query` is the question with its hint and choices. Free answers are scored
    without the official script's extraction by GPT."""
    metadata = raw.get("metadata")
    said: Raw = {"category": metadata.get("task") if isinstance(metadata, Mapping) else None}
    if not is_empty(raw.get("decoded_image")):
        said |= {"image": raw["decoded_image"], "decoded_image": None}
    said |= {"question": raw.get("query") or raw["question"], "query": None}
    if raw["question_type"] == "multi_choice":
        return {**said, "metric": "choice"}
    return {**said, "choices": None, "metric": "exact" if raw["answer_type"] == "list" else "open"}


def _mmstar(raw: Raw, folder: Path) -> Raw:
    """Its choices stand in the question, or, in VLMEvalKit's table, in columns A, B, C, D."""
    if "A" in raw:
        return {"metric": "choice"}
    return {"question": f"{raw['question']}\n{LETTER_PROMPT}", "metric": "choice"}


def _scienceqa(raw: Raw, folder: Path) -> Raw:
    context = f"Context: {raw['hint']}\n" if raw["hint"] else ""
    return {
        "question": context + raw["question"],
        "category": raw.get("subject"),
        "metric": "choice",
    }


def _docvqa(raw: Raw, folder: Path) -> Raw:
    """InfographicVQA too, whose `image_url` says where the picture came from."""
    return {"question": _brief(raw["question"]), "image_url": None, "metric": "anls"}


def _textvqa(raw: Raw, folder: Path) -> Raw:
    said: Raw = {"question": _brief(raw["question"]), "metric": "vqa"}
    if is_empty(raw.get("image")):
        said["image"] = find_beside(str(raw["image_id"]), folder, PICTURE_SUFFIXES)
    return said


def _vqav2(raw: Raw, folder: Path) -> Raw:
    return {"question": _brief(raw["question"]), "category": raw["answer_type"], "metric": "vqav2"}


def _chartqa(raw: Raw, folder: Path) -> Raw:
    """Of the hub, and as published, with the picture by name."""
    said: Raw = {"question": _brief(raw["query"]), "answers": raw["label"], "metric": "relaxed"}
    said |= dict.fromkeys(("query", "label", "imgname"))
    kind = raw.get("human_or_machine")
    said["category"] = {"0": "human", "1": "machine"}.get(str(kind), kind)
    if is_empty(raw.get("image")) and "imgname" in raw:
        said["image"] = find_beside(str(raw["imgname"]), folder, PICTURE_SUFFIXES)
    return said


def _chartqa_of_lmms(raw: Raw, folder: Path) -> Raw:
    kind = {"human_test": "human", "augmented_test": "machine"}.get(str(raw["type"]))
    if kind is None:
        return {"metric": ""}
    return {"question": _brief(raw["question"]), "category": kind, "metric": "relaxed"}


def _ocrbench(raw: Raw, folder: Path) -> Raw:
    answers = raw["answer"] if isinstance(raw["answer"], list) else [raw["answer"]]
    return {
        "question": _brief(raw["question"]),
        "answers": answers,
        "category": raw["question_type"],
        "metric": "formula" if raw["dataset"] == "HME100k" else "contains",
    }


def _videomme(raw: Raw, folder: Path) -> Raw:
    video = raw.get("video") or raw["videoID"]
    return {"video": _video(video, folder), "category": raw.get("duration"), "metric": "choice"}


def _cinepile(raw: Raw, folder: Path) -> Raw:
    link = re.search(r"(?:v=|youtu\.be/)([\w-]+)", str(raw.get("yt_clip_link")))
    name = raw.get("videoID") or (link[1] if link else raw["yt_clip_link"])
    question = str(raw["question"])
    if subtitles := raw.get("subtitles"):
        question = f"Subtitles:\n{subtitles}\n\n{question}"
    return {
        "video": _video(raw.get("video") or name, folder),
        "question": question,
        "answer": raw["answer_key_position"],
        "category": " ".join(str(raw.get("question_category") or "").split()),
        "metric": "choice",
    }


def _candidates(raw: Raw, folder: Path) -> Raw:
    """MVBench, and MLVU in its two forms. `start` and `end` are of the whole video, not of the cut
    ones in folders named segment."""
    video = _video(raw.get("video") or raw.get("video_name"), folder)
    said: Raw = {"video": video, "video_name": None, "metric": "choice"}
    if isinstance(video, str) and "segment" in Path(video).parent.name:
        said |= {"start": None, "end": None}
    return {**said, "category": raw.get("task_type") or raw.get("question_type")}


def _brief(question: object) -> str:
    return f"{question}\n{BRIEF}"


LAYOUTS: tuple[tuple[frozenset[str], Callable[[Raw, Path], Raw]], ...] = tuple(
    (frozenset(columns.split()), adapt)
    for columns, adapt in (
        ("question options answer question_type image_1", _mmmu),
        ("pid question choices answer question_type answer_type", _mathvista),
        ("index question image answer category l2_category", _mmstar),
        ("question choices answer hint lecture", _scienceqa),
        ("questionId question answers", _docvqa),
        ("question answers image_id flickr_300k_url", _textvqa),
        ("question answers multiple_choice_answer answer_type", _vqav2),
        ("query label human_or_machine", _chartqa),
        ("query label imgname", _chartqa),
        ("question answer image type", _chartqa_of_lmms),
        ("question answer image dataset question_type", _ocrbench),
        ("videoID question options answer task_type", _videomme),
        ("question choices answer_key_position yt_clip_link", _cinepile),
        ("video question candidates answer", _candidates),
        ("video_name question candidates answer", _candidates),
    )
)


# ---- what a row names without a path


def _video(named: object, folder: Path) -> object:
    """The video of this name; one that is there itself stays."""
    return find_beside(named, folder, VIDEO_SUFFIXES) if isinstance(named, str) else named


def find_beside(name: str, folder: Path, suffixes: tuple[str, ...]) -> str:
    """The file of this name, with or without its ending, in or below the folder of the rows, or in
    `video`, `videos` or `data` beside that.

    Raises:
        DataError: there is none, or there are several.
    """
    if (folder / name).is_file() or "://" in name:
        return name
    found = _files(folder.resolve(), suffixes).get(Path(name).name, ()) if folder != Path() else ()
    if len(found) == 1:
        return str(found[0])
    what = "video" if suffixes == VIDEO_SUFFIXES else "picture"
    if found:
        raise DataError(f"{what} {quote(name)} is there twice: {found[0]} and {found[1]}")
    where = f"beside the rows in {folder}" if folder != Path() else "in the dataset"
    raise DataError(
        f"{what} {quote(name)} is not {where}; download it, and give a folder with it and the rows"
    )


@lru_cache(maxsize=8)
def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files below a folder and its neighbours by name, and by name without ending."""
    found: dict[str, list[Path]] = {}
    for root in dict.fromkeys((folder, *(folder.parent / name for name in FOLDERS))):
        for file in sorted(root.rglob("*")):
            if file.suffix.lower() in suffixes and file.is_file():
                found.setdefault(file.name, []).append(file)
                found.setdefault(file.stem, []).append(file)
    return found
