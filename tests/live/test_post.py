"""Post: what is sent arrives once, or its link is severed and both sides are told."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from cluster.api.v1.post_pb2 import Envelope, Hello, NodeReport, Proof
from cluster.api.v1.post_pb2_grpc import PostStub
from cluster.live.handshake import ClusterToken, Untrusted, answer, challenge, greet
from cluster.live.introduction import prove
from cluster.live.line import Line
from cluster.live.mail import MAX_ENVELOPE_BYTES, Wire
from cluster.live.post import Post
from core.events import RequestResumed
from core.ids import SCHEDULER, RequestId
from tests.live.posts import FAST, Recorder, letter, linked_pair, numbers, until


def test_events_arrive_in_the_order_they_were_sent_in_both_directions() -> None:
    async def walk() -> None:
        async with linked_pair() as pair:
            for i in range(200):
                pair.low.send("b@1", [letter(i)])
                pair.high.send("a@1", [letter(i)])
                if i % 7 == 0:
                    await asyncio.sleep(0)
            await until(lambda: len(pair.low_mail.letters) == len(pair.high_mail.letters) == 200)
            assert numbers(pair.high_mail) == numbers(pair.low_mail) == list(range(200))

    asyncio.run(walk())


def test_all_events_of_one_turn_leave_as_one_envelope() -> None:
    async def walk() -> None:
        async with linked_pair() as pair:
            batches: list[int] = []
            pair.high_mail.on_letters = lambda peer, letters: batches.append(len(letters))  # type: ignore[method-assign]
            for i in range(50):
                pair.low.send("b@1", [letter(i)])
            await until(lambda: sum(batches) == 50)
            assert batches == [50]

    asyncio.run(walk())


def test_what_was_sent_while_streams_break_arrives_once_and_in_order() -> None:
    patient = replace(FAST, dead_s=15.0)  # a busy machine may take a second to dial again

    async def walk() -> None:
        async with linked_pair(patient) as pair:
            for i in range(300):
                pair.low.send("b@1", [letter(i)])
                pair.high.send("a@1", [letter(i)])
                if i % 60 == 30:
                    await asyncio.sleep(0.01)
                    pair.proxy.cut()
                await asyncio.sleep(0)
            await until(lambda: len(pair.low_mail.letters) >= 300 and len(pair.high_mail.letters) >= 300)
            assert numbers(pair.high_mail) == numbers(pair.low_mail) == list(range(300))
            assert pair.proxy.num_connections > 1, "no stream broke: the test proves nothing"
            assert not pair.low_mail.severed and not pair.high_mail.severed

    asyncio.run(walk())


def test_a_turn_larger_than_an_envelope_is_split() -> None:
    async def walk() -> None:
        async with linked_pair() as pair:
            event = RequestResumed(RequestId("r"), bytes(MAX_ENVELOPE_BYTES // 3))
            pair.low.send("b@1", [(SCHEDULER, event)] * 8)
            await until(lambda: len(pair.high_mail.letters) == 8)
            assert all(got == event for _, _, got in pair.high_mail.letters)

    asyncio.run(walk())


def test_an_event_too_large_to_travel_severs_the_link_instead_of_vanishing() -> None:
    async def walk() -> None:
        async with linked_pair() as pair:
            pair.low.send("b@1", [(SCHEDULER, RequestResumed(RequestId("r"), bytes(MAX_ENVELOPE_BYTES + 1)))])
            await until(lambda: bool(pair.low_mail.severed and pair.high_mail.severed))

    asyncio.run(walk())


def test_notices_keep_their_place_among_events() -> None:
    async def walk() -> None:
        async with linked_pair() as pair:
            seen: list[str] = []
            pair.high_mail.on_letters = lambda peer, letters: seen.append("letters")  # type: ignore[method-assign]
            pair.high_mail.on_notice = lambda peer, notice: seen.append("notice")  # type: ignore[method-assign]
            pair.low.send("b@1", [letter(0)])
            pair.low.notify("b@1", NodeReport(num_fetches=1, num_bytes=2))
            pair.low.send("b@1", [letter(1)])
            await until(lambda: len(seen) == 3)
            assert seen == ["letters", "notice", "letters"]

    asyncio.run(walk())


def test_a_held_link_is_severed_at_both_ends_and_a_new_session_begins() -> None:
    async def walk() -> None:
        async with linked_pair() as pair:
            pair.proxy.hold()
            pair.low.send("b@1", [letter(0)])
            await until(lambda: bool(pair.low_mail.severed and pair.high_mail.severed))
            pair.proxy.cut()
            pair.proxy.release()
            await until(lambda: len(pair.low_mail.linked) > 1 and len(pair.high_mail.linked) > 1)
            pair.low.send("b@1", [letter(1)])
            pair.high.send("a@1", [letter(2)])
            await until(lambda: 1 in numbers(pair.high_mail) and 2 in numbers(pair.low_mail))
            assert 0 not in numbers(pair.high_mail)

    asyncio.run(walk())


def test_a_forgotten_peer_is_refused_for_good() -> None:
    async def walk() -> None:
        async with linked_pair() as pair:
            pair.high.forget("a@1")
            pair.low.send("b@1", [letter(0)])
            await until(lambda: bool(pair.low_mail.severed))
            assert pair.high_mail.letters == []

    asyncio.run(walk())


class Leaver(Post):
    """It leaves in the very turn in which its first handshake ends."""

    leaving: asyncio.Task[None] | None = None

    async def _introduce(self, line: Line, call: Wire) -> int:
        session = await super()._introduce(line, call)
        self.leaving = self.leaving or asyncio.create_task(self.stop())
        return session


def test_who_leaves_as_a_handshake_ends_has_left() -> None:
    async def walk() -> None:
        token = ClusterToken.mint()
        low, high = Leaver("a@1", token, Recorder(), FAST), Post("b@1", token, Recorder(), FAST)
        try:
            high.admit("a@1", await low.start())
            low.admit("b@1", await high.start())
            await until(lambda: low.leaving is not None and low.leaving.done())
        finally:
            await high.stop()

    asyncio.run(walk())


# ── strangers ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def refusal(
    pair_token: ClusterToken, used: ClusterToken, *, sender: str = "a@1", to: str = "b@1", **hello: object
) -> str:
    """What an acceptor `b@1` that knows `a@1` answers to this hello: a status, or the welcome."""
    post = Post("b@1", pair_token, Recorder(), FAST, term=3)
    address = await post.start()
    post.admit("a@1", "127.0.0.1:1")
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            return await _try_hello(channel, used, sender, to, hello)
    finally:
        await post.stop()


async def _try_hello(
    channel: grpc.aio.Channel, token: ClusterToken, sender: str, to: str, fields: dict[str, object]
) -> str:
    call = PostStub(channel).Link()  # type: ignore[no-untyped-call]
    said = greet(sender, to, 1, 3)
    said.MergeFrom(Hello(**fields))  # type: ignore[arg-type]
    try:
        await call.read()
        await call.write(Envelope(hello=said))
        asked = (await call.read()).challenge
        try:
            proof = answer(token, said, asked)
        except Untrusted:
            proof = Proof(proof=token.prove(b"dialer", said, asked.nonce))
        await call.write(Envelope(proof=proof))
        return str((await call.read()).WhichOneof("body"))
    except grpc.aio.AioRpcError as error:
        return error.code().name
    finally:
        call.cancel()


@pytest.mark.parametrize(
    ("hello", "expected"),
    [
        ({}, "welcome"),
        ({"sender": "z@1"}, "PERMISSION_DENIED"),
        ({"term": 2}, "FAILED_PRECONDITION"),
        ({"to": "b@0"}, "FAILED_PRECONDITION"),
        ({"schema": "another build"}, "FAILED_PRECONDITION"),
    ],
    ids=["a member", "an unknown node", "an old term", "an old incarnation", "another build"],
)
def test_a_hello_is_answered_by_who_says_it(hello: dict[str, object], expected: str) -> None:
    token = ClusterToken.mint()
    assert asyncio.run(refusal(token, token, **hello)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("sender", ["a@1", "z@1"])
def test_a_wrong_token_is_unauthenticated_whoever_claims_it(sender: str) -> None:
    assert asyncio.run(refusal(ClusterToken.mint(), ClusterToken.mint(), sender=sender)) == "UNAUTHENTICATED"


def test_a_dialer_gives_no_proof_to_an_acceptor_without_the_token() -> None:
    token, hello = ClusterToken.mint(), greet("a@1", "b@1", 1, 1)
    with pytest.raises(Untrusted):
        answer(token, hello, challenge(ClusterToken.mint(), hello))


def test_a_token_does_not_show_when_printed() -> None:
    token = ClusterToken.mint()
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)


class Refused:
    """A stream whose other side refuses it: whoever reads hears of it, and nothing may be written before."""

    def __init__(self) -> None:
        self.written: list[Envelope] = []

    async def read(self) -> object:
        return grpc.aio.EOF

    async def write(self, message: Envelope) -> None:
        self.written.append(message)


def test_a_dialer_writes_nothing_before_the_other_side_has_spoken() -> None:
    call = Refused()
    with pytest.raises(Untrusted, match="left the handshake"):
        asyncio.run(prove(call, ClusterToken.mint(), greet("a@1", "b@1", 1, 1)))
    assert call.written == []


async def _speak(token: ClusterToken, address: str, envelope: Envelope) -> str:
    """Takes the place of `a@1` on the link, sends one envelope, and says how the stream ended."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = PostStub(channel).Link()  # type: ignore[no-untyped-call]
        said = greet("a@1", "b@1", 1, 1)
        await call.read()
        await call.write(Envelope(hello=said))
        await call.write(Envelope(proof=answer(token, said, (await call.read()).challenge)))
        await call.read()
        await call.write(envelope)
        return await _end_of(call)


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(number=1, letters=b"\xc1 no MessagePack"),
        Envelope(number=1),
        Envelope(number=1, hello=Hello()),
        Envelope(ack=99),
    ],
    ids=["a payload that is none", "no body", "a second hello", "an acknowledgement of nothing"],
)
def test_a_malformed_envelope_closes_its_stream_and_harms_no_other(envelope: Envelope) -> None:
    async def walk() -> None:
        token, mail, other_mail = ClusterToken.mint(), Recorder(), Recorder()
        post, other = Post("b@1", token, mail, FAST), Post("c@1", token, other_mail, FAST)
        address = await post.start()
        try:
            post.admit("a@1", "127.0.0.1:1")
            post.admit("c@1", await other.start())
            other.admit("b@1", address)
            assert await _speak(token, address, envelope) == "INVALID_ARGUMENT"
            assert post.num_malformed == 1
            other.send("b@1", [letter(7)])
            await until(lambda: numbers(mail) == [7])
            assert not other_mail.severed
        finally:
            await other.stop()
            await post.stop()

    asyncio.run(walk())


