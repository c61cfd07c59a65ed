"""All that a machine may ask of its shell."""

from dataclasses import dataclass

from core.events import Event, TokensEmitted
from core.ids import Address, AttemptId, GatewayId, NodeId
from core.kv import FetchTarget, KVHandle
from core.step import StepPlan


@dataclass(frozen=True, slots=True)
class Tell:
    """Carry `event` to another machine. May arrive late and out of order; never twice."""

    to: Address
    event: Event


@dataclass(frozen=True, slots=True)
class RunStep:
    """Run a step; answered by `StepDone` or `StepFailed`, in the order asked.

    It may be run up to `max_runs` times before it is answered, each time with the tokens of the time before, while no
    answer is complete and the node hears of nothing else. Above 1 only where a node was told that it may be.
    """

    plan: StepPlan
    max_runs: int = 1


@dataclass(frozen=True, slots=True)
class FetchKV:
    """Copy the handle's blocks into our own; answered by exactly one `KVArrived` or `KVFailed` with this `fetch`
    number."""

    attempt: AttemptId
    fetch: int
    handle: KVHandle
    into: FetchTarget


@dataclass(frozen=True, slots=True)
class Lend:
    """Let the transport serve this attempt's lease to `reader`; answered by `Lent`."""

    attempt: AttemptId
    reader: NodeId


@dataclass(frozen=True, slots=True)
class Revoke:
    """Make reading through this lease impossible; answered by `Fenced`."""

    attempt: AttemptId
    reader: NodeId


@dataclass(frozen=True, slots=True)
class Emit:
    """Carry tokens to the gateway that holds the streams."""

    gateway: GatewayId
    tokens: TokensEmitted


Command = Tell | RunStep | FetchKV | Lend | Revoke | Emit
