"""`penstock trace show`: where the time of the last requests went, as a table and for Perfetto."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.api.v1 import inference_pb2 as pb
from cluster.client_flags import credentials
from cluster.console import OUT
from cluster.gateway.chrome_trace import STAGES, Trace, TracedRequest, trace_of
from cluster.gateway.client import Client
from cluster.gateway.ledger import bare_id
from core.errors import ConfigError, RequestError

TIMEOUT_S = 10.0


def run_trace_show(args: argparse.Namespace) -> int:
    """Ask, print, write. Raises ConfigError, CallFailed, RequestError for a request that the server does not know."""
    if args.last < 1:
        raise ConfigError([f"--last must be at least 1, not {args.last}"])
    path = None if args.perfetto is None else Path(args.perfetto).expanduser()
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError([f"--perfetto {path}: there is no such folder"])
    with Client(args.address, credentials(args)) as client:
        ledgers = chosen(client.get_cluster(TIMEOUT_S).requests, args.request, args.last)
    OUT.print(_table(ledgers))
    if path is not None:
        path.write_text(json.dumps(perfetto(ledgers)) + "\n")
        OUT.print(f"{len(ledgers)} requests in {path}")
    return 0


def chosen(ledgers: Sequence[pb.RequestLedger], request: str | None, last: int) -> list[pb.RequestLedger]:
    """The one that is named, or the last ones, oldest first. Raises RequestError."""
    if request is None:
        return list(ledgers[-last:])
    name = bare_id(request)
    found = [ledger for ledger in ledgers if ledger.id == name]
    if not found:
        known = f"of the last {len(ledgers)} requests none has the id {request!r}"
        raise RequestError(f"{known}: it is that of the answer, not x-request-id", code="not_found")
    return found


def perfetto(ledgers: Sequence[pb.RequestLedger]) -> Trace:
    """Chrome's trace format. Each request is a line that begins at 0: a server does not tell here when it came."""
    return trace_of(map(_traced, ledgers))


def _traced(ledger: pb.RequestLedger) -> TracedRequest:
    return TracedRequest(
        name=f"{ledger.id[:12]} {ledger.outcome}",
        stages_s={stage: stage_s(ledger, stage) for stage in STAGES},
        first_token_s=ledger.ttft_s if ledger.HasField("ttft_s") else None,
        num_attempts=ledger.timing.num_attempts,
        facts=_args(ledger),
    )


def stage_s(ledger: pb.RequestLedger, stage: str) -> float:
    """How long a request was in a stage."""
    seconds: float = getattr(ledger.timing, f"{stage}_s")
    return seconds


def _args(ledger: pb.RequestLedger) -> dict[str, object]:
    usage = ledger.usage
    return {
        "id": ledger.id,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "attempts": ledger.timing.num_attempts,
        "slo_met": ledger.met if ledger.HasField("met") else None,
    }


def _table(ledgers: Sequence[pb.RequestLedger]) -> Table:
    """Milliseconds."""
    table = Table(box=SIMPLE_HEAD, title="Stages in milliseconds", title_justify="left", padding=(0, 1, 0, 0))
    for name in ("request", "outcome", *map(_heading, STAGES), "wall", "tokens", "SLO"):
        table.add_column(name, justify="left" if name in ("request", "outcome") else "right", no_wrap=True)
    for ledger in ledgers:
        met = ("met" if ledger.met else "missed") if ledger.HasField("met") else "-"
        times = (*(stage_s(ledger, stage) for stage in STAGES), ledger.timing.wall_s)
        row = [f"{seconds * 1000:.1f}" for seconds in times]
        table.add_row(ledger.id[:12], ledger.outcome, *row, str(ledger.usage.completion_tokens), met)
    return table


def _heading(stage: str) -> str:
    """As `penstock demo` has them."""
    return {"queue_prefill": "queue P", "queue_decode": "queue D", "unaccounted": "rest"}.get(stage, stage)
