"""Values that two versions write in turn: the older one keeps what the newer has added."""

from __future__ import annotations

import functools
import typing
from typing import Any, Final

import msgspec

_encoder = msgspec.json.Encoder()


def merge_unknown(old: bytes, new: bytes, kind: type[msgspec.Struct]) -> bytes:
    """``new``, a value of ``kind``, with those fields of ``old`` a newer writer added and this
    version does not know: of the value itself, of values in it and of those in its tables.
    What is in a list is replaced as a whole."""
    before, after = msgspec.json.decode(old), msgspec.json.decode(new)
    if not isinstance(before, dict) or not isinstance(after, dict):
        return new
    return _encoder.encode(after) if _keep(before, after, kind) else new


_OPEN: Final = dict
"""Stands for the kind of a value whose fields are named in no class here."""
_OPEN_FIELDS: Final = frozenset({"sip"})
"""Fields of such a value that this version leaves out on purpose; all others it writes always."""


def _keep(before: dict[str, Any], after: dict[str, Any], kind: type) -> bool:
    """Puts what is not known of ``before`` into ``after``; whether there was anything."""
    known, inside, tables = (_OPEN_FIELDS, {}, {}) if kind is _OPEN else _shape(kind)
    unknown = {name: value for name, value in before.items() if name not in after and name not in known}
    after.update(unknown)
    kept = bool(unknown)
    for name, part in inside.items():
        kept |= _keep_in(before.get(name), after.get(name), part)
    for name, part in tables.items():
        was, now = before.get(name), after.get(name)
        for entry in now if isinstance(was, dict) and isinstance(now, dict) else ():
            kept |= _keep_in(was.get(entry), now[entry], part)
    return kept


def _keep_in(before: Any, after: Any, kind: type) -> bool:
    return isinstance(before, dict) and isinstance(after, dict) and _keep(before, after, kind)


@functools.cache
def _shape(kind: type[msgspec.Struct]) -> tuple[frozenset[str], dict[str, type], dict[str, type]]:
    """The names of its fields; those that are a value with fields; those that are tables of such values."""
    inside: dict[str, type] = {}
    tables: dict[str, type] = {}
    for field in msgspec.structs.fields(kind):
        for option in typing.get_args(field.type) or (field.type,):
            if isinstance(option, type) and issubclass(option, msgspec.Struct):
                inside[field.name] = option
        entry = typing.get_args(field.type)[1:] if typing.get_origin(field.type) is dict else ()
        if entry and (part := _table_of(entry[0])):
            inside.pop(field.name, None)
            tables[field.name] = part
    return frozenset(kind.__struct_fields__), inside, tables


def _table_of(entry: Any) -> type | None:
    if isinstance(entry, type) and issubclass(entry, msgspec.Struct):
        return entry
    return _OPEN if typing.get_origin(entry) is dict else None
