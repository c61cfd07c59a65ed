"""The chart, rendered by Helm 4 in this process and, where there is one, by a Helm 3 executable."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.sources import ROOT

CHART = ROOT / "helm/penstock"
EXAMPLES = ("defaults", *sorted(path.name.removesuffix("-values.yaml") for path in CHART.glob("ci/*-values.yaml")))
VERSIONS = tuple(f"1.{minor}" for minor in range(29, 38))
RELEASE, NAMESPACE = "rel", "prod"
SHARED = ROOT.parent / "shared"
KUBERAY = SHARED / "schemas/ray.io_rayclusters.v1.json.gz"
OTHERS = ("monitoring.coreos.com", "keda.sh", "gateway.networking.k8s.io")
"""Groups whose kinds no schema at hand describes completely."""

Object = dict[str, Any]


def values_of(example: str) -> Object:
    """The values of an example; of the defaults none."""
    if example == "defaults":
        return {}
    loaded: Object = yaml.safe_load((CHART / f"ci/{example}-values.yaml").read_text())
    return loaded


def helm4() -> Any:
    """Helm 4 as a library."""
    return pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")


@cache
def helm3() -> str:
    """A Helm 3 executable: HELM3, or `helm` of the path where that is one. Skips without."""
    for name in (os.environ.get("HELM3"), "helm"):
        found = shutil.which(name) if name else None
        if found and "v3." in subprocess.run([found, "version", "--short"], capture_output=True, text=True).stdout:
            return found
    pytest.skip("no Helm 3 executable: set HELM3")


def render(values: Object) -> list[Object]:
    """All objects, by Helm 4."""
    with helm4().Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    return list(_documents({path: text for path, text in files.items() if not path.endswith("NOTES.txt")}))


def notes(values: Object) -> str:
    """What an installation prints."""
    with helm4().Chart.load(str(CHART)) as chart:
        files = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    return next(str(text) for path, text in files.items() if path.endswith("NOTES.txt"))


def render3(values: Object, folder: Path, version: str = "1.32") -> tuple[list[Object], str]:
    """All objects, by Helm 3, and what it complained of."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [helm3(), "template", RELEASE, str(CHART), "-n", NAMESPACE, "-f", str(file)]
    done = subprocess.run([*command, "--kube-version", f"{version}.0"], capture_output=True, text=True, check=False)
    return list(_documents({"all": done.stdout})), done.stderr


def _documents(files: dict[str, str]) -> Iterator[Object]:
    for text in files.values():
        yield from (document for document in yaml.safe_load_all(text) if document)


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [each for each in objects if each["kind"] == kind]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one of a kind whose name ends so."""
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def kuberay_problems(cluster: Object) -> list[str]:
    """What the RayCluster schema says of it, unknown fields refused. Skips where the schema is not at hand."""
    import jsonschema

    if not KUBERAY.exists():
        pytest.skip("the KubeRay schemas are not at hand")
    sys.path.insert(0, str(SHARED / "tools"))
    try:
        from kube_objects import strict  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    whole = json.loads(gzip.decompress(KUBERAY.read_bytes()))
    schema = strict(whole["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
    errors = jsonschema.Draft202012Validator(schema).iter_errors(cluster)
    return [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in errors]


def pod_templates(objects: list[Object]) -> dict[str, Object]:
    """Every pod that the objects bring, by what it is."""
    found = {f"{each['kind']}/{each['metadata']['name']}": each for each in of_kind(objects, "Pod")}
    for each in of_kind(objects, "Deployment"):
        found[f"Deployment/{each['metadata']['name']}"] = each["spec"]["template"]
    for each in of_kind(objects, "RayCluster"):
        found["RayCluster/head"] = each["spec"]["headGroupSpec"]["template"]
        for group in each["spec"]["workerGroupSpecs"]:
            found[f"RayCluster/{group['groupName']}"] = group["template"]
    return found
