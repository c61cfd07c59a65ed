"""Plots of load reports."""

from collections.abc import Sequence
from typing import Any

from cluster.load_report import LoadRun
from cluster.plotting import pyplot
from cluster.workload.served import ServedRequest
from core.request import SLO

NUM_BINS = 60
MET, MISSED = "#1b7837", "#c51b7d"


def save_run_plot(path: str, run: LoadRun, slo: SLO, changes: Sequence[tuple[float, str]]) -> None:
    """Requests met and missed, TTFT and TPOT over the time of arrival; mix changes as lines. Raises ConfigError."""
    plt = pyplot()
    figure, (rates, first, others) = plt.subplots(3, 1, sharex=True, figsize=(10, 8), layout="constrained")
    _draw_rates(rates, run)
    _draw_times(first, run.records, [each.ttft_s for each in run.records], slo.ttft_s, "TTFT, s")
    _draw_times(others, run.records, [each.tpot_s for each in run.records], slo.tpot_s, "TPOT, s")
    for axes in (rates, first, others):
        for at_s, _ in changes:
            axes.axvline(at_s, color="grey", linewidth=0.5)
    others.set_xlabel("arrival, s")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_surface_plot(path: str, curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], target: float) -> None:
    """Attainment over the rate per GPU, a line for each layout: its name, rates, attainments. Raises ConfigError."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for name, rates, attainments in curves:
        axes.plot(rates, attainments, marker="o", markersize=3, label=name)
    axes.axhline(target, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="requests/s per GPU", ylabel="attainment", ylim=(0, 1.02))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_rates(axes: Any, run: LoadRun) -> None:
    met = [each.item.at_s for each in run.records if each.is_met]
    missed = [each.item.at_s for each in run.records if not each.is_met]
    width_s = run.arrivals_s / NUM_BINS
    weights = [[1 / width_s] * len(met), [1 / width_s] * len(missed)]
    axes.hist([met, missed], NUM_BINS, stacked=True, weights=weights, color=[MET, MISSED], label=["met", "missed"])
    axes.set_ylabel("requests/s")
    axes.legend()


def _draw_times(
    axes: Any, records: Sequence[ServedRequest], values: Sequence[float | None], limit_s: float, name: str
) -> None:
    points = [(each.item.at_s, value, each.is_met) for each, value in zip(records, values, strict=True) if value]
    colours = [MET if is_met else MISSED for _, _, is_met in points]
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=3, c=colours)
    axes.axhline(limit_s, color="grey", linewidth=0.8, linestyle="--")
    axes.set_ylabel(name)
    if points:
        axes.set_yscale("log")
