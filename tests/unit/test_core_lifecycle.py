"""The life cycle tables are total, connected, and let everything go."""

import typing

import pytest

from core import events
from core.lifecycle import (
    DECODE,
    DROP_AND_COUNT,
    PREFILL,
    REQUEST,
    TABLES,
    BlockVerb,
    DecodeState,
    Inner,
    LeaseState,
    PrefillState,
    RequestState,
    State,
    Table,
    check_move,
    moves,
    row,
)

EVENTS = typing.get_args(events.Event)
TRIGGERS = (*EVENTS, *Inner, *BlockVerb)

each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)


@each_table
def test_every_pair_of_state_and_event_has_a_row(table: Table) -> None:
    for state in table.states:
        for trigger in TRIGGERS:
            found = row(table, state, trigger)
            assert found.next <= set(table.states)
            assert found.next, f"{state} on {trigger} leads nowhere"
            assert found.action


@each_table
def test_what_is_not_listed_is_dropped_and_changes_nothing(table: Table) -> None:
    for state in table.states:
        for trigger in TRIGGERS:
            if (state, trigger) not in table.rows:
                assert row(table, state, trigger).next == {state}
                assert row(table, state, trigger).action == DROP_AND_COUNT


@each_table
def test_every_row_names_an_event_a_verb_or_a_move_of_the_machine(table: Table) -> None:
    for _, trigger in table.rows:
        assert trigger in TRIGGERS


def reached_from(table: Table, start: State) -> set[State]:
    reached, fresh = {start}, {start}
    while fresh:
        fresh = {after for (state, _), found in table.rows.items() if state in fresh for after in found.next} - reached
        reached |= fresh
    return reached


@each_table
def test_every_state_is_reached_from_the_start(table: Table) -> None:
    assert reached_from(table, table.start) == set(table.states)


@each_table
def test_every_state_has_a_way_to_where_nothing_is_held(table: Table) -> None:
    for state in table.states:
        assert reached_from(table, state) & table.ends, f"{state} never ends"


@each_table
def test_an_end_of_a_lease_is_final(table: Table) -> None:
    for state in table.ends:
        if isinstance(state, LeaseState):
            assert reached_from(table, state) == {state}


@pytest.mark.parametrize("table", [PREFILL, DECODE], ids=lambda table: table.title)
def test_dropping_is_handled_in_every_state_and_only_a_step_a_fetch_or_a_lease_delays_its_end(table: Table) -> None:
    for state in table.states:
        found = row(table, state, events.Dropped)
        assert found.action != DROP_AND_COUNT, f"`Dropped` is not handled at {state}"
        assert found.next <= {state.__class__("ending"), state.__class__("gone")}


def test_cancelling_ends_a_request_in_every_live_state_at_once() -> None:
    for state in set(RequestState) - {RequestState.ENDED}:
        assert row(REQUEST, state, events.RequestCancelled).next == {RequestState.ENDED}


WAITS = [
    (REQUEST, RequestState.WAITING),
    (REQUEST, RequestState.ROUTED),
    (REQUEST, RequestState.RESUMING),
    (PREFILL, PrefillState.OFFERED),
    (DECODE, DecodeState.WAITING),
    (DECODE, DecodeState.CLAIMING),
    (DECODE, DecodeState.FETCHING),
]


@pytest.mark.parametrize(("table", "state"), WAITS)
def test_every_wait_for_another_machine_ends_by_time_at_the_latest(table: Table, state: State) -> None:
    assert row(table, state, events.Tick).next - {state}


def test_a_claimed_lease_never_ends_by_time() -> None:
    assert PrefillState.GONE not in moves(PREFILL, PrefillState.CLAIMED, events.Tick)


def test_unknown_kv_is_never_decoded_on() -> None:
    for event in (events.KVFailed, events.PeerLost, events.Tick):
        assert DecodeState.DECODING not in moves(DECODE, DecodeState.FETCHING, event)


def test_a_move_that_a_machine_makes_of_its_own_accord_may_follow_any_event() -> None:
    check_move(PREFILL, PrefillState.GONE, events.Submitted, PrefillState.PREFILLING)
    check_move(PREFILL, PrefillState.QUEUED, None, PrefillState.PREFILLING)
    check_move(PREFILL, PrefillState.QUEUED, None, PrefillState.QUEUED)


def test_an_event_itself_is_as_good_as_its_class() -> None:
    check_move(PREFILL, PrefillState.OFFERED, events.Tick(), PrefillState.GONE)


def test_a_move_that_no_row_allows_is_an_error_that_names_what_is() -> None:
    with pytest.raises(AssertionError, match=r"claimed -> gone on .*Tick.*allowed: .*claimed"):
        check_move(PREFILL, PrefillState.CLAIMED, events.Tick(), PrefillState.GONE)
