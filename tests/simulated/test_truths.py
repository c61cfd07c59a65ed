"""Truths of step times: against the formulas and figures that they come from."""

import json
from pathlib import Path

import pytest

from cluster.simulated.hardware import GPUS, SHAPES, gpu_named, pool_blocks, shape_named
from cluster.simulated.truth import StepTruth, StraightTruth, belief_of, pairs_of
from cluster.simulated.truth_distserve import DistServeTruth, read_distserve
from cluster.simulated.truth_roofline import PERFECT, Efficiency, RooflineTruth
from cluster.simulated.truth_splitwise import TokenCurve, read_splitwise
from cluster.simulated.truth_table import TableTruth
from core.costs import NodeCosts
from core.errors import ConfigError
from engine.cost_table import CopySample, CostTable, StepSample, TableFacts

OPT_13B_TP1 = {
    "prefill": [18.103, 0.101912, 7.1223e-6],
    "decoding_smallbs": [19.935, 6.2694e-4, 0.038507],
    "decoding_largebs": [7.1662, 5.7980e-4, 0.158311],
    "decoding_large_small_bs_threshold": 95,
}
"""Of the published fits, rounded. Source: LLMServe/DistServe, Apache-2.0."""

NEGATIVE = {**OPT_13B_TP1, "prefill": [58.382, 0.382641, -7.1141e-6]}

MEASURED = Efficiency(788 / 989, 4.3 / 4.8)
"""What was measured on an H200 of a large matrix product and of a copy."""


def fits(folder: Path, words: object) -> Path:
    path = folder / "fits.json"
    path.write_text(json.dumps({"facebook/opt-13b": {"1": words}}))
    return path


def distserve(folder: Path, words: object = OPT_13B_TP1, *, stages: int = 1, overhead: bool = False) -> DistServeTruth:
    return DistServeTruth(read_distserve(fits(folder, words), "opt-13b", 1), stages, overhead)


# ── DistServe ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_distserve_prefill_and_decode_by_hand(tmp_path: Path) -> None:
    truth = distserve(tmp_path)
    assert truth.step_s([(700, 0), (300, 0)], 0, 0) == pytest.approx(
        (18.103 + 0.101912 * 1000 + 7.1223e-6 * (700**2 + 300**2)) / 1000
    )
    assert truth.step_s([], 94, 50_000) == pytest.approx((19.935 + 6.2694e-4 * 50_000 + 0.038507 * 94) / 1000)
    assert truth.step_s([], 95, 50_000) == pytest.approx((7.1662 + 5.7980e-4 * 50_000 + 0.158311 * 95) / 1000)
    assert truth.num_extrapolated == 0


def test_distserve_chunks_add_up_to_the_whole(tmp_path: Path) -> None:
    truth, fixed = distserve(tmp_path), 0.018103
    chunks = sum(truth.step_s([(500, before)], 0, 0) - fixed for before in (0, 500, 1000))
    assert chunks == pytest.approx(truth.step_s([(1500, 0)], 0, 0) - fixed)


def test_distserve_over_a_pipeline_and_with_overhead(tmp_path: Path) -> None:
    truth = distserve(tmp_path, stages=2, overhead=True)
    whole_ms = 18.103 + 0.101912 * 1000 + 7.1223e-6 * 1000**2
    assert truth.step_s([(1000, 0)], 0, 0) == pytest.approx((whole_ms / 2 + 2 + 2 + 0.1) / 1000)
    half_ms = 19.935 + 6.2694e-4 * 10_000 + 0.038507 * 60  # 120 rows are two batches of 60
    assert truth.step_s([], 120, 20_000) == pytest.approx((half_ms + 2 + 1e-4 * 10_000) / 1000)


