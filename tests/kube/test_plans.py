"""What a round does next, from what is there: events in, a plan out."""

from dataclasses import replace

import pytest

from cluster.kube.fleet import (
    ClusterView,
    FleetNode,
    GroupChange,
    Phase,
    Plan,
    Planner,
    Pod,
    Wish,
    WorkerGroup,
    without_old_pods,
)
from core.ids import NodeId

P, D = WorkerGroup("prefill", 2, 1, 6), WorkerGroup("decode", 2, 1, 6)


def serving(group: str, number: int, load: int = 0) -> FleetNode:
    """A node in its pod."""
    name = f"{group}-{number}"
    return FleetNode(name, group, Phase.SERVING, NodeId(f"{name}@1"), ip(group, number), load)


def ip(group: str, number: int) -> str:
    return f"10.{len(group)}.0.{number}"


def pod(group: str, number: int) -> Pod:
    return Pod(f"pod-{group}-{number}", group, ip(group, number))


def calm() -> tuple[ClusterView, list[FleetNode]]:
    """Two nodes of each group, all in their pods."""
    pods = tuple(pod(group, number) for group in ("prefill", "decode") for number in (0, 1))
    nodes = [serving(group, number) for group in ("prefill", "decode") for number in (0, 1)]
    return ClusterView((P, D), pods), nodes


def plan(view: ClusterView, nodes: list[FleetNode], wish: Wish | None, blindly: bool = False) -> Plan:
    return Planner(4, lambda group: blindly).plan(view, nodes, wish)


def becomes(nodes: list[FleetNode], slot: str, phase: Phase) -> list[FleetNode]:
    return [replace(node, phase=phase) if node.slot == slot else node for node in nodes]


@pytest.mark.parametrize("wish", [None, Wish(4), Wish(4, (NodeId("decode-0@1"),))])
def test_nothing_is_done_where_all_is_as_it_should_be(wish: Wish | None) -> None:
    assert plan(*calm(), wish) == Plan()


def test_more_nodes_are_replicas_first_and_slots_once_the_replicas_are_there() -> None:
    view, nodes = calm()
    first = plan(view, nodes, Wish(6))
    assert first == Plan(write=(GroupChange("prefill", 3, ()), GroupChange("decode", 3, ())))
    grown = replace(view, groups=(replace(P, replicas=3), replace(D, replicas=3)))
    assert plan(grown, nodes, Wish(6)) == Plan(add=("prefill", "decode"))


def test_growth_keeps_the_shares_that_the_smallest_sizes_name() -> None:
    view, nodes = calm()
    wide = replace(view, groups=(replace(P, replicas=2, min_replicas=2), replace(D, replicas=2, min_replicas=1)))
    assert plan(wide, nodes, Wish(6)).write == (GroupChange("prefill", 4, ()),)


def test_no_group_grows_past_its_largest_size() -> None:
    view, nodes = calm()
    narrow = replace(view, groups=(replace(P, max_replicas=2), replace(D, max_replicas=3)))
    assert plan(narrow, nodes, Wish(40)).write == (GroupChange("decode", 3, ()),)


def test_fewer_nodes_are_drains_first_of_those_that_the_wish_names() -> None:
    view, nodes = calm()
    assert plan(view, nodes, Wish(3, (NodeId("prefill-1@1"),))) == Plan(drain=("prefill-1",))


def test_of_unnamed_nodes_the_least_loaded_goes_and_no_group_falls_below_its_smallest_size() -> None:
    view, nodes = calm()
    busy = [replace(node, load=9) if node.slot != "decode-1" else node for node in nodes]
    assert plan(view, busy, Wish(3)).drain == ("decode-1",)
    assert len(plan(view, busy, Wish(0)).drain) == 2, "one of each group stays"


def test_a_pod_is_named_and_its_replica_goes_only_when_its_node_is_empty() -> None:
    view, nodes = calm()
    draining = becomes(nodes, "decode-1", Phase.DRAINING)
    assert plan(view, draining, Wish(3)) == Plan()
    empty = becomes(nodes, "decode-1", Phase.EMPTY)
    assert plan(view, empty, Wish(3)) == Plan(
        write=(GroupChange("decode", 1, ("pod-decode-1",)),), remove=("decode-1",)
    )


def test_a_drain_is_called_off_when_more_are_wanted_again_before_pods_are_asked_for() -> None:
    view, nodes = calm()
    for phase in (Phase.DRAINING, Phase.EMPTY):
        assert plan(view, becomes(nodes, "decode-1", phase), Wish(4)) == Plan(keep=("decode-1",))


