"""GET /metrics."""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.gateway.access import Access
from cluster.metrics.exposition import Exposition

PATH = "/metrics"


def metrics_routes(exposition: Exposition, access: Access) -> APIRouter:
    """The route. Where keys are asked for, it needs an operator's: metrics tell of every tenant."""
    router = APIRouter(tags=["server"])

    @router.get(PATH, summary="Metrics for Prometheus")
    async def metrics(request: Request) -> Response:
        """In OpenMetrics' or Prometheus' own text, as `accept` says; docs/metrics.md lists them."""
        check_operator(access, request)
        return await text_response(exposition, request)

    return router


async def text_response(exposition: Exposition, request: Request) -> Response:
    """The metrics as this scraper wants them."""
    told = await exposition.text(request.headers.get("accept", ""))
    return Response(told.body, headers={"content-type": told.content_type, "cache-control": "no-store"})


def check_operator(access: Access, request: Request) -> None:
    """Raises AccessDenied for who is no operator, where keys are asked for."""
    if not access.is_open:
        access.caller(request.headers.get("authorization"), time.time()).check_admin()
