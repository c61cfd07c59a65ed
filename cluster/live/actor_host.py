"""The inside of an actor that runs a node. Imports no Ray."""

import logging
import threading
from queue import SimpleQueue

from cluster.api.v1.post_pb2 import NodeFailed, NodeStatus
from cluster.api.v1.post_pb2 import Progress as ProgressMessage
from cluster.live.building import Build
from cluster.live.host import Host
from cluster.live.orders import NodeOrder
from core.errors import ConfigError


class ActorHost:
    """One node inside an actor. Every method answers with bytes of our own, so that Ray pickles none of our types.

    Owns: the node's host. The actor's process is its node's: when the node is over, the actor is killed.
    """

    def __init__(self, build: Build) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        self._build = build
        self._statuses: SimpleQueue[bytes] = SimpleQueue()
        self._over: SimpleQueue[str] = SimpleQueue()

    def next_status(self) -> bytes:
        """The next `NodeStatus` of the start; the last one says `started` or `failed`."""
        return self._statuses.get()

    def start(self, order: bytes) -> None:
        """Makes and starts the node, and says how that goes through `next_status`."""
        try:
            self._start(NodeOrder.unpack(order))
        except ConfigError as error:
            self._say(NodeStatus(failed=NodeFailed(why=error.message, problems=error.problems)))
        except Exception as error:
            logging.exception("the node could not run")
            self._say(NodeStatus(failed=NodeFailed(why=f"{type(error).__name__}: {error}")))

    def _start(self, order: NodeOrder) -> None:
        host = Host(self._build(order, self._progress), order)
        started = host.start()
        threading.Thread(target=lambda: self._over.put(host.wait()), name="watch", daemon=True).start()
        self._say(NodeStatus(started=started.to_wire()))

    def watch(self) -> str:
        """Answers when the node is over, with the reason; never, if the process dies first."""
        return self._over.get()

    def _progress(self, phase: str, share: float) -> None:
        self._say(NodeStatus(progress=ProgressMessage(phase=phase, share=share)))

    def _say(self, status: NodeStatus) -> None:
        self._statuses.put(status.SerializeToString())
