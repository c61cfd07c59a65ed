"""How the HTTP interface describes itself: request bodies and errors in OpenAPI's words."""

from collections.abc import Iterable
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REF = "#/components/schemas/{model}"
Json = dict[str, object]

ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "description": "Stable; docs/api.md lists them."},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def _error(text: str) -> Json:
    return {"description": text, "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}}


ANSWERS: dict[int | str, Json] = {
    200: {
        "description": "The answer; with stream, server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    },
    400: _error("A field is missing, unknown, of another type or out of its range; param names it."),
    401: _error("No key, or an unknown one."),
    403: _error("The key does not open this."),
    404: _error("No such model."),
    408: _error("The body came too slowly."),
    413: _error("The body is too large."),
    415: _error("The body is not application/json."),
    429: _error("The key's quota is used; Retry-After says when to come back."),
    431: _error("The headers are too large."),
    500: _error("Our mistake; the message has its number in the log."),
    503: _error("No room, no node, or a target out of reach; Retry-After or x-should-retry say what to do."),
    504: _error("The request's deadline passed."),
}

DESCRIPTION = """OpenAI's interface to a Penstock cluster, with vLLM's extra fields and service level objectives.

Errors are `{"error": {"message", "type", "param", "code"}}`. Every answer has `x-request-id`, the caller's own where it
sent one. Headers say what the body may say, too: `x-slo-ttft-ms`, `x-slo-tpot-ms`, `x-slo-class`, `x-priority`,
`x-deadline-ms`."""


def body_of(model: type[BaseModel]) -> Json:
    """A route's request body, by reference."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, bodies: Iterable[type[BaseModel]]) -> Json:
    """The whole document. Bodies are read by hand, so they are added by hand."""
    document: Json = get_openapi(
        title="Penstock", version=version("penstock"), description=DESCRIPTION, routes=app.routes
    )
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    components = document.setdefault("components", {})
    assert isinstance(components, dict), "OpenAPI has an object here"
    schemas = components.setdefault("schemas", {})
    schemas |= definitions["$defs"] | {"Error": ERROR}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "Where keys are set."}}
    document["security"] = [{"key": []}, {}]
    return document
