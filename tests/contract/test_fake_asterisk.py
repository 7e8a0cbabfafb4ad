"""What a node's Asterisk does: calls through its SIP, its dialplan, ARI's answers and events. The same cases
against the fake and a real one with the repository's configuration."""

from __future__ import annotations

import pytest
from asterisk_rig import FakeRig, RealRig
from containers import why_not
from real_asterisk import IMAGE, RealAsterisk

from ari_ha.adapters.control_socket import command
from ari_ha.core.machine import Done, Refused
from ari_ha.core.ports.ari import NO_COMMAND, NO_ENDPOINT
from ari_ha.sip import events as sip
from ari_ha.wire.token import HEADER

ASKS_FOR_S = 4.0
"""The dialplan asks at once and after each of three seconds, and waits one more."""
CLOCKS_S = 0.2
"""What two clocks may differ by: Asterisk's timers and this machine's."""
ATTEMPTS_MAX = 5
"""A loaded machine may take longer to register an app than the dialplan waits."""


@pytest.fixture(scope="module")
def real_asterisk(tmp_path_factory):
    if why := why_not(IMAGE):
        pytest.skip(why)
    asterisk = RealAsterisk(tmp_path_factory.mktemp("asterisk"))
    yield asterisk
    asterisk.remove()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.lab)])
async def bare(request):
    """An Asterisk whose app is not there."""
    if request.param == "fake":
        yield FakeRig()
        return
    rig = RealRig(request.getfixturevalue("real_asterisk"))
    try:
        yield await rig.open()
    finally:
        await rig.close()


@pytest.fixture
async def rig(bare):
    """An Asterisk with its app."""
    await bare.register()
    return bare


async def test_a_call_enters_the_app_with_kind_token_and_verb(rig) -> None:
    channel = await rig.incoming()
    start = await rig.seen("StasisStart", channel)
    assert start.args == ["trunk", "token", "queue", "support"]
    assert start.channel.state == "Ring" and start.channel.caller.number == "+49301"
    assert start.channel.dialplan.context == "from-trunk" and start.channel.dialplan.exten == "6000"
    assert start.channel.dialplan.app_name == "Stasis"


@pytest.mark.parametrize(
    ("listener", "number", "args"),
    [
        ("node-trunk", "6200", ["trunk", "token", "ivr", "main"]),
        ("node-trunk", "6001", ["trunk", "token", "through", "support"]),
        ("node-trunk", "1002", ["trunk", "token", "dial", "1002"]),
        ("node-agent", "1002", ["agent", "token", "dial", "1002"]),
        ("node-agent", "*45", ["agent", "token", "dial", "*45"]),
        ("node-agent", "72003", ["agent", "token", "dial", "2003"]),
        ("node-resume", "6000", ["resume", "token", ""]),
    ],
)
async def test_port_and_number_say_what_it_is(rig, listener: str, number: str, args: list[str]) -> None:
    channel = await rig.incoming(number=number, listener=listener)
    assert (await rig.seen("StasisStart", channel)).args == args


async def test_an_edge_that_knows_the_verb_says_it(rig) -> None:
    channel = await rig.incoming(number="6000", X_ARI_HA_Verb="queue,vip")
    assert (await rig.seen("StasisStart", channel)).args == ["trunk", "token", "queue", "vip"]


async def test_answer_and_hangup_reach_the_edge(rig) -> None:
    channel = await rig.incoming()
    assert isinstance(await rig.do("channels.answer", channelId=channel), Done)
    await rig.told(sip.LegAnswered, "leg")
    assert (await rig.seen("ChannelStateChange", channel)).channel.state == "Up"
    assert await rig.do("channels.hangup", channelId=channel) == Done(None)
    assert (await rig.told(sip.LegEnded, "leg")).cause == "bye"
    await rig.seen("StasisEnd", channel)
    assert hangup_of(rig, channel) == SOFT


