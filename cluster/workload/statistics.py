"""Published statistics of real traffic, to generate workloads where the traces themselves are not at hand.

Sources. Means of `sharegpt`, `humaneval` and `longbench`: Y. Zhong et al., "DistServe", OSDI 2024; their spread is not
published, so the log-normal shapes here are assumptions. `azure-code`: quantiles of `AzureLLMInferenceTrace_code.csv`,
Microsoft Azure and Microsoft Research, CC BY 4.0 (P. Patel et al., "Splitwise", ISCA 2024). `mooncake-conversation`:
quantiles of `conversation_trace.jsonl`, kvcache-ai/Mooncake, Apache-2.0 (R. Qin et al., FAST 2025); its prefixes are
made to hit about as often as the trace's (36.6 % of
blocks, 38.7 % of requests beyond the first block). `aibrix-ramp`:
quantiles, and rates of 30 s each, of `8min_up_and_down.jsonl`, vllm-project/aibrix, Apache-2.0. Quantiles were computed
from the files and rounded; outputs of 0 counted as 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.workload.arrivals import Arrivals, steps
from cluster.workload.lengths import Lengths, Lognormal, Quantiles
from cluster.workload.prefixes import Conversations


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a workload is generated from, and the rate that it has where none is asked."""

    prompt: Lengths
    output: Lengths
    rate_rps: float
    arrivals: Arrivals = field(default_factory=Arrivals)
    prefixes: Conversations | None = None


_SHARES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1)


def _quantiles(*tokens: int) -> Quantiles:
    return Quantiles(tuple(zip(_SHARES, map(float, tokens), strict=True)))


_AZURE_PROMPT = _quantiles(
    3, 75, 147, 386, 770, 1075, 1469, 1909, 2433, 3192, 3920, 5188, 7303, 7436, 7436, 7436, 7437, 7437
)
_AZURE_OUTPUT = _quantiles(6, 6, 7, 8, 9, 11, 13, 16, 20, 29, 39, 55, 90, 171, 251, 359, 825, 1899)
_MOONCAKE_PROMPT = _quantiles(
    891, 901, 964, 1662, 3263, 4993, 6909, 9570, 13196, 17869, 21464, 27367, 39550, 66449, 85400, 100810, 121301, 126195
)
_MOONCAKE_OUTPUT = _quantiles(1, 10, 24, 100, 213, 291, 350, 399, 447, 504, 543, 597, 698, 892, 1119, 1568, 2000, 2000)
_AIBRIX_PROMPT = _quantiles(8, 74, 100, 145, 182, 223, 264, 302, 348, 418, 462, 525, 649, 770, 789, 831, 1102, 2415)
_AIBRIX_OUTPUT = _quantiles(1, 6, 9, 14, 20, 25, 34, 46, 66, 101, 135, 179, 267, 424, 560, 755, 779, 925)
_AIBRIX_RATES = (1.6, 1.4, 1.7, 3.2, 2.9, 7.1, 7.1, 11.3, 10.7, 6.8, 5.1, 2.8, 2.3, 2.0, 1.1, 0.5)

PUBLISHED: Mapping[str, Statistics] = {
    "sharegpt": Statistics(Lognormal(755.5, 1.0, 1847), Lognormal(200.3, 1.0, 1024), 1.0),
    "humaneval": Statistics(Lognormal(171.3, 0.4, 2046), Lognormal(98.2, 0.7, 2046), 1.0),
    "longbench": Statistics(Lognormal(1738.3, 0.15, 2040), Lognormal(90.7, 0.8, 2046), 1.0),
    "azure-code": Statistics(_AZURE_PROMPT, _AZURE_OUTPUT, 2.57, Arrivals(cv=13.2)),
    "mooncake-conversation": Statistics(
        _MOONCAKE_PROMPT, _MOONCAKE_OUTPUT, 3.40, prefixes=Conversations(0.42, 0.95, 750)
    ),
    "aibrix-ramp": Statistics(
        _AIBRIX_PROMPT, _AIBRIX_OUTPUT, 4.44, Arrivals(pattern=steps(_AIBRIX_RATES), period_s=480.0)
    ),
}
"""By name; `rate_rps` is the trace's own mean where there is a trace, else 1."""
