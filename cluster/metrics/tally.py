"""What is counted of requests: each ended one once, from its ledger, and those that were turned away at the door."""

from collections import Counter, defaultdict
from collections.abc import Callable

from cluster.gateway.ledger import GAP_BOUNDS_S, RequestLedger
from cluster.load_report import STAGES, loss_of
from cluster.metrics.histogram import Histogram
from core.errors import Overloaded, PenstockError, Unavailable
from core.goodput import Outcome

TTFT_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
"""vLLM's own, so that boards can lay both over each other. Source: its metrics page."""

E2E_BOUNDS_S = (
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
STAGE_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
SIZE_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6)
UNACCOUNTED = "unaccounted"
STAGE_NAMES = (*STAGES, UNACCOUNTED)


class ClassTimes:
    """The histograms of one SLO class."""

    def __init__(self) -> None:
        self.ttft = Histogram(TTFT_BOUNDS_S)
        self.tpot = Histogram(GAP_BOUNDS_S)
        self.itl = Histogram(GAP_BOUNDS_S)
        self.e2e = Histogram(E2E_BOUNDS_S)

    def add(self, ledger: RequestLedger) -> None:
        """Times of one request; of one that did not finish only those that it has."""
        if ledger.ttft_s is not None:
            self.ttft.add(ledger.ttft_s)
            if ledger.last_token_s is not None:
                self.itl.add_counts(ledger.gaps, ledger.last_token_s - ledger.ttft_s)
        if ledger.outcome is Outcome.FINISHED:
            self.e2e.add(ledger.wall_s)
            if (tpot_s := ledger.record.tpot_s) is not None:
                self.tpot.add(tpot_s)


class RequestTally:
    """Sums over all requests of this gateway. Owns: the counts; they only rise.

    `tenants` are those that may stand in a label: who needs no key may name any, and all of those are one, "".
    """

    def __init__(self, tenants: Callable[[], frozenset[str]]) -> None:
        self._tenants = tenants
        self.requests: Counter[tuple[str, str, str, str]] = Counter()
        self.goodput: Counter[tuple[str, str]] = Counter()
        self.misses: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.finishes: Counter[str] = Counter()
        self.prompt_tokens: Counter[str] = Counter()
        self.cached_tokens: Counter[str] = Counter()
        self.generation_tokens: Counter[str] = Counter()
        self.num_retries = 0
        self.num_turned_away = 0
        self.classes: defaultdict[str, ClassTimes] = defaultdict(ClassTimes)
        self.stages = {name: Histogram(STAGE_BOUNDS_S) for name in STAGE_NAMES}
        self.queued = Histogram(E2E_BOUNDS_S)
        self.prefill = Histogram(E2E_BOUNDS_S)
        self.after_prefill = Histogram(E2E_BOUNDS_S)
        self.inference = Histogram(E2E_BOUNDS_S)
        self.prompt_sizes = Histogram(SIZE_BOUNDS)
        self.answer_sizes = Histogram(SIZE_BOUNDS)

    @property
    def num_met(self) -> int:
        """Requests that met their targets."""
        return self.goodput.total()

    @property
    def num_counted(self) -> int:
        """Requests that goodput counts."""
        return self.num_met + self.misses.total()

    def add(self, ledger: RequestLedger) -> None:
        """Count an ended request."""
        met, outcome, slo_class = ledger.met, ledger.outcome, ledger.slo_class
        tenant = ledger.tenant if ledger.tenant in self._tenants() else ""
        word = "none" if met is None else "met" if met else "missed"
        self.requests[slo_class, tenant, outcome.value, word] += 1
        if met:
            self.goodput[slo_class, tenant] += 1
        elif met is False and ledger.slo is not None:
            self.misses[loss_of(ledger.record, ledger.timing, ledger.slo)] += 1
        if outcome is Outcome.REFUSED:
            self.refusals[ledger.code] += 1
        elif outcome in (Outcome.FAILED, Outcome.EXPIRED):
            self.failures[ledger.code] += 1
        self.num_retries += max(0, ledger.num_attempts - 1)
        self.prompt_tokens[tenant] += ledger.num_prompt_tokens
        self.cached_tokens[tenant] += ledger.num_cached_tokens or 0
        self.generation_tokens[tenant] += ledger.num_tokens
        self.classes[slo_class].add(ledger)
        if outcome is Outcome.FINISHED:
            self._add_finished(ledger)

    def turn_away(self, error: PenstockError, has_slo: bool) -> None:
        """Count what was not taken. Where it had targets and it was our want of room, goodput has missed one."""
        self.refusals[error.code] += 1
        self.num_turned_away += 1
        if has_slo and isinstance(error, Overloaded | Unavailable):
            self.misses[Outcome.REFUSED.value] += 1

    def _add_finished(self, ledger: RequestLedger) -> None:
        timing = ledger.timing
        for stage in STAGES:
            self.stages[stage].add(getattr(timing, f"{stage}_s"))
        self.stages[UNACCOUNTED].add(max(0.0, ledger.unaccounted_s))
        after_s = timing.reserve_s + timing.handoff_s + timing.queue_decode_s + timing.decode_s
        self.queued.add(timing.admit_s + timing.queue_prefill_s)
        self.prefill.add(timing.prefill_s)
        self.after_prefill.add(after_s)
        self.inference.add(timing.prefill_s + after_s)
        self.prompt_sizes.add(ledger.num_prompt_tokens)
        self.answer_sizes.add(ledger.num_tokens)
        self.finishes["" if ledger.finish is None else ledger.finish.value] += 1
