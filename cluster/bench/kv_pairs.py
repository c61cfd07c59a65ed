"""Two bound processes, an owner of blocks and a reader: ours or a peer's."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from cluster.bench.arms import Arm, ArmFailed, ArmOrder, arms_of
from cluster.bench.kv_findings import KVFindings
from cluster.bench.kv_plan import LAYOUTS, PEERS, Cell, KVPlan

OURS = "ours"


class Pair:
    """An owner's and a reader's process that are bound to each other, ours or a peer's."""

    def __init__(self, owner: Arm, reader: Arm, transports: Sequence[str]) -> None:
        self.transports = tuple(transports)
        self._owner = owner
        self._reader = reader

    def measure(self, cell: Cell, turn: int) -> tuple[list[float], list[float]]:
        """Seconds of one turn's transfers and copies. Raises ArmFailed."""
        words: dict[str, object] = {"blocks": cell.num_blocks, "scattered": cell.is_scattered, "times": cell.num_times}
        if cell.transport in PEERS:
            with self._attended():
                made = self._reader.ask("measure", turn=turn, **words)
        else:
            words |= {"transport": cell.transport, "verified": cell.is_verified}
            made = self._reader.ask("measure", turn=turn, **words)
        return _numbers(made["seconds"]), _numbers(made["copy"])

    def open(self) -> None:
        """Let a peer's reader learn where its owner's memory is, and read all of it once. Raises ArmFailed."""
        told = self._owner.ask("told")
        with self._attended():
            self._reader.ask("open", **told)

    @contextmanager
    def _attended(self) -> Iterator[None]:
        self._owner.ask("attend", on=True)
        try:
            yield
        finally:
            self._owner.ask("attend", on=False)


@contextmanager
def pairs_of(found: KVFindings, layout: str) -> Iterator[list[Pair]]:
    """Our pair and the peers', as far as they can be had here. Raises ArmFailed where ours cannot."""
    orders = [order for name in (OURS, *found.plan.peers) for order in _orders(found.plan, layout, name)]
    with arms_of(orders, found.plan.num_threads) as (arms, absent):
        pairs = [our_pair(found, arms, absent, found.plan.transports)]
        for peer in found.plan.peers:
            if (pair := _peer_pair(found, peer, arms, absent)) is not None:
                pairs.append(pair)
        yield pairs


def our_pair(found: KVFindings, arms: Mapping[str, Arm], absent: Mapping[str, str], transports: Sequence[str]) -> Pair:
    """Our two processes, bound by each of these transports that can be had here. Raises ArmFailed."""
    for side in ("owner", "reader"):
        if f"{OURS} {side}" in absent:
            raise ArmFailed(absent[f"{OURS} {side}"])
    owner, reader, token = arms[f"{OURS} owner"], arms[f"{OURS} reader"], secrets.token_hex(32)
    told = owner.ask("open", transports=list(transports), token=token)
    bindings, missing = told["bindings"], told["absent"]
    assert isinstance(bindings, dict)
    assert isinstance(missing, dict)
    found.absent |= missing
    failed = reader.ask("open", bindings=bindings, digests=told["digests"], token=token)["lost"]
    assert isinstance(failed, dict)
    found.failed |= failed
    return Pair(owner, reader, [name for name in bindings if name not in failed])


def our_orders(layout: str, num_bytes: int) -> list[ArmOrder]:
    """Our owner and our reader, with pools of so many bytes."""
    words = ("--layout", layout, "--bytes", str(num_bytes))
    return [ArmOrder(f"{OURS} {side}", ("-m", f"cluster.bench.arm_kv_{side}", *words)) for side in ("owner", "reader")]


def _orders(plan: KVPlan, layout: str, name: str) -> list[ArmOrder]:
    """A peer is tried with each interpreter that was named, or else with ours."""
    if name == OURS:
        return our_orders(layout, plan.pool_bytes)
    block = LAYOUTS[layout].bytes_per_block
    size = ("--blocks", str(plan.peer_pool_bytes // block), "--bytes-per-block", str(block))
    return [
        ArmOrder(f"{name} {side} {at}", ("-m", PEERS[name], side, *size), python)
        for at, python in enumerate(plan.peer_pythons or (None,))
        for side in ("owner", "reader")
    ]


def _peer_pair(found: KVFindings, peer: str, arms: dict[str, Arm], absent: dict[str, str]) -> Pair | None:
    for at in range(max(1, len(found.plan.peer_pythons))):
        owner, reader = arms.get(f"{peer} owner {at}"), arms.get(f"{peer} reader {at}")
        if owner is None or reader is None:
            found.absent.setdefault(peer, _last_line(absent, f"{peer} owner {at}", f"{peer} reader {at}"))
            continue
        pair = Pair(owner, reader, (peer,))
        try:
            pair.open()
        except ArmFailed as error:
            found.absent.setdefault(peer, str(error))
            continue
        found.absent.pop(peer, None)
        found.facts[peer] = dict(owner.ready)
        return pair
    return None


def _last_line(absent: Mapping[str, str], *names: str) -> str:
    """Of what the first of these said before it ended."""
    return next(absent[name] for name in names if name in absent).rpartition(" | ")[2]


def _numbers(value: object) -> list[float]:
    assert isinstance(value, list)
    return [float(each) for each in value]
