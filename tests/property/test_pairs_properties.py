"""What passes between pairs: seals round-trip, and nothing that arrives raises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ari_ha.core.ports.sip import SipBytes
from ari_ha.machines.edge_pairs import Party
from ari_ha.sip.flow import Flow
from ari_ha.sip.proxy import SEALED_MAX_CHARS, opened, sealed
from tests.support.two_pairs import HOP_PORT, TwoPairs
from tests.unit.test_two_pairs import talking

KEY = b"a key"
LINE = st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs",)), max_size=40)


@given(LINE, LINE, LINE, LINE, st.integers(0, 65_535))
def test_a_sealed_route_says_what_it_said(pair: str, host: str, ident: str, aor: str, port: int) -> None:
    party = Party(pair, Flow("public-udp", "udp", host, port), aor, ident)
    value = sealed(KEY, party.text)
    if len(value) <= SEALED_MAX_CHARS:
        assert Party.read(opened(KEY, value) or "") == party
    assert opened(b"another", value) is None and opened(KEY, value, "about it") is None


@given(st.text(max_size=60), st.integers(0, 30), st.text(min_size=1, max_size=1))
def test_what_was_not_sealed_is_not_opened(text: str, at: int, other: str) -> None:
    assert opened(KEY, text) is None
    value = sealed(KEY, "pair1\npublic-udp\nudp\n10.0.1.60\n6001\nx\n1001")
    if value[at] != other:
        assert opened(KEY, value[:at] + other + value[at + 1 :]) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_mangled_message_stops_an_edge(data: st.DataObject) -> None:
    """Any message that went between the edges or to the phone, with a piece of it replaced."""
    two = TwoPairs("1001")
    talking(two)
    log = [
        entry[3] for entry in two.a.sip_log + two.b.sip_log if b"flow=" in entry[3] or b"Route" in entry[3]
    ]
    message = data.draw(st.sampled_from(log))
    begin = data.draw(st.integers(0, len(message)))
    length = data.draw(st.integers(0, 40))
    mangled = message[:begin] + data.draw(st.binary(max_size=12)) + message[begin + length :]
    for edge in (two.a, two.b):
        for listener, port in (("public-udp", 6001), ("edge-hop", HOP_PORT)):
            edge.post(SipBytes(data=mangled, flow=Flow(listener, "udp", "10.0.1.60", port)))
            edge.run(0.1)
