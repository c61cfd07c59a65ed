"""The scaler against an API server that conflicts, refuses and hangs up, with requests running behind it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from cluster.kube.client import KubeClient
from cluster.kube.fleet import ClusterView, Phase, Wish
from cluster.kube.lease import LeaseHolder
from cluster.kube.settings import renew_old_pods
from cluster.kubernetes import FleetScaler
from core.goodput import Outcome
from tests.kube.kube_server import CLUSTER, NAME, NAMESPACE, KubeServer, PodKeeper, group, serving
from tests.kube.sim_fleet import MOST, SimFleet

kubernetes = pytest.importorskip("kubernetes", reason="the kubernetes client is not installed")

GROUPS = {"prefill": 2, "decode": 2}
FAULTS: dict[str, tuple[int | str, ...]] = {
    "GET": (403, 404, 500, 429, "before", "after"),
    "PUT": (409, 403, 500, 429, "before", "after"),
    "POST": (409, 403, 500, "before", "after"),
}


class Storm:
    """Draws faults until so many were drawn. Owns: the account of them."""

    def __init__(self, chance: Random, share: float, num_most: int) -> None:
        self.chance, self.share, self.num_most = chance, share, num_most
        self.drawn: Counter[str] = Counter()

    def __call__(self, method: str, path: str) -> int | str | None:
        if self.drawn.total() >= self.num_most or self.chance.random() >= self.share:
            return None
        fault = self.chance.choice(FAULTS[method])
        self.drawn[f"{method} {fault}"] += 1
        return fault


class Story:
    """Pods, nodes, a scaler that is restarted now and then, and wishes that change. Owns: all of it."""

    def __init__(self, kube: KubeServer, fleet: SimFleet, seed: int) -> None:
        self.kube, self.fleet, self.chance = kube, fleet, Random(seed)
        self.keeper = PodKeeper(kube, fleet, self.chance, start_s=8.0)
        self.loop = fleet.world.loop
        self.num_scalers = 0
        self.num_wishes = 0
        self.num_upgrades = 0
        self.fewest_serving = len(fleet.slots)
        self.wishes_end = False
        self.counters: Counter[str] = Counter()
        self.keeper.reconcile(0.0)
        self.loop.run(20.0)
        self.keeper.reconcile(20.0)
        self.start_scaler()
        self.loop.after(1.0, self.look)
        self.loop.after(2.0, self.round)
        self.loop.after(30.0, self.wish)
        self.loop.after(100.0, self.restart)
        self.loop.after(300.0, self.upgrade)

    def start_scaler(self) -> None:
        configuration = kubernetes.client.Configuration(host=self.kube.url)
        configuration.retries = False
        client = KubeClient(kubernetes.client.ApiClient(configuration), NAMESPACE, NAME, tuple(GROUPS))
        self.num_scalers += 1
        holder = LeaseHolder(client, "pen-scaler", f"scaler-{self.num_scalers}", lambda: self.loop.now)
        self.scaler = FleetScaler(client, holder, self.fleet)

    def look(self) -> None:
        self.keeper.reconcile(self.loop.now)
        serving = sum(node.phase is Phase.SERVING for node in self.fleet.nodes())
        self.fewest_serving = min(self.fewest_serving, serving)
        self.loop.after(self.chance.uniform(0.5, 3.0), self.look)

    def round(self) -> None:
        self.scaler.round(self.loop.now)
        self.loop.after(self.scaler.pause_s, self.round)

    def restart(self) -> None:
        self.counters.update(dict(self.scaler.counters.named()))
        self.scaler._api.api.close()  # type: ignore[attr-defined]
        self.start_scaler()
        self.loop.after(self.chance.uniform(60.0, 200.0), self.restart)

    def wish(self) -> None:
        if self.wishes_end:
            return
        number = self.chance.randint(2, 2 * MOST)
        nodes = [node.node for node in self.fleet.nodes() if node.node is not None]
        surplus = max(0, len(nodes) - number)
        self.fleet.asked = Wish(number, tuple(self.chance.sample(nodes, surplus)))
        self.num_wishes += 1
        self.loop.after(self.chance.uniform(15.0, 90.0), self.wish)

    def upgrade(self) -> None:
        if not self.wishes_end:
            self.num_upgrades += 1
            self.kube.upgrade(f"upgrade {self.num_upgrades}")
            self.loop.after(self.chance.uniform(150.0, 500.0), self.upgrade)

    def settle_at(self, number: int) -> None:
        """No faults and no new wishes: what was wished last has to come true."""
        self.kube.fault = lambda method, path: None
        self.wishes_end = True
        self.fleet.asked = Wish(number)
        self.loop.run(self.loop.now + 1200.0)

    def close(self) -> None:
        self.counters.update(dict(self.scaler.counters.named()))
        self.scaler._api.api.close()  # type: ignore[attr-defined]


@contextmanager
def told(seed: int, num_faults: int, num_requests: int) -> Iterator[tuple[Story, Storm]]:
    """A story from its beginning to the last request's end."""
    with serving(group("prefill", 2, 1, MOST), group("decode", 2, 1, MOST)) as kube:
        fleet = SimFleet(num_requests, 0.5, seed, GROUPS)
        story = Story(kube, fleet, seed)
        kube.fault = storm = Storm(Random(seed), 0.3, num_faults)
        fleet.world.run()
        while storm.drawn.total() < num_faults:
            story.loop.run(story.loop.now + 60.0)
        try:
            yield story, storm
        finally:
            story.close()


