"""ARI's events and operations as this repository reads and writes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_ha.wire import ari
from ari_ha.wire.ari_operations import OPERATIONS, AriParamsError, decode_reply, encode

STASIS_START = b"""{"type":"StasisStart","timestamp":"2026-01-01T00:00:00.000+0000","args":["queue","sales"],
"channel":{"id":"k1-c","name":"PJSIP/edge-in-trunk-00000001","state":"Ring","protocol_id":"abc@edge",
"caller":{"name":"","number":"+3611234567"},"connected":{"name":"","number":""},"accountcode":"",
"dialplan":{"context":"from-edge","exten":"100","priority":2,"app_name":"Stasis","app_data":"ari-ha"},
"creationtime":"2026-01-01T00:00:00.000+0000","language":"en","channelvars":{"A":"b"}},
"asterisk_id":"02:42","application":"ari-ha"}"""


def test_event_becomes_its_struct():
    event = ari.decode_event(STASIS_START)
    assert isinstance(event, ari.StasisStart)
    assert (event.args, event.channel.id) == (["queue", "sales"], "k1-c")
    assert event.channel.dialplan.priority == 2
    assert event.channel.channelvars == {"A": "b"}
    assert event.replace_channel is None


def test_what_asterisk_leaves_out_has_a_default():
    event = ari.decode_event(b'{"type":"StasisEnd"}')
    assert event == ari.StasisEnd()
    assert event.channel.id == ""


def test_unknown_fields_are_ignored():
    event = ari.decode_event(b'{"type":"StasisEnd","new":[1],"channel":{"id":"x","newer":{}}}')
    assert event.channel.id == "x"


def test_unknown_event_is_raw_without_a_problem():
    event = ari.decode_event(b'{"type":"ChannelTeleported","channel":{"id":"x"}}')
    assert event == ari.RawEvent("ChannelTeleported", {"type": "ChannelTeleported", "channel": {"id": "x"}})


def test_event_that_does_not_fit_is_raw_and_says_why():
    event = ari.decode_event(b'{"type":"StasisEnd","channel":7}')
    assert isinstance(event, ari.RawEvent)
    assert event.type == "StasisEnd" and "channel" in event.problem


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"a":1}', b"[" * 100_000])
def test_what_is_no_event_never_raises(data):
    assert isinstance(ari.decode_event(data), ari.RawEvent)


@given(st.one_of(st.binary(max_size=100), st.text(max_size=100)))
def test_noise_never_raises(data):
    assert isinstance(ari.decode_event(data), ari.RawEvent)


@given(st.sampled_from(sorted(ari.EVENTS)), st.dictionaries(st.text(), st.one_of(st.none(), st.text())))
def test_any_event_with_any_fields_never_raises(name, fields):
    event = ari.decode_event(json.dumps({**fields, "type": name}))
    assert isinstance(event, ari.EVENTS[name] | ari.RawEvent)


@pytest.mark.parametrize("kind", ari.EVENTS.values(), ids=list(ari.EVENTS))
def test_every_event_goes_out_and_comes_back(kind):
    assert ari.decode_event(ari.encode_event(kind())) == kind()


def test_operation_with_path_and_query():
    assert encode("bridges.addChannel", {"bridgeId": "k1.7/1", "channel": ["a", "b"], "mute": False}) == (
        "POST",
        "/bridges/k1.7%2F1/addChannel",
        {"channel": "a,b", "mute": "false"},
        None,
    )


def test_variables_travel_in_the_body():
    request = encode(
        "channels.create", {"endpoint": "PJSIP/x", "app": "ari-ha", "variables": {"A": "ü"}, "formats": None}
    )
    assert request.query == {"endpoint": "PJSIP/x", "app": "ari-ha"}
    assert json.loads(request.body) == {"variables": {"A": "ü"}}


def test_event_filter_is_the_body_itself():
    request = encode("applications.filter", {"applicationName": "ari-ha", "filter": {"disallowed": []}})
    assert json.loads(request.body) == {"disallowed": []}


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("channels.fly", {}),
        ("channels.answer", {}),
        ("channels.answer", {"channelId": ""}),
        ("channels.answer", {"channelId": "x", "loud": True}),
        ("channels.answer", {"channelId": {"x": 1}}),
        ("channels.create", {"endpoint": "PJSIP/x"}),
    ],
)
def test_calls_the_api_docs_do_not_allow_are_local_mistakes(operation, params):
    with pytest.raises(AriParamsError):
        encode(operation, params)


def test_every_placeholder_of_a_path_is_a_parameter():
    for name, operation in OPERATIONS.items():
        for part in operation.path.split("/"):
            if part.startswith("{"):
                assert part[1:-1] in operation.path_params, name


def test_replies():
    assert decode_reply("channels.answer", b"") is None
    assert decode_reply("channels.list", b'[{"id":"x"}]') == [ari.Channel(id="x")]
    assert decode_reply("channels.list", b'[{"id":"x"},{"id":[]}]') == [ari.Channel(id="x"), {"id": []}]
    assert decode_reply("channels.list", b'{"strange":1}') == {"strange": 1}
    assert decode_reply("channels.list", b"<html>") == b"<html>"
    assert decode_reply("recordings.getStoredFile", b"RIFF") == b"RIFF"