async def test_the_end_of_a_channel_that_came_in_is_told_to_who_asked(rig) -> None:
    """Its subscription ends with Stasis."""
    one, two = await rig.incoming("one"), await rig.incoming("two")
    source = {"applicationName": "ari-ha", "eventSource": f"channel:{two}"}
    assert isinstance(await rig.do("applications.subscribe", **source), Done)
    assert (await rig.do("applications.subscribe", **source | {"eventSource": "channel:no"})).code == 422
    for channel in (one, two):
        await rig.do("channels.hangup", channelId=channel, reason_code="16")
    assert (await rig.seen("ChannelDestroyed", two)).cause == 16
    await rig.seen("StasisEnd", one)
    await rig.quiet()
    assert rig.order(two, *ENDS)[:2] == list(ENDS[:2]) and rig.order(two, *ENDS)[-1] == ENDS[2]
    assert rig.order(one, *ENDS) == list(ENDS[:2])


async def test_ringing_reaches_the_edge(rig) -> None:
    channel = await rig.incoming()
    assert isinstance(await rig.do("channels.ring", channelId=channel), Done)
    assert (await rig.told(sip.LegRinging, "leg")).status == 180


async def test_the_far_end_hangs_up(rig) -> None:
    channel = await rig.incoming()
    await rig.do("channels.answer", channelId=channel)
    await rig.told(sip.LegAnswered, "leg")
    rig.edge.hangup("leg")
    await rig.seen("StasisEnd", channel)
    assert hangup_of(rig, channel) == (0, 0, False)


async def test_the_far_end_cancels(rig) -> None:
    channel = await rig.incoming()
    rig.edge.hangup("leg")
    await rig.seen("StasisEnd", channel)
    assert hangup_of(rig, channel) == (127, 487, False)


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (1, 404),
        (16, 603),
        (17, 486),
        (18, 408),
        (19, 480),
        (20, 480),
        (21, 403),
        (34, 503),
        (38, 500),
        (58, 488),
    ],
)
async def test_hanging_up_before_the_answer_gives_the_causes_status(rig, cause: int, status: int) -> None:
    channel = await rig.incoming()
    await rig.do("channels.hangup", channelId=channel, reason_code=str(cause))
    assert (await rig.told(sip.LegFailed, "leg")).status == status
    await rig.seen("StasisEnd", channel)
    assert await rig.channels() == []


async def test_without_an_app_an_edge_with_another_node_is_refused_at_once(bare) -> None:
    bare.edge.invite("leg", X_ARI_HA_Fallback="no")
    assert (await bare.told(sip.LegFailed, "leg")).status == 503
    assert not bare.edge.of(sip.LegRinging)


async def test_without_an_app_the_dialplan_asks_again_and_then_says_sorry(bare) -> None:
    bare.edge.invite("leg")
    await bare.told(sip.LegRinging, "leg")
    await bare.told(sip.LegAnswered, "leg")
    rang, answered = bare.edge.when(sip.LegRinging, "leg"), bare.edge.when(sip.LegAnswered, "leg")
    assert answered - rang > ASKS_FOR_S - CLOCKS_S
    await bare.until("it is told", lambda: bare.apologised("leg"))
    assert (await bare.told(sip.LegEnded, "leg")).cause == "bye"


async def test_other_calls_are_refused_without_an_app(bare) -> None:
    bare.edge.invite("leg", number="1002", listener="node-agent")
    assert (await bare.told(sip.LegFailed, "leg")).status == 503


async def test_a_leg_that_moves_is_answered_before_the_app_sees_it(rig) -> None:
    channel = await rig.incoming(listener="node-resume")
    assert (await rig.seen("StasisStart", channel)).channel.state == "Up"
    await rig.told(sip.LegAnswered, "leg")


async def test_a_leg_that_moves_is_ended_without_an_app(bare) -> None:
    bare.edge.invite("leg", number="1002", listener="node-resume")
    await bare.told(sip.LegAnswered, "leg")
    assert (await bare.told(sip.LegEnded, "leg")).cause == "bye"


async def test_an_app_that_comes_in_time_gets_the_waiting_call(bare) -> None:
    for attempt in range(ATTEMPTS_MAX):
        leg = f"leg{attempt}"
        bare.edge.invite(leg)
        await bare.told(sip.LegRinging, leg)
        await bare.register()
        await bare.until(
            "somebody takes it",
            lambda leg=leg: bare.named("StasisStart") or bare.edge.of(sip.LegAnswered, leg),
        )
        if bare.named("StasisStart"):
            assert not bare.edge.of(sip.LegAnswered, leg)
            return
        await bare.unregister()
    pytest.fail("never in time")


