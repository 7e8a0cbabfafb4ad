"""The fake Asterisk against what a real one does: calls through its SIP, its dialplan,
ARI's answers and events."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.core.machine import Done, Refused
from ari_ha.simulation.fake_ari import FakeAri
from ari_ha.simulation.fake_asterisk import FakeAsterisk
from ari_ha.simulation.sip_wire import SipProcess, Wire
from ari_ha.simulation.world import Network, World
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.sip.sdp import build_audio_sdp
from ari_ha.wire.token import HEADER

ASTERISK, EDGE = "10.0.0.31", "10.0.0.11"
PORTS = {"node-trunk": 5070, "node-agent": 5072, "node-resume": 5074}


class Edge(SipProcess):
    """The far side: just an endpoint on the edge's three ports."""

    def __init__(self, world: World, wire: Wire) -> None:
        super().__init__(world, wire, "edge", "edge", EDGE, PORTS)
        self.said: list[Any] = []

    def heard(self, event: sip.SipEvent) -> None:
        self.said.append(event)

    def invite(self, leg: str, number: str = "6000", listener: str = "node-trunk", **headers: str) -> None:
        extra = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.sip.invite(
            leg, flow=Flow(listener, "udp", ASTERISK, 5060), target=f"sip:{number}@{ASTERISK}:5060",
            from_="<sip:+49301@edge>", to=f"<sip:{number}@{ASTERISK}>",
            sdp=build_audio_sdp(1, 1, EDGE, 30000), headers=[(HEADER, "token"), *extra], now=self.mono,
        )  # fmt: skip
        self.pump()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.said if isinstance(event, kind)]


class Bench:
    def __init__(self) -> None:
        self.world = World(1)
        wire = Wire(self.world, Network(self.world))
        self.asterisk = FakeAsterisk(self.world, wire, "ast1", "ast1", ASTERISK)
        self.edge = Edge(self.world, wire)
        self.asterisk.start()
        self.edge.begin()
        self.ari = FakeAri(self.asterisk)
        self.events: list[Any] = []

    def register(self) -> None:
        self.asterisk.connect(self.events.append)

    def run(self, for_s: float = 0.1) -> None:
        self.world.run_until(self.world.now + for_s)

    def named(self, name: str) -> list[Any]:
        return [event for event in self.events if type(event).__name__ == name]

    def do(self, operation: str, **params: Any):
        outcome = self.ari.perform(operation, params)
        self.run()
        return outcome

    def incoming(self, **kwargs: Any) -> str:
        self.edge.invite("leg", **kwargs)
        self.run()
        return self.named("StasisStart")[-1].channel.id


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_call_enters_the_app_with_kind_token_and_verb(bench: Bench) -> None:
    bench.register()
    bench.incoming()
    start = bench.named("StasisStart")[0]
    assert start.args == ["trunk", "token", "queue", "support"]
    assert start.channel.state == "Ring" and start.channel.caller.number == "+49301"


def test_the_edges_source_port_says_what_it_is(bench: Bench) -> None:
    bench.register()
    for listener, kind in (("node-agent", "agent"), ("node-resume", "resume")):
        bench.edge.invite(kind, number="99", listener=listener)
        bench.run()
        assert bench.named("StasisStart")[-1].args[0] == kind


def test_answer_and_hangup_reach_the_edge(bench: Bench) -> None:
    bench.register()
    channel = bench.incoming()
    assert isinstance(bench.do("channels.answer", channelId=channel), Done)
    assert [event.leg for event in bench.edge.of(sip.LegAnswered)] == ["leg"]
    assert bench.named("ChannelStateChange")[-1].channel.state == "Up"
    bench.do("channels.hangup", channelId=channel)
    assert [event.cause for event in bench.edge.of(sip.LegEnded)] == ["bye"]
    assert [type(e).__name__ for e in bench.events[-2:]] == ["StasisEnd", "ChannelDestroyed"]


def test_hanging_up_before_the_answer_gives_the_causes_status(bench: Bench) -> None:
    bench.register()
    channel = bench.incoming()
    bench.do("channels.hangup", channelId=channel, reason_code="34")
    assert [event.status for event in bench.edge.of(sip.LegFailed)] == [503]


def test_without_an_app_an_edge_with_another_node_is_refused_at_once(bench: Bench) -> None:
    bench.edge.invite("leg", **{"X_ARI_HA_Fallback": "no"})
    bench.run()
    assert [event.status for event in bench.edge.of(sip.LegFailed)] == [503]


def test_without_an_app_the_dialplan_asks_again_and_then_says_sorry(bench: Bench) -> None:
    bench.edge.invite("leg")
    bench.run(2.9)
    assert not bench.edge.of(sip.LegAnswered)
    bench.run(3.0)
    assert bench.edge.of(sip.LegAnswered) and bench.edge.of(sip.LegEnded)
    assert bench.asterisk.apologies == ["token"]


def test_a_channel_sent_back_goes_where_it_is_told(bench: Bench) -> None:
    bench.register()
    channel = bench.incoming()
    where = {"channelId": channel, "context": "from-trunk", "extension": "6000"}
    assert isinstance(bench.do("channels.continueInDialplan", **where, priority="1"), Done)
    assert len(bench.named("StasisEnd")) == 1 and len(bench.named("StasisStart")) == 2
    assert isinstance(bench.do("channels.continueInDialplan", **where, label="apology"), Done)
    bench.run(3.0)
    assert bench.asterisk.apologies == ["token"] and bench.edge.of(sip.LegEnded)


