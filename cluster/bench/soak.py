"""`penstock bench soak`: a real cluster of two nodes under mixed load for long, and whether anything grows."""

import argparse
import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from random import Random

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.api.v1 import inference_pb2 as pb
from cluster.bench.processes import Held, Slope, held_by, slope
from cluster.bench.spread import spread
from cluster.console import OUT, StartProgress
from cluster.gateway.client import AsyncClient
from cluster.live.config import LiveConfig, NodeSettings, slots_of
from cluster.load import send
from cluster.report_file import Figure, write_report
from cluster.service import EMBEDDED_MODEL, EMBEDDED_NAME, Service, ServiceConfig
from core.errors import ConfigError
from core.goodput import Outcome

OWN = "head and gateway"
LONGEST_PROMPT, LONGEST_ANSWER = 900, 160
CANCELLED_SHARE = 0.1
SHARED_PREFIXES = 8
FIRST_TOKEN = 6
TIMEOUT_S = 120.0
IDLE_S = 30.0
MAX_OPEN = 64
POOL_BLOCKS = 1024
"""Few enough that every page of a pool is touched, and prefixes are evicted, within the first minutes: until then a
node's resident memory rises by what of its pool was never used before."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at every process. `at_s` counts from the first request."""

    at_s: float
    held: Mapping[str, Held]
    blocks_held: int


@dataclass(slots=True)
class Findings:
    """What a run saw."""

    warm_up_s: float
    looks: list[Look] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    blocks_are_back: bool = False
    num_deaths: int = 0

    def slope_of(self, name: str, column: str) -> Slope | None:
        """How fast a process's column rises after the warming up."""
        looks = [look for look in self.looks if look.at_s >= self.warm_up_s and name in look.held]
        return slope([look.at_s for look in looks], [getattr(look.held[name], column) for look in looks])


def run_bench_soak(args: argparse.Namespace) -> int:
    """Runs it; 0 only where no node died, nothing failed, and every block came back."""
    problems = [f"--{name} must be above 0" for name in ("minutes", "rate") if getattr(args, name) <= 0]
    if args.sample_seconds <= 0:
        problems.append("--sample-seconds must be above 0")
    if problems:
        raise ConfigError(problems)
    os.nice(args.nice)
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    settings = NodeSettings(EMBEDDED_MODEL, num_kv_blocks=POOL_BLOCKS)
    live = LiveConfig(settings, slots_of(1, 1, 0, prefill_tokens_per_step=512, max_decode_rows=64))
    with StartProgress() as progress:
        service = Service(ServiceConfig(live, EMBEDDED_NAME, grpc_port=0), progress.report)
        await service.start()
    warm_up_s = 60 * (args.warm_up_minutes if args.warm_up_minutes is not None else min(10.0, args.minutes / 5))
    found = Findings(warm_up_s)
    try:
        OUT.print(f"{args.minutes:g} minutes of {args.rate:g} requests a second, {warm_up_s / 60:g} to warm up.")
        async with AsyncClient(service.address) as client:
            await Soak(service, client, found, args).run()
    finally:
        await service.stop()
    return _report(found, args)


