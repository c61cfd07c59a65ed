"""Fleets whose answer is known: queues, decode times, and links shared."""

from itertools import pairwise
from random import Random

import pytest

from cluster.simulated.fleet import run_fleet
from cluster.simulated.loop import Loop
from cluster.simulated.shared_links import FleetLinks, SharedLinks
from cluster.workload.items import WorkItem, Workload
from core.costs import NodeCosts
from core.ids import NodeId
from tests.simulated.fleets import AT_ONCE, LAX, at_once, fleet, node, poisson

SERVICE_S = 0.05
PROMPT = 1000
ONE_BY_ONE = NodeCosts(SERVICE_S, 0.001, 0.0, 0.0, 0.0, 0.0)


def waits(rate_rps: float, number: int) -> tuple[list[float], list[float]]:
    """Waits for a prefill node that takes one prompt per step, and the gaps between arrivals."""
    queue = fleet(node("p", "prefill", costs=ONE_BY_ONE, budget=PROMPT), node("d", "decode"), links=AT_ONCE)
    workload = poisson(rate_rps, number, PROMPT, 1)
    run = run_fleet(queue, workload, LAX)
    found = [record.ttft_s - SERVICE_S for record in run.records if record.ttft_s is not None]
    ats = [item.at_s for item in workload.items]
    return found, [later - earlier for earlier, later in pairwise(ats)]


def test_a_prefill_queue_is_that_of_lindley_request_by_request() -> None:
    found, gaps = waits(14.0, 300)
    wait_s, expected = 0.0, [0.0]
    for gap_s in gaps:
        wait_s = max(0.0, wait_s + SERVICE_S - gap_s)
        expected.append(wait_s)
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_mean_wait_is_that_of_pollaczek_and_khinchine() -> None:
    rho = 0.5
    found, _ = waits(rho / SERVICE_S, 4000)
    assert sum(found) / len(found) == pytest.approx(rho * SERVICE_S / (2 * (1 - rho)), rel=0.08)


@pytest.mark.parametrize("num_rows", [1, 4])
def test_rows_that_decode_together_take_what_the_closed_form_says(num_rows: int) -> None:
    costs, prompt, output = NodeCosts(0.01, 0.004, 1e-6, 0.0, 2e-4, 1e-6), 500, 101
    ahead = WorkItem(0.0, 100, 1)
    together = tuple(WorkItem(0.001, prompt, output) for _ in range(num_rows))  # while the first one is computed
    run = run_fleet(fleet(node("m", "mixed", costs=costs)), Workload("together", (ahead, *together)), LAX)
    records = run.records[1:]
    context = prompt + (output - 2) / 2
    expected = 0.004 + num_rows * (2e-4 + 1e-6 * context)
    assert [record.tpot_s for record in records] == pytest.approx([expected] * num_rows)
    assert [sum(record.gaps.values()) for record in records] == [output - 1] * num_rows


def test_a_handoff_takes_its_bytes_over_the_bandwidth() -> None:
    links = FleetLinks(bytes_per_s=1e9, latency_s=0.002, message_s=0.0)
    whole = fleet(node("p", "prefill"), node("d", "decode"), links=links)
    (record,) = run_fleet(whole, at_once([(1000, 5)]), LAX).records
    assert record.timing is not None
    num_bytes = 16 * whole.kv.bytes_per_block
    assert record.timing.reserve_s + record.timing.handoff_s == pytest.approx(0.002 + num_bytes / 1e9)


class Ends:
    """When flows end, and whether they arrived."""

    def __init__(self, bytes_per_s: float, latency_s: float = 0.0) -> None:
        self.loop = Loop(Random(0))
        self.links = SharedLinks(self.loop, FleetLinks(bytes_per_s, latency_s))
        self.found: dict[str, tuple[bool, float]] = {}

    def begin(self, source: str, target: str, num_bytes: float) -> None:
        """A flow, called by its two ends."""

        def end(is_there: bool) -> None:
            self.found[source + target] = (is_there, round(self.loop.now, 9))

        self.links.begin(NodeId(source), NodeId(target), num_bytes, end)


def test_flows_share_a_card_equally_and_speed_up_when_one_ends() -> None:
    ends = Ends(100.0)
    ends.begin("a", "b", 100.0)
    ends.begin("a", "c", 300.0)
    ends.loop.run(100.0)
    assert ends.found == {"ab": (True, 2.0), "ac": (True, 4.0)}
    assert ends.links.peak_flows == 2 and ends.links.num_flows == 0


def test_a_flow_is_as_fast_as_its_slower_end_and_other_cards_are_not_touched() -> None:
    ends = Ends(100.0, latency_s=1.0)
    for source, target in ("ab", "cb", "de"):
        ends.begin(source, target, 100.0)
    ends.loop.run(100.0)
    assert ends.found == {"ab": (True, 3.0), "cb": (True, 3.0), "de": (True, 2.0)}


def test_flows_of_a_node_that_is_gone_end_without_arriving() -> None:
    ends = Ends(100.0)
    ends.begin("a", "b", 1000.0)
    ends.loop.run(1.0)
    ends.links.cut(NodeId("a"))
    ends.loop.run(100.0)
    assert ends.found == {"ab": (False, 1.0)} and ends.links.num_flows == 0
