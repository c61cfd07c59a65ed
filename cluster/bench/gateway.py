"""`penstock bench gateway`: what the gateway costs per streamed token, beside a server that only writes the bytes."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from cluster.bench.arms import Arm, ArmFailed, ArmOrder, alternated, arms_of
from cluster.bench.gateway_clients import (
    Came,
    bar_request,
    chat_request,
    counted_request,
    grpc_request,
    grpc_stream,
    http_stream,
)
from cluster.bench.gateway_flags import PEER_MODEL_LEN, flag_problems
from cluster.bench.spread import Spread, paired, spread
from cluster.console import OUT
from cluster.report_file import Figure, Sample, file_problems, write_report
from cluster.service import EMBEDDED_MODEL
from core.errors import ConfigError

HTTP, GRPC, BAR, SERVE, VLLM = "http", "grpc", "bar", "serve", "vllm"
OURS = (HTTP, GRPC, BAR)
WARM_TOKENS = 20
CLOCK_TICK_S = 0.01
"""What the kernel counts a process's time in."""

EXTRA_EVENTS = {SERVE: 1, VLLM: 2}
"""Of a stream of a real model, beside those of tokens: the usage, and a peer's role."""

Ask = Callable[[int], Awaitable[Came]]
"""Opens a stream of so many tokens, and reads it to its end."""


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat of one arm: many streams at once, then single requests one after the other.

    `cpu_s` is what the server's process took for the streams. `num_events`: what their tokens came in; one each, but
    for a peer that puts several into one where it is behind. Where a real model answers there are no `ttfts_s`: its
    prefill would be in them.
    """

    arm: str
    num_tokens: int
    num_events: int
    cpu_s: float
    gaps_s: tuple[float, ...]
    ttfts_s: tuple[float, ...]

    @property
    def tokens_per_s_per_core(self) -> float:
        """By the processor's time, not the wall's."""
        return self.num_tokens / self.cpu_s

    @property
    def itl_p99_over_p50(self) -> float:
        """How evenly tokens come to a client among many."""
        return at_share(self.gaps_s, 0.99) / at_share(self.gaps_s, 0.5)


def run_bench_gateway(args: argparse.Namespace) -> int:
    """Measure, print, write. Raises ConfigError."""
    problems = [*([] if args.json is None else file_problems(argparse.Namespace(json=args.json, plot=None)))]
    problems += flag_problems(args)
    if problems:
        raise ConfigError(problems)
    with arms_of(_orders(args), 1) as (arms, absent):
        if missing := [f"{name} could not start: {why}" for name, why in absent.items() if name != VLLM]:
            raise ArmFailed("; ".join(missing))
        for name, why in absent.items():
            OUT.print(f"[yellow]absent: {name}: {why}[/yellow]", highlight=False)
        runs = asyncio.run(_measured(args, arms))
        facts = [_fact(name, arm.ready) for name, arm in arms.items() if name == VLLM]
    figures = figures_of(runs)
    for name, value in figures.items():
        OUT.print(f"{name}: {value:,}")
    if args.json:
        facts += [{"kind": "absent", "arm": name, "why": why} for name, why in absent.items()]
        write_report(args.json, "penstock bench gateway", figures, [_shape(args), *facts, *map(_sample, runs)])
    return 0


def _orders(args: argparse.Namespace) -> list[ArmOrder]:
    """Ours, the bar, and the peer's where its environment is named. One GiB is the least pool that the peer takes."""
    step = ("--step-ms", str(args.step_ms))
    orders = [
        ArmOrder(HTTP, ("-m", "cluster.bench.arm_gateway", *step)),
        ArmOrder(BAR, ("-m", "cluster.bench.arm_sse", *step)),
    ]
    if args.peer_python is not None:
        limits = ("--max-model-len", str(PEER_MODEL_LEN), "--max-streams", str(args.streams))
        told = ("-m", "cluster.bench.arm_vllm_server", "--model", str(EMBEDDED_MODEL), *limits)
        quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        ours = ("-m", "cluster.bench.arm_serve", "--model", str(EMBEDDED_MODEL), "--max-streams", str(args.streams))
        orders += [ArmOrder(SERVE, ours), ArmOrder(VLLM, told, args.peer_python, quiet)]
    return orders


async def _measured(args: argparse.Namespace, arms: dict[str, Arm]) -> list[Run]:
    """Every arm in every repeat, in turn; the first runs warm up and are forgotten."""
    ports = {name: int(str(arm.ready["http_port"])) for name, arm in arms.items()}
    async with grpc.aio.insecure_channel(str(arms[HTTP].ready["grpc"])) as channel:
        asks: dict[str, tuple[Arm, Ask]] = {
            BAR: (arms[BAR], lambda num: http_stream(ports[BAR], bar_request(num))),
            HTTP: (arms[HTTP], lambda num: http_stream(ports[HTTP], chat_request(num))),
            GRPC: (arms[HTTP], lambda num: grpc_stream(channel, grpc_request(num))),
        }
        if SERVE in arms:
            asks[SERVE] = (arms[SERVE], lambda num: http_stream(ports[SERVE], counted_request(num)))
        if VLLM in arms:
            asks[VLLM] = (arms[VLLM], lambda num: http_stream(ports[VLLM], counted_request(num)))
        for _, ask in asks.values():
            await asyncio.gather(*(ask(WARM_TOKENS) for _ in range(args.streams)))
        order = [(name, repeat) for repeat in range(args.repeats) for name in alternated(tuple(asks), repeat)]
        return [await _run(name, *asks[name], args) for name, _ in order]


