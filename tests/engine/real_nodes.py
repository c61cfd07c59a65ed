"""Nodes with real executors in one process: machines decide, executors compute, KV is copied between slabs."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.node import Node, NodeConfig
from core.commands import Command, Emit, FetchKV, Lend, Revoke, RunStep, Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    Event,
    Fenced,
    KVArrived,
    Lent,
    MigrateAsked,
    NodeEvent,
    StepDone,
    Submitted,
    TokensEmitted,
)
from core.ids import SCHEDULER, AttemptId, GatewayId, LayoutId, NodeId, RequestId
from core.kv import SlabShape, block_keys, tail_key
from core.mix import mix_of
from core.request import Prompt, Request, SamplingParams, pack_tokens
from core.step import TokenLogprobs
from decode_worker.config import PreemptionCosts
from engine.executor import Launched
from engine.loading import ExecutorConfig, load_executor
from engine.model_info import read_model_info
from kv_transfer.inproc import Exchange, InprocTransport
from kv_transfer.slab import Slab

LAYOUT = LayoutId("real")
GATEWAY = GatewayId("gateway")
SAVING_IS_CHEAP = PreemptionCosts(0.001, 0.0001, 0.0, 0.00001)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is made of. `roles` are those of its nodes; a small `num_blocks` makes rows give way.

    Where rows `move`, each goes to the next decode node after every sixth token.
    """

    roles: tuple[str, ...] = ("mixed",)
    num_blocks: int = 200
    chunk: int = 7
    steps_in_flight: int = 1
    drafts: int = 0
    saved_blocks: int = 0
    block_size: int = 4
    moves: bool = False


@dataclass
class Answer:
    """What came of one attempt."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    end: AttemptEnd | None = None
    num_cached: int = 0


class RealNodes:
    """Nodes over one model folder.

    Owns: machines, executors, slabs and transports, and the events on their way.
    """

    def __init__(self, folder: Path, setting: Setting, dtype: str = "float64") -> None:
        info, exchange = read_model_info(folder), Exchange()
        shape = SlabShape(info.kv_layout(setting.block_size, dtype), setting.num_blocks)
        self.names = [NodeId(f"{role}@{i}") for i, role in enumerate(setting.roles)]
        self.answers: dict[AttemptId, Answer] = {}
        self._setting = setting
        self._slabs = {name: Slab.in_process(shape) for name in self.names}
        self._transports = {name: InprocTransport(name, LAYOUT, slab, exchange) for name, slab in self._slabs.items()}
        self.nodes = {
            name: Node(name, _config(shape, setting, role))
            for name, role in zip(self.names, setting.roles, strict=True)
        }
        self._executors = {
            name: load_executor(ExecutorConfig(folder, dtype), slab.buffer, shape) for name, slab in self._slabs.items()
        }
        self._events: deque[tuple[NodeId, NodeEvent]] = deque()
        self._running: deque[tuple[NodeId, Launched]] = deque()
        self.num_bytes = 0
        for reader in self.names:
            for lender in self.names:
                if lender != reader:
                    self._transports[reader].bind(self._transports[lender].binding())

    def submit(self, name: str, token_ids: list[int], sampling: SamplingParams, log: Sequence[int] = ()) -> AttemptId:
        """`log`: tokens of the answer that an attempt before it has told already; they count as answered here."""
        packed, attempt, size = pack_tokens(token_ids), AttemptId(f"{name}#0"), self._setting.block_size
        prompt = Prompt(len(token_ids), block_keys(packed, size), tail_key(packed, size))
        request = Request(RequestId(name), prompt, packed, sampling)
        self.answers[attempt] = Answer([*log], [None] * len(log))
        submitted = Submitted(attempt, request, pack_tokens(log), GATEWAY, self.names[-1], 0.0)
        self._events.append((self.names[0], submitted))
        return attempt

    def run_dry(self, num_steps: int | None = None) -> None:
        """Handle what is on its way and run steps, `num_steps` of them or until there is nothing left."""
        while self._events or (self._running and num_steps != 0):
            if self._events:
                to, event = self._events.popleft()
                self._act(to, self.nodes[to].handle(event, 0.0))
                self.nodes[to].check()
                continue
            name, launched = self._running.popleft()
            self._events.append((name, StepDone(launched.collect())))
            num_steps = None if num_steps is None else num_steps - 1
        if num_steps is None:
            assert all(node.is_idle() for node in self.nodes.values())

    def close(self) -> None:
        for name in self.names:
            self._transports[name].close()
            self._executors[name].close()
            self._slabs[name].close()

    def _act(self, node: NodeId, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case RunStep(plan):
                    self._running.append((node, self._executors[node].launch(plan)))
                case Emit(_, tokens):
                    self._take(tokens)
                case FetchKV(attempt, fetch, handle, into):
                    self.num_bytes += self._transports[node].fetch(handle, into)
                    self._events.append((node, KVArrived(attempt, fetch)))
                case Lend(attempt, reader):
                    self._events.append((node, Lent(attempt, reader)))
                case Revoke(attempt, reader):
                    self._events.append((node, Fenced(attempt, reader)))
                case Tell(to, event):
                    self._tell(to, event)

    def _tell(self, to: str, event: Event) -> None:
        if to != SCHEDULER:
            self._events.append((NodeId(to), event))  # type: ignore[arg-type]
        elif isinstance(event, AttemptFinished) and event.end is not AttemptEnd.HANDED_OFF:
            self.answers[event.attempt].end = event.end

    def _take(self, tokens: TokensEmitted) -> None:
        logprobs = tokens.logprobs or (None,) * len(tokens.attempts)
        columns = zip(tokens.attempts, tokens.indices, tokens.token_ids, logprobs, tokens.timings, strict=True)
        for attempt, index, token_id, scored, timing in columns:
            answer = self.answers[attempt]
            assert index == len(answer.token_ids), f"{attempt}: token {index} after {len(answer.token_ids)}"
            answer.token_ids.append(token_id)
            answer.logprobs.append(scored)
            if timing is not None:
                answer.num_cached = timing.num_cached_tokens
            if self._setting.moves and index % 6 == 5:
                self._move(attempt)

    def _move(self, attempt: AttemptId) -> None:
        """Ask the node that decodes it; one that is still on its way there stays."""
        decodes = [name for name, role in zip(self.names, self._setting.roles, strict=True) if role == "decode"]
        for place, name in enumerate(decodes):
            if self.nodes[name].decode.knows(attempt):
                self._events.append((name, MigrateAsked(attempt, decodes[(place + 1) % len(decodes)])))


def _config(shape: SlabShape, setting: Setting, role: str) -> NodeConfig:
    return NodeConfig(
        LAYOUT,
        shape.layout,
        shape.num_blocks,
        256,
        frozenset(),
        mix_of(role, setting.chunk, 8),
        setting.steps_in_flight,
        max_draft_tokens=setting.drafts,
        max_saved_blocks=setting.saved_blocks,
        costs=SAVING_IS_CHEAP if setting.saved_blocks else None,
    )
