"""Walk: one node does both phases; nothing moves.

1. The scheduler routes prefill and decode to the same node.
2. The prompt is computed; the decode machine adopts the table. No lease, no offer, no fetch.
3. The row decodes in the same steps in which other prompts are computed.
"""

from cluster.simulated.scenario import NodePlan
from core.events import Claimed, KVArrived, Offered
from tests.walks.stage import Stage


def test_a_node_that_does_both_phases_hands_nothing_over() -> None:
    stage = Stage(NodePlan("m", "mixed", 16, 4))
    requests = [stage.ask(f"r{i}", 9, max_tokens=4, first_token=i) for i in range(3)]
    stage.end()
    assert stage.num_seen(Offered) == stage.num_seen(Claimed) == stage.num_seen(KVArrived) == 0
    assert all(len(stage.answer(request).token_ids) == 4 for request in requests)
