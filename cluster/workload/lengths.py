"""Distributions of prompt and output lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import erfc, exp, inf, log, sqrt
from random import Random
from typing import Protocol

from core.errors import ConfigError

FORMS = "N | fixed:N | uniform:LOW:HIGH | lognormal:MEAN:CV[:MAX]"
_MAX_TOKENS = 10_000_000


class Lengths(Protocol):
    """A distribution of lengths, in tokens."""

    def draw(self, chance: Random) -> int:
        """One length, at least 1."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    tokens: int

    def draw(self, chance: Random) -> int:
        """The length."""
        return self.tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """All from `least` to `most` alike."""

    least: int
    most: int

    def draw(self, chance: Random) -> int:
        """One length."""
        return chance.randint(self.least, self.most)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Log-normal, cut at `most` by drawing again. `mean` is the mean of what is drawn, the cut included.

    `cv` is the coefficient of variation that the shape would have uncut. Raises ConfigError where the cut is so near
    that no log-normal of this shape has the mean.
    """

    mean: float
    cv: float
    most: int = _MAX_TOKENS

    def __post_init__(self) -> None:
        if not self.mean < self.most:
            raise ConfigError([f"lengths of mean {self.mean:g} cannot all be at most {self.most}"])

    @property
    def _sigma(self) -> float:
        return sqrt(log(1 + self.cv * self.cv))

    def draw(self, chance: Random) -> int:
        """One length."""
        mu = _mu_of(self.mean, self._sigma, float(self.most))
        while True:
            tokens = round(chance.lognormvariate(mu, self._sigma))
            if 1 <= tokens <= self.most:
                return tokens


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A measured distribution by some of its quantiles, straight in between: pairs of (share, tokens), from 0 to 1."""

    points: tuple[tuple[float, float], ...]

    def draw(self, chance: Random) -> int:
        """One length."""
        share = chance.random()
        for (low, least), (high, most) in pairwise(self.points):
            if share <= high:
                return max(1, round(least + (most - least) * (share - low) / (high - low)))
        raise AssertionError("quantiles end at a share of 1")


def lengths_of(text: str) -> Lengths:
    """The distribution that a word names (`FORMS`). Raises ConfigError."""
    kind, *numbers = text.split(":") if ":" in text else ("fixed", text)
    try:
        match kind, [float(number) for number in numbers]:
            case "fixed", [tokens] if _whole(tokens):
                return Fixed(int(tokens))
            case "uniform", [least, most] if _whole(least, most) and least <= most:
                return Uniform(int(least), int(most))
            case "lognormal", [mean, cv] if 1 <= mean < inf and 0 < cv < inf:
                return Lognormal(mean, cv)
            case "lognormal", [mean, cv, most] if 1 <= mean < inf and 0 < cv < inf and _whole(most):
                return Lognormal(mean, cv, int(most))
    except ValueError:
        pass
    raise ConfigError([f"lengths are {FORMS}, with numbers of at least 1, not {text!r}"])


def _whole(*numbers: float) -> bool:
    return all(1 <= number <= _MAX_TOKENS and number == int(number) for number in numbers)


def mean_of(points: Sequence[tuple[float, float]]) -> float:
    """The mean of `Quantiles`, in tokens."""
    return sum((high - low) * (a + b) / 2 for (low, a), (high, b) in pairwise(points))


_MUS: dict[tuple[float, float, float], float] = {}


def _mu_of(mean: float, sigma: float, most: float) -> float:
    """The scale whose cut distribution has this mean, by bisection; kept, for it is asked with every draw."""
    key = (mean, sigma, most)
    if key not in _MUS:
        low, high = log(mean) - sigma * sigma - 1, log(mean) + 20 * sigma
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if _cut_mean(middle, sigma, most) < mean else (low, middle)
        _MUS[key] = low
    return _MUS[key]


def _cut_mean(mu: float, sigma: float, most: float) -> float:
    z = (log(most) - mu) / sigma
    below = _normal(z)
    return most if below < 1e-300 else min(most, exp(mu + sigma * sigma / 2) * _normal(z - sigma) / below)


def _normal(z: float) -> float:
    return erfc(-z / sqrt(2)) / 2
