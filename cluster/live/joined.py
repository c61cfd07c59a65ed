"""A cluster whose head is another process, as a gateway in this one has it: `LiveCluster` from outside."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import cast

from cluster.api.v1.post_pb2 import AccessChanged, ClusterShown, Envelope, PeersChanged
from cluster.codec import decode_as
from cluster.gateway.keys import AccessSettings
from cluster.live.gateway_facts import ClusterView, GatewayFacts
from cluster.live.handshake import ClusterToken
from cluster.live.joining import Admitted, joining, knock, leaving, mint_gateway_id
from cluster.live.last_events import LastEvents
from cluster.live.mail import Notice
from cluster.live.orders import own_address_towards
from cluster.live.post import Post
from core.commands import Tell
from core.errors import ConfigError, PenstockError, Unavailable
from core.events import AttemptLost, Event, GatewayEvent, RequestEnded, Tick, TokensEmitted
from core.ids import Address, GatewayId

LOG = logging.getLogger("penstock.gateway")
REJOIN_S = 0.5


class JoinedCluster:
    """One gateway's membership, in one asyncio loop.

    Owns: the post and the id of the moment, and what the head has shown last. A membership that is lost is lost for
    good: `on_lost` is told, and once the head, or the next one at its address, lets us in again under a new id,
    `on_joined`. `on_access` is told of who may call from now on.
    """

    def __init__(self, address: str, token: ClusterToken, facts: GatewayFacts) -> None:
        self.facts = facts
        self.gateway = GatewayId("")
        self.view = ClusterView()
        self.handle: Callable[[GatewayEvent, float], object] = lambda event, now: None
        self.on_joined: Callable[[GatewayId], object] = lambda gateway: None
        self.on_lost: Callable[[str], object] = lambda why: None
        self.on_access: Callable[[AccessSettings], object] = lambda access: None
        self.num_foreign = 0
        self._address = address
        self._token = token
        self._head = ""
        self._post: Post | None = None
        self._nodes: frozenset[str] = frozenset()
        self._last = LastEvents()
        self._tasks: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        self._shown, self._lost = loop.create_future(), loop.create_future()
        self._broken: asyncio.Future[str] = loop.create_future()

    async def start(self) -> None:
        """Returns when we are a member and have been shown the cluster. Raises ConfigError or Unavailable."""
        await self._join()
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._tick())]

    async def stop(self) -> None:
        """Leaves the cluster; twice is fine."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks and self._post is not None and not self._lost.done():
            with contextlib.suppress(PenstockError):
                await knock(self._address, self._token, self.gateway, leaving)
        await self._leave()

    async def broken(self) -> str:
        """Waits until an invariant is broken, or the cluster serves something else; the process must then go."""
        return await asyncio.shield(self._broken)

    def tell(self, tell: Tell) -> None:
        """Carries a message to the scheduler; while there is no head, nobody hears it."""
        if self._post is not None:
            self._post.send(self._head, [(tell.to, tell.event)])

    # ── membership ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        self._shown, self._lost, self.gateway = loop.create_future(), loop.create_future(), mint_gateway_id()
        try:
            await knock(self._address, self._token, self.gateway, self._open)
            async with asyncio.timeout(self.facts.timers.dead_s):
                await self._shown
        except TimeoutError as error:
            await self._leave()
            raise Unavailable(f"the head at {self._address} let us in and says nothing more") from error
        except BaseException:
            await self._leave()
            raise
        self.on_joined(self.gateway)

    async def _open(self, admitted: Admitted) -> Envelope:
        """Our own post, which knows the head before the head knows us."""
        if admitted.facts.model != self.facts.model:
            raise ConfigError([f"the cluster at {self._address} serves another model now"])
        self.facts, self._head = admitted.facts, admitted.head.id
        self._post = Post(self.gateway, self._token, self, self.facts.timers, admitted.head.term)
        own = await self._post.start(own_address_towards(self._address))
        self._post.admit(self._head, self._address)
        return joining(own)

    async def _leave(self) -> None:
        post, self._post, self._nodes, self.view = self._post, None, frozenset(), ClusterView()
        if post is not None:
            await post.stop()

    async def _keep(self) -> None:
        """One membership after the other."""
        while True:
            why = await asyncio.shield(self._lost)  # who cancels us has not lost the head
            LOG.error("the head of the cluster is lost: %s", why)
            await self._leave()
            self.on_lost(why)
            await self._join_again()
            LOG.warning("the cluster is back; we are %s now", self.gateway)

    async def _join_again(self) -> None:
        while True:
            await asyncio.sleep(REJOIN_S)
            try:
                await self._join()
                return
            except Unavailable as error:
                LOG.info("%s", error.message)
            except ConfigError as error:
                self._break(error.message)
                await asyncio.Event().wait()

    # ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tick(self) -> None:
        while True:
            self._take(Tick())
            await asyncio.sleep(self.facts.timers.tick_s)

    def _take(self, event: GatewayEvent) -> None:
        now = time.monotonic()
        self._last.note(event, now)
        try:
            self.handle(event, now)
        except Exception as error:
            LOG.critical("an invariant of %s is broken; its last events:", self.gateway)
            for line in self._last.report():
                LOG.critical("%s", line)
            LOG.critical("the broken invariant:", exc_info=True)
            self._break(f"an invariant of {self.gateway} is broken: {type(error).__name__}: {error}")

    def _break(self, why: str) -> None:
        if not self._broken.done():
            self._broken.set_result(why)

    # ── the post ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_letters(self, peer: str, letters: list[tuple[Address, Event]]) -> None:
        """Tokens from nodes, all else from the scheduler only."""
        for to, event in letters:
            kinds = (TokensEmitted, AttemptLost, RequestEnded) if peer == self._head else TokensEmitted
            if to == self.gateway and isinstance(event, kinds):
                self._take(cast(GatewayEvent, event))
            else:
                self.num_foreign += 1
                LOG.warning("%s sent %s for %s: dropped", peer, type(event).__name__, to)

    def on_notice(self, peer: str, notice: Notice) -> None:
        """What the head says: which nodes there are, how it goes, who may call."""
        if peer != self._head:
            return
        if isinstance(notice, PeersChanged):
            self._change_nodes({node.id: node.address for node in notice.peers})
        elif isinstance(notice, ClusterShown):
            self.view = decode_as(ClusterView, notice.view)
            if not self._shown.done():
                self._shown.set_result(None)
        elif isinstance(notice, AccessChanged):
            self.on_access(decode_as(AccessSettings, notice.access))

    def _change_nodes(self, addresses: dict[str, str]) -> None:
        if self._post is None:
            return
        for gone in self._nodes - addresses.keys():
            self._post.forget(gone)
        for new in addresses.keys() - self._nodes:
            self._post.admit(new, addresses[new])
        self._nodes = frozenset(addresses)

    def on_linked(self, peer: str) -> None:
        """Nothing: who is linked has something to say."""

    def on_severed(self, peer: str, why: str) -> None:
        """Without its head a gateway has no cluster. A node that it does not hear is the scheduler's to judge."""
        if peer == self._head and not self._lost.done():
            self._lost.set_result(why)
