"""The question what other mixes would have done with the last arrivals, and its answer."""

from dataclasses import dataclass

from core.mix import Mix, NodeSpec
from core.request import SLO


@dataclass(frozen=True, slots=True)
class WhatIfAsked:
    """To the planner: replay these arrivals under each candidate.

    `specs` describe the nodes, with what is believed of their costs now; a candidate has one mix for each of them.
    `arrived_at_s`, `prompt_tokens` and `output_tokens` are columns of one request each, times from 0 on; the share
    `hit_share` of the prompt tokens is found in caches. KV moves between nodes at `bytes_per_s`.
    """

    ask: int
    specs: tuple[NodeSpec, ...]
    candidates: tuple[tuple[Mix, ...], ...]
    arrived_at_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    hit_share: float
    slo: SLO
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class WhatIfAnswered:
    """From the planner: requests per second that met the SLO, for each candidate of that question; empty where it
    could not be answered."""

    ask: int
    goodputs_rps: tuple[float, ...]
