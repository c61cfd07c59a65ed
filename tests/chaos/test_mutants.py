"""The machines with one rule broken: chaos must notice each, and must not without it."""

import pytest

from cluster.simulated.chaos import run_batch
from tests.chaos import mutants
from tests.chaos.move_mutants import MOVE_MUTANTS
from tests.chaos.mutant import Mutant
from tests.chaos.row_mutants import ROW_MUTANTS

pytestmark = pytest.mark.slow

MUTANTS = mutants.MUTANTS + ROW_MUTANTS + MOVE_MUTANTS

SEARCHED = 60
"""Seeds from 0 on that are tried where those on record do not notice: other seeds may, after a change."""


def is_noticed(seeds: tuple[int, ...] | range) -> bool:
    """Whether a seed fails; the first that does is enough."""
    return any(run_batch(seed, 1).failures for seed in seeds)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_chaos_notices_a_broken_rule(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.break_rule(monkeypatch)
    assert is_noticed(mutant.seeds) or is_noticed(range(SEARCHED))


def test_without_a_broken_rule_the_same_seeds_hold() -> None:
    seeds = sorted({seed for mutant in MUTANTS for seed in mutant.seeds})
    assert [seed for seed in seeds if run_batch(seed, 1).failures] == []


def test_there_are_at_least_a_dozen_mutants_and_each_has_its_own_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12