async def test_a_channel_sent_back_goes_where_it_is_told(rig) -> None:
    channel = await rig.incoming()
    where = {"channelId": channel, "context": "from-trunk", "extension": "6000"}
    assert isinstance(await rig.do("channels.continueInDialplan", **where, priority="1"), Done)
    await rig.seen("StasisStart", channel, times=2)
    assert rig.order(channel, "StasisStart", "StasisEnd") == ["StasisStart", "StasisEnd", "StasisStart"]
    assert isinstance(await rig.do("channels.continueInDialplan", **where, label="apology"), Done)
    await rig.told(sip.LegAnswered, "leg")
    await rig.until("it is told", lambda: rig.apologised("leg"))
    await rig.told(sip.LegEnded, "leg")


async def test_a_channel_sent_on_with_nothing_left_is_hung_up(rig) -> None:
    channel = await rig.incoming()
    await rig.do("channels.answer", channelId=channel)
    await rig.told(sip.LegAnswered, "leg")
    await rig.do("channels.continueInDialplan", channelId=channel)
    await rig.told(sip.LegEnded, "leg")
    assert await rig.channels() == []


@pytest.mark.parametrize("who", ["dialplan", "edge"])
async def test_who_ends_a_channel_that_the_dialplan_has_is_told(rig, who: str) -> None:
    channel = await rig.incoming()
    await rig.do("channels.answer", channelId=channel)
    await rig.told(sip.LegAnswered, "leg")
    source = f"channel:{channel}"
    await rig.do("applications.subscribe", applicationName="ari-ha", eventSource=source)
    where = {"channelId": channel, "context": "from-trunk", "extension": "6000", "label": "apology"}
    assert isinstance(await rig.do("channels.continueInDialplan", **where), Done)
    if who == "edge":
        rig.edge.hangup("leg")
    await rig.seen("ChannelDestroyed", channel)
    requests = rig.named("ChannelHangupRequest", channel)
    assert any(not request.soft for request in requests) == (who == "edge")


async def test_a_channel_outside_the_app_takes_no_orders(bare) -> None:
    bare.edge.invite("leg")
    await bare.told(sip.LegRinging, "leg")
    (channel,) = await bare.channels()
    for order in ("answer", "ring", "continueInDialplan", "startMoh"):
        refused = await bare.do(f"channels.{order}", channelId=channel)
        assert isinstance(refused, Refused) and refused.code == 409, order
    assert isinstance(await bare.do("channels.hangup", channelId=channel), Done)


async def test_create_then_dial_carries_the_token_and_follows_the_phone(rig) -> None:
    channel = await rig.dial()
    invited = await rig.told(sip.InviteReceived)
    assert invited.request.get(HEADER) == "signed" and invited.flow.listener == "node-trunk"
    assert rig.order(channel, "StasisStart", "ChannelStateChange") == ["StasisStart"]
    rig.edge.ring(invited.leg)
    await rig.until("it rings", lambda: "RINGING" in dial_states(rig))
    rig.edge.answer(invited.leg)
    await rig.until("it is answered", lambda: "ANSWER" in dial_states(rig))
    assert [event.dialstatus for event in rig.named("Dial")] == ["", "RINGING", "ANSWER"]
    states = [e.channel.state for e in rig.named("ChannelStateChange", channel)]
    assert states == ["Ringing", "Up"]


ENDS = ("ChannelHangupRequest", "StasisEnd", "ChannelDestroyed")
SOFT = 32, 0, True
"""What a ChannelHangupRequest says when this Asterisk ends it: the cause comes when it is gone."""


def hangup_of(rig, channel: str) -> tuple[int, int, bool]:
    """What the first request to hang it up said."""
    request = rig.named("ChannelHangupRequest", channel)[0]
    return request.cause, request.tech_cause, request.soft


def dial_states(rig) -> list[str]:
    """Without the first of them, which says that it begins."""
    return [event.dialstatus for event in rig.named("Dial") if event.dialstatus]


