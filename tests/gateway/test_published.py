"""What clients rely on stays: the public protos against the committed list of all their elements."""

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from cluster.api import published
from cluster.api.v1 import inference_pb2


def test_no_element_is_gone_and_none_is_unpublished(capsys: pytest.CaptureFixture[str]) -> None:
    assert published.main(["--check"]) == 0, capsys.readouterr().err


def changed(change: object) -> list[str]:
    """The list of inference.proto after a change to it."""
    file = FileDescriptorProto()
    inference_pb2.DESCRIPTOR.CopyToProto(file)
    change(file)  # type: ignore[operator]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return published.lines(pool.FindFileByName(file.name))


def field(file: FileDescriptorProto, message: str, name: str) -> FieldDescriptorProto:
    (found,) = [it for each in file.message_type if each.name == message for it in each.field if it.name == name]
    return found


def renumber(file: FileDescriptorProto) -> None:
    field(file, "GenerateRequest", "deadline_ms").number = 99


def retype(file: FileDescriptorProto) -> None:
    field(file, "GenerateRequest", "priority").type = FieldDescriptorProto.TYPE_INT64


def rename(file: FileDescriptorProto) -> None:
    field(file, "Usage", "cached_tokens").name = "reused_tokens"


def repeat(file: FileDescriptorProto) -> None:
    field(file, "GenerateResponse", "text").label = FieldDescriptorProto.LABEL_REPEATED


def remove(file: FileDescriptorProto) -> None:
    (usage,) = [each for each in file.message_type if each.name == "Usage"]
    del usage.field[0]


def stop_streaming(file: FileDescriptorProto) -> None:
    file.service[0].method[0].server_streaming = False


def drop_method(file: FileDescriptorProto) -> None:
    del file.service[0].method[1]


@pytest.mark.parametrize(
    "change", [renumber, retype, rename, repeat, remove, stop_streaming, drop_method], ids=lambda it: it.__name__
)
def test_a_change_that_breaks_clients_is_noticed(change: object) -> None:
    before = published.lines(inference_pb2.DESCRIPTOR)
    assert len(published.lost(before, changed(change))) == 1


def test_what_is_added_breaks_nobody() -> None:
    def add(file: FileDescriptorProto) -> None:
        new = FieldDescriptorProto(name="new", number=77, type=FieldDescriptorProto.TYPE_BOOL)
        file.message_type[0].field.append(new)

    assert published.lost(published.lines(inference_pb2.DESCRIPTOR), changed(add)) == []
