"""Lengths of answers, by tenant and class: a prior first, then what was seen, and what was seen lately most."""

import pytest

from scheduler.lengths import MAX_GROUPS, LengthModel


def test_before_any_answer_they_are_spread_around_the_prior() -> None:
    model = LengthModel(256)
    assert model.expected_output("", 0) == pytest.approx(256, rel=0.02)
    assert model.expected_output("", 0, 0.5) == pytest.approx(177, rel=0.03), "the median of a geometric one"
    assert model.remaining("", 0, 1000) == pytest.approx(256, rel=0.1), "it forgets how long it has gone on"


def test_a_tenant_has_its_own_lengths_and_a_new_one_those_of_all() -> None:
    model = LengthModel(256)
    for _ in range(300):
        model.learn("short", 0, 10)
        model.learn("long", 0, 1000)
    assert model.expected_output("short", 0) == pytest.approx(10, rel=0.7)
    assert model.expected_output("short", 0, 0.5) <= 10
    assert model.expected_output("long", 0) == pytest.approx(960, rel=0.1)
    assert model.expected_output("new", 0) == pytest.approx(500, rel=0.1)
    assert model.mean == pytest.approx(500, rel=0.1)


def test_classes_of_one_tenant_are_told_apart() -> None:
    model = LengthModel(100)
    for _ in range(200):
        model.learn("a", 0, 20)
        model.learn("a", 1, 700)
    assert model.expected_output("a", 0, 0.9) < 25
    assert model.expected_output("a", 1, 0.1) > 500


def test_what_was_long_ago_is_forgotten() -> None:
    model = LengthModel(256)
    for _ in range(2000):
        model.learn("a", 0, 10)
    for _ in range(2000):
        model.learn("a", 0, 400)
    assert model.expected_output("a", 0, 0.1) > 300


def test_what_remains_of_an_answer_depends_on_what_it_has() -> None:
    model = LengthModel(256)
    for _ in range(500):
        model.learn("a", 0, 20)
        model.learn("a", 0, 800)
    assert model.remaining("a", 0, 0) == pytest.approx(model.expected_output("a", 0), rel=0.01)
    assert model.remaining("a", 0, 40) == pytest.approx(740, rel=0.1), "the short ones have ended"
    assert model.remaining("a", 0, 10_000_000) == 1.0


def test_quantiles_rise() -> None:
    model = LengthModel(64)
    for tokens in (1, 2, 3, 5, 8, 13, 500, 100_000, 10_000_000):
        model.learn("a", 0, tokens)
    found = [model.expected_output("a", 0, q / 20) for q in range(1, 20)]
    assert found == sorted(found)


def test_no_more_groups_are_kept_than_may_be() -> None:
    model = LengthModel(64)
    for i in range(3 * MAX_GROUPS):
        model.learn(f"tenant {i}", 0, 7)
    assert len(model._groups) == MAX_GROUPS
    assert model.num_seen == 3 * MAX_GROUPS


def test_answers_that_go_on_show_that_those_that_ended_are_too_short_a_sample() -> None:
    """200 answers of 100 or 400 tokens, as many of each, began together; 150 tokens later only the short ones ended."""
    model = LengthModel(64)
    for _ in range(100):
        model.learn("a", 0, 100)
    ended_only = model.expected_output("a", 0)
    model.note_going(("a", 0, 150) for _ in range(100))
    assert ended_only == pytest.approx(100, rel=0.1)
    assert model.expected_output("a", 0, 0.4) <= 110, "as many of the short ones"
    assert model.expected_output("a", 0, 0.75) > 150, "the others are longer than they are by now"
    assert sum(model.lengths("a", 0).shares) == pytest.approx(1.0)


def test_answers_that_no_longer_go_on_are_forgotten() -> None:
    model = LengthModel(64)
    for _ in range(100):
        model.learn("a", 0, 100)
    before = model.expected_output("a", 0)
    model.note_going([("a", 0, 150)] * 50 + [("new", 3, 7)])
    assert model.expected_output("a", 0) > before
    model.note_going([])
    assert model.expected_output("a", 0) == before


def test_a_steady_stream_is_learned_without_waiting_for_its_longest_answers() -> None:
    """One answer begins with every token's time, by turns of 10 and 1,000 tokens; at time 300 only short ones ended."""
    model, now = LengthModel(300), 300
    lengths = [10 if start % 2 else 1000 for start in range(now)]
    for start, length in enumerate(lengths):
        if start + length <= now:
            model.learn("a", 0, length)
    model.note_going(("a", 0, now - start) for start, length in enumerate(lengths) if start + length > now)
    assert model.expected_output("a", 0, 0.45) <= 10
    assert model.expected_output("a", 0, 0.55) > 200
