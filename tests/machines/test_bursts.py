"""How unevenly requests come: by chance, in bursts, and with a step between."""

from random import Random

from scheduler.bursts import Bursts


def came(*rates: float, shape: float = 1.0) -> Bursts:
    """A hundred requests at each rate, with gamma-distributed gaps; `shape` 1 is Poisson, less comes in bursts."""
    bursts, chance, now = Bursts(), Random(3), 0.0
    for rate in rates:
        for _ in range(100):
            now += chance.gammavariate(shape, 1.0 / (shape * rate))
            bursts.note(now)
    return bursts


def test_by_chance_the_variance_is_the_mean_and_in_bursts_it_is_more() -> None:
    assert came(10.0).dispersion() < 1.3
    assert 4.0 < came(10.0, shape=0.1).dispersion() < 16.0


def test_a_step_is_hardly_a_burst() -> None:
    assert came(10.0, 40.0).dispersion() < 3.0


def test_evenly_is_as_by_chance_and_too_little_says_nothing() -> None:
    assert came(10.0, shape=100.0).dispersion() == 1.0
    bursts = Bursts()
    assert bursts.dispersion() == 1.0
    for _ in range(3):
        bursts.note(0.5)
        assert bursts.dispersion() == 1.0