def test_distserve_mixed_steps_pay_the_larger_fixed_part_once(tmp_path: Path) -> None:
    truth = distserve(tmp_path)
    rows_ms = 6.2694e-4 * 5000 + 0.038507 * 10
    expected = (19.935 + 0.101912 * 100 + 7.1223e-6 * 100**2 + rows_ms) / 1000
    assert truth.step_s([(100, 0)], 10, 5000) == pytest.approx(expected)


def test_distserve_counts_what_no_fit_has_seen_and_never_falls(tmp_path: Path) -> None:
    truth = distserve(tmp_path, NEGATIVE)
    times = [truth.step_s([(tokens, 0)], 0, 0) for tokens in (1000, 2000, 30_000, 60_000)]
    assert times == sorted(times) and truth.num_extrapolated == 2


# ── Splitwise ────────────────────────────────────────────────────────────────────────────────────────────────────────

HEADER = "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel\n"
RUNS = [(512, 1, 93, 45.0), (512, 1, 95, 45.0), (1024, 1, 155, 45.5), (512, 8, 500, 46.5), (512, 32, 2100, 53.0)]


def table(folder: Path, runs: str = "") -> Path:
    path = folder / "runs.csv"
    lines = [f"m,h,{prompt},{batch},128,{prefill},{token},8\n" for prompt, batch, prefill, token in RUNS]
    path.write_text(HEADER + "".join(lines) + runs)
    return path


def test_splitwise_takes_medians_and_goes_straight_between_them(tmp_path: Path) -> None:
    truth = read_splitwise(table(tmp_path), "m", "h", 8)
    assert truth.step_s([(512, 0)], 0, 0) == pytest.approx(0.094)
    assert truth.step_s([(768, 0)], 0, 0) == pytest.approx((0.094 + 0.155) / 2)
    assert truth.step_s([], 4, 10_000) == pytest.approx((45.0 + (46.5 - 45.0) * 3 / 7) / 1000)
    assert truth.step_s([(400, 0), (104, 0)], 8, 0) == pytest.approx(1.1 * 0.094)
    assert truth.num_extrapolated == 0
    truth.step_s([(20_000, 0)], 0, 0)
    assert truth.num_extrapolated == 1


def test_splitwise_as_published_looks_rows_up_among_prompt_tokens(tmp_path: Path) -> None:
    truth = read_splitwise(table(tmp_path), "m", "h", 8, TokenCurve.PUBLISHED)
    assert truth.step_s([], 64, 0) == pytest.approx((45.0 + 0.5 * (64 - 512) / 512) / 1000)


def test_splitwise_leaves_broken_rows_out(tmp_path: Path) -> None:
    broken = "".join(f"m,h,512,{batch},128,{ms},45,2\n" for batch, ms in ((1, 100), (32, 3000), (64, 50)))
    truth = read_splitwise(table(tmp_path, broken), "m", "h", 2)
    assert truth.tokens.xs == (1.0, 32.0)


# ── roofline ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("prompt", "ttft_ms"), [(512, 9.2), (2048, 37.7), (8192, 167), (32_768, 938), (131_072, 8037)])
def test_roofline_prefill_is_the_floor_of_an_h200(prompt: int, ttft_ms: float) -> None:
    truth = RooflineTruth(GPUS["H200"], SHAPES["llama-3-8b"], efficiency=MEASURED)
    assert truth.step_s([(prompt, 0)], 0, 0) * 1000 == pytest.approx(ttft_ms, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "context", "tpot_ms"),
    [(1, 0, 3.5), (32, 2048, 5.5), (128, 1024, 7.5), (256, 1024, 11.5), (64, 8192, 19.5)],
)
def test_roofline_decode_is_the_floor_of_an_h200(rows: int, context: int, tpot_ms: float) -> None:
    truth = RooflineTruth(GPUS["H200"], SHAPES["llama-3-8b"], efficiency=MEASURED)
    assert truth.step_s([], rows, rows * context) * 1000 == pytest.approx(tpot_ms, rel=0.01)


