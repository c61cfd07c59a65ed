"""What a simulated run came to."""

from collections import Counter
from dataclasses import dataclass

from cluster.simulated.scenario import Fault
from cluster.simulated.world import World
from core.goodput import Goodput, Outcome, RequestRecord, goodput
from core.request import SLO


@dataclass(frozen=True, slots=True)
class Report:
    """The account of one run. Equal seeds give equal reports, `trace_hash` included."""

    seed: int
    num_requests: int
    outcomes: Counter[Outcome]
    num_tokens: int
    num_attempts: int
    num_events: int
    duration_s: float
    goodput: Goodput
    faults: Counter[str]
    hits: Counter[tuple[str, str]]
    trace_hash: str


def report_of(world: World, slo: SLO) -> Report:
    """The report of a run that is over. Raises AssertionError where a request has no end."""
    answers = [answer for door in world.doors.values() for answer in door.answers.values()]
    records = [answer.record() for answer in answers]
    return Report(
        seed=world.scenario.seed,
        num_requests=len(records),
        outcomes=Counter(record.outcome for record in records),
        num_tokens=sum(record.num_tokens for record in records),
        num_attempts=sum(answer.ended.num_attempts for answer in answers if answer.ended is not None),
        num_events=world.watch.num_events,
        duration_s=world.loop.now,
        goodput=goodput(records, slo, world.loop.now),
        faults=_faults(world, records),
        hits=world.watch.hits,
        trace_hash=world.watch.trace_hash,
    )


def _faults(world: World, records: list[RequestRecord]) -> Counter[str]:
    """What was injected; for links and deadlines, what came of it."""
    links = world.place.links
    faults = Counter(world.watch.faults)
    faults[Fault.DELAY] += links.num_late
    faults[Fault.REORDER] += links.num_overtaken
    faults[Fault.DEADLINE] += sum(record.outcome is Outcome.EXPIRED for record in records)
    return faults
