"""What a client is told of an error: OpenAI's shape, with a status of its own."""

from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import (
    ContextFullError,
    EngineError,
    HistoryError,
    NoConversationError,
    PromptError,
    SmolVLMError,
    cut,
)
from ..generation.scheduler import BusyError, ClosingError
from ..tasks.chat import oldest_turn
from .budget import BodySizeError
from .fields import RequestError
from .openai import Forget, error_body


class ModelError(SmolVLMError):
    """A request names a model that is not served."""


# Of errors that are not the request's own.
STATUSES = {
    BodySizeError: 413,
    BusyError: 503,
    ClosingError: 503,
    EngineError: 500,
    HistoryError: 500,
    NoConversationError: 404,
    ModelError: 404,
}
OUR_ERRORS = (ClosingError, EngineError, HistoryError)


def told(error: SmolVLMError, forget: Forget | None = None) -> dict[str, object]:
    """Return what a client is told of an error: its code, and which part of the request it is
    about, where that is known."""
    codes = {ContextFullError: "context_length_exceeded", ModelError: "model_not_found"}
    kinds = {BusyError: "server_busy"} | dict.fromkeys(OUR_ERRORS, "server_error")
    kind, code = kinds.get(type(error), "invalid_request_error"), codes.get(type(error))
    param = error.param if isinstance(error, RequestError) else None
    return error_body(cut(str(error), 300), kind, code, param, forget)


async def on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse(error_body(error.detail), error.status_code, error.headers)
    assert isinstance(error, SmolVLMError)
    forget = None
    if isinstance(error, ContextFullError):
        messages = request.state.messages
        with suppress(PromptError):  # there is no second turn
            forget = Forget(messages=len(messages[oldest_turn(messages)]))
    headers = {"retry-after": "1"} if isinstance(error, BusyError) else None
    if isinstance(error, ClosingError):
        headers = {"retry-after": "5", "connection": "close"}
    return JSONResponse(told(error, forget), STATUSES.get(type(error), 400), headers)


async def on_bug(request: Request, error: Exception) -> Response:
    """Its traceback is for the server's log."""
    return JSONResponse(error_body("the server failed; its log says why", "server_error"), 500)
