"""Curves and straight fits through measured times. Pure numbers, standard library only."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Numbers = Sequence[float]


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points, in its last direction beyond the last one, flat before the first.

    Invariant: `xs` rise; `ys` do not fall.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    @staticmethod
    def through(points: dict[float, float]) -> "Curve":
        """The curve through measured points; what a later point lacks of an earlier one is taken as noise."""
        xs = tuple(sorted(points))
        return Curve(xs, tuple(accumulate((points[x] for x in xs), max)))

    def at(self, x: float) -> float:
        """The value at `x`."""
        if len(self.xs) == 1 or x <= self.xs[0]:
            return self.ys[0]
        right = min(bisect_right(self.xs, x), len(self.xs) - 1)
        return _between(x, self.xs[right - 1 : right + 1], self.ys[right - 1 : right + 1])


@dataclass(frozen=True, slots=True)
class Surface:
    """What is 0 on both axes and rises with both: bilinear between points, in proportion beyond the last ones.

    Invariant: `xs` and `ys` rise and begin with 0; `values[i][j]` belongs to `xs[i]`, `ys[j]` and falls along neither.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    @staticmethod
    def through(points: dict[tuple[float, float], float]) -> "Surface":
        """The surface through measured points. A place of the grid that was not measured is taken in proportion from
        the nearest measured one with a smaller `y`; falling values and negative ones are taken as noise."""
        xs = (0.0, *sorted({x for x, _ in points}))
        ys = (0.0, *sorted({y for _, y in points}))
        rows = [(0.0,) * len(ys)]
        for x in xs[1:]:
            row = [0.0]
            for index, y in enumerate(ys[1:], 1):
                guess = row[-1] * y / ys[index - 1] if ys[index - 1] else 0.0
                row.append(max(points.get((x, y), guess), row[-1], rows[-1][index]))
            rows.append(tuple(row))
        return Surface(xs, ys, tuple(rows))

    def at(self, x: float, y: float) -> float:
        """The value at (`x`, `y`)."""
        if x <= 0 or y <= 0 or len(self.xs) == 1 or len(self.ys) == 1:
            return 0.0
        inside_x, inside_y = min(x, self.xs[-1]), min(y, self.ys[-1])
        right = min(bisect_right(self.xs, inside_x), len(self.xs) - 1)
        ends = [self._along(row, inside_y) for row in self.values[right - 1 : right + 1]]
        return _between(inside_x, self.xs[right - 1 : right + 1], ends) * (x / inside_x) * (y / inside_y)

    def _along(self, row: Numbers, y: float) -> float:
        right = min(bisect_right(self.ys, y), len(self.ys) - 1)
        return _between(y, self.ys[right - 1 : right + 1], row[right - 1 : right + 1])


def _between(x: float, xs: Numbers, ys: Numbers) -> float:
    return ys[0] + (ys[1] - ys[0]) * (x - xs[0]) / (xs[1] - xs[0])


def fit(terms: Sequence[Numbers], seconds: Numbers) -> tuple[float, ...]:
    """Coefficients, none negative, that make `sum(coefficient * term)` closest to `seconds` in relative terms.

    A coefficient that would be negative is set to 0 and the others are fitted again.
    """
    num = len(terms[0])
    used = list(range(num))
    while used:
        found = _least_squares([[line[i] for i in used] for line in terms], seconds)
        if min(found) >= 0:
            return tuple(dict(zip(used, found, strict=True)).get(i, 0.0) for i in range(num))
        del used[found.index(min(found))]
    return (0.0,) * num


def _least_squares(terms: Sequence[Numbers], seconds: Numbers) -> list[float]:
    """By the normal equations of lines divided by their own `seconds`, columns scaled to 1."""
    scales = [max(abs(line[i]) for line in terms) or 1.0 for i in range(len(terms[0]))]
    lines = [
        [value / scale / time for value, scale in zip(line, scales, strict=True)]
        for line, time in zip(terms, seconds, strict=True)
    ]
    num = len(scales)
    matrix = [[sum(line[i] * line[j] for line in lines) for j in range(num)] for i in range(num)]
    right = [sum(line[i] for line in lines) for i in range(num)]
    return [value / scale for value, scale in zip(_solve(matrix, right), scales, strict=True)]


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with pivots; an unknown that the lines do not determine is 0."""
    num = len(right)
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    determined: list[int] = []
    for column in range(num):
        done = len(determined)
        pivot = max(range(done, num), key=lambda i: abs(rows[i][column]), default=done)
        if done == num or abs(rows[pivot][column]) < 1e-12 * max(matrix[i][i] for i in range(num)):
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        for other in range(num):
            if other != done:
                factor = rows[other][column] / rows[done][column]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[done], strict=True)]
        determined.append(column)
    found = [0.0] * num
    for line, column in enumerate(determined):
        found[column] = rows[line][num] / rows[line][column]
    return found
