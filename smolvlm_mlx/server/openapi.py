"""The description of the API in its own terms: made of the models of what may be asked and what is
answered.

Reference: spec.openapis.org/oas/v3.1.0.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from ..generation.scheduler import Status
from ..tasks.history import MAX_NAME, UNDO_SECONDS, Summary
from ..tasks.tree import Place
from .openai import (
    ChatCompletion,
    ChatCompletionChunk,
    ErrorBody,
    Model,
    ModelList,
    News,
    Seen,
    Shape,
)
from .request import ChatRequest
from .seen import Size

Object = dict[str, Any]  # of JSON

ERRORS = {
    400: "The request cannot be understood, or not be done.",
    401: "The token is missing or wrong.",
    403: "The name that the server is called by, or the origin, is not allowed.",
    404: "There is no such thing.",
    405: "The path has no such method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    500: "The server failed.",
    503: "As many answers are waiting as may, the server is ending, or the engine has failed.",
}
EVERYWHERE = {400, 401, 403, 405, 408, 413, 500}
RED_DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD"
    "3A0FDAAAAAElFTkSuQmCC"
)
EXAMPLES: dict[str, Object] = {
    "text": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50},
    "picture": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": RED_DOT}},
                    {"type": "text", "text": "What color is it?"},
                ],
            }
        ],
        "max_tokens": 50,
    },
    "stream": {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
}


class Memory(Shape):
    """What MLX's arrays take, in bytes: now, at most since the last prompt was begun, and what is
    kept for the next ones."""

    active: int
    peak: int
    cache: int


class Health(Shape):
    """How the engine is, as its last step shows it: `failing` if that was an error, `stuck` if none
    has come for two minutes although something is being made, `closing` while the server ends,
    `failed` if no more answers can come. The last three have the status 503."""

    status: Status
    model: str
    running: int
    waiting: int
    idle_seconds: float | None = Field(
        None, description="Since the last step, while something is being made."
    )
    errors: int = Field(description="Steps so far that could not be computed.")
    last_error: str | None = None
    memory: Memory


class Conversation(Shape):
    """`kept` says where its messages stand, without one of instructions at the front."""

    id: str
    messages: Sequence[Mapping[str, object]]
    kept: list[Place]


class ConversationList(Shape):
    kept: bool
    conversations: Sequence[Summary]


ANSWERS: list[type[Shape]] = [
    ChatCompletion,
    ChatCompletionChunk,
    Conversation,
    ConversationList,
    ErrorBody,
    Health,
    Model,
    ModelList,
    News,
    Seen,
]


@cache
def document() -> Object:
    """Return the OpenAPI document of all routes but the page's files."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "smolvlm-mlx",
            "version": "1",
            "description": "OpenAI's chat completions by SmolVLM. HEAD is where GET is.",
        },
        "security": [{"token": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _paths() -> Object:
    id = _parameter("id", "path", {"type": "string", "minLength": 1}, required=True)
    return {
        "/health": {
            "get": {
                **_operation("How the engine is; needs no token.", Health),
                "security": [],
            }
        },
        "/openapi.json": {"get": _operation("This description.", None)},
        "/page/start": {"get": _operation("What the page begins with.", None)},
        "/tiles": {"get": _tiles()},
        "/v1/models": {"get": _operation("The model, under each of its names.", ModelList)},
        "/v1/models/{id}": {
            "parameters": [id],
            "get": _operation("The model under a name of it.", Model, 404),
        },
        "/v1/chat/completions": {"post": _chat()},
        **_conversations(id),
    }


def _conversations(id: Object) -> Object:
    words = _parameter("words", "query", {"type": "string"}, "Those that have all of these words.")
    title = _parameter("title", "query", {"type": "string", "maxLength": MAX_NAME}, required=True)
    return {
        "/conversations": {
            "parameters": [words],
            "get": _operation("Conversations that are kept.", ConversationList),
        },
        "/conversations/{id}": _conversation(id),
        "/conversations/{id}/restore": {
            "parameters": [id],
            "post": _done("Take back a deletion that can be undone.", "It is there again."),
        },
        "/conversations/{id}/title": {
            "parameters": [id],
            "post": {
                **_operation("Give a conversation a name, or none.", None, 404),
                "parameters": [title],
            },
        },
        "/conversations/{id}/markdown": {"parameters": [id], "get": _markdown()},
        "/conversations/{id}/stop": {
            "parameters": [id],
            "post": _done("End the answer under way; what came of it stays.", "It has ended."),
        },
        "/conversations/{id}/events": {"parameters": [id], "get": _news()},
    }


def _conversation(id: Object) -> Object:
    message = _parameter("message", "query", {"type": "integer", "minimum": 0}, "", required=True)
    undo = _parameter(
        "undo", "query", {"type": "boolean"}, f"It can be restored for {UNDO_SECONDS} seconds."
    )
    return {
        "parameters": [id],
        "get": _operation("A conversation, up to where it is.", Conversation, 404),
        "post": {
            **_operation("Go to the newest end beyond a message.", Conversation, 404),
            "parameters": [message],
        },
        "delete": {
            **_done("Forget a conversation.", "It is forgotten."),
            "parameters": [undo],
        },
    }


def _done(summary: str, description: str) -> Object:
    """Return one whose answer says nothing."""
    answers = {"204": {"description": description}}
    return {"summary": summary, "responses": {**answers, **_errors(404)}}


def _markdown() -> Object:
    operation = _operation("A conversation in Markdown, in a zip if it has pictures.", None, 404)
    text: Object = {"schema": {"type": "string"}}
    operation["responses"]["200"]["content"] = {"text/markdown": text, "application/zip": text}
    return operation


def _news() -> Object:
    news = _operation("What comes to a conversation, as long as one listens.", None, 404, 503)
    content = {"contentMediaType": "application/json", "contentSchema": _reference(News)}
    data = {"type": "object", "required": ["data"], "properties": {"data": content}}
    news["responses"]["200"]["content"] = {"text/event-stream": {"schema": data}}
    return news


def _tiles() -> Object:
    tiles = _operation("What a picture or a video of a size is to the model.", Seen)
    described = Size.model_json_schema()
    fields = {name: {**field} for name, field in described["properties"].items()}
    parameters = []
    for name, field in fields.items():
        about = field.pop("description", "")
        schema = field.get("anyOf", [field])[0]  # a query has no null
        schema = {key: value for key, value in schema.items() if key != "title"}
        parameters.append(_parameter(name, "query", schema, about, name in described["required"]))
    return {**tiles, "parameters": parameters}


def _chat() -> Object:
    chat = _operation("Answer a conversation.", ChatCompletion, 503)
    content = _json(ChatRequest)
    content["application/json"]["examples"] = {
        name: {"value": value} for name, value in EXAMPLES.items()
    }
    chat["requestBody"] = {"required": True, "content": content}
    chat["responses"]["200"]["content"]["text/event-stream"] = {"schema": _server_sent_event()}
    return chat


def _server_sent_event() -> Object:
    """Return the schema of each event of a stream."""
    shapes: list[type[Shape]] = [ChatCompletionChunk, ErrorBody]
    content = {
        "contentMediaType": "application/json",
        "contentSchema": {"oneOf": [_reference(shape) for shape in shapes]},
    }
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, content]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _operation(summary: str, answer: type[Shape] | None, *more: int) -> Object:
    """Return one whose answer is JSON; it has these errors, beside those that all have."""
    content = (
        {"application/json": {"schema": {"type": "object"}}} if answer is None else _json(answer)
    )
    answers = {"200": {"description": "It is so.", "content": content}}
    return {"summary": summary, "responses": {**answers, **_errors(*more)}}


def _errors(*more: int) -> Object:
    return {
        str(status): {"description": ERRORS[status], "content": _json(ErrorBody)}
        for status in sorted({*EVERYWHERE, *more})
    }


def _json(model: type[BaseModel]) -> Object:
    return {"application/json": {"schema": _reference(model)}}


def _reference(model: type[BaseModel]) -> Object:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _parameter(
    name: str, where: str, schema: Object, about: str = "", required: bool = False
) -> Object:
    return {
        "name": name,
        "in": where,
        "required": required,
        "schema": schema,
        **({"description": about} if about else {}),
    }


def _schemas() -> Object:
    asked: list[tuple[type[BaseModel], Literal["validation", "serialization"]]]
    asked = [(ChatRequest, "validation"), *[(model, "serialization") for model in ANSWERS]]
    _, found = models_json_schema(asked, ref_template="#/components/schemas/{model}")
    return dict(found["$defs"])