@pytest.mark.parametrize("rings", [False, True])
@pytest.mark.parametrize(
    ("status", "cause"),
    [(404, 1), (408, 18), (480, 19), (486, 17), (487, 127), (488, 58), (503, 34), (600, 17), (603, 21)],
)
async def test_a_refused_dial_ends_with_its_cause(rig, status: int, cause: int, rings: bool) -> None:
    """No Dial event says so: the channel's end does."""
    channel = await rig.dial()
    leg = (await rig.told(sip.InviteReceived)).leg
    if rings:
        rig.edge.ring(leg)
        await rig.until("it rings", lambda: "RINGING" in dial_states(rig))
    rig.edge.reject(leg, status)
    gone = await rig.seen("ChannelDestroyed", channel)
    assert (gone.cause, gone.tech_cause) == (cause, status)
    assert rig.order(channel, *ENDS) == list(ENDS)
    assert hangup_of(rig, channel) == (cause, status, False)
    assert dial_states(rig) == (["RINGING"] if rings else [])


async def test_a_dial_nobody_answers_ends_by_asterisks_own_limit(rig) -> None:
    channel = await rig.dial(timeout=2)
    await rig.told(sip.InviteReceived)
    await rig.told(sip.LegCancelled)
    gone = await rig.seen("ChannelDestroyed", channel)
    assert (gone.cause, gone.tech_cause) == (19, 480) and hangup_of(rig, channel) == SOFT
    assert await rig.channels() == []


async def test_a_dial_taken_back(rig) -> None:
    channel = await rig.dial()
    rig.edge.ring((await rig.told(sip.InviteReceived)).leg)
    await rig.until("it rings", lambda: "RINGING" in dial_states(rig))
    assert isinstance(await rig.do("channels.hangup", channelId=channel, reason_code="16"), Done)
    await rig.told(sip.LegCancelled)
    gone = await rig.seen("ChannelDestroyed", channel)
    assert (gone.cause, gone.tech_cause) == (16, 0) and hangup_of(rig, channel) == SOFT
    assert rig.order(channel, *ENDS) == list(ENDS)


@pytest.mark.parametrize("who", ["us", "them"])
async def test_a_dialled_call_that_was_answered_ends(rig, who: str) -> None:
    channel = await rig.dial()
    leg = (await rig.told(sip.InviteReceived)).leg
    rig.edge.answer(leg)
    await rig.until("it is answered", lambda: "ANSWER" in dial_states(rig))
    if who == "us":
        await rig.do("channels.hangup", channelId=channel, reason_code="16")
        assert (await rig.told(sip.LegEnded, leg)).cause == "bye"
    else:
        await rig.told(sip.LegAcked, leg)
        rig.edge.hangup(leg)
    gone = await rig.seen("ChannelDestroyed", channel)
    assert (gone.cause, gone.tech_cause) == (16, 0)
    assert hangup_of(rig, channel) == (SOFT if who == "us" else (0, 0, False))
    assert rig.order(channel, *ENDS) == list(ENDS)


@pytest.mark.parametrize("ends", ["snoop", "target"])
async def test_of_a_snoop_nothing_is_heard_after_it_has_left_the_app(rig, ends: str) -> None:
    target, snoop = await rig.incoming(), rig.new("snoop")
    await rig.do("channels.answer", channelId=target)
    params = {"channelId": target, "snoopId": snoop, "spy": "both", "whisper": "none", "app": "ari-ha"}
    made = await rig.do("channels.snoopChannelWithId", **params, appArgs="snoop")
    assert isinstance(made, Done)
    assert (await rig.seen("StasisStart", snoop)).args == ["snoop"]
    again = await rig.do("channels.snoopChannelWithId", **params, appArgs="snoop")
    assert isinstance(again, Refused)
    await rig.do("channels.hangup", channelId=snoop if ends == "snoop" else target)
    await rig.seen("StasisEnd", snoop)
    await rig.quiet()
    assert rig.order(snoop, *ENDS) == (list(ENDS[:2]) if ends == "snoop" else ["StasisEnd"])


async def test_a_label_that_is_not_there_is_refused(rig) -> None:
    channel = await rig.incoming()
    where = {"channelId": channel, "context": "from-trunk", "extension": "6000", "label": "nowhere"}
    refused = await rig.do("channels.continueInDialplan", **where)
    assert isinstance(refused, Refused) and refused.code == 404
    assert isinstance(await rig.do("channels.ring", channelId=channel), Done), "it is in the app still"