class Soak:
    """The load, and the looks beside it. Owns: its requests."""

    def __init__(self, service: Service, client: AsyncClient, found: Findings, args: argparse.Namespace) -> None:
        self._service = service
        self._client = client
        self._found = found
        self._args = args
        self._chance = Random(args.seed)
        self._began = time.monotonic()

    async def run(self) -> None:
        """Load until the time is over; then wait until everything is idle, and look at the blocks."""
        looking = asyncio.create_task(self._look())
        try:
            await self._load()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        self._found.blocks_are_back = await self._until_idle()
        self._found.num_deaths = sum(slot.num_deaths for slot in self._service.cluster.state().slots)

    async def _load(self) -> None:
        """Poisson arrivals; while too many are open, none is sent."""
        open_requests: set[asyncio.Task[None]] = set()
        while (now := time.monotonic() - self._began) < 60 * self._args.minutes:
            await asyncio.sleep(self._chance.expovariate(self._args.rate))
            if len(open_requests) < MAX_OPEN:
                task = asyncio.create_task(self._one(self._request(round(now * 1000))))
                open_requests.add(task)
                task.add_done_callback(open_requests.discard)
        await asyncio.gather(*open_requests)

    def _request(self, seed: int) -> pb.GenerateRequest:
        """Short and long, greedy and sampled, new prompts and known beginnings."""
        chance, vocabulary = self._chance, range(FIRST_TOKEN, 1280)
        known = Random(chance.randrange(SHARED_PREFIXES))
        ids = [known.choice(vocabulary) for _ in range(chance.choice((0, 0, 64, 256)))]
        ids += [chance.choice(vocabulary) for _ in range(1 + int(min(1.0, chance.expovariate(5)) * LONGEST_PROMPT))]
        sampling = pb.SamplingParams(
            max_tokens=chance.randint(1, LONGEST_ANSWER), temperature=chance.choice((0.0, 0.8)), seed=seed
        )
        return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling)

    async def _one(self, request: pb.GenerateRequest) -> None:
        """A request to its end, or given up in the middle."""
        if self._chance.random() >= CANCELLED_SHARE:
            record = await send(self._client, request, TIMEOUT_S)
            self._found.outcomes[record.outcome.value] += 1
            self._found.num_tokens += record.num_tokens
            return
        leave_after, stream = self._chance.randint(0, 20), self._client.generate(request, TIMEOUT_S)
        async for _ in stream:
            leave_after -= 1
            if leave_after < 0:
                break
        await stream.aclose()
        self._found.outcomes["left"] += 1

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._args.sample_seconds)
            nodes = self._service.cluster.state().nodes
            pids = {OWN: os.getpid()} | {node.slot: node.pid for node in nodes}
            held = {name: now for name, pid in pids.items() if (now := held_by(pid)) is not None}
            self._found.looks.append(Look(time.monotonic() - self._began, held, self._num_held_blocks()))

    def _num_held_blocks(self) -> int:
        counts = [node.stats.blocks for node in self._service.cluster.state().nodes if node.stats is not None]
        return sum(each.capacity - each.free - each.cached for each in counts)

    async def _until_idle(self) -> bool:
        """Whether, soon after the last answer, all blocks are free or cached in reports made since."""
        end = time.monotonic() + IDLE_S
        await asyncio.sleep(4 * self._service.config.live.timers.tick_s)
        while time.monotonic() < end:
            if self._num_held_blocks() == 0 and self._service.scheduler.is_idle():
                return True
            await asyncio.sleep(0.25)
        return False


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _report(found: Findings, args: argparse.Namespace) -> int:
    figures: dict[str, Figure] = {
        "soak.minutes": args.minutes,
        "soak.requests": sum(found.outcomes.values()),
        "soak.failed": found.outcomes[Outcome.FAILED.value],
        "soak.tokens": found.num_tokens,
        "soak.blocks_are_back": found.blocks_are_back,
        "soak.node_deaths": found.num_deaths,
    }
    names = list(found.looks[-1].held) if found.looks else []
    for name in names:
        key = name.replace(" ", "_").replace("-", "_")
        for column, word, unit in (
            ("rss_bytes", "rss_mib_per_hour", 2**20),
            ("anonymous_bytes", "anonymous_mib_per_hour", 2**20),
            ("num_descriptors", "descriptors_per_hour", 1),
        ):
            rise = found.slope_of(name, column)
            if rise is not None:
                figures[f"soak.{key}.{word}"] = rise.per_hour / unit
                figures[f"soak.{key}.{word}_spread"] = rise.spread / unit
    if names:
        OUT.print(_table(found, names))
    OUT.print(
        f"{sum(found.outcomes.values())} requests ({dict(found.outcomes)}), {found.num_tokens} tokens; "
        f"all blocks back: {'yes' if found.blocks_are_back else 'no'}; node deaths: {found.num_deaths}"
    )
    if args.json:
        write_report(args.json, "penstock bench soak", figures, [_sample(look) for look in found.looks])
    is_sound = found.blocks_are_back and not found.num_deaths and not found.outcomes[Outcome.FAILED.value]
    return 0 if is_sound else 1


def _table(found: Findings, names: list[str]) -> Table:
    title = "After the warming up: median (ends), and rise per hour ± two standard errors"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("process", "resident MiB", "MiB/hour", "anonymous MiB/hour", "descriptors", "threads", "CPU %"):
        table.add_column(column, justify="left" if column == "process" else "right")
    looks = [look for look in found.looks if look.at_s >= found.warm_up_s] or found.looks
    for name in names:
        seen = [(look.at_s, look.held[name]) for look in looks if name in look.held]
        span_s = max(1e-9, seen[-1][0] - seen[0][0])
        table.add_row(
            name,
            spread([held.rss_bytes / 2**20 for _, held in seen]).text(".1f"),
            _rise(found.slope_of(name, "rss_bytes")),
            _rise(found.slope_of(name, "anonymous_bytes")),
            spread([held.num_descriptors for _, held in seen]).text("g"),
            spread([held.num_threads for _, held in seen]).text("g"),
            f"{100 * (seen[-1][1].cpu_s - seen[0][1].cpu_s) / span_s:.0f}",
        )
    return table


def _rise(found: Slope | None) -> str:
    return "-" if found is None else f"{found.per_hour / 2**20:+.2f} ± {found.spread / 2**20:.2f}"


def _sample(look: Look) -> Mapping[str, object]:
    held = {name: asdict(each) for name, each in look.held.items()}
    return {"at_s": look.at_s, "blocks_held": look.blocks_held, "processes": held}
