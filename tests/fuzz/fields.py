"""Mutations of a protobuf message by its schema: any field of any message in it."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from . import extremes
from .extremes import Random, pick

_WHOLE = {FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT64}
_REAL = {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}
_RANGES = {
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def mutate_field(random: Random, proto: Message) -> None:
    """Changes one field of one of the messages in `proto`: one that is set, mostly, or any that the schema has."""
    message: Any = pick(random, _messages(proto))
    used = [field for field, _ in message.ListFields()]
    fields = used if used and random.random() < 0.6 else list(message.DESCRIPTOR.fields)
    field = pick(random, fields)
    if random.random() < 0.15:
        message.ClearField(field.name)
    elif not field.is_repeated:
        _set(random, message, field)
    else:
        _change(random, getattr(message, field.name), field)


def _set(random: Random, message: Any, field: FieldDescriptor) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _value(random, field))


def _change(random: Random, values: Any, field: FieldDescriptor) -> None:
    """One of a repeated field: goes, comes twice, changes places, or takes another value."""
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    at = int(random.integers(len(values))) if len(values) else 0
    what = random.integers(5) if len(values) else 4
    if what == 0:
        del values[at]
    elif what == 1:
        values.append(values[at])
    elif what == 2:
        order = [values[int(place)] for place in random.permutation(len(values))]
        copies = [type(one).FromString(one.SerializeToString()) for one in order] if is_message else order
        del values[:]
        values.extend(copies)
    elif what == 3:
        if is_message:
            values[at].Clear()
        else:
            values[at] = _value(random, field)
    elif is_message:
        values.add()
    else:
        values.append(_value(random, field))


def _value(random: Random, field: FieldDescriptor) -> Any:
    if field.type in _WHOLE:
        low, high = _RANGES[field.type]
        return min(max(extremes.whole(random), low), high)
    if field.type in _REAL:
        return extremes.real(random)
    if field.type == FieldDescriptor.TYPE_STRING:
        return extremes.name(random)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.bytes(int(random.integers(40)))
    return pick(random, [value.number for value in field.enum_type.values])


def _messages(proto: Message) -> list[Message]:
    """All in it, at any depth, `proto` itself included."""
    found, waiting = [], [proto]
    while waiting:
        message = waiting.pop()
        found.append(message)
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                waiting.extend(value if field.is_repeated else [value])
    return found
