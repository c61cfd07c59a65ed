"""Waits that end when they should."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.sources import Source, sources


def simple_queues(source: Source) -> set[str]:
    """The names under which a file keeps a `SimpleQueue`."""
    names = set[str]()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and "SimpleQueue" in ast.unparse(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {ast.unparse(target) for target in targets}
    return names


def timed_waits(source: Source) -> Iterator[str]:
    """Where a `SimpleQueue` is waited on with a limit."""
    names = simple_queues(source)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "get":
            continue
        if (node.args or node.keywords) and ast.unparse(node.func.value) in names:
            yield f"{source.path}:{node.lineno}"


def test_no_simple_queue_is_waited_on_with_a_limit() -> None:
    """Its timed `get` may wait for ever where its thread is kept off the processor; that of `Queue` does not."""
    found = [place for s in sources("cluster", "engine", "kv_transfer", "experiments") for place in timed_waits(s)]
    assert found == []


def test_a_limit_on_a_simple_queue_would_be_seen() -> None:
    made = "self.a: SimpleQueue[int] = SimpleQueue()\nb = SimpleQueue()\nc = Queue()\n"
    text = made + "self.a.get()\nself.a.get(timeout=1)\nb.get(True, 1)\nc.get(timeout=1)"
    assert list(timed_waits(Source(Path("x.py"), text, ast.parse(text)))) == ["x.py:5", "x.py:6"]
