"""The goodput surface: attainment of every candidate at rising rates, until it has fallen below the target."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from cluster.capacity_search import Capacity, Point, bisected, first_crossing
from cluster.simulation import simulate
from cluster.tune_plan import Candidate
from cluster.workload.items import Workload
from core.request import SLO

LADDER = (0.4, 0.6, 0.75, 0.9, 1.05, 1.25, 1.5)
"""Rates that are tried, over the highest that the closed forms give to any candidate."""

LIVES = 10
"""A run is long enough for its queues to become what they will be after so many times a request's whole life."""

STEADY = 0.7
"""Where the search in long runs begins, over the capacity that short ones show: rarely more is left of it."""

TOLERANCE = 0.03
NUM_FINALISTS = 2
"""So many of each sort are searched again in long runs."""

MAX_EXTENSIONS = 4
"""So often the ladder goes on, up or down, for a candidate that holds (or fails) on all of it."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """One candidate's part of the surface. Of the best, also what long runs say: their capacity stands above."""

    candidate: Candidate
    curve: tuple[Point, ...]
    capacity: Capacity
    bisected: Capacity | None = None
    long_curve: tuple[Point, ...] = ()

    @property
    def goodput_per_gpu(self) -> float:
        """The highest rate that holds, per GPU used."""
        return (self.bisected or self.capacity).rate_rps / self.candidate.num_gpus


@dataclass(frozen=True, slots=True)
class Tuner:
    """Simulates candidates with one workload, SLO and seed. `on_run` hears of every simulation."""

    workload: Workload
    slo: SLO
    seed: int
    target: float
    on_run: Callable[[Candidate, Point], None]

    def tuned(self, candidate: Candidate, ladder: tuple[float, ...], *, extends: bool) -> Tuned:
        """The candidate's curve: up the ladder, two rates beyond the first that fails, and further where needed."""
        curve, num_failed = list[Point](), 0
        for rate in ladder:
            curve.append(self.point(candidate, rate))
            num_failed += curve[-1].attainment < self.target
            if num_failed == 2 and extends:
                break
        if extends:
            self._extend(candidate, curve)
        return Tuned(candidate, tuple(curve), first_crossing(curve, self.target))

    @property
    def life_s(self) -> float:
        """A request's life on average, where it just meets its targets."""
        return self.slo.ttft_s + self.slo.tpot_s * self.workload.output_tokens / len(self.workload.items)

    def refined(self, tuned: Tuned) -> Tuned:
        """The same with its capacity by bisection, from where the curve crosses, in runs of `LIVES` lives each."""
        curve = list[Point]()

        def attain(rate: float) -> float:
            curve.append(self.point(tuned.candidate, rate, is_long=True))
            return curve[-1].attainment

        start = STEADY * (tuned.capacity.rate_rps or tuned.curve[0].rate_rps)
        found = bisected(attain, start, self.target, TOLERANCE)
        return Tuned(tuned.candidate, tuned.curve, tuned.capacity, found, tuple(curve))

    def point(self, candidate: Candidate, rate_rps: float, *, is_long: bool = False) -> Point:
        """One simulation; a long one repeats the workload until it is long enough at this rate."""
        workload = self.workload.at_rate(rate_rps)
        if is_long:
            workload = workload.repeated(ceil(LIVES * self.life_s / workload.arrivals_s))
        run = simulate(candidate.recipe, candidate.arm, workload, self.slo, self.seed)
        attainment = run.figures().get("attainment", 0.0)
        assert isinstance(attainment, float | int)
        point = Point(rate_rps, float(attainment))
        self.on_run(candidate, point)
        return point

    def _extend(self, candidate: Candidate, curve: list[Point]) -> None:
        for _ in range(MAX_EXTENSIONS):
            if curve[0].attainment < self.target:
                curve.insert(0, self.point(candidate, curve[0].rate_rps / 2))
            elif curve[-1].attainment >= self.target:
                curve.append(self.point(candidate, curve[-1].rate_rps * 1.25))
            else:
                return


def ladder_of(found: list[Candidate]) -> tuple[float, ...]:
    """Rates to try, from the best forecast of all; from 1 req/s per GPU where the closed forms see no way."""
    best = max((each.forecast_rps for each in found), default=0.0) or max(each.num_gpus for each in found)
    return tuple(best * share for share in LADDER)


def finalists(tuned: Sequence[Tuned]) -> list[Tuned]:
    """The best few of each sort, and the adaptive one."""
    adaptive = [each for each in tuned if each.candidate.arm.adapts]
    return [
        *_ordered(tuned, aggregated=True)[:NUM_FINALISTS],
        *_ordered(tuned, aggregated=False)[:NUM_FINALISTS],
        *adaptive,
    ]


def best_of(tuned: Sequence[Tuned], *, aggregated: bool) -> Tuned | None:
    """The highest goodput per GPU of fixed layouts of one sort, of those in long runs where there are such; None where
    none was tried."""
    ordered = _ordered(tuned, aggregated=aggregated)
    return next((each for each in ordered if each.bisected is not None), ordered[0] if ordered else None)


def _ordered(tuned: Sequence[Tuned], *, aggregated: bool) -> list[Tuned]:
    fixed = [each for each in tuned if not each.candidate.arm.adapts]
    of_sort = [each for each in fixed if bool(each.candidate.arm.num_mixed) is aggregated]
    return sorted(of_sort, key=_goodness, reverse=True)


def _goodness(tuned: Tuned) -> tuple[float, float]:
    """Among equals, the one whose whole curve is higher."""
    return tuned.goodput_per_gpu, sum(point.attainment for point in tuned.curve) / len(tuned.curve)