def test_roofline_of_other_gpus_and_models_by_the_formula() -> None:
    a100, h100, large = GPUS["A100"], GPUS["H100"], SHAPES["llama-3-70b"]
    assert RooflineTruth(a100, SHAPES["llama-3-8b"], efficiency=PERFECT).step_s([], 1, 0) == pytest.approx(
        15.0e9 / 2.04e12, rel=0.01
    )
    fp8 = RooflineTruth(GPUS["H200"], large, efficiency=MEASURED, bytes_per_weight=1.0)
    assert fp8.step_s([], 64, 64 * 1024) * 1000 == pytest.approx(21.2, rel=0.01)
    alone = RooflineTruth(h100, large, 1, PERFECT)
    four = RooflineTruth(h100, large, 4, PERFECT)
    moved = 2 * 80 * 1000 * 8192 * 2 * 2 * 3 / 4
    assert four.step_s([(1000, 0)], 0, 0) == pytest.approx(alone.step_s([(1000, 0)], 0, 0) / 4 + moved / 450e9)


def test_roofline_chunks_attend_to_what_is_before_them() -> None:
    truth = RooflineTruth(GPUS["H200"], SHAPES["llama-3-8b"], efficiency=PERFECT)
    apart = truth.step_s([(4096, 0)], 0, 0) + truth.step_s([(4096, 4096)], 0, 0)
    assert apart == pytest.approx(truth.step_s([(8192, 0)], 0, 0), rel=1e-3)


def test_named_shapes_have_the_parameters_of_their_names() -> None:
    sizes = {name: (shape.num_parameters + shape.num_head_parameters) / 1e9 for name, shape in SHAPES.items()}
    expected = {"opt-13b": 13, "opt-66b": 66, "opt-175b": 175, "bloom-176b": 176, "llama-2-70b": 69, "llama-3-8b": 7.5}
    assert {name: sizes[name] for name in expected} == pytest.approx(expected, rel=0.02)
    assert SHAPES["llama-3-8b"].kv(16).bytes_per_token == 131_072
    assert SHAPES["llama-3-70b"].kv(16).bytes_per_token == 327_680


def test_a_pool_is_what_weights_leave_free() -> None:
    shape = SHAPES["llama-3-8b"]
    blocks = pool_blocks(GPUS["H200"], shape, shape.kv(64))
    assert blocks * 64 * 131_072 == pytest.approx(0.92 * 141e9 - 15.0e9, rel=0.001)
    with pytest.raises(ConfigError, match="no room"):
        pool_blocks(GPUS["L40S"], SHAPES["llama-3-70b"], SHAPES["llama-3-70b"].kv(64))


# ── a measured table ─────────────────────────────────────────────────────────────────────────────────────────────────

FACTS = TableFacts("m", "d", "float32", "cpu", "none", 1, 16, "2026-01-01", {})
STEPS = [
    StepSample(1, 0, 0, 0, (0.01,)),
    StepSample(512, 0, 0, 0, (0.1,)),
    StepSample(512, 1024, 0, 0, (0.12,)),
    StepSample(0, 0, 1, 64, (0.01,)),
    StepSample(0, 0, 8, 64, (0.02,)),
    StepSample(0, 0, 8, 1024, (0.04,)),
]
MEASURED_TABLE = CostTable.of(FACTS, STEPS, [CopySample(1, (0.001,), (0.001,))])


def test_a_measured_table_gives_what_was_measured() -> None:
    truth = TableTruth(MEASURED_TABLE)
    assert truth.step_s([(256, 0), (256, 0)], 0, 0) == pytest.approx(0.1)
    assert truth.step_s([(512, 1024)], 0, 0) == pytest.approx(0.12)
    assert truth.step_s([], 8, 8 * 1024) == pytest.approx(0.04)
    assert truth.num_extrapolated == 0


