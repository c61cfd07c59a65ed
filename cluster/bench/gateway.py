"""`penstock bench gateway`: what the gateway costs per streamed token, beside a server that only writes the bytes."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from cluster.bench.arms import Arm, ArmOrder, alternated, arms_of
from cluster.bench.gateway_clients import (
    Came,
    bar_request,
    chat_request,
    grpc_request,
    grpc_stream,
    http_stream,
)
from cluster.bench.gateway_flags import flag_problems
from cluster.bench.spread import Spread, paired, spread
from cluster.console import OUT
from cluster.report_file import Figure, Sample, file_problems, write_report
from core.errors import ConfigError

HTTP, GRPC, BAR = "http", "grpc", "bar"
ARMS = (BAR, HTTP, GRPC)
WARM_TOKENS = 20
Ask = Callable[[int], Awaitable[Came]]
"""Opens a stream of so many tokens, and reads it to its end."""


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat of one arm: many streams at once, then single requests one after the other."""

    arm: str
    tokens_per_s_per_core: float
    gaps_s: tuple[float, ...]
    ttfts_s: tuple[float, ...]

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
    step = ("--step-ms", str(args.step_ms))
    orders = [
        ArmOrder(name, ("-m", f"cluster.bench.{file}", *step))
        for name, file in ((HTTP, "arm_gateway"), (BAR, "arm_sse"))
    ]
    with arms_of(orders, 1) as (arms, absent):
        if absent:
            raise ConfigError([f"{name} could not start: {why}" for name, why in absent.items()])
        runs = asyncio.run(_measured(args, arms))
    figures = figures_of(runs)
    for name, value in figures.items():
        OUT.print(f"{name}: {value:,}")
    if args.json:
        write_report(args.json, "penstock bench gateway", figures, [_shape(args), *map(_sample, runs)])
    return 0


async def _measured(args: argparse.Namespace, arms: dict[str, Arm]) -> list[Run]:
    """Every arm in every repeat, in turn; the first runs warm up and are forgotten."""
    gateway, bar = arms[HTTP], arms[BAR]
    async with grpc.aio.insecure_channel(str(gateway.ready["grpc"])) as channel:
        port, bar_port = int(str(gateway.ready["http_port"])), int(str(bar.ready["http_port"]))
        asks: dict[str, tuple[Arm, Ask]] = {
            HTTP: (gateway, lambda num: http_stream(port, chat_request(num))),
            GRPC: (gateway, lambda num: grpc_stream(channel, grpc_request(num))),
            BAR: (bar, lambda num: http_stream(bar_port, bar_request(num))),
        }
        for _, ask in asks.values():
            await asyncio.gather(*(ask(WARM_TOKENS) for _ in range(args.streams)))
        return [
            await _run(name, *asks[name], args) for repeat in range(args.repeats) for name in alternated(ARMS, repeat)
        ]


async def _run(name: str, arm: Arm, ask: Ask, args: argparse.Namespace) -> Run:
    before_s = _cpu_s(arm)
    streams = await asyncio.gather(*(ask(args.tokens) for _ in range(args.streams)))
    cpu_s = _cpu_s(arm) - before_s
    num_tokens = sum(len(stream.at) for stream in streams)
    assert num_tokens == args.streams * args.tokens, f"{name}: {num_tokens} tokens came"
    gaps = tuple(gap for stream in streams for gap in stream.gaps_s)
    ttfts = tuple([(await ask(1)).ttft_s for _ in range(args.requests)])
    return Run(name, num_tokens / cpu_s, gaps or (args.step_ms / 1000,), ttfts)


def figures_of(runs: Sequence[Run]) -> dict[str, Figure]:
    """Medians over the repeats; ratios by neighbouring runs."""
    by_arm = {name: [run for run in runs if run.arm == name] for name in ARMS}
    speeds = {name: [run.tokens_per_s_per_core for run in by_arm[name]] for name in ARMS}
    figures: dict[str, Figure] = {}
    for name in ARMS:
        figures[f"gateway.{name}.tokens_per_s_per_core"] = round(spread(speeds[name]).median)
    figures["gateway.http.of_bar"] = round(paired(speeds[HTTP], speeds[BAR]).median, 3)
    for name, prefix in ((HTTP, "gateway."), (GRPC, "gateway.grpc."), (BAR, "gateway.bar.")):
        figures[f"{prefix}ttft_added_s_p50"] = round(
            _over(by_arm[name], lambda run: at_share(run.ttfts_s, 0.5)).median, 6
        )
        figures[f"{prefix}ttft_added_s_p99"] = round(
            _over(by_arm[name], lambda run: at_share(run.ttfts_s, 0.99)).median, 6
        )
        figures[f"{prefix}itl_p99_over_p50"] = round(_over(by_arm[name], lambda run: run.itl_p99_over_p50).median, 3)
    return figures


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


def _sample(run: Run) -> Sample:
    return {
        "kind": "run",
        "arm": run.arm,
        "tokens_per_s_per_core": run.tokens_per_s_per_core,
        "ttft_s": {share: at_share(run.ttfts_s, share) for share in (0.5, 0.9, 0.99)},
        "gap_s": {share: at_share(run.gaps_s, share) for share in (0.01, 0.5, 0.9, 0.99)},
    }