async def test_ids_are_ours_and_taken_once(rig) -> None:
    bridge = rig.new("b")
    made = await rig.do("bridges.createWithId", bridgeId=bridge, type="mixing", name="n")
    assert (made.value.id, made.value.name) == (bridge, "n")
    again = await rig.do("bridges.createWithId", bridgeId=bridge, type="mixing", name="other")
    assert isinstance(again, Refused) and again.code == 409
    assert await rig.do("channels.answer", channelId="nobody") == Refused("Channel not found", 404)
    assert (await rig.do("bridges.destroy", bridgeId="nobody")).code == 404
    channel = await rig.dial()
    endpoint = f"PJSIP/edge-out/sip:a1@{rig.edge_uri}"
    assert (await rig.do("channels.create", channelId=channel, app="ari-ha", endpoint=endpoint)).code == 409


async def test_adding_a_lost_channel_does_nothing_by_halves(rig) -> None:
    channel, bridge = await rig.incoming(), rig.new("b")
    await rig.do("bridges.createWithId", bridgeId=bridge, type="mixing,dtmf_events")
    assert (await rig.do("bridges.addChannel", bridgeId=bridge, channel=f"{channel},gone")).code == 400
    assert (await rig.do("bridges.get", bridgeId=bridge)).value.channels == []
    assert isinstance(await rig.do("bridges.addChannel", bridgeId=bridge, channel=channel), Done)
    await rig.seen("ChannelEnteredBridge", channel)
    assert (await rig.do("bridges.get", bridgeId=bridge)).value.channels == [channel]
    assert isinstance(await rig.do("bridges.addChannel", bridgeId=bridge, channel=channel), Done)
    await rig.seen("ChannelEnteredBridge", channel, times=2)
    moves = ("ChannelEnteredBridge", "ChannelLeftBridge")
    assert rig.order(channel, *moves) == [moves[0], moves[1], moves[0]], "out and in again"
    assert await rig.do("bridges.removeChannel", bridgeId=bridge, channel=channel) == Done(None)
    await rig.seen("ChannelLeftBridge", channel, times=2)
    assert (await rig.do("bridges.removeChannel", bridgeId=bridge, channel=channel)).code == 422


async def test_a_bridge_that_goes_leaves_its_channels(rig) -> None:
    channel, bridge = await rig.incoming(), rig.new("b")
    await rig.do("channels.answer", channelId=channel)
    await rig.do("bridges.createWithId", bridgeId=bridge, type="mixing,dtmf_events")
    await rig.do("bridges.addChannel", bridgeId=bridge, channel=channel)
    await rig.seen("ChannelEnteredBridge", channel)
    assert isinstance(await rig.do("bridges.destroy", bridgeId=bridge), Done)
    await rig.seen("ChannelLeftBridge", channel)
    assert await rig.channels() == [channel] and not rig.named("StasisEnd", channel)


@pytest.mark.parametrize(("kind", "shown"), [("mixing", False), ("mixing,dtmf_events", True)])
async def test_a_plain_mixing_bridge_of_two_hides_digits(rig, kind: str, shown: bool) -> None:
    bridge = rig.new("b")
    await rig.do("bridges.createWithId", bridgeId=bridge, type=kind)
    pair = []
    for leg in ("one", "two"):
        pair.append(await rig.incoming(leg))
        await rig.do("channels.answer", channelId=pair[-1])
        await rig.told(sip.LegAnswered, leg)
    await rig.press("one", "1")
    assert (await rig.seen("ChannelDtmfReceived", pair[0])).digit == "1"
    for channel in pair:
        await rig.do("bridges.addChannel", bridgeId=bridge, channel=channel)
        await rig.seen("ChannelEnteredBridge", channel)
    await rig.press("one", "2")
    if shown:
        await rig.seen("ChannelDtmfReceived", pair[0], times=2)
    else:
        await rig.quiet()
    assert [event.digit for event in rig.named("ChannelDtmfReceived")] == (["1", "2"] if shown else ["1"])


async def test_variables(rig) -> None:
    channel = await rig.incoming()
    missing = await rig.do("channels.getChannelVar", channelId=channel, variable="HA_NONE")
    assert isinstance(missing, Refused) and missing.code == 404
    assert await rig.do("channels.setChannelVar", channelId=channel, variable="X", value="a,b") == Done(None)
    assert (await rig.do("channels.getChannelVar", channelId=channel, variable="X")).value.value == "a,b"


