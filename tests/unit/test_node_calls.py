"""One node serving calls: from the trunk into the queue, to an agent, to an end."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ari_ha.core.machine import Refused
from ari_ha.wire import link
from ari_ha.wire.keyspace import WaitingValue, decode
from ari_ha.wire.token import HEADER, verify
from tests.support.node_bench import KEY, LOST, UTC0, Bench


def test_a_caller_waits_with_music_and_talks_to_an_agent() -> None:
    bench = Bench()
    customer = bench.trunk()
    assert bench.hears(customer) == "music" and bench.waiting() == ["k1"]
    (agent,) = bench.dialled()
    assert agent == "k1.a1.7.1"
    created = bench.operations("channels.create")[0]
    assert created["endpoint"] == "PJSIP/edge-out/sip:a1@10.0.0.11:5070"
    assert "PJSIP_HEADER(add,X-ARI-HA-Token)" in created["variables"]
    bench.ring(agent)
    assert bench.agent().work == "ringing"
    bench.pick_up(agent)
    assert bench.hears(customer) == bench.hears(agent) == "people"
    assert bench.agent().work == "talking" and bench.waiting() == []
    assert bench.said(link.Bridged)[-1].legs == ["c", "a1"]
    assert [f.state for f in bench.said(link.WantMedia)] == ["hitless"]
    record = bench.record()
    assert record is not None and record.stage == "talking" and record.node == "ast1#life1"


def test_the_intent_is_stored_before_the_phone_is_dialled() -> None:
    bench = Bench()
    bench.trunk()
    record = bench.record()
    assert record is not None
    (attempt,) = record.attempts.values()
    assert attempt.leg == "a1" and attempt.agent == "1001"


def test_an_agent_is_dialled_only_when_his_channel_is_in_stasis() -> None:
    """ARI answers 409 before that."""
    bench = Bench()
    bench.trunk()
    names = [operation for operation, _ in bench.asked]
    assert names.index("channels.dial") > names.index("channels.create")


def test_the_agent_hangs_up_and_the_caller_is_ended_after_the_announcement() -> None:
    bench = Bench()
    customer, _ = bench.talk()
    bench.gone("k1", "a1")
    (end,) = bench.said(link.EndLeg)
    assert (end.leg, end.epoch) == ("c", "7.1")
    assert customer not in bench.asterisk.channels
    assert bench.agent().work == "acw"
    bench.sleep(2)
    assert bench.agent().work == "idle" and not bench.machine.core.calls
    assert not bench.asterisk.bridges


def test_the_caller_hangs_up_in_conversation() -> None:
    bench = Bench()
    bench.talk()
    bench.gone("k1", "c")
    bench.gone("k1", "a1", by="edge")
    bench.sleep(5)
    assert bench.agent().work == "idle" and bench.agent().handled == 1
    assert not bench.asterisk.channels and not bench.machine.core.calls


def test_a_caller_who_gives_up_while_a_phone_rings_is_nobodys_miss() -> None:
    bench = Bench()
    bench.trunk()
    (agent,) = bench.dialled()
    bench.ring(agent)
    bench.gone("k1", "c")
    assert bench.said(link.EndLeg, leg="a1")
    bench.sleep(5)
    assert bench.agent().work == "idle" and bench.agent().misses == 0
    assert bench.waiting() == [] and not bench.asterisk.channels


def test_the_edge_is_told_whose_phone_it_rings() -> None:
    bench = Bench()
    bench.trunk()
    (create,) = bench.operations("channels.create")
    token = verify(create["variables"][f"PJSIP_HEADER(add,{HEADER})"], KEY)
    assert (token.kind, token.agent) == ("dial", "1001")


def test_no_answer_keeps_the_callers_place() -> None:
    bench = Bench(("1001",))
    customer = bench.trunk()
    record = bench.record()
    assert record is not None
    (agent,) = bench.dialled()
    bench.ring(agent)
    bench.sleep(4.5)
    assert bench.said(link.EndLeg, leg="a1")
    assert bench.agent().intent == "not_ready" and bench.agent().reason == "rona"
    assert bench.waiting() == ["k1"] and bench.hears(customer) == "music"
    place = decode(bench.store.data[bench.keys.waiting("support", "k1")].value, WaitingValue)
    assert place.entered == record.entered and place.attempt == ""


@pytest.mark.parametrize(("status", "by", "work"), [(603, "failed", "idle"), (486, "failed", "idle")])
def test_a_phone_that_declines(status: int, by: str, work: str) -> None:
    bench = Bench(("1001",))
    bench.trunk()
    (agent,) = bench.dialled()
    bench.ring(agent)
    bench.gone("k1", "a1", by=by, status=status)
    assert bench.agent().work == work and bench.agent().delay_until > 0
    assert bench.agent().misses == 0


def test_a_dial_the_edge_refuses_is_tried_elsewhere() -> None:
    bench = Bench()
    bench.trunk()
    (agent,) = bench.dialled()
    bench.post(*bench.asterisk.destroy(agent, 17, 486))
    bench.sleep(3)
    assert bench.dialled(), "another agent, or the same one again"
    assert "a1" not in {channel.split(".")[1] for channel in bench.dialled()}, "a leg's name is used once"


def test_hold_and_taking_back() -> None:
    bench = Bench()
    customer, agent = bench.talk()
    bench.frame(link.LegHeld("k1", "a1", "7.1", True))
    assert bench.hears(customer) == "music" and bench.agent().work == "hold"
    bench.frame(link.LegHeld("k1", "a1", "7.1", False))
    assert bench.hears(customer) == bench.hears(agent) == "people" and bench.agent().work == "talking"


def test_whoever_is_held_hears_music_also_before_the_other_ones_channel_is_there() -> None:
    """The edge has the agent's answer; its own to our Asterisk is lost for many seconds."""
    bench = Bench()
    customer = bench.trunk()
    (agent,) = bench.dialled()
    bench.frame(link.LegAnswered("k1", "a1", "7.1"))
    assert bench.hears(customer) == "nothing"
    bench.frame(link.LegHeld("k1", "a1", "7.1", True))
    assert bench.hears(customer) == "music"
    bench.post(*bench.asterisk.up(agent))
    assert bench.hears(customer) == "music"
    bench.frame(link.LegHeld("k1", "a1", "7.1", False))
    assert bench.hears(customer) == bench.hears(agent) == "people"


