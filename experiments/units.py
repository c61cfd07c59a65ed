"""What comes to the live experiments and what it is promised, in units of the machine that it runs on."""

from dataclasses import dataclass

from cluster.workload.items import Workload
from cluster.workload.spec import workload_of
from core.request import SLO
from engine.cost_table import CostTable

PROMPT, ANSWER = (128, 768), (100, 300)
"""Tokens, uniform in between."""


@dataclass(frozen=True, slots=True)
class Units:
    """Of one node by its cost table: a mean prompt, a step of one row, and requests per second of both phases."""

    prompt_s: float
    step_s: float
    rate_rps: float

    @staticmethod
    def of(table: CostTable) -> "Units":
        """Answers are reckoned in steps of eight rows."""
        prompt, answer = sum(PROMPT) / 2, sum(ANSWER) / 2
        context = prompt + answer / 2
        prompt_s = table.step_s(prompt, 0, 0, 0)
        return Units(
            prompt_s, table.step_s(0, 0, 1, context), 1 / (prompt_s + answer * table.step_s(0, 0, 8, context) / 8)
        )

    def slo(self, ttft_prompts: float, tpot_steps: float) -> SLO:
        """TTFT in times of a mean prompt alone, TPOT in steps of one row alone; in seconds, to two digits."""
        return SLO(_two_digits(ttft_prompts * self.prompt_s), _two_digits(tpot_steps * self.step_s))

    def rate(self, load: float) -> float:
        """Requests per second at two nodes, to two digits. `load`: a share of what they could do if nobody waited."""
        return _two_digits(2 * load * self.rate_rps)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def workload(rate_rps: float, seconds: float, seed: int) -> Workload:
    """Poisson arrivals."""
    lengths = f"in=uniform:{PROMPT[0]}:{PROMPT[1]},out=uniform:{ANSWER[0]}:{ANSWER[1]}"
    return workload_of([f"lengths,{lengths},rate={rate_rps:g},seconds={seconds:g}"], seed).workload
