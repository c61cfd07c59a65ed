"""Carries events between the processes of a cluster: a gRPC stream a pair, numbered, acknowledged, resent if it breaks.

A message arrives at most once, or its link is severed and both sides are told. Nothing else below the machines retries.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

import grpc
import grpc.aio

from cluster.api.v1.post_pb2 import Envelope, Hello, Welcome
from cluster.api.v1.post_pb2_grpc import PostServicer, PostStub, add_PostServicer_to_server
from cluster.codec import CodecError, decode_many
from cluster.gateway.listening import Endpoint, listen
from cluster.grpc_poller import keep_poller
from cluster.live.handshake import ClusterToken, Stale, Untrusted, check_current, greet
from cluster.live.introduction import HANDSHAKE_S, demand_proof, next_envelope, prove, read, write
from cluster.live.line import Line
from cluster.live.link import LinkBroken
from cluster.live.mail import MAX_ENVELOPE_BYTES, NOTICES, Letters, Mailbox, Notice, Wire, payloads
from core.timers import Timers

LOG = logging.getLogger("penstock.post")
FIRST_REDIAL_S, LAST_REDIAL_S = 0.02, 0.5
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ENVELOPE_BYTES + 4096),
    ("grpc.max_send_message_length", MAX_ENVELOPE_BYTES + 4096),
    ("grpc.enable_http_proxy", 0),
    ("grpc.so_reuseport", 0),
)


AddServices = Callable[[grpc.aio.Server], None]


def no_services(server: grpc.aio.Server) -> None:
    """Nothing beside the links."""


class Post(PostServicer):
    """The post office of one process, in one asyncio loop.

    Owns: the links to all admitted peers, and the port they dial.
    """

    def __init__(self, me: str, token: ClusterToken, mailbox: Mailbox, timers: Timers, term: int = 1) -> None:
        self._me = me
        self._token = token
        self._mailbox = mailbox
        self._timers = timers
        self._term = term
        self._lines: dict[str, Line] = {}
        self._server: grpc.aio.Server | None = None
        self._beating: asyncio.Task[None] | None = None
        self.num_malformed = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0, also: AddServices = no_services) -> str:
        """Listens, on a port of the kernel's choice for 0; returns `host:port`. `also` adds services to that port.

        Raises ConfigError where the port cannot be had.
        """
        at = Endpoint(host, port, flags="--cluster-port")
        at.check()
        keep_poller()
        server = grpc.aio.server(options=OPTIONS)
        add_PostServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        also(server)
        port = await listen(server, at)
        self._server = server
        await self._server.start()
        self._beating = asyncio.create_task(self._beat())
        return f"{host}:{port}"

    async def stop(self) -> None:
        """Leaves every link and closes the port; twice is fine."""
        tasks = [self._beating] if self._beating else []
        for peer in list(self._lines):
            dialer = self._lines[peer].dialer
            tasks += [dialer] if dialer else []
            self.forget(peer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(None)
        self._server = self._beating = None

    # ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def peers(self) -> frozenset[str]:
        """Every admitted peer, linked or not."""
        return frozenset(self._lines)

    def admit(self, peer: str, address: str) -> None:
        """Makes a peer known; the lower id dials. A peer that is known already stays as it is."""
        if peer in self._lines:
            return
        line = self._lines[peer] = Line(peer, self._timers.dead_s)
        if self._me < peer:
            line.dialer = asyncio.create_task(self._dial(line, address))

    def forget(self, peer: str) -> None:
        """The peer is gone for good: its id is refused from now on, and nothing more is said about it."""
        line = self._lines.pop(peer, None)
        if line is not None:
            line.hang_up()
            if line.dialer is not None:
                line.dialer.cancel()

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, peer: str, letters: Letters) -> None:
        """Posts events; all of one loop turn to one peer leave as one envelope. Dropped where the peer is not known."""
        line = self._lines.get(peer)
        if line is None:
            return
        if not line.outbox:
            asyncio.get_running_loop().call_soon(self._flush, line)
        line.outbox.extend(letters)

    def notify(self, peer: str, notice: Notice) -> None:
        """Posts a message from shell to shell, after the events that were sent before it."""
        line = self._lines.get(peer)
        if line is not None:
            self._flush(line)
            kind = next(field for field, each in NOTICES.items() if isinstance(notice, each))
            envelope = Envelope()
            getattr(envelope, kind).CopyFrom(notice)
            self._enqueue(line, envelope)

    def _flush(self, line: Line) -> None:
        letters, line.outbox = line.outbox, []
        if letters and self._lines.get(line.peer) is line:
            try:
                for payload in payloads(letters):
                    self._enqueue(line, Envelope(letters=payload))
            except CodecError as error:
                self._sever(line, f"an event cannot travel: {error.message}")

    def _enqueue(self, line: Line, envelope: Envelope) -> None:
        if line.link.post(envelope, time.monotonic()) is None:
            self._sever(line, f"{line.link.num_unacknowledged} messages are unacknowledged")
        line.wake.set()

    # ── one stream ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _carry(self, line: Line, wire: Wire, session: int) -> None:
        """Runs one stream until it ends or another takes its place. Raises LinkBroken and CodecError.

        Nothing where the peer was forgotten, or its session ended, while the two were shaking hands.
        """
        if self._lines.get(line.peer) is not line or line.link.session != session:
            return
        line.hang_up()
        stream = {asyncio.create_task(self._read(line, wire)), asyncio.create_task(self._write(line, wire))}
        line.stream = stream
        if not line.is_linked:
            line.is_linked = True
            self._mailbox.on_linked(line.peer)
        try:
            await asyncio.wait(stream, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in stream:
                task.cancel()
            ends = await asyncio.gather(*stream, return_exceptions=True)
        for end in ends:
            if isinstance(end, LinkBroken | CodecError):
                raise end
            if isinstance(end, Exception):
                LOG.debug("stream with %s ended: %r", line.peer, end)

    async def _read(self, line: Line, wire: Wire) -> None:
        while (envelope := await read(wire)) is not grpc.aio.EOF:
            self._on_envelope(line, cast(Envelope, envelope))

    def _on_envelope(self, line: Line, envelope: Envelope) -> None:
        """Decodes before the number counts as arrived: what cannot be read is not acknowledged, so it cannot vanish."""
        line.link.heard(envelope.ack, time.monotonic())
        if envelope.number == 0:
            return
        if line.link.has(envelope.number):
            line.link.receive(envelope.number)
            return
        letters = decode_many(envelope.letters) if envelope.HasField("letters") else []
        line.link.receive(envelope.number)
        if line.link.owes_ack:
            line.wake.set()
        match envelope.WhichOneof("body"):
            case "letters":
                self._mailbox.on_letters(line.peer, letters)
            case str(kind) if kind in NOTICES:
                self._mailbox.on_notice(line.peer, getattr(envelope, kind))
            case kind:
                raise LinkBroken(f"numbers a {kind or 'message without a body'}")

    async def _write(self, line: Line, wire: Wire) -> None:
        sent = 0
        while True:
            envelope = line.link.next_after(sent)
            if envelope is not None:
                sent = envelope.number
                await write(wire, line.link.stamp(envelope))
            elif line.beat or line.link.owes_ack:
                line.beat = False
                await write(wire, line.link.stamp(Envelope()))
            else:
                line.wake.clear()
                await line.wake.wait()

    # ── accepting ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def Link(self, request_iterator: object, context: "grpc.aio.ServicerContext[Envelope, Envelope]") -> None:  # noqa: N802
        """The service: a handshake, then the stream. Each refusal has its status."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                hello = await self._accept(context)
            await self._carry(self._line_of(hello.sender), context, hello.session)
        except (Untrusted, TimeoutError) as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error) or "no handshake in time")
        except PermissionError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except Stale as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"stale_node: {error}")
        except (LinkBroken, CodecError) as error:
            self.num_malformed += 1
            LOG.warning("a stream was closed: %s", str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _accept(self, context: "grpc.aio.ServicerContext[Envelope, Envelope]") -> Hello:
        hello = await demand_proof(context, self._token)
        check_current(hello, self._me, self._term)
        line = self._session(hello)
        await write(context, line.link.stamp(Envelope(welcome=Welcome())))
        return hello

    def _session(self, hello: Hello) -> Line:
        line = self._line_of(hello.sender)
        if hello.session < line.link.session:
            raise Stale(f"session {hello.session} is over; the next is {line.link.session}")
        if hello.session > line.link.session:
            self._sever(line, "the peer began another session", hello.session)
        return self._line_of(hello.sender)

    def _line_of(self, peer: str) -> Line:
        if peer not in self._lines:
            raise PermissionError("this node is not a member of the cluster")
        return self._lines[peer]

    # ── dialling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _dial(self, line: Line, address: str) -> None:
        """Keeps a stream to a peer: dials again, with growing pauses, for as long as the peer is known."""
        pause = FIRST_REDIAL_S
        while True:
            try:
                async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
                    await self._call(line, channel)
                pause = FIRST_REDIAL_S
            except grpc.aio.AioRpcError as error:
                LOG.debug("%s at %s: %s", line.peer, address, error.details())
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    self._sever(line, error.details() or "stale")
            except (asyncio.InvalidStateError, TimeoutError) as error:
                LOG.debug("%s at %s: %r", line.peer, address, error)
            except (Untrusted, LinkBroken, CodecError) as error:
                self.num_malformed += 1
                LOG.warning("the stream to %s was closed: %s", line.peer, str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_REDIAL_S)

    async def _call(self, line: Line, channel: grpc.aio.Channel) -> None:
        call = PostStub(channel).Link()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                session = await self._introduce(line, call)
            await self._carry(line, call, session)
        finally:
            call.cancel()

    async def _introduce(self, line: Line, call: Wire) -> int:
        """The dialer's side of the handshake; returns the session that was agreed on. Raises Untrusted."""
        hello = greet(self._me, line.peer, line.link.session, self._term)
        await prove(call, self._token, hello)
        welcome = await next_envelope(call)
        if line.link.session == hello.session:
            line.link.heard(welcome.ack, time.monotonic())
        return hello.session

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _beat(self) -> None:
        """Heartbeats on every link, and the end of silent ones; a pause of our own is not the peers' silence."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(self._timers.heartbeat_s)
            now = time.monotonic()
            pause = now - before - self._timers.heartbeat_s
            before = now
            for line in list(self._lines.values()):
                if pause > self._timers.heartbeat_s:
                    line.link.excuse(pause)
                why = line.link.why_severed(now)
                if why is not None:
                    self._sever(line, why)
                line.beat = True
                line.wake.set()

    def _sever(self, line: Line, why: str, session: int | None = None) -> None:
        LOG.warning("the link to %s is severed: %s", line.peer, why)
        line.hang_up()
        line.outbox.clear()
        line.is_linked = False
        line.link.reset(time.monotonic(), session or line.link.session + 1)
        self._mailbox.on_severed(line.peer, why)
