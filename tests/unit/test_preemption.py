"""Who gives way when blocks run out, and what bringing a row back costs."""

from array import array

import pytest

from cluster.simulated.scenario import make_request
from core.events import AttemptEnd
from core.ids import AttemptId, GatewayId
from core.lifecycle import DecodeState
from core.stats import Timing
from decode_worker.batching import DecodeRow
from decode_worker.config import PreemptionCosts
from decode_worker.preemption import PROTECTED_AFTER, next_victim


def row(name: str, *, priority: int = 0, num_preemptions: int = 0, num_saves: int = 0) -> DecodeRow:
    """A running row; rows are named oldest first."""
    request = make_request(name, [1, 2, 3], 8, priority=priority)
    gateway = GatewayId("g")
    found = DecodeRow(
        AttemptId(f"{name}#0"), request, gateway, (0,), 3, array("I", [7]), Timing(), 0.0, num_preemptions
    )
    found.num_saves = num_saves
    return found


def victim(*rows: DecodeRow) -> str:
    """The name of who gives way."""
    found = next_victim(rows)
    assert found is not None
    return found.request.id


def test_the_youngest_of_the_lowest_class_gives_way() -> None:
    assert victim(row("a"), row("b"), row("c", priority=1)) == "b"


@pytest.mark.parametrize("count", ["num_preemptions", "num_saves"])
def test_a_row_that_gave_way_often_does_so_only_for_rows_like_itself(count: str) -> None:
    often = row("c", **{count: PROTECTED_AFTER})
    assert victim(row("a", priority=1), row("b", priority=1), often) == "b"
    assert victim(row("a", num_preemptions=PROTECTED_AFTER), often) == "c"


def test_a_row_that_came_back_keeps_its_age() -> None:
    assert victim(row("a", num_saves=1), row("b")) == "b"


def test_nobody_gives_way_twice_at_once() -> None:
    out, over = row("b"), row("c")
    out.state, over.end = DecodeState.SAVED, AttemptEnd.DROPPED
    assert victim(row("a"), out, over) == "a"
    assert next_victim([out, over]) is None


def test_a_long_context_costs_more_than_its_tokens_and_a_copy_goes_both_ways() -> None:
    costs = PreemptionCosts(1.0, 0.1, 0.01, copy_s_per_block=0.5)
    assert costs.recompute_s(0) == 1.0
    assert costs.recompute_s(3) == pytest.approx(1.0 + 0.3 + 0.03)
    assert costs.save_s(4) == 4.0
