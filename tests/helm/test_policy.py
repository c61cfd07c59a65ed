"""What the chart promises of its objects: security, shutdown, one owner of each number, and the server's own words."""

import re
from typing import Any

import pytest
import yaml

from cluster.cli import _parser
from cluster.config_layers import layered, read_arguments
from cluster.config_table import settings_of
from cluster.metrics.table import METRICS
from cluster.serve_config import serve_config
from core.errors import ConfigError
from core.timers import Timers
from tests.helm.charts import CHART, EXAMPLES, Object, named, of_kind, pod_templates, render, values_of
from tests.house.sources import ROOT

EVERY = pytest.mark.parametrize("example", EXAMPLES)
GATEWAY = "rel-penstock-gateway"


def with_values(example: str, **changes: Any) -> list[Object]:
    """An example rendered with some top-level values instead of its own."""
    values = values_of(example)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return render(values)


@EVERY
def test_every_pod_is_fit_for_restricted_pod_security(example: str) -> None:
    for name, template in pod_templates(render(values_of(example))).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 10_000, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["enableServiceLinks"] is False, "Kubernetes' variables of Services begin with PENSTOCK_"
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert {"requests", "limits"} <= container["resources"].keys(), name


@EVERY
def test_only_a_gateway_that_moves_the_fleet_gets_a_token_and_its_rights_are_by_name(example: str) -> None:
    objects, values = render(values_of(example)), values_of(example)
    moves = values.get("fleet", {}).get("mover", "none") != "none"
    for name, template in pod_templates(objects).items():
        assert template["spec"]["automountServiceAccountToken"] is (moves and name.endswith("-gateway")), name
    roles = of_kind(objects, "Role")
    assert bool(roles) is moves
    assert not of_kind(objects, "ClusterRole")
    for rule in roles[0]["rules"] if roles else ():
        assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
        assert "resourceNames" in rule or rule["verbs"] in (["list"], ["create"]), rule


@EVERY
def test_every_pod_has_a_network_policy_that_denies_what_it_does_not_name(example: str) -> None:
    objects = render(values_of(example))
    (whole,) = [p for p in of_kind(objects, "NetworkPolicy") if p["metadata"]["name"] == "rel-penstock"]
    assert whole["spec"]["policyTypes"] == ["Ingress", "Egress"]
    wanted = whole["spec"]["podSelector"]["matchLabels"]
    for name, template in pod_templates(objects).items():
        assert wanted.items() <= template["metadata"]["labels"].items(), name
    for policy in of_kind(objects, "NetworkPolicy"):
        ports = [port["port"] for rule in policy["spec"].get("ingress", ()) for port in rule.get("ports", ())]
        assert 50052 not in ports, "the operators' port is the release's own"


@EVERY
def test_a_pod_has_time_to_drain_and_is_out_of_the_way_first(example: str) -> None:
    timers = Timers()
    for name, template in pod_templates(render(values_of(example))).items():
        spec = template["spec"]
        if template["metadata"]["labels"].get("penstock/kind") not in ("gateway", "worker"):
            continue
        assert spec["terminationGracePeriodSeconds"] >= timers.drain_s + timers.lease_s + 15, name
        command = " ".join(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])
        assert ("penstock drain --host" in command) is ("worker" in template["metadata"]["labels"]["penstock/kind"])


def test_the_commands_of_hooks_and_tests_are_commands_of_penstock() -> None:
    objects = render(values_of("keda"))
    pods = pod_templates(objects)
    hook = pods["RayCluster/decode"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2]
    words = hook.replace('"$POD_IP"', "10.0.0.1").removeprefix("exec penstock ").split()
    args = _parser().parse_args(words)
    assert (args.act, args.host, args.for_restart, args.force) == ("drain", "10.0.0.1", True, True)
    assert args.tls_ca == "/etc/penstock/tls/ca.crt"
    assert args.timeout == Timers().drain_s
    (grpc, _) = named(objects, "Pod", "rel-penstock-test")["spec"]["containers"]
    asked = _parser().parse_args([*grpc["command"][1:], *grpc["args"]])
    assert (asked.address, asked.max_tokens, asked.raw) == ("rel-penstock-grpc:50051", 8, True)
    gateway = pods[f"Deployment/{GATEWAY}"]["spec"]["containers"][0]
    assert [*gateway["command"], *gateway["args"]] == ["penstock", "serve", "--config", "/etc/penstock/penstock.yaml"]


@EVERY
def test_the_server_takes_the_configuration_that_is_rendered(example: str, tmp_path: Any) -> None:
    """But for the files that only a pod has, which it names as missing, and nothing else."""
    text = named(render(values_of(example)), "ConfigMap", "rel-penstock")["data"]["penstock.yaml"]
    file = tmp_path / "penstock.yaml"
    file.write_text(text)
    parsers = read_arguments(_parser(), ["serve"], {}).args.config_parsers
    found = layered(_parser().parse_args(["serve"]), settings_of(*parsers), {}, file)
    assert found.problems == ()
    problems: list[str] = []
    try:
        serve_config(found.args)
    except ConfigError as error:
        problems = list(error.problems)
    files = re.compile(r"/etc/penstock/|/models/")
    assert [problem for problem in problems if not files.search(problem)] == []


