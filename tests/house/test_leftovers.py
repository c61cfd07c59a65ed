"""The guard around the test run notices what it says that it notices (its control arm)."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.leftovers import holdings


def _descriptor() -> Callable[[], object]:
    read, write = os.pipe()
    return lambda: (os.close(read), os.close(write))


def _segment() -> Callable[[], object]:
    number = os.memfd_create("penstock-test")
    return lambda: os.close(number)


def _thread() -> Callable[[], object]:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left over")
    thread.start()
    return lambda: (stop.set(), thread.join())


def _child() -> Callable[[], object]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    return lambda: child.communicate(b"\n")


@pytest.mark.parametrize(
    ("leave", "word"),
    [(_descriptor, "pipe"), (_segment, "memfd"), (_thread, "thread left over"), (_child, "child")],
)
def test_what_a_test_leaves_is_named_until_it_is_gone(leave: Callable[[], Callable[[], object]], word: str) -> None:
    before = holdings()
    take_away = leave()
    left = holdings().beyond(before)
    take_away()
    assert any(word in what for what in left)
    assert not holdings().beyond(before)
