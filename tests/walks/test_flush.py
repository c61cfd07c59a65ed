"""Walk: the operator wants no cached prefix to be found again.

1. A node is asked (`FlushAsked`); the blocks that nobody has are free, those of running requests stay as they are.
2. It says how many there were; the scheduler forgets what it believed of it, and the operator is told (`Flushed`).
3. What runs goes on, and what it gives back afterwards is cached as ever.
"""

from core.commands import Tell
from core.flushing import FlushAsked, Flushed
from core.ids import OPERATOR, NodeId
from tests.machines.test_moves import Bench, D, P
from tests.walks.stage import Stage, decode_node, prefill_node


def test_a_flushed_node_computes_again_what_it_had_cached_and_what_runs_goes_on() -> None:
    stage = Stage(prefill_node(), decode_node())
    first = stage.ask("first", 12, max_tokens=4)
    stage.until(lambda: stage.answer(first).ended is not None)
    running = stage.ask("running", 8, max_tokens=24, first_token=5)
    stage.until(lambda: len(stage.answer(running).token_ids) > 4)
    nodes = [stage.host(name) for name in ("p", "d")]
    before = [host.machine.pool.counts() for host in nodes]
    assert all(counts.cached > 0 for counts in before)
    for host in nodes:
        stage.world.tell(host.node, FlushAsked(7))
    stage.until(lambda: len(stage.world.drained) == 2)
    assert set(stage.world.drained) == {
        Flushed(host.node, 7, counts.cached) for host, counts in zip(nodes, before, strict=True)
    }
    second = stage.ask("second", 12, max_tokens=4)
    stage.end()
    assert stage.num_cached(second) == 0
    assert len(stage.answer(running).token_ids) == 24
    third = stage.ask("third", 12, max_tokens=4)
    stage.end()
    assert stage.num_cached(third) == 11, "its last token is computed all the same"


def test_the_scheduler_forgets_the_prefixes_of_that_node_and_of_no_other() -> None:
    bench = Bench()
    view, keys = bench.scheduler.view, (b"a", b"b")
    for node in (P, D):
        view.prefixes.add(node, keys)
    assert bench.handle(Flushed(P, 1, 9)) == [Tell(OPERATOR, Flushed(P, 1, 9))]
    assert view.prefixes.deepest(keys) == (2, view.nodes[D].bit)
    assert bench.handle(Flushed(NodeId("gone"), 1, 9)) == [Tell(OPERATOR, Flushed(NodeId("gone"), 1, 9))]
    assert view.prefixes.deepest(keys) == (2, view.nodes[D].bit)
