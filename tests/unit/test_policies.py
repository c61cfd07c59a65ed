"""Policies by name, and what sets the simple ones apart."""

import pytest

from core.errors import ConfigError
from core.ids import NodeId
from scheduler.demand import Demand, Refusal, Route
from scheduler.policies.build import DEFAULT_POLICY, POLICY_NAMES, policy_of
from scheduler.policies.prefix_aware import PrefixAware
from scheduler.policies.round_robin import RoundRobin
from scheduler.view import ClusterView
from tests.machines.seen import KEYS, demand_of, put_prompt, put_rows, request_of, view_of


def names(answer: Route | Refusal) -> tuple[str, str]:
    """The nodes of a route."""
    assert isinstance(answer, Route), answer
    return str(answer.prefill), str(answer.decode)


def test_every_name_makes_a_policy_and_others_are_refused_with_the_known_ones() -> None:
    assert DEFAULT_POLICY in POLICY_NAMES
    assert len({type(policy_of(name)) for name in POLICY_NAMES}) == len(POLICY_NAMES)
    with pytest.raises(ConfigError, match="least_loaded"):
        policy_of("best")


def test_round_robin_takes_turns_on_both_sides_and_skips_the_full() -> None:
    view = view_of("prefill", "prefill", "prefill", "decode", "decode")
    policy, demand = RoundRobin(), demand_of(request_of(100))
    found = [names(policy.route(demand, view, 0.0)) for _ in range(6)]
    assert [prefill for prefill, _ in found] == ["n0", "n1", "n2"] * 2
    assert [decode for _, decode in found] == ["n3", "n4"] * 3
    put_rows(view, 4, 64)
    assert {names(policy.route(demand, view, 0.0))[1] for _ in range(4)} == {"n3"}


def test_round_robin_keeps_what_a_node_can_do_alone() -> None:
    view, policy = view_of("mixed", "mixed"), RoundRobin()
    found = [names(policy.route(demand_of(request_of(100)), view, 0.0)) for _ in range(3)]
    assert found == [("n0", "n0"), ("n1", "n1"), ("n0", "n0")]


def test_prefix_aware_counts_only_tokens_that_a_node_does_not_hold() -> None:
    view, policy = view_of("prefill", "prefill", "decode"), PrefixAware()
    demand = demand_of(request_of(1024, keys=KEYS[:64]))
    view.prefixes.add(NodeId("n1"), demand.prefixes[:6])
    assert names(policy.route(demand, view, 0.0)) == ("n1", "n2")
    put_prompt(view, 1, 700)
    assert names(policy.route(demand, view, 0.0)) == ("n1", "n2"), "256 and 700 are fewer than 1,024"
    put_prompt(view, 1, 700)
    assert names(policy.route(demand, view, 0.0)) == ("n0", "n2")


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_nodes_that_failed_are_tried_last(name: str) -> None:
    policy = policy_of(name)

    def route(view: ClusterView, *avoid: str) -> tuple[str, str]:
        demand: Demand = demand_of(request_of(100), avoid=frozenset(map(NodeId, avoid)))
        return names(policy.route(demand, view, 0.0))

    view = view_of("prefill", "prefill", "decode", "decode")
    assert route(view, "n0", "n2") == ("n1", "n3")
    assert route(view, "n1", "n3") == ("n0", "n2")
    assert set(route(view, "n0", "n1", "n2")) <= {"n0", "n1", "n3"}
