"""Trace files: each known form, what is done to it, and one clear message for each way it may be wrong."""

import json
from pathlib import Path

import pytest

from cluster.workload.items import WorkItem, Workload
from cluster.workload.traces import read_trace, write_trace
from core.errors import ConfigError
from core.request import SLO

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8"
)
AIBRIX = "timestamp_ms,prompt_tokens,output_tokens\n6011,178,8\n6917,258,0\n"
PLAIN = "at_s,prompt_tokens,output_tokens,tenant,priority,ttft_s,tpot_s\n0,10,5,a,-1,0.5,0.05\n1.5,20,6,,,,\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,100,10\n0.75,101,11\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,472,18,490,Conversation log\n"


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def line(at_ms: float, prompt: int, output: int, ids: list[int] | None = None) -> str:
    fields = {"timestamp": at_ms, "input_length": prompt, "output_length": output}
    return json.dumps(fields | ({} if ids is None else {"hash_ids": ids})) + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE, [(0.0, 4808, 10), (0.052, 3180, 8)]),
        (AIBRIX, [(0.0, 178, 8), (0.906, 258, 1)]),
        (PLAIN, [(0.0, 10, 5), (1.5, 20, 6)]),
        (VIDUR, [(0.0, 100, 10), (0.25, 101, 11)]),
        (BURST, [(0.0, 472, 18)]),
    ],
)
def test_a_csv_trace_is_known_by_its_columns(text: str, expected: list[tuple[float, int, int]], tmp_path: Path) -> None:
    items = read_trace(written(tmp_path, text)).workload.items
    assert [(pytest.approx(i.at_s, abs=1e-6), i.prompt_tokens, i.output_tokens) for i in items] == expected


def test_a_csv_trace_may_say_tenant_class_and_slo(tmp_path: Path) -> None:
    first, second = read_trace(written(tmp_path, PLAIN)).workload.items
    assert (first.tenant, first.priority, first.slo) == ("a", -1, SLO(0.5, 0.05))
    assert (second.tenant, second.priority, second.slo) == ("", 0, None)


def test_lengths_of_zero_become_one_and_that_is_said(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, AIBRIX))
    assert trace.notes == ("1 requests have a length of 0, taken as 1",)


def test_coarse_stamps_are_spread_over_their_step_unless_kept(tmp_path: Path) -> None:
    text = "".join(line(at, 600, 5, [0, n]) for n, at in enumerate([0, 0, 0, 3000, 3000, 3000]))
    path = written(tmp_path, text, "trace.jsonl")
    assert [item.at_s for item in read_trace(path).workload.items] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert [item.at_s for item in read_trace(path, keep_stamps=True).workload.items] == [0, 0, 0, 3, 3, 3]
    assert read_trace(path).workload.items[1].block_ids == (0, 1)


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    items = (
        WorkItem(0.0, 1000, 5, (0, 1), "a", -1, True, SLO(0.5, 0.05)),
        WorkItem(0.0015, 3, 1),
        WorkItem(2.5, 513, 7, (0, 2)),
    )
    path = tmp_path / "native.jsonl"
    write_trace(path, Workload("native", items))
    assert read_trace(path).workload == Workload("native", items)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("empty",)),
        ("\n\n", ("empty",)),
        ("a,b,c\n1,2,3\n", ("line 1", "field time", "missing", "a, b, c")),
        ("timestamp_ms,prompt_tokens\n1,2\n", ("line 1", "field output", "missing")),
        ("timestamp_ms,prompt_tokens,output_tokens\n", ("line 1", "no request")),
        ("timestamp_ms,prompt_tokens,output_tokens\n1,2\n", ("line 2", "2 fields", "3")),
        ("timestamp_ms,prompt_tokens,output_tokens\n1,2,3\n-1,2,3\n", ("line 3", "timestamp_ms", "-1")),
        ("timestamp_ms,prompt_tokens,output_tokens\n1,-2,3\n", ("line 2", "prompt_tokens", "-2")),
        ("timestamp_ms,prompt_tokens,output_tokens\n1,2.5,3\n", ("line 2", "prompt_tokens", "whole")),
        ("timestamp_ms,prompt_tokens,output_tokens\n1,2,many\n", ("line 2", "output_tokens", "many")),
        ("timestamp_ms,prompt_tokens,output_tokens\n1,nan,3\n", ("line 2", "prompt_tokens", "nan")),
        ("timestamp_ms,prompt_tokens,output_tokens\n5,2,3\n4,2,3\n", ("line 3", "earlier")),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-13-16 18:17:03,4,1\n", ("line 2", "TIMESTAMP", "date")),
        (PLAIN.replace("0.5,0.05", "0,0.05"), ("line 2", "ttft_s", "above 0")),
        (PLAIN.replace("0.5,0.05", "0.5,"), ("line 2", "tpot_s", "missing")),
        (line(0, 5, 5) + "{\n", ("line 2", "JSON")),
        (line(0, 5, 5) + "[1]\n", ("line 2", "object")),
        (line(0, 5, 5) + '{"timestamp": 1, "input_length": 5}\n', ("line 2", "output_length", "missing")),
        (line(0, 5, 5) + line(-1, 5, 5), ("line 2", "timestamp", "-1")),
        (line(0, 5, 5) + line(1, 5, -5), ("line 2", "output_length", "-5")),
        (line(0, 5, 5) + line(1, 700, 5, [0]), ("line 2", "hash_ids", "block=")),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [-1]}\n', ("line 1", "hash_ids")),
        ('{"timestamp": true, "input_length": 5, "output_length": 5}\n', ("line 1", "timestamp")),
    ],
)
def test_a_bad_file_is_one_message_with_line_and_field(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(written(tmp_path, text))
    assert len(caught.value.problems) == 1
    assert all(word in caught.value.problems[0] for word in ("trace.csv", *words))


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none")
