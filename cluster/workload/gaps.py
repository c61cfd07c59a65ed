"""Times between tokens, counted in narrow classes: millions of them fit into a few hundred counts."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from math import exp, floor, log

CLASSES_PER_E = 200.0
"""Classes per factor of e: a class is 0.5 % wide, so a percentile read from it is at most 0.25 % off."""

LEAST_S = 1e-6

Gaps = Mapping[int, int]
"""How many gaps are in each class, by `class_of`."""


def class_of(gap_s: float) -> int:
    """The class of a gap; all below a microsecond are one."""
    return floor(log(gap_s / LEAST_S) * CLASSES_PER_E) if gap_s > LEAST_S else -1


def seconds_of(number: int) -> float:
    """The middle of a class, in seconds."""
    return 0.0 if number < 0 else LEAST_S * exp((number + 0.5) / CLASSES_PER_E)


def counted(gaps_s: Iterable[float]) -> Gaps:
    """Gaps by class."""
    return Counter(map(class_of, gaps_s))


def percentile(counts: Iterable[Gaps], share: float) -> float | None:
    """The gap below which `share` (0 to 1) of all lie, in seconds; None where there are none."""
    total = Counter[int]()
    for each in counts:
        total.update(each)
    classes, sums, so_far = sorted(total), list[int](), 0
    for number in classes:
        so_far += total[number]
        sums.append(so_far)
    return seconds_of(classes[bisect_left(sums, share * so_far)]) if so_far else None
