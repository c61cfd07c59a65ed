"""The load report on the terminal."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.load_report import LOST_AT, SHARES, account_of, groups, latencies
from cluster.report_file import Figure
from cluster.workload.served import ServedRequest
from core.request import SLO

_MEANINGS = {
    "lost": "never ended",
    "unaccounted": "no ledger says where",
    "admit": "waiting for a route",
    "queue_prefill": "waiting at the prefill node",
    "prefill": "computing the prompt",
    "reserve": "waiting for decode blocks",
    "handoff": "moving KV",
    "queue_decode": "waiting for a decode step",
    "decode": "decoding",
    "refused": "turned away at once",
    "expired": "the deadline passed",
    "failed": "given up",
}


def summary_table(title: str, figures: Mapping[str, Figure]) -> Table:
    """Goodput, latencies and counts."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("figure", *SHARES):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name in ("ttft_s", "tpot_s"):
        table.add_row(f"{name[:4].upper()} ms", *(_ms(figures.get(f"{name}_{word}")) for word in SHARES))
    table.add_row("ITL ms", "", "", _ms(figures.get("itl_s_p99")))
    return table


def summary_lines(figures: Mapping[str, Figure], slo: SLO) -> list[str]:
    """The figures that a reader looks for first, as sentences."""
    attainment = figures.get("attainment")
    share = "-" if attainment is None else f"{attainment:.1%}"
    lines = [
        f"Goodput {figures['goodput_rps']:.3f} req/s ({figures['goodput_rps_per_node']:.3f} per node, "
        f"{figures['goodput_rps_per_gpu']:.3f} per GPU): {share} of {figures['requests']} requests met "
        f"TTFT {slo.ttft_s * 1000:g} ms and TPOT {slo.tpot_s * 1000:g} ms.",
        f"Refused {figures['refused']}, expired {figures['expired']}, failed {figures['failed']}, lost "
        f"{figures['lost']}; mix changes {figures['mix_changes']}, reversals {figures['reversals']}.",
        f"{figures['output_tokens_per_s']:,.0f} output tokens/s; {figures['cached_prompt_tokens_share']:.1%} of prompt "
        "tokens were found in a prefix cache.",
    ]
    if "cost_per_million_output_tokens" in figures:
        lines[-1] += f" Cost per million output tokens: {figures['cost_per_million_output_tokens']:.2f}."
    return lines


def losses_table(figures: Mapping[str, Figure]) -> Table | None:
    """Where SLOs were lost, most first; None where none was."""
    lost = {where: number for where in LOST_AT if isinstance(number := figures[f"slo_lost_{where}"], int) and number}
    if not lost:
        return None
    table = Table(title="Where SLOs were lost", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column, side in (("stage", "left"), ("requests", "right"), ("share", "right"), ("meaning", "left")):
        table.add_column(column, justify="right" if side == "right" else "left")
    for where in sorted(lost, key=lambda name: -lost[name]):
        share = lost[where] / sum(lost.values())
        table.add_row(where, str(lost[where]), f"{share:.0%}", _MEANINGS[where])
    return table


def groups_table(records: list[ServedRequest], arrivals_s: float) -> Table | None:
    """Tenants and classes beside each other; None where there is only one."""
    by_group = groups(records)
    if not by_group:
        return None
    table = Table(title="By tenant and class", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("who", "requests", "goodput req/s", "attainment", "TTFT p90 ms", "TPOT p90 ms"):
        table.add_column(column, justify="left" if column == "who" else "right")
    for name, group in by_group.items():
        account, times = account_of(group, arrivals_s), latencies(group)
        share = "-" if account.attainment is None else f"{account.attainment:.1%}"
        cells = (_ms(times.get("ttft_s_p90")), _ms(times.get("tpot_s_p90")))
        table.add_row(name, str(len(group)), f"{account.goodput_rps:.3f}", share, *cells)
    return table


def _ms(value: Figure | None) -> str:
    return f"{value * 1000:,.1f}" if isinstance(value, float) else "-"
