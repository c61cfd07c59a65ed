"""Traces: the controller against tuned fixed layouts and against the best fixed layout of every window. Simulated."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from cluster.plotting import pyplot
from cluster.report_file import Figure, Sample, write_report
from cluster.tune_plan import Candidate
from cluster.workload.items import Workload
from cluster.workload.served import ServedRequest
from cluster.workload.spec import workload_of
from cluster.workload.traces import read_trace
from core.request import SLO
from experiments.arms import Runs, adaptive, aggregated, arguments, disaggregated, mean, recipe_for, roofline, say, skip

NUM_NODES = 4
CHUNKS = (512, 2048)
PREFILL_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Asked:
    """A trace, what is promised, the nodes, how many of its requests, and how long a window is. `generator` has its
    published statistics, for where the file is not given. `copies`: of each request, instead of a time scaled so far
    that bursts and ramps are seconds long."""

    flag: str
    generator: str
    slo: SLO
    shape: str
    tp: int
    requests: int
    window_s: float
    start_rps: float
    copies: int = 1

    @property
    def name(self) -> str:
        """Of its figures."""
        return self.flag if self.copies == 1 else f"{self.flag}_{self.copies}_copies"


ASKED = (
    Asked("azure", "azure-code", SLO(2.0, 0.040), "llama-3-70b", 2, 2400, 60.0, 4.0),
    Asked("mooncake", "mooncake-conversation", SLO(5.0, 0.030), "llama-3-8b", 1, 1000, 30.0, 5.0),
    Asked("aibrix", "aibrix-ramp", SLO(0.5, 0.040), "llama-3-70b", 2, 2026, 60.0, 15.0, copies=6),
    Asked("aibrix", "aibrix-ramp", SLO(0.5, 0.040), "llama-3-70b", 2, 2026, 10.0, 15.0),
)

COPIED_S = 3.0
"""Each copy comes up to so much later than its original, drawn anew."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trace at the rate that the better fixed layout holds. `met` are requests in time by window of arrival."""

    asked: Asked
    source: str
    rate_rps: float
    speed: float
    best: str
    layouts: tuple[tuple[str, tuple[int, ...]], ...]
    controlled: tuple[int, ...]
    mix_changes: int
    reversals: int

    @property
    def clairvoyant(self) -> tuple[int, ...]:
        """What the best layout of each window met in it; each layout served the whole trace."""
        return tuple(max(column) for column in zip(*(met for _, met in self.layouts), strict=True))

    @property
    def of_clairvoyant(self) -> float:
        """The controller over the clairvoyant optimum, all windows together."""
        return sum(self.controlled) / sum(self.clairvoyant)

    @property
    def of_best_fixed(self) -> float:
        """The controller over the fixed layout that met most."""
        return sum(self.controlled) / max(sum(met) for _, met in self.layouts)

    @property
    def worst_window(self) -> float:
        """The controller over the optimum in the worst window with at least 20 requests in time."""
        pairs = zip(self.controlled, self.clairvoyant, strict=True)
        return min((met / most for met, most in pairs if most >= 20), default=1.0)


def outcome_of(asked: Asked, path: str | None, requests: int) -> Outcome | None:
    """Tune, run every layout over the whole trace, then the controller; None where no layout holds any rate."""
    workload, source = _workload(asked, path, requests)
    runs = Runs([workload], asked.slo)
    recipe = recipe_for(roofline("H200", asked.shape, asked.tp), workload)
    layouts = aggregated(recipe, NUM_NODES, CHUNKS) + disaggregated(recipe, NUM_NODES, (PREFILL_CHUNK,))
    found = runs.best(layouts, asked.start_rps)
    if not found.rate_rps:
        return None
    rate = found.rate_rps
    served = [(str(each), _met(runs, each, rate, asked.window_s)) for each in layouts]
    run = runs.run(adaptive(recipe, NUM_NODES), rate)
    controlled = _by_window(run.load.records, asked.window_s, workload.at_rate(rate).duration_s)
    return Outcome(
        asked,
        source,
        rate,
        rate / workload.rate_rps,
        str(found.candidate),
        tuple(served),
        controlled,
        run.load.num_mix_changes,
        run.load.num_reversals,
    )


def _workload(asked: Asked, path: str | None, requests: int) -> tuple[Workload, str]:
    if path is None:
        skip(f"the trace {asked.flag}: no --{asked.flag}; its published statistics instead")
        generated = workload_of([f"{asked.generator},requests={requests}"], 0).workload
        return copied(generated, asked.copies), "published statistics"
    return copied(read_trace(Path(path)).workload.first(requests), asked.copies), "trace"


