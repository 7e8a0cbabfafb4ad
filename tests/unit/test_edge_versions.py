"""An edge that is older than the one whose calls it continues: what it does not know stays in etcd."""

from __future__ import annotations

import dataclasses

import msgspec

from tests.support.edge_world import EdgeWorld
from tests.unit.test_edge_machine import talking

NEWER = {"of": ["a newer", "version"]}


def stored(world: EdgeWorld, key: str) -> dict:
    return msgspec.json.decode(world.store[key].value)


def add(world: EdgeWorld, key: str, **places: dict) -> None:
    """Somebody newer had written more: at the top, and into the tables named."""
    value = stored(world, key)
    value["newer"] = NEWER
    for table, entries in places.items():
        for entry, more in entries.items():
            value[table][entry] |= more
    world.store[key] = dataclasses.replace(world.store[key], value=msgspec.json.encode(value))


def test_what_a_newer_edge_wrote_is_still_there_after_an_older_one_went_on() -> None:
    world = EdgeWorld().with_users("1001")
    _, call, *_ = talking(world)
    world.run(1.0)
    keys = world.keys
    dialogs, media, owner = keys.dialogs("pair1", call.call), keys.media(call.call), keys.owner(call.call)
    add(world, dialogs, legs={"c": {"newer": 1}})
    add(world, media)
    add(world, owner)
    world.boot()
    again = world.edge.calls.by_id[call.call]
    before = {key: world.store[key].mod_revision for key in (dialogs, media, owner)}
    for leg in again.living():
        leg.held = not leg.held
    again.epoch = world.edge.calls.next_epoch(again)
    world.edge.calls.touch(again)
    world.run(1.0)
    assert all(world.store[key].mod_revision > revision for key, revision in before.items()), "written anew"
    for key in (dialogs, media, owner):
        assert stored(world, key)["newer"] == NEWER, key
    legs = stored(world, dialogs)["legs"]
    assert legs["c"]["newer"] == 1 and legs["c"]["held"] and legs["c"]["sip"]
