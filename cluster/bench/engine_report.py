"""Figures and tables of `penstock bench engine`."""

from collections.abc import Mapping
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.bench.engine_findings import GAP, Findings
from cluster.bench.engine_plan import BATCHING, DRAFTS, INT8, PENSTOCK, PLAIN, VLLM
from cluster.bench.spread import Spread, paired, spread
from cluster.console import OUT
from cluster.report_file import Figure, write_report


def report(found: Findings, json_path: str | None) -> int:
    """Print the tables, write the file; 1 where an answer differs and rounding does not explain it."""
    numbers = figures(found)
    _print_answers(found)
    _print_limits(found, numbers)
    unexplained = [each for each in found.differences if not each.is_excused]
    excused = len(found.differences) - len(unexplained)
    OUT.print(
        f"Greedy answers: {found.num_compared} compared with ours token by token, {excused} part where the reference's "
        f"two best logits are within {GAP:g}, {len(unexplained)} elsewhere."
    )
    for each in unexplained:
        best = "ours is the reference's" if each.ours_is_best else "ours is not the reference's"
        where = f"{each.streams} streams, repeat {each.repeat}, prompt {each.prompt}, token {each.place}"
        OUT.print(f"[red]differs: {each.arm}, {where}, gap {each.gap}; {best}[/red]")
    for name, why in found.absent.items():
        OUT.print(f"[yellow]absent: {name}: {why}[/yellow]")
    for name, value in numbers.items():
        OUT.print(f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}")
    if json_path:
        write_report(json_path, "penstock bench engine", numbers, samples(found))
    return 1 if unexplained else 0


