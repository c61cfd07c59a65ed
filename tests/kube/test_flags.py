"""What `serve` says of its Kubernetes flags before anything starts, and the slots that replicas give."""

import argparse

import pytest

from cluster.cli import _parser
from cluster.config_layers import read_arguments
from cluster.kube.client import in_cluster
from cluster.kube.fleet import ClusterView, WorkerGroup
from cluster.kube.settings import slot_maker, slots_of_view
from cluster.serve_config import serve_config
from core.errors import ConfigError

SPREAD = ("--ray-address", "head:6379", "--ray-placement", "spread", "--kv-cache-memory-bytes", "64M")


def arguments(*flags: str) -> argparse.Namespace:
    return read_arguments(_parser(), ["serve", *flags], {}).args


def problems(*flags: str) -> str:
    with pytest.raises(ConfigError) as refused:
        serve_config(arguments(*flags))
    return "\n".join(refused.value.problems)


def test_spread_nodes_need_a_ray_cluster_and_a_pool_that_is_said() -> None:
    assert "--ray-placement spread needs --ray-address" in problems("--ray-placement", "spread")
    assert "--kv-cache-memory-bytes" in problems("--ray-placement", "spread", "--ray-address", "head:6379")
    assert "--ray-start-timeout must be above 0" in problems("--ray-start-timeout", "0")
    live = serve_config(arguments(*SPREAD, "--prefill", "2", "--decode", "1")).live
    assert live.ray.is_spread
    assert [slot.group for slot in live.slots] == ["prefill", "prefill", "decode"]


def test_a_fleet_is_moved_only_where_a_pod_is_a_node() -> None:
    assert "--ray-placement spread" in problems("--kube-raycluster", "pen", "--launcher", "local")
    assert "--kube-fleet-size needs --kube-raycluster" in problems("--kube-fleet-size", "pen-fleet")
    kube = serve_config(arguments(*SPREAD, "--kube-raycluster", "pen", "--kube-fleet-size", "pen-fleet")).kube
    assert kube is not None and (kube.raycluster, kube.fleet_size) == ("pen", "pen-fleet")


def test_outside_of_kubernetes_it_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="service account"):
        in_cluster("pen", ("prefill",))


def test_every_replica_of_our_groups_is_a_slot_with_the_budgets_of_the_layout() -> None:
    live = serve_config(arguments(*SPREAD, "--prefill", "1", "--decode", "1", "--max-num-seqs", "32")).live
    groups = (WorkerGroup("prefill", 2, 1, 4), WorkerGroup("decode", 1, 1, 4), WorkerGroup("aggregated", 1, 0, 4))
    slots = slots_of_view(ClusterView(groups, ()), slot_maker(live))
    assert [slot.name for slot in slots] == ["prefill-0", "prefill-1", "decode-0", "aggregated-0"]
    assert [slot.mix.role for slot in slots] == ["prefill", "prefill", "decode", "mixed"]
    assert slots[2].mix.max_decode_rows == 32
