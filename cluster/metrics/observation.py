"""All that is seen of a running service: counts, samples, the last requests, and who is told when one ends."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cluster.gateway.cluster_state import ClusterState
from cluster.gateway.gateway import Gateway
from cluster.gateway.ledger import RequestLedger
from cluster.gateway.operator import Operator, SlotView
from cluster.load_report import loss_of
from cluster.metrics import reading
from cluster.metrics.config import ObservationConfig, RequestLogFormat
from cluster.metrics.ended import EndedRequest
from cluster.metrics.history import History, NodeWork, Sample, work_of
from cluster.metrics.model_work import ModelWork
from cluster.metrics.reading import NodeEffort, Paid
from cluster.metrics.reading_vllm import EngineCounts, read_vllm
from cluster.metrics.request_log import RequestLog
from cluster.metrics.routes_seen import NOWHERE, RequestNodes
from cluster.metrics.tally import RequestTally
from cluster.metrics.tenant_costs import TenantCosts, tokens_done
from core.ids import NodeId, RequestId, node_name

if TYPE_CHECKING:
    from cluster.batches.batches import Batches
    from cluster.kubernetes import ScalingCounters
    from cluster.metrics.readings import Readings
    from cluster.metrics.traces import Tracing

SAMPLE_S = 1.0
NUM_ENDED = 1024
HOUR_S = 3600.0


class Observation:
    """Looks at one gateway and its cluster, in their loop.

    Owns: the tally of requests, the samples, the last ended requests, the log and the traces; all but the tally's sums
    is bounded. `nodes_of` says where a request ran, and may forget it then; `scaling` is what moving a RayCluster took,
    None where this process moves none, and `batches` those that are kept here.
    """

    def __init__(
        self,
        gateway: Gateway,
        operator: Operator,
        config: ObservationConfig,
        model: ModelWork | None = None,
        nodes_of: Callable[[RequestId], RequestNodes] = lambda request: NOWHERE,
    ) -> None:
        self.gateway = gateway
        self.operator = operator
        self.config = config
        self.history = History()
        self.ended: deque[EndedRequest] = deque(maxlen=NUM_ENDED)
        self.tally = RequestTally(lambda: gateway.access.tenants)
        self.scaling: ScalingCounters | None = None
        self.batches: Batches | None = None
        self._tenant_costs = TenantCosts()
        self._model = model
        self._nodes_of = nodes_of
        self._engine = EngineCounts()
        self._node_seconds = 0.0
        self._lag_s = 0.0
        self._num_ended = 0
        self._task: asyncio.Task[None] | None = None
        self._log: RequestLog | None = None
        self._tracing: Tracing | None = None
        gateway.on_ended = self.note_end
        gateway.on_turned_away = self.tally.turn_away

    def start(self) -> None:
        """Begin to sample, to write, and to send."""
        name = self.gateway.model.name
        if self.config.request_log is not RequestLogFormat.OFF:
            self._log = RequestLog(self.config.request_log, name)
        if self.config.otlp_endpoint is not None and self._tracing is None:
            from cluster.metrics.traces import otlp_tracing

            self.trace_to(otlp_tracing(name, self.config.otlp_endpoint))
        self._task = asyncio.create_task(self._sample_on(), name="observation")

    async def stop(self) -> None:
        """End it all; traces that wait are sent. Twice is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        tracing, self._tracing = self._tracing, None
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
        if self._log is not None:
            self._log.close()

    def trace_to(self, tracing: "Tracing") -> None:
        """Hand every request that ends from now on to these traces, which are closed at the end."""
        self._tracing = tracing

    def note_end(self, ledger: RequestLedger) -> None:
        """A request has ended."""
        self.tally.add(ledger)
        self._num_ended += 1
        lost_at = (
            "" if ledger.met is not False or ledger.slo is None else loss_of(ledger.record, ledger.timing, ledger.slo)
        )
        ended = EndedRequest(self._num_ended, ledger, self._nodes_of(ledger.id), time.time(), lost_at)
        self.ended.append(ended)
        if self._log is not None:
            self._log.write(ended)
        if self._tracing is not None:
            self._tracing.write(ended)

    def sample(self, now: float) -> None:
        """Take a sample at `now` of the monotonic clock; nodes have been there since the one before."""
        state = self.operator.shown()
        if self.history.samples:
            node_seconds = (now - self.history.samples[-1].at) * len(state.nodes)
            self._node_seconds += node_seconds
            self._tenant_costs.share(node_seconds, tokens_done(self.tally))
        self._engine.see(state)
        self.history.add(self._sampled(state, now))

    def read(self, into: "Readings") -> None:
        """Everything as it is now."""
        state, slots = self.operator.shown(), self.operator.slots()
        self._engine.see(state)
        classes = self.gateway.access.classes
        reading.read_requests(into, self.tally, classes)
        reading.read_gateway(into, self.gateway, state, self._lag_s)
        reading.read_nodes(into, state, slots)
        reading.read_controller(into, state)
        if self.scaling is not None:
            reading.read_kube(into, self.scaling)
        if self.batches is not None:
            reading.read_batches(into, self.batches.counts)
        for name, effort in self.efforts(state).items():
            reading.read_effort(into, name, effort, self.config)
        reading.read_paid(into, self.paid, self.tally.generation_tokens.total())
        if self.config.vllm_names:
            read_vllm(into, self.gateway, state, self.tally, self._engine)

    @property
    def paid(self) -> Paid:
        """What nodes have cost since the start."""
        price = self.config.node_cost_per_hour
        if price is None:
            return Paid(self._node_seconds, None)
        by_tenant = tuple((name, time_s / HOUR_S * price) for name, time_s in self._tenant_costs.seconds.items())
        return Paid(self._node_seconds, self._node_seconds / HOUR_S * price, by_tenant)

    def efforts(self, state: ClusterState) -> dict[str, NodeEffort]:
        """By node."""
        works = self._works(state)
        return {node_name(node.id): NodeEffort(works.get(node.id), self.history.rates(node.id)) for node in state.nodes}

    def slots(self) -> Sequence[SlotView]:
        """The places for nodes."""
        return self.operator.slots()

    def _works(self, state: ClusterState) -> dict[NodeId, NodeWork]:
        found = {node.id: work_of(node.stats, self._model) for node in state.nodes if node.stats is not None}
        return {node: work for node, work in found.items() if work is not None}

    def _sampled(self, state: ClusterState, now: float) -> Sample:
        stats = [node.stats for node in state.nodes if node.stats is not None]
        roles = [node.mix.role for node in state.nodes]
        return Sample(
            number=self.history.next_number,
            at=now,
            num_met=self.tally.num_met,
            num_counted=self.tally.num_counted,
            num_ended=self._num_ended,
            generation_tokens=self.tally.generation_tokens.total(),
            num_open=self.gateway.streams.num_open,
            running_rows=sum(each.running_rows for each in stats),
            queued_tokens=sum(each.queued_tokens for each in stats),
            kv_bytes=sum(node.kv_bytes_received for node in state.nodes),
            roles=tuple((role, roles.count(role)) for role in reading.ROLES),
            works=self._works(state),
            num_turned_away=self.tally.num_turned_away,
            incoming=sum(each.incoming for each in stats),
            leases=sum(each.leases for each in stats),
            blocks=tuple((name, sum(getattr(each.blocks, name) for each in stats)) for name in reading.BLOCK_STATES),
            wanted_nodes=state.wanted_nodes,
        )

    async def _sample_on(self) -> None:
        due = time.monotonic()
        while True:
            now = time.monotonic()
            self._lag_s = max(0.0, now - due)
            self.sample(now)
            due = max(due + SAMPLE_S, now)
            await asyncio.sleep(due - now)
