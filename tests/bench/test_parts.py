"""The parts of the measurements: what they compute, in numbers that can be checked by hand."""

import sys
from pathlib import Path

import pytest

from cluster.bench.arms import Arm, ArmFailed, ArmOrder, alternated, arms_of
from cluster.bench.engine_findings import Difference, Findings
from cluster.bench.engine_plan import BATCHING, PENSTOCK, PLAIN, VLLM, EnginePlan
from cluster.bench.engine_report import decode_share, figures, gemm_bar, memory_bar, prefill_share
from cluster.bench.kv_waste import Occupancy, kv_waste
from cluster.bench.node_loop import Ask, NodeLoop
from cluster.bench.processes import held_by, slope
from cluster.bench.shapes import SHAPES, StepArithmetic, matrix_shapes, write_config
from cluster.bench.spread import paired, spread
from core.ids import AttemptId
from core.request import SamplingParams
from core.stats import BlockCounts
from core.step import RowJoin, StepPlan
from engine.hf_config import ModelConfig, read_model_config

PLAN = EnginePlan(
    "llama-tiny", None, "float32", "cpu", 2, (1, 16), 2, (8, 8), (4, 4), (64, 128), 32, 1, 256, True, None
)


def config_of(name: str, folder: Path) -> ModelConfig:
    write_config(name, "float32", folder)
    return read_model_config(folder)


def test_a_ratio_of_arms_is_taken_repeat_by_repeat() -> None:
    ratio = paired([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])
    assert (ratio.median, ratio.least, ratio.most) == (3.0, 2.0, 4.0)
    assert spread([3.0, 1.0, 2.0]).text(".0f") == "2 (1 to 3)"


def test_the_order_of_the_arms_turns_round_each_repeat() -> None:
    assert [alternated("AB", repeat) for repeat in range(4)] == [["A", "B"], ["B", "A"], ["A", "B"], ["B", "A"]]


@pytest.mark.parametrize("name", SHAPES)
def test_every_named_shape_is_a_model_that_we_read(name: str, tmp_path: Path) -> None:
    assert config_of(name, tmp_path).family == "llama"


def test_the_default_shape_does_not_fit_in_a_cache_and_fits_in_a_laptop(tmp_path: Path) -> None:
    work = StepArithmetic.of(config_of("llama-90m", tmp_path), "float32")
    assert 300e6 < work.weight_bytes < 500e6


def test_the_work_of_a_step_is_that_of_the_formulas(tmp_path: Path) -> None:
    """llama-8b: the numbers of the published formulas; 6.98 G weights in its layers, 131,072 bytes of KV a token."""
    work = StepArithmetic.of(config_of("llama-8b", tmp_path), "bfloat16")
    assert work.matrix_weights - work.head_weights == pytest.approx(6.98e9, rel=0.001)
    assert work.kv_bytes(1) == 131072
    assert work.weight_bytes == pytest.approx(15.0e9, rel=0.005)
    assert work.decode_bytes(64, 1024) == work.weight_bytes + 64 * 1024 * 131072
    tokens = 4096
    whole = 2 * 6.98e9 * tokens + 2 * 32 * 32 * 128 * tokens**2 + 2 * 4096 * 128256
    assert work.prefill_flop(tokens) == pytest.approx(whole, rel=0.001)


def test_what_the_last_layer_leaves_out_is_not_counted_as_done(tmp_path: Path) -> None:
    config = config_of("llama-tiny", tmp_path)
    work = StepArithmetic.of(config, "float32")
    assert work.executed_flop(1) == work.prefill_flop(1)
    layer = sum(2.0 * n * k for _, n, k in matrix_shapes(config, 1))
    kv = 2.0 * config.hidden_size * 2 * config.num_kv_heads * config.head_dim
    queries = 2.0 * config.hidden_size * config.num_heads * config.head_dim
    attention = 2.0 * config.num_heads * config.head_dim * (100**2 * config.num_layers - (100**2 - 100))
    head = 2.0 * config.hidden_size * config.vocab_size
    expected = 100 * layer * (config.num_layers - 1) + 100 * (kv + queries) + (layer - kv - queries) + attention + head
    assert work.executed_flop(100) == pytest.approx(expected)


def findings(tmp_path: Path) -> Findings:
    found = Findings(PLAN, StepArithmetic.of(config_of("llama-tiny", tmp_path), "float32"), kv_waste=0.01)
    found.seconds = {
        (PENSTOCK, 1): [1.0, 1.0],
        (PENSTOCK, 16): [2.0, 4.0],
        (BATCHING, 16): [8.0, 12.0],
        (PLAIN, 1): [3.0, 5.0],
    }
    found.load_flop = {16: [1e9, 2e9]}
    found.steps = {"prefill 64": [0.1, 0.1], "prefill 128": [0.2, 0.2], "decode 1": [0.5, 0.5], "decode 16": [1.0, 1.0]}
    found.bars = {"read sum": [4e6, 4e6], "read max": [8e6, 8e6], "copy": [9e9, 9e9]}
    found.bars |= {"gemm 256x256x256": [1e9, 1e9], "gemm 64x256x128": [4e9, 4e9], "gemm 64x128x256": [2e9, 2e9]}
    return found


