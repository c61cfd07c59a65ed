"""`penstock bench kv`: KV from process to process by every transport, beside memcpy and peers; what a handoff costs."""

import argparse
from collections.abc import Sequence

from cluster.bench.arms import ArmFailed
from cluster.bench.handoff import measure_handoffs
from cluster.bench.kv_findings import KVFindings
from cluster.bench.kv_pairs import Pair, pairs_of
from cluster.bench.kv_plan import PEERS, kv_plan, size_text
from cluster.bench.kv_report import report
from cluster.console import OUT


def run_bench_kv(args: argparse.Namespace) -> int:
    """Runs it; 0 unless a transport failed. Raises ArmFailed where one fails later on or brings wrong bytes."""
    found = KVFindings(kv_plan(args))
    for size in found.plan.dropped:
        found.absent[size_text(size)] = "pools of this size do not fit in the memory that is free"
    for layout in found.plan.layouts:
        _say(f"{layout}: starting owners and readers, and fetching everything once.")
        with pairs_of(found, layout) as pairs:
            _measure(found, layout, pairs)
    for model in found.plan.models:
        _say(f"Handoffs, {model}: starting a prefill and a decode node.")
        measure_handoffs(found, model)
    return report(found, args.json)


def _measure(found: KVFindings, layout: str, pairs: Sequence[Pair]) -> None:
    """All cells in turn, the other way round at every second repeat. What a peer fails at is left out, and said so."""
    by = {name: pair for pair in pairs for name in pair.transports}
    cells = found.plan.cells(layout, list(by))
    for repeat in range(found.plan.repeats):
        for cell in cells if repeat % 2 == 0 else reversed(cells):
            try:
                found.note(cell, *by[cell.transport].measure(cell, repeat))
            except ArmFailed as error:
                if cell.transport not in PEERS:
                    raise
                found.leave_out(cell, str(error))
        cells = [cell for cell in cells if cell in found.times]
        _say(f"{layout}, {', '.join(by)}: repeat {repeat + 1} of {found.plan.repeats}.")


def _say(text: str) -> None:
    """Told at once, also into a pipe."""
    OUT.print(text)
    OUT.file.flush()