async def test_channels_outlive_the_app_and_are_in_the_next_snapshot(rig) -> None:
    channel = await rig.incoming()
    await rig.do("channels.setChannelVar", channelId=channel, variable="HA_CALL", value="k1")
    await rig.unregister()
    before = len(rig.events)
    (found,) = await rig.register()
    assert found.id == channel and found.channelvars["HA_CALL"] == "k1"
    assert rig.events[before:] == []
    assert isinstance(await rig.do("channels.answer", channelId=channel), Done)
    await rig.told(sip.LegAnswered, "leg")


async def test_a_killed_asterisk_says_nothing_and_forgets_everything(rig) -> None:
    await rig.incoming()
    was, count = await rig.incarnation(), len(rig.events)
    await rig.kill()
    assert list(await rig.start()) == []
    assert await rig.channels() == [] and await rig.incarnation() != was
    assert len(rig.events) == count and not rig.edge.of(sip.LegEnded)


async def test_a_frozen_asterisk_answers_when_it_wakes(rig) -> None:
    await rig.freeze()
    try:
        rig.edge.invite("leg")
        await rig.quiet()
        assert not rig.named("StasisStart")
    finally:
        await rig.thaw()
    await rig.seen("StasisStart")
    await rig.quiet()
    assert len(rig.named("StasisStart")) == 1


@pytest.fixture
async def closed(rig):
    """An Asterisk with a call, told to take no new ones."""
    await rig.incoming("before")
    assert await rig.maintain("edge-in-trunk", on=True) == Done()
    yield rig
    await rig.maintain("edge-in-trunk", on=False)


async def test_in_maintenance_a_new_call_is_refused_before_anybody_hears_of_it(closed) -> None:
    count = len(closed.events)
    closed.edge.invite("leg", X_ARI_HA_Fallback="no")
    failed = await closed.told(sip.LegFailed, "leg")
    assert failed.status == 503 and ("retry-after", "300") in [(n.lower(), v) for n, v in failed.headers]
    await closed.quiet()
    assert len(closed.events) == count and len(await closed.channels()) == 1


async def test_in_maintenance_calls_that_live_there_go_on(closed) -> None:
    (channel,) = await closed.channels()
    await closed.do("channels.answer", channelId=channel)
    await closed.told(sip.LegAnswered, "before")
    agent = await closed.dial()
    closed.edge.answer((await closed.told(sip.InviteReceived)).leg)
    await closed.until("the agent answered", lambda: "ANSWER" in dial_states(closed))
    assert agent in await closed.channels()
    consult = await closed.incoming("consult", number="1002", listener="node-agent")
    assert (await closed.seen("StasisStart", consult)).args[0] == "agent"
    closed.edge.hangup("before")
    await closed.seen("StasisEnd", channel)


async def test_in_maintenance_a_leg_that_moves_is_taken(closed) -> None:
    moved = await closed.incoming("moved", listener="node-resume")
    assert (await closed.seen("StasisStart", moved)).args[0] == "resume"
    await closed.told(sip.LegAnswered, "moved")


async def test_maintenance_is_taken_away_and_both_may_be_said_twice(closed) -> None:
    assert await closed.maintain("edge-in-trunk", on=True) == Done()
    for _ in range(2):
        assert await closed.maintain("edge-in-trunk", on=False) == Done()
    await closed.incoming("after")


async def test_maintenance_is_forgotten_when_asterisk_dies(closed) -> None:
    await closed.kill()
    await closed.start()
    await closed.incoming("after")


async def test_an_endpoint_nobody_knows_is_said_and_the_others_are_closed(rig) -> None:
    outcome = await rig.maintain("nobody", on=True)
    assert isinstance(outcome, Refused) and outcome.code == NO_ENDPOINT and "nobody" in outcome.reason


@pytest.mark.parametrize("bare", [pytest.param("real", marks=pytest.mark.lab)], indirect=True)
async def test_an_asterisk_without_the_module_says_so(rig) -> None:
    await rig.kill()  # once an endpoint was in maintenance, Asterisk does not let the module go
    await rig.start()
    socket = str(rig.asterisk.control_socket)
    said = await command(socket, "module unload res_pjsip_maintenance.so")
    try:
        outcome = await rig.maintain("edge-in-trunk", on=True)
        assert isinstance(outcome, Refused) and outcome.code == NO_COMMAND, (outcome, said)
    finally:
        await command(socket, "module load res_pjsip_maintenance.so")
    assert await rig.maintain("edge-in-trunk", on=False) == Done()
