"""OpenAI's batches: /v1/batches."""

from dataclasses import asdict

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.batches.batches import Batches, Wanted
from cluster.batches.input_lines import LineProblem
from cluster.batches.records import BatchRecord, BatchStatus
from cluster.batches.result_log import BatchUsage
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.accounts import Json
from cluster.gateway.openai.door import Door
from cluster.gateway.openai.errors import FieldNames, HttpError
from cluster.gateway.openai.fields import Closed
from cluster.gateway.openai.file_routes import owner_of, page
from cluster.gateway.openai.openapi import ANSWERS, body_of

MAX_LISTED, USUALLY_LISTED = 100, 20
MAX_METADATA, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512
PATHS = ("/v1/files", "/v1/batches")
OFF = HttpError(404, "not_found", "this server keeps no batches: it was started without --batch-dir")


class BatchRequest(Closed):
    """POST /v1/batches"""

    input_file_id: str = Field(description="Of an uploaded file, whose purpose is batch.")
    endpoint: str = Field(description="That of every line: /v1/chat/completions, /v1/completions or /v1/responses.")
    completion_window: str = Field(description="Whole hours from 1h to 168h; OpenAI knows 24h only.")
    metadata: dict[str, str] | None = Field(None, description="At most 16 texts, told back.")


def batch_routes(door: Door, batches: Batches) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["batches"])

    @router.post("/v1/batches", summary="Begin a batch", responses=ANSWERS, openapi_extra=body_of(BatchRequest))
    async def create(request: Request) -> Response:
        """Every line is answered when there is room, or told as expired once the window is over."""
        asked = await door.read(request, BatchRequest, FieldNames())
        metadata = _metadata({} if asked.metadata is None else asked.metadata)
        wanted = Wanted(
            owner_of(request), asked.endpoint, asked.input_file_id, asked.completion_window, metadata or None
        )
        return JSONResponse(batch_object(batches.create(wanted)))

    @router.get("/v1/batches", summary="The batches of this key", responses=ANSWERS)
    async def list_batches(request: Request) -> Response:
        """Newest first; `limit` and `after` as OpenAI has them."""
        own = [batch_object(record) for record in reversed(batches.owned_by(owner_of(request)))]
        return JSONResponse(page(request, own, MAX_LISTED, USUALLY_LISTED))

    @router.get("/v1/batches/{batch_id}", summary="One batch", responses=ANSWERS)
    async def batch(batch_id: str, request: Request) -> Response:
        """Where it is, and how many lines are answered."""
        return JSONResponse(batch_object(batches.find(batch_id, owner_of(request))))

    @router.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch", responses=ANSWERS)
    async def cancel(batch_id: str, request: Request) -> Response:
        """No further line is asked; what is answered stays."""
        return JSONResponse(batch_object(batches.cancel(batch_id, owner_of(request))))

    return router


def batches_off_routes() -> APIRouter:
    """Where a server keeps no batches: the same paths, which say so."""
    router = APIRouter()

    async def off() -> Response:
        return OFF.response()

    for path in PATHS:
        for ending in ("", "/{rest:path}"):
            router.add_api_route(path + ending, off, methods=["GET", "POST", "DELETE"], include_in_schema=False)
    return router


def batch_object(record: BatchRecord) -> Json:
    """A batch as OpenAI tells it."""
    is_told = record.status in (BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)
    return {
        "id": record.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "errors": _errors(record.problems),
        "input_file_id": record.input_file,
        "completion_window": record.window,
        "status": record.status.value,
        "output_file_id": record.output_file if is_told and record.num_answered else None,
        "error_file_id": record.error_file if is_told and record.num_failed else None,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        **asdict(record.moments),
        "request_counts": {
            "total": record.num_lines,
            "completed": record.num_answered,
            "failed": record.num_failed,
        },
        "usage": None if record.usage is None else _usage(record.usage),
        "metadata": record.metadata,
    }


def _errors(problems: tuple[LineProblem, ...]) -> Json | None:
    if not problems:
        return None
    told = [{"code": it.code, "line": it.number, "message": it.message, "param": it.param} for it in problems]
    return {"object": "list", "data": told}


def _usage(usage: BatchUsage) -> Json:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _metadata(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > MAX_METADATA:
        raise FieldError("metadata", f"must have at most {MAX_METADATA} entries", "invalid_request")
    for name, value in metadata.items():
        if len(name) > MAX_KEY_CHARS or len(value) > MAX_VALUE_CHARS:
            problem = f"names have at most {MAX_KEY_CHARS} characters, values {MAX_VALUE_CHARS}"
            raise FieldError("metadata", problem, "invalid_request")
    return metadata
