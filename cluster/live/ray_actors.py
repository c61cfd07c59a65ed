"""Nodes as Ray actors: placement, actors around a `Host`, and their deaths. The only file that imports Ray.

Ray starts nodes and notices their end. No KV, no token and no event goes through it: nodes and head use `post`.
"""

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from cluster.api.v1.post_pb2 import NodeStatus
from cluster.live.actor_host import ActorHost
from cluster.live.building import Build, build_with_model
from cluster.live.config import NodeSlot, RaySettings
from cluster.live.gpus import gpu_share
from cluster.live.launcher import LOOPBACK, Progress
from cluster.live.orders import NodeOrder, StartedNode
from core.errors import ConfigError, NodeLost

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

LOG = logging.getLogger("penstock.ray")
NAMESPACE = "penstock"
PLACES_POLL_S = 1.0
CALLS_AT_ONCE = 4
"""`start`, `next_status` and `watch` are outstanding together."""


class _Method(Protocol):
    def remote(self, *arguments: object) -> Awaitable[object]: ...


class _Actor(Protocol):
    """A `ActorHost`, seen through Ray."""

    start: _Method
    next_status: _Method
    watch: _Method


class RayNode:
    """One node's actor, seen from the head.

    Owns: the actor, and the call to `watch` that ends with it.
    """

    def __init__(self, name: str, actor: _Actor, actor_id: str, kill: Callable[[], None]) -> None:
        self.actor_id = actor_id
        self._name = name
        self._actor = actor
        self._kill = kill
        self._watch = asyncio.ensure_future(self._watching())
        self._started: StartedNode | None = None

    @property
    def started(self) -> StartedNode:
        """Who it is."""
        assert self._started is not None, "the node has not said that it runs"
        return self._started

    async def run(self, order: NodeOrder, progress: Progress) -> None:
        """Starts the node and follows it until it runs. Raises ConfigError, and NodeLost where it cannot be."""
        self._actor.start.remote(order.pack())
        while True:
            status = NodeStatus.FromString(await self._next_status())
            if status.HasField("failed"):
                if status.failed.problems:
                    raise ConfigError([f"{self._name}: {problem}" for problem in status.failed.problems])
                raise NodeLost(f"{self._name} did not start: {status.failed.why}")
            if status.HasField("started"):
                self._started = StartedNode.from_wire(status.started)
                return
            progress(status.progress.phase, status.progress.share)

    async def _next_status(self) -> bytes:
        from ray.exceptions import RayError

        try:
            return cast(bytes, await self._actor.next_status.remote())
        except RayError as error:
            raise NodeLost(f"{self._name} did not start: {_first_line(error)}") from error

    async def _watching(self) -> str:
        """A call that does not return for as long as the node lives: Ray ends it when the actor's process dies."""
        from ray.exceptions import RayError

        try:
            return cast(str, await self._actor.watch.remote())
        except RayError as error:
            return f"its actor died: {_first_line(error)}"

    async def exited(self) -> str:
        """Returns why, once the node is over or its actor has died."""
        return await asyncio.shield(self._watch)

    async def stop(self) -> None:
        """Kills the actor; fine if it is gone already."""
        self._kill()
        await asyncio.wait({self._watch})


