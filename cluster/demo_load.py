"""The goodput table of the demo: the same arrivals on two layouts of the same nodes, counted against one SLO."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from random import Random
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import AsyncClient
from cluster.load import run_load
from cluster.load_report import account_of
from cluster.workload.arrivals import Arrivals
from cluster.workload.items import WorkItem, Workload
from cluster.workload.served import ServedRequest
from core.goodput import Goodput, Outcome
from core.request import SLO
from engine.embedded.prompts import code_word_prompt

TIMEOUT_S = 60.0
OUTPUT_TOKENS = 32
FILLER_TOKENS = (100, 600)


@dataclass(frozen=True, slots=True)
class Cell:
    """One layout at one rate."""

    layout: str
    rate_rps: float
    slo: SLO
    records: tuple[ServedRequest, ...]
    goodput: Goodput

    def median_ms(self, name: str) -> float | None:
        """The median `ttft_s` or `tpot_s` of the finished requests, in ms."""
        values = [v for r in self.records if r.outcome is Outcome.FINISHED and (v := getattr(r, name)) is not None]
        return median(values) * 1000 if values else None

    def sample(self) -> Mapping[str, object]:
        """Everything, for the report file."""
        requests = [
            {"outcome": r.outcome.value, "ttft_s": r.ttft_s, "tpot_s": r.tpot_s, "num_tokens": r.num_tokens}
            for r in self.records
        ]
        return {
            "layout": self.layout,
            "rate_rps": self.rate_rps,
            "ttft_slo_s": self.slo.ttft_s,
            "tpot_slo_s": self.slo.tpot_s,
            "attainment": self.goodput.attainment,
            "goodput_rps": self.goodput.goodput_rps,
            "requests": requests,
        }


async def run_cell(client: AsyncClient, layout: str, rate_rps: float, duration_s: float, slo: SLO) -> Cell:
    """Open-loop load of one cell; the arrivals of a rate are the same for every layout."""
    seed = round(rate_rps * 1000)
    times = takewhile(lambda at_s: at_s < duration_s, Arrivals().times(rate_rps, duration_s, Random(seed)))
    items = tuple(WorkItem(at_s, _filler_tokens(seed + i), OUTPUT_TOKENS) for i, at_s in enumerate(times))
    tenant = f"{layout}-{rate_rps:g}"
    sent = await run_load(client, Workload(tenant, items), slo, lambda i, _: _request(tenant, seed + i), TIMEOUT_S)
    return Cell(layout, rate_rps, slo, sent.records, account_of(sent.records, duration_s))


def goodput_table(cells: Sequence[Cell], duration_s: float) -> Table:
    """The cells as a table."""
    slo = cells[0].slo
    title = f"Goodput, SLO: TTFT {slo.ttft_s * 1000:g} ms and TPOT {slo.tpot_s * 1000:g} ms, {duration_s:g} s a cell"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("layout", "rate req/s", "requests", "attainment", "goodput req/s", "TTFT p50 ms", "TPOT p50 ms"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for cell in cells:
        attainment = cell.goodput.attainment
        table.add_row(
            cell.layout,
            f"{cell.rate_rps:g}",
            str(len(cell.records)),
            "-" if attainment is None else f"{attainment:.0%}",
            f"{cell.goodput.goodput_rps:.2f}",
            _text(cell.median_ms("ttft_s")),
            _text(cell.median_ms("tpot_s")),
        )
    return table


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _request(tenant: str, seed: int) -> pb.GenerateRequest:
    text, _ = code_word_prompt(seed, _filler_tokens(seed))
    sampling = pb.SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
    return pb.GenerateRequest(text=text, chat=True, sampling=sampling, tenant=tenant.replace(".", "_"))


def _filler_tokens(seed: int) -> int:
    return Random(seed).randint(*FILLER_TOKENS)
