"""Ended requests in Chrome's trace format, which ui.perfetto.dev and chrome://tracing open.

Source: the Trace Event Format document.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

UNACCOUNTED = "unaccounted"
STAGES = ("admit", "queue_prefill", "prefill", "reserve", "handoff", "queue_decode", "decode", UNACCOUNTED)
"""In the order in which a request passes them; the last is what nobody measured."""

AT_GATEWAY, AT_PREFILL = {"admit", UNACCOUNTED}, {"queue_prefill", "prefill"}
GATEWAY = "gateway"
MICRO = 1e6

TraceEvent = dict[str, object]
Trace = dict[str, object]


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One line of a trace. `stages_s` has the seconds of every stage; `start_s` is where the line begins.

    `prefill_node` and `decode_node` are empty where nobody said; `facts` stand beside each of its stages.
    """

    name: str
    stages_s: Mapping[str, float]
    start_s: float = 0.0
    first_token_s: float | None = None
    num_attempts: int = 1
    prefill_node: str = ""
    decode_node: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)


def trace_of(requests: Iterable[TracedRequest]) -> Trace:
    """A process for each node where nodes are known, a thread for each request."""
    places = _Places()
    events = [event for line, request in enumerate(requests, 1) for event in _events(request, line, places)]
    return {"traceEvents": [*places.named(), *events], "displayTimeUnit": "ms"}


class _Places:
    """Numbers of processes. Owns: the names seen so far, in their order."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def number(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name) + 1

    def named(self) -> Iterator[TraceEvent]:
        for name in filter(None, self._names):
            yield {"ph": "M", "pid": self.number(name), "tid": 0, "name": "process_name", "args": {"name": name}}


def _events(request: TracedRequest, line: int, places: _Places) -> Iterator[TraceEvent]:
    at_s, is_named = request.start_s, set[int]()
    for stage in _in_order(request):
        seconds = request.stages_s[stage]
        if seconds <= 0:
            continue
        place = {"pid": places.number(_place(request, stage)), "tid": line}
        if place["pid"] not in is_named:
            is_named.add(place["pid"])
            yield {**place, "ph": "M", "name": "thread_name", "args": {"name": request.name}}
        span = {"ph": "X", "name": stage, "ts": at_s * MICRO, "dur": seconds * MICRO}
        yield {**place, **span, "args": dict(request.facts)}
        at_s += seconds
    if request.first_token_s is not None:
        at_s = request.start_s + request.first_token_s
        pid = places.number(_place(request, "admit"))
        yield {"pid": pid, "tid": line, "ph": "i", "s": "t", "name": "first token", "ts": at_s * MICRO}


def _in_order(request: TracedRequest) -> tuple[str, ...]:
    """The stages are those of the last attempt: what was lost with earlier ones lies before them."""
    return (UNACCOUNTED, *STAGES[:-1]) if request.num_attempts > 1 else STAGES


def _place(request: TracedRequest, stage: str) -> str:
    if not request.prefill_node:
        return ""
    if stage in AT_GATEWAY:
        return GATEWAY
    return request.prefill_node if stage in AT_PREFILL else request.decode_node
