"""What a batch of seeds must hit: every row of the life cycles that an event leads to, and deaths of nodes."""

from collections.abc import Mapping

from cluster.simulated.lives import cell
from cluster.simulated.scenario import Fault
from cluster.simulated.watch import Deed
from core.events import KVFailed, Tick
from core.lifecycle import DECODE, PREFILL, REQUEST, DecodeState, PrefillState, State, Table


def required_cells() -> list[tuple[str, str]]:
    """(state, event) of the tables, each way in which a fetch can fail, and each state in which a node can die."""
    cells = [
        cell(table, state, trigger.__name__)
        for table in (REQUEST, PREFILL, DECODE)
        for state, trigger in table.rows
        if isinstance(trigger, type) and trigger is not KVFailed and not (trigger is Tick and state in table.ends)
    ]
    cells += [cell(DECODE, state, f"KVFailed({end})") for state in _FAILING for end in ("kv_lost", "kv_corrupt")]
    for table, gone in _MORTAL:
        cells += [cell(table, state, Fault.KILL) for state in table.states if state is not gone]
    return cells


_FAILING = (DecodeState.FETCHING, DecodeState.ENDING)
_MORTAL: tuple[tuple[Table, State], ...] = ((PREFILL, PrefillState.GONE), (DECODE, DecodeState.GONE))


SEEDS_FOR_RARE = {
    "decode ending × ClaimAnswered": 10_000,
    "decode ending × MigrateAsked": 1_000,
    "prefill prefilling × Tick": 100_000,  # missed by 10,000; tests/machines/test_node.py has it
    "decode waiting × PeerLost": 5_000,
    "prefill ending × Claimed": 5_000,
    "decode ending × KVFailed(kv_corrupt)": 1_000,
    "decode ending × Sealed": 1_000,
    "decode leaving × StepFailed": 1_000,
    "decode fetching × ClaimAnswered": 1_000,
    "decode fetching × Tick": 1_000,
    "decode waiting × Tick": 1_000,
    "decode waiting × kill": 1_000,
    "prefill offered × Tick": 1_000,
    "request waiting × StreamEnded": 1_000,
}
"""How many seeds must have run before a rare cell is asked for: most of these need two faults at once, or a fault in a
state that lasts for one message. All others must be hit by 200."""


def missing_faults(faults: Mapping[str, int], num_seeds: int) -> list[str]:
    """Classes of faults that never happened in that many seeds, and deeds that nobody had to do."""
    return [fault for fault in (*Fault, *Deed) if not faults.get(fault) and num_seeds >= 200]


def missing_cells(hits: Mapping[str, int], num_seeds: int) -> list[str]:
    """Required cells that were never hit in that many seeds; `hits` are keyed `state × event`."""
    names = [f"{state} × {event}" for state, event in required_cells()]
    return [name for name in names if not hits.get(name) and num_seeds >= SEEDS_FOR_RARE.get(name, 200)]
