"""What `serve` is told of the Kubernetes cluster that it runs in, and the slots that its worker groups give."""

import asyncio
import logging
import socket
import time
from dataclasses import dataclass, replace

from cluster.kube.client import KubeClient, in_cluster
from cluster.kube.cluster_api import KubeError, Leadership
from cluster.kube.fleet import ClusterView, without_old_pods
from cluster.kube.lease import LeaseHolder
from cluster.kube.live_fleet import LiveFleet, SlotMaker
from cluster.kubernetes import FleetScaler
from cluster.live.cluster import LiveCluster
from cluster.live.config import LiveConfig, NodeSlot
from cluster.operating import ClusterOperator
from core.errors import ConfigError
from core.mix import mix_of

LOG = logging.getLogger("penstock.kube")
NUM_LOOKS = 60
"""For pods that were named to end: how often it is looked whether they are gone, a second apart."""
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

    A restarted server thus begins with the fleet that it left, and on pods of today's template. Blocks. Raises
    ConfigError outside of Kubernetes.
    """
    client = _client(settings)
    try:
        view = client.read()
        renew_old_pods(client, _holder(client, settings), view)
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


def renew_old_pods(client: KubeClient, leadership: Leadership, view: ClusterView, pause_s: float = 1.0) -> None:
    """Before any node of ours is there, all pods of an older template may go at once; returns when they are gone.

    Not our pods to end: nothing is done where another process leads, or where Kubernetes refuses.
    """
    changes = without_old_pods(view)
    if not changes:
        return
    names = {name for change in changes for name in change.to_delete}
    try:
        if not leadership.holds():
            LOG.warning("%d pods are of an older template; whoever holds the Lease renews them", len(names))
            return
        client.write(changes)
        told = f"{', '.join(sorted(names))}: of an older template, and no node is in them yet"
        LOG.warning("renewing %s", told)
        client.note("Renewed", told, False)
        for _ in range(NUM_LOOKS):
            view = client.read()
            if not names & {*view.ending, *(pod.name for pod in view.pods)}:
                return
            time.sleep(pause_s)
        LOG.warning("some of these pods do not end; nodes that start in them will start again elsewhere")
    except KubeError as error:
        LOG.warning("pods of an older template may stay for now: %s", error)


class FleetMover:
    """The scaler of a live cluster, as a part of its service. Owns: the scaler, its connection, the fleet's drains."""

    def __init__(
        self, settings: KubeSettings, live: LiveConfig, cluster: LiveCluster, operator: ClusterOperator
    ) -> None:
        self._client = _client(settings)
        self._fleet = LiveFleet(cluster, operator, slot_maker(live))
        self._holder = _holder(self._client, settings)
        self.scaler = FleetScaler(self._client, self._holder, self._fleet)

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            await self.scaler.run()
        except Exception:
            LOG.critical("the fleet is not moved any more; its nodes go on", exc_info=True)
            raise
        finally:
            await self._fleet.close()
            await asyncio.to_thread(self._release)
            self._client.api.close()

    def _release(self) -> None:
        try:
            self._holder.release()
        except KubeError as error:
            LOG.info("the Lease is left to run out: %s", error)


def _client(settings: KubeSettings) -> KubeClient:
    return in_cluster(settings.raycluster, tuple(ROLES), settings.fleet_size)


def _holder(client: KubeClient, settings: KubeSettings) -> LeaseHolder:
    return LeaseHolder(client, f"{settings.raycluster}-scaler", socket.gethostname(), time.monotonic)


def check(settings: KubeSettings, live: LiveConfig) -> None:
    """Raises ConfigError where nodes cannot come and go."""
    if live.launcher != "ray" or not live.ray.is_spread:
        raise ConfigError(["--kube-raycluster needs --launcher ray and --ray-placement spread: one node for each pod"])
