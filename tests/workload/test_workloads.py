"""Workloads: scaled, mixed and generated; the same seed gives the same requests."""

from itertools import islice, pairwise
from random import Random
from statistics import mean, pstdev

import pytest

from cluster.workload import gaps
from cluster.workload.arrivals import arrivals_of
from cluster.workload.generate import Extent, generated
from cluster.workload.items import WorkItem, Workload, mixed
from cluster.workload.lengths import lengths_of, mean_of
from cluster.workload.spec import workload_of
from cluster.workload.statistics import PUBLISHED
from core.errors import ConfigError
from core.request import SLO


def test_scaling_changes_time_and_never_lengths() -> None:
    workload = Workload("w", (WorkItem(0.0, 10, 1), WorkItem(4.0, 20, 2)))
    assert [(i.at_s, i.prompt_tokens) for i in workload.scaled(2.0).items] == [(0.0, 10), (2.0, 20)]
    assert workload.at_rate(1.0).rate_rps == pytest.approx(1.0)
    assert (workload.prompt_tokens, workload.output_tokens, workload.arrivals_s) == (30, 3, 8.0)


def test_a_repeated_workload_goes_on_with_prefixes_of_its_own() -> None:
    twice = Workload("w", (WorkItem(0.0, 600, 1, (0, 1)), WorkItem(4.0, 600, 1, (0, 2)))).repeated(2)
    assert [(item.at_s, item.block_ids) for item in twice.items] == [
        (0.0, (0, 1)),
        (4.0, (0, 2)),
        (8.0, (3, 4)),
        (12.0, (3, 5)),
    ]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_time_cannot_be_scaled_by_nothing(factor: float) -> None:
    with pytest.raises(ConfigError):
        Workload("w", (WorkItem(1.0, 1, 1),)).scaled(factor)


