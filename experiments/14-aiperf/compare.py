"""What both clients are compared by: runs, medians over repeats, ratios."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from cluster.report_file import Figure, Sample
from experiments.live import LiveArm

from .records import Differences

PENSTOCK, AIPERF = "penstock", "aiperf"


@dataclass(frozen=True, slots=True)
class Cell:
    """A layout under a load."""

    layout: LiveArm
    level: str
    rate_rps: float

    @property
    def name(self) -> str:
        """In figures."""
        return f"{re.sub(r'[^0-9a-z]+', '_', self.layout.name.lower())}.{self.level}"


@dataclass(frozen=True, slots=True)
class Counted:
    """A run of either client. `num_good` and `goodput_rps` are the client's own word, `num_met` the server's counter;
    requests came for `arrivals_s`, and the whole run lasted `over_s`: AIPerf divides by it. Shares are of one core for
    the client, of all cores for the whole machine. `num_near`: requests within 5 % of a target. `shift_s`: how far
    AIPerf's moments are from those of its first run."""

    cell: Cell
    arm: str
    repeat: int
    num_requests: int
    num_refused: int
    num_good: int
    num_met: int
    goodput_rps: float
    arrivals_s: float
    over_s: float
    late_s: float
    client_share: float
    machine_share: float
    num_near: int = 0
    shift_s: float = 0.0
    differences: Differences | None = None

    @property
    def by_arrivals_rps(self) -> float:
        """The client's count over the time in which requests came."""
        return self.num_good / self.arrivals_s

    @property
    def whole_run_rps(self) -> float:
        """The same over the whole run."""
        return self.num_good / self.over_s


def figures_of(found: Sequence[Counted]) -> dict[str, Figure]:
    """Medians over repeats of each cell, ratios of them, and how far the worst of these is from 1."""
    figures: dict[str, Figure] = {}
    for cell in dict.fromkeys(each.cell for each in found):
        own, theirs = ([each for each in found if each.cell == cell and each.arm == arm] for arm in (PENSTOCK, AIPERF))
        if own and theirs:
            figures |= {f"{cell.name}.{name}": value for name, value in _cell_figures(own, theirs).items()}
    for name in ("said", "whole_run", "over_arrivals", "counted"):
        ratios = [float(value) for key, value in figures.items() if key.endswith(f".{name}_ratio")]
        if ratios:
            figures[f"{name}_error_worst"] = max(abs(ratio - 1) for ratio in ratios)
    return figures | {"machine_share_max": max(each.machine_share for each in found)}


def _cell_figures(own: Sequence[Counted], theirs: Sequence[Counted]) -> dict[str, Figure]:
    goodput_rps = median(each.goodput_rps for each in own)
    return {
        "rate_rps": own[0].num_requests / own[0].arrivals_s,
        "attainment": median(each.num_good / each.num_requests for each in own),
        "aiperf_attainment": median(each.num_good / each.num_requests for each in theirs),
        "goodput_rps": goodput_rps,
        "aiperf_goodput_rps": median(each.goodput_rps for each in theirs),
        "said_ratio": median(each.goodput_rps for each in theirs) / goodput_rps,
        "whole_run_ratio": median(each.goodput_rps for each in theirs) / median(each.whole_run_rps for each in own),
        "over_arrivals_ratio": median(each.by_arrivals_rps for each in theirs) / goodput_rps,
        "counted_ratio": sum(each.num_good for each in theirs) / max(1, sum(each.num_met for each in theirs)),
        "own_counted_ratio": sum(each.num_good for each in own) / max(1, sum(each.num_met for each in own)),
        "duration_ratio": median(each.arrivals_s / each.over_s for each in theirs),
        "client_share": median(each.client_share for each in own),
        "aiperf_client_share": median(each.client_share for each in theirs),
    }


def sample_of(each: Counted) -> Sample:
    """A run, in full."""
    told = {name: getattr(each, name) for name in Counted.__slots__ if name not in ("cell", "differences")}
    found: Sample = {"layout": each.cell.layout.name, "level": each.cell.level, "asked_rps": each.cell.rate_rps, **told}
    if each.differences is None:
        return found
    apart = each.differences
    return {
        **found,
        "only_aiperf_good": len(apart.only_aiperf),
        "only_server_met": len(apart.only_server),
        "ttft_s_over_server": apart.ttft_s,
        "tpot_s_over_server": apart.tpot_s,
    }


def sentence_of(each: Counted) -> str:
    """For whoever waits."""
    return (
        f"{each.cell.name} {each.arm} {each.repeat}: {each.num_good} of {each.num_requests} in time, "
        f"{each.num_met} by the server, {each.num_refused} refused; goodput {each.goodput_rps:.3f}, "
        f"over arrivals {each.by_arrivals_rps:.3f} req/s; {each.arrivals_s:.1f} of {each.over_s:.1f} s; "
        f"p99 {1000 * each.late_s:.1f} ms late; client {each.client_share:.0%} of a core, "
        f"machine {each.machine_share:.0%} of all"
    )
