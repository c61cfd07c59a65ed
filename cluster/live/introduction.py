"""The first envelopes of a stream between two processes: each proves to the other that it holds the cluster token."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar, cast

import grpc.aio
from google.protobuf.message import DecodeError

from cluster.api.v1.post_pb2 import Envelope, Hello
from cluster.live.handshake import ClusterToken, Untrusted, answer, challenge, verify
from cluster.live.link import LinkBroken
from cluster.live.mail import Wire

HANDSHAKE_S = 5.0
Given = TypeVar("Given")


async def prove(call: Wire, token: ClusterToken, hello: Hello) -> None:
    """The dialer's side. Raises Untrusted where the other side does not hold the token, LinkBroken for no envelope.

    It reads before it writes: when a write meets a refusal, gRPC's asyncio loses the status of the refusal.
    """
    await next_envelope(call)
    await write(call, Envelope(hello=hello))
    proof = answer(token, hello, (await next_envelope(call)).challenge)
    await write(call, Envelope(proof=proof))


async def demand_proof(context: Wire, token: ClusterToken) -> Hello:
    """The listener's side: what the dialer says of itself, proven. Raises as `prove` does."""
    await write(context, Envelope())
    hello = (await next_envelope(context)).hello
    asked = challenge(token, hello)
    await write(context, Envelope(challenge=asked))
    verify(token, hello, asked, (await next_envelope(context)).proof)
    return hello


async def next_envelope(wire: Wire) -> Envelope:
    """The next envelope of a handshake. Raises Untrusted where the other side leaves instead."""
    envelope = await read(wire)
    if envelope is grpc.aio.EOF:
        raise Untrusted("the other side left the handshake")
    return cast(Envelope, envelope)


async def read(wire: Wire) -> object:
    """An envelope, or grpc.aio.EOF. Raises LinkBroken for bytes that are none."""
    try:
        return await heeding(wire.read())
    except DecodeError as error:
        raise LinkBroken("what was sent is not an envelope") from error


async def write(wire: Wire, envelope: Envelope) -> None:
    """Sends an envelope."""
    await heeding(wire.write(envelope))


async def heeding(deed: Coroutine[object, object, Given]) -> Given:
    """What a call of gRPC gives; CancelledError where this task was cancelled meanwhile, whatever the call makes of it.

    gRPC's asyncio awaits a task of its own that takes the cancellation for the call's, and goes on; where the call had
    just failed, that failure is raised and the cancellation is lost: who dials again would do so for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await deed
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError
