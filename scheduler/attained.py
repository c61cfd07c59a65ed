"""What is attained, held against what was forecast: requests since the last change say what no formula knows."""

from dataclasses import dataclass, replace
from math import sqrt

from core.events import StreamEnded
from core.goodput import Outcome
from core.ids import RequestId
from core.request import SLO
from core.stats import Timing
from scheduler.layouts import Option

Key = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class AttainedConfig:
    """Those count that came `grace_s` after a change, once `min_known` of them were turned away or have ended; where
    more than `max_known` have, the older ones count half. A share that is off by less than `sigmas` standard deviations
    is taken to be as forecast. What is off for what is, is off for layouts that were never tried by its power of
    `in_common`. After `lasts_s` what a layout attained says nothing any more.
    """

    grace_s: float = 2.0
    min_known: int = 8
    max_known: int = 100
    sigmas: float = 1.0
    in_common: float = 0.5
    lasts_s: float = 300.0


class Attained:
    """Owns: what became of the requests since the last change, and how far off forecasts of earlier layouts were."""

    def __init__(self, config: AttainedConfig) -> None:
        self._config = config
        self._open: dict[RequestId, SLO] = {}
        self._counts_from = float("-inf")
        self._num_arrived = self._num_away = self._num_met = self._num_missed = 0.0
        self._factor = 1.0
        self._by_key: dict[Key, tuple[float, float]] = {}

    def begin(self, now: float) -> None:
        """A layout is taken: what was let in before says nothing of it."""
        self._open.clear()
        self._counts_from = now + self._config.grace_s
        self._num_arrived = self._num_away = self._num_met = self._num_missed = 0.0
        self._factor = 1.0

    def forget(self, now: float) -> None:
        """The load or the nodes are others now."""
        self._by_key.clear()
        self.begin(now)

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────

    def note_arrived(self, request: RequestId, slo: SLO, now: float) -> None:
        """Before it is let in or refused."""
        if now >= self._counts_from:
            self._num_arrived += 1
            self._open[request] = slo

    def note_turned_away(self, request: RequestId) -> None:
        """It was refused, or gets no answer for another reason: a miss."""
        self._num_away += self._open.pop(request, None) is not None

    def note_ended(self, event: StreamEnded) -> None:
        """What it got."""
        if event.outcome is not Outcome.FINISHED or event.timing is None:
            self.note_gone(event.request)
        elif (slo := self._open.pop(event.request, None)) is not None:
            has_met = _has_met(event.timing, event.num_tokens, slo)
            self._num_met += has_met
            self._num_missed += not has_met

    def note_gone(self, request: RequestId) -> None:
        """Who left, or was not measured, says nothing."""
        self._num_arrived -= self._open.pop(request, None) is not None

    # ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, key: Key, forecast: float, dispersion: float, now: float) -> None:
        """Hold what is attained by the layout that is, of all that comes, against its forecast.

        The more unevenly requests come, by their `dispersion`, the more of them share one fate.
        """
        num_ended = self._num_met + self._num_missed
        num = self._num_away + num_ended
        if num < self._config.min_known or forecast <= 0.0:
            return
        share = 1.0 - self._num_away / max(self._num_arrived, num)
        share *= self._num_met / num_ended if num_ended else 1.0
        likely = self._config.sigmas * sqrt((share * (1.0 - share) + 1.0 / num) * dispersion / num)
        self._factor = min(max(forecast, share - likely), share + likely) / forecast
        self._by_key[key] = self._factor, now
        if num > self._config.max_known:
            self._halve()

    def _halve(self) -> None:
        """What is long ago counts less and less."""
        self._num_arrived, self._num_away = self._num_arrived / 2, self._num_away / 2
        self._num_met, self._num_missed = self._num_met / 2, self._num_missed / 2

    def corrected(self, option: Option, rate_rps: float, now: float) -> Option:
        """The option, its forecast times what it attained of it before, or what is attained now of what is."""
        factor, at = self._by_key.get(option.key, (1.0, float("-inf")))
        if now - at > self._config.lasts_s:
            factor = self._factor**self._config.in_common
        was = option.forecast
        goodput, attainment = min(rate_rps, was.goodput_rps * factor), min(1.0, was.attainment * factor)
        return replace(option, forecast=replace(was, goodput_rps=goodput, attainment=attainment))


def _has_met(timing: Timing, num_tokens: int, slo: SLO) -> bool:
    first_s = timing.admit_s + timing.queue_prefill_s + timing.prefill_s
    after_s = timing.reserve_s + timing.handoff_s + timing.queue_decode_s + timing.decode_s
    return first_s <= slo.ttft_s and after_s <= slo.tpot_s * max(1, num_tokens - 1)
