"""How long answers are: a distribution for each tenant and class, learned from those that ended and that go on."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

EDGES = tuple(sorted({round(2 ** (i / 4)) for i in range(73)}))
"""Upper ends of the bins, in tokens: four to a doubling, from 1 to 262,144."""

PRIOR_WEIGHT = 2.0
"""How many answers it counts for what is believed beforehand: of a tenant what all have, of all the prior."""

FORGETTING = 0.998
"""What is left of an answer's weight after the next one: about the last 500 count."""

MAX_GROUPS = 256

_MIDDLES = tuple((low + 1 + high) / 2 for low, high in pairwise((0, *EDGES)))


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of answers' lengths: the share of each bin of `EDGES`, adding up to 1."""

    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Tokens of a whole answer, on average."""
        return sum(share * middle for share, middle in zip(self.shares, _MIDDLES, strict=True))

    def quantile(self, share: float) -> float:
        """So many tokens or fewer have `share` of the answers, 0 to 1; straight between the ends of a bin."""
        below = 0.0
        for index, mass in enumerate(self.shares):
            if mass > 0.0 and below + mass >= share - 1e-12:
                low = EDGES[index - 1] if index else 0
                return low + (EDGES[index] - low) * max(0.0, share - below) / mass
            below += mass
        return float(EDGES[-1])

    def remaining(self, num_tokens: int) -> float:
        """Tokens that are still to come, on average, of an answer that has `num_tokens` and has not ended.

        One, at least: an answer longer than all that were seen ends with the next token, for all that is known.
        """
        first = bisect_left(EDGES, num_tokens + 1)
        if first == len(EDGES):
            return 1.0
        low, high = EDGES[first - 1] if first else 0, EDGES[first]
        within = self.shares[first] * (high - num_tokens) / (high - low)
        mass = within + sum(self.shares[first + 1 :])
        if mass <= 0.0:
            return 1.0
        tokens = within * (num_tokens + 1 + high) / 2
        tokens += sum(
            share * middle for share, middle in zip(self.shares[first + 1 :], _MIDDLES[first + 1 :], strict=True)
        )
        return max(1.0, tokens / mass - num_tokens)


@dataclass(slots=True)
class _Group:
    """Weights of the answers of one group, and the distribution made from them; None where that is old.

    `going`: answers that go on, by the bin they have reached.
    """

    weights: list[float] = field(default_factory=lambda: [0.0] * len(EDGES))
    going: dict[int, int] = field(default_factory=dict)
    num_seen: int = 0
    lengths: Lengths | None = None
    mean: float = 0.0

    def add(self, num_tokens: int) -> None:
        """One more answer; all before it count a little less."""
        self.weights = [weight * FORGETTING for weight in self.weights]
        self.weights[min(bisect_left(EDGES, num_tokens), len(EDGES) - 1)] += 1.0
        self.num_seen += 1
        self.lengths = None

    def mixed_with(self, prior: Sequence[float]) -> Lengths:
        """These answers, and `PRIOR_WEIGHT` ones of the prior's shares.

        Short answers end first, so those that ended are too short a sample where many go on. Of the answers that came
        as far as a bin some end in it; what is left goes on (the estimator of Kaplan and Meier, 1958; an answer that
        has reached the bin counts half in it).
        """
        ends = [mass + PRIOR_WEIGHT * share for mass, share in zip(self.weights, prior, strict=True)]
        total = sum(ends)
        if not self.going:
            return Lengths(tuple(mass / total for mass in ends))
        reach, stays = total + sum(self.going.values()), 1.0
        shares = []
        for index, ending in enumerate(ends):
            here = self.going.get(index, 0)
            share = stays * ending / max(ending, reach - here / 2) if ending else 0.0
            shares.append(share)
            stays -= share
            reach -= ending + here
        scale = sum(shares)
        return Lengths(tuple(share / scale for share in shares))


class LengthModel:
    """Learns the lengths of answers by tenant and priority class.

    Owns: at most `MAX_GROUPS` groups, the least recently used one is forgotten. Before any answer of a group was seen,
    it is believed to be like all others; before any at all, to be spread around `prior_tokens`.
    """

    def __init__(self, prior_tokens: int) -> None:
        self._prior = _spread_around(prior_tokens)
        self._all = _Group()
        self._groups: OrderedDict[tuple[str, int], _Group] = OrderedDict()

    @property
    def num_seen(self) -> int:
        """Answers that it has learned from."""
        return self._all.num_seen

    @property
    def mean(self) -> float:
        """Tokens of an answer of anybody, on average."""
        self._overall()
        return self._all.mean

    def learn(self, tenant: str, priority: int, num_tokens: int) -> None:
        """An answer of this group ended with so many tokens, by itself or by its limit."""
        if num_tokens < 1:
            return
        self._all.add(num_tokens)
        self._group(tenant, priority).add(num_tokens)

    def note_going(self, answers: Iterable[tuple[str, int, int]]) -> None:
        """All answers that go on: their tenant, their class, and how many tokens they have. Those of before are no
        more."""
        groups = [self._all, *self._groups.values()]
        for group in groups:
            if group.going:
                group.going, group.lengths = {}, None
        for tenant, priority, num_tokens in answers:
            index = min(bisect_left(EDGES, num_tokens), len(EDGES) - 1)
            own = self._groups.get((tenant, priority))
            for each in (self._all,) if own is None else (self._all, own):
                each.going[index] = each.going.get(index, 0) + 1
                each.lengths = None

    def lengths(self, tenant: str, priority: int) -> Lengths:
        """The distribution of a group; a new one is like all."""
        group = self._groups.get((tenant, priority), self._all)
        if group.lengths is None:
            prior = self._prior if group is self._all else self._overall().shares
            group.lengths = group.mixed_with(prior)
            group.mean = group.lengths.mean
        return group.lengths

    def expected_output(self, tenant: str, priority: int, quantile: float | None = None) -> float:
        """Tokens of an answer: the mean, or those that `quantile` of the answers do not exceed."""
        lengths = self.lengths(tenant, priority)
        return self._groups.get((tenant, priority), self._all).mean if quantile is None else lengths.quantile(quantile)

    def remaining(self, tenant: str, priority: int, num_tokens: int) -> float:
        """Tokens still to come, on average, of an answer that has `num_tokens` already."""
        return self.lengths(tenant, priority).remaining(num_tokens)

    def _overall(self) -> Lengths:
        if self._all.lengths is None:
            self._all.lengths = self._all.mixed_with(self._prior)
            self._all.mean = self._all.lengths.mean
        return self._all.lengths

    def _group(self, tenant: str, priority: int) -> _Group:
        key = (tenant, priority)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
            if len(self._groups) > MAX_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return group


def _spread_around(num_tokens: int) -> tuple[float, ...]:
    """Geometric shares with this mean: an answer may end with every token, each time as likely."""
    stay = 1.0 - 1.0 / max(1, num_tokens)
    ends = [1.0 - stay**edge for edge in EDGES[:-1]] + [1.0]
    return tuple(high - low for low, high in pairwise([0.0, *ends]))
