"""In which order a node computes prompts, what the offline class leaves to others, and the account of its steps."""

import pytest

from core.costs import StepWork
from core.events import Submitted
from core.ids import AttemptId, GatewayId, NodeId, RequestId
from core.request import SLO, Prompt, Request, SamplingParams, pack_tokens
from decode_worker.config import PreemptionCosts
from prefill_worker.line import LATE_S
from tests.machines.bench import Bench, D, G, P
from tests.machines.row_bench import HERE, RowBench


class Prompts(Bench):
    """A prefill node that is told when first tokens are due."""

    def ask(
        self, name: str, num_tokens: int, *, due_s: float = 0.0, priority: int = 0, decode: NodeId = D
    ) -> AttemptId:
        """A prompt like no other."""
        ids = pack_tokens([hash(name) % 1000 + i for i in range(num_tokens)])
        request = Request(RequestId(name), Prompt(num_tokens), ids, SamplingParams(8), SLO(1.0, 0.005), priority)
        attempt = AttemptId(f"{name}#0")
        self.handle(Submitted(attempt, request, b"", G, decode, 0.0, 0, due_s))
        return attempt

    @property
    def planned(self) -> list[tuple[str, int]]:
        """What the newest plan computes."""
        plan = self.plans[-1]
        return [(str(a.partition("#")[0]), n) for a, n in zip(plan.attempts, plan.num_tokens, strict=True)]


def test_prompts_without_a_due_time_are_computed_as_they_came() -> None:
    bench = Prompts(tokens_per_step=8, num_blocks=64)
    for name in ("a", "b", "c"):
        bench.ask(name, 8)
    order = [bench.planned]
    for _ in range(2):
        bench.step()
        order.append(bench.planned)
    assert order == [[("a", 8)], [("b", 8)], [("c", 8)]]


def test_who_is_due_first_goes_before_who_came_first_even_where_that_one_was_begun() -> None:
    bench = Prompts(tokens_per_step=8, num_blocks=64)
    bench.ask("long", 24, due_s=100.0)
    bench.ask("soon", 4, due_s=50.0)
    bench.step()
    assert bench.planned == [("soon", 4), ("long", 4)]


def test_who_is_late_lets_others_pass_for_a_while() -> None:
    bench = Prompts(tokens_per_step=4, num_blocks=64)
    bench.ask("running", 4, due_s=1.0)
    bench.ask("late", 4, due_s=0.5)
    bench.ask("in time", 4, due_s=LATE_S - 1.0)
    bench.ask("later", 4, due_s=LATE_S + 10.0)
    order = []
    for _ in range(3):
        bench.step()
        order += bench.planned
    assert [name for name, _ in order] == ["in time", "late", "later"]


def test_a_higher_class_goes_first_and_the_offline_class_last() -> None:
    bench = Prompts(tokens_per_step=4, num_blocks=64)
    for name, priority in (("running", 0), ("offline", -1), ("usual", 0), ("high", 2)):
        bench.ask(name, 4, due_s=100.0, priority=priority)
    order = []
    for _ in range(3):
        bench.step()
        order += bench.planned
    assert [name for name, _ in order] == ["high", "usual", "offline"]


def test_a_prompt_of_the_offline_class_yields_within_one_step() -> None:
    bench = Prompts(tokens_per_step=8, num_blocks=64)
    bench.ask("offline", 80, due_s=0.1, priority=-1)
    assert bench.planned == [("offline", 8)]
    bench.ask("online", 24, due_s=100.0)
    for _ in range(3):
        bench.step()
        assert bench.planned == [("online", 8)]
    bench.step()
    assert bench.planned == [("offline", 8)]


def test_behind_one_that_lacks_blocks_nobody_begins_but_what_was_begun_goes_on() -> None:
    bench = Prompts(tokens_per_step=8, num_blocks=12)
    bench.ask("begun", 32, due_s=100.0)
    bench.ask("large", 40, due_s=10.0)
    bench.ask("small", 4, due_s=50.0)
    bench.step()
    assert bench.planned == [("begun", 8)]


def test_whatever_the_order_nothing_is_left() -> None:
    bench = Prompts(role="mixed", tokens_per_step=8, num_blocks=64)
    for i in range(8):
        bench.ask(f"p{i}", 5 + 7 * i % 30, due_s=float((5 * i) % 9), priority=(i % 3) - 1, decode=P)
    bench.run_dry()
    assert len(bench.node.prefill.line) == 0
    assert bench.node.is_idle() and len(bench.ends()) == 8


# ── rows of the offline class ────────────────────────────────────────────────────────────────────────────────────────


