"""What an upgrade means for pods: which changes make worker pods old, and which leave them as they are."""

from typing import Any

import pytest

from cluster.kube.client import TEMPLATE
from tests.helm.charts import of_kind, pod_templates, render, values_of

Change = dict[str, Any]
OF_WORKERS: list[Change] = [
    {"image": {"tag": "0.2.0"}},
    {"image": {"pullSecrets": [{"name": "registry"}]}},
    {"nodeDefaults": {"shmSize": "24Gi"}},
    {"nodeDefaults": {"env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}},
    {"nodeDefaults": {"podLabels": {"team": "serving"}}},
    {"nodeDefaults": {"podAnnotations": {"team": "serving"}}},
    {"nodeDefaults": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}},
    {"nodeDefaults": {"resources": {"limits": {"cpu": "3", "memory": "4Gi"}}}},
    {"shutdown": {"terminationGracePeriodSeconds": 200}},
    {"access": {"adminKeySecret": "ops"}},
    {"tls": {"existingSecret": "cert"}},
    {"model": {"existingClaim": "models", "path": "/models/m"}},
    {"interconnect": {"networkAnnotation": "rdma-net"}},
    {"gpu": {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one"}]}},
]
OF_OTHERS: list[Change] = [
    {"config": {"max-num-seqs": 8}},
    {"gateway": {"podLabels": {"team": "front"}, "resources": {"limits": {"cpu": "6", "memory": "9Gi"}}}},
    {"prefill": {"replicas": 3}},
    {"fleet": {"mover": "penstock"}, "decode": {"maxReplicas": 9}},
    {"metrics": {"dashboard": {"enabled": True}}},
    {"networkPolicy": {"enabled": False}},
    {"probes": {"liveness": {"periodSeconds": 20}}},
]


def digests(change: Change) -> dict[str, str]:
    """What each group's pods are said to be made of."""
    values = values_of("cpu")
    for key, part in change.items():
        values[key] = {**values.get(key, {}), **part}
    (cluster,) = of_kind(render(values), "RayCluster")
    groups = cluster["spec"]["workerGroupSpecs"]
    return {group["groupName"]: group["template"]["metadata"]["annotations"][TEMPLATE] for group in groups}


def words(change: Change) -> str:
    return "_".join(f"{key}_{'_'.join(part)}" for key, part in change.items())


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    found = digests({})
    assert len(set(found.values())) == 2 and all(len(digest) == 64 for digest in found.values())
    return found


@pytest.mark.parametrize("change", OF_WORKERS, ids=words)
def test_what_changes_worker_pods_changes_their_digest(change: Change, before: dict[str, str]) -> None:
    after = digests(change)
    assert all(after[group] != before[group] for group in before)


@pytest.mark.parametrize("change", OF_OTHERS, ids=words)
def test_what_does_not_change_worker_pods_leaves_their_digest(change: Change, before: dict[str, str]) -> None:
    assert digests(change) == before


def test_a_roles_own_key_changes_the_pods_of_that_role_only(before: dict[str, str]) -> None:
    after = digests({"decode": {"nodeSelector": {"disk": "fast"}}})
    assert after["decode"] != before["decode"] and after["prefill"] == before["prefill"]


def test_a_change_of_the_configuration_restarts_every_gateway() -> None:
    values = values_of("many-nodes")
    annotations = []
    for length in ("16K", "8K"):
        values["config"]["max-num-batched-tokens"] = length
        pods = pod_templates(render(values))
        annotations.append(
            [pods[f"Deployment/rel-penstock-gateway{end}"]["metadata"]["annotations"] for end in ("", "-further")]
        )
    assert annotations[0][0] != annotations[1][0] and annotations[0][1] != annotations[1][1]
