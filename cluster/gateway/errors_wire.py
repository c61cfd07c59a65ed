"""Errors as clients see them: one table from our codes to gRPC and HTTP, and the details that travel with a status."""

import math
from dataclasses import dataclass
from enum import StrEnum

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.error_details_pb2 import ErrorInfo as ErrorInfoDetail
from google.rpc.status_pb2 import Status

from core.errors import ErrorInfo, PenstockError, RequestError

DOMAIN = "penstock"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
MAX_ECHOED_BYTES = 64
MAX_MESSAGE_CHARS = 1024


class Variant(StrEnum):
    """Where one code has two statuses: a name that cannot be one at all, and a failure after the first token."""

    USUAL = "usual"
    MALFORMED = "malformed"
    AFTER_TOKENS = "after_tokens"


@dataclass(frozen=True, slots=True)
class WireRow:
    """One code on the wire."""

    code: str
    grpc: grpc.StatusCode
    http: int
    variant: Variant = Variant.USUAL


_BAD, _BUSY, _AWAY = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE

ROWS = (
    WireRow("invalid_request", _BAD, 400),
    WireRow("invalid_type", _BAD, 400),
    WireRow("invalid_utf8", _BAD, 400),
    WireRow("invalid_request_id", _BAD, 400),
    WireRow("empty_prompt", _BAD, 400),
    WireRow("context_length_exceeded", _BAD, 400),
    WireRow("invalid_token_id", _BAD, 400),
    WireRow("invalid_max_tokens", _BAD, 400),
    WireRow("invalid_min_tokens", _BAD, 400),
    WireRow("invalid_sampling", _BAD, 400),
    WireRow("invalid_seed", _BAD, 400),
    WireRow("invalid_n", _BAD, 400),
    WireRow("invalid_logprobs", _BAD, 400),
    WireRow("invalid_stop", _BAD, 400),
    WireRow("invalid_grammar", _BAD, 400),
    WireRow("invalid_cache_salt", _BAD, 400),
    WireRow("invalid_slo_class", _BAD, 400),
    WireRow("unsupported_parameter", _BAD, 400),
    WireRow("invalid_api_key", grpc.StatusCode.UNAUTHENTICATED, 401),
    WireRow("model_forbidden", grpc.StatusCode.PERMISSION_DENIED, 403),
    WireRow("tenant_forbidden", grpc.StatusCode.PERMISSION_DENIED, 403),
    WireRow("admin_forbidden", grpc.StatusCode.PERMISSION_DENIED, 403),
    WireRow("model_not_found", grpc.StatusCode.NOT_FOUND, 404),
    WireRow("model_not_found", _BAD, 400, Variant.MALFORMED),
    WireRow("unknown_node", grpc.StatusCode.NOT_FOUND, 404),
    WireRow("phase_uncovered", grpc.StatusCode.FAILED_PRECONDITION, 409),
    WireRow("not_found", grpc.StatusCode.UNIMPLEMENTED, 404),
    WireRow("body_too_large", _BUSY, 413),
    WireRow("request_too_large_for_cluster", grpc.StatusCode.FAILED_PRECONDITION, 400),
    WireRow("invalid_deadline", grpc.StatusCode.DEADLINE_EXCEEDED, 400),
    WireRow("deadline_exceeded", grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    WireRow("rate_limit_exceeded", _BUSY, 429),
    WireRow("overloaded", _BUSY, 503),
    WireRow("slo_unattainable", _BUSY, 503),
    WireRow("draining", _AWAY, 503),
    WireRow("unavailable", _AWAY, 503),
    WireRow("worker_lost", _AWAY, 503),
    WireRow("worker_lost", grpc.StatusCode.ABORTED, 503, Variant.AFTER_TOKENS),
    WireRow("step_failed", _AWAY, 503),
    WireRow("step_failed", grpc.StatusCode.ABORTED, 503, Variant.AFTER_TOKENS),
    WireRow("kv_lost", _AWAY, 503),
    WireRow("kv_lost", grpc.StatusCode.ABORTED, 503, Variant.AFTER_TOKENS),
    WireRow("kv_corrupt", grpc.StatusCode.DATA_LOSS, 500),
    WireRow("client_closed", grpc.StatusCode.CANCELLED, 499),
    WireRow("slow_reader", grpc.StatusCode.CANCELLED, 499),
    WireRow("internal", grpc.StatusCode.INTERNAL, 500),
)
HTTP_ROWS = (
    WireRow("invalid_json", _BAD, 400),
    WireRow("json_too_complex", _BAD, 400),
    WireRow("bad_request_line", _BAD, 400),
    WireRow("unknown_parameter", _BAD, 400),
    WireRow("reserved_parameter", _BAD, 400),
    WireRow("unsupported_content", _BAD, 400),
    WireRow("method_not_allowed", grpc.StatusCode.UNIMPLEMENTED, 405),
    WireRow("read_timeout", grpc.StatusCode.CANCELLED, 408),
    WireRow("unsupported_media_type", _BAD, 415),
    WireRow("headers_too_large", _BUSY, 431),
)
"""Codes that only HTTP can cause; the gRPC status beside each is what a proxy between the two would say."""

_ROW = {(row.code, row.variant): row for row in (*ROWS, *HTTP_ROWS)}


class FieldError(RequestError):
    """A field of the request is refused; `field` is its path, and the message names it and the limit."""

    def __init__(self, field: str, problem: str, code: str, variant: Variant = Variant.USUAL) -> None:
        super().__init__(f"{field}: {problem}", code=code)
        self.field = field
        self.variant = variant


@dataclass(frozen=True, slots=True)
class WireStatus:
    """A gRPC status, ready to be sent: code, message, trailing metadata."""

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, str | bytes], ...]


def wire_row(code: str, variant: Variant = Variant.USUAL) -> WireRow:
    """The row of a code; the usual one where the variant makes no difference, `internal` for a code nobody knows."""
    return _ROW.get((code, variant)) or _ROW.get((code, Variant.USUAL)) or _ROW["internal", Variant.USUAL]


def wire_status(error: ErrorInfo, field: str = "", variant: Variant = Variant.USUAL) -> WireStatus:
    """An error as a gRPC status with google.rpc details, and pushback where a time to come back is known."""
    row, message = wire_row(error.code, variant), error.message[:MAX_MESSAGE_CHARS]
    details: list[Message] = [ErrorInfoDetail(reason=row.code, domain=DOMAIN)]
    if field:
        details.append(BadRequest(field_violations=[BadRequest.FieldViolation(field=field, description=message)]))
    metadata: list[tuple[str, str | bytes]] = []
    if error.retry_after_s is not None:
        pushback_ms = max(0, math.ceil(error.retry_after_s * 1000))
        wait = Duration()
        wait.FromMilliseconds(pushback_ms)
        details.append(RetryInfo(retry_delay=wait))
        metadata.append((PUSHBACK_KEY, str(pushback_ms)))
    status = Status(code=row.grpc.value[0], message=message, details=[_packed(detail) for detail in details])
    return WireStatus(row.grpc, message, ((DETAILS_KEY, status.SerializeToString()), *metadata))


def raised_status(error: PenstockError) -> WireStatus:
    """The status of a request that was refused at the door."""
    if isinstance(error, FieldError):
        return wire_status(error.info, error.field, error.variant)
    return wire_status(error.info)


def echoed(value: str) -> str:
    """A piece of the caller's input, short enough to be said back."""
    return repr(value.encode(errors="replace")[:MAX_ECHOED_BYTES].decode(errors="ignore"))


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