@EVERY
def test_ports_probes_and_the_configuration_agree(example: str) -> None:
    objects = render(values_of(example))
    config = yaml.safe_load(named(objects, "ConfigMap", "rel-penstock")["data"]["penstock.yaml"])
    gateway = pod_templates(objects)[f"Deployment/{GATEWAY}"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    keys = {"http": "port", "grpc": "grpc-port", "admin": "admin-port", "metrics": "metrics-port"}
    joins = {"cluster": "cluster-port"} if "cluster-port" in config else {}
    assert ports == {name: config[key] for name, key in (keys | joins).items()}
    has_tls = bool(values_of(example).get("tls", {}).get("existingSecret"))
    for probe in ("startupProbe", "readinessProbe"):
        if has_tls:
            assert gateway[probe]["httpGet"] == {"path": "/ready", "port": "http", "scheme": "HTTPS"}
        else:
            assert gateway[probe]["grpc"] == {"port": config["grpc-port"], "service": "penstock.v1.InferenceService"}
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/health"
    live = gateway["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] >= 30
    for service in of_kind(objects, "Service"):
        assert all(port["targetPort"] in ports for port in service["spec"]["ports"])


@pytest.mark.parametrize("example", ["cpu", "many-nodes", "keda"])
def test_a_group_offers_places_of_its_role_and_its_budget_lets_one_pod_go(example: str) -> None:
    objects, values = render(values_of(example)), values_of(example)
    (cluster,) = of_kind(objects, "RayCluster")
    moves = values.get("fleet", {}).get("mover", "none") != "none"
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["rayStartParams"]["resources"] == f'\'"{{\\"{group["groupName"]}\\": 1}}"\''.strip("'")
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert moves or group["minReplicas"] == group["maxReplicas"]
        budget = named(objects, "PodDisruptionBudget", f"rel-penstock-{group['groupName']}")["spec"]
        assert "maxUnavailable" not in budget, "a RayCluster has no scale sub-resource"
        assert budget["minAvailable"] == max(0, group["minReplicas"] - 1)
    assert cluster["spec"]["enableInTreeAutoscaling"] is False, "the number of nodes has one owner"


@pytest.mark.slow
def test_gpus_cards_and_hints_stand_where_they_belong() -> None:
    pods = pod_templates(render(values_of("many-nodes")))
    for role in ("prefill", "decode"):
        spec = pods[f"RayCluster/{role}"]["spec"]
        limits = spec["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == "1" and limits["rdma/rdma_shared_device_a"] == "1"
        annotations = pods[f"RayCluster/{role}"]["metadata"]["annotations"]
        assert annotations["k8s.v1.cni.cncf.io/networks"] == "rdma-net"
        near = spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]
        assert near["podAffinityTerm"]["topologyKey"] == "nvidia.com/gpu.clique"
    assert pods["RayCluster/decode"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert "nodeSelector" not in pods["RayCluster/prefill"]["spec"]
    gateway = pods[f"Deployment/{GATEWAY}"]["spec"]["containers"][0]["resources"]
    assert "nvidia.com/gpu" not in gateway["limits"]
    amd = pod_templates(with_values("gpu-box", gpu={"vendor": "amd"}))["RayCluster/packed"]["spec"]["containers"][0]
    assert amd["resources"]["limits"]["amd.com/gpu"] == "2"
    claims = [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    claimed = pod_templates(with_values("gpu-box", gpu={"resourceClaims": claims}))["RayCluster/packed"]["spec"]
    assert claimed["resourceClaims"] == claims
    assert claimed["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    assert "nvidia.com/gpu" not in claimed["containers"][0]["resources"]["limits"]


def test_the_gateways_raylet_is_seen_by_its_driver_and_has_no_place_for_nodes() -> None:
    spec = pod_templates(render(values_of("cpu")))[f"Deployment/{GATEWAY}"]["spec"]
    (raylet,) = spec["initContainers"]
    assert spec["shareProcessNamespace"] is True
    assert raylet["restartPolicy"] == "Always"
    assert "--num-cpus=0 --num-gpus=0" in raylet["args"][0]
    assert "rel-penstock-head-svc:6379" in raylet["args"][0]
    mounts = {mount["mountPath"] for mount in raylet["volumeMounts"]}
    assert mounts <= {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    token = [each for each in raylet["env"] if each["name"] == "RAY_AUTH_TOKEN"]
    assert token[0]["valueFrom"]["secretKeyRef"] == {"name": "rel-penstock", "key": "auth_token"}
    assert token[0] in spec["containers"][0]["env"]


@pytest.mark.slow
def test_no_secret_is_made_or_written_out() -> None:
    for example in EXAMPLES:
        assert of_kind(render(values_of(example)), "Secret") == []


def test_alerts_and_board_name_metrics_that_are_served() -> None:
    served = {metric.sample for metric in METRICS.values()}
    alerts = yaml.safe_load((CHART / "dashboards/alerts.yaml").read_text())
    board = (CHART / "dashboards/penstock.json").read_text()
    texts = [alert["expr"] for alert in alerts] + [board, (CHART / "templates/fleet.yaml").read_text()]
    named_there = {name for text in texts for name in re.findall(r"penstock_[a-z0-9_]+", text)}
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named_there}
    assert len(bare) > 15
    assert bare <= served


def test_every_alert_has_its_section_in_the_runbook() -> None:
    rules = of_kind(render(values_of("many-nodes")), "PrometheusRule")[0]["spec"]["groups"][0]["rules"]
    page = (ROOT / "docs/alerts.md").read_text()
    sections = {title.lower() for title in re.findall(r"^## (\S+)$", page, re.MULTILINE)}
    assert len(rules) > 8
    for rule in rules:
        link = rule["annotations"]["runbook_url"]
        assert link.startswith("https://docs.example.com/penstock/docs/alerts.md#")
        assert link.partition("#")[2] in sections, f"docs/alerts.md says nothing of {rule['alert']}"
    assert sections == {rule["alert"].lower() for rule in rules}, "a section for each alert and no other"
