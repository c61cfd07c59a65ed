"""Keys of the gateway's tests, and calls that show them."""

import grpc

from cluster.api.v1 import inference_pb2 as pb
from cluster.gateway.client import Credentials
from cluster.gateway.keys import AccessSettings, Grant, ServiceClass, StoredKey, digest_of, mint_key
from core.request import SLO
from tests.gateway.fake_cluster import Place

CHAT = ServiceClass("chat", SLO(0.5, 0.05), priority=3)


class Keys:
    """Minted keys and what the server is told of them."""

    def __init__(self, *grants: Grant, classes: tuple[ServiceClass, ...] = ()) -> None:
        self._keys = {grant.id: mint_key() for grant in grants}
        stored = tuple(StoredKey(digest_of(self._keys[grant.id]), grant) for grant in grants)
        self.settings = AccessSettings(stored, classes)

    def header(self, name: str) -> str:
        """The `authorization` of this key's holder."""
        return f"Bearer {self._keys[name]}"

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        """What a call of this key's holder carries; nobody's carries nothing."""
        return Credentials(self._keys[name]).metadata if name else ()


class Stub:
    """The methods of InferenceService that have one message each way, and Generate, with metadata to be given."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def ask(
        self, method: str, request: object, answer: type, metadata: tuple[tuple[str, str], ...] = ()
    ) -> object:
        call: grpc.aio.UnaryUnaryMultiCallable[object, object] = self._channel.unary_unary(
            f"/penstock.v1.InferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),  # type: ignore[attr-defined]
            response_deserializer=answer.FromString,  # type: ignore[attr-defined]
        )
        return await call(request, metadata=metadata)

    def generate(
        self, request: pb.GenerateRequest, metadata: tuple[tuple[str, str], ...] = ()
    ) -> "grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]":
        call: grpc.aio.UnaryStreamMultiCallable[pb.GenerateRequest, pb.GenerateResponse] = self._channel.unary_stream(
            "/penstock.v1.InferenceService/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        return call(request, metadata=metadata)


def channel_to(place: Place) -> grpc.aio.Channel:
    """A channel of its own; an asynchronous context manager."""
    return grpc.aio.insecure_channel(place.server.address)
