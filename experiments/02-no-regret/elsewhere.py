"""Cells away from the grid: workloads, SLOs, loads and fleets at random, and two minutes of each. Simulated."""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from random import Random

from cluster.report_file import Figure, Sample, write_report
from cluster.tune_plan import Candidate
from cluster.workload.items import Workload
from cluster.workload.spec import workload_of
from core.request import SLO
from experiments.arms import Runs, adaptive, aggregated, arguments, by_forecast, disaggregated, recipe_for, say

from .run import CHUNKS, PREFILL_CHUNKS, WARM_UP_S, kind_of

NUM_TRIED = 3
"""Of each kind of fixed arm so many run, those of the highest rate by the closed forms; the best of them counts."""

LEAST_RPS = 0.2
"""Tried where the closed forms think that no arm meets the SLO at any rate."""

SECONDS, LEAST_REQUESTS, MOST_REQUESTS = 120.0, 150, 900


@dataclass(frozen=True, slots=True)
class Drawn:
    """One cell. `load` is that of the fixed arm that the closed forms think best: over 1 somebody must be refused."""

    number: int
    steps: str
    prompt_tokens: int
    output_tokens: int
    arrivals: str
    num_nodes: int
    slo: SLO
    load: float

    def workload(self, num_requests: int) -> Workload:
        """The same requests whatever the arm."""
        prompt, answer = self.prompt_tokens, self.output_tokens
        lengths = f"in=lognormal:{prompt}:0.7:{min(64_000, 8 * prompt)},out=lognormal:{answer}:0.7:{6 * answer}"
        return workload_of([f"lengths,{lengths},rate=4,arrivals={self.arrivals},requests={num_requests}"], 0).workload

    def __str__(self) -> str:
        return (
            f"{self.number}: {self.num_nodes} nodes ({self.steps}), {self.prompt_tokens} / {self.output_tokens} tokens "
            f"({self.arrivals}), TTFT {self.slo.ttft_s:g} s, TPOT {1000 * self.slo.tpot_s:g} ms, load {self.load:g}"
        )


@dataclass(frozen=True, slots=True)
class Served:
    """Goodputs in requests per second, and the best fixed arm of each kind."""

    drawn: Drawn
    rate_rps: float
    together: tuple[float, str]
    apart: tuple[float, str]
    adaptive_rps: float
    mix_changes: int

    @property
    def ratio(self) -> float:
        """Adaptive over the better fixed arm."""
        return self.adaptive_rps / max(self.together[0], self.apart[0])


def drawn(number: int) -> Drawn:
    """The cell of this number, the same on every machine."""
    chance = Random(1000 + number)
    steps = chance.choice(("roofline", "serial", "measured"))
    prompt, answer = chance.choice((4000, 16_000)), chance.choice((200, 600, 1500))
    bursts = chance.random() < 0.25
    num_nodes = chance.choice((2, 4, 4, 6))
    tpot_s = chance.choice((0.012, 0.018, 0.03, 0.05))
    ttft_s = round(max(0.2, prompt / 16_000 * 0.55 * chance.choice((2.5, 5.0, 12.0, 25.0))), 2)
    load = chance.choice((0.7, 0.85, 1.0, 1.2))
    arrivals = "gamma:4" if bursts else "poisson"
    return Drawn(number, steps, prompt, answer, arrivals, num_nodes, SLO(ttft_s, tpot_s), load)


def served(cell: Drawn) -> Served:
    """All arms at the same rate."""
    kind = kind_of(cell.steps)
    fixed = _fixed(cell, cell.workload(400))
    rate = cell.load * max(LEAST_RPS, *(each.forecast_rps for each in fixed))
    workload = cell.workload(round(min(MOST_REQUESTS, max(LEAST_REQUESTS, rate * SECONDS))))
    runs, recipe = Runs([workload], cell.slo, warm_up_s=WARM_UP_S), recipe_for(kind, workload)
    best = []
    for mixed in (True, False):
        arms = [each for each in fixed if bool(each.arm.num_mixed) is mixed][:NUM_TRIED]
        tried = [replace(each, recipe=replace(each.recipe, max_model_len=recipe.max_model_len)) for each in arms]
        best.append(max((runs.goodput(each, rate), str(each)) for each in tried))
    figures = runs.figures(adaptive(recipe, cell.num_nodes), rate)
    return Served(cell, rate, best[0], best[1], float(figures["goodput_rps"]), int(figures["mix_changes"]))


def _fixed(cell: Drawn, workload: Workload) -> Sequence[Candidate]:
    recipe = recipe_for(kind_of(cell.steps), workload)
    together = aggregated(recipe, cell.num_nodes, CHUNKS)
    apart = disaggregated(recipe, cell.num_nodes, PREFILL_CHUNKS)
    return by_forecast([*together, *apart], workload, cell.slo)


def figures_of(found: Sequence[Served]) -> dict[str, Figure]:
    """Over the cells."""
    ratios = sorted(each.ratio for each in found)
    return {
        "cells": len(ratios),
        "ratio_min": ratios[0],
        "ratio_p10": ratios[len(ratios) // 10],
        "ratio_mean": sum(ratios) / len(ratios),
        "ratio_max": ratios[-1],
        "cells_below_0_98": sum(ratio < 0.98 for ratio in ratios),
    }


def _sample(each: Served) -> Sample:
    return {
        "cell": str(each.drawn),
        "at_rps": each.rate_rps,
        "aggregated": each.together[1],
        "aggregated_goodput_rps": each.together[0],
        "disaggregated": each.apart[1],
        "disaggregated_goodput_rps": each.apart[0],
        "adaptive_goodput_rps": each.adaptive_rps,
        "adaptive_mix_changes": each.mix_changes,
        "ratio": each.ratio,
    }


def main() -> None:
    """All cells, print, write after each."""
    args = arguments(__doc__, _add_flags)
    found = list[Served]()
    with ProcessPoolExecutor(args.workers) as pool:
        for each in pool.map(served, map(drawn, range(args.start, args.start + (1 if args.quick else args.cells)))):
            if not max(each.together[0], each.apart[0]):
                say(f"{each.drawn}: no fixed arm meets this")
                continue
            found.append(each)
            say(
                f"{each.drawn}, {each.rate_rps:.2f} req/s: {each.together[0]:.2f} together, {each.apart[0]:.2f} apart, "
                f"{each.adaptive_rps:.2f} adaptive: {each.ratio:.3f}, {each.mix_changes} changes"
            )
            if args.json:
                command = "python -m experiments.02-no-regret.elsewhere"
                write_report(args.json, command, figures_of(found), [_sample(done) for done in found])
    for name, value in figures_of(found).items():
        print(f"{name} {value}")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=int, default=24, metavar="N", help="how many (default: 24)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="the number of the first one")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cells at a time")


if __name__ == "__main__":
    main()
