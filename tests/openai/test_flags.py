"""The flags of the HTTP interface, and that nobody pays for it who does not use it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.batches.config import BatchConfig
from cluster.cli import _parser
from cluster.flags import service_config
from cluster.gateway.openai.config import CallFormat, HttpConfig
from cluster.http_flags import with_http, with_node_headers
from cluster.live.config import LiveConfig, NodeSettings
from cluster.service import EMBEDDED_MODEL, ServiceConfig
from core.errors import ConfigError


def config_of(*flags: str) -> HttpConfig | None:
    args = _parser().parse_args(["serve", "--launcher", "local", *flags])
    return with_http(service_config(args), args).http


@pytest.mark.parametrize(
    ("flags", "port"),
    [((), 8000), (("--grpc-port", "0"), 0), (("--grpc-port", "0", "--port", "8001"), 8001), (("--port", "0"), 0)],
)
def test_the_port_is_vllms_unless_grpc_takes_any(flags: tuple[str, ...], port: int) -> None:
    config = config_of(*flags)
    assert config == HttpConfig(port=port)


def test_host_origins_and_tool_format_are_taken_over() -> None:
    flags = ("--host", "::1", "--allowed-origins", '["https://a.example"]', "--tool-call-parser", "llama3_json")
    assert config_of(*flags) == HttpConfig("::1", 8000, ("https://a.example",), CallFormat.LLAMA3_JSON)


def test_batches_are_kept_where_a_folder_is_named_and_nowhere_else() -> None:
    flags = ("--batch-dir", "here", "--batch-max-file-mb", "3", "--batch-max-lines", "7", "--batch-max-concurrent", "2")
    config = config_of(*flags)
    assert config is not None and config.batches is not None
    assert config.batches == BatchConfig(Path("here").absolute(), 3_000_000, 7, 2)
    assert config_of("--batch-max-lines", "7") == HttpConfig()


def test_nodes_are_told_where_asked_for() -> None:
    parser, config = _parser(), ServiceConfig(LiveConfig(NodeSettings(EMBEDDED_MODEL), (), "local"), "m")
    plain, debug = (parser.parse_args(["serve", *flags]) for flags in ((), ("--debug-node-headers",)))
    served = replace(config, http=HttpConfig())
    assert [with_node_headers(served, args).node_headers for args in (plain, debug)] == [False, True]
    with pytest.raises(ConfigError, match="--debug-node-headers needs the HTTP interface"):
        with_node_headers(config, debug)


def test_minus_one_serves_no_http() -> None:
    assert config_of("--port", "-1") is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--port", "65536"), "--port must be from 0 to 65535, or -1 for none, not 65536"),
        (("--port", "-2"), "not -2"),
        (("--port", "5000", "--grpc-port", "5000"), "--port and --grpc-port are both 5000"),
        (("--allowed-origins", "*"), "--allowed-origins must be a JSON list"),
        (("--allowed-origins", "[1]"), "--allowed-origins must be a JSON list"),
        (("--batch-max-lines", "0"), "--batch-max-lines must be at least 1, not 0"),
        (("--batch-dir", "a", "--batch-max-file-mb", "-1"), "--batch-max-file-mb must be at least 1, not -1"),
        (("--batch-dir", "a", "--port", "-1"), "--batch-dir needs the HTTP interface"),
    ],
)
def test_a_wrong_flag_is_named(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("[", r"\[")):
        config_of(*flags)


def test_the_command_line_loads_no_web_framework() -> None:
    code = "import sys, cluster.cli; print({'fastapi', 'uvicorn', 'pydantic', 'starlette'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
