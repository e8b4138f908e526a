"""Every message of every protocol survives the wire, with every field and every oneof branch set in turn."""

import importlib
from collections.abc import Iterator
from itertools import count

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PROTOCOLS = ("program", "scheduler", "executor")
DEPTH_MAX = 4


def file_of(protocol: str) -> FileDescriptor:
    return importlib.import_module(f"protos.autellix.{protocol}.v1.{protocol}_pb2").DESCRIPTOR


def messages() -> list[Descriptor]:
    """All messages of our protocols, nested ones (map entries aside) included."""
    found = [m for protocol in PROTOCOLS for m in file_of(protocol).message_types_by_name.values()]
    for message in found:
        found += [m for m in message.nested_types if not m.GetOptions().map_entry]
    return found


def scalar(field: FieldDescriptor, serial: Iterator[int]) -> object:
    """A value that no other field of the message has, as far as the type allows."""
    number = next(serial)
    if field.type == FieldDescriptor.TYPE_ENUM:
        values = [value.number for value in field.enum_type.values]
        return values[number % (len(values) - 1) + 1] if len(values) > 1 else values[0]
    kinds = {
        FieldDescriptor.CPPTYPE_STRING: b"\x00\xff%d" % number
        if field.type == FieldDescriptor.TYPE_BYTES
        else f"ünï-{number}",
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_DOUBLE: number + 0.5,
        FieldDescriptor.CPPTYPE_FLOAT: number + 0.5,
    }
    return kinds.get(field.cpp_type, number)


def fill(message: Message, serial: Iterator[int], branch: int, depth: int = 0) -> Message:
    """Sets all fields; of each oneof the branch with the given index (wrapping around)."""
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None and oneof.fields[branch % len(oneof.fields)] is not field:
            continue
        set_field(message, field, serial, branch, depth)
    return message


def set_field(
    message: Message, field: FieldDescriptor, serial: Iterator[int], branch: int, depth: int
) -> None:
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        set_map_entry(getattr(message, field.name), nested, serial, branch, depth)
    elif nested is not None:
        if depth < DEPTH_MAX:
            target = getattr(message, field.name)
            target = target.add() if field.is_repeated else target
            target.SetInParent()
            fill(target, serial, branch, depth + 1)
    elif field.is_repeated:
        getattr(message, field.name).extend([scalar(field, serial), scalar(field, serial)])
    else:
        setattr(message, field.name, scalar(field, serial))


def set_map_entry(entries, entry: Descriptor, serial: Iterator[int], branch: int, depth: int) -> None:
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    if value.message_type is None:
        entries[scalar(key, serial)] = scalar(value, serial)
    else:
        fill(entries[scalar(key, serial)], serial, branch, depth + 1)


def branches(descriptor: Descriptor) -> int:
    return max((len(oneof.fields) for oneof in descriptor.oneofs), default=1)


def test_there_are_messages():
    assert len(messages()) > 30


@pytest.mark.parametrize("descriptor", messages(), ids=lambda descriptor: descriptor.full_name)
def test_a_message_survives_the_wire(descriptor):
    cls = GetMessageClass(descriptor)
    for branch in range(branches(descriptor)):
        sent = fill(cls(), count(1), branch)
        received = cls.FromString(sent.SerializeToString())
        assert received == sent
        assert [field.name for field, _ in received.ListFields()] == [
            field.name for field, _ in sent.ListFields()
        ]


@pytest.mark.parametrize("descriptor", messages(), ids=lambda descriptor: descriptor.full_name)
def test_no_field_is_left_out_by_the_test(descriptor):
    cls = GetMessageClass(descriptor)
    seen = set()
    for branch in range(branches(descriptor)):
        seen |= {field.name for field, _ in fill(cls(), count(1), branch).ListFields()}
    assert seen == set(descriptor.fields_by_name)


@pytest.mark.parametrize("descriptor", messages(), ids=lambda descriptor: descriptor.full_name)
def test_fields_of_a_newer_peer_are_skipped_not_misread(descriptor):
    unknown = b"\xf8\xff\xff\xff\x0f\x01"  # field 536870911, varint 1
    received = GetMessageClass(descriptor).FromString(unknown)
    assert not received.ListFields()
