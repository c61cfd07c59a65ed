"""GET /dashboard: one page and its few files, all from here; and what it asks for each second."""

import json
import time
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cluster.gateway.dashboard.state import Clock, Seen, dashboard_state
from cluster.gateway.errors_wire import FieldError
from cluster.metrics.observation import Observation
from cluster.metrics.routes import check_operator

FOLDER = Path(__file__).resolve().parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
FILES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.suffix in TYPES and path.name != "index.html"))
OPEN_PATHS = ("/", "/dashboard", *(f"/dashboard/{name}" for name in FILES))
"""The page itself tells nothing, and asks for a key where one is needed."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
MAX_NUMBER_DIGITS = 18


def dashboard_routes(observation: Observation) -> APIRouter:
    """The routes of this file; its files are read once."""
    router = APIRouter(include_in_schema=False)
    page = (FOLDER / "index.html").read_bytes()
    access = observation.gateway.access

    @router.get("/")
    async def root() -> Response:
        return RedirectResponse("dashboard", status_code=307)

    @router.get("/dashboard")
    async def dashboard() -> Response:
        return Response(page, headers={"content-type": TYPES[".html"], **HEADERS})

    @router.get("/dashboard/state.json")
    async def state(request: Request) -> Response:
        check_operator(access, request)
        minute = _number(request, "minute") if "minute" in request.query_params else None
        sample, ended, decision = (_number(request, name) for name in ("sample", "request", "decision"))
        seen = Seen(sample, ended, decision, minute)
        told = dashboard_state(observation, seen, Clock(time.monotonic(), time.time()))
        body = json.dumps(told, separators=(",", ":"), ensure_ascii=False)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    for name in FILES:
        _serve_file(router, name)
    return router


def _serve_file(router: APIRouter, name: str) -> None:
    body, content_type = (FOLDER / name).read_bytes(), TYPES[Path(name).suffix]

    @router.get(f"/dashboard/{name}")
    async def file() -> Response:
        return Response(body, headers={"content-type": content_type, **HEADERS})


def _number(request: Request, name: str) -> int:
    """Raises FieldError."""
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS):
        raise FieldError(name, "must be a number that a state told", "invalid_request")
    return int(text)
