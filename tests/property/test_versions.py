"""Two versions side by side: what a newer one says in addition is ignored by an older one, and is still
there when the older one has written the value back. Over every etcd value and every link frame."""

from __future__ import annotations

import importlib
import pkgutil
import struct
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ari_ha.wire
from ari_ha.wire import link
from ari_ha.wire.database_keys import DatabaseValue
from ari_ha.wire.keyspace import Value
from ari_ha.wire.unknown_fields import merge_unknown

for found in pkgutil.iter_modules(ari_ha.wire.__path__):
    if not found.ispkg:
        importlib.import_module(f"ari_ha.wire.{found.name}")

NEWER = "of_a_newer_version"
TEXT = st.text("ab", max_size=2)
NAMES = st.sampled_from(["a1", "c", "k1"])
EXAMPLES = 15
DEPTH = 2
"""Values inside values; what is deeper has its defaults."""


def below(kind: type) -> list[type]:
    """Every class below one."""
    return [one for direct in kind.__subclasses__() for one in (direct, *below(direct))]


VALUES = sorted({*below(Value), *below(DatabaseValue)}, key=lambda kind: kind.__name__)
FRAMES = sorted({*link.NODE_FRAMES, *link.EDGE_FRAMES}, key=lambda kind: kind.__name__)


def anything(kind: Any, depth: int = DEPTH) -> st.SearchStrategy[Any]:
    """Values of an annotation, small."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    simple = {str: TEXT, int: st.integers(0, 3), float: st.sampled_from([0.0, 1.5]), bool: st.booleans(),
              Any: st.integers(0, 3), type(None): st.none()}  # fmt: skip
    if kind in simple:
        return simple[kind]
    if origin in (list, tuple):
        items = st.lists(anything(args[0], depth), max_size=2)
        return items.map(tuple) if origin is tuple else items
    if origin is dict and typing.get_origin(args[1]) is dict:
        # a table of values without a class, as the legs of a dialog: a version writes all it knows
        return st.dictionaries(NAMES, st.fixed_dictionaries({"leg": st.integers(0, 3)}), max_size=2)
    if origin is dict:
        return st.dictionaries(NAMES, anything(args[1], depth), max_size=2)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([anything(option, depth) for option in args])
    if origin is typing.Literal:
        return st.sampled_from(args)
    assert isinstance(kind, type) and issubclass(kind, msgspec.Struct), kind
    fields = [field for field in msgspec.structs.fields(kind) if depth or field.required]
    return st.builds(kind, **{field.name: anything(field.type, max(0, depth - 1)) for field in fields})


def newer(plain: Any, kind: Any, path: str = "") -> list[str]:
    """Adds an unknown field wherever ``plain``, a value of ``kind``, has fields of its own, but not inside
    lists; the paths of all that were added."""
    if not isinstance(plain, dict):
        return []
    args = typing.get_args(kind)
    options = args if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            added = [f"{path}{NEWER}"]
            for field in msgspec.structs.fields(option):
                if field.name in plain:
                    added += newer(plain[field.name], field.type, f"{path}{field.name}.")
            plain[NEWER] = {"deep": [1]}
            return added
    if typing.get_origin(kind) is not dict:
        return []
    if typing.get_origin(args[1]) is dict:
        for entry in plain.values():
            entry[NEWER] = 1
        return [f"{path}{name}.{NEWER}" for name in plain]
    return [one for name, entry in plain.items() for one in newer(entry, args[1], f"{path}{name}.")]


def has(plain: Any, path: str) -> bool:
    """Whether the field is there."""
    for name in path.split("."):
        if not isinstance(plain, dict) or name not in plain:
            return False
        plain = plain[name]
    return True


def without(value: Any) -> Any:
    """The value as this version sees it: it takes from a table's entry without a class what it knows."""
    for field in msgspec.structs.fields(value):
        table = getattr(value, field.name)
        for entry in table.values() if isinstance(table, dict) else ():
            if isinstance(entry, dict):
                entry.pop(NEWER, None)
    return value


def parent(path: str) -> str:
    return path.rpartition(".")[0]


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_what_an_older_version_does_not_know_survives_its_writing(kind: type, data: st.DataObject) -> None:
    before, after = data.draw(anything(kind)), data.draw(anything(kind))
    plain = msgspec.json.decode(msgspec.json.encode(before))
    added = newer(plain, kind)
    stored = msgspec.json.encode(plain)
    assert without(msgspec.json.decode(stored, type=kind)) == before, "ignored by who reads it"
    written = msgspec.json.encode(after)
    merged = merge_unknown(stored, written, kind)
    assert without(msgspec.json.decode(merged, type=kind)) == after, "and nothing that is known comes back"
    mine, result = msgspec.json.decode(written), msgspec.json.decode(merged)
    assert NEWER in result
    for path in added:
        assert has(result, path) == (not parent(path) or has(mine, parent(path))), path
    assert merge_unknown(written, merged, kind) == merged, "writing again changes nothing"


def test_a_field_that_another_kind_of_value_has_is_still_unknown_here() -> None:
    from ari_ha.wire.keyspace import QueueConfigValue, UserValue, encode

    stored = msgspec.json.encode({"schema": 1, "user": "1001", "strategy": "of a newer version"})
    assert "strategy" in QueueConfigValue.__struct_fields__
    merged = msgspec.json.decode(merge_unknown(stored, encode(UserValue(user="1001")), UserValue))
    assert merged["strategy"] == "of a newer version"


def test_a_leg_of_a_dialog_keeps_what_its_edge_does_not_know_but_no_old_dialog() -> None:
    from ari_ha.wire.keyspace import DialogsValue, encode

    old = {
        "schema": 1,
        "call": "k1",
        "started": 1.0,
        "legs": {"c": {"leg": "c", "sip": {"cseq": 1}, NEWER: 1}},
    }
    new = DialogsValue(call="k1", started=1.0, legs={"c": {"leg": "c"}, "a1": {"leg": "a1"}})
    merged = msgspec.json.decode(merge_unknown(msgspec.json.encode(old), encode(new), DialogsValue))
    assert merged["legs"] == {"c": {"leg": "c", NEWER: 1}, "a1": {"leg": "a1"}}


@pytest.mark.parametrize("kind", FRAMES, ids=lambda kind: kind.__name__)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_a_frame_of_a_newer_version_is_read_as_far_as_it_is_known(kind: type, data: st.DataObject) -> None:
    frame = data.draw(anything(kind))
    plain = msgspec.json.decode(link.encode(frame)[4:])
    newer(plain, kind)
    body = msgspec.json.encode(plain)
    reader = link.FrameReader()
    assert reader.feed(struct.pack("!I", len(body)) + body) == [frame]
    assert reader.skipped == 0


@given(st.dictionaries(NAMES, st.integers(), max_size=3))
def test_a_frame_of_a_kind_that_is_not_known_is_skipped_and_the_next_is_read(fields: dict[str, int]) -> None:
    body = msgspec.json.encode({"type": "OfANewerVersion", **fields})
    reader = link.FrameReader()
    after = link.encode(link.Ping(t=1.0))
    assert reader.feed(struct.pack("!I", len(body)) + body + after) == [link.Ping(t=1.0)]
    assert reader.skipped == 1
