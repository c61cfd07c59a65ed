"""How an HTTP interface describes itself: request bodies and errors in OpenAPI's words."""

from collections.abc import Iterable
from dataclasses import dataclass
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


def answer_of_error(text: str) -> Json:
    """A status that tells why not."""
    return {"description": text, "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}}


ANSWERS: dict[int | str, Json] = {
    200: {
        "description": "The answer; with stream, server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    },
    400: answer_of_error("A field is missing, unknown, of another type or out of its range; param names it."),
    401: answer_of_error("No key, or an unknown one."),
    403: answer_of_error("The key does not open this."),
    404: answer_of_error("No such model."),
    408: answer_of_error("The body came too slowly."),
    413: answer_of_error("The body is too large."),
    415: answer_of_error("The body is not application/json."),
    429: answer_of_error("The key's quota is used; Retry-After says when to come back."),
    431: answer_of_error("The headers are too large."),
    500: answer_of_error("Our mistake; the message has its number in the log."),
    503: answer_of_error("No room, no node, or a target out of reach; Retry-After or x-should-retry say what to do."),
    504: answer_of_error("The request's deadline passed."),
}


@dataclass(frozen=True, slots=True)
class Described:
    """What stands at the top of an interface's description."""

    title: str
    text: str


OPENAI = Described(
    "Penstock",
    """OpenAI's interface to a Penstock cluster, with vLLM's extra fields and service level objectives.

Errors are `{"error": {"message", "type", "param", "code"}}`. Every answer has `x-request-id`, the caller's own where it
sent one. Headers say what the body may say, too: `x-slo-ttft-ms`, `x-slo-tpot-ms`, `x-slo-class`, `x-priority`,
`x-deadline-ms`.""",
)


def body_of(model: type[BaseModel]) -> Json:
    """A route's request body, by reference."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, described: Described, bodies: Iterable[type[BaseModel]]) -> Json:
    """The whole document. Bodies are read by hand, so they are added by hand."""
    document: Json = get_openapi(
        title=described.title, version=version("penstock"), description=described.text, routes=app.routes
    )
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    components = document.setdefault("components", {})
    assert isinstance(components, dict), "OpenAPI has an object here"
    schemas = components.setdefault("schemas", {})
    schemas |= definitions["$defs"] | {"Error": ERROR}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "Where keys are set."}}
    document["security"] = [{"key": []}, {}]
    return document
