"""Options under doubt: what is known of lengths is a sample, and a layout should be good for those that may be meant.

The ratio of prompts' to answers' work is what a division of nodes stands or falls with. Its logarithm is taken to be
normal around what the sample says, with the deviation `doubt`; three points with its mean and variance stand for it.
"""

from collections.abc import Sequence
from dataclasses import replace

from scheduler.closed_forms import Load
from scheduler.layouts import Floors, Option, PlanNode, Search
from scheduler.plans import Forecaster, Goal

LEAST_DOUBT = 0.1
"""With less, what is known is planned with: some hundred requests and their answers."""

MOST_DOUBT = 0.7
"""A ratio that may be twice or half as high is as good as unknown."""

MOST_UNDIVIDED, UNDIVIDED = 0.5, 1.25
"""Half of the nodes, at most, are kept from one phase alone, and that while the ratio may be a half higher or lower."""

POINTS = 1.5**0.5
"""Points at the mean and so many deviations to each side, of equal weight, have the variance of the whole."""

NUM_OPTIONS = 8


def undivided(num_free: int, doubt: float) -> int:
    """How many of the free nodes should go on doing both: what is not known is left to routing."""
    return round(num_free * min(MOST_UNDIVIDED, UNDIVIDED * doubt))


def hedged(nodes: Sequence[PlanNode], options: Sequence[Option], load: Load, goal: Goal, doubt: float) -> list[Option]:
    """The best few options, those pure in kind and the first of all given among them, by the mean of what they would
    do with the loads that may be meant."""
    if doubt < LEAST_DOUBT:
        return list(options)
    first, *others = options
    others.sort(key=lambda option: -option.forecast.goodput_rps)
    kinds = {option.kind: option for option in reversed(others)}
    chosen = {option.key: option for option in (first, *kinds.values(), *others[:NUM_OPTIONS])}
    spread = POINTS * min(doubt, MOST_DOUBT)
    searches = [Search(nodes, Forecaster(load.leaning(sign * spread), goal), Floors()) for sign in (-1.0, 1.0)]
    return [_averaged(option, searches) for option in chosen.values()]


def _averaged(option: Option, searches: Sequence[Search]) -> Option:
    forecasts = [option.forecast, *(search.forecast(option.mixes).forecast for search in searches)]
    num = len(forecasts)
    goodput = sum(each.goodput_rps for each in forecasts) / num
    attainment = sum(each.attainment for each in forecasts) / num
    return replace(option, forecast=replace(option.forecast, goodput_rps=goodput, attainment=attainment))
