"""One node on a GPU as far as a node goes without gRPC: machine, executor over device memory, links. A program as well.

Everything is what `cluster.live.build` puts together; only `Host`, its threads and the post are left out, and a line of
text carries what is told. As a program it reads a packed order a line and answers with what the node tells others.
"""

import json
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.codec import decode_many, encode_many
from cluster.live.config import NodeSettings
from cluster.live.node_memory import TakeMemory, take_memory
from cluster.live.transports import Endpoint, open_links
from cluster.node import Node, NodeConfig
from core.commands import Emit, FetchKV, Lend, Revoke, RunStep, Tell
from core.events import Event, Fenced, KVArrived, Lent, NodeEvent, StepDone
from core.ids import Address, NodeId
from core.kv import SlabShape
from core.mix import mix_of
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import LoadFormat, read_model_info

TOKEN = b"a cluster token of 32 bytes here"
CHUNK = 24
NUM_BLOCKS = 128
Letters = list[tuple[Address, Event]]
"""As the post carries them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node is made of. `device` is `cuda`, or `stand-in` where the test has no GPU."""

    node: str
    role: str
    folder: str
    dtype: str
    device: str
    transport: str = "auto"


class PairNode:
    """Owns: the slab, the executor, the links, and the machine."""

    def __init__(self, wanted: Wanted, take: TakeMemory) -> None:
        info = read_model_info(Path(wanted.folder), LoadFormat.DUMMY)
        layout = info.kv_layout(16, wanted.dtype)
        settings = NodeSettings(Path(wanted.folder), wanted.dtype, device=wanted.device)
        shape, name = SlabShape(layout, NUM_BLOCKS), NodeId(wanted.node)
        memory = take(settings, shape, name, lambda phase, share: None)
        self.slab = memory.slab
        config = ExecutorConfig(settings.model, wanted.dtype, memory.device, LoadFormat.DUMMY)
        self.executor = load_executor(config, memory.slab.buffer, shape, digests=memory.digests)
        self.executor.warm_up()
        layout_id = layout.id(info.digest)
        self.links = open_links(
            wanted.transport, Endpoint(name, layout_id, memory.slab, "127.0.0.1", TOKEN, memory.gpu)
        )
        mix = mix_of(wanted.role, CHUNK, 8)
        self.machine = Node(name, NodeConfig(layout_id, layout, NUM_BLOCKS, 512, frozenset(), mix))
        self.num_bytes = 0

    def take(self, events: Sequence[Event]) -> Letters:
        """Handle what has arrived, run what it leads to, and return what is told to others."""
        own, told = deque(events), Letters()
        while own:
            event = own.popleft()
            for command in self.machine.handle(event, 0.0):  # type: ignore[arg-type]
                match command:
                    case RunStep(plan):
                        own.append(StepDone(self.executor.run(plan)))
                    case FetchKV(attempt, fetch, handle, into):
                        self.num_bytes += self.links.fetch(handle, into)
                        own.append(KVArrived(attempt, fetch))
                    case Lend(attempt, reader):
                        self.links.lend(attempt, reader)
                        own.append(Lent(attempt, reader))
                    case Revoke(attempt, reader):
                        self.links.revoke(attempt, reader)
                        own.append(Fenced(attempt, reader))
                    case Emit(gateway, tokens):
                        told.append((gateway, tokens))
                    case Tell(to, event_told):
                        told.append((to, event_told))
            self.machine.check()
        return told

    def close(self) -> None:
        self.links.close()
        self.executor.close()
        self.slab.close()


class OtherNode:
    """A `PairNode` in a process of its own. Owns: the process."""

    def __init__(self, wanted: Wanted) -> None:
        words = json.dumps([getattr(wanted, name) for name in Wanted.__slots__])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.pair_node", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent.parent,
        )
        self.pid = self._process.pid
        self.offer = bytes.fromhex(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the other node is gone; its error is above"
        return line

    def take(self, events: Sequence[NodeEvent]) -> Letters:
        """As `PairNode.take`."""
        assert self._process.stdin is not None
        self._process.stdin.write(encode_many([(Address(""), event) for event in events]).hex() + "\n")
        self._process.stdin.flush()
        return decode_many(bytes.fromhex(self._answer()))

    def close(self) -> str:
        """Its last word: `idle`, or what it still holds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        said = self._process.stdout.read().strip()
        self._process.wait()
        self._process.stdout.close()
        return said


def memory_of(device: str) -> TakeMemory:
    """Of a GPU, or of the stand-in that takes its place."""
    if device != "stand-in":
        return take_memory
    from tests.live.stand_in_node import take_stand_in

    return take_stand_in


def main(words: str) -> None:
    wanted = Wanted(*json.loads(words))
    node = PairNode(wanted, memory_of(wanted.device))
    print(node.links.offer().hex(), flush=True)
    for line in sys.stdin:
        told = node.take([event for _, event in decode_many(bytes.fromhex(line))])
        print(encode_many(told).hex(), flush=True)
    print("idle" if node.machine.is_idle() else "not idle")
    node.close()


if __name__ == "__main__":
    main(sys.argv[1])
