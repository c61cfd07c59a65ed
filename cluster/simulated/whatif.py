"""What other mixes would have done with the last arrivals: each candidate is one run of a simulated fleet."""

import math
from dataclasses import replace
from itertools import product

from cluster.simulated.fleet import Fleet, FleetNode, run_fleet
from cluster.simulated.shared_links import FleetLinks
from cluster.simulated.truth import StraightTruth
from cluster.workload.items import WorkItem, Workload
from core.goodput import goodput
from core.kv import KVLayout
from core.mix import Mix
from core.whatif import WhatIfAnswered, WhatIfAsked
from scheduler.config import SchedulerConfig

COARSE_BLOCK = 64
"""Tokens of a simulated KV block, at least: fewer, larger blocks cost less time and change little."""

LEAST_TTFTS = 5.0
"""A replay lasts so many times the TTFT target: in less, a queue that only grows is still within it."""

MOST_ARRIVALS = 800
"""What has come is not repeated beyond so many requests."""


def answered(asked: WhatIfAsked) -> WhatIfAnswered:
    """Replays under each candidate. What is believed of costs is the simulation's truth, and its scheduler begins with
    what is known of answers and links. Arrivals are repeated, and not counted the first time: an idle cluster bears for
    a while what it cannot bear for long."""
    return WhatIfAnswered(asked.ask, tuple(_goodput(asked, mixes) for mixes in asked.candidates))


def _goodput(asked: WhatIfAsked, mixes: tuple[Mix, ...]) -> float:
    kv, factor = _coarse(asked.specs[0].kv)
    nodes = tuple(
        FleetNode(
            f"n{i}",
            mix.role,
            StraightTruth(spec.costs),
            max(1, spec.num_blocks // factor),
            mix.prefill_tokens_per_step,
            mix.max_decode_rows,
        )
        for i, (spec, mix) in enumerate(zip(asked.specs, mixes, strict=True))
        if mix.role != "closed" and spec.costs is not None
    )
    longest = max(spec.max_model_len for spec in asked.specs)
    expected = round(sum(asked.output_tokens) / len(asked.output_tokens))
    config = SchedulerConfig(handoff_bytes_per_s=asked.bytes_per_s, expected_output_tokens=expected)
    fleet = Fleet(nodes, kv, longest, FleetLinks(asked.bytes_per_s), config)
    times, period_s = _repeats(asked), _span_s(asked)
    run = run_fleet(fleet, _workload(asked, kv.block_size, times), asked.slo)
    counted = (served.record for served in run.records if served.item.at_s >= period_s)
    return goodput(counted, asked.slo, period_s * (times - 1)).goodput_rps


def _repeats(asked: WhatIfAsked) -> int:
    """How often what has come is replayed."""
    least_s, num = LEAST_TTFTS * asked.slo.ttft_s, len(asked.arrived_at_s)
    return max(2, min(math.ceil(least_s / _span_s(asked)), MOST_ARRIVALS // num))


def _span_s(asked: WhatIfAsked) -> float:
    return max(asked.arrived_at_s[-1], 1e-3)


def _coarse(kv: KVLayout) -> tuple[KVLayout, int]:
    """The same layout with larger blocks, and how many of its own one of them is."""
    factor = max(1, COARSE_BLOCK // kv.block_size)
    return replace(kv, block_size=kv.block_size * factor), factor


def _workload(asked: WhatIfAsked, block_size: int, times: int) -> Workload:
    """What came, so many times. Prompts begin alike as far as caches had them: with blocks that all share, then with
    their own."""
    items, next_id, period_s = list[WorkItem](), 1 << 32, _span_s(asked)
    columns = tuple(zip(asked.arrived_at_s, asked.prompt_tokens, asked.output_tokens, strict=True))
    for turn, (at_s, prompt, output) in product(range(times), columns):
        num = prompt // block_size
        shared = round(num * asked.hit_share)
        block_ids = (*range(shared), *range(next_id, next_id + num - shared)) if shared else ()
        next_id += num
        items.append(WorkItem(at_s + turn * period_s, prompt, output, block_ids))
    return Workload("what if", tuple(items), block_size)
