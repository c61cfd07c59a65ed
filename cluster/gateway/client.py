"""A small client of Penstock's gRPC interface, asynchronous and plain."""

from collections.abc import AsyncGenerator, Generator, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.error_details_pb2 import ErrorInfo as ErrorInfoDetail
from google.rpc.status_pb2 import Status

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.errors_wire import DETAILS_KEY
from cluster.grpc_poller import keep_poller
from core.errors import PenstockError

GENERATE = "/penstock.v1.InferenceService/Generate"
GET_CLUSTER = "/penstock.v1.InferenceService/GetCluster"
OPTIONS = [("grpc.max_receive_message_length", 8 * 1024 * 1024)]


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a client shows who it is: its key, and by which certificates it talks; without them in clear."""

    key: str = field(default="", repr=False)
    tls: grpc.ChannelCredentials | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()

    def open(self, address: str) -> grpc.Channel:
        """A plain channel."""
        if self.tls is None:
            return grpc.insecure_channel(address, options=OPTIONS)
        return grpc.secure_channel(address, self.tls, options=OPTIONS)

    def open_async(self, address: str) -> grpc.aio.Channel:
        """One for an asyncio loop."""
        keep_poller()
        if self.tls is None:
            return grpc.aio.insecure_channel(address, options=OPTIONS)
        return grpc.aio.secure_channel(address, self.tls, options=OPTIONS)


NOBODY = Credentials()


class CallFailed(PenstockError):
    """A call ended with another status than OK. `field` is what to mend, if that was told.

    `code` is Penstock's, or the status in lower case where no Penstock answered.
    """

    def __init__(self, status: grpc.StatusCode, message: str, details: bytes | None) -> None:
        parsed = Status.FromString(details or b"")
        super().__init__(message or status.name, code=status.name.lower())
        self.status = status
        self.field = ""
        for detail in parsed.details:
            self._read(detail)

    def _read(self, detail: AnyMessage) -> None:
        info, bad, retry = ErrorInfoDetail(), BadRequest(), RetryInfo()
        if detail.Unpack(info):
            self.code = info.reason
        elif detail.Unpack(bad) and bad.field_violations:
            self.field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            self.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()


class AsyncClient:
    """One connection for an asyncio loop; an asynchronous context manager."""

    def __init__(self, address: str, credentials: Credentials = NOBODY) -> None:
        self._metadata = credentials.metadata
        self._channel = credentials.open_async(address)
        self._generate = self._channel.unary_stream(
            GENERATE, pb.GenerateRequest.SerializeToString, pb.GenerateResponse.FromString
        )
        self._get_cluster = self._channel.unary_unary(
            GET_CLUSTER, pb.GetClusterRequest.SerializeToString, pb.GetClusterResponse.FromString
        )

    async def generate(
        self, request: pb.GenerateRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Responses as they come; closing the iterator cancels the call. Raises CallFailed."""
        call = self._generate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise failed(error) from error
        finally:
            call.cancel()

    async def get_cluster(self, timeout_s: float | None = None) -> pb.GetClusterResponse:
        """The cluster as it is now. Raises CallFailed."""
        try:
            return await self._get_cluster(pb.GetClusterRequest(), timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise failed(error) from error

    async def close(self) -> None:
        """Break off what is open."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Client:
    """The same without asyncio; a context manager."""

    def __init__(self, address: str, credentials: Credentials = NOBODY) -> None:
        self._metadata = credentials.metadata
        self._channel = credentials.open(address)
        self._generate = self._channel.unary_stream(
            GENERATE, pb.GenerateRequest.SerializeToString, pb.GenerateResponse.FromString
        )
        self._get_cluster = self._channel.unary_unary(
            GET_CLUSTER, pb.GetClusterRequest.SerializeToString, pb.GetClusterResponse.FromString
        )

    def generate(
        self, request: pb.GenerateRequest, timeout_s: float | None = None
    ) -> Generator[pb.GenerateResponse, None, None]:
        """Responses as they come; closing the iterator cancels the call. Raises CallFailed."""
        call = self._generate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise failed(error) from error
        finally:
            call.cancel()

    def get_cluster(self, timeout_s: float | None = None) -> pb.GetClusterResponse:
        """The cluster as it is now. Raises CallFailed."""
        try:
            return self._get_cluster(pb.GetClusterRequest(), timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failed(error) from error

    def close(self) -> None:
        """Break off what is open."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def failed(error: grpc.RpcError) -> CallFailed:
    """A call's error as ours, with what Penstock said of it."""
    metadata = cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ())
    details = next((value for key, value in metadata if key == DETAILS_KEY), None)
    return CallFailed(error.code(), error.details() or "", details)
