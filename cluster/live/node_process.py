"""One node as a process of its own: `python -m cluster.live.node_process <order's fd> <status' fd>`.

Its order comes over an inherited pipe, which stays open: when the other end closes, whoever started it is gone or
wants it gone, and it exits. What it has to say goes over the second pipe; its log is standard error.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading

from cluster.api.v1.post_pb2 import NodeFailed, NodeStatus, Progress
from cluster.live.building import Build, build_with_model
from cluster.live.frames import read_frame, write_frame
from cluster.live.host import Host
from cluster.live.orders import NodeOrder
from core.errors import ConfigError

EXIT_FAILED, EXIT_BROKEN, EXIT_CONFIG = 1, 70, 78


def main(order_fd: int, status_fd: int, build: Build = build_with_model) -> None:
    """Runs the node until it is told to go, its head is gone, or an invariant breaks. Does not return."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    orders = os.fdopen(order_fd, "rb", buffering=0)
    order = NodeOrder.unpack(read_frame(orders))
    threading.Thread(target=_exit_with_parent, args=(order_fd,), name="lifeline", daemon=True).start()
    try:
        _run(order, status_fd, build)
    except ConfigError as error:
        _say(status_fd, NodeStatus(failed=NodeFailed(why=error.message, problems=error.problems)))
        _exit(EXIT_CONFIG)
    except Exception as error:
        logging.exception("the node could not run")
        _say(status_fd, NodeStatus(failed=NodeFailed(why=f"{type(error).__name__}: {error}")))
        _exit(EXIT_FAILED)


def _run(order: NodeOrder, status_fd: int, build: Build) -> None:
    def progress(phase: str, share: float) -> None:
        _say(status_fd, NodeStatus(progress=Progress(phase=phase, share=share)))

    parts = build(order, progress)
    host = Host(parts, order)
    _say(status_fd, NodeStatus(started=host.start().to_wire()))
    why = host.wait()
    logging.error("%s: %s", parts.node, why)
    _exit(EXIT_BROKEN)


def _exit_with_parent(order_fd: int) -> None:
    """Nobody writes after the order: the read ends when the pipe closes. The kernel gives back what we hold."""
    while os.read(order_fd, 4096):
        pass
    _exit(0)


def _say(status_fd: int, status: NodeStatus) -> None:
    with contextlib.suppress(BrokenPipeError):
        write_frame(status_fd, status.SerializeToString())


def _exit(code: int) -> None:
    """At once, whatever threads are doing: nothing of a node outlives it but its log."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
