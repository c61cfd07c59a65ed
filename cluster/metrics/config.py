"""What an operator wants observed, and what they say of their hardware."""

from dataclasses import dataclass
from enum import StrEnum


class RequestLogFormat(StrEnum):
    """How a request's line is written."""

    OFF = "off"
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class ObservationConfig:
    """`metrics_port` None: none beside the HTTP server. Peaks are of one node; None: nobody said.

    `metrics_host` is where that port binds; whoever reaches it needs no key.
    """

    request_log: RequestLogFormat = RequestLogFormat.OFF
    otlp_endpoint: str | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    vllm_names: bool = True
    node_cost_per_hour: float | None = None
    peak_flops: float | None = None
    peak_bytes_per_s: float | None = None