async def _run(name: str, arm: Arm, ask: Ask, args: argparse.Namespace) -> Run:
    before_s = _cpu_s(arm)
    streams = await asyncio.gather(*(ask(args.tokens) for _ in range(args.streams)))
    cpu_s = max(_cpu_s(arm) - before_s, CLOCK_TICK_S)
    num_events = sum(len(stream.at) for stream in streams)
    is_real = name in EXTRA_EVENTS
    num_tokens = sum(stream.num_told or 0 for stream in streams) if is_real else num_events
    if num_tokens != args.streams * args.tokens:
        raise ArmFailed(f"{name}: {num_tokens} tokens came instead of {args.streams * args.tokens}")
    gaps = tuple(gap for stream in streams for gap in stream.gaps_s) or (args.step_ms / 1000,)
    if is_real:
        return Run(name, num_tokens, num_events - EXTRA_EVENTS[name] * args.streams, cpu_s, gaps, ())
    return Run(name, num_tokens, num_events, cpu_s, gaps, tuple([(await ask(1)).ttft_s for _ in range(args.requests)]))


def figures_of(runs: Sequence[Run]) -> dict[str, Figure]:
    """Medians over the repeats; ratios by neighbouring runs."""
    by_arm = {name: found for name in (*OURS, SERVE, VLLM) if (found := [run for run in runs if run.arm == name])}
    speeds = {name: [run.tokens_per_s_per_core for run in found] for name, found in by_arm.items()}
    figures: dict[str, Figure] = {}
    for name, values in speeds.items():
        speed = spread(values)
        figures[f"gateway.{name}.tokens_per_s_per_core"] = round(speed.median)
        figures[f"gateway.{name}.tokens_per_s_per_core_least"] = round(speed.least)
        figures[f"gateway.{name}.tokens_per_s_per_core_most"] = round(speed.most)
    figures["gateway.http.of_bar"] = round(paired(speeds[HTTP], speeds[BAR]).median, 3)
    if VLLM in by_arm:
        for name in (each for each in (HTTP, GRPC, SERVE) if each in speeds):
            figures |= _ratio(f"gateway.{name}.of_vllm", paired(speeds[name], speeds[VLLM]))
    for name in (each for each in EXTRA_EVENTS if each in by_arm):
        events = _over(by_arm[name], lambda run: run.num_events / run.num_tokens)
        figures[f"gateway.{name}.events_per_token"] = round(events.median, 3)
    for name, prefix in ((HTTP, "gateway."), (GRPC, "gateway.grpc."), (BAR, "gateway.bar.")):
        for share, word in ((0.5, "p50"), (0.99, "p99")):
            figures[f"{prefix}ttft_added_s_{word}"] = round(_ttft(by_arm[name], share).median, 6)
        figures[f"{prefix}itl_p99_over_p50"] = round(_over(by_arm[name], lambda run: run.itl_p99_over_p50).median, 3)
    return figures


def _ratio(name: str, found: Spread) -> dict[str, Figure]:
    return {name: round(found.median, 3), f"{name}_least": round(found.least, 3), f"{name}_most": round(found.most, 3)}


def _ttft(runs: Sequence[Run], share: float) -> Spread:
    return _over(runs, lambda run: at_share(run.ttfts_s, share))


def at_share(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _over(runs: Sequence[Run], of: Callable[[Run], float]) -> Spread:
    return spread([of(run) for run in runs])


def _cpu_s(arm: Arm) -> float:
    return float(str(arm.ask("cpu")["cpu_s"]))


def _shape(args: argparse.Namespace) -> Sample:
    return {"kind": "shape", "streams": args.streams, "tokens": args.tokens, "step_ms": args.step_ms}


def _fact(name: str, ready: dict[str, object]) -> Sample:
    return {"kind": "peer", "arm": name, "version": ready["version"]}


def _sample(run: Run) -> Sample:
    return {
        "kind": "run",
        "arm": run.arm,
        "tokens_per_s_per_core": run.tokens_per_s_per_core,
        "cpu_s": run.cpu_s,
        "tokens": run.num_tokens,
        "events": run.num_events,
        "ttft_s": {share: at_share(run.ttfts_s, share) for share in (0.5, 0.9, 0.99) if run.ttfts_s},
        "gap_s": {share: at_share(run.gaps_s, share) for share in (0.01, 0.5, 0.9, 0.99)},
    }
