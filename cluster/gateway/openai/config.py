"""Where the HTTP server listens, and how it behaves."""

from dataclasses import dataclass
from enum import StrEnum

from cluster.batches.config import BatchConfig

DEFAULT_HTTP_PORT = 8000
KEEP_ALIVE_S = 15.0


class CallFormat(StrEnum):
    """How a model writes calls: named as vLLM names its parsers. `auto` looks at the model's template."""

    AUTO = "auto"
    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """`port` 0 lets the kernel choose. `allowed_origins`: pages of these may call from a browser; none by default.

    A stream that has nothing to say for `keep_alive_s` sends a comment. `batches` None: no batch files are taken.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_HTTP_PORT
    allowed_origins: tuple[str, ...] = ()
    tool_call_format: CallFormat = CallFormat.AUTO
    keep_alive_s: float = KEEP_ALIVE_S
    batches: BatchConfig | None = None
