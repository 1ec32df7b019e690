"""What the tasks can be told by name, and how their answers are generated untold. Imports nothing
heavy, so that --help answers at once."""

from typing import Literal

from ..generation.options import Options

Preset = Literal["caption", "alt", "keywords", "ocr"]  # of captions
Output = Literal["doctags", "markdown", "html", "json", "text"]  # of documents
Metric = Literal[
    "auto",
    "vqa",
    "vqav2",
    "anls",
    "anls_paper",
    "relaxed",
    "choice",
    "open",
    "contains",
    "formula",
    "exact",
]

DOCUMENT_MODEL = "docling"  # which writes DocTags
SERVE = Options(max_tokens=1024)  # of requests that say nothing of it
# Of a chat: what led least into circles and cost no right answer, see docs/performance.md.
CHAT = Options(max_tokens=1024, repetition_penalty=1.1, end_loops=True)
RETRY_TEMPERATURE = 0.7  # where another answer is wanted, and 0 would give the same
CAPTIONS = Options(end_loops=True)
# Of a page: the model card of DOCUMENT_MODEL.
DOCUMENTS = Options(max_tokens=8192, end_loops=True)
LIVE = Options(max_tokens=64)
EVALUATION = Options(max_tokens=64, skip_special_tokens=True)  # benchmarks' answers are words
