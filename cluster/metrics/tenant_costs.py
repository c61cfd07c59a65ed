"""Whose the nodes' time was: shared by the tokens that were computed and answered for each tenant."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from cluster.metrics.tally import RequestTally


class TenantCosts:
    """Owns: each tenant's share so far, in node-seconds, and the time that is nobody's yet.

    Time without an ended request falls on those whose requests end next. Invariant: shares and that time add up to all.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.unshared_s = 0.0
        self._seen: Counter[str] = Counter()

    def share(self, node_seconds: float, tokens: Mapping[str, int]) -> None:
        """So much time has passed, and so many tokens were done for each tenant since the start."""
        self.unshared_s += node_seconds
        new = {tenant: number - self._seen[tenant] for tenant, number in tokens.items()}
        total = sum(new.values())
        if not total:
            return
        for tenant, number in new.items():
            self.seconds[tenant] += self.unshared_s * number / total
        self.unshared_s, self._seen = 0.0, Counter(tokens)


def tokens_done(tally: RequestTally) -> dict[str, int]:
    """By tenant: prompt tokens that had to be computed, and those of answers."""
    tenants = {*tally.prompt_tokens, *tally.generation_tokens}
    return {it: tally.prompt_tokens[it] - tally.cached_tokens[it] + tally.generation_tokens[it] for it in tenants}
