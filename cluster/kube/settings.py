"""What `serve` is told of the Kubernetes cluster that it runs in, and the slots that its worker groups give."""

import logging
import socket
import time
from dataclasses import dataclass, replace

from cluster.kube.client import KubeClient, in_cluster
from cluster.kube.cluster_api import KubeError
from cluster.kube.fleet import ClusterView
from cluster.kube.lease import LeaseHolder
from cluster.kube.live_fleet import LiveFleet, SlotMaker
from cluster.kubernetes import FleetScaler
from cluster.live.cluster import LiveCluster
from cluster.live.config import LiveConfig, NodeSlot
from cluster.operating import ClusterOperator
from core.errors import ConfigError
from core.mix import mix_of

LOG = logging.getLogger("penstock.kube")
ROLES = {"prefill": "prefill", "decode": "decode", "aggregated": "mixed"}
"""By worker group: what its nodes begin with."""


@dataclass(frozen=True, slots=True)
class KubeSettings:
    """`raycluster`: whose replicas follow the number of nodes wanted. `fleet_size`: the Deployment whose replicas say
    that number; empty: the scheduler says it."""

    raycluster: str
    fleet_size: str = ""


def slot_maker(live: LiveConfig) -> SlotMaker:
    """Slots with the budgets of those that the cluster began with."""
    tokens = max(slot.mix.prefill_tokens_per_step for slot in live.slots)
    rows = max(slot.mix.max_decode_rows for slot in live.slots)
    return lambda group, number: NodeSlot(f"{group}-{number}", mix_of(ROLES[group], tokens, rows))


def with_slots_of(live: LiveConfig, settings: KubeSettings) -> LiveConfig:
    """The cluster with a slot for each replica that there is. Where that cannot be read, with those it was given.

    A restarted server thus begins with the fleet that it left. Blocks. Raises ConfigError outside of Kubernetes.
    """
    client = _client(settings)
    try:
        view = client.read()
    except KubeError as error:
        LOG.warning("the RayCluster is not read, so the layout is the one that was given: %s", error)
        return live
    finally:
        client.api.close()
    slots = slots_of_view(view, slot_maker(live))
    return replace(live, slots=slots) if slots else live


def slots_of_view(view: ClusterView, make: SlotMaker) -> tuple[NodeSlot, ...]:
    """A slot for each replica of each worker group of ours."""
    return tuple(make(group.name, number) for group in view.groups for number in range(group.replicas))


class FleetMover:
    """The scaler of a live cluster, as a part of its service. Owns: the scaler, its connection, the fleet's drains."""

    def __init__(
        self, settings: KubeSettings, live: LiveConfig, cluster: LiveCluster, operator: ClusterOperator
    ) -> None:
        self._client = _client(settings)
        self._fleet = LiveFleet(cluster, operator, slot_maker(live))
        name = f"{settings.raycluster}-scaler"
        holder = LeaseHolder(self._client, name, socket.gethostname(), time.monotonic)
        self.scaler = FleetScaler(self._client, holder, self._fleet)

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            await self.scaler.run()
        except Exception:
            LOG.critical("the fleet is not moved any more; its nodes go on", exc_info=True)
            raise
        finally:
            await self._fleet.close()
            self._client.api.close()


def _client(settings: KubeSettings) -> KubeClient:
    return in_cluster(settings.raycluster, tuple(ROLES), settings.fleet_size)


def check(settings: KubeSettings, live: LiveConfig) -> None:
    """Raises ConfigError where nodes cannot come and go."""
    if live.launcher != "ray" or not live.ray.is_spread:
        raise ConfigError(["--kube-raycluster needs --launcher ray and --ray-placement spread: one node for each pod"])
