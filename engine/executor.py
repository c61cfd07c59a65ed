"""Runs step plans: rows in, the model over paged memory, tokens and digests out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from core.errors import StepFailed
from core.ids import AttemptId
from core.kv import num_blocks
from core.request import SamplingParams, pack_tokens
from core.step import PromptLogprobs, RowJoin, StepPlan, StepResult, TokenLogprobs
from engine.batch import Batch, DueRow, Layout, SampledRow, ScoredRow
from engine.graphs import CudaRecorder, GraphedDecode
from engine.guides import Guides, PendingToken
from engine.logprobs import score
from engine.masks import Masks
from engine.memory import KVMemory
from engine.model import Decoder
from engine.ngram import verify
from engine.rows import Row, Rows
from engine.sampler import SampleLine, sample
from engine.saved import SavedRows


class Executor:
    """Runs plans in the order given, from one thread.

    A plan may be launched before the one before it is collected: what it needs of that one's tokens is on the device.
    One host-device synchronisation a step, in `collect`.

    Owns: the rows, saved ones too, and the bytes of the KV memory while a step runs.
    Invariant: rows of a failed step are forgotten, so a plan made ahead of the failure cannot run on half a state.
    """

    def __init__(self, model: Decoder, memory: KVMemory, guides: Guides, max_graph_rows: int = 0) -> None:
        """`max_graph_rows`: decode steps of up to so many rows are replayed as CUDA graphs; 0 for none."""
        self._model = model
        self._memory = memory
        layout, config = memory.shape.layout, model.config
        longest = num_blocks(config.max_model_len, layout.block_size) + 1
        self._rows = Rows(memory.shape.num_blocks, layout.block_size, config.vocab_size, memory.device, longest)
        self._saved = SavedRows(memory)
        self._guides = guides
        self._failed: set[AttemptId] = set()
        self._layout = Layout(self._rows, layout.block_size, memory.device)
        self._eos = tuple(sorted(config.eos_token_ids))
        self._graphs: GraphedDecode | None = None
        if max_graph_rows:
            width, longest_row = self._rows.tables.shape[1], config.max_model_len
            recorder = CudaRecorder()
            self._graphs = GraphedDecode(model.forward, max_graph_rows, width, longest_row, memory.device, recorder)

    @property
    def num_rows(self) -> int:
        """Rows resident now."""
        return len(self._rows)

    def run(self, plan: StepPlan) -> StepResult:
        """Run one step. Raises StepFailed when it cannot be run; nothing of it may be used then."""
        return self.launch(plan).collect()

    def launch(self, plan: StepPlan) -> "Launched":
        """Hand a step to the device. Raises StepFailed as `run`."""
        with self._failing(plan):
            self._apply_changes(plan)
            return self._advance(plan, time.perf_counter())

    def collect(self, launched: "Launched") -> StepResult:
        """What a step came to; see `Launched.collect`."""
        plan = launched.plan
        with self._failing(plan):
            if launched.ready is not None:
                launched.ready.synchronize()
            attempts, token_ids, lines, failed = self._take_tokens(launched)
            return StepResult(
                plan.step,
                tuple(attempts),
                tuple(token_ids),
                plan.seal,
                self._memory.digests(plan.seal) if plan.seal else (),
                time.perf_counter() - launched.started_s,
                logprobs=self._logprobs(launched, attempts, token_ids, lines),
                prompt_logprobs=self._prompt_logprobs(launched),
                num_drafts=launched.num_drafts,
                failed=failed,
            )

    def warm_up(self) -> None:
        """Run a tiny prefill and a decode step, so that the first request does not pay for first calls.

        Only while no row is resident and no block holds anything: block 0 is written, and cleared again.
        """
        assert not len(self._rows), "warm_up runs before the first plan"
        attempt, params = AttemptId("warm-up#0"), SamplingParams(max_tokens=2, top_k=2, top_p=0.9)
        num_tokens = max(1, self._memory.shape.layout.block_size - 1)
        join = RowJoin(attempt, pack_tokens([0] * num_tokens), 0, params, (0,), (0,), num_tokens)
        self.run(StepPlan(0, (attempt,), (num_tokens,), joined=(join,), seal=(0,)))
        if num_tokens < self._memory.shape.layout.block_size:
            self.run(StepPlan(0, (attempt,), (1,)))
        self.run(StepPlan(0, (), (), left=(attempt,)))
        self._memory.start_blocks((0,), (0,))
        self._guides.warm_up()

    def close(self) -> None:
        """Let go of the slab. Nothing can be run afterwards; twice is fine."""
        self._guides.close()
        self._memory.close()

    # ── launching ────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _failing(self, plan: StepPlan) -> Iterator[None]:
        """Whatever goes wrong inside fails the step, and its rows are forgotten."""
        try:
            with torch.inference_mode(), self._device_guard():
                yield
        except (StepFailed, RuntimeError) as error:
            joined, restored = ([change.attempt for change in each] for each in (plan.joined, plan.restored))
            for attempt in (*plan.attempts, *plan.saved, *joined, *restored):
                self._forget(attempt)
            if isinstance(error, StepFailed):
                raise
            raise StepFailed(f"step {plan.step}: {error}") from error

    def _device_guard(self) -> AbstractContextManager[object]:
        """Kernels of our own are launched on a thread's current device, which need not be where the memory is."""
        device = self._memory.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _forget(self, attempt: AttemptId) -> None:
        self._rows.leave(attempt)
        self._saved.forget(attempt)

    def _apply_changes(self, plan: StepPlan) -> None:
        for attempt in plan.left:
            self._forget(attempt)
            self._failed.discard(attempt)
        for attempt in plan.saved:
            self._saved.save(self._rows, attempt)
        for join in plan.joined:
            self._join(join)
        for growth in plan.restored:
            self._saved.restore(self._rows, growth)
        for growth in plan.grown:
            self._rows.grow(growth)
            self._memory.start_blocks(growth.block_ids, growth.generations)

    def _join(self, join: RowJoin) -> None:
        size, memory = self._memory.shape.layout.block_size, self._memory
        self._rows.join(join).guide = self._guides.open(join.attempt, join.sampling)
        filled, begun = divmod(join.num_computed, size)
        if join.copied_from is None:
            memory.start_blocks(join.block_ids, join.generations, num_filled=filled + (begun > 0))
            return
        memory.start_blocks(join.block_ids, join.generations, num_filled=filled)
        if begun:
            memory.copy_tokens(join.copied_from, join.block_ids[filled], begun)

    def _advance(self, plan: StepPlan, started_s: float) -> "Launched":
        due = self._due(plan)
        if not due:
            nothing = torch.empty(0, dtype=torch.int64)
            num_drafts = _num_drafts(plan, due) if plan.max_drafts else ()
            ready = _mark(self._memory.device)  # blocks may have been cleared, and may soon be fetched into
            return Launched(self, plan, started_s, num_drafts, (), nothing, nothing, (), ready)
        batch = self._layout.batch(due)
        masks = self._guides.begin([(each.row, each.drafts) for each in batch.sampled])
        logits = self._forward(batch)
        drawn = self._sample(batch, logits, None if masks is None else masks.result())
        tokens, ready = to_host(drawn)
        self._note(batch, due, drawn)
        _note_pending(batch, tokens, ready)
        kept = logits if _is_asked(batch) else logits[:0]
        num_drafts = _num_drafts(plan, due) if plan.max_drafts else ()
        return Launched(self, plan, started_s, num_drafts, batch.sampled, tokens, kept, batch.scored, ready)

    def _forward(self, batch: Batch) -> Tensor:
        if batch.is_steady and self._graphs is not None and (logits := self._graphs.run(batch.lines)) is not None:
            return logits
        return self._model.forward(batch.lines, batch.wanted, batch.max_wanted_context)

    def _due(self, plan: StepPlan) -> list[DueRow]:
        """The plan's rows, but for those that failed in a step before it, after it was made."""
        most = plan.max_drafts or (0,) * len(plan.attempts)
        columns = [
            each for each in zip(plan.attempts, plan.num_tokens, most, strict=True) if each[0] not in self._failed
        ]
        rows = [(self._rows.due(*each), *each[1:]) for each in columns]
        return [DueRow(row, num, self._drafts(row, num, limit)) for row, num, limit in rows]

    def _drafts(self, row: Row, num_tokens: int, limit: int) -> tuple[int, ...]:
        """Guesses at what follows; none where the host does not know the row's end, or where penalties depend on it."""
        if not limit or row.num_pending or row.history is not None or row.num_computed + num_tokens < row.num_known:
            return ()
        return self._guides.fitting(row, tuple(self._rows.lookup_of(row).propose(limit)))

    def _sample(self, batch: Batch, logits: Tensor, masks: Masks | None) -> Tensor:
        """The token after each sampling line, -1 where its logits are not finite. Shapes: [lines that sample]."""
        places = [(each, number) for each in batch.sampled for number in range(1 + len(each.drafts))]
        lines = [
            SampleLine(each.row.sampling, each.position + number, each.row.sampling_history())
            for each, number in places
        ]
        if not lines:
            return torch.empty(0, dtype=torch.int64, device=logits.device)
        if len(lines) < len(logits):
            logits = logits[
                torch.tensor([each.first + number for each, number in places]).to(logits.device, non_blocking=True)
            ]
        drawn = sample(logits, lines, self._eos, masks)
        return torch.where(drawn.is_finite, drawn.token_ids, -1)

    def _note(self, batch: Batch, due: Sequence[DueRow], drawn: Tensor) -> None:
        """Advance the rows, on the host and on the device, as if no draft will be confirmed."""
        for advanced in due:
            advanced.row.num_computed += advanced.num_tokens
        if batch.is_steady:
            slots = batch.lines.rows
            self._rows.contexts[slots] = batch.lines.positions + 1
            self._rows.next_tokens[slots] = drawn.clamp(min=0)
        else:
            self._note_mixed(batch, [advanced.row for advanced in due], drawn)
        for sampled, line in zip(batch.sampled, _first_lines(batch.sampled), strict=True):
            if sampled.row.history is not None:
                sampled.row.history[sampled.row.num_known] = drawn[line].clamp(min=0)
            sampled.row.num_pending += 1

    def _note_mixed(self, batch: Batch, advanced: Sequence[Row], drawn: Tensor) -> None:
        rows, device = self._rows, drawn.device
        contexts = torch.tensor([row.num_computed for row in advanced], dtype=torch.int64)
        rows.contexts[rows.slots(advanced)] = contexts.to(device, non_blocking=True)
        if batch.sampled:
            first = torch.tensor(_first_lines(batch.sampled), dtype=torch.int64).to(device, non_blocking=True)
            rows.next_tokens[rows.slots([each.row for each in batch.sampled])] = drawn[first].clamp(min=0)

    # ── collecting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_tokens(self, launched: "Launched") -> tuple[list[AttemptId], list[int], list[int], tuple[AttemptId, ...]]:
        """Columns of the result (attempts, tokens, each one's line among the logits), and the rows that failed."""
        attempts: list[AttemptId] = []
        token_ids: list[int] = []
        lines: list[int] = []
        failed = [attempt for attempt in launched.plan.attempts if attempt in self._failed]
        drawn, place = launched.tokens.tolist(), {attempt: at for at, attempt in enumerate(launched.plan.attempts)}
        columns = zip(launched.sampled, _first_lines(launched.sampled), strict=True)
        for each, start in sorted(columns, key=lambda column: place[column[0].row.attempt]):
            if each.row.attempt in self._failed:
                continue
            kept = self._kept(each, drawn[start : start + 1 + len(each.drafts)])
            if not kept:
                failed.append(each.row.attempt)
            attempts += [each.row.attempt] * len(kept)
            token_ids += kept
            lines += range(each.first, each.first + len(kept))
        return attempts, token_ids, lines, tuple(failed)

    def _kept(self, sampled: SampledRow, drawn: list[int]) -> list[int]:
        """The tokens that a row has gained; none where its logits were not finite, and the row is gone then."""
        row = sampled.row
        kept = list(verify(sampled.drafts, drawn)) if sampled.drafts else drawn
        if -1 in kept:
            kept = kept[: kept.index(-1)]
        if not kept:
            self._forget(row.attempt)
            self._failed.add(row.attempt)
        elif sampled.drafts:
            self._rows.take_drafted(row, kept)
        else:
            self._rows.take_token(row, kept[0])
        return kept

    def _logprobs(
        self, launched: "Launched", attempts: Sequence[AttemptId], token_ids: Sequence[int], lines: Sequence[int]
    ) -> tuple[TokenLogprobs | None, ...]:
        tops = {each.row.attempt: each.row.sampling.logprobs for each in launched.sampled}
        asked = [place for place, attempt in enumerate(attempts) if tops[attempt] is not None]
        if not asked:
            return ()
        scores = self._score(
            launched,
            [lines[place] for place in asked],
            [token_ids[place] for place in asked],
            [tops[attempts[place]] or 0 for place in asked],
        )
        found = dict(zip(asked, scores, strict=True))
        return tuple(found.get(place) for place in range(len(attempts)))

    def _prompt_logprobs(self, launched: "Launched") -> tuple[PromptLogprobs, ...]:
        told = []
        for each in launched.scored:
            num = len(each.token_ids)
            tops = [each.row.sampling.prompt_logprobs or 0] * num
            scores = self._score(launched, range(each.first, each.first + num), each.token_ids, tops)
            told.append(PromptLogprobs(each.row.attempt, each.position, tuple(scores)))
        return tuple(told)

    def _score(
        self, launched: "Launched", lines: Sequence[int], token_ids: Sequence[int], num_top: Sequence[int]
    ) -> list[TokenLogprobs]:
        device = launched.logits.device
        at, ids = (
            torch.tensor(list(each), dtype=torch.int64).to(device, non_blocking=True) for each in (lines, token_ids)
        )
        return score(launched.logits[at], ids, num_top)


