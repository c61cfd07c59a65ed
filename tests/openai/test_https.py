"""The same over TLS, by the certificates that gRPC has; and routers of other rooms beside our own."""

import ssl
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter

from core.errors import Overloaded
from tests.gateway.certificates import Authority, needs_openssl
from tests.openai.asking import COMPLETIONS
from tests.openai.serving import Place, Setting, serve


@needs_openssl
def test_a_client_that_trusts_the_certificate_is_served_and_no_other(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")

    async def scenario(place: Place) -> None:
        assert place.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=ours.ca)
        async with httpx.AsyncClient(base_url=place.url, verify=trusting, trust_env=False) as client:
            assert (await client.post(COMPLETIONS, json={"prompt": "fox"})).status_code == 200
        with pytest.raises(httpx.ConnectError):
            await place.client.get("/health")
        async with httpx.AsyncClient(base_url=place.url.replace("https", "http"), trust_env=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.get("/health")
        suspicious = ssl.create_default_context(cafile=theirs.ca)
        async with httpx.AsyncClient(base_url=place.url, verify=suspicious, trust_env=False) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/health")

    serve(scenario, Setting(tls=ours.sign("server")))


@needs_openssl
def test_a_client_without_a_certificate_is_not_served_where_one_is_asked_for(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    mine = ours.sign("me")

    async def scenario(place: Place) -> None:
        trusting = ssl.create_default_context(cafile=ours.ca)
        async with httpx.AsyncClient(base_url=place.url, verify=trusting, trust_env=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.get("/health")
        trusting.load_cert_chain(mine.cert, mine.key)
        async with httpx.AsyncClient(base_url=place.url, verify=trusting, trust_env=False) as client:
            assert (await client.get("/health")).status_code == 200

    serve(scenario, Setting(tls=replace(ours.sign("server"), client_ca=ours.ca)))


def test_routers_of_other_rooms_are_mounted_and_their_errors_translated() -> None:
    router = APIRouter()

    @router.get("/own")
    async def own(number: int) -> int:
        """A route of another room."""
        if number == 0:
            raise Overloaded("no", retry_after_s=1.0)
        return number

    async def scenario(place: Place) -> None:
        assert (await place.client.get("/own?number=3")).json() == 3
        refused = await place.client.get("/own?number=0")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        wrong = (await place.client.get("/own?number=x")).json()["error"]
        assert (wrong["code"], wrong["param"]) == ("invalid_type", "number")
        assert "/own" in (await place.client.get("/docs")).text

    serve(scenario, Setting(routers=(router,)))
