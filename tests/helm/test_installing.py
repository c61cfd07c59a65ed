"""The chart installed, upgraded, rolled back and removed on an API server in memory, which checks every write."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.charts import CHART, KUBERAY, SHARED, helm3, helm4, values_of
from tests.helm.test_bad_values import TOGETHER, hundred, placed

SERVER = SHARED / "tools/fake_kube_apiserver.py"
GUARD_S = 30.0


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    """Of a server of this test's own, in a process of its own: Helm's library blocks."""
    if not (SERVER.exists() and KUBERAY.exists()):
        pytest.skip("the API server in memory is not at hand")
    file = tmp_path / "kubeconfig"
    command = [sys.executable, str(SERVER), "--port", "0", "--kubeconfig", str(file), "--crd", str(KUBERAY)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("http"), "the server says where it is once it listens"
        yield file
    finally:
        server.terminate()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


class Cluster:
    """What is on the server."""

    def __init__(self, kubeconfig: Path) -> None:
        kubernetes = pytest.importorskip("kubernetes", reason="the kubernetes client is not installed")
        self.api = kubernetes.config.new_client_from_config(str(kubeconfig))
        self.custom = kubernetes.client.CustomObjectsApi(self.api)

    def raycluster(self) -> dict[str, Any] | None:
        """The release's, if there is one."""
        items = self.custom.list_namespaced_custom_object("ray.io", "v1", "default", "rayclusters")["items"]
        return dict(items[0]) if items else None

    def make_pod(self, role: str) -> None:
        """A pod of a group, as KubeRay makes it of the group's template."""
        from kubernetes.client import CoreV1Api

        cluster = self.raycluster()
        assert cluster is not None
        template = next(g for g in cluster["spec"]["workerGroupSpecs"] if g["groupName"] == role)["template"]
        labels = {"ray.io/cluster": "rel-penstock", "ray.io/node-type": "worker", "ray.io/group": role}
        metadata = template["metadata"] | {"name": f"rel-penstock-{role}-worker"}
        metadata["labels"] = metadata["labels"] | labels
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        CoreV1Api(self.api).create_namespaced_pod("default", pod)

    def replicas(self) -> dict[str, int]:
        """By group."""
        cluster = self.raycluster()
        assert cluster is not None
        return {group["groupName"]: group["replicas"] for group in cluster["spec"]["workerGroupSpecs"]}


@pytest.fixture
def cluster(kubeconfig: Path) -> Iterator[Cluster]:
    cluster = Cluster(kubeconfig)
    yield cluster
    cluster.api.close()


@pytest.mark.slow
def test_helm_4_installs_upgrades_rolls_back_and_removes(kubeconfig: Path, cluster: Cluster) -> None:
    helm = helm4()
    values = values_of("cpu")
    with helm.Config(kubeconfig_path=str(kubeconfig), namespace="default", storage_driver="memory") as config:
        config.install(str(CHART), "rel", values)
        assert cluster.replicas() == {"prefill": 1, "decode": 1}
        config.upgrade(str(CHART), "rel", values | {"decode": {"replicas": 3}})
        assert cluster.replicas() == {"prefill": 1, "decode": 3}
        config.rollback("rel", version=1)
        assert cluster.replicas() == {"prefill": 1, "decode": 1}
        assert len(config.history("rel")) == 3
        config.uninstall("rel")
        assert cluster.raycluster() is None


@pytest.mark.slow
def test_an_upgrade_keeps_the_replicas_that_the_mover_has_set(kubeconfig: Path, cluster: Cluster) -> None:
    helm = helm4()
    values = values_of("many-nodes")
    for key in ("metrics", "route"):
        values.pop(key)
    with helm.Config(kubeconfig_path=str(kubeconfig), namespace="default", storage_driver="memory") as config:
        config.install(str(CHART), "rel", values)
        assert cluster.replicas() == {"prefill": 4, "decode": 4}
        moved = cluster.raycluster()
        assert moved is not None
        moved["spec"]["workerGroupSpecs"][1]["replicas"] = 9
        moved["spec"]["workerGroupSpecs"][0]["scaleStrategy"] = {"workersToDelete": ["rel-penstock-prefill-x"]}
        cluster.custom.replace_namespaced_custom_object("ray.io", "v1", "default", "rayclusters", "rel-penstock", moved)
        values["nodeDefaults"]["shmSize"] = "24Gi"
        config.upgrade(str(CHART), "rel", values)
        assert cluster.replicas() == {"prefill": 4, "decode": 9}
        upgraded = cluster.raycluster()
        assert upgraded is not None
        prefill, decode = upgraded["spec"]["workerGroupSpecs"]
        assert prefill["scaleStrategy"] == {"workersToDelete": ["rel-penstock-prefill-x"]}, "and the pods it has named"
        assert "scaleStrategy" not in decode
        values["decode"]["maxReplicas"] = 6
        config.upgrade(str(CHART), "rel", values)
        assert cluster.replicas() == {"prefill": 4, "decode": 6}


