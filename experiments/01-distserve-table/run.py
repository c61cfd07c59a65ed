"""DistServe's goodput table (Zhong et al., OSDI 2024) by its own step times: the paper's runs, and ten times as long.

Simulated; lengths are log-normal with the published means, not the paper's datasets.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from cluster.capacity_search import Point, first_crossing
from cluster.cost_sources import CostAsked, node_kind
from cluster.fleet_plan import Arm, Recipe
from cluster.report_file import Figure, Sample, write_report
from cluster.simulated.shared_links import FleetLinks
from cluster.simulated.truth import Chunks, StepTruth
from cluster.simulation import longest_context, simulate
from cluster.tune_plan import Candidate
from cluster.workload.items import Workload
from cluster.workload.spec import workload_of
from core.costs import NodeCosts
from core.request import SLO
from experiments.arms import arguments, say, skip
from scheduler.config import SchedulerConfig

NVLINK = FleetLinks(300e9, 0.0002)
LONGER = 10
AMPLE_KV = 2_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Sizes are (tensor, pipeline) of prefill and decode nodes; `prefill` None: one node does
    both. `paper` is its goodput, in requests per second and GPU, `rates` those that it tried per GPU."""

    name: str
    engine: str
    model: str
    workload: str
    slo: SLO
    prefill: tuple[int, int] | None
    decode: tuple[int, int]
    prompts_per_gpu: int
    rates: tuple[float, ...]
    paper: float


def _evenly(step: float, number: int, first: float = 0.0) -> tuple[float, ...]:
    return tuple(first + step * place for place in range(0 if first else 1, number + 1))


_13B_RATES = (0.25, 0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 3.0)
_66B_RATES = (0.0625, *_evenly(0.125, 8))
_HUMANEVAL_RATES = _evenly(0.25, 8, 0.125)
_LONGBENCH_RATES = _evenly(0.0625, 10)
_APART, _TOGETHER = ((4, 1), (2, 2)), (None, (4, 1))

ROWS = (
    Row("13B ShareGPT", "distserve", "opt-13b", "sharegpt", SLO(0.25, 0.10), (2, 1), (1, 1), 100, _13B_RATES, 2.300),
    Row("13B ShareGPT", "vllm", "opt-13b", "sharegpt", SLO(0.25, 0.10), None, (1, 1), 100, _13B_RATES, 0.500),
    Row("66B ShareGPT", "distserve", "opt-66b", "sharegpt", SLO(2.5, 0.15), *_APART, 25, _66B_RATES, 0.955),
    Row("66B ShareGPT", "vllm", "opt-66b", "sharegpt", SLO(2.5, 0.15), *_TOGETHER, 25, _66B_RATES, 0.3472),
    Row("66B HumanEval", "distserve", "opt-66b", "humaneval", SLO(0.125, 0.2), *_APART, 50, _HUMANEVAL_RATES, 1.144),
    Row("66B HumanEval", "vllm", "opt-66b", "humaneval", SLO(0.125, 0.2), *_TOGETHER, 50, _HUMANEVAL_RATES, 0.200),
    Row("66B LongBench", "distserve", "opt-66b", "longbench", SLO(15.0, 0.15), *_APART, 25, _LONGBENCH_RATES, 0.530),
    Row("66B LongBench", "vllm", "opt-66b", "longbench", SLO(15.0, 0.15), *_TOGETHER, 25, _LONGBENCH_RATES, 0.125),
)
"""Source: LLMServe/DistServe, `evaluation/2-benchmark-serving`: its points and the ratios that its notebook prints."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the simulator says of a row: goodput per GPU at the paper's length (median of several seeds) and at ten
    times it; at the paper's length without a limit of KV; and attainment by rate."""

    row: Row
    goodput: float
    goodput_longer: float
    goodput_free: float
    curve: tuple[Point, ...]
    curve_longer: tuple[Point, ...]

    @property
    def error(self) -> float:
        """Relative, at the paper's length."""
        return self.goodput / self.row.paper - 1

    @property
    def error_free(self) -> float:
        """Relative, at the paper's length without a limit of KV."""
        return self.goodput_free / self.row.paper - 1

    @property
    def error_longer(self) -> float:
        """Relative, at ten times the paper's length."""
        return self.goodput_longer / self.row.paper - 1


@dataclass(slots=True)
class PrefillFirst:
    """A node whose rows wait while it prefills, as vLLM's did in 2023: a mixed step takes as long as both one after the
    other. Its first tokens come a decode step late, so it is for targets of seconds only."""

    inner: StepTruth
    num_extrapolated: int = 0

    def step_s(self, chunks: Chunks, num_rows: int, row_context: int) -> float:
        """By the inner one, without mixing."""
        if not chunks or not num_rows:
            return self.inner.step_s(chunks, num_rows, row_context)
        return self.inner.step_s(chunks, 0, 0) + self.inner.step_s((), num_rows, row_context)

    def belief(self) -> NodeCosts:
        """As the inner one says."""
        return self.inner.belief()


