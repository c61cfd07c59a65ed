"""How a gateway knocks at the head of a cluster: both prove that they hold the token, then it is told what to know."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import grpc.aio

from cluster.api.v1.post_pb2 import Envelope, Joining, Leaving
from cluster.api.v1.post_pb2_grpc import ReceptionStub
from cluster.codec import CodecError, decode_as
from cluster.grpc_poller import keep_poller
from cluster.live.gateway_facts import GatewayFacts
from cluster.live.handshake import ClusterToken, Untrusted, greet
from cluster.live.introduction import HANDSHAKE_S, heeding, next_envelope, prove, write
from cluster.live.link import LinkBroken
from cluster.live.orders import HeadPlace
from cluster.live.post import OPTIONS
from core.errors import ConfigError, PenstockError, Unavailable
from core.ids import GatewayId


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the head of a cluster says to who holds its token."""

    head: HeadPlace
    facts: GatewayFacts


LastWord = Callable[[Admitted], Awaitable[Envelope]]
"""What we say to what we are told: that we join, or that we leave."""


def mint_gateway_id() -> GatewayId:
    """A new gateway: its id never returns."""
    return GatewayId(f"gateway-{secrets.token_hex(4)}")


def joining(own_address: str) -> Envelope:
    """Our post is there: we want to be a member."""
    return Envelope(joining=Joining(address=own_address))


async def leaving(_: Admitted) -> Envelope:
    """We have nothing open any more."""
    return Envelope(leaving=Leaving())


async def knock(address: str, token: ClusterToken, me: GatewayId, last_word: LastWord | None = None) -> Admitted:
    """What the head at `address` tells us; it has done what we say to that, if we say anything, before this returns.

    Raises Unavailable where nobody answers there, or our id is taken, and ConfigError where trying again is of no use.
    """
    keep_poller()
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        call = ReceptionStub(channel).Join()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                return await _knock(call, address, token, me, last_word)
        except grpc.aio.AioRpcError as error:
            raise _refusal(address, error.code(), error.details() or "") from error
        except asyncio.InvalidStateError as error:  # the call was over before we had said all
            raise _refusal(address, await heeding(call.code()), await heeding(call.details()) or "") from error
        except (TimeoutError, LinkBroken) as error:
            raise Unavailable(f"{address} does not answer as the head of a cluster: {error or 'no answer'}") from error
        except Untrusted as error:
            raise ConfigError([f"--join {address}: {error}: the head there is of another cluster"]) from error
        except CodecError as error:
            raise ConfigError([f"--join {address}: what the head says is not understood: {error.message}"]) from error
        finally:
            call.cancel()


async def _knock(
    call: "grpc.aio.StreamStreamCall[Envelope, Envelope]",
    address: str,
    token: ClusterToken,
    me: GatewayId,
    last_word: LastWord | None,
) -> Admitted:
    await prove(call, token, greet(me, "", 1, 0))
    said = (await next_envelope(call)).admission
    admitted = Admitted(HeadPlace(said.head, address, said.term), decode_as(GatewayFacts, said.facts))
    if last_word is not None:
        await write(call, await last_word(admitted))
        await next_envelope(call)
    return admitted


def _refusal(address: str, code: grpc.StatusCode, details: str) -> PenstockError:
    """What a call that ended so means to whoever wants to join."""
    where = f"--join {address}"
    match code:
        case grpc.StatusCode.UNAUTHENTICATED:
            return ConfigError([f"{where}: the head does not take our cluster token: {details}"])
        case grpc.StatusCode.FAILED_PRECONDITION | grpc.StatusCode.INVALID_ARGUMENT:
            return ConfigError([f"{where}: {details}"])
        case grpc.StatusCode.UNIMPLEMENTED:
            return ConfigError([f"{where}: there is a gRPC server, but no head that takes gateways"])
    return Unavailable(f"{where}: no head answers there: {details}")
