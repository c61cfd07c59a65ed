"""The numbers of a link, without any stream."""

import random

import pytest

from cluster.api.v1.post_pb2 import Envelope
from cluster.live.link import ACK_EVERY, MAX_EARLY, MAX_UNACKNOWLEDGED, Link, LinkBroken


def sent(link: Link) -> list[int]:
    """The numbers that a new stream would carry now."""
    found, at = [], 0
    while (envelope := link.next_after(at)) is not None:
        found.append(at := envelope.number)
    return found


def test_envelopes_keep_their_numbers_until_they_are_acknowledged() -> None:
    link = Link(0.0, 5.0)
    for _ in range(5):
        link.post(Envelope(), 0.0)
    link.heard(2, 0.0)
    assert sent(link) == [3, 4, 5] and sent(link) == [3, 4, 5]


def test_numbers_in_any_order_and_number_arrive_once() -> None:
    link, order = Link(0.0, 5.0), [n for n in range(1, 501) for _ in range(3)]
    random.Random(1).shuffle(order)
    arrived = [number for number in order if link.receive(number)]
    assert sorted(arrived) == list(range(1, 501))
    assert link.mark == 500 and link.num_duplicates == 1000


def test_early_numbers_are_bounded() -> None:
    link = Link(0.0, 5.0)
    for number in range(2, MAX_EARLY + 2):
        link.receive(number)
    with pytest.raises(LinkBroken, match="1 is missing"):
        link.receive(MAX_EARLY + 2)


def test_a_full_link_takes_nothing_more() -> None:
    link = Link(0.0, 5.0)
    assert all(link.post(Envelope(), 0.0) for _ in range(MAX_UNACKNOWLEDGED))
    assert link.post(Envelope(), 0.0) is None


def test_a_busy_one_way_link_owes_acknowledgements_before_the_heartbeat() -> None:
    link = Link(0.0, 5.0)
    for number in range(1, ACK_EVERY + 1):
        assert not link.owes_ack
        link.receive(number)
    assert link.owes_ack
    assert link.stamp(Envelope()).ack == ACK_EVERY and not link.owes_ack


def test_silence_and_missing_acknowledgements_sever() -> None:
    link = Link(0.0, 5.0)
    assert link.why_severed(5.0) is None
    assert "heard" in str(link.why_severed(5.1))
    link.post(Envelope(), 0.0)
    link.heard(0, 5.0)
    assert "unacknowledged" in str(link.why_severed(5.1))
    link.heard(1, 5.0)
    assert link.why_severed(5.1) is None


def test_a_pause_of_our_own_is_not_the_peers_silence() -> None:
    link = Link(0.0, 5.0)
    link.post(Envelope(), 1.0)
    link.excuse(60.0)
    assert link.why_severed(64.0) is None
    assert link.why_severed(65.5) is not None