def copied(workload: Workload, num: int) -> Workload:
    """So many times the requests in the same time."""
    chance = Random(0)
    more = [
        replace(each, at_s=each.at_s + chance.random() * COPIED_S) for each in workload.items for _ in range(1, num)
    ]
    return replace(workload, items=tuple(sorted((*workload.items, *more), key=lambda each: each.at_s)))


def _met(runs: Runs, candidate: Candidate, rate: float, window_s: float) -> tuple[int, ...]:
    records = runs.run(candidate, rate).load.records
    return _by_window(records, window_s, runs.workloads[0].at_rate(rate).duration_s)


def _by_window(records: Sequence[ServedRequest], window_s: float, duration_s: float) -> tuple[int, ...]:
    met = [0] * (int(duration_s / window_s) + 1)
    for each in records:
        met[int(each.item.at_s / window_s)] += each.is_met
    return tuple(met)


def figures_of(found: Sequence[Outcome]) -> dict[str, Figure]:
    """Over the traces, copied ones left out; and of each."""
    plain = [each for each in found if each.asked.copies == 1] or found
    optimum, fixed = [each.of_clairvoyant for each in plain], [each.of_best_fixed for each in plain]
    figures: dict[str, Figure] = {
        "traces": len(plain),
        "of_clairvoyant_mean": mean(optimum),
        "of_clairvoyant_min": min(optimum),
        "of_best_fixed_mean": mean(fixed),
        "of_best_fixed_min": min(fixed),
    }
    for each in found:
        figures |= {
            f"{each.asked.name}.of_clairvoyant": each.of_clairvoyant,
            f"{each.asked.name}.of_best_fixed": each.of_best_fixed,
            f"{each.asked.name}.worst_window": each.worst_window,
            f"{each.asked.name}.mix_changes": each.mix_changes,
        }
    return figures


def _write(path: str, found: Sequence[Outcome]) -> None:
    samples: list[Sample] = [
        {
            "trace": each.asked.name,
            "source": each.source,
            "nodes": f"{NUM_NODES} x {each.asked.shape} on {each.asked.tp} x H200",
            "ttft_slo_s": each.asked.slo.ttft_s,
            "tpot_slo_s": each.asked.slo.tpot_s,
            "rate_rps": each.rate_rps,
            "time_scaled_by": each.speed,
            "window_s": each.asked.window_s,
            "tuned": each.best,
            "in_time_by_window": {name: list(met) for name, met in each.layouts},
            "in_time_by_window_adaptive": list(each.controlled),
            "mix_changes": each.mix_changes,
            "reversals": each.reversals,
        }
        for each in found
    ]
    write_report(path, "python -m experiments.05-traces.run", figures_of(found), samples)


def _save_plot(path: str, found: Sequence[Outcome]) -> None:
    plt = pyplot()
    figure, rows = plt.subplots(len(found), 1, figsize=(9, 2.6 * len(found)), layout="constrained", squeeze=False)
    for (axes,), each in zip(rows, found, strict=True):
        starts = [place * each.asked.window_s for place in range(len(each.controlled))]
        for _, met in each.layouts:
            axes.plot(starts, met, color="lightgrey")
        axes.plot(starts, each.clairvoyant, color="black", label="best layout of each window")
        axes.plot(starts, each.controlled, color="#1b7837", label="adaptive")
        axes.set(
            xlabel="s", ylabel="in time", title=f"{each.asked.name} ({each.source}), simulated; grey: fixed layouts"
        )
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run, print, write."""
    args = arguments(__doc__, _add_flags)
    found = list[Outcome]()
    for asked in ASKED[-1:] if args.quick else ASKED:
        outcome = outcome_of(asked, getattr(args, asked.flag), asked.requests // 4 if args.quick else asked.requests)
        if outcome is None:
            say(f"{asked.name}: no layout holds any rate")
            continue
        found.append(outcome)
        say(
            f"{asked.name} at {outcome.rate_rps:.2f} req/s (time x{outcome.speed:.2f}): tuned {outcome.best}; adaptive "
            f"{outcome.of_best_fixed:.3f} of it, {outcome.of_clairvoyant:.3f} of the optimum, worst window "
            f"{outcome.worst_window:.3f}, {outcome.mix_changes} changes, {outcome.reversals} back"
        )
        if args.json:
            _write(args.json, found)
        if args.plot:
            _save_plot(args.plot, found)
    for name, value in figures_of(found).items():
        print(f"{name} {value}")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    for flag, generator in {asked.flag: asked.generator for asked in ASKED}.items():
        parser.add_argument(f"--{flag}", metavar="FILE", default=None, help=f"the trace behind {generator}")


if __name__ == "__main__":
    main()
