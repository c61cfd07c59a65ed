"""The cells that a batch of seeds must hit: every row of the life cycles that an event leads to, and deaths of nodes."""

from collections.abc import Mapping

from cluster.simulated.lives import cell
from cluster.simulated.scenario import Fault
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


def missing_cells(hits: Mapping[str, int]) -> list[str]:
    """Required cells that were never hit; `hits` are keyed `state × event`."""
    return [name for state, event in required_cells() if not hits.get(name := f"{state} × {event}")]
