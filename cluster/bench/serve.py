"""`penstock bench serve`: open-loop load on a running server with any workload; the same report as a simulation."""

import argparse
import asyncio
import contextlib
import re
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

from cluster.api.v1 import inference_pb2 as pb
from cluster.bench.serve_prompts import Prompts
from cluster.client_flags import credentials
from cluster.console import OUT
from cluster.gateway.client import AsyncClient, CallFailed
from cluster.load import LoadSent, run_load
from cluster.load_plots import save_run_plot
from cluster.load_report import LoadRun, load_report, percentile, request_samples
from cluster.load_tables import groups_table, losses_table, summary_lines, summary_table
from cluster.plotting import check_plotting
from cluster.report_file import Figure, Sample, file_problems, write_report
from cluster.simulate_command import workload_sentence
from cluster.workload.items import WorkItem
from cluster.workload.traces import Trace
from cluster.workload_flags import asked_workload, slo_of
from core.errors import ConfigError
from core.request import SLO

LOOK_S = 1.0
LATE_S = 0.01
"""A client that sends later than this measures itself."""


@dataclass(slots=True)
class Watched:
    """What the cluster said of itself while it was asked. Owns: looks, and roles as they changed from look to look."""

    num_nodes: list[int] = field(default_factory=list)
    changes: list[tuple[float, str]] = field(default_factory=list)
    num_reversals: int = 0
    _roles: dict[str, list[str]] = field(default_factory=dict)
    _epochs: dict[str, int] = field(default_factory=dict)

    def look(self, state: pb.GetClusterResponse, at_s: float) -> None:
        """One look."""
        self.num_nodes.append(len(state.nodes))
        for node in state.nodes:
            epoch = self._epochs.setdefault(node.id, node.mix.epoch)
            self.changes += [(at_s, node.name)] * max(0, node.mix.epoch - epoch)
            self._epochs[node.id] = node.mix.epoch
            before, now = self._roles.setdefault(node.id, ["", node.role])
            if node.role != now:
                self.num_reversals += node.role == before
                self._roles[node.id] = [now, node.role]


@dataclass(frozen=True, slots=True)
class Measured:
    """A run: what was sent and came, what the cluster was, and what the client itself took of a core."""

    sent: LoadSent
    watched: Watched
    client_cpu_s: float


def run_bench_serve(args: argparse.Namespace) -> int:
    """Load, print, write; 1 where a request failed. Raises ConfigError, and CallFailed where no server answers."""
    problems = [*file_problems(args), *_problems(args)]
    if problems:
        raise ConfigError(problems)
    if args.plot:
        check_plotting()
    slo, trace = slo_of(args), asked_workload(args)
    _check_tenants(trace)
    measured = asyncio.run(_measured(args, trace, slo))
    run = _load_run(measured, trace, args.node_hour_price)
    figures = _figures(measured, run, trace)
    _print(measured, run, figures, slo)
    if args.json:
        write_report(args.json, "penstock bench serve", figures, _samples(args, trace, slo, measured))
    if args.plot:
        save_run_plot(args.plot, run, slo, measured.watched.changes)
    return 1 if figures["failed"] else 0


def request_of(item: WorkItem, ids: list[int], slo: SLO | None) -> pb.GenerateRequest:
    """What is sent for an item: exactly its output length, whatever the model would say."""
    sampling = pb.SamplingParams(max_tokens=item.output_tokens, temperature=0.0, ignore_eos=True)
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=ids),
        sampling=sampling,
        tenant=item.tenant,
        priority=min(item.priority, -1) if item.offline else item.priority,
    )
    if slo is not None:
        request.slo.ttft_s, request.slo.tpot_s = slo.ttft_s, slo.tpot_s
    return request


async def _measured(args: argparse.Namespace, trace: Trace, slo: SLO) -> Measured:
    workload, watched = trace.workload, Watched()
    async with AsyncClient(args.address, credentials(args)) as client:
        state = await client.get_cluster(timeout_s=10.0)
        OUT.print(workload_sentence(workload))
        roles = Counter(node.role for node in state.nodes)
        nodes = ", ".join(f"{number} {role}" for role, number in sorted(roles.items()))
        OUT.print(f"{args.address}: {state.model.name}, {nodes}")
        for note in (*trace.notes, *_long_ones(trace, state.model.max_model_len)):
            OUT.print(f"note: {note}")
        prompts = Prompts(args.seed, state.model.vocab_size, workload.block_tokens)

        def made(place: int, item: WorkItem) -> pb.GenerateRequest:
            told = None if args.no_slo else item.slo or slo
            return request_of(item, prompts.ids(place, item), told)

        watched.look(state, 0.0)
        watching = asyncio.create_task(_watch(client, watched))
        before_s = _cpu_s()
        sent = await run_load(client, workload, slo, made, args.timeout)
        cpu_s = _cpu_s() - before_s
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        watched.look(await client.get_cluster(timeout_s=10.0), sent.duration_s)
    return Measured(sent, watched, cpu_s)


