"""What rtpengine was measured to do (reference: hitless media, traps), said by the fake."""

from __future__ import annotations

import pytest

from ari_ha.core.machine import Done, Refused
from ari_ha.simulation.fake_rtpengine import FakeRtpengine
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp

CODEC = {"offer": ["PCMA", "telephone-event"]}
DIRECTIONAL = ["directional"]


@pytest.fixture
def relay() -> FakeRtpengine:
    relay = FakeRtpengine({"public": "192.0.2.1", "core": "10.0.0.1"})
    for tag, interface in (("c", "public"), ("a1", "public"), ("c@ast1.1", "core"), ("a1@ast1.1", "core")):
        body = {"call-id": "k", "from-tag": tag, "interface": interface, "codec": CODEC}
        assert isinstance(relay.command("create", body), Done)
    return relay


def plus(relay: FakeRtpengine, listener: str, speaker: str):
    body = {"call-id": "k", "from-tag": speaker, "to-tag": listener, "flags": DIRECTIONAL}
    return relay.command("connect", body)


def minus(relay: FakeRtpengine, listener: str, speaker: str):
    body = {"call-id": "k", "from-tag": speaker, "to-tag": listener, "flags": DIRECTIONAL}
    return relay.command("unsubscribe", body)


def port_of(outcome) -> tuple[str, int]:
    session = SessionDescription.parse(outcome.value["sdp"])
    audio = session.audio()
    return audio.connection or session.connection, audio.port


def test_create_gives_each_tag_one_port_for_life(relay: FakeRtpengine) -> None:
    body = {"call-id": "k", "from-tag": "c", "interface": "public", "codec": CODEC}
    first, again = relay.command("create", body), relay.command("create", body)
    assert port_of(first) == port_of(again)
    other = relay.command("create", {**body, "from-tag": "a1"})
    assert port_of(first) != port_of(other)
    assert port_of(first)[0] == "192.0.2.1"


def test_create_answers_with_telephone_events_as_96(relay: FakeRtpengine) -> None:
    body = {"call-id": "k", "from-tag": "c", "interface": "public", "codec": CODEC}
    audio = SessionDescription.parse(relay.command("create", body).value["sdp"]).audio()
    assert audio.payload_types == [8, 96] and audio.telephone_event == 96


def test_create_answer_moves_the_far_end(relay: FakeRtpengine) -> None:
    for port in (4000, 4002):
        sdp = build_audio_sdp(1, 1, "192.0.2.9", port)
        relay.command("create answer", {"call-id": "k", "from-tag": "c", "sdp": sdp})
        assert relay.calls["k"].tags["c"].remote == ("192.0.2.9", port)


def test_directional_subscriptions_are_added_and_taken_one_by_one(relay: FakeRtpengine) -> None:
    plus(relay, "c", "a1")
    plus(relay, "c", "c@ast1.1")
    assert relay.hears("k", "c") == ["a1", "c@ast1.1"]
    assert relay.hears("k", "a1") == []
    minus(relay, "c", "a1")
    assert relay.hears("k", "c") == ["c@ast1.1"]
    assert relay.destroyed == []


def test_a_repeated_plus_does_nothing(relay: FakeRtpengine) -> None:
    plus(relay, "c", "a1")
    plus(relay, "c", "a1")
    assert relay.hears("k", "c") == ["a1"]


def test_a_plain_connect_replaces_in_both_directions(relay: FakeRtpengine) -> None:
    relay.command("connect", {"call-id": "k", "from-tag": "c", "to-tag": "c@ast1.1"})
    relay.command("connect", {"call-id": "k", "from-tag": "c", "to-tag": "a1"})
    assert relay.hears("k", "c") == ["a1"] and relay.hears("k", "a1") == ["c"]
    assert relay.hears("k", "c@ast1.1") == []


def test_a_plain_connect_onto_a_fork_doubles_the_voice(relay: FakeRtpengine) -> None:
    plus(relay, "a1", "c")
    relay.command("connect", {"call-id": "k", "from-tag": "c", "to-tag": "a1"})
    assert relay.hears("k", "a1") == ["c", "c"]


@pytest.mark.parametrize("left_out", ["from-tag", "flags"])
def test_unsubscribe_without_its_words_destroys_the_listener(relay: FakeRtpengine, left_out: str) -> None:
    plus(relay, "c", "a1")
    body = {"call-id": "k", "from-tag": "a1", "to-tag": "c", "flags": DIRECTIONAL}
    del body[left_out]
    assert isinstance(relay.command("unsubscribe", body), Done)
    assert relay.destroyed == [("k", "c")]
    assert relay.hears("k", "c") == []


def test_unknown_calls_tags_and_commands_are_refused(relay: FakeRtpengine) -> None:
    assert isinstance(relay.command("connect", {"call-id": "none", "from-tag": "x", "to-tag": "y"}), Refused)
    assert isinstance(plus(relay, "c", "nobody"), Refused)
    assert isinstance(relay.command("mesh", {"call-id": "k"}), Refused)
    assert isinstance(relay.command("delete", {"call-id": "none"}), Refused)


def test_delete_ends_the_call(relay: FakeRtpengine) -> None:
    assert isinstance(relay.command("delete", {"call-id": "k"}), Done)
    assert relay.calls == {} and relay.destroyed == []
