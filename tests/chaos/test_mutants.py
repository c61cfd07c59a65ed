"""The machines with one rule broken: chaos must notice each, and must not without it."""

from collections.abc import Callable, Iterable

import pytest

from cluster.simulated.chaos import run_batch
from cluster.simulated.scenario import Scenario
from tests.chaos import mutants, stale
from tests.chaos.move_mutants import MOVE_MUTANTS
from tests.chaos.mutant import Mutant
from tests.chaos.row_mutants import ROW_MUTANTS

pytestmark = pytest.mark.slow

MUTANTS = mutants.MUTANTS + ROW_MUTANTS + MOVE_MUTANTS

SEARCHED = 60
"""Seeds from 0 on that are tried where those on record do not notice: other seeds may, after a change."""


def is_noticed(seeds: Iterable[int], draw: Callable[[int], Scenario]) -> bool:
    """Whether a seed fails; the first that does is enough."""
    return any(run_batch(seed, 1, draw).failures for seed in seeds)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_chaos_notices_a_broken_rule(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.break_rule(monkeypatch)
    assert is_noticed(mutant.seeds, mutant.draw) or is_noticed(range(SEARCHED), mutant.draw)


def test_without_a_broken_rule_the_same_seeds_hold() -> None:
    runs = dict.fromkeys((mutant.draw, seed) for mutant in MUTANTS for seed in mutant.seeds)
    assert [(draw.__module__, seed) for draw, seed in runs if run_batch(seed, 1, draw).failures] == []


def test_slow_links_that_are_severed_lead_to_stale_reads() -> None:
    tallies = [run_batch(seed, 1, stale.draw) for seed in range(10)]
    assert [tally.failures for tally in tallies] == [{}] * 10
    assert sum(tally.faults["stale_read"] > 0 for tally in tallies) >= 3


def test_there_are_at_least_a_dozen_mutants_and_each_has_its_own_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12
