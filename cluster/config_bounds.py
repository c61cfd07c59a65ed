"""How large and how small a setting may be on its own: for the schema, and the test that holds the flags to it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """`least` and `most` are taken themselves, `above` is not; None: there is none."""

    least: float | None = None
    most: float | None = None
    above: float | None = None


_PORT, _PORT_OR_NONE = Bound(0, 65535), Bound(-1, 65535)
_ONE, _POSITIVE, _NODES = Bound(1), Bound(above=0), Bound(0, 1024)

BOUNDS: Mapping[str, Bound] = {
    **dict.fromkeys(("prefill", "decode", "aggregated"), _NODES),
    **dict.fromkeys(("grpc-port", "cluster-port"), _PORT),
    **dict.fromkeys(("port", "admin-port", "admin-http-port", "metrics-port"), _PORT_OR_NONE),
    **dict.fromkeys(("block-size", "max-num-seqs", "num-threads"), _ONE),
    **dict.fromkeys(("kv-cache-memory-bytes", "num-gpu-blocks-override", "max-model-len"), _ONE),
    **dict.fromkeys(("max-open-requests", "default-max-tokens"), _ONE),
    **dict.fromkeys(("batch-max-file-mb", "batch-max-lines", "batch-max-concurrent"), _ONE),
    **dict.fromkeys(("min-prefill-nodes", "min-decode-nodes"), _ONE),
    **dict.fromkeys(("ttft-slo", "tpot-slo", "ray-start-timeout", "record-max-mb"), _POSITIVE),
    **dict.fromkeys(("node-cost-per-hour", "peak-tflops", "peak-memory-gbs"), _POSITIVE),
    "gpu-memory-utilization": Bound(above=0, most=1),
    "max-num-batched-tokens": Bound(2),
    "num-speculative-tokens": Bound(0, 16),
    "swap-space": Bound(0),
    "join-timeout": Bound(0),
}
"""By key. What depends on other settings stands with them."""
NO_BOUND = Bound()