@dataclass(frozen=True, slots=True)
class Launched:
    """A step whose work the device has, or has done; `collect` waits for it.

    `tokens` are the sampled ones in host memory, -1 where logits were not finite, valid once `ready` has happened.
    """

    executor: Executor
    plan: StepPlan
    started_s: float
    num_drafts: tuple[int, ...]
    sampled: tuple[SampledRow, ...]
    tokens: Tensor
    logits: Tensor
    scored: tuple[ScoredRow, ...]
    ready: torch.cuda.Event | None

    @property
    def is_done(self) -> bool:
        """Whether collecting it would not wait."""
        return self.ready is None or bool(self.ready.query())  # type: ignore[no-untyped-call]

    def collect(self) -> StepResult:
        """Wait for it, in the order of launching. Raises StepFailed as `Executor.run`."""
        return self.executor.collect(self)


def _num_drafts(plan: StepPlan, due: Sequence[DueRow]) -> tuple[int, ...]:
    tried = {each.row.attempt: len(each.drafts) for each in due}
    return tuple(tried.get(attempt, 0) for attempt in plan.attempts)


def _first_lines(sampled: Sequence[SampledRow]) -> list[int]:
    """The place of each row's first token among all that were drawn."""
    ends = accumulate(1 + len(each.drafts) for each in sampled)
    return [end - 1 - len(each.drafts) for each, end in zip(sampled, ends, strict=True)]


def _note_pending(batch: Batch, tokens: Tensor, ready: torch.cuda.Event | None) -> None:
    """Tell guides where the host will find what their rows have sampled."""
    for each, place in zip(batch.sampled, _first_lines(batch.sampled), strict=True):
        if each.row.guide is not None:
            each.row.guide.pending.append(PendingToken(tokens, place, ready))


def _is_asked(batch: Batch) -> bool:
    return bool(batch.scored) or any(each.row.sampling.logprobs is not None for each in batch.sampled)


def to_host(tokens: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Begin to copy to host memory; the copy may be read once the event, if there is one, has happened."""
    if tokens.device.type != "cuda":
        return tokens, None
    held = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    held.copy_(tokens, non_blocking=True)
    return held, _mark(tokens.device)


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """What happens when all that this thread has handed to a device is done; None for the CPU, where it is."""
    if device.type != "cuda":
        return None
    mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
    mark.record()
    return mark