def test_two_hear_each_other_also_before_a_channel_is_there() -> None:
    """Of whom Asterisk has only one the edge connects them directly, and Asterisk when it has both."""
    bench = Bench()
    customer = bench.trunk()
    (agent,) = bench.dialled()
    bench.frame(link.LegAnswered("k1", "a1", "7.1"))
    assert bench.said(link.WantMedia)[-1].state == "hitless"
    assert not bench.said(link.Bridged, legs=["c", "a1"]), "the call is not whole yet"
    bench.post(*bench.asterisk.up(agent))
    assert bench.hears(customer) == bench.hears(agent) == "people"
    assert bench.said(link.Bridged, legs=["c", "a1"])
    assert [f.state for f in bench.said(link.WantMedia)] == ["hitless"]


def test_a_through_queue_keeps_asterisk_in_the_path() -> None:
    bench = Bench(media="through")
    bench.talk()
    assert not bench.said(link.WantMedia, state="hitless")


def test_digits_are_told_to_the_edge() -> None:
    from ari_ha.core.ports.ari import AriEvent
    from ari_ha.wire import ari

    bench = Bench()
    customer, _ = bench.talk()
    bench.post(AriEvent(event=ari.ChannelDtmfReceived(digit="5", channel=bench.asterisk.channel(customer))))
    assert bench.said(link.DigitHeard, leg="c", digit="5")


