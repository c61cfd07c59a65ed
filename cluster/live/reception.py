"""Where a gateway of another process comes in: it proves that it holds the cluster token, and is told what to know.

It is a member once it has said where its own post is.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Protocol

import grpc
import grpc.aio

from cluster.api.v1.post_pb2 import Admission, Envelope, Hello, Joined
from cluster.api.v1.post_pb2_grpc import ReceptionServicer, add_ReceptionServicer_to_server
from cluster.codec import SCHEMA, encode_as
from cluster.live.gateway_facts import GatewayFacts
from cluster.live.handshake import ClusterToken, Stale, Untrusted
from cluster.live.introduction import HANDSHAKE_S, demand_proof, next_envelope, write
from cluster.live.link import LinkBroken
from core.ids import GatewayId

LOG = logging.getLogger("penstock.head")
GATEWAY_ID = re.compile(r"gateway-[0-9a-f]{8}")
ADDRESS = re.compile(r"[^\s/]{1,255}:[0-9]{1,5}")

Context = grpc.aio.ServicerContext[Envelope, Envelope]


class Members(Protocol):
    """Who keeps the list."""

    def admit(self, gateway: GatewayId, address: str) -> None:
        """Makes a gateway a member, with the address of its post. Raises ValueError where its id is taken."""

    def release(self, gateway: GatewayId) -> None:
        """A gateway leaves; fine if it is gone already."""


class Reception(ReceptionServicer):
    """Answers at the head's post. Says nothing of the cluster to anybody who does not hold its token."""

    def __init__(
        self, me: str, term: int, token: ClusterToken, facts: Callable[[], GatewayFacts], members: Members
    ) -> None:
        self._me = me
        self._term = term
        self._token = token
        self._facts = facts
        self._members = members

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves there."""
        add_ReceptionServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Join(self, request_iterator: object, context: Context) -> None:  # noqa: N802
        """The service. Each refusal has its status."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await self._receive(context)
        except (Untrusted, TimeoutError) as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error) or "no handshake in time")
        except Stale as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        except LinkBroken as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _receive(self, context: Context) -> None:
        hello = await demand_proof(context, self._token)
        _check(hello)
        facts = encode_as(GatewayFacts, self._facts())
        await write(context, Envelope(admission=Admission(head=self._me, term=self._term, facts=facts)))
        try:
            said = await next_envelope(context)
        except Untrusted:
            return  # it wanted to know, not to join
        gateway = GatewayId(hello.sender)
        if said.HasField("leaving"):
            self._members.release(gateway)
        elif said.HasField("joining") and ADDRESS.fullmatch(said.joining.address):
            self._members.admit(gateway, said.joining.address)
        else:
            raise LinkBroken("a gateway that joins must say where its post is")
        await write(context, Envelope(joined=Joined()))


def _check(hello: Hello) -> None:
    """Raises Stale for another build, LinkBroken for a name that no gateway has."""
    if hello.schema != SCHEMA:
        raise Stale("the two processes are of different builds")
    if hello.receiver or not GATEWAY_ID.fullmatch(hello.sender):
        raise LinkBroken("only gateways join here, and by the head's address alone")