async def _watch(client: AsyncClient, watched: Watched) -> None:
    """A look every second; one that fails is left out, for the requests themselves will tell."""
    started = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_S)
        with contextlib.suppress(CallFailed):
            watched.look(await client.get_cluster(timeout_s=10.0), time.monotonic() - started)


def _load_run(measured: Measured, trace: Trace, node_hour_price: float) -> LoadRun:
    sent, watched = measured.sent, measured.watched
    num_nodes = max(1.0, sum(watched.num_nodes) / len(watched.num_nodes))
    return LoadRun(
        records=sent.records,
        arrivals_s=trace.workload.arrivals_s or sent.duration_s,
        duration_s=sent.duration_s,
        num_nodes=num_nodes,
        num_gpus=num_nodes,
        num_mix_changes=len(watched.changes),
        num_reversals=watched.num_reversals,
        cost=num_nodes * sent.duration_s / 3600 * node_hour_price,
    )


def _figures(measured: Measured, run: LoadRun, trace: Trace) -> dict[str, Figure]:
    late = sorted(measured.sent.late_s)
    return load_report(run) | {
        "rate_rps": trace.workload.rate_rps,
        "client_cpu_share": measured.client_cpu_s / measured.sent.duration_s,
        "client_late_s_p99": percentile(late, 0.99),
    }


def _print(measured: Measured, run: LoadRun, figures: dict[str, Figure], slo: SLO) -> None:
    OUT.print(summary_table("Measured at the client", figures))
    for line in summary_lines(figures, slo):
        OUT.print(line)
    for table in (losses_table(figures), groups_table(list(run.records), run.arrivals_s)):
        if table is not None:
            OUT.print(table)
    late_s = float(figures["client_late_s_p99"])
    OUT.print(f"The client took {figures['client_cpu_share']:.1%} of a core; p99 sent {late_s * 1000:.1f} ms late.")
    if late_s > LATE_S:
        OUT.print("[yellow]note: the client itself was late: its figures are partly its own[/yellow]")
    for error, number in Counter(measured.sent.errors).most_common(5):
        OUT.print(f"[red]{number} x {error}[/red]")


def _samples(args: argparse.Namespace, trace: Trace, slo: SLO, measured: Measured) -> list[Sample]:
    head: Sample = {
        "kind": "run",
        "workload": trace.workload.name,
        "notes": list(trace.notes),
        "address": args.address,
        "ttft_slo_s": slo.ttft_s,
        "tpot_slo_s": slo.tpot_s,
        "seed": args.seed,
        "tells_slo": not args.no_slo,
    }
    changes: Sequence[Sample] = [
        {"kind": "mix change", "at_s": at_s, "node": node} for at_s, node in measured.watched.changes
    ]
    return [head, *changes, *request_samples(measured.sent.records)]


def _long_ones(trace: Trace, max_model_len: int) -> list[str]:
    number = sum(item.prompt_tokens + item.output_tokens > max_model_len for item in trace.workload.items)
    return [f"{number} requests exceed the model's {max_model_len:,} tokens: it will refuse them"] if number else []


def _check_tenants(trace: Trace) -> None:
    wrong = sorted({i.tenant for i in trace.workload.items if i.tenant and not re.fullmatch(r"[\w-]{1,64}", i.tenant)})
    if wrong:
        raise ConfigError(
            [f"the server takes no tenant called {name!r}: letters, digits, _ and - only" for name in wrong]
        )


def _problems(args: argparse.Namespace) -> list[str]:
    found = []
    if not (isfinite(args.timeout) and args.timeout > 0):
        found.append(f"--timeout must be above 0 seconds, not {args.timeout:g}")
    if not (isfinite(args.node_hour_price) and args.node_hour_price >= 0):
        found.append(f"--node-hour-price must be 0 or more, not {args.node_hour_price:g}")
    return found


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
