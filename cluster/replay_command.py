"""`penstock replay`: a recorded event log through the same scheduler, and where its commands are not the recorded ones.

A difference means that the scheduler is another than the one that was recorded (or that it is not deterministic). What
follows the first one is told as well, but there the two may only disagree because they have parted.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.console import OUT
from cluster.recording import Entry, Told, bare, read_record
from cluster.report_file import Figure, write_report
from core.commands import Tell
from scheduler.scheduler import Scheduler

MAX_SHOWN = 10
MAX_WIDTH = 220


@dataclass(frozen=True, slots=True)
class Difference:
    """One event that was answered otherwise. `place` counts events from 1."""

    place: int
    entry: Entry
    replayed: tuple[Told, ...]

    def lines(self) -> Iterator[str]:
        """For people: what was said then and is not now, and the other way round."""
        yield f"event {self.place} at {self.entry.now:.3f} s: {_short(self.entry.event)}"
        then, now = list(self.entry.told), list(self.replayed)
        if Counter(map(str, then)) == Counter(map(str, now)):
            yield "  the same commands in another order"
        yield from (f"  - {_short(told)}" for told in then if told not in now)
        yield from (f"  + {_short(told)}" for told in now if told not in then)


def run_replay(args: argparse.Namespace) -> int:
    """Replay, compare, print; 0 only where every command is the recorded one. Raises ConfigError."""
    setup, entries = read_record(Path(args.file).expanduser())
    scheduler = setup.scheduler()
    controlled = "a controller" if setup.controller else "no controller"
    OUT.print(f"{args.file}: policy {setup.policy}, {controlled}")
    differences, num_events, num_commands, first_s, last_s = list[Difference](), 0, 0, None, 0.0
    kinds = Counter[str]()
    for place, entry in enumerate(entries, 1):
        replayed = answered(scheduler, entry)
        if replayed != entry.told:
            differences.append(Difference(place, entry, replayed))
        num_events, num_commands = place, num_commands + len(entry.told)
        first_s, last_s = entry.now if first_s is None else first_s, entry.now
        kinds[type(entry.event).__name__] += 1
    OUT.print(f"{num_events:,} events in {last_s - (first_s or 0.0):.1f} s, {num_commands:,} commands")
    OUT.print(", ".join(f"{number} {name}" for name, number in kinds.most_common()))
    for difference in differences[:MAX_SHOWN]:
        for line in difference.lines():
            OUT.print(line, markup=False)
    if len(differences) > MAX_SHOWN:
        OUT.print(f"… and {len(differences) - MAX_SHOWN:,} more")
    verdict = (
        f"[red]{len(differences):,} events are answered otherwise[/red]"
        if differences
        else "[green]all commands are the recorded ones[/green]"
    )
    OUT.print(verdict)
    if args.json:
        figures: dict[str, Figure] = {"events": num_events, "commands": num_commands, "differences": len(differences)}
        samples = [{"place": each.place, "at_s": each.entry.now, "lines": list(each.lines())} for each in differences]
        write_report(args.json, "penstock replay", figures, samples)
    return 1 if differences else 0


def answered(scheduler: Scheduler, entry: Entry) -> tuple[Told, ...]:
    """What the scheduler tells now."""
    commands = scheduler.handle(entry.event, entry.now)
    return tuple(Told(command.to, bare(command.event)) for command in commands if isinstance(command, Tell))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_WIDTH else f"{text[:MAX_WIDTH]} …"
