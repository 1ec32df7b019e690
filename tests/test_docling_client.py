"""docling, with this server as its model of pages: the pipeline that people run, without torch.

`DocumentConverter` imports torch for its speech recognition, which pages do not need; the pipeline
below it is the same.
"""

import io
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from tests.support.checkpoints import Loaded
from tests.support.clients import COLOR, DEMO, Asked, answer_to, form_of, user
from tests.support.http import TOKEN, Running, serving
from tests.support.pictures import encoded
from tests.support.speaking import make_granite

import pytest
from PIL import Image

if find_spec("docling") is None:
    pytest.skip("no docling: pip install '.[clients]'", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:Using legacy VLM options:DeprecationWarning")

Read = Callable[..., Any]
SAMPLED = {"temperature": 2.0, "seed": 1, "max_tokens": 12}


NAMES = {
    "docling.backend.image_backend": "ImageDocumentBackend",
    "docling.datamodel.base_models": "InputFormat VlmStopReason",
    "docling.datamodel.document": "InputDocument",
    "docling.datamodel.pipeline_options": "VlmConvertOptions VlmPipelineOptions",
    "docling.datamodel.pipeline_options_vlm_model": "ApiVlmOptions ResponseFormat",
    "docling.datamodel.vlm_engine_options": "ApiVlmEngineOptions",
    "docling.models.utils.generation_utils": "GenerationStopper",
    "docling.models.vlm_pipeline_models.api_vlm_model": "ApiVlmModel",
    "docling.pipeline.vlm_pipeline": "VlmPipeline",
}


@pytest.fixture(scope="module")
def docling() -> Any:
    """What is used of docling here."""
    return SimpleNamespace(
        **{
            name: getattr(import_module(module), name)
            for module, names in NAMES.items()
            for name in names.split()
        }
    )


@pytest.fixture
def options(seeing: Running, docling: Any) -> Read:
    """How docling is told of the server, with what a test changes."""

    def options(**more: Any) -> Any:
        known = {
            "url": f"http://127.0.0.1:{seeing.port}/v1/chat/completions",
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "prompt": "Describe the picture.",
            "response_format": docling.ResponseFormat.PLAINTEXT,
        }
        return docling.ApiVlmOptions(**{**known, **more})

    return options


@pytest.fixture
def read(docling: Any, options: Read) -> Read:
    """Called with pictures, docling's predictions of their pages."""

    def read(*pictures: Image.Image, **more: Any) -> list[Any]:
        model = docling.ApiVlmModel(True, True, options(**more))
        return [*model.process_images(pictures, model.vlm_options.prompt)]

    return read


# ---- twelve requests


@pytest.mark.parametrize(
    ("asked", "schema"),
    [
        ({}, None),
        ({"max_tokens": 5}, None),
        ({"max_completion_tokens": 5}, None),
        ({**SAMPLED}, None),
        ({**SAMPLED, "top_k": 4}, None),
        ({**SAMPLED, "top_p": 0.7}, None),
        ({**SAMPLED, "min_p": 0.05}, None),
        ({"repetition_penalty": 1.2, "max_tokens": 12}, None),
        ({"stop": [" in"]}, None),
        ({"skip_special_tokens": False}, None),
        ({"skip_special_tokens": True}, None),
        ({"response_format": form_of(COLOR)}, COLOR),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else "",
)
def test_docling_is_told_what_the_model_says(
    asked: dict[str, Any], schema: dict[str, Any] | None, read: Read, bundled: Loaded
) -> None:
    params = {name: value for name, value in asked.items() if name != "temperature"}
    (page,) = read(DEMO, params=params, temperature=asked.get("temperature", 0.0))
    if "max_completion_tokens" in asked:
        asked = {"max_tokens": asked["max_completion_tokens"]}
    wanted = Asked([user("Describe the picture.", DEMO)], asked, schema=schema)
    assert page.text == answer_to(wanted, bundled).strip()
    assert page.error_message is None
    assert page.stop_reason == ("length" if "max_tokens" in asked else "end_of_sequence")


def test_docling_stops_a_streamed_page_by_itself(docling: Any, read: Read) -> None:
    class Star(docling.GenerationStopper):  # type: ignore[misc]
        def should_stop(self, text: str) -> bool:
            return "star" in text

    (page,) = read(DEMO, custom_stopping_criteria=[Star()])
    assert "star" in page.text  # and what has come with it on a busy machine
    assert page.stop_reason == docling.VlmStopReason.STOP_SEQUENCE


def test_docling_reads_several_pages_at_once(read: Read, bundled: Loaded) -> None:
    pictures = [DEMO.rotate(angle) for angle in (0, 90)]
    pages = read(*pictures, concurrency=2)
    wanted = [answer_to(Asked([user("Describe the picture.", each)]), bundled) for each in pictures]
    assert [page.text for page in pages] == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 11.0}, "temperature: 11.0 is not in 0..10"),
        ({"params": {"guided_regex": "a+"}}, "guided_regex"),
        ({"headers": {}}, "no valid token"),
    ],
)
def test_docling_tells_why_a_page_was_refused(
    given: dict[str, Any], message: str, read: Read
) -> None:
    (page,) = read(DEMO, **given)
    assert (page.text, page.stop_reason) == ("", "inference_error")
    assert message in json.loads(page.error_message.partition(": ")[2])["error"]["message"]


# ---- whole documents


def convert(docling: Any, vlm_options: Any, picture: Image.Image) -> Any:
    """As `DocumentConverter` does it for one picture."""
    document = docling.InputDocument(
        path_or_stream=io.BytesIO(encoded(picture, "PNG")),
        format=docling.InputFormat.IMAGE,
        backend=docling.ImageDocumentBackend,
        filename="page.png",
    )
    options = docling.VlmPipelineOptions(vlm_options=vlm_options, enable_remote_services=True)
    return docling.VlmPipeline(options).execute(document, raises_on_error=True)


def test_docling_makes_a_document_of_what_the_model_says(docling: Any, options: Read) -> None:
    told = options(
        prompt="What does the text say?", response_format=docling.ResponseFormat.MARKDOWN
    )
    result = convert(docling, told, DEMO)
    assert result.status == "success"
    assert result.document.export_to_markdown() == "HAT"


PAGE = "<doctag><title>Fig</title><text>pear</text></doctag>"


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a stand-in of granite-docling, which always says the same page."""
    checkpoint = make_granite(tmp_path_factory.mktemp("checkpoints") / "granite", PAGE)
    with serving(checkpoint, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.mark.parametrize("told", ["nothing", "to keep tags", "by its preset", "streamed"])
def test_docling_makes_a_document_of_tags(told: str, docling: Any, documents: Running) -> None:
    known: dict[str, Any] = {
        "url": f"http://127.0.0.1:{documents.port}/v1/chat/completions",
        "headers": {"Authorization": f"Bearer {TOKEN}"},
    }
    if told == "by its preset":
        engine = docling.ApiVlmEngineOptions(**known)
        chosen = docling.VlmConvertOptions.from_preset("granite_docling", engine_options=engine)
    else:
        stoppers = [docling.GenerationStopper()] if told == "streamed" else []
        chosen = docling.ApiVlmOptions(
            **known,
            params={"skip_special_tokens": False} if told == "to keep tags" else {},
            prompt="Convert this page to docling.",
            response_format=docling.ResponseFormat.DOCTAGS,
            custom_stopping_criteria=stoppers,
        )
    result = convert(docling, chosen, DEMO)
    assert result.status == "success"
    assert [(text.label, text.text) for text in result.document.texts] == [
        ("title", "Fig"),
        ("text", "pear"),
    ]
