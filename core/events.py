"""What a machine is told. Frozen; late, repeated or unknown ones are normal input.

Every event that crosses processes travels by `cluster.codec`, which is derived from these classes.
"""

from dataclasses import dataclass
from enum import StrEnum

from core.decisions import CapacityTarget, Decided, OverrideLifted
from core.errors import ErrorInfo
from core.flushing import FlushAsked, Flushed
from core.goodput import Outcome
from core.ids import AttemptId, GatewayId, NodeId, RequestId
from core.kv import KVHandle
from core.membership import GatewayLost
from core.mix import Mix, NodeSpec
from core.request import Request
from core.stats import NodeStats, Timing
from core.step import StepResult, TokenLogprobs
from core.whatif import WhatIfAnswered, WhatIfAsked


class FinishReason(StrEnum):
    """Why a stream is complete: an end token, a stop token or a stop string; or `max_tokens`."""

    STOP = "stop"
    LENGTH = "length"


class AttemptEnd(StrEnum):
    """How an attempt left a node. It returns the node's credits; it does not end the request."""

    FINISHED = "finished"
    HANDED_OFF = "handed_off"
    DROPPED = "dropped"
    REFUSED = "refused"
    PREEMPTED = "preempted"
    KV_LOST = "kv_lost"
    KV_CORRUPT = "kv_corrupt"
    STEP_FAILED = "step_failed"


# ── to the scheduler ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A gateway accepted a request at its door."""

    request: Request
    gateway: GatewayId


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The client left, or asked for it; the gateway has ended the stream already."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class RequestResumed:
    """The gateway's answer to `AttemptLost`: it accepts nothing more of that attempt; `log` (packed) is what it has."""

    request: RequestId
    log: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The gateway ended the request, with this outcome; whatever still runs for it may go.

    `num_tokens` were delivered; `timing` is that of the last attempt, as far as it told it.
    """

    request: RequestId
    outcome: Outcome
    num_tokens: int = 0
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class StreamSilent:
    """No token came for longer than the silence limit."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class AttemptFinished:
    """A node has no block of this attempt any more; returns its credits there."""

    attempt: AttemptId
    node: NodeId
    end: AttemptEnd


@dataclass(frozen=True, slots=True)
class StatsReported:
    """A node's own report, some time old when it arrives."""

    node: NodeId
    stats: NodeStats


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node is ready for work."""

    node: NodeId
    spec: NodeSpec


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node is gone for good; its id never returns."""

    node: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Overridden:
    """The operator sets mixes; the scheduler respects them until told otherwise. Columns of equal length."""

    nodes: tuple[NodeId, ...]
    mixes: tuple[Mix, ...]


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """The operator wants a node empty: it takes nothing new, and its rows go elsewhere. Ends with its next mix."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Stayed:
    """A node's answer to `MigrateAsked` where the attempt was not taken: what of it is here goes on here.

    `was_offered`: the other node was told of it, and can no longer get it.
    """

    attempt: AttemptId
    node: NodeId
    was_offered: bool


# ── to a node's prefill machine ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Submitted:
    """Prefill this attempt, then hand it to `decode_node` (may be the same node: nothing moves).

    `log` (packed) are tokens that earlier attempts delivered; they are computed after the prompt.
    `admit_s` is how long the request waited before this message was sent, `due_s` how long from now its first token is
    due: below 0 it is late already.
    """

    attempt: AttemptId
    request: Request
    log: bytes
    gateway: GatewayId
    decode_node: NodeId
    admit_s: float
    num_preemptions: int = 0
    due_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """The reader is about to fetch: the lease must not expire any more."""

    attempt: AttemptId
    reader: NodeId


@dataclass(frozen=True, slots=True)
class LeasesRenewed:
    """The reader still wants these offers."""

    reader: NodeId
    attempts: tuple[AttemptId, ...]


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """The reader is done with the lent blocks, or never will read them. `has_all`: the attempt runs there now."""

    attempt: AttemptId
    reader: NodeId
    has_all: bool = False


@dataclass(frozen=True, slots=True)
class Lent:
    """The transport serves this lease to this reader."""

    attempt: AttemptId
    reader: NodeId


@dataclass(frozen=True, slots=True)
class Fenced:
    """The transport can no longer be read through for this lease."""

    attempt: AttemptId
    reader: NodeId


# ── to a node's decode machine ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """Ends a handoff: `num_tokens` tokens have KV, `token_id` was sampled after them; `timing` is the prefill's
    part."""

    num_tokens: int
    token_id: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class Offered:
    """The first sealed blocks of an attempt, with all that the decode node must know; `done`: one chunk was all."""

    attempt: AttemptId
    request: Request
    log: bytes
    gateway: GatewayId
    handle: KVHandle
    done: PrefillDone | None
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Sealed:
    """More sealed blocks (only the new ones). May overtake `Offered` or another `Sealed`."""

    attempt: AttemptId
    handle: KVHandle
    done: PrefillDone | None


@dataclass(frozen=True, slots=True)
class ClaimAnswered:
    """The lender's answer to `Claimed`."""

    attempt: AttemptId
    owner: NodeId
    granted: bool


