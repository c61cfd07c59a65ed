"""One line for each request, readable by people or by programs, with no word of what was said."""

import json
import logging
from collections.abc import Iterator

import pytest

from cluster.metrics.config import RequestLogFormat
from cluster.metrics.ended import EndedRequest
from cluster.metrics.request_log import LOGGER, RequestLog
from core.goodput import Outcome
from core.ids import RequestId
from tests.metrics.place import NODES, ended

NUMBER, WALL_S = 1, 1_700_000_000.0


@pytest.fixture
def nothing_left() -> Iterator[None]:
    yield
    assert not [each for each in logging.getLogger(LOGGER).handlers if type(each) is logging.StreamHandler]


def line(capsys: pytest.CaptureFixture[str], format: RequestLogFormat, **fields: object) -> str:
    log = RequestLog(format, "tiny")
    log.write(EndedRequest(NUMBER, ended(**fields), NODES, WALL_S, "decode" if fields else ""))
    log.close()
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.usefixtures("nothing_left")
def test_a_line_of_text_says_names_counts_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    text = line(capsys, RequestLogFormat.TEXT)
    words = dict(word.split("=", 1) for word in text.split(": ", 1)[1].split())
    assert words == {
        "request": "r1",
        "client_id": "mine",
        "model": "tiny",
        "class": "standard",
        "outcome": "finished",
        "finish": "length",
        "met": "yes",
        "prompt_tokens": "7",
        "cached_tokens": "3",
        "tokens": "11",
        "attempts": "1",
        "prefill_node": "p",
        "decode_node": "d",
        "ttft_s": "0.1",
        "tpot_s": "0.04",
        "wall_s": "0.5",
        "queue_s": "0.03",
        "prefill_s": "0.03",
        "handoff_s": "0.01",
        "decode_s": "0.4",
    }


@pytest.mark.usefixtures("nothing_left")
def test_a_line_of_json_has_every_name_and_says_null_for_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"outcome": Outcome.REFUSED, "code": "overloaded", "ttft_s": None, "last_token_s": None, "finish": None}
    told = json.loads(line(capsys, RequestLogFormat.JSON, **facts))
    assert told["ended_at"] == WALL_S
    assert (told["outcome"], told["code"], told["met"], told["lost_at"]) == ("refused", "overloaded", False, "decode")
    assert told["ttft_s"] is None and told["tpot_s"] is None and told["tenant"] is None


@pytest.mark.usefixtures("nothing_left")
def test_a_clients_own_name_cannot_end_the_line_or_pretend_another_field(capsys: pytest.CaptureFixture[str]) -> None:
    facts = ended().facts
    forged = type(facts)(facts.slo_class, 'x outcome=failed "')
    text = line(capsys, RequestLogFormat.TEXT, facts=forged, id=RequestId("r2"))
    assert 'client_id="x outcome=failed \\""' in text
    assert text.count(" outcome=finished ") == 1
