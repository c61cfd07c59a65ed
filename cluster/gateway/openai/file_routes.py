"""OpenAI's files, as far as batches need them: /v1/files."""

import asyncio
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cluster.batches.batches import Batches
from cluster.batches.records import StoredFile
from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.openai.accounts import Json
from cluster.gateway.openai.door import Door, caller_of
from cluster.gateway.openai.openapi import ANSWERS
from cluster.gateway.openai.respond import ABORT
from cluster.gateway.openai.uploads import Upload, receive_upload
from core.errors import Overloaded

MAX_UPLOADS = 8
MAX_LISTED = 10_000
READ_BYTES = 256 * 1024
RETRY_AFTER_S = 1.0

_FORM = {
    "type": "object",
    "properties": {"purpose": {"const": "batch"}, "file": {"type": "string", "format": "binary"}},
    "required": ["purpose", "file"],
    "additionalProperties": False,
}
UPLOAD: Json = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


def file_routes(door: Door, batches: Batches) -> APIRouter:
    """The routes of this file."""
    router = APIRouter(tags=["batches"])
    store, uploading = batches.files, asyncio.Semaphore(MAX_UPLOADS)

    @router.post("/v1/files", summary="Upload the input of a batch", responses=ANSWERS, openapi_extra=UPLOAD)
    async def upload(request: Request) -> Response:
        """A form with `purpose` batch and `file`: JSON lines, each a request with its `custom_id`, `url` and `body`."""
        owner = owner_of(request)
        if uploading.locked():
            raise Overloaded(f"{MAX_UPLOADS} files are being uploaded, the most at once", retry_after_s=RETRY_AFTER_S)
        async with uploading:
            coming = Upload(store.new_upload(owner), batches.config, door.gateway.limits.max_message_bytes)
            try:
                await receive_upload(request, coming)
                store.check_room(owner, coming.num_bytes)
                assert coming.filename is not None, "an upload without a file was taken"
                return JSONResponse(file_object(store.take(coming.path, owner, coming.filename)))
            finally:
                coming.close()
                coming.path.unlink(missing_ok=True)

    @router.get("/v1/files", summary="The files of this key", responses=ANSWERS)
    async def files(request: Request) -> Response:
        """Newest first; `purpose`, `order`, `limit` and `after` as OpenAI has them."""
        purpose, order = request.query_params.get("purpose"), request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise FieldError("order", f"must be asc or desc, is {echoed(order)}", "invalid_request")
        own = [file for file in store.owned_by(owner_of(request)) if purpose in (None, file.purpose)]
        return JSONResponse(page(request, [file_object(file) for file in own[:: 1 if order == "asc" else -1]]))

    @router.get("/v1/files/{file_id}", summary="One file", responses=ANSWERS)
    async def file(file_id: str, request: Request) -> Response:
        """What is known of it."""
        return JSONResponse(file_object(store.find(file_id, owner_of(request))))

    @router.get("/v1/files/{file_id}/content", summary="A file's bytes", responses=ANSWERS)
    async def content(file_id: str, request: Request) -> Response:
        """As they are."""
        found = store.find(file_id, owner_of(request))
        return Content(store.path(found.id), found.num_bytes, door.gateway.limits.max_stall_s)

    @router.delete("/v1/files/{file_id}", summary="Delete a file", responses=ANSWERS)
    async def delete(file_id: str, request: Request) -> Response:
        """Not while a batch reads it."""
        found = store.find(file_id, owner_of(request))
        batches.delete_file(found)
        return JSONResponse({"id": found.id, "object": "file", "deleted": True})

    return router


def owner_of(request: Request) -> str:
    """Whose files these are: the key's id, empty where no keys are asked for."""
    return caller_of(request).grant.id


def file_object(file: StoredFile) -> Json:
    """A file as OpenAI tells it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_at,
        "expires_at": None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def page(request: Request, objects: list[Json], most: int = MAX_LISTED, usual: int = MAX_LISTED) -> Json:
    """One page of a list: `limit` of them behind that named `after`. Raises FieldError."""
    text, after = request.query_params.get("limit", str(usual)), request.query_params.get("after")
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most):
        raise FieldError("limit", f"must be from 1 to {most}, is {echoed(text)}", "invalid_request")
    names = [each["id"] for each in objects]
    if after is not None and after not in names:
        raise FieldError("after", f"there is no {echoed(after)}", "not_found")
    first = 0 if after is None else names.index(after) + 1
    told = objects[first : first + int(text)]
    return {
        "object": "list",
        "data": told,
        "first_id": told[0]["id"] if told else None,
        "last_id": told[-1]["id"] if told else None,
        "has_more": first + len(told) < len(objects),
    }


class Content(Response):
    """A file's bytes, piece by piece. A client that takes none for `max_stall_s` is broken off."""

    def __init__(self, path: Path, num_bytes: int, max_stall_s: float) -> None:
        super().__init__(media_type="application/octet-stream", headers={"content-length": str(num_bytes)})
        self._path = path
        self._left = num_bytes
        self._max_stall_s = max_stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write all of it."""
        try:
            with await asyncio.to_thread(self._path.open, "rb") as file:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                while self._left:
                    data = await asyncio.to_thread(file.read, min(READ_BYTES, self._left))
                    self._left = self._left - len(data) if data else 0
                    async with asyncio.timeout(self._max_stall_s):
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            if (abort := scope["state"].get(ABORT)) is not None:
                abort()
