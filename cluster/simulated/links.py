"""How a `Tell` travels in a simulated cluster: late and out of order, never twice, lost only with one of its two ends.

A severed link loses what is under way, then tells both nodes, each in its own time. Between two nodes each end counts
how often it was told (its epoch): a message counts only where the other end was told as often, like numbers of a link
that begin again with a new hello.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cluster.simulated.loop import Loop
from core.events import Event
from core.ids import Address


@dataclass(frozen=True, slots=True)
class Delays:
    """`message_s` and up to `jitter` times more; with probability `late_share` up to `late_s` on top.

    `reorder`: each message finds its own way; else those of one link arrive in order.
    """

    message_s: float
    jitter: float = 0.5
    late_share: float = 0.0
    late_s: float = 0.0
    reorder: bool = False


class Links:
    """All links of a cluster.

    Owns: messages under way, and how often each end of a pair was told that the other is lost.
    """

    def __init__(self, loop: Loop, delays: Delays, deliver: Callable[[Address, Event], None]) -> None:
        self.delays = delays
        self.num_lost = 0
        self.num_late = 0
        self.num_overtaken = 0
        self.num_under_way = 0
        self._loop = loop
        self._deliver = deliver
        self._arrives_at: dict[tuple[Address, Address], float] = {}
        self._told: dict[tuple[Address, Address], int] = {}
        self._cut: set[tuple[Address, Address]] = set()
        self._parked: dict[tuple[Address, Address], list[tuple[int, Event]]] = {}
        self._dead: set[Address] = set()

    def send(self, sender: Address, to: Address, event: Event) -> None:
        """Put a message on its way."""
        link = (sender, to)
        when = self._loop.now + self._delay_s()
        if not self.delays.reorder:
            when = self._arrives_at[link] = max(when, self._arrives_at.get(link, 0.0))
        else:
            self.num_overtaken += when < self._arrives_at.get(link, 0.0)
            self._arrives_at[link] = max(when, self._arrives_at.get(link, 0.0))
        self.num_under_way += 1
        self._loop.at(when, self._arrive, link, self._told.get(link, 0), event)

    def cut(self, one: Address, other: Address) -> None:
        """Lose what goes between two nodes, until both were told."""
        self._cut |= {(one, other), (other, one)}

    def tell_lost(self, told: Address, peer: Address) -> None:
        """`told` now knows that its link to `peer` is lost: it hears no older message, and begins a new count."""
        link = (told, peer)
        self._told[link] = self._told.get(link, 0) + 1
        self._cut.discard((peer, told))
        for epoch, event in self._parked.pop((peer, told), []):
            self._loop.after(0.0, self._arrive, (peer, told), epoch, event)

    def end(self, dead: Address) -> None:
        """A process is gone: nothing reaches it, and half of what it had sent is lost."""
        self._dead.add(dead)
        for link in [link for link in self._parked if dead in link]:
            self._lose(len(self._parked.pop(link)))

    def _arrive(self, link: tuple[Address, Address], epoch: int, event: Event) -> None:
        sender, to = link
        heard = self._told.get((to, sender), 0)
        if to in self._dead or (sender in self._dead and self._loop.chance.random() < 0.5):
            self._lose(1)
        elif epoch > heard:
            self._parked.setdefault(link, []).append((epoch, event))
        elif epoch < heard or link in self._cut:
            self._lose(1)
        else:
            self.num_under_way -= 1
            self._deliver(to, event)

    def _lose(self, count: int) -> None:
        self.num_lost += count
        self.num_under_way -= count

    def _delay_s(self) -> float:
        delays, chance = self.delays, self._loop.chance
        delay_s = delays.message_s * (1.0 + delays.jitter * chance.random())
        if delays.late_share and chance.random() < delays.late_share:
            self.num_late += 1
            delay_s += delays.late_s * chance.random()
        return delay_s
