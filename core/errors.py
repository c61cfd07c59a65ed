"""The one tree of errors. Inside machines a failure is an event; exceptions live at borders and are translated once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as it travels: a stable code, a sentence for people, and when to come back if that can be told."""

    code: str
    message: str
    retry_after_s: float | None = None


class PenstockError(Exception):
    """Root of the tree. `code` is stable; `fault` says whose it is: caller, load, ours, or operator."""

    code = "internal"
    fault = "ours"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s

    @property
    def info(self) -> ErrorInfo:
        """This error as a value that can travel."""
        return ErrorInfo(self.code, self.message, self.retry_after_s)


class RequestError(PenstockError):
    """The caller's fault; the message names the field and the limit."""

    code = "invalid_request"
    fault = "caller"


class InvalidRequest(RequestError):
    """A field is missing, of the wrong type, or out of range."""


class PromptTooLong(RequestError):
    """Prompt, or prompt and `max_tokens`, exceed the context or every pool."""

    code = "context_length_exceeded"


class UnknownModel(RequestError):
    """The model that was asked for is not the one served."""

    code = "model_not_found"


class AccessDenied(PenstockError):
    """No key, an unknown one, or one that does not open what was asked for."""

    code = "invalid_api_key"
    fault = "caller"


class Refused(PenstockError):
    """Load: the request is sound, and was turned away before any node was told."""

    code = "overloaded"
    fault = "load"


class Overloaded(Refused):
    """The bounded queue is full."""


class QuotaExceeded(Refused):
    """The caller has used what its key allows; `Overloaded` is our own limit."""

    code = "rate_limit_exceeded"


class Unavailable(Refused):
    """No node can take it at all now."""

    code = "unavailable"


class RequestCancelled(PenstockError):
    """The client left or asked for it."""

    code = "client_closed"
    fault = "caller"


class DeadlineExceeded(PenstockError):
    """The request's time ran out."""

    code = "deadline_exceeded"
    fault = "load"


class WorkerError(PenstockError):
    """Ours; another attempt may do."""

    code = "worker_lost"


class NodeLost(WorkerError):
    """A node died or was cut off."""


class StepFailed(WorkerError):
    """The executor could not run a step."""

    code = "step_failed"


class TransferError(PenstockError):
    """A handoff failed."""

    code = "kv_lost"


class PeerLost(TransferError):
    """The other side of a transfer is gone."""


class LeaseExpired(TransferError):
    """The blocks are no longer lent."""


class LayoutMismatch(TransferError):
    """The two sides' KV cannot be mapped onto each other."""

    code = "layout_mismatch"


class Corrupt(TransferError):
    """A digest or a generation did not match: the bytes are not the ones that were lent."""

    code = "kv_corrupt"


class ConfigError(PenstockError):
    """At start only; lists every problem that was found."""

    code = "invalid_config"
    fault = "operator"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def collected(problems: list[str], part: Callable[[], T]) -> T | None:
    """A part of a configuration; None where it is not sound, its problems then noted."""
    try:
        return part()
    except ConfigError as error:
        problems += error.problems
        return None
