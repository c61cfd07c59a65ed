"""One line for each ended request: names, counts and times, never a word of what was asked or answered."""

import json
import logging
import sys

from cluster.metrics.config import RequestLogFormat
from cluster.metrics.ended import EndedRequest

LOGGER = "penstock.request"
Value = str | int | float | bool | None


def request_facts(ended: EndedRequest, model: str) -> dict[str, Value]:
    """What a line says, in its order; None where there is nothing to say."""
    ledger, timing = ended.ledger, ended.ledger.timing
    return {
        "request": ledger.id,
        "client_id": ledger.facts.client_id or None,
        "model": model,
        "tenant": ledger.tenant or None,
        "class": ledger.slo_class or None,
        "outcome": ledger.outcome.value,
        "code": ledger.code or None,
        "finish": None if ledger.finish is None else ledger.finish.value,
        "met": ledger.met,
        "lost_at": ended.lost_at or None,
        "prompt_tokens": ledger.num_prompt_tokens,
        "cached_tokens": ledger.num_cached_tokens,
        "tokens": ledger.num_tokens,
        "attempts": ledger.num_attempts,
        "prefill_node": ended.nodes.prefill or None,
        "decode_node": ended.nodes.decode or None,
        "ttft_s": _rounded(ledger.ttft_s),
        "tpot_s": _rounded(ledger.record.tpot_s),
        "wall_s": _rounded(ledger.wall_s),
        "queue_s": _rounded(timing.admit_s + timing.queue_prefill_s),
        "prefill_s": _rounded(timing.prefill_s),
        "handoff_s": _rounded(timing.reserve_s + timing.handoff_s + timing.queue_decode_s),
        "decode_s": _rounded(timing.decode_s),
    }


class RequestLog:
    """Writes the lines, to standard error. Owns: its handler."""

    def __init__(self, format: RequestLogFormat, model: str) -> None:
        self._format = format
        self._model = model
        self._handler = logging.StreamHandler(sys.stderr)
        as_text = "%(asctime)s %(name)s: %(message)s" if format is RequestLogFormat.TEXT else "%(message)s"
        self._handler.setFormatter(logging.Formatter(as_text))
        self._logger = logging.getLogger(LOGGER)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.addHandler(self._handler)

    def close(self) -> None:
        """No further line. Twice is fine."""
        self._logger.removeHandler(self._handler)

    def write(self, ended: EndedRequest) -> None:
        """One request's line."""
        facts = request_facts(ended, self._model)
        if self._format is RequestLogFormat.JSON:
            line = json.dumps({"ended_at": round(ended.ended_wall_s, 3), **facts}, ensure_ascii=True)
        else:
            line = " ".join(f"{name}={_text(value)}" for name, value in facts.items() if value is not None)
        self._logger.info("%s", line)


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return json.dumps(text) if not text or any(sign in text for sign in ' ="') else text


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
