"""When requests come: a rate that may change over time, and how regular or bursty they come at it."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt
from random import Random

from core.errors import ConfigError

FORMS = "poisson | even | gamma:CV | square:HIGH_OVER_LOW:PERIOD_S | ramp:END_OVER_START"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time in which the rate goes straight from one value to another; rates relative to the mean."""

    share: float
    start: float
    end: float

    @property
    def expected(self) -> float:
        """Arrivals in it, as a share of those of the whole pattern at a mean of 1."""
        return self.share * (self.start + self.end) / 2

    def inverse(self, count: float) -> float:
        """After which share of the pattern `count` (as `expected`) have come."""
        slope = (self.end - self.start) / self.share
        if abs(slope) < 1e-12:
            return count / self.start
        return (sqrt(max(0.0, self.start * self.start + 2 * slope * count)) - self.start) / slope


_STEADY = (Segment(1.0, 1.0, 1.0),)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A pattern of rates with a mean of 1, as long as `period_s` and repeated; None: once over the whole run.

    `cv` is the coefficient of variation of the gaps at a steady rate: 0 even, 1 a Poisson process, above 1 bursty (the
    gaps are gamma distributed).
    """

    cv: float = 1.0
    pattern: tuple[Segment, ...] = _STEADY
    period_s: float | None = None

    def times(self, rate_rps: float, run_s: float, chance: Random) -> Iterator[float]:
        """Moments in seconds, without end; `run_s` is how long the pattern is where it has no period of its own."""
        period_s = self.period_s or run_s
        per_period, count = rate_rps * period_s, 0.0
        while True:
            count += self._gap(chance)
            periods, inside = divmod(count / per_period, 1.0)
            yield (periods + self._share(inside)) * period_s

    def _share(self, count: float) -> float:
        """After which share of the pattern this share of its arrivals has come."""
        passed = 0.0
        for segment in self.pattern:
            if count < segment.expected:
                return passed + segment.inverse(count)
            count -= segment.expected
            passed += segment.share
        return 1.0

    def _gap(self, chance: Random) -> float:
        if self.cv == 0:
            return 1.0
        if self.cv == 1:
            return chance.expovariate(1.0)
        square = self.cv * self.cv
        return chance.gammavariate(1 / square, square)


def arrivals_of(text: str) -> Arrivals:
    """The process that a word names (`FORMS`). Raises ConfigError."""
    kind, *numbers = text.split(":")
    try:
        match kind, [float(number) for number in numbers]:
            case "poisson", []:
                return Arrivals()
            case "even", []:
                return Arrivals(cv=0)
            case "gamma", [cv] if 0 < cv < inf:
                return Arrivals(cv=cv)
            case "square", [ratio, period_s] if 0 < ratio < inf and 0 < period_s < inf:
                low = 2 / (1 + ratio)
                return Arrivals(pattern=(Segment(0.5, low, low), Segment(0.5, 2 - low, 2 - low)), period_s=period_s)
            case "ramp", [ratio] if 0 < ratio < inf:
                start = 2 / (1 + ratio)
                return Arrivals(pattern=(Segment(1.0, start, 2 - start),))
    except ValueError:
        pass
    raise ConfigError([f"arrivals are {FORMS}, with numbers above 0, not {text!r}"])


def steps(rates: tuple[float, ...]) -> tuple[Segment, ...]:
    """Stretches of equal length with these rates, in whatever unit: only their proportion counts."""
    mean = sum(rates) / len(rates)
    return tuple(Segment(1 / len(rates), rate / mean, rate / mean) for rate in rates)
