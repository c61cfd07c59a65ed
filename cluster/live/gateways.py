"""The gateways of other processes, at their head: who lets them in, and what they are told."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio

from cluster.api.v1.post_pb2 import AccessChanged, ClusterShown
from cluster.codec import encode_as
from cluster.gateway.keys import AccessSettings
from cluster.live.gateway_facts import ClusterView, GatewayFacts
from cluster.live.handshake import ClusterToken
from cluster.live.head import Head
from cluster.live.reception import Reception
from core.ids import GatewayId

SHOW_S = 0.5


@dataclass(frozen=True, slots=True)
class News:
    """What gateways are told, read at the moment: the facts when one comes, the view again and again."""

    facts: Callable[[], GatewayFacts]
    view: Callable[[], ClusterView]


class Gateways:
    """Owns: the reception, and the task that shows the cluster to those that came. Used in the head's loop."""

    def __init__(self, head: Head, token: ClusterToken, news: News) -> None:
        self._head = head
        self._news = news
        self._reception = Reception(head.me, head.term, token, news.facts, self)
        self._showing: asyncio.Task[None] | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets gateways in there."""
        self._reception.add_to(server)
        self._showing = asyncio.create_task(self._show_on())

    async def stop(self) -> None:
        """Tells them nothing more. Twice is fine."""
        if self._showing is not None:
            self._showing.cancel()
            await asyncio.gather(self._showing, return_exceptions=True)
            self._showing = None

    def tell_access(self, access: AccessSettings) -> None:
        """Who may call has changed."""
        self._head.notify_gateways(AccessChanged(access=encode_as(AccessSettings, access)))

    def admit(self, gateway: GatewayId, address: str) -> None:
        """A new one is a member, and shown the cluster at once. Raises ValueError where its id is taken."""
        self._head.admit_gateway(gateway, address)
        self._show()

    def release(self, gateway: GatewayId) -> None:
        """One leaves, with nothing open."""
        self._head.remove_gateway(gateway, "it leaves")

    async def _show_on(self) -> None:
        while True:
            await asyncio.sleep(SHOW_S)
            self._show()

    def _show(self) -> None:
        if self._head.gateways:
            self._head.notify_gateways(ClusterShown(view=encode_as(ClusterView, self._news.view())))