def check(seed: int, num_faults: int, num_requests: int) -> Counter[str]:
    """What has to hold, whatever happened."""
    with told(seed, num_faults, num_requests) as (story, storm):
        fleet, kube = story.fleet, story.kube
        assert fleet.outcomes() == {Outcome.FINISHED}, "no request is lost"
        assert fleet.num_killed_busy == 0, "no node was ended with attempts in it"
        assert story.keeper.num_ended_unnamed == 0, "every pod that went was named"
        assert storm.drawn.total() == num_faults
        for number in (3, 11, 2):
            kube.upgrade(f"last, of {number}")
            story.settle_at(number)
            assert kube.templates() == {f"last, of {number}"}, "every pod is of the last template"
            assert sum(kube.replicas().values()) == number
            assert len(fleet.slots) == number
            assert all(slot.node is not None and not slot.is_draining for slot in fleet.slots.values())
        assert fleet.num_killed_busy == 0
        assert story.keeper.num_ended_unnamed == 0
        assert all("template" in spec for spec in kube.cluster()["spec"]["workerGroupSpecs"])
        story.close()
        story.counters["num_wishes"], story.counters["num_scalers"] = story.num_wishes, story.num_scalers
        story.counters["num_upgrades"] = story.num_upgrades
        return story.counters + storm.drawn


def test_replicas_converge_and_no_request_is_lost_although_a_third_of_the_calls_fail() -> None:
    counters = check(seed=1, num_faults=120, num_requests=150)
    assert counters["kube_removed"] > 3 < counters["kube_added"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [2, 3])
def test_a_thousand_conflicts_drops_refusals_and_restarts_lose_nothing(seed: int) -> None:
    counters = check(seed, num_faults=1000, num_requests=1500)
    kinds = {f"{method} {fault}" for method, faults in FAULTS.items() for fault in faults}
    missed = {kind for kind in kinds if not counters[kind] and not kind.startswith("POST")}
    assert not missed, f"these never happened: {missed}"
    assert counters["num_scalers"] > 5, "the scaler was restarted"
    assert counters["kube_removed"] > 20 < counters["kube_added"]
    assert counters["kube_drains_called_off"] > 0
    assert counters["num_upgrades"] > 3 and counters["kube_renewed"] > 20


