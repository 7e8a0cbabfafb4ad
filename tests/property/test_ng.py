"""NG codec: round trips, and bytes from anywhere never do more than raise NgError."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ari_ha.wire import ng

values = st.recursive(
    st.text(max_size=40) | st.integers(-(2**40), 2**40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1, max_size=10).filter(lambda k: k != "command"), values, max_size=6))
def test_round_trip(body):
    cookie, back = ng.decode(ng.encode("abc_1", "query", body))
    assert cookie == "abc_1"
    assert back == {"command": "query", **body}


@given(st.binary(max_size=200))
def test_any_bytes(data):
    try:
        ng.decode(data)
    except ng.NgError:
        pass


@given(st.binary(max_size=60).map(lambda tail: b"c d3:abc" + tail))
def test_nearly_a_message(data):
    try:
        ng.decode(data)
    except ng.NgError:
        pass


def test_deep_nesting_is_refused():
    try:
        ng.decode(b"c " + b"l" * 5000)
    except ng.NgError:
        return
    raise AssertionError("accepted")
