"""More than one gateway: the first one moves, schedules and is asked by operators; all of them take calls."""

import re
from pathlib import Path

import pytest
import yaml

from cluster.cli import _parser
from cluster.config_layers import read_arguments
from cluster.gateway_flags import gateway_config
from cluster.metrics.table import SECTIONS, Group
from core.errors import ConfigError
from tests.helm.charts import Object, named, of_kind, pod_templates, render, values_of

FIRST, FURTHER = "Deployment/rel-penstock-gateway", "Deployment/rel-penstock-gateway-further"
OF_NODES = (Group.NODES, Group.CONTROLLER, Group.EFFICIENCY)


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    """Many nodes, two gateways."""
    assert values_of("many-nodes")["gateway"]["replicas"] == 2
    return render(values_of("many-nodes"))


def picks(selector: Object, template: Object) -> bool:
    return bool(selector.items() <= template["metadata"]["labels"].items())


def test_without_further_gateways_nothing_of_them_is_there_and_nobody_can_join() -> None:
    one = render(values_of("cpu"))
    assert FURTHER not in pod_templates(one)
    assert "cluster-token-file" not in named(one, "ConfigMap", "rel-penstock")["data"]["penstock.yaml"]
    ports = [port["name"] for port in named(one, "Service", "rel-penstock-admin")["spec"]["ports"]]
    assert ports == ["admin", "metrics"]


def test_calls_go_to_all_of_them_operators_and_those_who_join_to_the_first(objects: list[Object]) -> None:
    pods = pod_templates(objects)
    for name, far in (("rel-penstock", True), ("rel-penstock-grpc", True), ("rel-penstock-admin", False)):
        selector = named(objects, "Service", name)["spec"]["selector"]
        assert picks(selector, pods[FIRST]) and picks(selector, pods[FURTHER]) is far, name
    admin = named(objects, "Service", "rel-penstock-admin")["spec"]
    assert {"name": "cluster", "port": 50053, "targetPort": "cluster"} in admin["ports"]
    assert admin["publishNotReadyAddresses"] is True, "they join while the first one starts its nodes"
    for own, other in ((FIRST, FURTHER), (FURTHER, FIRST)):
        deployment = named(objects, "Deployment", own.partition("/")[2])["spec"]
        selector = deployment["selector"]["matchLabels"]
        assert picks(selector, pods[own]) and not picks(selector, pods[other]), "no pod has two owners"
    assert named(objects, "Deployment", "rel-penstock-gateway")["spec"]["strategy"] == {"type": "Recreate"}
    assert named(objects, "Deployment", "rel-penstock-gateway-further")["spec"]["replicas"] == 1


def test_a_further_gateway_has_no_right_no_operators_key_no_gpu_and_no_raylet(objects: list[Object]) -> None:
    pods = pod_templates(objects)
    spec = pods[FURTHER]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "initContainers" not in spec and "shareProcessNamespace" not in spec
    (container,) = spec["containers"]
    assert not {"PENSTOCK_API_KEY", "RAY_AUTH_TOKEN"} & {each["name"] for each in container["env"]}
    assert not any("gpu" in key for key in container["resources"]["limits"])
    assert "/etc/penstock/access" not in [mount["mountPath"] for mount in container["volumeMounts"]]
    first = pods[FIRST]["spec"]["containers"][0]
    assert "PENSTOCK_API_KEY" in [each["name"] for each in first["env"]], "operators' commands in the pod have a key"
    policy = named(objects, "NetworkPolicy", "rel-penstock-mover")["spec"]["podSelector"]["matchLabels"]
    assert picks(policy, pods[FIRST]) and not picks(policy, pods[FURTHER]), "only who moves asks the Kubernetes API"


def test_its_command_takes_the_one_configuration_and_joins_the_first_by_the_mounted_token(
    objects: list[Object], tmp_path: Path
) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(named(objects, "ConfigMap", "rel-penstock")["data"]["penstock.yaml"])
    container = pod_templates(objects)[FURTHER]["spec"]["containers"][0]
    words = [str(file) if word == "/etc/penstock/penstock.yaml" else word for word in container["args"]]
    read = read_arguments(_parser(), words, {})
    assert read.args.layers.problems == ()
    assert (read.args.join, read.args.host, read.args.grpc_port) == ("rel-penstock-admin:50053", "0.0.0.0", 50051)
    assert (read.args.metrics_port, read.args.model) == (9090, "/models/llama-3-70b")
    with pytest.raises(ConfigError) as refused:
        gateway_config(read.args)
    assert refused.value.problems == (
        "--cluster-token-file /etc/penstock/cluster/token cannot be read: No such file or directory",
    )
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["cluster"] == "/etc/penstock/cluster" and mounts["model"] == "/models"
    for name in (FIRST, FURTHER):
        volumes = {volume["name"]: volume for volume in pod_templates(objects)[name]["spec"]["volumes"]}
        secret = volumes["cluster"]["secret"]
        assert secret["secretName"] == "penstock-cluster" and secret["defaultMode"] == 0o440


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_of_its_metrics_only_those_are_scraped_that_the_first_one_does_not_tell(kind: str) -> None:
    values = values_of("many-nodes")
    values["metrics"] = {key: {"enabled": key.lower() == kind.lower()} for key in ("serviceMonitor", "podMonitor")}
    objects = render(values)
    first, further = sorted(of_kind(objects, kind), key=lambda each: str(each["metadata"]["name"]))
    key = "endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"
    assert "metricRelabelings" not in first["spec"][key][0]
    (rule,) = further["spec"][key][0]["metricRelabelings"]
    assert (rule["action"], rule["sourceLabels"]) == ("drop", ["__name__"])
    dropped = {row.name: bool(re.fullmatch(rule["regex"], row.sample)) for section in SECTIONS for row in section.rows}
    of_nodes = [row.name for section in SECTIONS if section.group in OF_NODES for row in section.rows]
    of_requests = [row.name for section in SECTIONS if section.group is Group.REQUESTS for row in section.rows]
    assert all(dropped[name] for name in of_nodes), [name for name in of_nodes if not dropped[name]]
    assert not any(dropped[name] for name in of_requests), [name for name in of_requests if dropped[name]]
    for monitor, part in ((first, FIRST), (further, FURTHER)):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        if kind == "PodMonitor":
            found = [name for name, template in pod_templates(objects).items() if picks(wanted, template)]
            assert found == [part]
        else:
            (service,) = [each for each in of_kind(objects, "Service") if picks(wanted, each)]
            assert picks(service["spec"]["selector"], pod_templates(objects)[part])
            assert "metrics" in [port["name"] for port in service["spec"]["ports"]]


def test_a_budget_lets_one_gateway_go_at_a_time(objects: list[Object]) -> None:
    budget = named(objects, "PodDisruptionBudget", "rel-penstock-gateway")["spec"]
    assert budget["maxUnavailable"] == 1
    assert all(picks(budget["selector"]["matchLabels"], pod_templates(objects)[name]) for name in (FIRST, FURTHER))


def test_the_token_is_named_and_never_written_out(objects: list[Object]) -> None:
    text = yaml.safe_dump_all(objects)
    assert text.count("penstock-cluster") == 2, "the two volumes, and nothing else"
