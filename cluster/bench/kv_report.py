"""Figures and tables of `penstock bench kv`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from cluster.bench.kv_findings import Handoff, KVFindings, Times, percentile
from cluster.bench.kv_plan import EMBEDDED, LARGE, LAYOUTS, MIB, MOONCAKE, NIXL, PEERS, Cell, size_text
from cluster.bench.spread import Spread, spread
from cluster.console import OUT
from cluster.report_file import Figure, write_report

FIGURE_SIZES = (MIB, 8 * MIB, 256 * MIB)
SCATTER_BYTES = 256 * MIB
"""4,096 blocks of the embedded model."""


def report(found: KVFindings, json_path: str | None) -> int:
    """Print the tables, write the file; 1 where a transport failed."""
    numbers = figures(found)
    for layout in found.plan.layouts:
        OUT.print(_transfers(found, layout))
        if any(cell.transport in PEERS and cell.layout == layout for cell in found.times):
            OUT.print(_peers(found, layout))
    if found.handoffs:
        OUT.print(_handoffs(found))
    for name, why in found.absent.items():
        OUT.print(f"[yellow]absent: {name}: {escape(why)}[/yellow]")
    for name, why in found.failed.items():
        OUT.print(f"[red]failed: {name}: {escape(why)}[/red]")
    for name, value in numbers.items():
        OUT.print(f"{name} = {value:.4g}")
    if json_path:
        write_report(json_path, "penstock bench kv", numbers, samples(found))
    return 1 if found.failed else 0


def figures(found: KVFindings) -> dict[str, Figure]:
    """The figures by name; those of what did not run, or at another size only, are absent.

    Of the embedded model's blocks, scattered on both sides; without digests but for `verified_…`.
    """
    named: dict[str, Spread | None] = {}
    for name in found.plan.transports:
        for size in FIGURE_SIZES:
            named[f"kv.{name}.of_memcpy_{size_text(size).lower()}"] = _share(found, _cell(name, size))
        largest = max((size for size in found.plan.sizes if size <= SCATTER_BYTES), default=SCATTER_BYTES)
        named[f"kv.{name}.scattered_over_contiguous"] = found.scatter(_cell(name, largest))
        named[f"kv.{name}.verified_of_memcpy_8mib"] = _share(found, _cell(name, 8 * MIB, is_verified=True))
    for peer, word in ((NIXL, "vs_nixl"), (MOONCAKE, "vs_mooncake")):
        theirs, ours = _cell(peer, 8 * MIB), _cell("shm", 8 * MIB)
        named[f"kv.shm.{word}"] = found.ratio(theirs, ours)
        named[f"kv.shm.{word}_contiguous"] = found.ratio(_in_one_piece(theirs), _in_one_piece(ours))
    for model in found.plan.models:
        named["kv.handoff_tax" if model == found.plan.models[-1] else f"kv.handoff_tax_{model}"] = _tax(found, model)
    return {name: each.median for name, each in named.items() if each is not None}


def samples(found: KVFindings) -> list[Mapping[str, object]]:
    """Everything that was measured, for the file."""
    plan = asdict(found.plan) | {"peer_pythons": len(found.plan.peer_pythons)}
    lines: list[Mapping[str, object]] = [{"kind": "plan", **plan}, {"kind": "arms", **found.facts}]
    lines += [{"kind": "absent", "what": name, "why": why} for name, why in found.absent.items()]
    lines += [{"kind": "failed", "what": name, "why": why} for name, why in found.failed.items()]
    lines += [
        {"kind": "transfer", **asdict(cell), "seconds": times.seconds, "copy_seconds": times.copy}
        for cell, times in found.times.items()
    ]
    return lines + [{"kind": "handoff", **asdict(each)} for each in found.handoffs]


def _cell(transport: str, num_bytes: int, *, is_verified: bool = False) -> Cell:
    return Cell(transport, EMBEDDED, num_bytes, is_scattered=True, is_verified=is_verified)


def _in_one_piece(cell: Cell) -> Cell:
    return replace(cell, is_scattered=False)


def _share(found: KVFindings, cell: Cell) -> Spread | None:
    return found.times[cell].share if cell in found.times else None


def _tax(found: KVFindings, model: str) -> Spread | None:
    """At the prompt length where it is greatest."""
    taxes = [
        spread([each.tax for each in found.handoffs_of(model, length)])
        for length in found.plan.lengths
        if found.handoffs_of(model, length)
    ]
    return max(taxes, key=lambda each: each.median, default=None)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _transfers(found: KVFindings, layout: str) -> Table:
    block = size_text(LAYOUTS[layout].bytes_per_block)
    title = f"One transfer, blocks of {block} ({layout}), {found.plan.repeats} repeats; medians, GB/s, and of memcpy"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    columns = (
        "size",
        "blocks",
        "by",
        "digests",
        "p50 ms",
        "p90",
        "p99",
        "GB/s",
        "memcpy GB/s",
        "of memcpy (ends)",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("by", "digests", "blocks") else "right")
    for cell, times in found.times.items():
        if cell.layout == layout:
            table.add_row(*_row(cell, times))
    return table


def _row(cell: Cell, times: Times) -> list[str]:
    every = times.all()
    copies = spread([each for turn in times.copy for each in turn])
    return [
        size_text(cell.num_bytes),
        "scattered" if cell.is_scattered else "contiguous",
        cell.transport,
        "-" if cell.transport in PEERS else "yes" if cell.is_verified else "no",
        *(f"{percentile(every, share) * 1000:.3f}" for share in (0.5, 0.9, 0.99)),
        f"{cell.num_bytes / percentile(every, 0.5) / 1e9:.2f}",
        f"{cell.num_bytes / copies.median / 1e9:.2f}",
        times.share.text(".0%"),
    ]


def _peers(found: KVFindings, layout: str) -> Table:
    title = f"shm against peers ({layout}): their time over ours, without digests; median (ends)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("size", "blocks", "peer", "ours is faster by"):
        table.add_column(column, justify="right" if column == "size" else "left")
    for cell in found.times:
        against = found.ratio(cell, replace(cell, transport="shm"))
        if cell.transport in PEERS and cell.layout == layout and against is not None:
            how = "scattered" if cell.is_scattered else "contiguous"
            table.add_row(size_text(cell.num_bytes), how, cell.transport, against.text())
    return table


_PARTS: tuple[tuple[str, Callable[[Handoff], float]], ...] = (
    ("prefill", lambda each: each.prefill_s),
    ("token 2", lambda each: each.gap_s),
    ("step", lambda each: each.step_s),
    ("reserve", lambda each: each.reserve_s),
    ("tail", lambda each: each.tail_s),
    ("queue", lambda each: each.queue_decode_s),
    ("alone", lambda each: each.alone_s),
)


def _handoffs(found: KVFindings) -> Table:
    title = (
        "Handoff, 1 prefill and 1 decode node, one request at a time; medians in ms. After the prefill: to the second "
        "token,\nof that a decode step; by the ledger: reserve, tail of the handoff, queue_decode; one fetch alone; tax"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "prompt", "MiB", *(name for name, _ in _PARTS), "tax (ends)", "ledger's"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for model in found.plan.models:
        for length in found.plan.lengths:
            if seen := found.handoffs_of(model, length):
                parts = [_ms(spread([part(each) for each in seen]).median) for _, part in _PARTS]
                tax, ledger = spread([each.tax for each in seen]), spread([each.ledger_tax for each in seen])
                taxes = f"{tax.median:.1f} ({tax.least:.1f}-{tax.most:.1f})", f"{ledger.median:.1f}"
                table.add_row(_MODELS[model], str(length), _mib(model, length), *parts, *taxes)
    return table


_MODELS = {EMBEDDED: "embedded", LARGE: "8B's KV"}


def _ms(seconds: float) -> str:
    """With three digits, as far as that takes any behind the point."""
    return f"{seconds * 1000:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f}"


def _mib(model: str, length: int) -> str:
    return f"{LAYOUTS[model].bytes_per_token * length / MIB:.1f}"
