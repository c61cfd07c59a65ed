"""The highest rate that a cluster serves in time: by its attainment curve, or by halving."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

TARGET = 0.9
"""The share of requests that has to meet both targets, as DistServe counts it."""

Attain = Callable[[float], float]
"""Attainment, 0 to 1, at a rate in requests per second."""


@dataclass(frozen=True, slots=True)
class Point:
    """One rate and the share of requests that met their SLO at it."""

    rate_rps: float
    attainment: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """A rate and how it was found. `is_bracketed` False: the target held (or failed) at every rate that was tried."""

    rate_rps: float
    method: str
    is_bracketed: bool


def first_crossing(curve: Sequence[Point], target: float = TARGET) -> Capacity:
    """DistServe's way: linear interpolation where the curve first falls below the target; 0 if it begins below."""
    method = "first crossing, linear interpolation"
    if not curve or curve[0].attainment < target:
        return Capacity(0.0, method, False)
    for before, after in pairwise(curve):
        if after.attainment < target:
            share = (before.attainment - target) / (before.attainment - after.attainment)
            return Capacity(before.rate_rps + share * (after.rate_rps - before.rate_rps), method, True)
    return Capacity(curve[-1].rate_rps, method, False)


def bisected(attain: Attain, start_rps: float, target: float = TARGET, tolerance: float = 0.02) -> Capacity:
    """The highest rate with at least `target`, to within `tolerance` of itself; bracketed by doubling from a start."""
    method = f"bisection to {tolerance:.0%}"
    low, high = _bracket(attain, start_rps, target)
    if low == 0.0 or high == 0.0:
        return Capacity(low, method, False)
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if attain(middle) >= target else (low, middle)
    return Capacity(low, method, True)


def _bracket(attain: Attain, start_rps: float, target: float, max_steps: int = 12) -> tuple[float, float]:
    """A rate that holds and one that does not; 0 for the one that was not found."""
    rate, holds = start_rps, attain(start_rps) >= target
    for _ in range(max_steps):
        following = rate * 2 if holds else rate / 2
        if (attain(following) >= target) != holds:
            return (rate, following) if holds else (following, rate)
        rate = following
    return (rate, 0.0) if holds else (0.0, rate)
