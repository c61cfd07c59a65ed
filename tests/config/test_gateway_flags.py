"""What `penstock gateway` and `serve --cluster-token-file` take, and what they say to what they do not."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cli import _parser
from cluster.config_layers import read_arguments
from cluster.gateway.chat_template import Conversation
from cluster.gateway.keys import AccessSettings
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway_flags import checked_gateway, gateway_config
from cluster.gateway_service import GatewayConfig, GatewayService
from cluster.live.gateway_facts import GatewayFacts, ModelFacts, tokenizer_digest
from cluster.live.token_file import kept_token
from cluster.serve_config import checked, serve_config
from cluster.service import EMBEDDED_MODEL
from core.errors import ConfigError
from core.timers import Timers


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    kept_token(tmp_path / "token")
    return tmp_path / "token"


def config(token_file: Path, *flags: str) -> GatewayConfig:
    named = ["gateway", "--join", "head:7000", "--cluster-token-file", str(token_file), *flags]
    return gateway_config(_parser().parse_args(named))


def facts(folder: Path = EMBEDDED_MODEL, tokenizer: str = "") -> GatewayFacts:
    served = ServedModel("m", 4096, 2048, 16)
    digest = tokenizer or tokenizer_digest(folder)
    model = ModelFacts(served, str(folder), digest, "safetensors", "float32", "none")
    return GatewayFacts(model, Limits(), AccessSettings(), Timers())


def test_a_gateway_needs_only_the_head_and_the_token(token_file: Path) -> None:
    found = config(token_file)
    assert (found.head, found.grpc_host, found.grpc_port, found.model) == ("head:7000", "127.0.0.1", 50051, None)
    assert found.http is not None and found.http.port == 8000
    assert found.observe.metrics_port is None
    assert str(found.token.secret.hex()) not in repr(found)


def test_every_problem_of_a_gateways_flags_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    flags = ("--join-timeout", "-1", "--grpc-port", "70000", "--tls-cert", "c.pem", "--port", "-7")
    with pytest.raises(ConfigError) as found:
        config(path, "--join", "head", *flags)
    told = "\n".join(found.value.problems)
    for words in (
        "--join must be HOST:PORT of a head, not 'head'",
        "--join-timeout must be a number of seconds from 0 on, not -1",
        "--grpc-port must be from 0 to 65535, not 70000",
        "--tls-cert and --tls-key go together",
        "--cluster-token-file",
        "--port must be from 0 to 65535, or -1 for none, not -7",
    ):
        assert words in told


@pytest.mark.parametrize("place", ["head", "head:0", "head:70000", "http://head:1", ":1", "head:1:2", "[::1]:7", ""])
def test_what_is_no_address_of_a_head_is_refused(token_file: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="--join must be HOST:PORT"):
        config(token_file, "--join", place)


@pytest.mark.parametrize("place", ["10.0.0.7:7000", "head.penstock.svc:7000"])
def test_addresses_and_names_are_taken(token_file: Path, place: str) -> None:
    assert config(token_file, "--join", place).head == place


def layers(path: Path, text: str, *flags: str, **environ: str) -> GatewayConfig:
    path.write_text(text)
    argv = ["gateway", "--config", str(path), *flags]
    return checked_gateway(read_arguments(_parser(), argv, environ).args.layers)


def test_a_gateway_reads_file_and_environment_as_the_head_does(token_file: Path, tmp_path: Path) -> None:
    text = f"join: head:7000\ncluster-token-file: {token_file}\ngrpc-port: 1\nport: 2\nmetrics-port: 3\n"
    found = layers(tmp_path / "g.yaml", text, "--port", "4", PENSTOCK_METRICS_PORT="5", PENSTOCK_PORT="6")
    assert found.http is not None
    assert (found.head, found.grpc_port, found.http.port, found.observe.metrics_port) == ("head:7000", 1, 4, 5)


def test_a_gateway_passes_over_what_is_the_heads_alone_and_nothing_else(token_file: Path, tmp_path: Path) -> None:
    shared = f"prefill: 2\nmax-num-seqs: 8\ncluster-token-file: {token_file}\ngrpc-port: 7\n"
    found = layers(tmp_path / "g.yaml", shared, "--join", "head:1", PENSTOCK_DECODE="1")
    assert (found.head, found.grpc_port) == ("head:1", 7)
    with pytest.raises(ConfigError) as refused:
        layers(tmp_path / "g.yaml", shared + "grpcport: 8\n", "--grpc-port", "70000", PENSTOCK_DECODES="1")
    told = refused.value.problems
    assert any("g.yaml, line 5: grpcport is not known; did you mean 'grpc-port'?" in it for it in told)
    assert any("environment: PENSTOCK_DECODES is not known" in it for it in told)
    assert "--join is missing" in told
    assert "--grpc-port must be from 0 to 65535, not 70000" in told


def test_the_head_does_not_pass_over_what_is_a_gateways(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("join: head:1\n")
    with pytest.raises(ConfigError, match="join is not known"):
        checked(read_arguments(_parser(), ["serve", "--config", str(path)], {}).args.layers)


async def make(found: GatewayConfig, told: GatewayFacts) -> None:
    service = GatewayService(found, told)
    await service.stop()


def refusal(found: GatewayConfig, told: GatewayFacts) -> str:
    import asyncio

    with pytest.raises(ConfigError) as error:
        asyncio.run(make(found, told))
    return error.value.message


def test_a_gateway_without_keys_does_not_listen_beyond_this_machine(token_file: Path) -> None:
    assert "--host 0.0.0.0 is open to other machines" in refusal(config(token_file, "--host", "0.0.0.0"), facts())


def test_a_folder_that_is_missing_or_has_another_tokenizer_is_refused(token_file: Path, tmp_path: Path) -> None:
    assert "is not on this host: give --model FOLDER" in refusal(config(token_file), facts(tmp_path / "gone", "ab"))
    told = refusal(config(token_file, "--model", str(tmp_path)), facts())
    assert "its tokenizer files are not those that the head serves with" in told


def test_a_gateway_takes_the_template_that_its_head_uses(token_file: Path) -> None:
    import asyncio

    told = facts()
    told = replace(told, model=replace(told.model, chat_template="{{ eos_token }}the head's"))

    async def scenario() -> None:
        service = GatewayService(config(token_file, "--port", "-1"), told)
        try:
            assert await service.gateway.chats.render(Conversation(())) == "<|end|>the head's"
        finally:
            await service.stop()

    asyncio.run(scenario())


def test_serve_lets_gateways_in_only_where_a_token_file_is_named(tmp_path: Path) -> None:
    live = serve_config(_parser().parse_args(["serve"])).live
    assert (live.token_file, live.port) == (None, 0)
    path = tmp_path / "token"
    flags = ["serve", "--cluster-token-file", str(path), "--cluster-port", "7000"]
    live = serve_config(_parser().parse_args(flags)).live
    assert (live.token_file, live.port) == (path, 7000)
    with pytest.raises(ConfigError, match="--cluster-port must be from 0 to 65535, not 70000"):
        serve_config(_parser().parse_args(["serve", "--cluster-port", "70000"]))
