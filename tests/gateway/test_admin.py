"""The operators' port: what it shows and changes, what it refuses, and who may call it."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import grpc
import pytest

from cluster.api.v1 import admin_pb2 as pb
from cluster.gateway.access import Access
from cluster.gateway.admin_client import AdminClient
from cluster.gateway.admin_server import AdminServer
from cluster.gateway.client import CallFailed, Credentials
from cluster.gateway.keys import Grant
from cluster.gateway.listening import Endpoint
from cluster.gateway.operator import DecisionFeed
from core.decisions import Decision, DecisionKind, Fact, MixStep
from core.ids import NodeId
from core.mix import mix_of
from tests.gateway.fake_cluster import Place, serve, until
from tests.gateway.fake_operator import FakeOperator
from tests.gateway.keyed import Keys


def decision(number: int) -> Decision:
    step = MixStep(NodeId("d@2"), mix_of("decode", 512, 16), mix_of("mixed", 512, 16))
    return Decision(0.0, DecisionKind.RATIO, f"reason {number}", (step,), (Fact("load_rps", 2.5),), 1.0, 2.0)


def operating(scenario: Callable[[FakeOperator, str, Place], Awaitable[None]], keys: Keys | None = None) -> None:
    async def run(place: Place) -> None:
        if keys is not None:
            place.gateway.access = Access(keys.settings)
        operator = FakeOperator(lambda: place.cluster.state)
        server = AdminServer(place.gateway, operator, Endpoint())
        await server.start()
        try:
            await scenario(operator, server.address, place)
        finally:
            await server.stop()

    serve(run)


async def asked(address: str, act: Callable[[AdminClient], object], credentials: Credentials = Credentials()) -> object:  # noqa: B008
    """The plain client on a thread, for it blocks."""

    def use() -> object:
        with AdminClient(address, credentials) as client:
            return act(client)

    return await asyncio.to_thread(use)


async def refused(address: str, act: Callable[[AdminClient], object]) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await asked(address, act)
    return failed.value


def test_the_cluster_is_shown_with_its_slots_and_decisions() -> None:
    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        answer = await asked(address, AdminClient.get_cluster)
        assert isinstance(answer, pb.AdminServiceGetClusterResponse)
        assert [(slot.name, slot.state, slot.node, slot.num_deaths) for slot in answer.slots] == [
            ("p", "running", "p@1", 2),
            ("d", "running", "d@1", 2),
        ]
        assert (answer.controller, answer.cluster.model.name, len(answer.cluster.nodes)) == ("advise", "tiny", 2)

    operating(scenario)


def test_mixes_are_set_together_with_the_budgets_that_were_there_where_none_is_named() -> None:
    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        mixes = [pb.SlotMix(slot="p", role="decode"), pb.SlotMix(slot="d", role="mixed", prefill_tokens_per_step=64)]
        await asked(address, lambda client: client.set_mixes(mixes))
        assert operator.mixes == {"p": mix_of("decode", 512, 16), "d": mix_of("mixed", 64, 16)}

    operating(scenario)


@pytest.mark.parametrize(
    ("mixes", "code", "field", "says"),
    [
        ([], "invalid_request", "mixes", "empty"),
        ([("x", "decode")], "unknown_node", "mixes[0].slot", "there are p, d"),
        ([("p", "prefill"), ("p", "decode")], "invalid_request", "mixes[1].slot", "twice"),
        ([("p", "colocated")], "invalid_request", "mixes[0].role", "prefill, decode, mixed, closed"),
        ([("p", "mixed", 0)], "invalid_request", "mixes[0].prefill_tokens_per_step", "1 to"),
        ([("p", "decode")], "phase_uncovered", "mixes", "no node would prefill"),
        ([("d", "closed")], "phase_uncovered", "mixes", "no node would decode"),
    ],
)
def test_mixes_that_make_no_sense_change_nothing(
    mixes: list[tuple[object, ...]], code: str, field: str, says: str
) -> None:
    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        before = dict(operator.mixes)
        names = ("slot", "role", "prefill_tokens_per_step")
        sent = [pb.SlotMix(**dict(zip(names, mix, strict=False))) for mix in mixes]  # type: ignore[arg-type]
        error = await refused(address, lambda client: client.set_mixes(sent))
        assert (error.code, error.field) == (code, field)
        assert says in error.message
        assert operator.mixes == before

    operating(scenario)


def test_what_leaves_a_phase_to_nobody_can_be_forced() -> None:
    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        await asked(address, lambda client: client.set_mixes([pb.SlotMix(slot="p", role="closed")], force=True))
        assert operator.mixes["p"].role == "closed"
        assert (await refused(address, lambda client: client.drain("d"))).code == "phase_uncovered"
        assert operator.drained == []
        assert await asked(address, lambda client: client.drain("d", force=True)) == 3
        assert operator.drained == ["d"]

    operating(scenario)


def test_lifting_none_lifts_all() -> None:
    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        await asked(address, lambda client: client.lift_mixes(["d"]))
        await asked(address, AdminClient.lift_mixes)
        assert operator.lifted == [("d",), ("p", "d")]
        assert (await refused(address, lambda client: client.lift_mixes(["nobody"]))).field == "slots[0]"

    operating(scenario)


def test_decisions_are_told_in_order_the_past_ones_first_and_then_as_they_come() -> None:
    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        for number in range(1, 6):
            operator.feed.put(decision(number))
        seen: list[pb.WatchDecisionsResponse] = []

        def watch(client: AdminClient) -> None:
            with suppress(CallFailed):
                for told in client.watch_decisions(num_past=2, timeout_s=20):
                    seen.append(told)
                    if told.decision.number == 7:
                        return

        watching = asyncio.create_task(asked(address, watch))
        await until(lambda: len(seen) == 2)
        for number in (6, 7):
            operator.feed.put(decision(number))
        await watching
        assert [told.decision.number for told in seen] == [4, 5, 6, 7]
        last = seen[-1].decision
        assert (last.kind, last.reason, last.changes[0].becomes.accepts_prefill) == ("ratio", "reason 7", True)
        assert (last.facts[0].name, last.facts[0].value, last.goodput_after_rps) == ("load_rps", 2.5, 2.0)
        error = await refused(address, lambda client: list(client.watch_decisions(num_past=257)))
        assert error.field == "num_past"

    operating(scenario)


def test_a_watcher_that_is_behind_misses_the_oldest_and_repeats_none() -> None:
    async def scenario() -> None:
        feed = DecisionFeed()
        watching = feed.watch(0)
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        for number in range(1, 601):
            feed.put(decision(number))
        numbers = [(await first)[0]] + [(await anext(watching))[0] for _ in range(255)]
        assert numbers == list(range(345, 601))

    asyncio.run(scenario())


def test_only_an_operators_key_opens_the_port_once_there_is_one() -> None:
    keys = Keys(Grant("user"), Grant("operator", is_admin=True))

    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        def shown(name: str) -> Credentials:
            return Credentials(keys.header(name).removeprefix("Bearer "))

        assert await asked(address, AdminClient.get_cluster, shown("operator"))
        for credentials, status in (
            (Credentials(), grpc.StatusCode.UNAUTHENTICATED),
            (shown("user"), grpc.StatusCode.PERMISSION_DENIED),
        ):
            for act in (
                AdminClient.get_cluster,
                lambda client: client.drain("p", force=True),
                lambda client: list(client.watch_decisions()),
            ):
                with pytest.raises(CallFailed) as failed:
                    await asked(address, act, credentials)
                assert failed.value.status is status
        assert operator.drained == []

    operating(scenario, keys)


def test_malformed_messages_to_operators_methods_change_nothing() -> None:
    names = [method.name for method in pb.DESCRIPTOR.services_by_name["AdminService"].methods]
    rng = random.Random(3)

    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        before = dict(operator.mixes)
        seed = pb.SetMixesRequest(mixes=[pb.SlotMix(slot="x", role="decode", max_decode_rows=9)]).SerializeToString()
        async with grpc.aio.insecure_channel(address) as channel:
            for number in range(200):
                data = bytearray(seed)
                data[rng.randrange(len(data))] = rng.randrange(256)
                data += rng.randbytes(number % 5)
                call = channel.unary_unary(f"/penstock.v1.AdminService/{rng.choice(names)}")(bytes(data), timeout=0.1)
                assert (await call.code()).name in {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"}
        assert operator.mixes == before
        assert operator.drained == []

    operating(scenario)


def test_the_public_port_does_not_serve_operators_nor_the_admin_port_prompts() -> None:
    async def scenario(operator: FakeOperator, address: str, place: Place) -> None:
        for port, method in (
            (place.server.address, "/penstock.v1.AdminService/Drain"),
            (address, "/penstock.v1.InferenceService/Generate"),
        ):
            async with grpc.aio.insecure_channel(port) as channel:
                call = channel.unary_unary(method)
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call(b"")
                assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED

    operating(scenario)
