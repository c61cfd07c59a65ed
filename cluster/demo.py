"""`penstock demo`: a real cluster, real answers through the gRPC interface, and the proof that KV moved and arrived."""

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.api.v1 import inference_pb2 as pb
from cluster.console import OUT, StartProgress
from cluster.demo_load import Cell, goodput_table, run_cell
from cluster.flags import service_config
from cluster.gateway.client import AsyncClient, CallFailed
from cluster.report_file import Figure, write_report
from cluster.service import EMBEDDED_MODEL, Service
from core.errors import ConfigError
from core.mix import Mix
from core.request import SLO
from engine.embedded.prompts import DEMO_PROMPTS, code_word_prompt

TIMEOUT_S = 120.0
FILLER_TOKENS = 600
CODE_WORD_SEEDS = (7, 11)
MIX_TIMEOUT_S = 10.0
MAX_UNACCOUNTED = 0.05
UNACCOUNTED_FLOOR_S = 0.01
PARTS = {
    "admit": "admit",
    "queue P": "queue_prefill",
    "prefill": "prefill",
    "reserve": "reserve",
    "handoff": "handoff",
    "queue D": "queue_decode",
    "decode": "decode",
    "rest": "unaccounted",
    "= wall": "wall",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of the demo. `answer` is what it must begin with, empty where that is open."""

    label: str
    text: str
    temperature: float = 0.0
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `last` has usage and timing."""

    question: Question
    token_ids: tuple[int, ...]
    text: str
    last: pb.GenerateResponse


def questions() -> list[Question]:
    """Everyday ones, sampled and greedy in turn, and code words from 600 tokens back: only intact KV knows them."""
    everyday = [Question(text, text, 0.0 if i % 2 else 0.7) for i, text in enumerate(DEMO_PROMPTS)]
    words = []
    for seed in CODE_WORD_SEEDS:
        text, word = code_word_prompt(seed, FILLER_TOKENS)
        words.append(Question(f"(a log of {len(text)} characters) …{text[-60:]}", text, 0.0, word))
    return everyday + words


async def run_demo(args: argparse.Namespace) -> int:
    """Runs the demo; 0 only where everything that it shows is as it must be."""
    began = time.monotonic()
    config = service_config(args)
    if config.live.node.model != EMBEDDED_MODEL:
        raise ConfigError(["the demo asks what only the embedded model knows; for other models: penstock serve"])
    slots = ", ".join(slot.name for slot in config.live.slots)
    OUT.print(f"Starting {slots} with the {config.live.launcher} launcher; model {config.served_model_name}.")
    with StartProgress() as progress:
        service = Service(config, progress.report)
        await service.start()
    OUT.print(f"Ready after {time.monotonic() - began:.1f} s; gRPC on {service.address}.\n")
    try:
        async with AsyncClient(service.address) as client:
            return await Demo(service, client, began).run(args)
    finally:
        await service.stop()


class Demo:
    """One run on a started service. Owns: the problems found so far, and the figures."""

    def __init__(self, service: Service, client: AsyncClient, began: float) -> None:
        self._service = service
        self._client = client
        self._began = began
        self._base = {slot.name: slot.mix for slot in service.config.live.slots}
        self._is_aggregated = all(mix.role == "mixed" for mix in self._base.values())
        self._problems: list[str] = []
        self._figures: dict[str, Figure] = {}

    async def run(self, args: argparse.Namespace) -> int:
        """All parts in turn; the exit status."""
        started_as = "aggregated" if self._is_aggregated else "disaggregated"
        first = await self._ask_all(f"1. {started_as.capitalize()}", "demo-1", speak=True)
        OUT.print(_ledger_table(first))
        self._check_ledgers(first)
        await self._show_nodes()
        await self._change(_all_mixed(self._base))
        second = await self._ask_all("2. The same cluster and questions, every node now doing both", "demo-2")
        OUT.print(_ledger_table(second))
        self._compare(first, second)
        cells = await self._load(args)
        return self._finish(args, cells)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask_all(self, title: str, tenant: str, *, speak: bool = False) -> list[Answer]:
        OUT.print(f"[bold]{title}[/bold]")
        answers = []
        for index, question in enumerate(questions()):
            try:
                answers.append(await self._ask(question, index, tenant, speak))
            except CallFailed as error:
                self._problem(f"{question.label!r} failed: {error.code}: {error.message}")
        return answers

    async def _ask(self, question: Question, seed: int, tenant: str, speak: bool) -> Answer:
        sampling = pb.SamplingParams(max_tokens=96, temperature=question.temperature, seed=seed)
        request = pb.GenerateRequest(text=question.text, chat=True, sampling=sampling, tenant=tenant)
        tokens, text, last = list[int](), "", pb.GenerateResponse()
        if speak:
            OUT.print(f"[cyan]> {question.label}[/cyan]", markup=True)
        async for last in self._client.generate(request, TIMEOUT_S):
            if not tokens and "demo.first_token_s" not in self._figures:
                self._figures["demo.first_token_s"] = time.monotonic() - self._began
            tokens += last.token_ids
            text += last.text
            if speak:
                OUT.print(last.text, end="", markup=False)
        if speak:
            OUT.print("\n")
        if question.answer and not text.strip().startswith(question.answer):
            self._problem(f"the code word was {question.answer}, the answer {text.strip()[:40]!r}")
        return Answer(question, tuple(tokens), text, last)

    # ── showing and checking ─────────────────────────────────────────────────────────────────────────────────────────

    def _check_ledgers(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            timing = answer.last.timing
            limit_s = max(UNACCOUNTED_FLOOR_S, MAX_UNACCOUNTED * timing.wall_s)
            if abs(timing.unaccounted_s) > limit_s:
                text = f"{timing.unaccounted_s * 1000:.1f} of {timing.wall_s * 1000:.1f} ms"
                OUT.print(f"[yellow]note: {text} of {answer.question.label[:40]!r} are unaccounted for[/yellow]")
            if timing.num_attempts != 1:
                self._problem(f"{answer.question.label[:40]!r} took {timing.num_attempts} attempts")

    async def _show_nodes(self) -> None:
        await asyncio.sleep(2 * self._service.config.live.timers.tick_s)  # nodes report on their tick
        state = await self._client.get_cluster(TIMEOUT_S)
        OUT.print(_node_table(state))
        moved = sum(node.kv_bytes_received for node in state.nodes)
        self._figures["demo.kv_moved_bytes"] = moved
        if len({node.pid for node in state.nodes}) < len(state.nodes):
            self._problem("two nodes share a process")
        if not self._is_aggregated and moved == 0:
            self._problem("no KV moved between the nodes")
        if self._service.config.live.launcher == "ray" and not all(node.actor_id for node in state.nodes):
            self._problem("a node has no Ray actor id")

    def _compare(self, first: Sequence[Answer], second: Sequence[Answer]) -> None:
        same = [a.token_ids == b.token_ids for a, b in zip(first, second, strict=False)]
        identical = len(first) == len(second) == len(questions()) and all(same)
        self._figures["demo.identical"] = identical
        OUT.print(f"identical: {'yes' if identical else 'no'} ({sum(same)} of {len(questions())} answers)\n")
        if not identical:
            self._problem("answers differ between the layouts")

    async def _change(self, mixes: Mapping[str, Mix]) -> None:
        """Set mixes and wait until every node has reported that it took its new one."""
        began = time.monotonic()
        self._service.cluster.set_mixes(mixes)
        while not self._have_taken(mixes):
            if time.monotonic() - began > MIX_TIMEOUT_S:
                self._problem("the nodes did not take the new mixes")
                return
            await asyncio.sleep(0.02)

    def _have_taken(self, mixes: Mapping[str, Mix]) -> bool:
        nodes = self._service.cluster.state().nodes
        return all(
            node.mix.role == mixes[node.slot].role and node.stats is not None and node.stats.mix_epoch == node.mix.epoch
            for node in nodes
        )

    # ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _load(self, args: argparse.Namespace) -> list[Cell]:
        if args.load_seconds <= 0:
            return []
        OUT.print("[bold]3. Open-loop load, the same arrivals on each layout[/bold]")
        layouts = {"aggregated": _all_mixed(self._base)}
        if not self._is_aggregated:
            layouts = {"disaggregated": self._base} | layouts
        slo, cells = SLO(args.ttft_slo, args.tpot_slo), list[Cell]()
        for rate in args.rates:
            for layout, mixes in layouts.items():
                await self._change(mixes)
                cells.append(await run_cell(self._client, layout, rate, args.load_seconds, slo))
        OUT.print(goodput_table(cells, args.load_seconds))
        return cells

    def _finish(self, args: argparse.Namespace, cells: Sequence[Cell]) -> int:
        for cell in cells:
            key = f"demo.{cell.layout}.{cell.rate_rps:g}rps"
            self._figures[f"{key}.goodput_rps"] = cell.goodput.goodput_rps
            if cell.goodput.attainment is not None:
                self._figures[f"{key}.attainment"] = cell.goodput.attainment
        first_s = self._figures.get("demo.first_token_s")
        if first_s is not None:
            OUT.print(f"First token {first_s:.1f} s after the start of this command.")
        if args.json:
            write_report(args.json, "penstock demo", self._figures, [cell.sample() for cell in cells])
        for problem in self._problems:
            OUT.print(f"[red]failed: {problem}[/red]")
        OUT.print("[red]demo: failed[/red]" if self._problems else "[green]demo: all as it must be[/green]")
        return 1 if self._problems else 0

    def _problem(self, text: str) -> None:
        self._problems.append(text)


def _all_mixed(base: Mapping[str, Mix]) -> dict[str, Mix]:
    return {slot: replace(mix, accepts_prefill=True, accepts_decode=True) for slot, mix in base.items()}


def _ledger_table(answers: Sequence[Answer]) -> Table:
    table = Table(title="Where the time went, in ms", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("request", max_width=24, no_wrap=True)
    for column in ("in/out", *PARTS):
        table.add_column(column, justify="right", no_wrap=True)
    for answer in answers:
        usage, timing = answer.last.usage, answer.last.timing
        cells = [f"{getattr(timing, part + '_s') * 1000:.1f}" for part in PARTS.values()]
        table.add_row(answer.question.label, f"{usage.prompt_tokens}/{usage.completion_tokens}", *cells)
    return table


def _node_table(state: pb.GetClusterResponse) -> Table:
    table = Table(title="Nodes", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("node", "role", "pid", "Ray actor", "KV bytes in", "fetches", "steps", "blocks free/all"):
        table.add_column(column)
    for node in state.nodes:
        table.add_row(
            node.name,
            node.role,
            str(node.pid),
            node.actor_id or "-",
            f"{node.kv_bytes_received:,}",
            str(node.num_fetches),
            str(node.num_steps),
            f"{node.blocks.free + node.blocks.cached}/{node.blocks.capacity}",
        )
    return table
