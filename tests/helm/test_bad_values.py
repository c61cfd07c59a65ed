"""Wrong values are refused before anything is installed, each by the path of its key."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import jsonschema
import pytest

from tests.helm import config_schema
from tests.helm.charts import CHART, EXAMPLES, helm4, render, values_of

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
Bad = tuple[tuple[str, ...], Any, str]
"""A path, a value that is wrong there, and why."""


def test_the_schema_is_a_schema_and_its_configuration_is_the_servers() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["config"] == config_schema.config_part(), "run: python -m tests.helm.config_schema"


def test_nothing_is_open_but_maps_of_names_and_kubernetes_own_types() -> None:
    def check(node: dict[str, Any], path: str) -> None:
        if node.get("type") == "object" and "properties" in node:
            assert node["additionalProperties"] is False, path
        for key, each in node.get("properties", {}).items():
            check(each, f"{path}.{key}")
        if isinstance(node.get("items"), dict):
            check(node["items"], f"{path}[]")

    check(SCHEMA, "values")


def bad_values(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[Bad]:
    """Everything that the schema makes wrong below a path: types, words, bounds, patterns, and unknown keys."""
    kinds = node.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "properties" in node:
        yield (*path, "nosuchkey"), 1, "unknown"
        for key, each in node["properties"].items():
            yield from bad_values(each, (*path, key))
    wrong = {"string": 7, "integer": "many", "boolean": "yes", "number": [], "object": "text", "array": "text"}
    first = next((kind for kind in kinds if kind != "null"), None)
    if first and path:
        value = {"a": []} if len(kinds) > 1 and "string" in kinds else wrong[first]
        yield path, value, "type"
    if "enum" in node and path:
        yield path, "nosuchword", "enum"
    if "minimum" in node:
        yield path, node["minimum"] - 1, "minimum"
    if "maximum" in node:
        yield path, node["maximum"] + 1, "maximum"
    if "pattern" in node:
        yield path, "\t !", "pattern"


def hundred() -> list[Bad]:
    """A hundred of them, of every kind."""
    found = list(bad_values(SCHEMA, ()))
    Random(7).shuffle(found)
    kinds = sorted({why for *_, why in found})
    some = [next(each for each in found if each[2] == kind) for kind in kinds]
    return (some + [each for each in found if each not in some])[:100]


def placed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Values with this one only."""
    for key in reversed(path):
        value = {key: value}
    return dict(value)


@pytest.mark.slow
def test_a_hundred_bad_values_are_refused_by_the_path_of_their_key() -> None:
    helm = helm4()
    cases = hundred()
    assert len(cases) == 100
    assert {why for *_, why in cases} == {"unknown", "type", "enum", "minimum", "maximum", "pattern"}
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema({})
        for path, value, why in cases:
            with pytest.raises(helm.HelmError) as refused:
                chart.validate_schema(placed(path, value))
            said = str(refused.value)
            assert path[-1] in said, f"{why} at {'.'.join(path)}: {said}"
            assert all(key in said for key in path[:-1]), f"{why} at {'.'.join(path)}: {said}"


TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"prefill": {"replicas": 0}}, "prefill.replicas, decode.replicas"),
    ({"prefill": {"replicas": 0}, "decode": {"replicas": 0}}, "unless aggregated.replicas"),
    ({"layout": "spread", "config": {"kv-transport": "cuda_ipc"}}, "config.kv-transport"),
    ({"layout": "packed", "fleet": {"mover": "penstock"}}, "fleet.mover"),
    ({"ray": {"mode": "none"}, "fleet": {"mover": "keda"}}, "fleet.mover"),
    ({"fleet": {"mover": "penstock"}, "config": {"controller": "off"}}, "config.controller"),
    ({"fleet": {"mover": "penstock"}, "prefill": {"replicas": 9, "maxReplicas": 4}}, "prefill.replicas"),
    ({"fleet": {"mover": "keda"}}, "keda.serverAddress"),
    ({"keda": {"minReplicas": 9, "maxReplicas": 2}}, "keda.minReplicas"),
    ({"ray": {"mode": "external"}}, "ray.address"),
    ({"ray": {"address": "host:6379"}}, "ray.address"),
    ({"access": {"allowNoKeys": False}}, "access.existingSecret"),
    ({"gateway": {"replicas": 2}}, "gateway.clusterTokenSecret"),
    ({"ray": {"mode": "none"}, "gateway": {"replicas": 2, "clusterTokenSecret": "t"}}, "gateway.replicas: 1 where"),
    ({"model": {"existingClaim": "a", "hostPath": "/b", "path": "/models/m"}}, "model.hostPath"),
    ({"model": {"existingClaim": "a"}}, "model.path"),
    ({"model": {"existingClaim": "a", "path": "/elsewhere"}}, "model.path"),
    ({"shutdown": {"terminationGracePeriodSeconds": 60}}, "shutdown.terminationGracePeriodSeconds"),
    ({"shutdown": {"drainSeconds": 600}}, "= 630, not 150"),
    ({"probes": {"liveness": {"periodSeconds": 1}}}, "probes.liveness"),
    ({"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}}, "metrics.podMonitor"),
    ({"route": {"http": {"enabled": True}}}, "route.http.parentRefs"),
    ({"tls": {"existingSecret": "t"}, "route": {"grpc": {"enabled": True, "parentRefs": [{"name": "g"}]}}}, "route"),
    ({"prefill": {"gpus": 1}}, "prefill.gpus"),
    ({"nodeDefaults": {"gpus": 2}}, "at most 1 where layout is spread"),
]


@pytest.mark.parametrize(("values", "says"), TOGETHER, ids=[says[:40] for _, says in TOGETHER])
def test_values_that_do_not_go_together_are_refused_with_the_reason(values: dict[str, Any], says: str) -> None:
    helm = helm4()
    with pytest.raises(helm.HelmError) as refused:
        render(values)
    assert says in str(refused.value)


def test_all_that_does_not_go_together_is_told_at_once() -> None:
    helm = helm4()
    values = copy.deepcopy(TOGETHER[2][0]) | TOGETHER[11][0] | TOGETHER[17][0]
    with pytest.raises(helm.HelmError) as refused:
        render(values)
    assert all(said in str(refused.value) for said in ("kv-transport", "access.existingSecret", "terminationGrace"))


@pytest.mark.slow
def test_both_owners_of_one_number_cannot_be_named() -> None:
    assert SCHEMA["properties"]["fleet"]["properties"]["mover"]["enum"] == ["none", "penstock", "keda"]
    for example in EXAMPLES:
        objects = render(values_of(example))
        movers = [each for each in objects if each["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")]
        assert len(movers) == (example == "keda")