def test_beyond_a_measured_table_steps_grow_in_proportion_and_are_counted() -> None:
    truth = TableTruth(MEASURED_TABLE)
    assert truth.step_s([(1024, 0)], 0, 0) == pytest.approx(0.1 + 0.1 + 0.02 / 2)  # a second piece after 512 others
    assert truth.step_s([(513, 0)], 0, 0) == pytest.approx(0.1 * 513 / 512, rel=0.01)
    assert truth.step_s([], 8, 8 * 2048) > 0.04
    assert truth.num_extrapolated == 3


def test_a_table_with_infinite_times_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    MEASURED_TABLE.write(path)
    path.write_text(path.read_text().replace("0.12", "Infinity"))
    with pytest.raises(ConfigError, match="is damaged"):
        CostTable.read(path)


# ── beliefs, and bad input ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_straight_truth_is_believed_as_it_is() -> None:
    costs = NodeCosts(0.006, 0.005, 2e-5, 2e-10, 2e-5, 3e-8)
    found = belief_of(StraightTruth(costs).step_s)
    for name in NodeCosts.__slots__:
        assert getattr(found, name) == pytest.approx(getattr(costs, name)), name


def test_beliefs_are_near_their_truths(tmp_path: Path) -> None:
    truths: list[StepTruth] = [distserve(tmp_path), RooflineTruth(GPUS["H100"], SHAPES["llama-3-8b"])]
    for truth in truths:
        costs = truth.belief()
        assert costs.decode_fixed_s + 16 * costs.per_row_s + 16_384 * costs.per_row_context_s == pytest.approx(
            truth.step_s([], 16, 16_384), rel=0.25
        )
        long_s = costs.prefill_fixed_s + 2048 * costs.per_prefill_token_s
        assert long_s + pairs_of([(2048, 0)]) * costs.per_prefill_pair_s == pytest.approx(
            truth.step_s([(2048, 0)], 0, 0), rel=0.25
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "damaged: KeyError"),
        ({**OPT_13B_TP1, "prefill": [1.0, 2.0]}, "not three numbers"),
        ({**OPT_13B_TP1, "decoding_smallbs": [float("nan"), 1.0, 1.0]}, "not a number"),
        ({**OPT_13B_TP1, "decoding_largebs": [1.0, 1.0, -1.0]}, "negative times"),
        ({**OPT_13B_TP1, "decoding_large_small_bs_threshold": -1}, "threshold"),
    ],
)
def test_damaged_fits_are_one_clear_error(tmp_path: Path, words: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_distserve(fits(tmp_path, words), "opt-13b", 1)


def test_fits_that_are_not_there_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"have facebook/opt-13b TP1, not opt-175b TP8"):
        read_distserve(fits(tmp_path, OPT_13B_TP1), "opt-175b", 8)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_distserve(tmp_path / "none.json", "opt-13b", 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("m,h,512,1,128,-3,45,8\n", r"line 7: prompt_time '-3'"),
        ("m,h,512,1,128,nan,45,8\n", r"prompt_time 'nan'"),
        ("m,h,512,1,128,90,,8\n", r"token_time ''"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_splitwise(table(tmp_path, line), "m", "h", 8)


def test_a_missing_column_or_machine_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text("model,hardware,prompt_size\nm,h,512\n")
    with pytest.raises(ConfigError, match="no column tensor_parallel"):
        read_splitwise(path, "m", "h", 8)
    with pytest.raises(ConfigError, match="it has m h 8"):
        read_splitwise(table(tmp_path), "m", "x100", 8)


def test_a_roofline_that_cannot_be_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="MFU"):
        RooflineTruth(GPUS["H100"], SHAPES["llama-3-8b"], efficiency=Efficiency(mfu=1.5))
    with pytest.raises(ConfigError, match="no fp8"):
        RooflineTruth(GPUS["A100"], SHAPES["llama-3-8b"], bytes_per_weight=1.0)
    with pytest.raises(ConfigError, match="no GPU 'V100'"):
        gpu_named("V100")
    with pytest.raises(ConfigError, match="no model shape 'gpt-2'"):
        shape_named("gpt-2")
