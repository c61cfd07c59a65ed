"""The chart renders to objects that every supported Kubernetes takes, strictly, by Helm 3 and Helm 4 alike."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helm.charts import (
    CHART,
    EXAMPLES,
    NAMESPACE,
    OTHERS,
    VERSIONS,
    Object,
    helm3,
    helm4,
    kuberay_problems,
    notes,
    of_kind,
    pod_templates,
    render,
    render3,
    values_of,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_finds_nothing_to_complain_of(example: str) -> None:
    assert helm4().lint(str(CHART), strict=True, kube_version="v1.32.0", values=values_of(example)) is not None


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_built_in_kind_is_valid_strictly_on_every_supported_version(example: str) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    objects = [
        each for each in render(values_of(example)) if each["apiVersion"].split("/")[0] not in (*OTHERS, "ray.io")
    ]
    assert len(objects) > 8
    for version in VERSIONS:
        for each in objects:
            checker.validate(each, version, strict=True)
    broken = objects[0] | {"replica": 1}
    with pytest.raises(checker.ValidationError):
        checker.validate(broken, "1.32", strict=True)


@pytest.mark.parametrize("example", EXAMPLES)
def test_ray_clusters_are_valid_strictly(example: str) -> None:
    for cluster in of_kind(render(values_of(example)), "RayCluster"):
        assert kuberay_problems(cluster) == []
        assert kuberay_problems(cluster | {"spec": cluster["spec"] | {"workerGroupSpec": []}})


def test_the_pods_of_a_ray_cluster_are_valid_pods() -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for example in EXAMPLES:
        for name, template in pod_templates(render(values_of(example))).items():
            if name.startswith("RayCluster/"):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
                for version in VERSIONS:
                    checker.validate(pod, version, strict=True)


@pytest.mark.helm
@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_3_and_helm_4_render_the_same(example: str, tmp_path: Path) -> None:
    helm3()
    objects, problems = render3(values_of(example), tmp_path)
    assert objects, problems

    def key(each: Object) -> tuple[str, str]:
        return each["kind"], each["metadata"]["name"]

    assert sorted(objects, key=key) == sorted(render(values_of(example)), key=key)


@pytest.mark.helm
@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_3_finds_nothing_to_complain_of_and_renders_for_every_supported_version(
    example: str, tmp_path: Path
) -> None:
    file = tmp_path / "lint.yaml"
    file.write_text(yaml.safe_dump(values_of(example)))
    done = subprocess.run([helm3(), "lint", str(CHART), "--strict", "-f", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first, problems = render3(values_of(example), tmp_path, VERSIONS[0])
    assert first, problems
    assert all(render3(values_of(example), tmp_path, version)[0] == first for version in VERSIONS[1:])


@pytest.mark.helm
def test_an_older_kubernetes_is_refused(tmp_path: Path) -> None:
    helm3()
    assert "kubeVersion" in render3({}, tmp_path, "1.28")[1]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_object_says_its_namespace_and_release(example: str) -> None:
    for each in render(values_of(example)):
        assert each["metadata"]["namespace"] == NAMESPACE
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "rel"
        assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.parametrize("example", EXAMPLES)
def test_notes_have_the_first_request_and_say_what_is_open(example: str) -> None:
    text, values = notes(values_of(example)), values_of(example)
    assert "curl http" in text and "/v1/completions" in text and "helm test rel" in text
    has_keys = bool(values.get("access", {}).get("existingSecret"))
    assert ("nobody is asked for a key" in text) is not has_keys
    assert ("authorization: Bearer" in text) is has_keys


def test_values_are_few_and_every_key_is_explained() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    assert len(lines) < 250
    told: list[tuple[int, bool]] = []
    above = False
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            above = line.lstrip().startswith("#")
            continue
        indent = len(line) - len(line.lstrip())
        told = [(depth, has) for depth, has in told if depth < indent]
        explains = above or " # " in line or line.endswith(" #")
        parent = len(told) > 1 or indent > 2  # what is inside of a nested key is that key's
        assert explains or parent or (indent == 2 and told[-1][1]), f"nothing is said of: {line}"
        told.append((indent, explains))
        above = False
    yaml.safe_load("\n".join(lines))