def test_an_upgrade_renews_every_pod_one_after_the_other_while_all_others_serve() -> None:
    with serving(group("prefill", 3, 1, MOST), group("decode", 3, 1, MOST)) as kube:
        fleet = SimFleet(400, 1.0, 6, {"prefill": 3, "decode": 3})
        story = Story(kube, fleet, 6)
        story.wishes_end = True
        story.loop.at(60.0, kube.upgrade, "2")
        fleet.world.run()
        story.close()
        assert fleet.outcomes() == {Outcome.FINISHED}
        assert kube.templates() == {"2"}
        assert story.counters["kube_renewed"] == 6 and story.counters["kube_removed"] == 0
        assert story.fewest_serving == 5, "one at a time"
        assert fleet.num_killed_busy == story.keeper.num_ended_unnamed == 0
        assert kube.replicas() == {"prefill": 3, "decode": 3}
        told = [o["reason"] for path, o in kube.objects.items() if "/events/" in path]
        assert told.count("Renewed") == 6


def test_before_any_node_is_there_all_old_pods_go_at_once_and_the_server_waits_for_that() -> None:
    with serving(group("prefill", 2, 1, MOST), group("decode", 2, 1, MOST)) as kube:
        story = Story(kube, SimFleet(1, 1.0, 7, GROUPS), 7)
        client, looks = story.scaler._api, []
        read = client.read

        def looked_at() -> ClusterView:
            looks.append(kube.templates())
            story.keeper.reconcile(story.loop.now + 100.0 * len(looks))
            return read()

        assert isinstance(client, KubeClient)
        kube.upgrade("2")
        view = client.read()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KubeClient, "read", lambda self: looked_at())
            renew_old_pods(client, Nobody(), view, pause_s=0.0)
            assert looks == [], "another process leads"
            renew_old_pods(client, story.scaler._leadership, view, pause_s=0.0)
        assert looks[0] == {"1"} and kube.templates() == {"2"}
        assert kube.replicas() == GROUPS
        assert story.keeper.num_ended_unnamed == 0
        renew_old_pods(client, Nobody(), client.read(), pause_s=0.0)
        story.close()


class Nobody:
    """Never the leader."""

    def holds(self) -> bool:
        return False

    def release(self) -> None:
        raise AssertionError("there is nothing to give up")


class Hasty(SimFleet):
    """Says of every drain at once that it is over."""

    def drain(self, slot: str) -> None:
        self.slots[slot].is_empty = True


def test_the_account_notices_nodes_that_are_ended_while_they_work() -> None:
    with serving(group("prefill", 2, 1, MOST), group("decode", 2, 1, MOST)) as kube:
        fleet = Hasty(600, 8.0, 5, GROUPS)
        story = Story(kube, fleet, 5)
        story.wishes_end = True
        story.loop.at(30.0, setattr, fleet, "asked", Wish(2))
        fleet.world.run()
        story.close()
        assert fleet.num_killed_busy > 0


def test_a_missing_kind_and_a_missing_right_are_said_once_and_waited_for_longer_each_time() -> None:
    with serving(group("prefill", 2, 1, MOST), group("decode", 2, 1, MOST)) as kube:
        story = Story(kube, SimFleet(1, 1.0, 4, GROUPS), 4)
        for status, word in ((403, "forbidden"), (404, "missing")):
            kube.fault = lambda method, path, status=status: status if path == CLUSTER else None  # type: ignore[misc]
            events = [path for method, path, _ in kube.requests if method == "POST" and "/events" in path]
            pauses = []
            for _ in range(6):
                story.scaler.round(story.loop.now)
                pauses.append(story.scaler.pause_s)
            assert pauses == sorted(pauses) and pauses[-1] == 60.0
            assert getattr(story.scaler.counters, f"num_{word}") == 6
            assert str(status) in story.scaler.explanation
            told = [path for method, path, _ in kube.requests if method == "POST" and "/events" in path]
            assert len(told) == len(events) + 1
            kube.fault = lambda method, path: None
            story.scaler.round(story.loop.now)
            assert story.scaler.pause_s == 5.0
        story.close()