@dataclass(frozen=True, slots=True)
class KVArrived:
    """Fetch number `fetch` of this attempt is in place, every digest and generation equal."""

    attempt: AttemptId
    fetch: int


@dataclass(frozen=True, slots=True)
class KVFailed:
    """Fetch number `fetch` has ended without effect; `end` is KV_LOST or KV_CORRUPT, `why` for people."""

    attempt: AttemptId
    fetch: int
    end: AttemptEnd
    why: str


@dataclass(frozen=True, slots=True)
class MigrateAsked:
    """Move this attempt's row to another node, if it decodes; answered by its `AttemptFinished`, or by `Stayed`."""

    attempt: AttemptId
    to: NodeId


# ── to both machines of a node ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Dropped:
    """Give this attempt up. Legal in every state; answered by `AttemptFinished` once its blocks are back."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class StepDone:
    """The executor finished a step."""

    result: StepResult


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The executor could not run a step; nothing of it may be used."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class PeerLost:
    """Another node is gone, or the link to it is severed."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class MixChanged:
    """Accept by this mix from now on; resident work is not touched."""

    mix: Mix


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: reap, then plan."""


# ── to a gateway ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class TokensEmitted:
    """The tokens of one step for one gateway, in columns. `indices` are places in the request's output.

    `finishes` are None but for an attempt's last token, `timings` but for its first and last. `logprobs` is empty, or
    aligned and None where not asked; `prompt_logprobs` too, with the scores of all prompt tokens but the first one
    beside an attempt's first token.
    """

    attempts: tuple[AttemptId, ...]
    indices: tuple[int, ...]
    token_ids: tuple[int, ...]
    finishes: tuple[FinishReason | None, ...]
    timings: tuple[Timing | None, ...]
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    prompt_logprobs: tuple[tuple[TokenLogprobs, ...] | None, ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptLost:
    """Accept nothing more of this attempt or any before it; answer `RequestResumed`."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """The scheduler gives a request up: refused, expired or failed."""

    request: RequestId
    outcome: Outcome
    error: ErrorInfo


# ── to the operator ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Drained:
    """A drain is over: the node is empty, time is over, it is gone, or has a new mix; `num_left` attempts were left."""

    node: NodeId
    num_left: int


SchedulerEvent = (
    RequestArrived
    | RequestCancelled
    | RequestResumed
    | StreamEnded
    | StreamSilent
    | AttemptFinished
    | StatsReported
    | NodeJoined
    | NodeLost
    | GatewayLost
    | Overridden
    | OverrideLifted
    | WhatIfAnswered
    | DrainAsked
    | Flushed
    | Stayed
    | Tick
)
PrefillEvent = Submitted | Claimed | LeasesRenewed | LeaseReleased | Lent | Fenced
HandoffEvent = Offered | Sealed | ClaimAnswered | KVArrived | KVFailed
DecodeEvent = HandoffEvent | MigrateAsked
SharedEvent = Dropped | StepDone | StepFailed | PeerLost | MixChanged | FlushAsked | Tick
NodeEvent = PrefillEvent | DecodeEvent | SharedEvent
GatewayEvent = TokensEmitted | AttemptLost | RequestEnded | Tick
OperatorEvent = Drained | Flushed | Decided | CapacityTarget
Event = SchedulerEvent | NodeEvent | GatewayEvent | OperatorEvent | WhatIfAsked