def test_the_figures_have_the_promised_names_and_absent_arms_have_none(tmp_path: Path) -> None:
    named = figures(findings(tmp_path))
    assert named["engine.cpu.vs_transformers_cb_16"] == 3.5
    assert named["engine.cpu.vs_transformers_generate_1"] == 4.0
    assert named["engine.cpu.answers_16_of_gemm"] == pytest.approx(0.5e9 / (2 / (1 / 4e9 + 1 / 2e9)))
    theirs = (1e9 / 8 + 2e9 / 12) / 2 / (2 / (1 / 4e9 + 1 / 2e9))
    assert named["engine.cpu.bound_vs_transformers_cb_16"] == pytest.approx(1 / theirs)
    assert named["engine.kv_waste"] == 0.01
    assert "engine.cpu.vs_vllm_cpu_16" not in named
    found = findings(tmp_path)
    found.seconds[VLLM, 16] = [3.0, 3.0]
    assert figures(found)["engine.cpu.vs_vllm_cpu_16"] == pytest.approx((1.5 + 0.75) / 2)


def test_a_fraction_is_taken_of_the_better_bar(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert memory_bar(found) == 8e6
    assert gemm_bar(found) == pytest.approx(2 / (1 / 4e9 + 1 / 2e9)), "of the model's own products, by their work"
    assert decode_share(found, 1) == found.work.decode_bytes(1, 32) / 0.5 / 8e6
    assert prefill_share(found, 128) == found.work.prefill_flop(128) / 0.2 / gemm_bar(found)
    assert figures(found)["engine.cpu.prefill_of_gemm"] == prefill_share(found, 128)


def test_only_a_close_call_of_the_reference_excuses_a_difference() -> None:
    assert Difference("x", 1, 0, 0, 3, 0.99e-4, True).is_excused
    assert not Difference("x", 1, 0, 0, 3, 1.01e-4, True).is_excused
    assert not Difference("x", 1, 0, 0, 3, None, True).is_excused


def test_each_repeat_has_new_prompts_and_every_arm_the_same() -> None:
    assert PLAN.load(4, 0, 100) == PLAN.load(4, 0, 100)
    assert PLAN.load(4, 0, 100).prompts != PLAN.load(4, 1, 100).prompts
    assert PLAN.load(4, 0, 100).num_answered == 16


def test_waste_is_what_held_blocks_do_not_store() -> None:
    occupancy = Occupancy(16)
    attempt = AttemptId("a#0")
    join = RowJoin(attempt, b"", 0, SamplingParams(1), (0, 1), (0, 0), 24)
    counts = BlockCounts(8, 5, 1, 2, 0, 0, 0, 0, 0)
    occupancy.watch(StepPlan(0, (attempt,), (24,), joined=(join,)), counts)
    assert occupancy.waste == pytest.approx(8 / 32)
    occupancy.watch(StepPlan(1, (attempt,), (8,)), counts)
    assert occupancy.waste == pytest.approx((8 / 32 + 0) / 2)


@pytest.mark.slow
def test_a_node_wastes_less_than_a_twenty_fifth_of_what_it_holds() -> None:
    assert 0 < kv_waste(16) < 0.04
    assert kv_waste(16, seed=1) < kv_waste(64, seed=1), "larger blocks waste more"


def test_a_slope_is_told_with_its_spread() -> None:
    flat = slope([0, 3600, 7200, 10800], [5, 7, 7, 5])
    steep = slope([0, 1800, 3600], [10, 20, 30])
    assert flat is not None
    assert steep is not None
    assert flat.per_hour == pytest.approx(0)
    assert flat.spread > 0
    assert steep.per_hour == pytest.approx(20)
    assert steep.spread == pytest.approx(0)
    assert slope([0, 1], [1, 2]) is None


def test_a_process_that_is_gone_holds_nothing() -> None:
    assert held_by(2**22 + 1) is None


SERVER = """
from cluster.bench.arm_server import serve, take_output
output = take_output()
print("noise")
def fail(): raise ValueError("no")
serve(output, {"ready": 1}, {"double": lambda number: {"is": 2 * number}, "fail": fail, "die": lambda: exit(3)})
"""


def test_an_arm_answers_until_it_is_closed() -> None:
    with arms_of([ArmOrder("x", ("-c", SERVER)), ArmOrder("y", ("-c", "import nothing_of_this_name"))], 1) as (
        arms,
        no,
    ):
        assert list(arms) == ["x"]
        assert "nothing_of_this_name" in no["y"]
        assert arms["x"].ready == {"ready": 1}
        assert arms["x"].ask("double", number=21) == {"is": 42}
        with pytest.raises(ArmFailed, match="ValueError: no"):
            arms["x"].ask("fail")
        assert arms["x"].ask("double", number=1) == {"is": 2}


def test_an_arm_that_dies_is_named_with_its_last_words() -> None:
    arm = Arm(ArmOrder("x", ("-c", SERVER), sys.executable), 1)
    try:
        with pytest.raises(ArmFailed, match=r"x ended: .*noise"):
            arm.ask("die")
    finally:
        arm.close()


def test_the_loop_gives_each_prompt_the_answer_that_it_has_alone() -> None:
    from tests.bench.pretended import pretended_node

    asks = [Ask(tuple(range(1, 2 + 7 * n)), 3 + n) for n in range(6)]
    node, runner = pretended_node()
    together = NodeLoop(node, runner).run(asks)
    for ask, answer in zip(asks, together, strict=True):
        assert len(answer) == ask.num_tokens
        assert NodeLoop(*pretended_node()).run([ask]) == [answer]
    node.check()
    assert node.is_idle()
