"""`penstock bench engine`: our engine, its peers and the machine's own bars, alternated in one run."""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from cluster.bench.arms import Arm, ArmFailed, alternated, arms_of
from cluster.bench.engine_findings import Difference, Findings
from cluster.bench.engine_plan import BARS, BATCHING, DRAFTS, INT8, PENSTOCK, PLAIN, EnginePlan, Load, engine_plan
from cluster.bench.engine_report import report
from cluster.bench.kv_waste import kv_waste
from cluster.bench.shapes import StepArithmetic, matrix_shapes
from cluster.console import OUT
from engine.hf_config import ModelConfig, read_model_config

Task = Callable[[], None]


def run_bench_engine(args: argparse.Namespace) -> int:
    """Runs it; 0 unless an answer differs from ours and rounding does not explain it."""
    plan = engine_plan(args)
    with _folder(plan) as place:
        folder = Path(place)
        if plan.folder is None:
            from cluster.bench.checkpoint import write_checkpoint

            _say(f"Writing random weights of the shape {plan.shape}.")
            write_checkpoint(plan.shape, plan.dtype, folder, plan.device)
        config = read_model_config(folder)
        findings = Findings(plan, StepArithmetic.of(config, plan.dtype), kv_waste=kv_waste(16))
        _say("Starting the arms, each a process of its own; only one works at a time.")
        with arms_of(plan.orders(folder), plan.num_threads) as (arms, findings.absent):
            for name in (PENSTOCK, BARS):
                if name in findings.absent:
                    raise ArmFailed(findings.absent[name])
            Run(arms, findings, config).all()
    return report(findings, args.json)


def _takes_part(arm: str, streams: int) -> bool:
    """Not all arms at all numbers of streams, so that a run ends within ten minutes: what has no figure sits out."""
    if arm == PLAIN:
        return streams == 1
    return arm not in (INT8, DRAFTS) or streams in (1, 16)


def _folder(plan: EnginePlan) -> AbstractContextManager[str]:
    if plan.folder is not None:
        return nullcontext(str(plan.folder))
    return tempfile.TemporaryDirectory(prefix="penstock-bench-")


