"""The `kubernetes` client, which is imported here only: RayClusters, pods, Deployments, Leases and Events."""

import datetime
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cluster.kube.cluster_api import KubeError, Trouble
from cluster.kube.fleet import ClusterView, GroupChange, Pod, WorkerGroup
from cluster.kube.lease import LeaseState
from core.errors import ConfigError

LOG = logging.getLogger("penstock.kube")
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT_S = (3.0, 10.0)
"""To connect, and to read."""

RAY = ("ray.io", "v1")
COMPONENT = "penstock"
TEMPLATE = "penstock/template"
"""The chart's annotation of worker pods: a digest of what they are made of."""
_TROUBLES = {401: Trouble.FORBIDDEN, 403: Trouble.FORBIDDEN, 404: Trouble.MISSING, 409: Trouble.CONFLICT}
_INVALID = (400, 413, 415, 422)


@dataclass(slots=True)
class KubeClient:
    """One RayCluster in one namespace, as Penstock sees it: a `ClusterApi`, and the Lease beside it.

    Owns: the connection, and the object as it was read last. `groups`: the worker groups whose nodes are ours;
    `fleet_size`: the Deployment whose replicas an outside mover sets, empty where there is none.
    """

    api: Any
    namespace: str
    name: str
    groups: tuple[str, ...]
    fleet_size: str = ""
    _read: dict[str, Any] = field(default_factory=dict)

    def read(self) -> ClusterView:
        """The RayCluster with its pods, and the wanted size."""
        from kubernetes.client import AppsV1Api, CoreV1Api, CustomObjectsApi

        with _translated(f"reading RayCluster {self.name}"):
            found = CustomObjectsApi(self.api).get_namespaced_custom_object(
                *RAY, self.namespace, "rayclusters", self.name, _request_timeout=TIMEOUT_S
            )
            self._read = cast(dict[str, Any], found)
            selector = f"ray.io/cluster={self.name},ray.io/node-type=worker"
            pods = CoreV1Api(self.api).list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=TIMEOUT_S
            )
            size = None
            if self.fleet_size:
                fleet = AppsV1Api(self.api).read_namespaced_deployment(
                    self.fleet_size, self.namespace, _request_timeout=TIMEOUT_S
                )
                size = 1 if fleet.spec.replicas is None else int(fleet.spec.replicas)
        specs = self._read.get("spec", {}).get("workerGroupSpecs") or []
        groups = tuple(_group(spec) for spec in specs if spec.get("groupName") in self.groups)
        return ClusterView(groups, tuple(_pods(pods.items)), size, tuple(_ending(pods.items)))

    def write(self, changes: tuple[GroupChange, ...]) -> None:
        """Replaces the object that was read, with other numbers in some groups; the server compares the versions."""
        from kubernetes.client import CustomObjectsApi

        by_name = {change.name: change for change in changes}
        spec = dict(self._read["spec"])
        spec["workerGroupSpecs"] = [_changed(group, by_name) for group in spec["workerGroupSpecs"]]
        body = {key: value for key, value in self._read.items() if key != "status"} | {"spec": spec}
        with _translated(f"writing RayCluster {self.name}"):
            CustomObjectsApi(self.api).replace_namespaced_custom_object(
                *RAY, self.namespace, "rayclusters", self.name, body, _request_timeout=TIMEOUT_S
            )

    def note(self, reason: str, message: str, is_warning: bool) -> None:
        """An Event of the RayCluster."""
        from kubernetes.client import CoreV1Api, CoreV1Event, V1EventSource, V1ObjectMeta, V1ObjectReference

        now = datetime.datetime.now(datetime.UTC)
        metadata = self._read.get("metadata", {})
        event = CoreV1Event(
            metadata=V1ObjectMeta(name=f"{self.name}.{uuid.uuid4().hex[:16]}", namespace=self.namespace),
            involved_object=V1ObjectReference(
                api_version="/".join(RAY),
                kind="RayCluster",
                name=self.name,
                namespace=self.namespace,
                uid=metadata.get("uid"),
                resource_version=metadata.get("resourceVersion"),
            ),
            reason=reason,
            message=message,
            type="Warning" if is_warning else "Normal",
            source=V1EventSource(component=COMPONENT),
            first_timestamp=now,
            last_timestamp=now,
            count=1,
        )
        with _translated("writing an Event"):
            CoreV1Api(self.api).create_namespaced_event(self.namespace, event, _request_timeout=TIMEOUT_S)

    # ── the Lease ────────────────────────────────────────────────────────────────────────────────────────────────────

    def read_lease(self, name: str) -> LeaseState | None:
        """The Lease; None where there is none yet."""
        from kubernetes.client import CoordinationV1Api

        try:
            with _translated(f"reading Lease {name}"):
                found: Any = CoordinationV1Api(self.api).read_namespaced_lease(
                    name, self.namespace, _request_timeout=TIMEOUT_S
                )
        except KubeError as error:
            if error.trouble is Trouble.MISSING:
                return None
            raise
        spec = found.spec
        return LeaseState(
            spec.holder_identity or "",
            found.metadata.resource_version,
            float(spec.lease_duration_seconds or 0),
            int(spec.lease_transitions or 0),
        )

    def write_lease(self, name: str, holder: str, duration_s: float, before: LeaseState | None) -> None:
        """Takes or renews the Lease, of the version that was read; a conflict where somebody was faster."""
        from kubernetes.client import CoordinationV1Api, V1Lease, V1LeaseSpec, V1ObjectMeta

        now = datetime.datetime.now(datetime.UTC)
        is_new = before is None or holder not in ("", before.holder)
        transitions = 0 if before is None else before.num_transitions + is_new
        version = None if before is None else before.version
        lease = V1Lease(
            metadata=V1ObjectMeta(name=name, namespace=self.namespace, resource_version=version),
            spec=V1LeaseSpec(
                holder_identity=holder,
                lease_duration_seconds=int(duration_s),
                acquire_time=now,
                renew_time=now,
                lease_transitions=transitions,
            ),
        )
        with _translated(f"writing Lease {name}"):
            leases = CoordinationV1Api(self.api)
            if before is None:
                leases.create_namespaced_lease(self.namespace, lease, _request_timeout=TIMEOUT_S)
            else:
                leases.replace_namespaced_lease(name, self.namespace, lease, _request_timeout=TIMEOUT_S)


