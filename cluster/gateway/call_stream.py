"""A client's call written to its gRPC stream, chunk by chunk, to its end."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from cluster.gateway.choices import ClientCall
from cluster.gateway.client_stream import Chunk
from cluster.gateway.errors_wire import Variant, WireStatus, wire_status
from cluster.gateway.ledger import CallEnd
from cluster.gateway.rpc_border import Context, abort
from core.errors import ErrorInfo

Messages = Callable[[Chunk], Awaitable[Iterable[bytes]]]
"""What a chunk is on the wire; nothing where it says nothing."""


async def write_call(call: ClientCall, context: Context, messages: Messages) -> None:
    """Write until the end. The gateway breaks it off where the client does not read."""
    task = asyncio.current_task()
    assert task is not None
    call.on_broken = task.cancel
    try:
        ended = await _write_all(call, context, messages)
    except asyncio.CancelledError:
        if call.ended is None or call.ended.error is None or call.ended.error.code != "slow_reader":
            raise
        call.writing_since, call.on_broken = None, None
        ended = call.ended
    if ended.error is not None:
        await abort(context, ended_status(ended, ended.error))


def ended_status(ended: CallEnd, error: ErrorInfo) -> WireStatus:
    """The status of a call that did not finish."""
    return wire_status(error, variant=Variant.AFTER_TOKENS if ended.num_tokens else Variant.USUAL)


async def _write_all(call: ClientCall, context: Context, messages: Messages) -> CallEnd:
    while True:
        chunk = await call.next_chunk()
        for data in await messages(chunk):
            call.writing_since = time.monotonic()
            await context.write(data)
            call.writing_since = None
        if chunk.ended is not None:
            return chunk.ended
