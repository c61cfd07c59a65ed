"""The prefill machine of one node: queues, computes in chunks, offers what is sealed, lends until released."""

from core.commands import Command, Emit, Lend, Revoke, Tell
from core.events import (
    AttemptEnd,
    AttemptFinished,
    ClaimAnswered,
    Claimed,
    Fenced,
    LeaseReleased,
    LeasesRenewed,
    Lent,
    Offered,
    PrefillDone,
    PrefillEvent,
    Sealed,
    Stayed,
    Submitted,
)
from core.finish import finish_reason
from core.ids import SCHEDULER, AttemptId, NodeId
from core.kv import KVHandle, num_blocks
from core.lifecycle import PrefillState
from core.mix import Mix
from core.request import num_packed
from core.step import StepResult
from engine.blocks import BlockPool
from prefill_worker.attempt import Prefill, prefill_of
from prefill_worker.batching import PrefillRows, join_of, plan_chunk
from prefill_worker.config import PrefillConfig
from prefill_worker.fruit import Fruit, add_scores, done_of, first_token, fruits_of
from prefill_worker.leases import LeaseBook, next_handle
from prefill_worker.line import Line
from prefill_worker.migrants import Migrant, prefill_of_migrant
from prefill_worker.prefixes import allocate, publish_tail, seal, waits


