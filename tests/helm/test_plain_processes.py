"""The rendered CPU-only RayCluster really is a Penstock cluster: its commands are run."""

import time
from collections.abc import Iterator

import pytest

from tests.helm.charts import helm4, values_of
from tests.helm.plain_processes import Load, PlainCluster

pytestmark = [pytest.mark.helm, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[PlainCluster]:
    """Two decode nodes and one prefill node, so that something can be restarted while the others serve."""
    helm4()
    values = values_of("cpu")
    values["decode"]["replicas"] = 2
    values["gateway"] |= {"replicas": 2, "clusterTokenSecret": "penstock-cluster"}
    cluster = PlainCluster(values)
    try:
        cluster.start_ray()
        cluster.start_gateway()
        yield cluster
    finally:
        cluster.close()


def test_it_answers_what_helm_test_asks(cluster: PlainCluster) -> None:
    for done in cluster.helm_test():
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    nodes = cluster.nodes()
    assert set(nodes) == {"prefill-0", "decode-0", "decode-1"}
    assert len({node["pid"] for node in nodes.values()}) == 3
    assert all(node["actor_id"] for node in nodes.values())


def test_a_rolling_restart_of_all_worker_pods_under_load_fails_no_request(cluster: PlainCluster) -> None:
    before = {slot: node["id"] for slot, node in cluster.nodes().items()}
    with Load(cluster, num_clients=3, max_tokens=48) as load:
        for slot in ("decode-0", "decode-1", "prefill-0"):
            drained = cluster.drain(slot)
            assert drained.returncode == 0, drained.stderr
            assert "empty" in drained.stdout
            worker = cluster.worker_of(slot)
            cluster.end(worker)
            cluster.start_worker(worker)
            cluster.until(lambda slot=slot: cluster.nodes().get(slot, {}).get("id", before[slot]) != before[slot])  # type: ignore[misc]
            num_before = load.num_done
            cluster.until(lambda num=num_before: load.num_done > num)  # type: ignore[misc]
    assert load.failures == []
    assert load.num_done > 6
    cluster.until(lambda: len(cluster.nodes()) == 3)  # type: ignore[misc]
    after = cluster.nodes()
    assert {slot: node["mix"]["role"] for slot, node in after.items()} == {
        "prefill-0": "prefill", "decode-0": "decode", "decode-1": "decode",
    }  # fmt: skip
    assert not set(before.values()) & {node["id"] for node in after.values()}


def test_a_further_gateway_joins_answers_and_is_replaced_without_a_failed_request_at_the_first(
    cluster: PlainCluster,
) -> None:
    port = cluster.start_further("gateway-further-1")
    with Load(cluster, num_clients=2, max_tokens=48) as first, Load(cluster, 2, 48, port) as far:
        cluster.until(lambda: far.num_done > 2 < first.num_done)
        far._ends.set()
        time.sleep(0.1)
        assert cluster.end("gateway-further-1") == 0, "open requests end before it goes"
        after = cluster.start_further("gateway-further-2")
        assert cluster.complete(8, after) == 8
        num_before = first.num_done
        cluster.until(lambda: first.num_done > num_before)
    assert first.failures == far.failures == []
    assert cluster.end("gateway-further-2") == 0


def test_the_gateway_ends_open_requests_before_it_goes(cluster: PlainCluster) -> None:
    with Load(cluster, num_clients=2, max_tokens=200) as load:
        cluster.until(lambda: load.num_done > 0)
        load._ends.set()
        time.sleep(0.1)
        assert cluster.end("gateway") == 0
    assert load.failures == []