def test_after_a_lost_answer_the_empty_node_whose_pod_was_named_is_let_go() -> None:
    view, nodes = calm()
    written = replace(view, groups=(P, replace(D, replicas=1, to_delete=("pod-decode-1",))))
    empty = becomes(nodes, "decode-1", Phase.EMPTY)
    assert plan(written, empty, Wish(3)) == Plan(remove=("decode-1",))
    gone = replace(written, pods=tuple(each for each in view.pods if each.name != "pod-decode-1"))
    assert plan(gone, empty, Wish(3)) == Plan(remove=("decode-1",))


def test_a_node_whose_pod_was_named_is_not_kept_however_many_are_wanted() -> None:
    view, nodes = calm()
    written = replace(view, groups=(P, replace(D, replicas=1, to_delete=("pod-decode-1",))))
    done = plan(written, becomes(nodes, "decode-1", Phase.EMPTY), Wish(4))
    assert done.keep == () and done.remove == ("decode-1",)


def test_replicas_that_somebody_lowered_by_hand_are_raised_again() -> None:
    view, nodes = calm()
    lowered = replace(view, groups=(P, replace(D, replicas=1)))
    assert plan(lowered, nodes, Wish(4)) == Plan(write=(GroupChange("decode", 2, ()),))


def test_a_restarted_gateway_makes_a_slot_for_every_replica() -> None:
    view, _ = calm()
    assert plan(view, [], None).add == ("prefill", "prefill", "decode", "decode")


def starting() -> tuple[ClusterView, list[FleetNode]]:
    """As calm, and a third decode slot whose pod has no node yet."""
    view, nodes = calm()
    view = replace(view, groups=(P, replace(D, replicas=3)), pods=(*view.pods, pod("decode", 2)))
    return view, [*nodes, FleetNode("decode-2", "decode", Phase.STARTING)]


def test_nodes_that_only_start_go_first_and_take_a_pod_without_a_node_along() -> None:
    view, nodes = starting()
    assert plan(view, nodes, Wish(4)) == Plan(drain=("decode-2",))
    given_up = becomes(nodes, "decode-2", Phase.EMPTY)
    assert plan(view, given_up, Wish(4)).write == (GroupChange("decode", 2, ("pod-decode-2",)),)


def test_a_pod_in_which_another_node_may_be_starting_is_not_named() -> None:
    view, nodes = starting()
    other = FleetNode("decode-3", "decode", Phase.STARTING)
    view = replace(view, groups=(P, replace(D, replicas=4)))
    given_up = [*becomes(nodes, "decode-2", Phase.EMPTY), other]
    assert plan(view, given_up, Wish(5)) == Plan()
    pending = replace(view, pods=(*view.pods, Pod("pod-decode-9", "decode")))
    assert plan(pending, given_up, Wish(5)).write == (GroupChange("decode", 3, ("pod-decode-9",)),)


def test_without_a_pod_to_name_a_replica_goes_only_where_pods_do_not_come_at_all() -> None:
    view, nodes = starting()
    view = replace(view, pods=view.pods[:-1])
    given_up = becomes(nodes, "decode-2", Phase.EMPTY)
    assert plan(view, given_up, Wish(4)) == Plan()
    assert plan(view, given_up, Wish(4), blindly=True).write == (GroupChange("decode", 2, ()),)


def test_never_more_than_so_many_nodes_drain_at_once() -> None:
    pods = tuple(pod("decode", number) for number in range(10))
    nodes = [serving("decode", number) for number in range(10)]
    view = ClusterView((replace(D, replicas=10, max_replicas=10),), pods)
    assert len(plan(view, nodes, Wish(1)).drain) == 4
    going = [replace(node, phase=Phase.DRAINING) if i < 3 else node for i, node in enumerate(nodes)]
    assert len(plan(view, going, Wish(1)).drain) == 1


def test_names_of_pods_that_are_gone_are_not_written_again() -> None:
    view, nodes = calm()
    old = replace(view, groups=(P, replace(D, to_delete=("pod-of-last-week",))))
    assert plan(old, becomes(nodes, "decode-1", Phase.EMPTY), Wish(3)).write[0].to_delete == ("pod-decode-1",)


def test_slots_of_groups_that_the_object_lacks_are_left_alone() -> None:
    view, nodes = calm()
    assert plan(view, [*nodes, serving("aggregated", 0)], Wish(4)) == Plan()


def old(view: ClusterView, *names: str) -> ClusterView:
    """Groups whose pods are made of something new, all pods but these being of it."""
    groups = tuple(replace(group, template="new") for group in view.groups)
    pods = tuple(replace(each, template="old" if each.name in names else "new") for each in view.pods)
    return replace(view, groups=groups, pods=pods)