class PrefillWorker:
    """Decides for all attempts that this node prefills.

    Owns: their queue, their block tables until handed over, the blocks that steps copy from, the lease book, and the
    blocks of rows that go elsewhere, while they are lent.
    Invariant: blocks go back only when no step can write them and no claimed lease lets a reader copy them.
    `num_prompt_tokens` counts the tokens of all attempts that began here, `num_cached_tokens` those found among them.
    """

    def __init__(self, config: PrefillConfig, pool: BlockPool) -> None:
        self._config = config
        self._pool = pool
        self._attempts: dict[AttemptId, Prefill] = {}
        self.line = Line()
        self._in_step: dict[int, list[tuple[Prefill, int, tuple[int, ...]]]] = {}
        self._finished_step = -1
        self._left: list[AttemptId] = []
        self._adopted: list[tuple[Prefill, PrefillDone]] = []
        self._returned: list[AttemptId] = []
        self.leases = LeaseBook(config.timers.lease_s)
        self.num_dropped_events = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_migrated = 0

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def knows(self, attempt: AttemptId) -> bool:
        """Whether this attempt is here and not gone."""
        return attempt in self._attempts

    def state_of(self, attempt: AttemptId) -> PrefillState:
        """The state of an attempt; GONE where it was never met."""
        prefill = self._attempts.get(attempt)
        return prefill.state if prefill else PrefillState.GONE

    @property
    def attempts(self) -> tuple[AttemptId, ...]:
        """All attempts that are not gone, oldest first."""
        return tuple(self._attempts)

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens that are to be computed. A prompt that is here already will be found, but for its last one."""
        seen, number = set[bytes](), 0
        for prefill in [p for p in self._attempts.values() if p.end is None and not p.is_migrant]:
            tail = prefill.asked.request.prompt.tail_key
            is_known = tail in seen and prefill.state is PrefillState.QUEUED and bool(prefill.findable.names)
            number += 1 if is_known else prefill.num_tokens - prefill.num_computed
            if tail:
                seen.add(tail)
        return number

    @property
    def num_prefilling(self) -> int:
        """Attempts whose prompt is being computed."""
        return sum(p.state is PrefillState.PREFILLING for p in self._attempts.values())

    def tables(self) -> list[tuple[int, ...]]:
        """The block tables held here, each with the block that is copied from."""
        return [prefill.table + prefill.source for prefill in self._attempts.values()]

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: PrefillEvent, mix: Mix, now: float) -> list[Command]:
        """One event of this machine's own."""
        match event:
            case Submitted():
                return self._on_submitted(event, mix, now)
            case Claimed(attempt, reader):
                return self._on_claimed(attempt, reader)
            case Lent(attempt, reader):
                return self._on_lent(attempt, reader)
            case LeasesRenewed(reader, attempts):
                for attempt in attempts:
                    self.leases.renew(attempt, reader, now)
            case LeaseReleased():
                return self._on_released(event)
            case Fenced(attempt, reader):
                return self._on_fenced(attempt, reader)
        return []

    def drop(self, attempt: AttemptId) -> list[Command]:
        """Give an attempt up, in whatever state it is."""
        prefill = self._attempts[attempt]
        self.leases.revoke_unclaimed(attempt)
        return self._end(prefill, AttemptEnd.DROPPED)

    def lose_peer(self, node: NodeId) -> list[Command]:
        """A decode node is gone: what was lent to it is fenced, what it has not got is lost."""
        commands: list[Command] = []
        for prefill in [p for p in self._attempts.values() if p.asked.decode_node == node]:
            handed_off = prefill.state is PrefillState.CLAIMED
            self.leases.revoke_unclaimed(prefill.id)
            lease = self.leases.of(prefill.id)
            if lease is not None and not lease.is_fencing:
                lease.is_fencing = True
                commands.append(Revoke(prefill.id, node))
            commands += self._end(prefill, AttemptEnd.HANDED_OFF) if handed_off else self._fail_handoff(prefill)
        return commands

    def finish_step(self, result: StepResult, now: float) -> list[Command]:
        """A step is over: what it sealed is offered, a finished prompt's first token goes to its client."""
        self._finished_step = result.step
        in_step = self._in_step.pop(result.step, [])
        if not in_step:
            return []
        digests = dict(zip(result.sealed, result.digests, strict=True))
        fruits = fruits_of(result, {prefill.id for prefill, _, _ in in_step})
        commands: list[Command] = []
        for prefill, num_tokens, sealed in in_step:
            fruit = fruits[prefill.id]
            if fruit.has_failed:
                self._pool.unpublish(prefill.table + prefill.source)
            self._let_go(prefill)
            if prefill.end is not None:
                commands += self._settle(prefill)
            elif fruit.has_failed:
                commands += self._fail(prefill)
            else:
                prefill.num_computed += num_tokens
                add_scores(prefill, fruit.scored)
                seal(prefill, sealed, digests, self._pool, self._config.block_size)
                commands += self._advance(prefill, fruit, now)
        return commands

    def fail_step(self, step: int) -> list[Command]:
        """The executor could not run it: nothing that it touched may be used."""
        self._finished_step = step
        commands: list[Command] = []
        for prefill, _, _ in self._in_step.pop(step, []):
            self._let_go(prefill)
            commands += self._fail(prefill)
        return commands

    def tick(self, now: float) -> list[Command]:
        """Leases that nobody renewed or claimed end here, whatever else goes on."""
        commands: list[Command] = []
        for attempt in self.leases.expired(now):
            self.leases.end(attempt)
            commands += self._fail_handoff(self._attempts[attempt])
        return commands

    def lend_row(self, migrant: Migrant, now: float) -> list[Command]:
        """A row of this node's decode machine goes elsewhere: its blocks are this machine's until they are released."""
        prefill, timers = prefill_of_migrant(migrant, self._config.block_size, now), self._config.timers
        self._attempts[prefill.id] = prefill
        self.leases.grant_for(prefill.id, migrant.to, timers.claim_s, now)
        handle = next_handle(prefill, self._pool, self._config)
        assert handle is not None, f"{prefill.id} leaves without blocks"
        return [Tell(migrant.to, _offer_of(prefill, handle, migrant.done))]

    # ── planning ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def next_rows(
        self, budget_tokens: int, step: int, now: float, *, may_begin: bool = True, with_offline: bool = True
    ) -> PrefillRows:
        """Take up to `budget_tokens` prompt tokens into step number `step`, from the front of the line.

        Past those that wait for what is being computed; where one lacks blocks, none behind it begins, and nobody
        without `may_begin`: rows of this node lack them.
        """
        rows = PrefillRows()
        if not len(self.line):
            return rows
        running = [p for p in self._attempts.values() if p.state is PrefillState.PREFILLING]
        for prefill in self.line.in_order(now, with_offline=with_offline):
            if budget_tokens == 0:
                break
            if prefill.state is PrefillState.QUEUED:
                if not may_begin or waits(prefill, running, self._pool, self._config.block_size):
                    continue
                may_begin = allocate(prefill, self._pool, self._config.block_size)
                if not may_begin:
                    continue
                self._begin(rows, prefill, now)
                running.append(prefill)
            budget_tokens -= self._add_row(rows, prefill, budget_tokens, step)
        return rows

    def take_left(self) -> tuple[AttemptId, ...]:
        """Rows that the executor may forget, once."""
        left, self._left = tuple(self._left), []
        return left

    def take_adopted(self) -> list[tuple[Prefill, PrefillDone]]:
        """Attempts that this node's own decode machine takes over, once."""
        adopted, self._adopted = self._adopted, []
        return adopted

    def take_returned(self) -> tuple[AttemptId, ...]:
        """Rows that nobody took: they and their blocks are the decode machine's again. Once."""
        returned, self._returned = tuple(self._returned), []
        return returned

    def _begin(self, rows: PrefillRows, prefill: Prefill, now: float) -> None:
        prefill.state, prefill.started_at = PrefillState.PREFILLING, now
        self.num_prompt_tokens += prefill.num_tokens
        self.num_cached_tokens += prefill.num_cached
        rows.joined.append(join_of(prefill, self._pool))

    def _add_row(self, rows: PrefillRows, prefill: Prefill, budget_tokens: int, step: int) -> int:
        num_tokens = min(budget_tokens, prefill.num_tokens - prefill.num_planned)
        rows.num_pairs += num_tokens * (prefill.num_planned + num_tokens / 2)
        sealed = plan_chunk(prefill, num_tokens, self._config.block_size, self._is_kept(prefill))
        prefill.last_step = step
        if prefill.num_planned == prefill.num_tokens:
            self.line.remove(prefill)
        rows.attempts.append(prefill.id)
        rows.num_tokens.append(num_tokens)
        rows.seal.extend(sealed)
        self._in_step.setdefault(step, []).append((prefill, num_tokens, sealed))
        return num_tokens

    def _is_kept(self, prefill: Prefill) -> bool:
        return prefill.asked.decode_node == self._config.node

    # ── submitted, claimed, released ─────────────────────────────────────────────────────────────────────────────────

    def _on_submitted(self, event: Submitted, mix: Mix, now: float) -> list[Command]:
        if event.attempt in self._attempts:
            self.num_dropped_events += 1
            return []
        prefill = prefill_of(event, self._config.block_size, now)
        fits = num_blocks(prefill.num_tokens, self._config.block_size) <= self._pool.num_blocks
        if not mix.accepts_prefill or not fits or len(self._attempts) >= self._config.max_queued:
            return [self._report(event.attempt, AttemptEnd.REFUSED)]
        self._attempts[event.attempt] = prefill
        self.line.add(prefill)
        return []

    def _on_claimed(self, attempt: AttemptId, reader: NodeId) -> list[Command]:
        prefill = self._attempts.get(attempt)
        if prefill is None or prefill.end is not None or not self.leases.claim(attempt, reader):
            self.num_dropped_events += prefill is None
            return [Tell(reader, ClaimAnswered(attempt, self._config.node, granted=False))]
        if prefill.state is PrefillState.OFFERED:
            prefill.state = PrefillState.CLAIMED
        return [Lend(attempt, reader)]

    def _on_lent(self, attempt: AttemptId, reader: NodeId) -> list[Command]:
        lease = self.leases.of(attempt)
        if lease is None or lease.reader != reader or lease.is_fencing:
            self.num_dropped_events += 1
            return []
        return [Tell(reader, ClaimAnswered(attempt, self._config.node, granted=True))]

    def _on_released(self, event: LeaseReleased) -> list[Command]:
        lease, prefill = self.leases.of(event.attempt), self._attempts.get(event.attempt)
        if lease is None or prefill is None or lease.reader != event.reader:
            self.num_dropped_events += 1
            return []
        self.leases.end(event.attempt)
        if not prefill.is_done or (prefill.is_migrant and not event.has_all):
            return self._fail_handoff(prefill)
        self.num_migrated += prefill.is_migrant
        return self._end(prefill, AttemptEnd.HANDED_OFF)

    def _on_fenced(self, attempt: AttemptId, reader: NodeId) -> list[Command]:
        lease, prefill = self.leases.of(attempt), self._attempts.get(attempt)
        if lease is None or prefill is None or not lease.is_fencing or lease.reader != reader:
            self.num_dropped_events += 1
            return []
        self.leases.end(attempt)
        return self._settle(prefill)

    # ── a step's fruit ───────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, prefill: Prefill, fruit: Fruit, now: float) -> list[Command]:
        """Offer what is new, and where the prompt is done, emit its token and pass the attempt on."""
        if not prefill.is_done:
            return [] if self._is_kept(prefill) else self._offer(prefill, None, now)
        token_id = fruit.token_id
        assert token_id is not None, f"{prefill.id} is done and has no token"
        request, num_output = prefill.asked.request, num_packed(prefill.asked.log) + 1
        finish = finish_reason(token_id, num_output, request.sampling, self._config.eos_token_ids)
        done = done_of(prefill, token_id, now)
        emitted = first_token(prefill, done, fruit.logprobs, finish)
        publish_tail(prefill, self._pool, self._config.block_size)
        return [Emit(prefill.asked.gateway, emitted), *self._pass_on(prefill, done, finish is not None, now)]

    def _pass_on(self, prefill: Prefill, done: PrefillDone, is_finished: bool, now: float) -> list[Command]:
        """The prompt is done: its blocks go back, or stay for a decode row here, or are lent to one elsewhere."""
        if is_finished:
            self.leases.revoke_unclaimed(prefill.id)
            return self._end(prefill, AttemptEnd.FINISHED)
        if self._is_kept(prefill):
            del self._attempts[prefill.id]
            self._adopted.append((prefill, done))
            return []
        commands = self._offer(prefill, done, now)
        prefill.state = PrefillState.CLAIMED if self.leases.is_claimed(prefill.id) else PrefillState.OFFERED
        self._left.append(prefill.id)
        return commands

    def _offer(self, prefill: Prefill, done: PrefillDone | None, now: float) -> list[Command]:
        """Tell the decode node what it does not know of yet: everything with the first message, then what is new."""
        handle = next_handle(prefill, self._pool, self._config)
        if handle is None:
            return []
        asked = prefill.asked
        if self.leases.of(prefill.id) is not None:
            return [Tell(asked.decode_node, Sealed(prefill.id, handle, done))]
        self.leases.grant(prefill.id, asked.decode_node, now)
        return [Tell(asked.decode_node, _offer_of(prefill, handle, done))]

    def _withdraw(self, prefill: Prefill) -> list[Command]:
        """The rest of what was claimed will not come: the reader must not wait for it, and releases what it has."""
        if prefill.end is not None or not self.leases.is_claimed(prefill.id):
            return []
        reader = prefill.asked.decode_node
        return [Tell(reader, ClaimAnswered(prefill.id, self._config.node, granted=False))]

    def _let_go(self, prefill: Prefill) -> None:
        """The step that copied from another table's block is over: an attempt's first one is the first to end."""
        self._pool.let_go(prefill.source)
        prefill.source = ()

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _fail(self, prefill: Prefill) -> list[Command]:
        self.leases.revoke_unclaimed(prefill.id)
        return self._withdraw(prefill) + self._end(prefill, AttemptEnd.STEP_FAILED)

    def _fail_handoff(self, prefill: Prefill) -> list[Command]:
        """Nobody will have what was offered: an attempt of this machine is lost, a row goes on where it was."""
        if not prefill.is_migrant or prefill.end is not None:
            return self._end(prefill, AttemptEnd.KV_LOST)
        del self._attempts[prefill.id]
        self._returned.append(prefill.id)
        return [Tell(SCHEDULER, Stayed(prefill.id, self._config.node, was_offered=True))]

    def _end(self, prefill: Prefill, end: AttemptEnd) -> list[Command]:
        if prefill.end is None:
            prefill.end = end
            self.line.remove(prefill)
        return self._settle(prefill)

    def _settle(self, prefill: Prefill) -> list[Command]:
        """Give the blocks back and report, or wait in ENDING for the step or the claimed lease that holds them."""
        if prefill.end is None:
            return []
        in_step = prefill.last_step > self._finished_step
        if in_step or self.leases.of(prefill.id) is not None:
            if in_step and prefill.state is not PrefillState.ENDING:
                self._pool.quarantine(prefill.table)
            prefill.state = PrefillState.ENDING
            return []
        self._pool.free(prefill.table)
        del self._attempts[prefill.id]
        self._left.append(prefill.id)
        return [self._report(prefill.id, prefill.end)]

    def _report(self, attempt: AttemptId, end: AttemptEnd) -> Tell:
        return Tell(SCHEDULER, AttemptFinished(attempt, self._config.node, end))


def _offer_of(prefill: Prefill, handle: KVHandle, done: PrefillDone | None) -> Offered:
    asked = prefill.asked
    return Offered(prefill.id, asked.request, asked.log, asked.gateway, handle, done, asked.num_preemptions)
