"""GTID sets: both flavours are read and written, and set arithmetic is set arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_ha.machines.database_gtid import BadGtids, Gtids, extra, has_all

UUIDS = tuple(f"{n:08x}-0000-0000-0000-000000000000" for n in (1, 2))
SPANS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), max_size=5)
SETS = st.dictionaries(st.sampled_from(UUIDS), SPANS, max_size=2)


def gtids(parts: dict[str, list[tuple[int, int]]]) -> Gtids:
    return Gtids({name: [(first, first + more) for first, more in some] for name, some in parts.items()})


def members(parts: dict[str, list[tuple[int, int]]]) -> set[tuple[str, int]]:
    return {
        (name, n)
        for name, some in parts.items()
        for first, more in some
        for n in range(first, first + more + 1)
    }


@given(SETS, SETS)
def test_arithmetic(one: dict, two: dict) -> None:
    a, b = gtids(one), gtids(two)
    assert (a | b).count() == len(members(one) | members(two))
    assert a.without(b).count() == len(members(one) - members(two))
    assert (b in a) == (members(two) <= members(one))
    assert Gtids.parse(str(a)) == a


@given(st.dictionaries(st.tuples(st.integers(0, 3), st.integers(1, 3)), st.integers(1, 99)))
def test_mariadb_is_read_and_written(parts: dict) -> None:
    text = ",".join(f"{domain}-{server}-{n}" for (domain, server), n in sorted(parts.items()))
    assert str(Gtids.parse(text)) == text


@given(st.text(max_size=40))
def test_anything_else_is_refused(text: str) -> None:
    try:
        Gtids.parse(text)
    except BadGtids:
        pass


def test_what_servers_write() -> None:
    one = "3E11FA47-71CA-11E1-9E33-C80AA9429562:1-3:11:47-49"
    assert Gtids.parse(one + ",\n" + one).count() == 7
    tagged = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-3:billing:1-2"
    assert Gtids.parse(tagged).count() == 5 and not has_all(one, tagged)
    assert extra("1-1-105", "1-1-103,1-2-110") == "1-1-105"
    assert has_all("1-1-103,1-2-110", "1-1-100") and has_all("", "")
    for bad in ("1-2", "x:1", f"{UUIDS[0]}", f"{UUIDS[0]}:0", f"{UUIDS[0]}:5-3"):
        with pytest.raises(BadGtids):
            Gtids.parse(bad)
