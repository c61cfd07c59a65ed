"""gRPC's asyncio poller, kept for as long as the process lives.

Left alone, gRPC ends its poller's thread with the last server or channel and waits for it; where no loop reads any
more, and the pipe from that thread is full, it waits for ever (grpc/grpc#40989): a process that should exit hangs.
"""

from functools import cache

import grpc.aio


@cache
def keep_poller() -> None:
    """To be called before the first server or channel is made; more calls do nothing."""
    grpc.aio.init_grpc_aio()
