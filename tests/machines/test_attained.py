"""What is attained beside what was forecast: few say little, bursts say less, and a layout that disappoints is left."""

import pytest

from core.events import StreamEnded
from core.goodput import Outcome
from core.ids import RequestId
from core.mix import Mix
from core.request import SLO
from core.stats import Timing
from scheduler.attained import Attained, AttainedConfig
from scheduler.controller import ControllerConfig
from scheduler.layouts import Option
from scheduler.plans import Forecast
from tests.machines.controlled import Bench, Phase

TOLD = SLO(2.0, 0.02)
MET, SLOW, LATE = Timing(prefill_s=1.0, decode_s=1.9), Timing(prefill_s=1.0, decode_s=2.1), Timing(prefill_s=2.1)


def option(role: str, goodput_rps: float = 9.0) -> Option:
    mix = Mix(role != "decode", role != "prefill", 512, 64)
    return Option((mix,), role, Forecast(goodput_rps, goodput_rps / 10.0, 20.0))


IS, OTHER = option("mixed"), option("decode")


class Account:
    """An account of requests, each of which ends at once."""

    def __init__(self) -> None:
        self.attained = Attained(AttainedConfig())
        self.num = 0

    def arrive(self, num: int) -> list[RequestId]:
        names = [RequestId(f"r{self.num + i}") for i in range(num)]
        self.num += num
        for name in names:
            self.attained.note_arrived(name, TOLD, 10.0)
        return names

    def end(self, num: int, timing: Timing | None = MET, outcome: Outcome = Outcome.FINISHED) -> "Account":
        for name in self.arrive(num):
            self.attained.note_ended(StreamEnded(name, outcome, 101, timing))
        return self

    def turn_away(self, num: int) -> "Account":
        for name in self.arrive(num):
            self.attained.note_turned_away(name)
        return self

    def goodput(self, of: Option, dispersion: float = 1.0, now: float = 20.0) -> float:
        self.attained.hold(IS.key, IS.forecast.goodput_rps / 10.0, dispersion, now)
        return self.attained.corrected(of, 10.0, now).forecast.goodput_rps


def test_what_is_attained_as_forecast_corrects_nothing() -> None:
    assert Account().end(90).turn_away(10).goodput(IS) == pytest.approx(9.0)


def test_half_turned_away_is_half_of_what_is_and_partly_of_what_was_never_tried() -> None:
    account = Account().end(50).turn_away(50)
    assert account.goodput(IS) == pytest.approx(5.5, abs=0.1), "and one deviation, 5 %"
    assert account.goodput(OTHER) == pytest.approx(9.0 * (5.5 / 9.0) ** 0.5, abs=0.1)


@pytest.mark.parametrize("timing", [SLOW, LATE])
def test_an_answer_that_misses_either_target_is_a_miss(timing: Timing) -> None:
    assert Account().end(50).end(50, timing).goodput(IS) == pytest.approx(5.5, abs=0.1)


def test_more_than_forecast_counts_too_and_never_for_more_than_comes() -> None:
    account = Account().end(100)
    assert 9.5 < account.goodput(IS) < 10.0
    assert account.goodput(option("mixed", 9.9)) == 10.0


def test_few_say_nothing_and_bursts_share_one_fate() -> None:
    assert Account().turn_away(7).goodput(IS) == 9.0
    account = Account().end(60).turn_away(40)
    assert account.goodput(IS, dispersion=1.0) < account.goodput(IS, dispersion=9.0) < 9.0
    assert account.goodput(IS, dispersion=100.0) == 9.0


def test_who_left_or_was_not_measured_says_nothing() -> None:
    account = Account().end(90).turn_away(10)
    account.end(100, outcome=Outcome.CANCELLED, timing=None).end(100, timing=None)
    for name in account.arrive(100):
        account.attained.note_gone(name)
    assert account.goodput(IS) == pytest.approx(9.0)


def test_after_a_change_only_who_came_later_counts_and_what_was_is_remembered_for_a_while() -> None:
    account = Account().end(50).turn_away(50)
    was = account.goodput(IS)
    account.attained.begin(20.0)
    account.end(100)
    assert account.goodput(OTHER) == 9.0, "they came before the layout that is had begun"
    assert account.attained.corrected(IS, 10.0, 300.0).forecast.goodput_rps == was
    assert account.attained.corrected(IS, 10.0, 400.0).forecast.goodput_rps == 9.0
    account.goodput(IS, now=400.0)
    account.attained.forget(400.0)
    assert account.attained.corrected(IS, 10.0, 400.0).forecast.goodput_rps == 9.0


def test_what_is_long_ago_counts_less_and_less() -> None:
    account = Account().turn_away(300)
    for _ in range(6):
        account.end(200).goodput(IS)
    assert account.goodput(IS) > 8.5


class Disappointing(Bench):
    """Turns six of ten away at the first layout that the controller takes by itself; all others are answered."""

    bad: dict[str, str] | None = None

    def _arrive(self, phase: Phase) -> None:
        super()._arrive(phase)
        name = RequestId(f"r{self._num}")
        if self.changed_at and self.bad is None:
            self.bad = self.now_roles
        if self.now_roles == self.bad and self._num % 10 < 6:
            self.scheduler.ratio.turned_away(name)
        else:
            self.scheduler.ratio.observe(StreamEnded(name, Outcome.FINISHED, 101, MET), self.now)


def test_a_layout_that_attains_far_less_than_was_forecast_is_left_and_not_tried_again_at_once() -> None:
    bench = Disappointing(ControllerConfig(slo=TOLD))
    bench.run(Phase(120, 12, 3000, 250, spread=0.2))
    assert bench.bad is not None
    assert bench.now_roles != bench.bad
    first, second = bench.changed_at[:2]
    assert second - first < 20.0
    assert len(bench.changed_at) < 6


def test_the_account_holds_nobody_who_is_gone() -> None:
    bench = Bench(ControllerConfig(slo=TOLD)).run(Phase(10, 12, 3000, 250))
    attained, ratio = bench.controller.attained, bench.scheduler.ratio
    assert attained._open
    for name in list(attained._open)[::2]:
        ratio.turned_away(name)
    for name in list(attained._open):
        ratio.forgotten(name)
    assert not attained._open