def test_bytes_that_are_no_envelope_are_refused_before_and_after_the_handshake() -> None:
    async def walk() -> None:
        token = ClusterToken.mint()
        post = Post("b@1", token, Recorder(), FAST)
        address = await post.start()
        try:
            post.admit("a@1", "127.0.0.1:1")
            assert await _speak_bytes(token, address, shakes_hands=False) == "INVALID_ARGUMENT"
            assert await _speak_bytes(token, address, shakes_hands=True) == "INVALID_ARGUMENT"
            assert post.num_malformed == 2
        finally:
            await post.stop()

    asyncio.run(walk())


async def _speak_bytes(token: ClusterToken, address: str, shakes_hands: bool) -> str:
    """As `a@1`, or as anybody: bytes that no parser takes, and how the stream ended."""
    async with grpc.aio.insecure_channel(address) as channel:
        link: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/penstock.post.v1.Post/Link")
        call, said = link(), greet("a@1", "b@1", 1, 1)
        if shakes_hands:
            await call.read()
            await call.write(Envelope(hello=said).SerializeToString())
            asked = Envelope.FromString(cast(bytes, await call.read())).challenge
            await call.write(Envelope(proof=answer(token, said, asked)).SerializeToString())
        await call.write(b"\xff\xff")
        return await _end_of(call)


async def _end_of(call: Any) -> str:
    """Reads a stream to its end; its status."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"
