"""TLS and mTLS: who trusts whom, and what is said at the start of certificates that cannot work."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from cluster.gateway.client import AsyncClient, CallFailed, Client, Credentials
from cluster.gateway.grpc_server import GrpcServer
from cluster.gateway.listening import Endpoint
from cluster.gateway.tls import TLSFiles, client_credentials
from core.errors import ConfigError
from tests.gateway.calls import ask
from tests.gateway.certificates import Authority, needs_openssl
from tests.gateway.fake_cluster import Place, serve

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "theirs")


def over_tls(tls: TLSFiles, scenario: Callable[[Place, str], Awaitable[None]]) -> None:
    """The usual place, with a second server that talks TLS."""

    async def run(place: Place) -> None:
        server = GrpcServer(place.gateway, lambda: place.cluster.state, Endpoint(tls=tls))
        await server.start()
        try:
            await scenario(place, server.address)
        finally:
            await server.stop()

    serve(run)


async def answers(address: str, credentials: Credentials) -> int:
    async with AsyncClient(address, credentials) as client:
        return sum([len(it.token_ids) async for it in client.generate(ask(max_tokens=7), timeout_s=5)])


async def refused(address: str, credentials: Credentials) -> None:
    with pytest.raises(CallFailed) as failed:
        await answers(address, credentials)
    assert failed.value.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_who_trusts_the_servers_authority_talks_to_it_and_nobody_else(ours: Authority, theirs: Authority) -> None:
    async def scenario(place: Place, address: str) -> None:
        assert await answers(address, Credentials(tls=client_credentials(ours.ca))) == 7
        await refused(address, Credentials())
        await refused(address, Credentials(tls=client_credentials(theirs.ca)))
        await refused(address, Credentials(tls=client_credentials(None)))
        assert len(place.cluster.arrived) == 1

    over_tls(ours.sign("server"), scenario)


def test_with_a_client_authority_only_those_with_its_certificate_get_in(ours: Authority, theirs: Authority) -> None:
    client, stranger = ours.sign("client"), theirs.sign("client")

    async def scenario(place: Place, address: str) -> None:
        assert await answers(address, Credentials(tls=client_credentials(ours.ca, client.cert, client.key))) == 7
        await refused(address, Credentials(tls=client_credentials(ours.ca)))
        await refused(address, Credentials(tls=client_credentials(ours.ca, stranger.cert, stranger.key)))
        assert len(place.cluster.arrived) == 1

    over_tls(replace(ours.sign("server"), client_ca=ours.ca), scenario)


def test_the_plain_client_talks_tls_as_well(ours: Authority) -> None:
    def use(address: str) -> bool:
        with Client(address, Credentials(tls=client_credentials(ours.ca))) as client:
            return client.get_cluster(5).serving

    async def scenario(place: Place, address: str) -> None:
        assert await asyncio.to_thread(use, address)

    over_tls(ours.sign("server"), scenario)


def test_files_that_cannot_work_are_told_before_anything_listens(
    ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    good, other = ours.sign("server"), theirs.sign("server")
    (tmp_path / "junk").write_text("no certificate")
    missing = tmp_path / "missing.pem"
    for tls, flags in (
        (replace(good, key=other.key), ["--tls-cert"]),
        (replace(good, cert=tmp_path / "junk"), ["--tls-cert"]),
        (TLSFiles(missing, missing, missing), ["--tls-cert", "--tls-key", "--tls-client-ca"]),
        (replace(good, client_ca=tmp_path / "junk"), ["--tls-client-ca"]),
    ):
        with pytest.raises(ConfigError) as failed:
            tls.check()
        assert [problem.split()[0] for problem in failed.value.problems] == flags
        assert all(str(tmp_path) in problem or "ours" in problem for problem in failed.value.problems)
    good.check()


def test_a_client_names_both_or_neither_of_its_own_files(ours: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as failed:
        client_credentials(tmp_path / "missing", cert=ours.sign("client").cert)
    assert len(failed.value.problems) == 2
