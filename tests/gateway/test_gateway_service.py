"""A gateway of its own follows what the head says of limits and keys, and stays as safe as it was."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.gateway.keys import AccessSettings, Grant, StoredKey, digest_of, mint_key
from cluster.gateway.limits import Limits, ServedModel
from cluster.gateway_service import GatewayConfig, GatewayService
from cluster.live.gateway_facts import GatewayFacts, ModelFacts, tokenizer_digest
from cluster.live.handshake import ClusterToken
from cluster.service import EMBEDDED_MODEL
from core.errors import AccessDenied, ConfigError, Unavailable
from core.ids import GatewayId
from core.mix import mix_of
from core.timers import Timers

MODEL = ModelFacts(
    ServedModel("m", 4096, 2048, 16),
    str(EMBEDDED_MODEL),
    tokenizer_digest(EMBEDDED_MODEL),
    "safetensors",
    "float32",
    "none",
)
KEY = mint_key()
KEYED = AccessSettings((StoredKey(digest_of(KEY), Grant("acme")),))
FACTS = GatewayFacts(MODEL, Limits(max_streams=7), KEYED, Timers())


def with_service(walk: Callable[[GatewayService], None], facts: GatewayFacts = FACTS) -> None:
    """A gateway that has not joined yet."""

    async def run() -> None:
        service = GatewayService(GatewayConfig("127.0.0.1:9", ClusterToken.mint()), facts)
        try:
            walk(service)
        finally:
            await service.stop()

    asyncio.run(run())


def test_keys_and_limits_are_the_heads() -> None:
    def walk(service: GatewayService) -> None:
        assert service.gateway.limits.max_streams == 7
        with pytest.raises(AccessDenied):
            service.gateway.access.caller(None, 0.0)
        assert service.gateway.access.caller(f"Bearer {KEY}", 0.0).grant.id == "acme"

    with_service(walk)


def test_new_keys_are_taken_and_the_loss_of_the_last_one_is_not() -> None:
    def walk(service: GatewayService) -> None:
        other = mint_key()
        service.cluster.on_access(AccessSettings((*KEYED.keys, StoredKey(digest_of(other), Grant("other")))))
        assert service.gateway.access.caller(f"Bearer {other}", 0.0).grant.id == "other"
        service.cluster.on_access(AccessSettings())
        assert not service.gateway.access.is_open
        assert service.gateway.access.caller(f"Bearer {KEY}", 0.0).grant.id == "acme"

    with_service(walk)


def test_nothing_is_taken_before_it_has_joined_and_a_head_that_comes_back_may_have_other_limits() -> None:
    def walk(service: GatewayService) -> None:
        with pytest.raises(Unavailable, match="has not joined its cluster yet"):
            service.gateway._check_room(1)
        service.cluster.facts = replace(FACTS, limits=Limits(max_streams=3))
        service.cluster.on_joined(GatewayId("gateway-0123abcd"))
        service.gateway._check_room(1)
        assert service.gateway.limits.max_streams == 3
        assert service.gateway.streams.gateway == "gateway-0123abcd"

    with_service(walk)


def test_whoever_looks_on_may_look_and_change_nothing() -> None:
    def walk(service: GatewayService) -> None:
        operator = service.observation.operator
        assert operator.shown().nodes == ()
        assert not operator.shown().can_serve
        assert (operator.slots(), operator.controller()) == ((), "off")
        for change in (
            lambda: operator.set_mixes({"decode-0": mix_of("mixed", 8, 8)}),
            lambda: operator.lift_mixes(["decode-0"]),
            lambda: operator.watch(3),
        ):
            with pytest.raises(ConfigError, match="ask the operators' port of the head"):
                change()

    with_service(walk)
