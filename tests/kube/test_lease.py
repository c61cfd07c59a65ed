"""One writer at a time: who holds the Lease, and when it may be taken over."""

from dataclasses import dataclass, field

import pytest

from cluster.kube.cluster_api import KubeError, Trouble
from cluster.kube.lease import DURATION_S, LeaseHolder, LeaseState


@dataclass
class Leases:
    """One Lease, its server, and a clock."""

    now: float = 0.0
    state: LeaseState | None = None
    refuses: Trouble | None = None
    holders: list[str] = field(default_factory=list)

    def read_lease(self, name: str) -> LeaseState | None:
        return self.state

    def write_lease(self, name: str, holder: str, duration_s: float, before: LeaseState | None) -> None:
        if self.refuses is not None:
            raise KubeError(self.refuses, "refused")
        if (self.state and self.state.version) != (before and before.version):
            raise KubeError(Trouble.CONFLICT, "somebody was faster")
        version = str(int(self.state.version) + 1 if self.state else 1)
        self.state = LeaseState(holder, version, duration_s, 0)
        self.holders.append(holder)

    def holder(self, me: str) -> LeaseHolder:
        return LeaseHolder(self, "pen-scaler", me, lambda: self.now)


def test_the_first_takes_it_and_keeps_it_by_renewing() -> None:
    leases = Leases()
    one, two = leases.holder("one"), leases.holder("two")
    for _ in range(20):
        leases.now += 5.0
        assert one.holds() and not two.holds()
    assert set(leases.holders) == {"one"}


def test_it_is_taken_over_when_it_was_not_renewed_for_as_long_as_was_promised_by_our_own_clock() -> None:
    leases = Leases()
    one, two = leases.holder("one"), leases.holder("two")
    assert one.holds()
    leases.now = 1000.0
    assert not two.holds(), "seen for the first time: how old it is nobody knows"
    leases.now += DURATION_S - 0.1
    assert not two.holds()
    leases.now += 0.2
    assert two.holds()
    assert not one.holds()


def test_the_same_name_takes_its_own_lease_again_after_a_restart() -> None:
    leases = Leases()
    assert leases.holder("one").holds()
    assert leases.holder("one").holds()


def test_who_gives_it_up_leaves_it_to_the_next_one_at_once_and_nobody_gives_up_what_is_anothers() -> None:
    leases = Leases()
    one, two = leases.holder("one"), leases.holder("two")
    assert one.holds() and not two.holds()
    two.release()
    assert leases.state is not None and leases.state.holder == "one"
    one.release()
    assert leases.state.holder == "" and leases.state.duration_s >= 1.0
    assert two.holds() and not one.holds()
    leases.holder("three").release()
    assert leases.state.holder == "two"


def test_who_loses_the_race_does_not_lead_and_a_refusal_is_told() -> None:
    leases = Leases()
    leases.refuses = Trouble.CONFLICT
    assert not leases.holder("one").holds()
    leases.refuses = Trouble.FORBIDDEN
    with pytest.raises(KubeError) as refused:
        leases.holder("one").holds()
    assert refused.value.trouble is Trouble.FORBIDDEN
