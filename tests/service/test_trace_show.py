"""`penstock trace show` against a real service."""

import json
from pathlib import Path

import openai
import pytest

from cluster.cli import main
from tests.service.running import Running


def test_the_stages_of_an_answer_are_shown_and_written_for_perfetto(
    pair: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pair.service.http is not None
    with openai.OpenAI(base_url=f"{pair.service.http.url}/v1", api_key="none") as client:
        slo = {"slo": {"ttft_s": 9, "tpot_s": 9}}
        done = [
            client.completions.create(model="penstock-embedded", prompt="a", max_tokens=4, extra_body=slo)
            for _ in range(3)
        ]
    path = tmp_path / "trace.json"
    command = ["trace", "show", "--address", pair.address]
    assert main([*command, done[1].id, "--perfetto", str(path)]) == 0
    said = capsys.readouterr().out
    name = done[1].id.removeprefix("cmpl-")
    assert name[:12] in said and "met" in said and done[0].id.removeprefix("cmpl-")[:12] not in said
    named, *spans, first = json.loads(path.read_text())["traceEvents"]
    assert (named["ph"], named["args"]["name"]) == ("M", f"{name[:12]} finished")
    assert (first["name"], first["ph"]) == ("first token", "i")
    assert {"prefill", "decode"} <= {span["name"] for span in spans}
    assert [span["ts"] for span in spans] == pytest.approx(
        [sum(it["dur"] for it in spans[:n]) for n in range(len(spans))]
    )
    timing = done[1].model_dump()["penstock"]["timing"]
    assert sum(span["dur"] for span in spans) == pytest.approx(timing["wall_s"] * 1e6, rel=0.01, abs=10)
    assert main([*command, "--last", "2"]) == 0
    assert done[2].id.removeprefix("cmpl-")[:12] in capsys.readouterr().out


def test_what_cannot_be_shown_is_told(pair: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["trace", "show", "--address", pair.address]
    assert main([*command, "nobody"]) == 2
    assert "none has the id 'nobody'" in capsys.readouterr().err
    assert main([*command, "--last", "0"]) == 2
    assert main([*command, "--perfetto", str(tmp_path / "none" / "a")]) == 2
