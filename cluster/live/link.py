"""The numbers of one link between two processes: what was sent and not yet acknowledged, and what has arrived. Pure."""

from cluster.api.v1.post_pb2 import Envelope

MAX_UNACKNOWLEDGED = 4096
MAX_EARLY = 1024
ACK_EVERY = 64


class LinkBroken(Exception):
    """The peer breaks the numbering rules; its stream must be closed."""


class Link:
    """Both directions of one session with one peer.

    Owns: the numbers of the session, unacknowledged envelopes, and the marks of what arrived.
    Invariant: an envelope keeps its number until it is acknowledged or the session ends, however often its stream
    breaks; a number is received once.
    """

    def __init__(self, now: float, dead_s: float) -> None:
        self._dead_s = dead_s
        self.session = 1
        self.num_duplicates = 0
        self.reset(now, self.session)

    def reset(self, now: float, session: int) -> None:
        """Begins another session: numbers start from 1 again, and what was unacknowledged is gone for good."""
        self.session = session
        self.mark = 0
        self._next = 1
        self._unacknowledged: dict[int, tuple[Envelope, float]] = {}
        self._early: set[int] = set()
        self._acked = 0
        self._heard_at = now

    @property
    def num_unacknowledged(self) -> int:
        """Envelopes that the peer has not said it has."""
        return len(self._unacknowledged)

    @property
    def owes_ack(self) -> bool:
        """Whether so much arrived since the last acknowledgement that the next heartbeat is too late for one."""
        return self.mark - self._acked >= ACK_EVERY

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def post(self, envelope: Envelope, now: float) -> int | None:
        """Numbers an envelope and keeps it until it is acknowledged; None where the link is full."""
        if len(self._unacknowledged) >= MAX_UNACKNOWLEDGED:
            return None
        number = self._next
        self._next += 1
        envelope.number = number
        self._unacknowledged[number] = (envelope, now)
        return number

    def next_after(self, sent: int) -> Envelope | None:
        """The first unacknowledged envelope with a number above `sent`."""
        if sent + 1 in self._unacknowledged:
            return self._unacknowledged[sent + 1][0]
        if sent + 1 >= self._next:
            return None
        first = next(iter(self._unacknowledged), None)
        return self._unacknowledged[first][0] if first is not None and first > sent else None

    def stamp(self, envelope: Envelope) -> Envelope:
        """Writes the newest acknowledgement onto an envelope that is about to leave."""
        envelope.ack = self._acked = self.mark
        return envelope

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def heard(self, ack: int, now: float) -> None:
        """Any envelope of the peer: it is alive, and has everything up to `ack`. Raises LinkBroken."""
        if ack >= self._next:
            raise LinkBroken(f"acknowledges {ack}; only {self._next - 1} were sent")
        self._heard_at = now
        while (first := next(iter(self._unacknowledged), ack + 1)) <= ack:
            del self._unacknowledged[first]

    def has(self, number: int) -> bool:
        """Whether this number has arrived before."""
        return number <= self.mark or number in self._early

    def receive(self, number: int) -> bool:
        """Notes an arrival; False for a number seen before. Raises LinkBroken beyond `MAX_EARLY` early numbers."""
        if self.has(number):
            self.num_duplicates += 1
            return False
        self._early.add(number)
        while self.mark + 1 in self._early:
            self.mark += 1
            self._early.remove(self.mark)
        if len(self._early) > MAX_EARLY:
            raise LinkBroken(f"more than {MAX_EARLY} numbers are early; {self.mark + 1} is missing")
        return True

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def why_severed(self, now: float) -> str | None:
        """The reason to give this session up, if there is one."""
        if now - self._heard_at > self._dead_s:
            return f"nothing heard for {self._dead_s:g} s"
        oldest = next(iter(self._unacknowledged.values()), None)
        if oldest is not None and now - oldest[1] > self._dead_s:
            return f"unacknowledged for {self._dead_s:g} s"
        return None

    def excuse(self, pause_s: float) -> None:
        """We ourselves stood still for this long: it is not the peer's silence."""
        self._heard_at += pause_s
        self._unacknowledged = {n: (envelope, at + pause_s) for n, (envelope, at) in self._unacknowledged.items()}
