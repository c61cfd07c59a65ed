"""Two nodes that are on different hosts as far as the kernel tells: network namespaces, joined by a thin link.

Needs the right to make network namespaces; where it is missing, the test says so.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from core.ids import NodeId
from tests.transports.namespace_node import SHAPE

pytestmark = pytest.mark.slow

OWNER, READER = NodeId("owner@1"), NodeId("reader@1")
RATE = "8mbit"
"""2 MiB take longer than the progress limit, so pieces have to fit the link."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Namespace:
    """One namespace with its end of the link. Owns: both."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device

    def ip(self, *words: str) -> None:
        ip("-n", self.name, *words)

    def set_up(self, address: str) -> None:
        self.ip("link", "set", "lo", "up")
        self.ip("addr", "add", f"{address}/24", "dev", self.device)
        self.ip("link", "set", self.device, "up")
        limit = ["tc", "-n", self.name, "qdisc", "add", "dev", self.device, "root", "tbf", "rate", RATE]
        subprocess.run([*limit, "burst", "32kb", "latency", "200ms"], check=True, capture_output=True)


class Node:
    """A process in a namespace."""

    def __init__(self, space: Namespace, node: NodeId, address: str) -> None:
        elsewhere = {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", space.name, sys.executable, "-m", "tests.transports.namespace_node"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command, node, address], stdin=pipe, stdout=pipe, text=True, env={**os.environ, **elsewhere}
        )

    def ask(self, deed: str, **arguments: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"deed": deed, **arguments}), file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def spaces() -> Iterator[tuple[Namespace, Namespace]]:
    names = [f"penstock-{os.getpid()}-{side}" for side in ("a", "b")]
    devices = [f"pk{os.getpid()}{side}" for side in ("a", "b")]
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("network namespaces cannot be made here: no iproute2")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", "name", devices[1], "netns", names[1])
        made = (Namespace(names[0], devices[0]), Namespace(names[1], devices[1]))
        for space, address in zip(made, ("10.199.0.1", "10.199.0.2"), strict=True):
            space.set_up(address)
    except subprocess.CalledProcessError as error:
        take_down(names)
        pytest.skip(f"network namespaces cannot be made here: {error.stderr!s}")
    yield made
    take_down(names)


def take_down(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def nodes(spaces: tuple[Namespace, Namespace]) -> Iterator[tuple[Node, Node]]:
    made = (Node(spaces[0], OWNER, "10.199.0.1"), Node(spaces[1], READER, "10.199.0.2"))
    yield made
    for node in made:
        node.close()


def fetch(reader: Node, digests: list[str]) -> str:
    return reader.ask("fetch", owner=OWNER, blocks=list(range(len(digests))), generation=7, digests=digests)


def test_nodes_of_two_namespaces_move_kv_by_gloo_over_a_thin_link_and_outlive_its_loss(
    spaces: tuple[Namespace, Namespace], nodes: tuple[Node, Node]
) -> None:
    owner, reader = nodes
    digests = [owner.ask("write", block=block, generation=7) for block in range(40)]
    owner.ask("lend", attempt="r#1", reader=READER)
    assert reader.ask("bind", offer=owner.ask("offer")) == "gloo", "no memory is shared between two hosts"
    assert fetch(reader, digests) == str(40 * SHAPE.layout.bytes_per_block)
    assert [reader.ask("digest", block=block) for block in range(40)] == digests

    answers: list[str] = []
    fetching = threading.Thread(target=lambda: answers.append(fetch(reader, digests)))
    fetching.start()
    fetching.join(0.5)
    spaces[0].ip("link", "set", spaces[0].device, "down")
    fetching.join(30)
    assert answers[0].startswith("PeerLost: owner@1 is gone"), answers

    spaces[0].ip("link", "set", spaces[0].device, "up")
    reader.ask("bind", offer=owner.ask("offer"))
    assert fetch(reader, digests[:4]) == str(4 * SHAPE.layout.bytes_per_block)
