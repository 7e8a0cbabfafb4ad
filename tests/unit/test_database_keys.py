"""Keys and values of databases."""

from __future__ import annotations

import pytest

from ari_ha.wire.database_keys import (
    KINDS,
    DatabaseKeys,
    LeaderValue,
    MemberValue,
    SyncValue,
    decode,
    encode,
)
from ari_ha.wire.keyspace import BadValue

KEYS = DatabaseKeys("main", "cdr")


def test_keys_lie_under_databases() -> None:
    assert KEYS.leader == "/ari-ha/main/v1/databases/cdr/leader"
    assert KEYS.split(KEYS.member("db1")) == ("members", "db1")
    assert KEYS.split("/ari-ha/main/v1/databases/other/leader") == ()
    keys = [KEYS.leader, KEYS.sync, KEYS.hold, KEYS.order, KEYS.released, KEYS.position]
    keys += [KEYS.member("a"), KEYS.rebuild("a"), KEYS.errant("a", 1), KEYS.history(3), KEYS.checksums("a")]
    assert {KEYS.split(key)[0] for key in keys} == set(KINDS)


def test_values_explain_themselves_and_come_back() -> None:
    assert all(kind.__doc__ for kind in KINDS.values())
    value = SyncValue(primary="db1", standby="db2", standby_life="7", term=3)
    assert decode(encode(value), SyncValue) == value
    newer = b'{"server":"db1","process":"p","something":"newer"}'
    assert decode(newer, LeaderValue).server == "db1"


def test_what_is_not_a_value_is_told_with_its_key() -> None:
    with pytest.raises(BadValue, match="members/db1"):
        decode(b'{"server":1}', MemberValue, KEYS.member("db1"))
