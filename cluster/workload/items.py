"""A workload: requests with their moments and lengths, whatever they came from and whatever they are put to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.errors import ConfigError
from core.request import SLO

BLOCK_TOKENS = 512
"""Tokens of a prefix block of the native trace form."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One request of a workload.

    `at_s` counts from the start of the workload. `block_ids` name the prompt's prefix in blocks of
    `Workload.block_tokens` tokens: an equal id is the same content after the same prefix; the last block may be partly
    filled. Empty: shares nothing with any other. `slo` None: the run's.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()
    tenant: str = ""
    priority: int = 0
    offline: bool = False
    slo: SLO | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order in which they come. Invariant: `at_s` of the items never falls."""

    name: str
    items: tuple[WorkItem, ...]
    block_tokens: int = BLOCK_TOKENS

    @property
    def duration_s(self) -> float:
        """From the start to the last arrival."""
        return self.items[-1].at_s if self.items else 0.0

    @property
    def rate_rps(self) -> float:
        """Mean rate of arrivals; 0 where there is no duration."""
        return len(self.items) / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def arrivals_s(self) -> float:
        """How long requests came: to the last arrival, and one mean gap more."""
        return self.duration_s * len(self.items) / (len(self.items) - 1) if len(self.items) > 1 else self.duration_s

    @property
    def prompt_tokens(self) -> int:
        """Of all items together."""
        return sum(item.prompt_tokens for item in self.items)

    @property
    def output_tokens(self) -> int:
        """Of all items together."""
        return sum(item.output_tokens for item in self.items)

    def scaled(self, rate: float) -> "Workload":
        """The same requests, `rate` times as fast: time is scaled, never lengths. Raises ConfigError for 0 or less."""
        if not 0 < rate < float("inf"):
            raise ConfigError([f"the rate of a workload can be scaled by a number above 0, not by {rate:g}"])
        if rate == 1:
            return self
        items = tuple(replace(item, at_s=item.at_s / rate) for item in self.items)
        return replace(self, name=f"{self.name} x{rate:.4g}", items=items)

    def at_rate(self, rate_rps: float) -> "Workload":
        """Scaled to a mean rate. Raises ConfigError where there is no rate to scale."""
        if not self.rate_rps:
            raise ConfigError([f"{self.name}: its requests all come at once, so it has no rate that could be scaled"])
        return self.scaled(rate_rps / self.rate_rps)

    def first(self, num_requests: int) -> "Workload":
        """Its first requests only."""
        return replace(self, items=self.items[:num_requests])

    def until(self, seconds: float) -> "Workload":
        """Its requests before a moment only."""
        return replace(self, items=tuple(item for item in self.items if item.at_s < seconds))

    def later(self, seconds: float) -> "Workload":
        """The same, so much later."""
        if not seconds:
            return self
        return replace(self, items=tuple(replace(item, at_s=item.at_s + seconds) for item in self.items))

    def repeated(self, times: int) -> "Workload":
        """The same again and again, each time with prefixes of its own."""
        items = list[WorkItem]()
        num_ids = 1 + max((max(item.block_ids, default=-1) for item in self.items), default=-1)
        for place in range(times):
            later_s, first_id = place * self.arrivals_s, place * num_ids
            items += (
                replace(item, at_s=item.at_s + later_s, block_ids=tuple(first_id + b for b in item.block_ids))
                for item in self.items
            )
        return replace(self, items=tuple(items))

    def of_tenant(self, tenant: str, *, priority: int = 0, offline: bool = False, slo: SLO | None = None) -> "Workload":
        """The same requests, all of one tenant and class."""
        items = tuple(
            replace(item, tenant=tenant, priority=priority, offline=offline, slo=slo or item.slo) for item in self.items
        )
        return replace(self, items=items)


def mixed(name: str, workloads: Sequence[Workload]) -> Workload:
    """Several workloads at the same time. Prefixes of different workloads are different.

    Raises ConfigError where none is given or their blocks are of different sizes.
    """
    sizes = {workload.block_tokens for workload in workloads}
    if len(sizes) != 1:
        raise ConfigError([f"workloads to mix need prefix blocks of one size, not of {sorted(sizes)} tokens"])
    items, first_id = list[WorkItem](), 0
    for workload in workloads:
        items += (replace(item, block_ids=tuple(first_id + b for b in item.block_ids)) for item in workload.items)
        first_id += 1 + max((max(item.block_ids, default=-1) for item in workload.items), default=-1)
    return Workload(name, tuple(sorted(items, key=lambda item: item.at_s)), sizes.pop())