def test_mixed_workloads_keep_their_order_and_share_no_prefix() -> None:
    one = Workload("a", (WorkItem(0.0, 600, 1, (0, 1)), WorkItem(2.0, 600, 1, (0, 2))))
    both = mixed("both", [one, one.of_tenant("b", priority=1)])
    assert [item.at_s for item in both.items] == [0.0, 0.0, 2.0, 2.0]
    assert [item.block_ids for item in both.items] == [(0, 1), (3, 4), (0, 2), (3, 5)]
    assert [item.tenant for item in both.items] == ["", "b", "", "b"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_generated_lengths_have_the_published_means(name: str) -> None:
    statistics = PUBLISHED[name]
    workload = generated(name, statistics, 2.0, Extent(requests=3000), 7)
    assert workload.items == generated(name, statistics, 2.0, Extent(requests=3000), 7).items
    assert workload.items != generated(name, statistics, 2.0, Extent(requests=3000), 8).items
    prompts, outputs = PROMPT_AND_OUTPUT[name]
    assert workload.prompt_tokens / 3000 == pytest.approx(prompts, rel=0.08)
    assert workload.output_tokens / 3000 == pytest.approx(outputs, rel=0.12)


PROMPT_AND_OUTPUT = {
    "sharegpt": (755.5, 200.3),
    "humaneval": (171.3, 98.2),
    "longbench": (1738.3, 90.7),
    "azure-code": (2048, 27.9),
    "mooncake-conversation": (12_035, 343),
    "aibrix-ramp": (294, 73),
}


def test_another_rate_means_the_same_requests_at_other_times() -> None:
    slow, fast = (generated("s", PUBLISHED["sharegpt"], rate, Extent(requests=50), 1).items for rate in (1.0, 4.0))
    assert [i.prompt_tokens for i in slow] == [i.prompt_tokens for i in fast]
    assert [i.at_s for i in slow] == pytest.approx([4 * i.at_s for i in fast])


def test_generated_prefixes_hit_about_as_often_as_those_of_the_trace() -> None:
    """The trace: 36.6 % of blocks, 38.7 % of requests beyond the first block; here 3,000 requests, not 12,031."""
    items = generated("m", PUBLISHED["mooncake-conversation"], 3.4, Extent(requests=3000), 1).items
    seen, num_hits, num_requests = set[int](), 0, 0
    for item in items:
        hits = next((n for n, block in enumerate(item.block_ids) if block not in seen), len(item.block_ids))
        assert len(item.block_ids) == -(-item.prompt_tokens // 512)
        seen |= set(item.block_ids)
        num_hits, num_requests = num_hits + hits, num_requests + (hits > 1)
    assert num_hits / sum(len(i.block_ids) for i in items) == pytest.approx(0.366, abs=0.06)
    assert num_requests / len(items) == pytest.approx(0.387, abs=0.06)


@pytest.mark.parametrize(("word", "cv"), [("poisson", 1.0), ("even", 0.0), ("gamma:3", 3.0)])
def test_arrivals_have_the_rate_and_the_spread_asked_for(word: str, cv: float) -> None:
    times = list(islice(arrivals_of(word).times(5.0, 100.0, Random(3)), 20_000))
    between = [after - before for before, after in pairwise(times)]
    assert mean(between) == pytest.approx(0.2, rel=0.05)
    assert pstdev(between) / mean(between) == pytest.approx(cv, abs=0.1 * max(cv, 0.01))


def test_a_square_wave_is_high_for_half_of_its_period() -> None:
    times = [t for t in islice(arrivals_of("square:4:20").times(10.0, 0.0, Random(1)), 3000) if t < 200]
    low, high = sum(t % 20 < 10 for t in times), sum(t % 20 >= 10 for t in times)
    assert high / low == pytest.approx(4, rel=0.15)
    assert (high + low) / 200 == pytest.approx(10, rel=0.1)


def test_a_ramp_ends_so_many_times_as_fast_as_it_begins() -> None:
    times = [t for t in islice(arrivals_of("ramp:9").times(10.0, 300.0, Random(1)), 5000) if t < 300]
    first, last = sum(t < 30 for t in times), sum(t >= 270 for t in times)
    assert last / first == pytest.approx(8.6 / 1.4, rel=0.25)


def test_a_cut_log_normal_keeps_its_mean() -> None:
    lengths, chance = lengths_of("lognormal:755:1:1800"), Random(1)
    drawn = [lengths.draw(chance) for _ in range(20_000)]
    assert mean(drawn) == pytest.approx(755, rel=0.02)
    assert max(drawn) <= 1800


def test_the_mean_of_quantiles_is_the_mean_of_what_is_drawn() -> None:
    assert mean_of(((0.0, 0.0), (0.5, 10.0), (1.0, 30.0))) == pytest.approx(12.5)


@pytest.mark.parametrize(
    "spec",
    [
        "nowhere.jsonl",
        "sharegpt,rate=0",
        "sharegpt,rate=x",
        "sharegpt,speed=-1",
        "sharegpt,requests=1.5",
        "sharegpt,colour=red",
        "sharegpt,arrivals=tide",
        "sharegpt,arrivals=gamma:0",
        "sharegpt,ttft=1",
        "sharegpt,block=16",
        "lengths,in=10",
        "lengths,in=uniform:5:1,out=3",
        "lengths,in=0,out=3",
        "lengths,in=lognormal:900:1:800,out=3",
        "sharegpt,seconds=0.000001",
    ],
)
def test_a_workload_that_cannot_be_is_one_message(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        workload_of([spec], 0)
    assert len(caught.value.problems) == 1


def test_several_workloads_come_together_each_with_its_own_tenant_and_slo() -> None:
    specs = [
        "lengths,in=100,out=10,rate=2,requests=4,tenant=a,ttft=0.5,tpot=0.05",
        "lengths,in=900,out=1,rate=2,requests=4,tenant=b,offline,priority=-2,start=100,arrivals=even",
    ]
    workload = workload_of(specs, 0).workload
    assert [item.tenant for item in workload.items] == ["a"] * 4 + ["b"] * 4
    assert workload.items[0].slo == SLO(0.5, 0.05)
    assert [item.at_s for item in workload.items[4:]] == [100.5, 101.0, 101.5, 102.0]
    assert workload.items[-1].offline and workload.items[-1].priority == -2


def test_a_published_pattern_is_scaled_in_time_and_taken_whole() -> None:
    """AIBrix's ramp: 480 s at 4.44 req/s, so 48 s ten times as fast; its peak is in the middle."""
    items = workload_of(["aibrix-ramp,rate=44.4"], 0).workload.items
    assert len(items) == pytest.approx(480 * 4.44, rel=0.1) and 40 < items[-1].at_s < 48
    assert sum(18 < item.at_s < 30 for item in items) > len(items) / 2
    assert len(workload_of(["aibrix-ramp,rate=44.4,seconds=4.8"], 0).workload.items) < len(items) / 10


def test_gaps_are_read_back_within_half_a_percent() -> None:
    counts = [gaps.counted([0.010] * 98), gaps.counted([0.5, 0.5])]
    assert gaps.percentile(counts, 0.5) == pytest.approx(0.010, rel=0.005)
    assert gaps.percentile(counts, 0.99) == pytest.approx(0.5, rel=0.005)
    assert gaps.percentile([], 0.5) is None
    assert gaps.percentile([gaps.counted([0.0])], 0.5) == 0.0
