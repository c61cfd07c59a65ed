"""What is measured: the probe's steps on a machine whose clock and costs are known."""

from core.step import RowJoin, StepPlan, StepResult
from engine.cost_table import CostTable, TableFacts
from engine.profile import Grid, StepProbe, fill, measure, measure_recompute

FACTS = TableFacts("m", "d", "float32", "cpu", "none", 1, 16, "now", {})
GRID = Grid((1, 16, 64), (64, 128), (1, 4), (32, 64, 128), (2, 4), 3)


class Machine:
    """Keeps rows as an executor does, and moves its clock by what a step costs."""

    def __init__(self, block_size: int = 16, slowness: float = 1.0) -> None:
        self.slowness = slowness
        self.now = 0.0
        self.block_size = block_size
        self.rows: dict[str, tuple[int, int]] = {}
        self.saved: dict[str, tuple[int, int]] = {}
        self.blocks: dict[str, tuple[int, ...]] = {}
        self.longest_chunk = 0

    def run(self, plan: StepPlan) -> StepResult:
        for attempt in plan.left:
            del self.rows[attempt]
        for attempt in plan.saved:
            self.saved[attempt] = self.rows.pop(attempt)
            self.now += 0.001 * -(-self.saved[attempt][0] // self.block_size)
        for growth in plan.restored:
            self.rows[growth.attempt] = self.saved.pop(growth.attempt)
            self.now += 0.003 * len(growth.block_ids)
        for join in plan.joined:
            self._join(join)
        self.now += 0.002 * self.slowness if plan.attempts else 0.0
        self.longest_chunk = max((self.longest_chunk, *plan.num_tokens))
        for attempt, num in zip(plan.attempts, plan.num_tokens, strict=True):
            computed, num_blocks = self.rows[attempt]
            self.now += num * 0.0001 + num * (computed + num / 2) * 1e-7
            self.rows[attempt] = (computed + num, num_blocks)
            assert computed + num <= num_blocks * self.block_size, f"{attempt} outgrows its blocks"
        return StepResult(plan.step, (), (), (), (), 0.0)

    def _join(self, join: RowJoin) -> None:
        self.blocks = {name: blocks for name, blocks in self.blocks.items() if name in self.rows}
        assert not {block for held in self.blocks.values() for block in held} & set(join.block_ids), "a shared block"
        self.blocks[join.attempt] = join.block_ids
        self.rows[join.attempt] = (join.num_computed, len(join.block_ids))


def probe(machine: Machine, num_blocks: int = 200, max_model_len: int = 1024) -> StepProbe:
    return StepProbe(machine, machine.block_size, num_blocks, max_model_len, lambda: machine.now)


def test_a_table_made_of_its_samples_knows_the_machine() -> None:
    machine = Machine()
    found = measure(probe(machine), GRID)
    table = CostTable.of(FACTS, found.steps, found.copies, found.checks)
    costs = table.recompute()
    assert abs(costs.prefill_s_per_token / 0.0001 - 1) < 0.01
    assert abs(costs.copy_s_per_block / 0.002 - 1) < 0.2
    error = table.error()
    assert error is not None
    assert error.worst < 0.1


def test_it_leaves_no_row_behind() -> None:
    machine = Machine()
    measure(probe(machine), GRID)
    assert machine.rows == {}
    assert machine.saved == {}


def test_what_fits_neither_pool_nor_model_is_left_out_and_counted() -> None:
    small, whole = (measure(probe(Machine(), *limits), GRID) for limits in ((9, 1024), (200, 1024)))
    assert whole.num_left_out == 0
    assert small.num_left_out > 0
    assert len(small.steps) + len(small.checks) + small.num_left_out == len(whole.steps) + len(whole.checks)
    assert measure(probe(Machine(), 200, 100), GRID).num_left_out > 0


def test_the_share_told_rises_to_one() -> None:
    shares: list[float] = []
    measure(probe(Machine()), GRID, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_nodes_own_short_measurement_finds_the_same_costs() -> None:
    costs = measure_recompute(probe(Machine()))
    assert abs(costs.prefill_s_per_token / 0.0001 - 1) < 0.05
    assert abs(costs.copy_s_per_block / 0.002 - 1) < 0.1


def test_a_slow_machine_is_measured_with_short_chunks_only() -> None:
    slow, quick = Machine(slowness=200.0), Machine()
    measure_recompute(probe(slow))
    measure_recompute(probe(quick))
    assert slow.longest_chunk < quick.longest_chunk


def test_even_the_smallest_pool_can_be_measured() -> None:
    costs = measure_recompute(probe(Machine(), num_blocks=1, max_model_len=16))
    assert costs.copy_s_per_block > 0


def test_filling_writes_every_byte() -> None:
    data = bytearray(3 * (1 << 20) + 5)
    fill(data)
    assert set(data) == {0x3C}
