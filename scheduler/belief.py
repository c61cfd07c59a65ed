"""What one node's steps are believed to cost: as it was told or as was learned, corrected by what steps then took."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

from core.costs import NodeCosts, StepWork
from core.stats import NodeStats

NEUTRAL = NodeCosts(0.008, 0.008, 5e-5, 2e-9, 5e-5, 2e-8, 0.5)
"""Where a node begins of which nothing is known: about a model of 8 B on one large GPU. What it really is shows within
its first reports; until then nobody is refused for it."""

FORGETTING = 0.95
"""What is left of a report's weight after the next one: at four reports a second the last 5 seconds count."""

TOLD_BOUNDS = (0.2, 5.0)
"""How far steps may lead a told price: more than this is a wrong table, which a correction does not mend."""

LEARNED_BOUNDS = (1e-3, 1e3)

PRIOR_WEIGHT = 0.05
"""How many reports the uncorrected price counts for, in each of the two factors."""

HIDDEN_WEIGHT = 0.2
"""By how much what hides in a report's steps holds the two factors together, in reports of the hidden part alone."""

SHAPE_WEIGHT = 0.003
"""The same for each single price, where none was told."""


@dataclass(slots=True)
class Belief:
    """The prices of one node.

    Owns: sums over its reports, old ones forgotten exponentially. Each report says how long the steps since the last
    one took together, and what they consisted of. With told prices two factors are fitted to that, one for what prompts
    add to a step and one for the rest; where nothing was told, each price is fitted, from `NEUTRAL` on. Both fits are
    least squares of relative errors, pulled towards what they begin with, so that what cannot be told apart stays as
    it was: a node that only prefills says nothing of rows. What hides in mixed steps is taken by the prices of before;
    where nothing was told, how much of it does is fitted with them. Where prices were told, what hides holds the two
    factors together: of a small chunk that hides behind the weights next to nothing shows, and an error of a tenth in
    the whole step would be taken for one of three times in its price, by which large chunks are then reckoned.
    """

    told: NodeCosts | None
    costs: NodeCosts = NEUTRAL
    factors: tuple[float, float] = (1.0, 1.0)
    num_reports: int = 0
    _work: StepWork = field(default_factory=StepWork)
    _busy_s: float = 0.0
    _learned: NodeCosts = NEUTRAL
    _two: "_Fit" = field(default_factory=lambda: _Fit(2))
    _seven: "_Fit" = field(default_factory=lambda: _Fit(7))

    def __post_init__(self) -> None:
        self.costs = self.told or NEUTRAL

    @property
    def is_proven(self) -> bool:
        """Whether it was held against steps that really ran."""
        return self.num_reports > 0

    def observe(self, stats: NodeStats) -> bool:
        """Learn from the steps since the last report; False where there were none. Counters that fell mean nothing."""
        work, busy_s = stats.work.minus(self._work), stats.busy_s - self._busy_s
        self._work, self._busy_s = stats.work, stats.busy_s
        num_steps = work.num_prefill_steps + work.num_decode_steps
        if num_steps <= 0 or busy_s <= 0.0 or not (work.prefill_tokens or work.num_rows):
            return False
        self.num_reports += 1
        self._learn_factors(work, busy_s)
        if self.told is None:
            self._learn_prices(work, busy_s)
        return True

    def _learn_factors(self, work: StepWork, busy_s: float) -> None:
        base = self.told or NEUTRAL
        straight = base.for_steps_of(work.lines_per_prefill_step)
        self._two.add(_parts(straight, self.factors, work), busy_s)
        if self.told and work.num_mixed_steps:
            self._two.tie(straight.overlap * straight.hidden_of(work) / busy_s, HIDDEN_WEIGHT)
        low, high = TOLD_BOUNDS if self.told else LEARNED_BOUNDS
        start = [self._two.common_scale()] * 2 if self.num_reports == 1 else self.factors
        solved = self._two.solve(start, PRIOR_WEIGHT)
        prefill, decode = (min(high, max(low, factor)) for factor in solved)
        self.factors = (prefill, decode)
        self.costs = _scaled(base, prefill, decode)

    def _learn_prices(self, work: StepWork, busy_s: float) -> None:
        """Each price, beginning with the neutral ones as the two factors correct them."""
        before = self.costs if self.num_reports == 1 else self._learned
        self._seven.add(_terms(before, work), busy_s)
        *prices, overlap = self._seven.solve_positive(astuple(self.costs)[:7], SHAPE_WEIGHT)
        fixed, decode, token, pair, row, context = prices
        self.costs = self._learned = NodeCosts(fixed, decode, token, pair, row, context, min(1.0, overlap))


