"""The whole HTTP interface as one ASGI application."""

from collections.abc import Iterable, Sequence

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from cluster.gateway.openai.abort_routes import abort_routes
from cluster.gateway.openai.batch_routes import BatchRequest
from cluster.gateway.openai.chat_routes import chat_routes
from cluster.gateway.openai.completion_routes import completion_routes
from cluster.gateway.openai.described import add_description, fronted
from cluster.gateway.openai.door import Door
from cluster.gateway.openai.front import OPEN_PATHS
from cluster.gateway.openai.hosts import HostCheck, is_loopback
from cluster.gateway.openai.messages_request import CountRequest, MessagesRequest
from cluster.gateway.openai.messages_routes import messages_routes
from cluster.gateway.openai.openapi import OPENAI
from cluster.gateway.openai.probe_routes import probe_routes
from cluster.gateway.openai.requests import (
    AbortRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from cluster.gateway.openai.responses_request import ResponsesRequest
from cluster.gateway.openai.responses_routes import responses_routes
from cluster.gateway.openai.token_routes import token_routes

BODIES = (
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    MessagesRequest,
    CountRequest,
    TokenizeRequest,
    DetokenizeRequest,
    AbortRequest,
    BatchRequest,
)


def create_app(door: Door, routers: Sequence[APIRouter] = (), open_paths: Iterable[str] = ()) -> FastAPI:
    """The application. `routers` are mounted beside its own routes; `open_paths` of theirs need no key."""
    own = (
        chat_routes,
        completion_routes,
        responses_routes,
        messages_routes,
        token_routes,
        abort_routes,
        probe_routes,
    )
    access = door.gateway.access
    hosts = HostCheck(is_local=access.is_open and is_loopback(door.config.host))
    app = fronted((*(make(door) for make in own), *routers), access.caller, hosts, (*OPEN_PATHS, *open_paths))
    add_description(app, OPENAI, BODIES, lambda base_url: _first_curl(base_url, door.gateway.model.name))
    if door.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=door.config.allowed_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _first_curl(base_url: str, model: str) -> str:
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "What is a penstock?"}}]}}'
    return f"curl {base_url}/v1/chat/completions -H 'content-type: application/json' \\\n  -d '{body}'"