def candidate_of(row: Row, table: Path, workload: Workload, kv_tokens: int | None = None) -> Candidate:
    """One instance as the paper ran it: first come first served, by shortest queue, nobody refused, whole prompts.

    Prefill steps of at most 8,192 tokens where prefill has nodes of its own, else 16,384; at most 1,024 rows.
    """
    asked = CostAsked(table=table, model=row.model, block_size=64, kv_tokens=kv_tokens)
    prefill_kind = None if row.prefill is None else node_kind(asked, *row.prefill)
    kind = node_kind(asked, *row.decode)
    if row.prefill is None and row.slo.ttft_s > 1:
        kind = replace(kind, truth=PrefillFirst(kind.truth))
    recipe = Recipe(
        kind=kind,
        links=NVLINK,
        max_model_len=longest_context(workload),
        chunk=16_384,
        prefill_chunk=8192,
        max_decode_rows=1024,
        policy="least_loaded",
        scheduler=SchedulerConfig(refuses_unattainable=False, handoff_bytes_per_s=NVLINK.bytes_per_s),
        prefill_kind=prefill_kind,
    )
    return Candidate(recipe, Arm(0, 0, 1) if row.prefill is None else Arm(1, 1, 0))


def measured(row: Row, table: Path, seeds: int, *, is_longer: bool) -> Measured:
    """Both run lengths of a row."""
    curves = [_curve(row, table, seed, 1, row.rates) for seed in range(seeds)]
    found = median(first_crossing(curve).rate_rps for curve in curves)
    middle = min(curves, key=lambda curve: abs(first_crossing(curve).rate_rps - found))
    free = first_crossing(_curve(row, table, 0, 1, row.rates, AMPLE_KV)).rate_rps if row.prefill else found
    if not is_longer:
        return Measured(row, found, float("nan"), free, tuple(middle), ())
    above = [rate for rate in row.rates if rate >= found / 3] or list(row.rates)
    below = [rate for rate in row.rates if rate < above[0]][-1:]
    longer = _curve(row, table, 0, LONGER, (*below, *above))
    return Measured(row, found, first_crossing(longer).rate_rps, free, tuple(middle), tuple(longer))


def _curve(
    row: Row, table: Path, seed: int, times: int, rates: Sequence[float], kv_tokens: int | None = None
) -> list[Point]:
    """Attainment by rate per GPU, to the first that falls below 90 %."""
    curve = list[Point]()
    gpus = row.decode[0] * row.decode[1] + (row.prefill[0] * row.prefill[1] if row.prefill else 0)
    workload = workload_of([f"{row.workload},requests={times * row.prompts_per_gpu * gpus}"], seed).workload
    candidate = candidate_of(row, table, workload, kv_tokens)
    for rate in rates:
        run = simulate(candidate.recipe, candidate.arm, workload.at_rate(rate * gpus), row.slo, seed)
        attainment = run.figures()["attainment"]
        curve.append(Point(rate, float(attainment)))
        if curve[-1].attainment < 0.9 and (times > 1 or len(curve) > 1):
            break
    return curve


def figures_of(found: Sequence[Measured]) -> dict[str, Figure]:
    """Errors over the rows; of a goodput of 0 the error is 1."""
    errors = [abs(each.error) for each in found]
    figures: dict[str, Figure] = {"rows": len(found), "median_error": median(errors), "worst_error": max(errors)}
    free = [abs(each.error_free) for each in found]
    figures |= {"median_error_ample_kv": median(free), "worst_error_ample_kv": max(free)}
    longer = [abs(each.error_longer) for each in found if each.curve_longer]
    if longer:
        figures |= {"median_error_10x": median(longer), "worst_error_10x": max(longer)}
    return figures


def _sample(each: Measured) -> Sample:
    return {
        "cell": each.row.name,
        "engine": each.row.engine,
        "paper_rps_per_gpu": each.row.paper,
        "simulated_rps_per_gpu": each.goodput,
        "error": each.error,
        "simulated_ample_kv_rps_per_gpu": each.goodput_free,
        "curve": [[point.rate_rps, point.attainment] for point in each.curve],
        **({"simulated_10x_rps_per_gpu": each.goodput_longer} if each.curve_longer else {}),
        "curve_10x": [[point.rate_rps, point.attainment] for point in each.curve_longer],
    }


def main() -> None:
    """Run the table, print, write."""
    args = arguments(__doc__, _add_flags)
    tables = {"distserve": args.distserve_fits, "vllm": args.vllm_fits}
    found = list[Measured]()
    for row in ROWS:
        table = tables[row.engine]
        if table is None:
            skip(f"{row.name}, {row.engine}: no --{row.engine}-fits, and no other step times are published")
            continue
        found.append(measured(row, Path(table), 1 if args.quick else args.seeds, is_longer=not args.quick))
        each = found[-1]
        say(
            f"{row.name}, {row.engine}: paper {row.paper:.3f}, simulated {each.goodput:.3f} ({each.error:+.0%}), "
            f"with ample KV {each.goodput_free:.3f}, ten times as long {each.goodput_longer:.3f}"
        )
        _write(args.json, found)
    for name, value in figures_of(found).items() if found else ():
        print(f"{name} {value:.3f}")


def _write(path: str | None, found: Sequence[Measured]) -> None:
    """After every row, so that a run that is ended early leaves what it finished."""
    if path:
        write_report(
            path, "python -m experiments.01-distserve-table.run", figures_of(found), [_sample(e) for e in found]
        )


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--distserve-fits", metavar="FILE", help="DistServe's profiler-a100-80g.distserve.json")
    parser.add_argument("--vllm-fits", metavar="FILE", help="DistServe's profiler-a100-80g.vllm.json")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of the paper's length")


if __name__ == "__main__":
    main()