def row(bench: RowBench, name: str, priority: int, tpot_s: float, num_tokens: int = 3) -> AttemptId:
    """A row that decodes; steps of the bench take 10 ms."""
    ids = pack_tokens(range(10, 10 + num_tokens))
    request = Request(RequestId(name), Prompt(num_tokens), ids, SamplingParams(32), SLO(1.0, tpot_s), priority)
    bench.handle(Submitted(AttemptId(f"{name}#0"), request, b"", GatewayId("g"), HERE, 0.0))
    bench.step()
    return AttemptId(f"{name}#0")


def test_rows_of_the_offline_class_pause_while_steps_are_too_long_for_others() -> None:
    bench = RowBench(32)
    offline, online = row(bench, "offline", -1, 1.0), row(bench, "online", 0, 0.005)
    bench.step()
    bench.step()
    assert bench.last.attempts == (online,)
    for _ in range(18):
        bench.step()
        assert offline not in bench.last.attempts, "not while others miss what they were promised"
    bench.drop(online)
    bench.step()
    assert bench.last.attempts == (offline,), "nobody is in its way any more"
    bench.drop(offline)
    bench.finish()


def test_rows_of_the_offline_class_run_where_steps_are_short_enough() -> None:
    bench = RowBench(32)
    offline, online = row(bench, "offline", -1, 0.001), row(bench, "online", 0, 0.5)
    bench.step()
    assert set(bench.last.attempts) == {offline, online}


def test_of_too_many_rows_those_of_the_offline_class_wait() -> None:
    bench = RowBench(64)
    offline = [row(bench, f"offline {i}", -1, 1.0) for i in range(4)]
    online = [row(bench, f"online {i}", 0, 1.0) for i in range(7)]
    bench.step()
    assert set(online) <= set(bench.last.attempts)
    assert len(set(offline) & set(bench.last.attempts)) == 1, "eight rows run at once"


@pytest.mark.parametrize("saved", [0, 64])
def test_the_offline_class_gives_its_blocks_first_however_often_it_did(saved: int) -> None:
    bench = RowBench(7, saved=saved, costs=PreemptionCosts(0.004, 0.0005, 0.00001, 0.0001))
    offline, online = row(bench, "offline", -1, 1.0, 8), row(bench, "online", 0, 1.0, 8)
    bench.node.decode._rows[offline].num_preemptions = 5
    for _ in range(14):
        bench.step()
    assert online in bench.last.attempts and offline not in bench.last.attempts


# ── the account ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_node_accounts_for_its_steps_exactly() -> None:
    bench = Prompts(role="mixed", tokens_per_step=8, num_blocks=64)
    bench.ask("a", 12, decode=P)
    bench.step()
    stats = bench.node.stats()
    assert stats.work == StepWork(1, 0, 8, 8 * 4.0, 0, 0) and stats.busy_s == pytest.approx(0.01)
    bench.step()
    assert bench.node.stats().work == StepWork(2, 0, 12, 32.0 + 4 * (8 + 2.0), 0, 0)
    bench.ask("b", 5, decode=P)
    bench.step()
    assert bench.node.stats().work == StepWork(2, 1, 12, 72.0, 1, 12), "a row attends to what was before its token"
    bench.step()
    assert bench.node.stats().work == StepWork(3, 1, 17, 72.0 + 12.5, 2, 12 + 13, 1, 1, 13)
    assert bench.node.stats().busy_s == pytest.approx(0.04)


def test_what_is_found_is_no_work_and_a_step_that_failed_is_none() -> None:
    bench = Bench("mixed", 64, 32)
    bench.submit("a", list(range(16)), decode=P)
    bench.run_dry()
    before = bench.node.stats().work
    bench.submit("b", list(range(16)), decode=P)
    bench.step()
    after = bench.node.stats().work.minus(before)
    assert (after.prefill_tokens, after.prefill_pairs) == (1, 1 * (15 + 0.5))
    bench.submit("c", list(range(50, 60)), decode=P)
    before = bench.node.stats()
    bench.fail_step()
    assert (bench.node.stats().work, bench.node.stats().busy_s) == (before.work, before.busy_s)


def test_tokens_in_the_account_are_those_that_came_out() -> None:
    bench = RowBench(64)
    for i in range(5):
        row(bench, f"r{i}", 0, 1.0)
    bench.finish()
    work = bench.node.stats().work
    tokens = sum(len(emitted.attempts) for emitted in bench.emitted)
    assert work.num_rows + 5 == tokens, "the first token of each comes from its prefill"
