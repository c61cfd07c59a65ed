"""POST /abort_request: ends open requests by their name, as SGLang's does."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.door import Door, caller_of
from cluster.gateway.openai.errors import FieldNames
from cluster.gateway.openai.openapi import ANSWERS, body_of
from cluster.gateway.openai.requests import AbortRequest


def abort_routes(door: Door) -> APIRouter:
    """The route of this file."""
    router = APIRouter(tags=["server"])

    @router.post("/abort_request", summary="End open requests", responses=ANSWERS, openapi_extra=body_of(AbortRequest))
    async def abort_request(request: Request) -> Response:
        """Those of the same caller that have this `x-request-id`; they end as if their client had left."""
        asked = await door.read(request, AbortRequest, FieldNames())
        given = [name for name in (asked.request_id, asked.rid) if name]
        if len(given) != 1:
            raise FieldError("request_id", "give it, or rid, and not both", "invalid_request_id")
        return JSONResponse({"num_aborted": door.gateway.abort(given[0], caller_of(request))})

    return router
