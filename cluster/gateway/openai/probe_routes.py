"""What probes and clients ask before they send work: health, readiness, version, models."""

import time
from importlib.metadata import version

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.api.v1.inference_pb2 import GenerateRequest, SamplingParams, TokenIds
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.calls import Calls
from cluster.gateway.openai.door import Door, caller_of
from cluster.gateway.openai.errors import HttpError
from cluster.gateway.validation import check_model

DEEP_S = 10.0
PROBE_TOKEN = 0


def probe_routes(door: Door) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["server"])
    gateway, started_at = door.gateway, int(time.time())

    @router.get("/health", summary="Whether the process lives")
    async def health(request: Request) -> Response:
        """200 while the process lives. `?deep=1` has the cluster generate a token, which needs a key where keys are."""
        if request.query_params.get("deep") in ("1", "true"):
            caller = gateway.access.caller(request.headers.get("authorization"), time.time())
            params = SamplingParams(max_tokens=1, temperature=0)
            probe = GenerateRequest(
                token_ids=TokenIds(ids=[PROBE_TOKEN]), sampling=params, deadline_ms=int(DEEP_S * 1000)
            )
            calls = await Calls.submit(gateway, [probe], caller)
            try:
                while not calls.is_over:
                    await calls.next()
                if calls.error is not None:
                    return calls.error.response()
            finally:
                calls.leave()
        return JSONResponse({"status": "ok"})

    @router.get("/ready", summary="Whether requests are served")
    async def ready() -> Response:
        """200 while some node prefills and some node decodes and the server is not about to stop, else 503."""
        if gateway.is_draining:
            return HttpError(503, "draining", "the server is about to stop").response()
        if gateway.cut_off:
            return HttpError(503, "unavailable", gateway.cut_off, retry_after_s=1.0).response()
        if not door.state().can_serve:
            return HttpError(503, "unavailable", "no node prefills, or none decodes", retry_after_s=1.0).response()
        return JSONResponse({"status": "ready"})

    @router.get("/ping", summary="Whether the process lives, SageMaker's name")
    async def ping() -> Response:
        """200 and nothing more."""
        return Response()

    @router.get("/version", summary="Penstock's version")
    async def tell_version() -> Response:
        """`{"version": …}`."""
        return JSONResponse({"version": version("penstock")})

    for path, answer in (("/health", health), ("/ready", ready), ("/ping", ping), ("/version", tell_version)):
        router.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)

    def model_object() -> dict[str, object]:
        return {
            "id": gateway.model.name,
            "object": "model",
            "created": started_at,
            "owned_by": "penstock",
            "root": gateway.model.name,
            "parent": None,
            "max_model_len": gateway.model.max_model_len,
        }

    @router.get("/v1/models", summary="The models served")
    async def models(request: Request) -> Response:
        """Those that the caller may use; they answer while the weights are still being read."""
        may_use = caller_of(request).may_use(gateway.model.name)
        return JSONResponse({"object": "list", "data": [model_object()] if may_use else []})

    @router.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str, request: Request) -> Response:
        """404 for one that is not served."""
        if not name:
            raise FieldError("model", f"{echoed(name)} is not served", "model_not_found")
        check_model(name, gateway.model)
        caller_of(request).check_model(name)
        return JSONResponse(model_object())

    return router