class Run:
    """The measuring. Owns: nothing; fills the findings."""

    def __init__(self, arms: dict[str, Arm], findings: Findings, config: ModelConfig) -> None:
        self._arms = arms
        self._found = findings
        self._plan = findings.plan
        self._config = config
        self._answering = [name for name in arms if name != BARS]

    def all(self) -> None:
        """Everything in turn."""
        for name, arm in self._arms.items():
            self._found.facts[name] = dict(arm.ready)
        self._warm_up()
        for streams in self._plan.streams:
            self._answer(streams)
        self._steps_and_bars()

    def _warm_up(self) -> None:
        load = self._plan.tuning_load(self._config.vocab_size)
        words = {"prompts": load.prompts, "num_tokens": load.num_tokens}
        for name in self._answering:
            if name in (BATCHING, PLAIN):
                self._found.facts[name] |= self._arms[name].ask("tune", **words)
            else:
                self._arms[name].ask("generate", **words)
        _say(f"Warm: {', '.join(self._answering)}.")

    def _answer(self, streams: int) -> None:
        names = [name for name in self._answering if _takes_part(name, streams)]
        for repeat in range(self._plan.repeats):
            load = self._plan.load(streams, repeat, self._config.vocab_size)
            self._found.answered.setdefault(streams, []).append(load.num_answered)
            each = zip(load.prompts, load.num_tokens, strict=True)
            least = sum(self._found.work.answer_flop(len(prompt), num) for prompt, num in each)
            self._found.load_flop.setdefault(streams, []).append(least)
            answers = {}
            for name in alternated(names, repeat):
                made = self._arms[name].ask("generate", prompts=load.prompts, num_tokens=load.num_tokens)
                self._found.seconds.setdefault((name, streams), []).append(_number(made["seconds"]))
                answers[name] = made["tokens"]
            self._compare(load, streams, repeat, answers)
        _say(f"{streams} at once: measured {self._plan.repeats} times.")

    def _compare(self, load: Load, streams: int, repeat: int, answers: dict[str, object]) -> None:
        ours = _tokens(answers[PENSTOCK])
        for name in answers:
            theirs = _tokens(answers[name])
            if name == INT8:
                pairs = [a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
                self._found.equal_int8.append(sum(pairs) / len(pairs))
            elif name != PENSTOCK:
                for prompt, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
                    self._found.num_compared += 1
                    if mine != other:
                        place = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), 0)
                        before = load.prompts[prompt] + mine[:place]
                        gap, is_best = self._gap(before, mine[place])
                        self._found.differences.append(Difference(name, streams, repeat, prompt, place, gap, is_best))

    def _gap(self, before: list[int], ours: int) -> tuple[float | None, bool]:
        """By the reference's plain forward pass; nothing excuses a difference where there is no reference."""
        if PLAIN not in self._arms:
            return None, False
        told = self._arms[PLAIN].ask("gap", token_ids=before)
        return _number(told["gap"]), told["token_id"] == ours

    # ── steps and bars ───────────────────────────────────────────────────────────────────────────────────────────────

    def _steps_and_bars(self) -> None:
        """Each bar beside the step that is held against it, in changing order."""
        plan = self._plan
        products = [[plan.square] * 3, *matrix_shapes(self._config, plan.prefill_lengths[0])]
        for repeat in range(plan.repeats):
            tasks: list[Task] = [lambda: self._bar("read"), *(self._decode_task(rows) for rows in plan.streams)]
            tasks += [lambda: self._bar("copy"), lambda: self._gemm(products)]
            tasks += [self._prefill_task(tokens) for tokens in plan.prefill_lengths]
            for task in tasks if repeat % 2 == 0 else reversed(tasks):
                task()
        _say("Bars and steps: measured.")

    def _decode_task(self, rows: int) -> Task:
        return lambda: self._step(f"decode {rows}", (0, 0, rows, self._plan.probe_context), 8)

    def _prefill_task(self, tokens: int) -> Task:
        return lambda: self._step(f"prefill {tokens}", (tokens, 0, 0, 0), 1)

    def _step(self, name: str, point: tuple[int, int, int, int], repeats: int) -> None:
        columns = dict(zip(("prefill_tokens", "prefill_context", "rows", "context"), point, strict=True))
        for arm, prefix in ((PENSTOCK, ""), (INT8, "int8 ")):
            if arm in self._arms:
                made = self._arms[arm].ask("step", **columns, repeats=repeats)
                times = sorted(map(_number, _list(made["seconds"])))
                self._found.steps.setdefault(prefix + name, []).append(times[len(times) // 2])

    def _bar(self, name: str) -> None:
        rates = self._arms[BARS].ask(name)["bytes_per_s"]
        each = rates if isinstance(rates, dict) else {"": rates}
        for reader, rate in each.items():
            self._found.bars.setdefault(f"{name} {reader}".strip(), []).append(_number(rate))

    def _gemm(self, shapes: list[list[int]]) -> None:
        rates = _list(self._arms[BARS].ask("gemm", shapes=shapes)["flops"])
        for (m, n, k), rate in zip(shapes, rates, strict=True):
            self._found.bars.setdefault(f"gemm {m}x{n}x{k}", []).append(_number(rate))


def _say(text: str) -> None:
    """Told at once, also into a pipe: the next line may take minutes."""
    OUT.print(text)
    OUT.file.flush()


def _number(value: object) -> float:
    assert isinstance(value, int | float), value
    return float(value)


def _list(value: object) -> list[object]:
    assert isinstance(value, list), value
    return value


def _tokens(value: object) -> list[list[int]]:
    return [[int(_number(token)) for token in _list(answer)] for answer in _list(value)]
