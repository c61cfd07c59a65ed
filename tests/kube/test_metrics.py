"""What the mover tells of itself in /metrics, and that a service which has one tells it."""

import asyncio
from dataclasses import replace

import pytest

from cluster.cli import _parser
from cluster.kube import settings
from cluster.kube.client import KubeClient
from cluster.kube.cluster_api import KubeError, Trouble
from cluster.kube.settings import KubeSettings
from cluster.kubernetes import ScalingCounters
from cluster.metrics.exposition import readings_of
from cluster.metrics.kube_rows import KUBE
from cluster.serve_config import serve_config
from cluster.service import Service
from tests.kube.kube_server import NAME, NAMESPACE, group, serving
from tests.metrics.place import Place, observe, value

kubernetes = pytest.importorskip("kubernetes", reason="the kubernetes client is not installed")


def test_what_the_mover_did_is_told_by_kind_and_its_sizes_only_while_it_leads() -> None:
    async def scenario(place: Place) -> None:
        assert not [name for name, _ in await place.samples() if "_kube_" in name], "nothing is moved here"
        place.observation.scaling = counters = ScalingCounters(num_rounds=7, num_writes=2, num_added=3, num_renewed=1)
        for trouble in (*Trouble, Trouble.CONFLICT):
            counters.count(trouble)
        samples = await place.samples()
        assert value(samples, "penstock_kube_rounds_total") == 7
        assert value(samples, "penstock_kube_changes_total", kind="added") == 3
        assert value(samples, "penstock_kube_changes_total", kind="renewed") == 1
        assert value(samples, "penstock_kube_troubles_total", kind="conflict") == 2
        for kind in ("forbidden", "missing", "invalid", "unreachable"):
            assert value(samples, "penstock_kube_troubles_total", kind=kind) == 1
        assert value(samples, "penstock_kube_leader") == 0
        assert not [name for name, _ in samples if name in ("penstock_kube_wanted_nodes", "penstock_kube_replicas")]
        counters.is_leader, counters.wanted_nodes, counters.pod_replicas, counters.old_pods = 1, 5, 4, 2
        samples = await place.samples()
        sizes = [value(samples, f"penstock_kube_{name}") for name in ("leader", "wanted_nodes", "replicas", "old_pods")]
        assert sizes == [1, 5, 4, 2]
        assert {row.sample for row in KUBE} == {name for name, _ in samples if "_kube_" in name}, "every row is told"

    observe(scenario)


def test_a_service_that_moves_a_fleet_has_its_movers_counters_in_its_metrics_and_its_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = _parser().parse_args(["serve", "--launcher", "local", "--grpc-port", "0", "--port", "-1"])

    async def look(url: str) -> None:
        api = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url))
        monkeypatch.setattr(
            settings, "_client", lambda asked: KubeClient(api, NAMESPACE, asked.raycluster, ("decode",))
        )
        service = Service(replace(serve_config(args), kube=KubeSettings(NAME)), lambda *_: None)
        assert service.mover is not None
        service.mover.scaler.decide(service.mover.scaler._look(), 0.0)
        service.mover.scaler.give_way(KubeError(Trouble.FORBIDDEN, "no"))
        totals = readings_of(service.observation).totals()
        assert totals["penstock_kube_rounds_total"] == totals["penstock_kube_leader"] == 1
        assert totals["penstock_kube_replicas"] == 2
        assert totals["penstock_kube_troubles_total"] == 1
        assert dict(service.operator.shown().counters)["kube_pod_replicas"] == 2
        await service.stop()
        api.close()

    with serving(group("decode", 2, 1, 6)) as kube:
        asyncio.run(look(kube.url))