def in_cluster(name: str, groups: tuple[str, ...], fleet_size: str = "") -> KubeClient:
    """The cluster that this process runs in. Raises ConfigError where it runs in none, or the extra is missing."""
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ConfigError(["--kube-raycluster needs the extra k8s: pip install 'penstock[k8s]'"]) from error
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
        namespace = NAMESPACE_FILE.read_text().strip()
    except (config.ConfigException, OSError) as error:
        problem = "--kube-raycluster works in a pod that has a service account's token, and this is none"
        raise ConfigError([f"{problem} ({error})"]) from error
    configuration = client.Configuration.get_default_copy()
    configuration.retries = False  # a round looks at everything anew: nothing is repeated unseen
    return KubeClient(client.ApiClient(configuration), namespace, name, groups, fleet_size)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """What the client raises, as one kind of error. A broken connection says nothing of what was done."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        status = int(error.status or 0)
        trouble = _TROUBLES.get(status, Trouble.INVALID if status in _INVALID else Trouble.UNREACHABLE)
        raise KubeError(trouble, f"{what}: {status} {error.reason}") from error
    except (HTTPError, OSError) as error:
        raise KubeError(Trouble.UNREACHABLE, f"{what}: {type(error).__name__}") from error


def _group(spec: Mapping[str, Any]) -> WorkerGroup:
    strategy = spec.get("scaleStrategy") or {}
    low = int(spec.get("minReplicas") or 0)
    return WorkerGroup(
        spec["groupName"],
        int(spec.get("replicas") or 0),
        low,
        max(low, int(spec.get("maxReplicas", 0))),
        tuple(strategy.get("workersToDelete") or ()),
        _template((spec.get("template") or {}).get("metadata", {}).get("annotations")),
    )


def _template(annotations: Mapping[str, str] | None) -> str:
    return (annotations or {}).get(TEMPLATE, "")


def _pods(items: list[Any]) -> Iterator[Pod]:
    for pod in items:
        is_over = pod.metadata.deletion_timestamp is not None or pod.status.phase in ("Failed", "Succeeded")
        group = (pod.metadata.labels or {}).get("ray.io/group", "")
        if not is_over:
            yield Pod(pod.metadata.name, group, pod.status.pod_ip or "", _template(pod.metadata.annotations))


def _ending(items: list[Any]) -> Iterator[str]:
    for pod in items:
        if pod.metadata.deletion_timestamp is not None:
            yield pod.metadata.name


def _changed(group: dict[str, Any], changes: Mapping[str, GroupChange]) -> dict[str, Any]:
    change = changes.get(group.get("groupName", ""))
    if change is None:
        return group
    return group | {"replicas": change.replicas, "scaleStrategy": {"workersToDelete": list(change.to_delete)}}