class RayLauncher:
    """Starts nodes as actors: in their bundles of one placement group, or, spread, where their groups have places.

    Owns: the placement group; and Ray itself, unless this process was connected to one or is told an address.
    """

    def __init__(self, settings: RaySettings, slots: tuple[NodeSlot, ...], build: Build = build_with_model) -> None:
        if settings.address is not None and settings.address.startswith("ray://"):
            raise ConfigError(["ray address: ray:// (Ray's client) is not supported; use the cluster's host:port"])
        self._settings = settings
        self._build = build
        self._slots = slots
        self._bundles = {slot.name: index for index, slot in enumerate(slots)}
        self._group: PlacementGroup | None = None
        self._gpus_per_node = 0.0
        self._own_ray = False
        self._folder: Path | None = None
        self._ray_folder: Path | None = None
        self._environment: dict[str, str | None] = {}

    async def open(self) -> str:
        """Connects to Ray or starts one, in a thread; then reserves the nodes' places. Raises ConfigError."""
        await asyncio.to_thread(self._connect)
        await (self._await_places() if self._settings.is_spread else self._reserve())
        if self._settings.address is None:
            return LOOPBACK
        from ray.util import get_node_ip_address

        return str(get_node_ip_address())  # type: ignore[no-untyped-call]

    def _connect(self) -> None:
        """Usage statistics are off; the token of a Ray of our own lies in a private folder, never in the home."""
        self._set("RAY_USAGE_STATS_ENABLED", "0")
        self._set("GRPC_VERBOSITY", os.environ.get("GRPC_VERBOSITY", "ERROR"))
        if self._settings.address is None:
            self._folder = Path(tempfile.mkdtemp(prefix="penstock-"))
            self._ray_folder = self._folder / "ray"  # Ray opens its own folder to everybody
            token = self._folder / "token"
            token.touch(0o600)
            token.write_text(_own_token())
            self._set("RAY_AUTH_MODE", "token")
            self._set("RAY_AUTH_TOKEN_PATH", str(token))
        import ray

        if ray.is_initialized():
            return
        self._own_ray = True
        try:
            self._init()
        except Exception as error:  # Ray raises bare ones too
            raise ConfigError([f"ray: {_first_line(error)}"]) from error

    def _init(self) -> None:
        import ray

        if self._settings.address is not None:
            ray.init(self._settings.address, namespace=NAMESPACE, logging_level=logging.ERROR)
            return
        try:
            self._init_own()
        except Exception as error:  # also where it raises it bare
            if "timed out" not in str(error).lower():
                raise
            LOG.warning("Ray did not come up in its own time, on a busy machine perhaps; once more: %s", error)
            ray.shutdown()
            self._init_own()

    def _init_own(self) -> None:
        import ray

        needed = self._settings.cpus_per_node * len(self._bundles)
        ray.init(
            "local",
            num_cpus=max(os.cpu_count() or 1, int(needed + 0.999)),
            num_gpus=self._settings.num_gpus,
            namespace=NAMESPACE,
            include_dashboard=False,
            logging_level=logging.ERROR,
            object_store_memory=self._settings.object_store_bytes,
            _temp_dir=str(self._ray_folder),
        )

    async def _reserve(self) -> None:
        """On one host, where the best transport is: shared memory."""
        from ray.exceptions import RayError
        from ray.util.placement_group import placement_group

        if self._settings.on_gpus:
            self._gpus_per_node = gpu_share(len(self._bundles), await self._await_gpus())
        gpus = {"GPU": self._gpus_per_node} if self._gpus_per_node else {}
        bundles = [{"CPU": self._settings.cpus_per_node} | gpus for _ in self._bundles]
        self._group = placement_group(bundles, strategy="STRICT_PACK")
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._group.ready()
        except (TimeoutError, RayError) as error:
            each = " and ".join(f"{count:g} {name}s" for name, count in bundles[0].items())
            asked = f"{len(bundles)} nodes of {each} on one host"
            raise ConfigError([f"ray: no place for {asked}; lower cpus_per_node or add a larger host"]) from error

    async def _await_gpus(self) -> int:
        """GPUs of the host that has the most; a cluster that we join may still be starting. Raises ConfigError."""
        end = time.monotonic() + (self._settings.start_timeout_s if self._settings.address is not None else 0.0)
        while True:
            try:
                return _most_gpus()
            except ConfigError:
                if time.monotonic() >= end:
                    raise
            await asyncio.sleep(PLACES_POLL_S)

    async def _await_places(self) -> None:
        """Waits for hosts with a place of each node's group: a custom resource. Raises ConfigError without them."""
        self._gpus_per_node = 1.0 if self._settings.on_gpus else 0.0
        needed = Counter(slot.group for slot in self._slots)
        end = time.monotonic() + self._settings.start_timeout_s
        while missing := _missing_places(needed):
            if time.monotonic() > end:
                asked = " and ".join(f"{count} of {group!r}" for group, count in missing.items())
                what = f"ray: places missing after {self._settings.start_timeout_s:g} s: {asked}"
                raise ConfigError([f"{what}; a host offers one by `ray start --resources='{{\"GROUP\": 1}}'`"])
            await asyncio.sleep(PLACES_POLL_S)

    def _place(self, order: NodeOrder) -> dict[str, Any]:
        """Where a node's actor goes."""
        if self._settings.is_spread:
            return {"resources": {order.name.rpartition("-")[0]: 1}}
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert self._group is not None, "nodes are started after open"
        place = PlacementGroupSchedulingStrategy(self._group, self._bundles[order.name])
        return {"scheduling_strategy": place}

    async def start(self, order: NodeOrder, progress: Progress) -> RayNode:
        """Makes an actor and waits until the node in it runs: for ever, while no host has a place for it.

        Raises ConfigError or NodeLost.
        """
        import ray

        made: Any = ray.remote(ActorHost)
        actor = made.options(
            num_cpus=self._settings.cpus_per_node,
            num_gpus=self._gpus_per_node,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=CALLS_AT_ONCE,
            **self._place(order),
        ).remote(self._build)
        node = RayNode(order.name, actor, actor._actor_id.hex(), partial(ray.kill, actor, no_restart=True))
        try:
            await node.run(order, progress)
        except BaseException:
            await asyncio.shield(node.stop())
            raise
        return node

    async def close(self) -> None:
        """Gives the places back, and ends a Ray of our own. Twice is fine."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._group is not None:
            from ray.util.placement_group import remove_placement_group

            remove_placement_group(self._group)
            self._group = None
        if self._own_ray:
            import ray

            ray.shutdown()
            self._own_ray = False
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._environment.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _set(self, name: str, value: str) -> None:
        """For Ray's processes, which inherit our environment; put back in `close`."""
        self._environment[name] = os.environ.get(name)
        os.environ[name] = value


def _missing_places(needed: Mapping[str, int]) -> dict[str, float]:
    """Of which groups the living hosts have fewer places than are needed, and how many fewer."""
    import ray

    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {group: count - there.get(group, 0.0) for group, count in needed.items() if there.get(group, 0.0) < count}


def _most_gpus() -> int:
    """GPUs of the host that has the most, since all nodes go to one. Raises ConfigError where no host has any."""
    import ray

    hosts = [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    most = int(max(hosts, default=0.0))
    if not most:
        raise ConfigError([f"--device cuda: no host of this Ray has a GPU ({len(hosts)} hosts); use --device cpu"])
    return most


@cache
def _own_token() -> str:
    """One for all Rays of our own that this process starts: Ray reads its token once a process and keeps it."""
    return secrets.token_hex(32)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
