"""Machines that are as small as a shell needs to be tested, and a program that runs one as a node of a local cluster.

They can catch: an event or command that is lost, doubled, misaddressed or out of order between shells; a fetch that
moves no bytes; a death that nobody is told of. They cannot catch anything that the real machines decide.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import xxhash

from cluster.live.host import NodeParts
from cluster.live.node_process import main
from cluster.live.orders import NodeOrder, mint_node_id
from core.commands import Command, Emit, FetchKV, Lend, Revoke, RunStep, Tell
from core.errors import ConfigError, ErrorInfo, StepFailed
from core.events import (
    AttemptEnd,
    AttemptFinished,
    AttemptLost,
    Fenced,
    FinishReason,
    KVArrived,
    KVFailed,
    Lent,
    NodeEvent,
    NodeJoined,
    NodeLost,
    Offered,
    PeerLost,
    PrefillDone,
    RequestArrived,
    RequestEnded,
    RequestResumed,
    SchedulerEvent,
    StepDone,
    Submitted,
    TokensEmitted,
)
from core.events import StepFailed as StepFailedEvent
from core.goodput import Outcome
from core.ids import SCHEDULER, AttemptId, GatewayId, LayoutId, NodeId, RequestId, attempt_id, request_of
from core.kv import FetchTarget, KVHandle, KVLayout, SlabShape
from core.membership import GatewayLost
from core.mix import NodeSpec
from core.request import Prompt, Request, SamplingParams, pack_tokens, unpack_tokens
from core.stats import Timing
from core.step import StepPlan, StepResult
from kv_transfer.links import Links
from kv_transfer.shm import ShmTransport
from kv_transfer.slab import Slab

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=4, block_size=4, dtype="float32")
BLOCKS = (1, 2)


@dataclass
class Parrot:
    """A node that answers a prompt with the prompt: `prefill` lends two blocks, `decode` fetches them and speaks.

    A prompt that begins with 13 breaks an invariant of the prefill node; one that begins with 14 fails its step.
    """

    node: NodeId
    steps: int = 0
    prompts: dict[AttemptId, Submitted] = field(default_factory=dict)
    offers: dict[AttemptId, Offered] = field(default_factory=dict)

    def handle(self, event: NodeEvent, now: float) -> list[Command]:
        match event:
            case Submitted():
                return self._on_submitted(event)
            case StepDone(result):
                return [Lend(AttemptId(a), self.prompts[a].decode_node) for a in result.attempts]
            case Lent(attempt, reader):
                return [Tell(reader, self._offer(self.prompts.pop(attempt)))]
            case StepFailedEvent():
                (attempt,) = self.prompts
                self.prompts.clear()
                return [Tell(SCHEDULER, AttemptFinished(attempt, self.node, AttemptEnd.STEP_FAILED))]
            case Offered():
                self.offers[event.attempt] = event
                return [FetchKV(event.attempt, 1, event.handle, FetchTarget(BLOCKS, (7, 7)))]
            case KVArrived(attempt, _):
                return [*self._speak(self.offers.pop(attempt)), self._finished(attempt, AttemptEnd.FINISHED)]
            case KVFailed(attempt, _, end, _):
                del self.offers[attempt]
                return [self._finished(attempt, end)]
            case PeerLost(node):
                return [Revoke(AttemptId("lost#0"), node)]
            case Fenced(attempt, reader):
                return [self._finished(attempt, AttemptEnd.DROPPED)]
        return []

    def _on_submitted(self, event: Submitted) -> list[Command]:
        first = unpack_tokens(event.request.token_ids)[0]
        assert first != 13, "thirteen"
        self.prompts[event.attempt] = event
        self.steps += 1
        return [RunStep(StepPlan(self.steps, (event.attempt,), (first,)))]

    def _offer(self, asked: Submitted) -> Offered:
        digest = xxhash.xxh3_128_digest(bytes(LAYOUT.bytes_per_block))
        handle = KVHandle(asked.attempt, self.node, layout_id(), 0, BLOCKS, (0, 0), (digest, digest))
        return Offered(asked.attempt, asked.request, asked.log, asked.gateway, handle, PrefillDone(1, 0, Timing()))

    def _speak(self, offer: Offered) -> list[Command]:
        log, words = unpack_tokens(offer.log), unpack_tokens(offer.request.token_ids)
        ends = [None] * (len(words) - 1) + [FinishReason.STOP]
        return [
            Emit(offer.gateway, TokensEmitted((offer.attempt,), (i,), (words[i],), (ends[i],), (None,)))
            for i in range(len(log), len(words))
        ]

    def _finished(self, attempt: AttemptId, end: AttemptEnd) -> Command:
        return Tell(SCHEDULER, AttemptFinished(attempt, self.node, end))


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A step that was over as soon as it was launched."""

    result: StepResult
    is_done: bool = True

    def collect(self) -> StepResult:
        return self.result


