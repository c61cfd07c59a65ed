"""Every P:D of eight nodes for each workload, the closed forms' choice, and the controller. Simulated."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.plotting import pyplot
from cluster.report_file import Figure, Sample, write_report
from cluster.tune_plan import Candidate
from cluster.workload.spec import workload_of
from core.request import SLO
from experiments.arms import Runs, adaptive, arguments, by_forecast, disaggregated, mean, recipe_for, roofline, say

NUM_NODES = 8
WARM_UP_S = 10.0
PREFILL_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Asked:
    """A workload, what is promised, the model that makes eight nodes worth their while, and how much of it is run."""

    name: str
    slo: SLO
    shape: str
    tp: int
    requests: int
    start_rps: float


ASKED = (
    Asked("longbench", SLO(2.0, 0.040), "llama-3-70b", 2, 1300, 30.0),
    Asked("mooncake-conversation", SLO(5.0, 0.030), "llama-3-8b", 1, 600, 12.0),
    Asked("azure-code", SLO(3.0, 0.040), "llama-3-70b", 2, 900, 15.0),
    Asked("sharegpt", SLO(1.0, 0.040), "llama-3-70b", 2, 2400, 30.0),
    Asked("humaneval", SLO(0.5, 0.040), "llama-3-70b", 2, 6000, 150.0),
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """One workload. `rate_rps` is the highest that any ratio holds; goodputs, requests per second, are at it."""

    asked: Asked
    rate_rps: float
    by_ratio: tuple[tuple[str, float], ...]
    best: str
    by_formula: str
    controlled: float
    mix_changes: int

    @property
    def ratio(self) -> float:
        """The controller over the best ratio."""
        return self.controlled / dict(self.by_ratio)[self.best]

    @property
    def formula_ratio(self) -> float:
        """The closed forms' ratio over the best one."""
        return dict(self.by_ratio)[self.by_formula] / dict(self.by_ratio)[self.best]

    @property
    def even_ratio(self) -> float:
        """4:4 over the best ratio: what a fixed 1:1 costs."""
        return dict(self.by_ratio)[_word(NUM_NODES // 2)] / dict(self.by_ratio)[self.best]


def sweep_of(asked: Asked, requests: int, seed: int) -> Sweep | None:
    """All ratios and the controller at one rate; None where no ratio holds any rate."""
    workload = workload_of([f"{asked.name},requests={requests}"], seed).workload
    runs = Runs([workload], asked.slo, warm_up_s=WARM_UP_S)
    recipe = recipe_for(roofline("H200", asked.shape, asked.tp), workload)
    ratios = by_forecast(disaggregated(recipe, NUM_NODES, (PREFILL_CHUNK,)), workload, asked.slo)
    rate = runs.best(ratios, asked.start_rps).rate_rps
    if not rate:
        return None
    by_ratio = {_ratio_of(each): runs.goodput(each, rate) for each in ratios}
    figures = runs.figures(adaptive(recipe, NUM_NODES), rate)
    return Sweep(
        asked,
        rate,
        tuple(sorted(by_ratio.items())),
        max(by_ratio, key=lambda ratio: by_ratio[ratio]),
        _ratio_of(ratios[0]),
        float(figures["goodput_rps"]),
        int(figures["mix_changes"]),
    )


def _ratio_of(candidate: Candidate) -> str:
    return _word(candidate.arm.num_prefill)


def _word(num_prefill: int) -> str:
    return f"{num_prefill}:{NUM_NODES - num_prefill}"


def figures_of(sweeps: Sequence[Sweep]) -> dict[str, Figure]:
    """Over the workloads; and of each."""
    figures: dict[str, Figure] = {"workloads": len(sweeps)}
    for name in ("ratio", "formula_ratio", "even_ratio"):
        values = [float(getattr(each, name)) for each in sweeps]
        figures |= {f"{name}_min": min(values), f"{name}_mean": mean(values)}
    for each in sweeps:
        figures |= {
            f"{each.asked.name}.best": each.best,
            f"{each.asked.name}.by_formula": each.by_formula,
            f"{each.asked.name}.ratio": each.ratio,
        }
    return figures


def _save_plot(path: str, sweeps: Sequence[Sweep]) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for place, each in enumerate(sweeps):
        best = dict(each.by_ratio)[each.best]
        words, values = [word for word, _ in each.by_ratio], [value / best for _, value in each.by_ratio]
        axes.plot(words, values, color=f"C{place}", marker="o", markersize=3, label=each.asked.name)
        axes.axhline(each.ratio, color=f"C{place}", linewidth=0.8, linestyle="--")
    axes.set(xlabel="prefill : decode nodes", ylabel="goodput over the best ratio's", ylim=(0, None))
    axes.set_title("Simulated; dashed: the controller at the same rate", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Sweep, print, write."""
    args = arguments(__doc__, _add_flags)
    sweeps = list[Sweep]()
    for asked in ASKED[:2] if args.quick else ASKED:
        sweep = sweep_of(asked, asked.requests // 4 if args.quick else asked.requests, args.seed)
        if sweep is None:
            say(f"{asked.name}: no ratio holds any rate")
            continue
        sweeps.append(sweep)
        goodputs = ", ".join(f"{ratio} {value:.1f}" for ratio, value in sweep.by_ratio)
        say(
            f"{asked.name} at {sweep.rate_rps:.2f} req/s: {goodputs}; best {sweep.best}, "
            f"by formula {sweep.by_formula}; controller {sweep.controlled:.1f} ({sweep.ratio:.3f}), "
            f"{sweep.mix_changes} changes"
        )
        if args.json:
            _write(args.json, sweeps)
        if args.plot:
            _save_plot(args.plot, sweeps)
    for name, value in figures_of(sweeps).items():
        print(f"{name} {value}")


def _write(path: str, sweeps: Sequence[Sweep]) -> None:
    samples: list[Sample] = [
        {
            "workload": each.asked.name,
            "nodes": f"{NUM_NODES} x {each.asked.shape} on {each.asked.tp} x H200",
            "ttft_slo_s": each.asked.slo.ttft_s,
            "tpot_slo_s": each.asked.slo.tpot_s,
            "rate_rps": each.rate_rps,
            "goodput_rps_by_ratio": dict(each.by_ratio),
            "best": each.best,
            "by_formula": each.by_formula,
            "adaptive_goodput_rps": each.controlled,
            "mix_changes": each.mix_changes,
        }
        for each in sweeps
    ]
    write_report(path, "python -m experiments.03-ratio-sweep.run", figures_of(sweeps), samples)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the workloads")


if __name__ == "__main__":
    main()