def figures(found: Findings) -> dict[str, Figure]:
    """The figures by name; those of an arm that did not run are absent."""
    device, lengths = found.plan.device, found.plan.prefill_lengths
    named: dict[str, Figure] = {"engine.kv_waste": found.kv_waste}
    if device == "cpu":
        pairs = [("vs_transformers_cb_16", BATCHING, 16), ("vs_transformers_generate_1", PLAIN, 1)]
        pairs.append(("vs_vllm_cpu_16", VLLM, 16))
        length = lengths[len(lengths) // 2]
        named |= {"engine.cpu.prefill_of_gemm": prefill_share(found, length)}
        named |= {"engine.cpu.prefill_executed_of_gemm": prefill_share(found, length, executed=True)}
        if 1 in found.plan.streams:
            named["engine.cpu.decode_of_membw"] = decode_share(found, 1)
    else:
        pairs = [("vs_transformers_cb_offline", BATCHING, max(found.plan.streams))]
        named |= {"engine.cuda.prefill_4k_of_gemm": prefill_share(found, lengths[-1])}
        for rows in (1, 64):
            if rows in found.plan.streams:
                named[f"engine.cuda.decode_b{rows}_of_copy"] = decode_share(found, rows)
    for name, arm, streams in pairs:
        against = ratio(found, arm, streams)
        if against is not None:
            named[f"engine.{device}.{name}"] = against.median
    if device == "cpu" and (PENSTOCK, 16) in found.seconds:
        named["engine.cpu.answers_16_of_gemm"] = answers_share(found, PENSTOCK, 16)
        if (BATCHING, 16) in found.seconds:
            named["engine.cpu.bound_vs_transformers_cb_16"] = 1.0 / answers_share(found, BATCHING, 16)
    named["engine.answers_compared"] = found.num_compared
    named["engine.answers_unexplained"] = sum(not each.is_excused for each in found.differences)
    return named


def ratio(found: Findings, arm: str, streams: int) -> Spread | None:
    """Our speed over another arm's; None where one of them did not run."""
    ours, theirs = (found.seconds.get((name, streams)) for name in (PENSTOCK, arm))
    return paired(theirs, ours) if ours and theirs else None


def answers_share(found: Findings, arm: str, streams: int) -> float:
    """FLOP that the answers cost at least, over the time that an arm took, over the matrix bar.

    No engine can be faster than another by more than one over the other's share.
    """
    flop, times = found.load_flop[streams], found.seconds[arm, streams]
    return spread([each / time for each, time in zip(flop, times, strict=True)]).median / gemm_bar(found)


def prefill_share(found: Findings, num_tokens: int, *, executed: bool = False) -> float:
    """A prompt's FLOP per second over the better of two bars: a large square product, and the model's own products."""
    flop = found.work.executed_flop(num_tokens) if executed else found.work.prefill_flop(num_tokens)
    return flop / spread(found.steps[f"prefill {num_tokens}"]).median / gemm_bar(found)


def gemm_bar(found: Findings) -> float:
    """FLOP/s of matrix products in this run."""
    rates = {name: spread(values).median for name, values in found.bars.items() if name.startswith("gemm ")}
    own = {name: rate for name, rate in rates.items() if name != _square(found)}
    flop = {name: 2.0 * _product(name) for name in own}
    together = sum(flop.values()) / sum(flop[name] / rate for name, rate in own.items())
    return max(rates[_square(found)], together)


def memory_bar(found: Findings) -> float:
    """Bytes per second: on a CPU those read by the fastest reader, on a device those read and written by a copy."""
    kind = "read " if found.plan.device == "cpu" else "copy"
    return max(spread(values).median for name, values in found.bars.items() if name.startswith(kind))


def decode_share(found: Findings, rows: int) -> float:
    """Least traffic of a decode step over its time, over the memory bar."""
    step_s = spread(found.steps[f"decode {rows}"]).median
    return found.work.decode_bytes(rows, found.plan.probe_context) / step_s / memory_bar(found)


def samples(found: Findings) -> list[Mapping[str, object]]:
    """Everything that was measured, for the file."""
    plan = asdict(found.plan) | {"folder": None if found.plan.folder is None else found.plan.folder.name}
    plan |= {"peer_python": found.plan.peer_python is not None}
    lines: list[Mapping[str, object]] = [{"kind": "plan", **plan}, {"kind": "arms", **found.facts}]
    lines += [{"kind": "absent", "arm": name, "why": why} for name, why in found.absent.items()]
    lines += [
        {"kind": "answers", "arm": arm, "streams": streams, "seconds": times, "tokens": found.answered[streams]}
        for (arm, streams), times in found.seconds.items()
    ]
    lines += [{"kind": "step", "name": name, "seconds": times} for name, times in found.steps.items()]
    lines += [{"kind": "bar", "name": name, "per_second": rates} for name, rates in found.bars.items()]
    lines += [{"kind": "difference", **asdict(each)} for each in found.differences]
    return [*lines, {"kind": "int8", "share_of_equal_tokens": found.equal_int8}]


def _print_answers(found: Findings) -> None:
    threads = f"{found.plan.num_threads} thread{'s' if found.plan.num_threads > 1 else ''}"
    title = f"Answered tokens per second, {found.plan.dtype}, {threads}, {found.plan.repeats} repeats: median (ends)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("at once", "arm", "tokens/s", "of the matrix rate", "ours is faster by"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for (arm, streams), times in found.seconds.items():
        rates = [num / time for num, time in zip(found.answered[streams], times, strict=True)]
        against = None if arm == PENSTOCK else ratio(found, arm, streams)
        share = f"{answers_share(found, arm, streams):.0%}"
        table.add_row(str(streams), arm, spread(rates).text(".1f"), share, "" if against is None else against.text())
    OUT.print(table)
    if found.equal_int8:
        OUT.print(f"{INT8}: {spread(found.equal_int8).text('.1%')} of the tokens are those of float32.")
    if DRAFTS in found.facts:
        OUT.print(f"{DRAFTS}: prompts are random, so drafts find something only where answers repeat themselves.")


def _print_limits(found: Findings, numbers: Mapping[str, Figure]) -> None:
    table = Table(title="Against the machine, same run", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("what", "median (ends)", "share of the bar"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, rates in found.bars.items():
        unit = "GFLOP/s" if name.startswith("gemm") else "GB/s"
        table.add_row(f"bar: {name}, {unit}", spread([rate / 1e9 for rate in rates]).text(".1f"), "")
    for name, times in found.steps.items():
        kind, _, count = name.removeprefix("int8 ").partition(" ")
        share = ""
        if kind == "prefill" and not name.startswith("int8"):
            whole, done = prefill_share(found, int(count)), prefill_share(found, int(count), executed=True)
            share = f"{whole:.1%} by the formula, {done:.1%} of what is computed"
        elif not name.startswith("int8"):
            share = f"{decode_share(found, int(count)):.1%}"
        table.add_row(f"step: {name}, ms", spread([time * 1000 for time in times]).text(".1f"), share)
    OUT.print(table)
    OUT.print(f"KV: {found.kv_waste:.2%} of the held blocks' places hold nothing, on average over a mixed load.")


def _square(found: Findings) -> str:
    return f"gemm {'x'.join([str(found.plan.square)] * 3)}"


def _product(name: str) -> float:
    m, n, k = map(int, name.removeprefix("gemm ").split("x"))
    return float(m) * n * k
