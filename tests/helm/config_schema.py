"""The part of the chart's values schema that is the server's configuration: made from the command's own flags.

`python -m tests.helm.config_schema` writes it into values.schema.json anew.
"""

import json
from typing import Any

from cluster.cli import _parser
from cluster.config_layers import read_arguments
from cluster.config_schema import schema_of
from tests.house.sources import ROOT

SCHEMA = ROOT / "helm/penstock/values.schema.json"
FROM_VALUES = {
    "access-file", "admin-host", "admin-port", "aggregated", "cluster-port", "cluster-token-file", "decode", "device",
    "grpc-port", "host",
    "insecure-no-keys", "kube-fleet-size", "kube-raycluster", "launcher", "metrics-port", "model", "port",
    "prefill", "ray-address",
    "ray-placement", "ray-start-timeout", "tls-cert", "tls-client-ca", "tls-key",
}  # fmt: skip
"""What follows from other values of the chart, and is refused in `config`."""


def config_part() -> dict[str, Any]:
    """Every setting of `serve` that a chart's user may give."""
    settings = (value.setting for value in read_arguments(_parser(), ["serve"], {}).values)
    whole = schema_of(setting for setting in settings if setting.key not in FROM_VALUES)
    properties = {key: _plain(each) for key, each in whole["properties"].items()}  # type: ignore[union-attr]
    return {"type": "object", "additionalProperties": False, "properties": dict(sorted(properties.items()))}


KEPT = {"type", "enum", "pattern", "items", "description", "minimum", "maximum", "exclusiveMinimum"}


def _plain(each: Any) -> Any:
    """Without what only newer drafts know, and without defaults, which stand in the server."""
    return {key: value for key, value in each.items() if key in KEPT}


def main() -> None:
    """Writes the schema anew."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["config"] = config_part()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    main()
