"""Errors as HTTP clients see them: OpenAI's nested body, the status, and whether a retry can help."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.responses import Response

from cluster.gateway.errors_wire import MAX_MESSAGE_CHARS, FieldError, Variant, wire_row
from core.errors import ErrorInfo, PenstockError

INVALID = "invalid_request_error"
TYPES = {401: "authentication_error", 403: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's word for each status; other 4xx are invalid requests, all from 499 on are the server's."""

MESSAGES = "/v1/messages"
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
ANTHROPIC = {"overloaded": "overloaded_error", "slo_unattainable": "overloaded_error"}
"""Anthropic's word for each status, and for the codes whose status says less."""

HOPELESS = frozenset({"slo_unattainable", "deadline_exceeded"})
"""Codes whose status would make clients try again, where the same request cannot do better."""

SHORT = frozenset({"draining", "unavailable"})
"""Codes of a state that another server, or this one soon, is not in; nobody knows how soon."""

RETRY_AFTER_S = 1.0
MAX_PATIENCE_S = 60.0
"""Clients wait no longer than this: older ones of OpenAI's come back at once instead."""


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error ready to be sent: `param` is the field to mend, None where there is none."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's nested shape; an event in mid-stream has the same."""
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, INVALID if self.status < 499 else "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def anthropic_body(self) -> dict[str, object]:
        """The shape of `/v1/messages`, with our code and field beside it."""
        kind = ANTHROPIC.get(self.code) or ANTHROPIC_TYPES.get(
            self.status, INVALID if self.status < 499 else "api_error"
        )
        told = {"type": kind, "message": self.message, "param": self.param, "code": self.code}
        return {"type": "error", "error": told}

    @property
    def headers(self) -> dict[str, str]:
        """When to come back, or that it is no use. Without them the official client would try twice more."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        retry_after_s = RETRY_AFTER_S if self.retry_after_s is None and self.code in SHORT else self.retry_after_s
        if retry_after_s is not None:
            wait_ms = max(0, math.ceil(retry_after_s * 1000))
            told = {"retry-after": str(math.ceil(wait_ms / 1000)), "retry-after-ms": str(wait_ms)}
            return told | ({"x-should-retry": "false"} if retry_after_s > MAX_PATIENCE_S else {})
        no_use = self.code in HOPELESS or self.status == 429
        return {"x-should-retry": "false"} if no_use else {}

    def response(self, headers: Mapping[str, str] | None = None, path: str = "") -> Response:
        """The whole answer of a request that got none; of one to a path of another interface, in its shape."""
        return Response(
            json.dumps(self.anthropic_body if path.startswith(MESSAGES) else self.body),
            status_code=self.status,
            media_type="application/json",
            headers={**self.headers, **(headers or {})},
        )


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What the gateway's fields are called in one kind of HTTP request, by their beginnings; longer ones win."""

    names: Mapping[str, str] = field(default_factory=dict)

    def name(self, path: str) -> str:
        """`sampling.top_p` is `top_p` to an HTTP client, `token_ids.ids[3]` is `prompt[3]`."""
        for known in sorted(self.names, key=len, reverse=True):
            if path == known or path.startswith((known + "[", known + ".")):
                return self.names[known] + path[len(known) :]
        return path.removeprefix("sampling.")


SAME_NAMES = FieldNames()


def http_error(error: PenstockError, names: FieldNames = SAME_NAMES) -> HttpError:
    """A refusal at the door."""
    if not isinstance(error, FieldError):
        return ended_error(error.info)
    row, param = wire_row(error.code, error.variant), names.name(error.field)
    problem = error.message.removeprefix(error.field)
    return HttpError(row.http, row.code, (param + problem)[:MAX_MESSAGE_CHARS], param, error.retry_after_s)


def ended_error(error: ErrorInfo, variant: Variant = Variant.USUAL) -> HttpError:
    """How a call ended that did not finish."""
    row = wire_row(error.code, variant)
    return HttpError(row.http, row.code, error.message[:MAX_MESSAGE_CHARS], None, error.retry_after_s)
