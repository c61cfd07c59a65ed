"""A small client of the operators' interface."""

from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from cluster.api.v1 import admin_pb2 as pb
from cluster.gateway.client import NOBODY, Credentials, failed

PREFIX = "/penstock.v1.AdminService/"
CALL_S = 30.0
Answer = TypeVar("Answer", bound=Message)


class AdminClient:
    """One connection; a context manager. Every call raises CallFailed."""

    def __init__(self, address: str, credentials: Credentials = NOBODY) -> None:
        self._metadata = credentials.metadata
        self._channel = credentials.open(address)

    def get_cluster(self) -> pb.AdminServiceGetClusterResponse:
        """The cluster as it is now."""
        return self._ask("GetCluster", pb.AdminServiceGetClusterRequest(), pb.AdminServiceGetClusterResponse.FromString)

    def set_mixes(self, mixes: Sequence[pb.SlotMix], force: bool = False) -> None:
        """Sets mixes by hand, all at once."""
        self._ask("SetMixes", pb.SetMixesRequest(mixes=mixes, force=force), pb.SetMixesResponse.FromString)

    def lift_mixes(self, slots: Sequence[str] = ()) -> None:
        """Gives slots back to the controller; none named: all."""
        self._ask("LiftMixes", pb.LiftMixesRequest(slots=slots), pb.LiftMixesResponse.FromString)

    def drain(self, slot: str, force: bool = False, timeout_s: float | None = None, for_restart: bool = False) -> int:
        """Closes a slot and waits until its node is empty; how many attempts were left."""
        request = pb.DrainRequest(slot=slot, force=force, for_restart=for_restart)
        return self._ask("Drain", request, pb.DrainResponse.FromString, timeout_s).num_left

    def watch_decisions(
        self, num_past: int = 0, timeout_s: float | None = None
    ) -> Generator[pb.WatchDecisionsResponse, None, None]:
        """Decisions as they are made; closing the iterator ends the call."""
        method = self._channel.unary_stream(
            f"{PREFIX}WatchDecisions",
            request_serializer=pb.WatchDecisionsRequest.SerializeToString,
            response_deserializer=pb.WatchDecisionsResponse.FromString,
        )
        call = method(pb.WatchDecisionsRequest(num_past=num_past), timeout=timeout_s, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise failed(error) from error
        finally:
            call.cancel()

    def close(self) -> None:
        """Break off what is open."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self, name: str, request: Message, parse: Callable[[bytes], Answer], timeout_s: float | None = CALL_S
    ) -> Answer:
        method: grpc.UnaryUnaryMultiCallable[Message, Answer] = self._channel.unary_unary(
            PREFIX + name, request_serializer=lambda message: message.SerializeToString(), response_deserializer=parse
        )
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failed(error) from error