class ParrotSteps:
    """Runs a parrot's steps: every one succeeds, but 14."""

    def launch(self, plan: StepPlan) -> DoneStep:
        if plan.num_tokens == (14,):
            raise StepFailed("fourteen")
        return DoneStep(StepResult(plan.step, plan.attempts, (0,), (), (), 0.0))

    def close(self) -> None:
        """Nothing to let go of."""


def layout_id() -> LayoutId:
    """The layout that all parrots share."""
    return LAYOUT.id("parrot")


def build_parrot(order: NodeOrder, progress: Callable[[str, float], None]) -> NodeParts:
    """A parrot with a real slab and transport; names beginning with `bad` cannot be configured.

    Those that begin with `odd` have KV of another layout than all others.
    """
    progress("hatching", 0.5)
    if order.name.startswith("bad"):
        raise ConfigError(["a bad bird"])
    if order.name.startswith("dying"):
        os._exit(3)
    node = mint_node_id(order.name)
    slab = Slab.anonymous(SlabShape(LAYOUT, 4), node)
    layout = LayoutId("odd.layout") if order.name.startswith("odd") else layout_id()
    links = Links([ShmTransport(node, layout, slab, order.token.secret)])
    spec = NodeSpec(layout_id(), LAYOUT, 4, 64, order.mix)
    return NodeParts(node, spec, Parrot(node), ParrotSteps(), links, slab)


@dataclass
class FirstFit:
    """A scheduler that sends everything to the first nodes that fit, again where they are lost or fail."""

    nodes: dict[NodeId, NodeSpec] = field(default_factory=dict)
    lost: list[tuple[NodeId, str]] = field(default_factory=list)
    finished: list[tuple[NodeId, AttemptEnd]] = field(default_factory=list)
    lost_gateways: list[tuple[GatewayId, str]] = field(default_factory=list)
    requests: dict[RequestId, tuple[Request, GatewayId, int]] = field(default_factory=dict)
    routed: dict[RequestId, tuple[NodeId, NodeId]] = field(default_factory=dict)

    def handle(self, event: SchedulerEvent, now: float) -> list[Command]:
        match event:
            case NodeJoined(node, spec):
                self.nodes[node] = spec
            case RequestArrived(request, gateway):
                self.requests[request.id] = (request, gateway, 0)
                return self._route(request.id, b"")
            case RequestResumed(request, log):
                return self._route(request, log)
            case GatewayLost(gateway, why):
                self.lost_gateways.append((gateway, why))
            case NodeLost(node, why):
                self.nodes.pop(node, None)
                self.lost.append((node, why))
                return [c for request, pair in list(self.routed.items()) if node in pair for c in self._again(request)]
            case AttemptFinished(attempt, node, end):
                self.finished.append((node, end))
                request = request_of(attempt)
                if end is AttemptEnd.FINISHED:
                    self.routed.pop(request, None)
                elif end is not AttemptEnd.HANDED_OFF and request in self.routed:
                    return [self._fail(request, end.value)]
        return []

    def _route(self, request: RequestId, log: bytes) -> list[Command]:
        asked, gateway, number = self.requests[request]
        prefill = next((n for n, spec in self.nodes.items() if spec.mix.accepts_prefill), None)
        decode = next((n for n, spec in self.nodes.items() if spec.mix.accepts_decode), None)
        if prefill is None or decode is None:
            return [self._fail(request, "nobody")]
        self.routed[request] = (prefill, decode)
        return [Tell(prefill, Submitted(attempt_id(request, number), asked, log, gateway, decode, 0.0))]

    def _again(self, request: RequestId) -> list[Command]:
        asked, gateway, number = self.requests[request]
        self.requests[request] = (asked, gateway, number + 1)
        return [Tell(gateway, AttemptLost(attempt_id(request, number)))]

    def _fail(self, request: RequestId, why: str) -> Command:
        self.routed.pop(request, None)
        return Tell(self.requests[request][1], RequestEnded(request, Outcome.FAILED, ErrorInfo("worker_lost", why)))


def question(name: str, words: tuple[int, ...]) -> Request:
    """A request for these words."""
    return Request(RequestId(name), Prompt(len(words)), pack_tokens(words), SamplingParams(max_tokens=len(words)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), build_parrot)
