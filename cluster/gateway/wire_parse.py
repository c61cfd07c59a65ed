"""Bytes to a GenerateRequest; what cannot be parsed is refused by name, as far as it can be told."""

from functools import cache

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from cluster.api.v1 import inference_pb2
from cluster.api.v1.inference_pb2 import GenerateRequest
from cluster.gateway.errors_wire import FieldError
from core.errors import InvalidRequest, RequestError

_STRING, _BYTES = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def parse_generate(data: bytes, max_bytes: int) -> GenerateRequest:
    """A client's bytes as a message. Raises RequestError: too large, a field is not UTF-8, or no message at all."""
    if len(data) > max_bytes:
        raise RequestError(f"the message has {len(data)} bytes, at most {max_bytes} are taken", code="body_too_large")
    try:
        return GenerateRequest.FromString(data)
    except DecodeError as error:
        field = _field_without_utf8(data)
        if field:
            raise FieldError(field, "is not valid UTF-8", "invalid_utf8") from error
        raise InvalidRequest("the message is not a penstock.v1.GenerateRequest") from error


def _field_without_utf8(data: bytes) -> str:
    """The path of the first text that is not UTF-8; empty where the bytes are wrong in another way."""
    try:
        message = _lenient_class()()
        message.ParseFromString(data)
    except DecodeError:
        return ""
    return _first_invalid(message, "")


@cache
def _lenient_class() -> type[Message]:
    """GenerateRequest with every string as bytes: the parser refuses bad text without saying where it stands."""
    file = descriptor_pb2.FileDescriptorProto()
    inference_pb2.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        for field in message.field:
            if field.type == _STRING:
                field.type = _BYTES
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(GenerateRequest.DESCRIPTOR.full_name))


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
