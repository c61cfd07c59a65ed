"""The whole HTTP interface as one ASGI application."""

from collections.abc import Iterable, Sequence
from functools import cache

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.abort_routes import abort_routes
from cluster.gateway.openai.batch_routes import BatchRequest
from cluster.gateway.openai.chat_routes import chat_routes
from cluster.gateway.openai.completion_routes import completion_routes
from cluster.gateway.openai.docs_page import docs_page
from cluster.gateway.openai.door import Door
from cluster.gateway.openai.fields import path_of
from cluster.gateway.openai.front import OPEN_PATHS, Front
from cluster.gateway.openai.hosts import HostCheck, is_loopback
from cluster.gateway.openai.messages_request import CountRequest, MessagesRequest
from cluster.gateway.openai.messages_routes import messages_routes
from cluster.gateway.openai.openapi import describe
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
    app = FastAPI(title="Penstock", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    own = (
        chat_routes,
        completion_routes,
        responses_routes,
        messages_routes,
        token_routes,
        abort_routes,
        probe_routes,
    )
    for router in (*(make(door) for make in own), *routers):
        app.include_router(router)
    _add_description(app, door)
    app.add_exception_handler(HTTPException, _pass_on)
    app.add_exception_handler(RequestValidationError, _pass_on)
    access = door.gateway.access
    hosts = HostCheck(is_local=access.is_open and is_loopback(door.config.host))
    app.add_middleware(Front, access=access, hosts=hosts, open_paths=(*OPEN_PATHS, *open_paths))
    if door.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=door.config.allowed_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _add_description(app: FastAPI, door: Door) -> None:
    """The interface's description, made once all routes are there."""

    @cache
    def document() -> dict[str, object]:
        return describe(app, BODIES)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(document())

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        base_url = str(request.base_url).rstrip("/")
        return HTMLResponse(docs_page(document(), base_url, door.gateway.model.name))


async def _pass_on(request: Request, error: Exception) -> Response:
    """The front translates all errors, in one place."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        raise FieldError(path_of(tuple(first["loc"])[1:]), str(first["msg"]), "invalid_type") from error
    raise error