@pytest.mark.slow
def test_a_hundred_bad_values_are_refused_at_install_and_at_upgrade_and_nothing_is_written(
    kubeconfig: Path, cluster: Cluster
) -> None:
    helm = helm4()
    with helm.Config(kubeconfig_path=str(kubeconfig), namespace="default", storage_driver="memory") as config:
        for path, value, why in hundred():
            with pytest.raises(helm.HelmError) as refused:
                config.install(str(CHART), "rel", placed(path, value))
            assert all(key in str(refused.value) for key in path), f"{why} at {'.'.join(path)}: {refused.value}"
        for values, says in TOGETHER:
            with pytest.raises(helm.HelmError, match=re.escape(says)):
                config.install(str(CHART), "rel", values)
        assert cluster.raycluster() is None
        config.install(str(CHART), "rel", values_of("cpu"))
        before = cluster.raycluster()
        for path, value, _ in hundred()[:20]:
            with pytest.raises(helm.HelmError):
                config.upgrade(str(CHART), "rel", placed(path, value))
        assert cluster.raycluster() == before


@pytest.mark.slow
def test_the_gateway_sees_which_pods_an_upgrade_has_made_old(kubeconfig: Path, cluster: Cluster) -> None:
    from cluster.kube.client import KubeClient
    from cluster.kube.fleet import without_old_pods

    helm = helm4()
    values = values_of("cpu") | {"fleet": {"mover": "penstock"}}
    with helm.Config(kubeconfig_path=str(kubeconfig), namespace="default", storage_driver="memory") as config:
        config.install(str(CHART), "rel", values)
        client = KubeClient(cluster.api, "default", "rel-penstock", ("prefill", "decode"))
        for role in ("prefill", "decode"):
            cluster.make_pod(role)
        assert client.read().num_old_pods == 0
        values["config"] = values["config"] | {"max-num-seqs": 8}
        config.upgrade(str(CHART), "rel", values)
        assert client.read().num_old_pods == 0, "the configuration is the gateway's"
        values["decode"] = values["decode"] | {"shmSize": "1Gi"}
        config.upgrade(str(CHART), "rel", values)
        (change,) = without_old_pods(client.read())
        assert (change.name, change.replicas, change.to_delete) == ("decode", 1, ("rel-penstock-decode-worker",))
        client.write((change,))
        assert cluster.replicas() == {"prefill": 1, "decode": 1}
        config.rollback("rel", version=2)
        assert client.read().num_old_pods == 0


@pytest.mark.slow
def test_the_scaler_moves_what_the_chart_installed(kubeconfig: Path, cluster: Cluster) -> None:
    from cluster.kube.client import KubeClient
    from cluster.kube.fleet import GroupChange

    helm = helm4()
    with helm.Config(kubeconfig_path=str(kubeconfig), namespace="default", storage_driver="memory") as config:
        config.install(str(CHART), "rel", values_of("keda"))
        client = KubeClient(cluster.api, "default", "rel-penstock", ("prefill", "decode"), "rel-penstock-fleet")
        view = client.read()
        assert [(group.name, group.replicas, group.max_replicas) for group in view.groups] == [
            ("prefill", 1, 4),
            ("decode", 1, 4),
        ]
        assert view.fleet_size == 2
        client.write((GroupChange("decode", 3, ("rel-penstock-decode-x",)),))
        assert cluster.replicas() == {"prefill": 1, "decode": 3}
        client.note("Scaled", "decode to 3 replicas", False)
        client.write_lease("rel-penstock-scaler", "me", 30.0, None)
        found = client.read_lease("rel-penstock-scaler")
        assert found is not None and found.holder == "me"


@pytest.mark.helm
@pytest.mark.slow
def test_helm_3_installs_upgrades_rolls_back_and_removes(kubeconfig: Path, cluster: Cluster, tmp_path: Path) -> None:
    def helm(*words: str) -> str:
        command = [helm3(), "--kubeconfig", str(kubeconfig), *words]
        end = time.monotonic() + GUARD_S
        done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD_S, check=False)
        assert done.returncode == 0, done.stderr
        assert time.monotonic() < end
        return done.stdout

    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values_of("cpu")))
    words = ("rel", str(CHART), "-f", str(file), "--disable-openapi-validation")
    assert "curl http://127.0.0.1:8000/v1/completions" in helm("install", *words)
    assert cluster.replicas() == {"prefill": 1, "decode": 1}
    helm("upgrade", *words, "--set", "decode.replicas=3")
    assert cluster.replicas() == {"prefill": 1, "decode": 3}
    helm("rollback", "rel", "1")
    assert cluster.replicas() == {"prefill": 1, "decode": 1}
    helm("uninstall", "rel")
    assert cluster.raycluster() is None