def _parts(costs: NodeCosts, factors: tuple[float, float], work: StepWork) -> tuple[float, float]:
    """Seconds of what prompts add to steps, and of all the rest. What hides is taken off the part it belongs to, as far
    as is known with the factors of before."""
    fixed_s = costs.prefill_fixed_s * (work.num_prefill_steps - work.num_mixed_steps)
    prompts_s = (
        costs.per_prefill_token_s * work.prefill_tokens + costs.per_prefill_pair_s * work.prefill_pairs + fixed_s
    )
    rows_s = costs.decode_fixed_s * work.num_decode_steps
    rows_s += costs.per_row_s * work.num_rows + costs.per_row_context_s * work.row_context
    if not work.num_mixed_steps:
        return prompts_s, rows_s
    now, num, overlap = _scaled(costs, *factors), work.num_mixed_steps, costs.overlap
    prompts_fixed_s, rows_fixed_s = costs.prefill_fixed_s * num, costs.decode_fixed_s * num
    has_fixed = now.prefill_fixed_s >= now.decode_fixed_s
    hidden_s, beside_s = costs.mixed_parts(work)
    if now.hidden_of(work) < now.hidden_s(math.inf, now.mixed_parts(work)[1], num):
        prompts_s -= overlap * (hidden_s + prompts_fixed_s * has_fixed)
        rows_s += overlap * rows_fixed_s * has_fixed
    else:
        rows_s -= overlap * (beside_s + rows_fixed_s * (not has_fixed))
        prompts_s += overlap * prompts_fixed_s * (not has_fixed)
    return prompts_s + prompts_fixed_s * has_fixed, rows_s + rows_fixed_s * (not has_fixed)


def _terms(before: NodeCosts, work: StepWork) -> tuple[float, ...]:
    """In the order of the fields of `NodeCosts`; what hides, by the prices of before."""
    num_mixed = work.num_mixed_steps
    num_decode = 0 if before.prefill_fixed_s >= before.decode_fixed_s else num_mixed
    return (
        float(work.num_prefill_steps - num_decode),
        float(work.num_decode_steps + num_decode),
        float(work.prefill_tokens),
        work.prefill_pairs,
        float(work.num_rows),
        float(work.row_context),
        -before.hidden_of(work) if num_mixed else 0.0,
    )


def _scaled(costs: NodeCosts, prefill: float, decode: float) -> NodeCosts:
    return NodeCosts(
        costs.prefill_fixed_s * prefill,
        costs.decode_fixed_s * decode,
        costs.per_prefill_token_s * prefill,
        costs.per_prefill_pair_s * prefill,
        costs.per_row_s * decode,
        costs.per_row_context_s * decode,
        costs.overlap,
        tuple((tokens, seconds * prefill) for tokens, seconds in costs.prefill_curve),
    )


class _Fit:
    """Least squares of relative errors, with forgetting: the sums of products of what was seen, over what it took.

    Owns: `products` and `right`, the normal equations of terms divided by the seconds they took.
    """

    def __init__(self, num: int) -> None:
        self.products = [[0.0] * num for _ in range(num)]
        self.right = [0.0] * num
        self._weight = 0.0

    def add(self, terms: Sequence[float], seconds: float) -> None:
        """One report: terms times coefficients should be its seconds."""
        relative = [term / seconds for term in terms]
        for i, value in enumerate(relative):
            row = self.products[i]
            for j, other in enumerate(relative):
                row[j] = row[j] * FORGETTING + value * other
            self.right[i] = self.right[i] * FORGETTING + value
        self._weight = self._weight * FORGETTING + 1.0

    def tie(self, share: float, weight: float) -> None:
        """Hold the first two coefficients together with the force of so many reports of that share alone."""
        force = weight * share * share
        for i, j, sign in ((0, 0, 1), (0, 1, -1), (1, 0, -1), (1, 1, 1)):
            self.products[i][j] += sign * force

    def common_scale(self) -> float:
        """The one factor for all terms that fits best."""
        total = sum(map(sum, self.products))
        return sum(self.right) / total if total > 0.0 else 1.0

    def solve(self, start: Sequence[float], weight: float) -> list[float]:
        """Coefficients that fit, pulled towards `start` with the force of `weight` reports of their own term alone."""
        num = len(start)
        rows = []
        for i in range(num):
            pull = weight / (start[i] * start[i])
            row = list(self.products[i])
            row[i] += pull
            rows.append([*row, self.right[i] + pull * start[i]])
        return _solved(rows)

    def solve_positive(self, start: Sequence[float], weight: float) -> list[float]:
        """As `solve`, but none below a hundredth of its start: those are held there, and the others fitted again."""
        num = len(start)
        held: dict[int, float] = {}
        while True:
            free = [i for i in range(num) if i not in held]
            rows = []
            for i in free:
                pull = weight / (start[i] * start[i])
                row = [self.products[i][j] + (pull if i == j else 0.0) for j in free]
                known = sum(self.products[i][j] * value for j, value in held.items())
                rows.append([*row, self.right[i] + pull * start[i] - known])
            found = dict(zip(free, _solved(rows), strict=True))
            low = [i for i in free if found[i] < start[i] / 100.0]
            if not low:
                return [held.get(i, found.get(i, 0.0)) for i in range(num)]
            held |= {i: start[i] / 100.0 for i in low}


def _solved(rows: list[list[float]]) -> list[float]:
    """Gauss with pivots scaled by rows; the pull makes the equations positive definite, so there is a solution."""
    num = len(rows)
    for column in range(num):
        pivot = max(range(column, num), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        head = rows[column]
        for other in range(column + 1, num):
            factor = rows[other][column] / head[column]
            if factor:
                row = rows[other]
                for j in range(column, num + 1):
                    row[j] -= factor * head[j]
    found = [0.0] * num
    for i in reversed(range(num)):
        found[i] = (rows[i][num] - sum(rows[i][j] * found[j] for j in range(i + 1, num))) / rows[i][i]
    return found
