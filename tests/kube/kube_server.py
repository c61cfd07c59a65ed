"""A Kubernetes API server in memory, as small as the scaler needs, with faults; and the operator that makes pods.

It can catch: a write of an old version, a write that changes what it should not, a pod ended that was not named, a
call after which nothing is known. It cannot catch anything about schemas (tests/helm does), rights or watches.
"""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any, Protocol

from cluster.kube.client import TEMPLATE

NAMESPACE = "ns"
NAME = "pen"
CLUSTER = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/{NAME}"
Object = dict[str, Any]
Fault = Callable[[str, str], "int | str | None"]
"""Told method and path: a status to answer, `before` or `after` to hang up at that side of the work, or None."""


def group(name: str, replicas: int, low: int, high: int) -> Object:
    """A worker group, with a field of somebody else's that must survive every write."""
    return {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": low,
        "maxReplicas": high,
        "template": {
            "metadata": {"annotations": {TEMPLATE: "1"}},
            "spec": {"containers": [{"name": "ray", "image": "penstock"}]},
        },
    }


@dataclass
class KubeServer:
    """Owns: the objects by path, and what was asked."""

    objects: dict[str, Object] = field(default_factory=dict)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    fault: Fault = lambda method, path: None
    url: str = ""
    _version: int = 100
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def put(self, path: str, body: Object) -> Object:
        """Stores an object under the next version."""
        with self._lock:
            self._version += 1
            body = copy.deepcopy(body)
            body.setdefault("metadata", {})["resourceVersion"] = str(self._version)
            self.objects[path] = body
            return body

    def cluster(self) -> Object:
        """The RayCluster now."""
        return copy.deepcopy(self.objects[CLUSTER])

    def replicas(self) -> dict[str, int]:
        """By group."""
        return {spec["groupName"]: spec["replicas"] for spec in self.cluster()["spec"]["workerGroupSpecs"]}

    def upgrade(self, template: str) -> None:
        """What `helm upgrade` does to an object whose pods are to be made of something else."""
        with self._lock:
            cluster = self.cluster()
            for spec in cluster["spec"]["workerGroupSpecs"]:
                spec["template"]["metadata"]["annotations"][TEMPLATE] = template
            self.put(CLUSTER, cluster)

    def templates(self) -> set[str]:
        """What the pods were made of that there are."""
        return {o["metadata"]["annotations"][TEMPLATE] for path, o in self.objects.items() if "/pods/" in path}

    def answer(self, method: str, path: str, body: Object | None) -> tuple[int, Object]:
        """One call."""
        with self._lock:
            if method == "GET" and path.endswith("/pods"):
                prefix = path + "/"
                return 200, {"kind": "PodList", "items": [o for p, o in self.objects.items() if p.startswith(prefix)]}
            there = self.objects.get(path)
            if method == "POST":
                assert body is not None
                path = f"{path}/{body['metadata']['name']}"
                if path in self.objects:
                    return 409, {"reason": "AlreadyExists"}
                return 201, self.put(path, body)
            if there is None:
                return 404, {"reason": "NotFound"}
            if method == "PUT":
                assert body is not None
                if body["metadata"].get("resourceVersion") != there["metadata"]["resourceVersion"]:
                    return 409, {"reason": "Conflict"}
                return 200, self.put(path, body)
            return 200, there


def _handler(kube: KubeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes

        def _serve(self) -> None:
            path = self.path.partition("?")[0]
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            fault = kube.fault(self.command, path)
            if fault == "before":
                self._hang_up(path)
                return
            status, answer = (fault, {"reason": "injected"}) if isinstance(fault, int) else (0, {})
            if not status:
                status, answer = kube.answer(self.command, path, body)
            if fault == "after":
                self._hang_up(path)
                return
            kube.requests.append((self.command, path, status))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _hang_up(self, path: str) -> None:
            kube.requests.append((self.command, path, 0))
            self.close_connection = True
            self.connection.close()

        do_GET = do_PUT = do_POST = _serve  # noqa: N815 - http.server names its methods

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    return Handler


@contextmanager
def serving(*groups: Object) -> Iterator[KubeServer]:
    """A server with one RayCluster in it."""
    kube = KubeServer()
    kube.put(CLUSTER, {"kind": "RayCluster", "metadata": {"name": NAME}, "spec": {"workerGroupSpecs": list(groups)}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(kube))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    kube.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield kube
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Machines(Protocol):
    """Where pods run."""

    def pod_came(self, name: str, group: str, ip: str) -> None:
        """A pod is ready."""

    def pod_went(self, name: str) -> None:
        """A pod has ended, whatever ran in it."""


class PodKeeper:
    """Does to pods what KubeRay does: ends the named ones, then makes or ends as many as the replicas say.

    Owns: which pods there are and when they are ready. Where more must go than were named, the dice say which.
    """

    def __init__(self, kube: KubeServer, machines: Machines, chance: Random, start_s: float) -> None:
        self._kube = kube
        self._machines = machines
        self._chance = chance
        self._start_s = start_s
        self._num_made = 0
        self._ready_at: dict[str, float] = {}
        self.num_ended_unnamed = 0

    def reconcile(self, now: float) -> None:
        """One look at the object."""
        for spec in self._kube.cluster()["spec"]["workerGroupSpecs"]:
            name = spec["groupName"]
            for pod in (spec.get("scaleStrategy") or {}).get("workersToDelete") or ():
                self._end(pod)
            pods = self._pods(name)
            for _ in range(spec["replicas"] - len(pods)):
                self._make(name, spec["template"]["metadata"]["annotations"], now)
            for pod in self._chance.sample(pods, max(0, len(pods) - spec["replicas"])):
                self.num_ended_unnamed += 1
                self._end(pod)
        for pod, ready_at in list(self._ready_at.items()):
            if ready_at <= now:
                del self._ready_at[pod]
                self._begin(pod)

    def _pods(self, group: str) -> list[str]:
        pods = [o for path, o in self._kube.objects.items() if path.startswith(_pod_path(""))]
        return [pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"]["ray.io/group"] == group]

    def _make(self, group: str, annotations: Object, now: float) -> None:
        self._num_made += 1
        name = f"{NAME}-{group}-{self._num_made:04d}"
        labels = {"ray.io/cluster": NAME, "ray.io/node-type": "worker", "ray.io/group": group}
        metadata = {"name": name, "labels": labels, "annotations": annotations}
        self._kube.put(_pod_path(name), {"metadata": metadata, "status": {"phase": "Pending"}})
        self._ready_at[name] = now + self._start_s * self._chance.uniform(0.5, 2.0)

    def _begin(self, name: str) -> None:
        pod = self._kube.objects[_pod_path(name)]
        number = int(name.rpartition("-")[2])
        pod["status"] = {"phase": "Running", "podIP": f"10.0.{number // 250}.{number % 250 + 1}"}
        self._kube.put(_pod_path(name), pod)
        self._machines.pod_came(name, pod["metadata"]["labels"]["ray.io/group"], pod["status"]["podIP"])

    def _end(self, name: str) -> None:
        if self._kube.objects.pop(_pod_path(name), None) is not None and self._ready_at.pop(name, None) is None:
            self._machines.pod_went(name)


def _pod_path(name: str) -> str:
    return f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"
