"""Runs in which nodes die often, so that the end of an answer outlives its last tokens."""

from dataclasses import replace

from cluster.simulated import scenario
from cluster.simulated.scenario import Fault, Scenario


def draw(seed: int) -> Scenario:
    """What chaos draws, but for the faults: half of what a dead node has sent is lost, and messages are late."""
    faults = frozenset({Fault.KILL, Fault.DELAY, Fault.REORDER})
    return replace(scenario.draw(seed), faults=faults, fault_rate=10.0)
