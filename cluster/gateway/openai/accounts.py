"""What a request used, where its time went, and whether its promise was kept, in an answer's words."""

from collections.abc import Sequence
from dataclasses import asdict

from cluster.gateway.choices import ClientCall
from cluster.gateway.ledger import CallEnd, RequestLedger

Json = dict[str, object]


def usage(num_prompt_tokens: int, num_tokens: int, num_cached_tokens: int | None = None) -> Json:
    """OpenAI's usage of chat completions and completions."""
    cached = None if num_cached_tokens is None else {"cached_tokens": num_cached_tokens}
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
        "prompt_tokens_details": cached,
    }


def usage_of(ends: Sequence[CallEnd]) -> Json:
    """The usage of a whole request."""
    cached = [end.num_cached_tokens for end in ends if end.num_cached_tokens is not None]
    num_prompt_tokens, num_tokens = sum(end.num_prompt_tokens for end in ends), sum(end.num_tokens for end in ends)
    return usage(num_prompt_tokens, num_tokens, sum(cached) if cached else None)


def account(calls: Sequence[ClientCall]) -> Json:
    """Penstock's own part of an answer: the times of its slowest choice, and what became of its targets."""
    ends = [call.ended for call in calls if call.ended is not None]
    ledgers = [ledger for end in ends for ledger in end.ledgers]
    slowest = max(ledgers, key=lambda ledger: ledger.wall_s)
    return {"slo": _promise(ledgers), "timing": _timing(slowest)}


def _promise(ledgers: Sequence[RequestLedger]) -> Json | None:
    """The worst of the choices counts; None without targets."""
    slo = ledgers[0].slo
    if slo is None:
        return None
    records = [ledger.record for ledger in ledgers]
    return {
        "met": all(ledger.met for ledger in ledgers),
        "ttft_s": _rounded(max((it.ttft_s for it in records if it.ttft_s is not None), default=None)),
        "tpot_s": _rounded(max((it.tpot_s for it in records if it.tpot_s is not None), default=None)),
        "target": {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s},
        "class": ledgers[0].slo_class,
    }


def _timing(ledger: RequestLedger) -> Json:
    parts = asdict(ledger.timing)
    parts.pop("num_cached_tokens", None)
    timing: Json = {name: _rounded(value) for name, value in parts.items() if name.endswith("_s")}
    return timing | {
        "wall_s": _rounded(ledger.wall_s),
        "unaccounted_s": _rounded(ledger.unaccounted_s),
        "num_attempts": ledger.num_attempts,
    }


def _rounded(value: float | None) -> float | None:
    """To microseconds: clocks tell no more."""
    return None if value is None else round(value, 6)
