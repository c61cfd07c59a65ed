"""`penstock trace convert`: any workload as a native trace file."""

import argparse
from pathlib import Path

from cluster.console import OUT
from cluster.simulate_command import workload_sentence
from cluster.workload.spec import workload_of
from cluster.workload.traces import write_trace


def run_trace_convert(args: argparse.Namespace) -> int:
    """Read or generate, write, say what was done. Raises ConfigError."""
    trace = workload_of([args.source], args.seed)
    write_trace(Path(args.target).expanduser(), trace.workload)
    OUT.print(workload_sentence(trace.workload))
    for note in trace.notes:
        OUT.print(f"note: {note}")
    return 0