def test_after_its_clock_has_gone_back_asterisk_hears_no_digit_and_new_channels_are_asked_for() -> None:
    from ari_ha.core.ports.ari import AriEvent
    from ari_ha.core.ports.probe import WallClock
    from ari_ha.wire import ari

    def clock_says(by_s: float) -> None:
        bench.post(WallClock(utc_s=UTC0 + bench.now + by_s))

    def types(channel: str, by_s: float) -> None:
        at = datetime.fromtimestamp(UTC0 + bench.now + by_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000")
        heard = ari.ChannelDtmfReceived(digit="5", timestamp=at, channel=bench.asterisk.channel(channel))
        bench.post(AriEvent(event=heard))

    bench = Bench(media="through")
    customer, _ = bench.talk()
    types(customer, by_s=3600.0)  # Asterisk's clock has stepped, and the app was not told yet
    clock_says(3600.0)
    assert not bench.said(link.MoveWanted)
    clock_says(0.0)
    assert [(f.call, f.epoch) for f in bench.said(link.MoveWanted)] == [("k1", "7.1")]
    types(customer, by_s=0.0)
    clock_says(0.0)
    assert len(bench.said(link.MoveWanted)) == 1, "it has heard one"


def test_an_unknown_queue_leaves_the_caller_to_the_dialplan() -> None:
    bench = Bench()
    customer = bench.trunk(verb="queue,nowhere")
    (went,) = bench.operations("channels.continueInDialplan")
    assert went == {
        "channelId": customer, "context": "from-trunk", "extension": "6000", "label": "apology"
    }  # fmt: skip
    assert not bench.said(link.EndLeg)


def test_a_full_queue_is_busy() -> None:
    bench = Bench((), max_waiting=1)
    bench.trunk("k1")
    second = bench.trunk("k2")
    (end,) = bench.said(link.EndLeg)
    assert (end.call, end.cause) == ("k2", "17")
    assert second not in bench.asterisk.channels


def test_strangers_change_nothing() -> None:
    from ari_ha.core.ports.ari import AriEvent

    bench = Bench()
    start = bench.asterisk.enter("ari-ha,trunk,forged.token,queue,support", "6000")
    bench.post(AriEvent(event=start))
    assert not bench.machine.core.calls and not bench.waiting()
    assert bench.operations("channels.continueInDialplan")


def test_a_call_that_is_taken_already_is_not_taken_twice() -> None:
    bench = Bench(())
    first = bench.trunk()
    second = bench.trunk()
    assert first in bench.asterisk.channels and second not in bench.asterisk.channels


def test_feature_codes() -> None:
    from ari_ha.core.ports.ari import AriEvent

    bench = Bench(("1001",))
    for call, code, intent in (
        ("f1", "*22", "logged_out"),
        ("f2", "*21", "available"),
        ("f3", "*241", "not_ready"),
    ):
        bench.own(call)
        token = bench.token(call, kind="agent", did=code, user="1001")
        bench.post(AriEvent(event=bench.asterisk.enter(f"ari-ha,agent,{token},dial,{code}", code)))
        assert bench.agent().intent == intent
        bench.sleep(1)
        assert bench.said(link.EndLeg, call=call)
    assert bench.agent().reason == "break"
    bench.sleep(5)
    assert not bench.machine.core.calls and not bench.asterisk.channels


def test_what_asterisk_did_not_do_is_asked_for_again() -> None:
    bench = Bench(())
    bench.asterisk.fail.extend([LOST, Refused("odd", 500)])
    customer = bench.trunk()
    bench.sleep(3)
    assert bench.hears(customer) == "music"


def test_music_waits_for_the_edge_but_not_for_ever() -> None:
    bench = Bench()
    customer, agent = bench.talk()
    bench.answers_media = False
    bench.post(*bench.asterisk.destroy(agent))  # lost, not ended: the edge will make it again
    assert bench.hears(customer) == "nothing"
    facts = {"c": "up"}
    bench.resume("k1", "7.2", facts)
    bench.sleep(0.2)
    (customer,) = [c for c in bench.asterisk.channels if bench.machine.core.by_channel.get(c) == ("k1", "c")]
    bench.sleep(1)
    assert bench.hears(customer) == "music"


def test_an_announced_end_whose_channel_stays_is_hung_up() -> None:
    bench = Bench()
    customer, _ = bench.talk()
    bench.link_up = False  # the frame is lost on its way
    bench.frame(link.LegGone("k1", "a1", "7.1", by="phone"))
    assert customer in bench.asterisk.channels
    bench.sleep(1.5)
    assert customer not in bench.asterisk.channels


def test_without_a_link_the_record_announces_the_end() -> None:
    bench = Bench()
    customer, agent = bench.talk()
    bench.link_down()
    call = bench.machine.core.calls["k1"]
    call.end_leg(call.legs["c"], "16", "test")
    bench.post()
    bench.sleep(0.5)
    record = bench.record()
    assert record is not None and record.ending == {"c": "16"}
    assert customer not in bench.asterisk.channels and agent in bench.asterisk.channels


def test_a_leg_lost_without_a_word_is_given_back_to_the_edge() -> None:
    bench = Bench()
    customer, _ = bench.talk()
    bench.post(*bench.asterisk.destroy(customer))
    assert not bench.said(link.EndLeg)
    bench.sleep(4)
    (refused,) = bench.said(link.ResumeRefused)
    assert (refused.call, refused.epoch) == ("k1", "7.1")
    assert bench.agent().work == "talking", "the edge makes the call again: nobody's state changes"


def test_operators_see_calls_agents_and_queues() -> None:
    bench = Bench()
    bench.talk()
    assert bench.ask("status").body["calls"] == 1
    assert bench.ask("calls").body["calls"]["k1"]["legs"]["a1"]["agent"] == "1001"
    assert bench.ask("call", call="k1").body["record"]["stage"] == "talking"
    assert bench.ask("call", call="nope").status == 404
    assert bench.ask("agents").body["agents"]["1001"]["work"] == "talking"
    assert bench.ask("queues").body["queues"]["support"]["waiting"] == []
    assert bench.ask("not-ready", agent="1002", reason="1").status == 200
    assert bench.agent("1002").intent == "not_ready"
    assert bench.ask("dance").status == 404
    assert bench.ask("login").status == 422
    assert bench.ask("cordon").body == {"cordoned": True}
    assert bench.said(link.NodeState)[-1].cordoned