def test_a_pod_of_an_older_template_is_drained_named_and_keeps_its_replica_and_its_slot() -> None:
    view, nodes = calm()
    view = old(view, "pod-decode-1")
    assert plan(view, nodes, Wish(4)) == plan(view, nodes, None) == Plan(drain=("decode-1",))
    draining = becomes(nodes, "decode-1", Phase.DRAINING)
    assert plan(view, draining, Wish(4)) == plan(view, draining, None) == Plan()
    empty = becomes(nodes, "decode-1", Phase.EMPTY)
    named = Plan(write=(GroupChange("decode", 2, ("pod-decode-1",)),), renew=("decode-1",))
    assert plan(view, empty, Wish(4)) == plan(view, empty, None) == named
    written = replace(view, groups=(view.groups[0], replace(view.groups[1], to_delete=("pod-decode-1",))))
    assert plan(written, empty, Wish(4)) == Plan(renew=("decode-1",)), "the answer to the write was lost"
    gone = replace(written, pods=tuple(each for each in written.pods if each.name != "pod-decode-1"))
    assert plan(gone, empty, Wish(4)) == Plan(renew=("decode-1",)), "and the pod is gone meanwhile"


def test_pods_are_renewed_one_at_a_time_the_least_loaded_first_and_not_while_anything_else_moves() -> None:
    view, nodes = calm()
    view = old(view, *(each.name for each in view.pods))
    busy = [replace(node, load=0 if node.slot == "prefill-1" else 3) for node in nodes]
    assert plan(view, busy, Wish(4)).drain == ("prefill-1",)
    for phase in (Phase.STARTING, Phase.DRAINING):
        assert plan(view, becomes(nodes, "decode-0", phase), Wish(4)).drain == ()
    assert plan(view, nodes, Wish(5)).drain == ()
    assert len(plan(view, nodes, Wish(3)).drain) == 1, "one goes for good; the others are renewed after that"


def test_the_only_node_there_is_is_not_taken_away_to_renew_its_pod() -> None:
    view = old(ClusterView((replace(D, replicas=1),), (pod("decode", 0),)), "pod-decode-0")
    assert plan(view, [serving("decode", 0)], Wish(1)) == Plan()


def test_a_node_that_is_drained_for_a_new_pod_goes_for_good_where_fewer_are_wanted_meanwhile() -> None:
    view, nodes = calm()
    view = old(view, "pod-decode-1")
    empty = becomes(nodes, "decode-1", Phase.EMPTY)
    assert plan(view, empty, Wish(3)) == Plan(
        write=(GroupChange("decode", 1, ("pod-decode-1",)),), remove=("decode-1",)
    )


def test_more_nodes_are_asked_for_while_one_is_renewed_and_its_drain_is_not_called_off() -> None:
    view, nodes = calm()
    view = old(view, "pod-decode-1")
    assert plan(view, becomes(nodes, "decode-1", Phase.DRAINING), Wish(5)) == Plan(
        write=(GroupChange("prefill", 3, ()),)
    )


def test_without_a_digest_on_either_side_no_pod_is_old() -> None:
    view, nodes = calm()
    view = old(view, "pod-decode-1")
    bare = replace(view, pods=tuple(replace(each, template="") for each in view.pods))
    assert plan(bare, nodes, Wish(4)) == Plan() and without_old_pods(bare) == ()
    unsaid = replace(view, groups=(P, D))
    assert plan(unsaid, nodes, Wish(4)) == Plan() and without_old_pods(unsaid) == ()


def test_before_there_are_nodes_all_old_pods_are_named_at_once_and_only_once() -> None:
    view, _ = calm()
    view = old(view, "pod-decode-1", "pod-prefill-0")
    assert view.num_old_pods == 2
    named = without_old_pods(view)
    assert named == (GroupChange("prefill", 2, ("pod-prefill-0",)), GroupChange("decode", 2, ("pod-decode-1",)))
    groups = tuple(replace(group, to_delete=change.to_delete) for group, change in zip(view.groups, named, strict=True))
    assert without_old_pods(replace(view, groups=groups)) == ()


def test_a_slot_that_waits_for_the_end_of_its_pod_is_taken_back_where_the_pod_is_not_named_any_more() -> None:
    view, nodes = calm()
    view = old(view, "pod-decode-1")
    waits = [replace(node, phase=Phase.STARTING, node=None) if node.slot == "decode-1" else node for node in nodes]
    named = replace(view, groups=(view.groups[0], replace(view.groups[1], to_delete=("pod-decode-1",))))
    assert plan(named, waits, Wish(4)) == Plan(), "KubeRay ends it"
    ending = replace(named, pods=tuple(each for each in view.pods if each.name != "pod-decode-1"))
    assert plan(ending, waits, Wish(4)) == Plan(), "it ends"
    assert plan(view, waits, Wish(4)) == Plan(keep=("decode-1",)), "somebody wrote over the names"
