"""Chaos by seed: small clusters with faults, checked to the last token and the last block."""

import os
import subprocess
import sys

import pytest

from cluster.simulated.chaos import run_batch, run_seed

NUM_QUICK, NUM_SLOW = 200, 1000


def test_two_hundred_seeds_hold_and_every_fault_meets_every_state() -> None:
    tally = run_batch(0, NUM_QUICK)
    assert tally.failures == {}
    assert tally.num_seeds == NUM_QUICK
    assert tally.blind_spots() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_more_seeds_hold() -> None:
    """By the command, which uses both cores and fails for a violation or a cell that was never hit."""
    command = [sys.executable, "-m", "cluster.simulated.chaos", "--seeds", str(NUM_SLOW), "--start", str(NUM_QUICK)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", [3, 58])
def test_a_seed_gives_the_same_run_again_also_in_another_process(seed: int) -> None:
    here = run_seed(seed)
    assert run_seed(seed) == here
    script = f"from cluster.simulated.chaos import run_seed; print(run_seed({seed}).trace_hash)"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        elsewhere = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert elsewhere.stdout.strip() == here.trace_hash


def test_other_seeds_give_other_runs() -> None:
    assert len({run_seed(seed).trace_hash for seed in range(10)}) == 10
