"""Kinds of Prometheus' operator, KEDA and the Gateway API, by models that npm has: missing and mistyped fields."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helm.charts import EXAMPLES, OTHERS, Object, render, values_of

pytestmark = [pytest.mark.helm, pytest.mark.slow]

MODELS = {
    "ServiceMonitor": "prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
    "PodMonitor": "prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
    "PrometheusRule": "prometheus-operator/monitoring.coreos.com/v1/PrometheusRule",
    "ScaledObject": "keda/keda.sh/v1alpha1/ScaledObject",
    "HTTPRoute": "gateway-api/gateway.networking.k8s.io/v1/HTTPRoute",
    "GRPCRoute": "gateway-api/gateway.networking.k8s.io/v1/GRPCRoute",
}
PROGRAM = """
import fs from "fs";
const [models, objects] = JSON.parse(fs.readFileSync(0)), problems = [];
for (const object of objects) {
  const found = await import("@kubernetes-models/" + models[object.kind]);
  try { new found[object.kind](object).validate(); problems.push(""); }
  catch (error) { problems.push(String(error.message)); }
}
console.log(JSON.stringify(problems));
"""


def problems(objects: list[Object], folder: Path) -> list[str]:
    """What is wrong with each, empty where nothing is."""
    (folder / "check.mjs").write_text(PROGRAM)
    modules = folder / "node_modules"
    if not modules.exists():
        modules.symlink_to(os.environ["KUBERNETES_MODELS"])
    told = json.dumps([MODELS, objects])
    done = subprocess.run(["node", "check.mjs"], cwd=folder, input=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_kinds_of_others_have_no_field_missing_or_of_another_type(tmp_path: Path) -> None:
    if not os.environ.get("KUBERNETES_MODELS") or shutil.which("node") is None:
        pytest.skip("no models of other kinds: set KUBERNETES_MODELS to a node_modules folder with @kubernetes-models")
    every = [values_of(example) for example in EXAMPLES]
    many = values_of("many-nodes")
    many["metrics"] |= {"podMonitor": {"enabled": False}, "serviceMonitor": {"enabled": True}}
    many.pop("route")
    many["tls"] = {"existingSecret": "penstock-tls"}
    objects = [
        each for values in (*every, many) for each in render(values) if each["apiVersion"].partition("/")[0] in OTHERS
    ]
    assert {each["kind"] for each in objects} == MODELS.keys()
    assert problems(objects, tmp_path) == [""] * len(objects)
    broken = [{**each, "spec": dict.fromkeys(each["spec"], 3)} for each in objects]
    assert all(problems(broken, tmp_path)), "it would find something"
