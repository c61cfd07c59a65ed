"""Any settings at all: either a whole configuration comes out, or every problem names a setting."""

import argparse
import random

import pytest

from cluster.cli import _parser
from cluster.config_layers import layered
from cluster.config_table import settings_of
from cluster.serve_config import checked
from cluster.service import ServiceConfig
from core.errors import ConfigError

SETTINGS = settings_of(*_parser().parse_args(["config", "schema"]).tables["serve"])
WORDS = (
    "",
    "x",
    "0",
    "-1",
    "7",
    "16K",
    "1e9",
    "true",
    "off",
    "on",
    "nan",
    "inf",
    "/nowhere",
    "0.0.0.0",
    "::1",
    "[]",
    "é",
)
ALIKE = {
    "model": "is not a folder",
    "prefill": "node",
    "decode": "node",
    "aggregated": "node",
    "kv-transport": "transport: ",
}
"""What problems say of these where they do not name the flag: they are of the model, or of the nodes together."""


def fuzz(seed: int, count: int) -> tuple[int, int]:
    rng = random.Random(seed)
    num_sound = num_refused = 0
    for _ in range(count):
        chosen = rng.sample(SETTINGS, rng.randint(0, 4))
        environ = {setting.variable: value(rng, setting.choices) for setting in chosen}
        environ |= {"PENSTOCK_LAUNCHER": "local", "PENSTOCK_GRPC_PORT": environ.get("PENSTOCK_GRPC_PORT", "0")}
        found = layered(argparse.Namespace(), SETTINGS, environ, None)
        try:
            assert isinstance(checked(found), ServiceConfig)
            num_sound += 1
        except ConfigError as error:
            num_refused += 1
            for problem in error.problems:
                assert any(names(problem, setting) for setting in chosen), (seed, environ, problem)
    return num_sound, num_refused


def value(rng: random.Random, choices: tuple[object, ...]) -> str:
    """Now and then one that is meant."""
    if choices and rng.random() < 0.5:
        return str(rng.choice(choices))
    return rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randint(-(2 ** rng.randint(1, 70)), 2**20))


def names(problem: str, setting: object) -> bool:
    key = setting.key  # type: ignore[attr-defined]
    return f"--{key}" in problem or setting.variable in problem or (key in ALIKE and ALIKE[key] in problem)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(3))
def test_any_settings_make_a_configuration_or_problems_that_name_them(seed: int) -> None:
    num_sound, num_refused = fuzz(seed, 300)
    assert num_sound > 20
    assert num_refused > 20


@pytest.mark.slow
def test_ten_thousand_configurations() -> None:
    assert sum(fuzz(1000, 10_000)) == 10_000
