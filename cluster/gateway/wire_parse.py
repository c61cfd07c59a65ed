"""Bytes to a message; what cannot be parsed is refused by name, as far as it can be told."""

from functools import cache
from typing import TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from cluster.api.v1.inference_pb2 import GenerateRequest
from cluster.gateway.errors_wire import FieldError
from core.errors import InvalidRequest, RequestError

_STRING, _BYTES = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


M = TypeVar("M", bound=Message)


def parse_generate(data: bytes, max_bytes: int) -> GenerateRequest:
    """A client's bytes as a GenerateRequest. Raises RequestError as `parse_message` does."""
    return parse_message(data, GenerateRequest, max_bytes)


def parse_message(data: bytes, kind: type[M], max_bytes: int) -> M:
    """A client's bytes as a message. Raises RequestError: too large, a field is not UTF-8, or no message at all."""
    if len(data) > max_bytes:
        raise RequestError(f"the message has {len(data)} bytes, at most {max_bytes} are taken", code="body_too_large")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        field = _field_without_utf8(data, kind)
        if field:
            raise FieldError(field, "is not valid UTF-8", "invalid_utf8") from error
        raise InvalidRequest(f"the message is not a {kind.DESCRIPTOR.full_name}") from error


def _field_without_utf8(data: bytes, kind: type[Message]) -> str:
    """The path of the first text that is not UTF-8; empty where the bytes are wrong in another way."""
    try:
        message = _lenient_class(kind.DESCRIPTOR.full_name)()
        message.ParseFromString(data)
    except DecodeError:
        return ""
    return _first_invalid(message, "")


@cache
def _lenient_class(name: str) -> type[Message]:
    """The message of that name with every string as bytes: the parser refuses bad text without saying where it is."""
    pool, known = descriptor_pool.DescriptorPool(), descriptor_pool.Default()
    _add_lenient(known.FindMessageTypeByName(name).file.name, known, pool)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _add_lenient(name: str, known: descriptor_pool.DescriptorPool, pool: descriptor_pool.DescriptorPool) -> None:
    """A file, after those that it imports."""
    file = descriptor_pb2.FileDescriptorProto()
    known.FindFileByName(name).CopyToProto(file)
    for needed in file.dependency:
        _add_lenient(needed, known, pool)
    for message in file.message_type:
        for field in message.field:
            if field.type == _STRING:
                field.type = _BYTES
    pool.Add(file)


def _first_invalid(message: Message, prefix: str) -> str:
    for descriptor, value in message.ListFields():
        path = f"{prefix}{descriptor.name}"
        values = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
        for item in values:
            if isinstance(item, bytes) and not _is_utf8(item):
                return path
            if isinstance(item, Message) and (found := _first_invalid(item, f"{path}.")):
                return found
    return ""


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
