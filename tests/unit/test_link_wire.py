"""Node link frames: what goes on the wire and what is made of strange bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_ha.wire import link
from ari_ha.wire.link import FrameReader, LinkProtocolError, encode

EXAMPLES = [
    link.NodeHello("node-a", "boot+1", "1.0", ["hitless"]),
    link.NodeState(True, "", False, 3, "up"),
    link.NodeCalls({"k1": link.CallOnNode("7.1", {"c": "k1-c"})}),
    link.Bridged("k1", "7.1", ["c", "a"]),
    link.ResumeRefused("k1", "7.1", "a", "no record"),
    link.EndLeg("k1", "c", "7.1", "16", "queue empty"),
    link.WantMedia("k1", "7.1", "through", 4),
    link.MoveWanted("k1", "7.1", "no digit is heard"),
    link.AsteriskGone("boot+1", "process gone"),
    link.ClaimAgent("ann", "sip:ann", "t1", "k1"),
    link.DigitHeard("k1", "c", "7.1", "5"),
    link.EdgeHello("edge-1", "vip-1", 7, "1.0", sip="192.0.2.1:5060", features=["away"]),
    link.EdgeCalls({"k1": link.CallAtEdge("7.1", {"c": link.LegAtEdge("answered", True)})}),
    link.MediaIs("k1", "7.1", "through", 4),
    link.LegRinging("k1", "a", "7.1"),
    link.LegAnswered("k1", "a", "7.1"),
    link.LegGone("k1", "a", "7.1", "16", 200, "phone"),
    link.LegHeld("k1", "a", "7.1", True),
    link.LegDigit("k1", "a", "7.1", "#"),
    link.CallMoved("k1", "7.2", "node-b"),
    link.Relinquish("k1", "7.2"),
    link.ClaimAnswer("ann", "t1", False, "t0"),
    link.Conversations("k1", "7.1", "c", {"k1": "k1", "a2": "k1"}),
    link.TransferIs("k1", "a1", "7.1", "t9", 200),
    link.TransferAsked("k1", "a1", "7.1", "t9", "1002", "k1"),
    link.ConsultAsked("k1", "k1", "7.1", "a1", "1002"),
    link.LegTaken("k1", "a1", "7.1", "device:1002"),
    link.WantRecording("k1", "7.1", True),
    link.RecorderAt("r1", "k1", "192.0.2.31", 42_000),
    link.RecordingOver("r1", "k1", "disk full"),
    link.NodeRecordings({"r1": "k1"}),
    link.Record("r1", "k1", "c", "192.0.2.1", 30_002, 0),
    link.EndRecording("r1", "k1"),
    link.Ping(1.25),
    link.Pong(1.25),
]


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_every_frame_has_an_example():
    assert {type(frame) for frame in EXAMPLES} == {*link.NODE_FRAMES, *link.EDGE_FRAMES}


@pytest.mark.parametrize("frame", EXAMPLES, ids=lambda frame: type(frame).__name__)
def test_round_trip(frame):
    assert FrameReader().feed(encode(frame)) == [frame]


@pytest.mark.parametrize("kind", [type(frame) for frame in EXAMPLES], ids=lambda kind: kind.__name__)
def test_every_field_has_a_default(kind):
    assert FrameReader().feed(framed(b'{"type":"%s"}' % kind.__name__.encode())) == [kind()]


def test_frames_are_values():
    with pytest.raises(AttributeError):
        EXAMPLES[0].node = "other"


def test_unknown_field_is_ignored():
    body = b'{"type":"Bridged","call":"k","mood":{"a":[1]},"legs":["c"]}'
    assert FrameReader().feed(framed(body)) == [link.Bridged("k", "", ["c"])]


def test_unknown_type_is_counted_and_skipped():
    reader = FrameReader()
    frames = reader.feed(framed(b'{"type":"FromTheFuture","x":1}') + encode(link.Ping(1.0)))
    assert frames == [link.Ping(1.0)]
    assert reader.skipped == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"call":"k"}',
        b'{"type":5}',
        b'{"type":"Bridged","legs":"c"}',
        b'{"type":"Bridged","call":"\xff\xfe"}',
        b'{"type":"Bridged","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_frame_raises_our_error(body):
    with pytest.raises(LinkProtocolError):
        FrameReader().feed(framed(body))


def test_length_over_the_limit_raises_before_it_is_buffered():
    with pytest.raises(LinkProtocolError):
        FrameReader().feed((link.FRAME_MAX_BYTES + 1).to_bytes(4, "big"))


def test_too_large_a_frame_of_ours_is_a_local_mistake():
    with pytest.raises(ValueError, match="the limit is"):
        encode(link.Bridged("k" * link.FRAME_MAX_BYTES))


@given(st.lists(st.sampled_from(EXAMPLES), max_size=8), st.data())
def test_any_cut_of_the_stream_gives_the_same_frames(frames, data):
    stream = b"".join(encode(frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = FrameReader()
    seen = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += reader.feed(stream[start:end])
    assert seen == frames


@given(st.binary(max_size=200))
def test_noise_gives_frames_or_our_error(noise):
    reader = FrameReader()
    try:
        frames = reader.feed(framed(noise))
    except LinkProtocolError:
        return
    assert all(isinstance(frame, msgspec.Struct) for frame in frames)
