"""Who should hold which prefix: found by halving, bounded, and right after any order of changes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from core.ids import NodeId
from scheduler.prefix_index import PrefixIndex, strided

A, B = NodeId("a"), NodeId("b")


def keys(stem: str, number: int) -> tuple[bytes, ...]:
    """Keys of one prompt."""
    return tuple(f"{stem}{i}".encode() for i in range(number))


def test_the_deepest_prefix_that_anybody_holds_is_found() -> None:
    index = PrefixIndex()
    a, b = index.join(A, 100), index.join(B, 100)
    index.add(A, keys("x", 7))
    index.add(B, keys("x", 3))
    assert index.deepest(keys("x", 20)) == (7, a)
    assert index.deepest(keys("x", 2)) == (2, a | b)
    assert index.deepest(keys("y", 5)) == (0, 0)
    assert index.deepest(()) == (0, 0)
    assert (index.depth(keys("x", 20), a, 20), index.depth(keys("x", 20), b, 7)) == (7, 3)
    index.check()


def test_the_ends_of_prefixes_that_nobody_used_lately_go_first() -> None:
    index = PrefixIndex()
    bit = index.join(A, 6)
    index.add(A, keys("x", 4))
    index.add(A, keys("y", 4))
    assert index.depth(keys("x", 4), bit, 4) == 2, "two of six places are left, for the beginning"
    assert index.depth(keys("y", 4), bit, 4) == 4
    index.check()


def test_a_node_that_is_lost_holds_nothing_and_leaves_its_bit_to_the_next() -> None:
    index = PrefixIndex()
    a = index.join(A, 10)
    index.join(B, 10)
    index.add(A, keys("x", 4))
    index.lose(A)
    assert index.deepest(keys("x", 4)) == (0, 0) and len(index) == 0
    assert index.join(NodeId("c"), 10) == a
    index.check()


def test_a_node_that_was_flushed_holds_nothing_and_may_hold_again() -> None:
    index = PrefixIndex()
    a, b = index.join(A, 10), index.join(B, 10)
    index.add(A, keys("x", 4))
    index.add(B, keys("x", 2))
    index.empty(A)
    assert index.deepest(keys("x", 4)) == (2, b)
    index.check()
    index.add(A, keys("x", 3))
    assert index.deepest(keys("x", 4)) == (3, a)
    index.check()


def test_what_turned_out_to_be_gone_is_forgotten() -> None:
    index = PrefixIndex()
    bit = index.join(A, 10)
    index.add(A, keys("x", 6))
    index.forget(A, keys("x", 6)[2:])
    index.forget(NodeId("unknown"), keys("x", 6))
    assert index.depth(keys("x", 6), bit, 6) == 2
    index.check()


def test_long_prompts_are_looked_up_by_few_keys() -> None:
    assert strided([bytes([i]) for i in range(20)], 16) == (bytes([7]), bytes([15])), "128 tokens each"
    assert strided([b"a", b"b"], 512) == (b"a", b"b")
    assert strided([b"a"], 16) == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 9), st.sampled_from("afl"))))
def test_masks_are_right_after_any_order_of_changes(changes: list[tuple[str, str, int, str]]) -> None:
    index, here = PrefixIndex(), set[str]()
    for node, stem, number, what in changes:
        if node not in here:
            index.join(NodeId(node), 12)
            here.add(node)
        if what == "a":
            index.add(NodeId(node), keys(stem, number))
        elif what == "f":
            index.forget(NodeId(node), keys(stem, 9)[number:])
        else:
            index.lose(NodeId(node))
            here.discard(node)
        index.check()
