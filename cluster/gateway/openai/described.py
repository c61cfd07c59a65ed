"""An ASGI application that stands behind the front, and describes itself."""

from collections.abc import Callable, Iterable
from functools import cache

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.docs_page import docs_page
from cluster.gateway.openai.fields import path_of
from cluster.gateway.openai.front import OPEN_PATHS, Admit, Front
from cluster.gateway.openai.hosts import HostCheck
from cluster.gateway.openai.openapi import Described, describe


def fronted(
    routers: Iterable[APIRouter], admit: Admit, hosts: HostCheck, open_paths: Iterable[str] = OPEN_PATHS
) -> FastAPI:
    """An application of these routes; `open_paths` need no key, all others one that `admit` takes."""
    app = FastAPI(title="Penstock", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _pass_on)
    app.add_exception_handler(RequestValidationError, _pass_on)
    app.add_middleware(Front, admit=admit, hosts=hosts, open_paths=open_paths)
    return app


def add_description(
    app: FastAPI, described: Described, bodies: Iterable[type[BaseModel]], first_curl: Callable[[str], str]
) -> None:
    """`/openapi.json` and `/docs`, to be added once all routes are there. `first_curl` makes an example of a URL."""

    @cache
    def document() -> dict[str, object]:
        return describe(app, described, bodies)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(document())

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page(document(), first_curl(str(request.base_url).rstrip("/"))))


async def _pass_on(request: Request, error: Exception) -> Response:
    """The front translates all errors, in one place."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        raise FieldError(path_of(tuple(first["loc"])[1:]), str(first["msg"]), "invalid_type") from error
    raise error
