"""Safety from errors that came true: a quantile, bounded, and forgotten with time."""

import pytest

from scheduler.margins import BOUNDS, MAX_AGE_S, MAX_ERRORS, Margin


def test_it_begins_with_a_prior() -> None:
    assert 0.05 < Margin(0.9).safety < 0.2


def test_nine_of_ten_that_come_true_are_within_the_bound() -> None:
    margin = Margin(0.9)
    for i in range(200):
        margin.learn(1.0, 1.0 + (i % 20) / 100, 1.0, i / 10)
    actual = sorted(1.0 + (i % 20) / 100 for i in range(200))
    assert margin.bound(1.0, 1.0) == pytest.approx(actual[180], abs=0.02)


def test_errors_count_against_half_the_target_where_little_was_predicted() -> None:
    margin = Margin(0.9)
    for i in range(100):
        margin.learn(0.001, 0.011, 2.0, i / 10)
    assert margin.safety == pytest.approx(0.01, abs=0.005), "10 ms of a target of 2 s"
    assert margin.bound(1.9, 2.0) < 2.0


def test_it_is_bounded_both_ways() -> None:
    margin = Margin(0.9)
    for i in range(100):
        margin.learn(1.0, 100.0, 1.0, i / 10)
    assert margin.safety == BOUNDS[1]
    for i in range(MAX_ERRORS):
        margin.learn(10.0, 0.0, 1.0, 10 + i / 10)
    assert margin.safety == BOUNDS[0]


def test_where_nothing_comes_true_any_more_it_returns_to_the_prior() -> None:
    margin, prior = Margin(0.9), Margin(0.9).safety
    for i in range(100):
        margin.learn(1.0, 3.0, 1.0, i / 10)
    margin.forget(10 + MAX_AGE_S)
    assert margin.safety == prior


def test_other_predictions_begin_with_what_was_better_than_the_prior_and_forget_what_was_worse() -> None:
    good, bad, prior = Margin(0.9), Margin(0.9), Margin(0.9).safety
    for number in range(100):
        good.learn(1.0, 1.01, 1.0, float(number) / 10)
        bad.learn(1.0, 1.6, 1.0, float(number) / 10)
    assert good.safety < 0.02 and bad.safety > 0.5
    good.reset()
    bad.reset()
    assert good.safety < 0.02 and bad.safety == prior
