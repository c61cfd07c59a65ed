"""What clients may rely on: every method, field and number of the public protos, a line each, kept in `published.txt`.

`python -m cluster.api.published` writes the file anew and refuses where a line of it would be lost; `--check` compares.
A line is never taken away: a field that is no longer wanted stays, and is refused by name.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from cluster.api.v1 import admin_pb2, inference_pb2

PUBLISHED = Path(__file__).with_name("v1") / "published.txt"
PUBLIC = (inference_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR)


def lines(*files: FileDescriptor) -> list[str]:
    """All elements of some files, sorted."""
    return sorted(line for file in files for line in _file(file))


def lost(before: list[str], now: list[str]) -> list[str]:
    """What a client of before would miss."""
    return sorted(set(before) - set(now))


def main(arguments: list[str]) -> int:
    """Writes the file, or compares it with `--check`; an exit status."""
    before = PUBLISHED.read_text().splitlines() if PUBLISHED.exists() else []
    now = lines(*PUBLIC)
    for line in lost(before, now):
        print(f"a client may rely on this, and it is gone: {line}", file=sys.stderr)
    if arguments == ["--check"]:
        for line in lost(now, before):
            print(f"not published yet; run python -m cluster.api.published: {line}", file=sys.stderr)
        return int(before != now)
    if lost(before, now):
        return 1
    PUBLISHED.write_text("\n".join(now) + "\n")
    return 0


def _file(descriptor: FileDescriptor) -> Iterator[str]:
    file = FileDescriptorProto()
    descriptor.CopyToProto(file)
    for message in file.message_type:
        yield from _message(message, file.package)
    for service in file.service:
        for method in service.method:
            asks = "stream " * method.client_streaming + method.input_type.lstrip(".")
            tells = "stream " * method.server_streaming + method.output_type.lstrip(".")
            yield f"{file.package}.{service.name}/{method.name} ({asks}) returns ({tells})"


def _message(message: DescriptorProto, scope: str) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    for field in message.field:
        yield f"{name}.{field.name} = {field.number} {_label(field, message)} {_type(field)}"
    for nested in message.nested_type:
        yield from _message(nested, name)


def _type(field: FieldDescriptorProto) -> str:
    return field.type_name.lstrip(".") or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _label(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    if field.proto3_optional:
        return "optional"
    if field.HasField("oneof_index"):
        return f"oneof {message.oneof_decl[field.oneof_index].name}"
    return "repeated" if field.label == FieldDescriptorProto.LABEL_REPEATED else "plain"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