def test_a_channel_sent_on_with_nothing_left_is_hung_up(bench: Bench) -> None:
    bench.register()
    channel = bench.incoming()
    bench.do("channels.answer", channelId=channel)
    bench.do("channels.continueInDialplan", channelId=channel)
    assert bench.asterisk.channels == {} and bench.edge.of(sip.LegEnded)


def test_an_app_that_comes_in_time_gets_the_waiting_call(bench: Bench) -> None:
    bench.edge.invite("leg")
    bench.run(0.5)
    bench.register()
    bench.run(1.0)
    assert bench.named("StasisStart") and not bench.asterisk.apologies


def test_a_resume_without_an_app_is_refused(bench: Bench) -> None:
    bench.edge.invite("leg", listener="node-resume")
    bench.run()
    assert [event.status for event in bench.edge.of(sip.LegFailed)] == [503]


def dial(bench: Bench) -> None:
    bench.do(
        "channels.create", channelId="out", app="ari-ha", endpoint=f"PJSIP/edge-out/sip:a1@{EDGE}:5070",
        variables={"PJSIP_HEADER(add,X-ARI-HA-Token)": "signed"},
    )  # fmt: skip
    assert isinstance(bench.do("channels.dial", channelId="out", timeout=5), Done)


def test_create_then_dial_carries_the_token_and_follows_the_phone(bench: Bench) -> None:
    bench.register()
    dial(bench)
    (invited,) = bench.edge.of(sip.InviteReceived)
    assert invited.request.get(HEADER) == "signed" and invited.flow.listener == "node-trunk"
    bench.edge.sip.ring(invited.leg, bench.edge.mono)
    bench.edge.pump()
    bench.run()
    bench.edge.sip.answer(invited.leg, build_audio_sdp(1, 1, EDGE, 30002), bench.edge.mono)
    bench.edge.pump()
    bench.run()
    assert [e.dialstatus for e in bench.named("Dial")] == ["RINGING", "ANSWER"]
    assert bench.asterisk.channels["out"].state == "Up"


@pytest.mark.parametrize(("status", "cause"), [(486, 17), (603, 21), (480, 19)])
def test_a_refused_dial_ends_with_its_cause(bench: Bench, status: int, cause: int) -> None:
    bench.register()
    dial(bench)
    bench.edge.sip.reject(bench.edge.of(sip.InviteReceived)[0].leg, status, bench.edge.mono)
    bench.edge.pump()
    bench.run()
    assert bench.named("ChannelDestroyed")[-1].cause == cause


def test_a_dial_nobody_answers_ends_by_asterisks_own_limit(bench: Bench) -> None:
    bench.register()
    dial(bench)
    bench.run(6.0)
    assert "out" not in bench.asterisk.channels and bench.edge.of(sip.LegCancelled)


def test_ids_are_ours_and_taken_once(bench: Bench) -> None:
    bench.register()
    assert isinstance(bench.do("bridges.createWithId", bridgeId="b", type="mixing"), Done)
    assert bench.do("bridges.createWithId", bridgeId="b", type="mixing").code == 409
    assert bench.do("channels.answer", channelId="nobody") == Refused("Channel not found", 404)
    assert bench.do("bridges.destroy", bridgeId="nobody").code == 404


def test_adding_a_lost_channel_does_nothing_by_halves(bench: Bench) -> None:
    bench.register()
    channel = bench.incoming()
    bench.do("bridges.createWithId", bridgeId="b", type="mixing,dtmf_events")
    assert bench.do("bridges.addChannel", bridgeId="b", channel=f"{channel},gone").code == 400
    assert bench.asterisk.bridges["b"].channels == []
    assert isinstance(bench.do("bridges.addChannel", bridgeId="b", channel=channel), Done)
    assert bench.do("bridges.removeChannel", bridgeId="b", channel=channel) == Done(None)
    assert bench.do("bridges.removeChannel", bridgeId="b", channel=channel).code == 422


@pytest.mark.parametrize(("kind", "heard"), [("mixing", 0), ("mixing,dtmf_events", 1)])
def test_a_plain_mixing_bridge_hides_digits(bench: Bench, kind: str, heard: int) -> None:
    bench.register()
    channel = bench.incoming()
    bench.do("channels.answer", channelId=channel)
    bench.do("bridges.createWithId", bridgeId="b", type=kind)
    bench.do("bridges.addChannel", bridgeId="b", channel=channel)
    bench.asterisk.digit(channel, "5")
    assert len(bench.named("ChannelDtmfReceived")) == heard


def test_channels_outlive_the_app_and_are_in_the_next_snapshot(bench: Bench) -> None:
    bench.register()
    channel = bench.incoming()
    bench.do("channels.setChannelVar", channelId=channel, variable="HA_CALL", value="k1")
    bench.asterisk.disconnect()
    before = len(bench.events)
    channels, _ = bench.asterisk.connect(bench.events.append)
    assert [c.id for c in channels] == [channel] and channels[0].channelvars["HA_CALL"] == "k1"
    assert len(bench.events) == before


def test_a_killed_asterisk_says_nothing_and_forgets_everything(bench: Bench) -> None:
    bench.register()
    bench.incoming()
    was, count = bench.asterisk.incarnation, len(bench.events)
    bench.asterisk.kill()
    bench.run(1.0)
    assert len(bench.events) == count
    bench.asterisk.start()
    assert bench.asterisk.channels == {} and bench.asterisk.incarnation != was


def test_a_frozen_asterisk_answers_when_it_wakes(bench: Bench) -> None:
    bench.register()
    bench.asterisk.freeze()
    bench.edge.invite("leg")
    bench.run(1.0)
    assert not bench.named("StasisStart")
    bench.asterisk.thaw()
    bench.run()
    assert len(bench.named("StasisStart")) == 1
