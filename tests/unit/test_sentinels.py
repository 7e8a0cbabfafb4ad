"""RTP of a node's calls as a witness: what it sees, and all that must not fool it."""

from __future__ import annotations

import dataclasses

import pytest

from ari_ha.core.machine import Done, Note, OutcomeOf, ShellStall, Unknown
from ari_ha.core.ports.link import LinkDown
from ari_ha.core.ports.media import MediaReach
from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.machines import sentinels
from ari_ha.machines.media import packets_from
from ari_ha.machines.sentinels import BY_MUSIC, BY_TALK, Sample, Sentinel, fit
from ari_ha.runtime.settings import SettingsError
from ari_ha.sip import events as sip
from ari_ha.wire import link
from ari_ha.wire.keyspace import RecordValue, encode
from sidecars.edge.settings import Core, EdgeSettings, Etcd, Link, Public
from tests.support.edge_world import EdgeWorld

PER_S = 50
STEADY_S = 3.0
"""Long enough for a sentinel to be believed."""


class Rtp:
    """Who sends: everybody 50 packets a second, but those who have stopped."""

    def __init__(self, world: EdgeWorld) -> None:
        self.world = world
        self.sent: dict[tuple[str, str], tuple[float, float, bool]] = {}
        """(call, tag) -> packets until then, then, sends since"""
        world.packets = self.count

    def count(self, call: str, tag: str) -> int:
        sent, since, sends = self.sent.setdefault((call, tag), (0.0, self.world.now, True))
        return round(sent + (self.world.now - since) * PER_S * sends)

    def turn(self, sends: bool, call: str, *tags: str) -> None:
        for tag in tags:
            self.sent[call, tag] = (self.count(call, tag), self.world.now, sends)

    def asterisk(self, call, sends: bool = False) -> None:
        """All node legs of the call."""
        self.turn(sends, call.call, *[half.tag for half in call.halves.values()])


@pytest.fixture
def world() -> EdgeWorld:
    return EdgeWorld().with_users("1001", "1002", "1003", "1004")


@pytest.fixture
def rtp(world) -> Rtp:
    return Rtp(world)


def talk(world: EdgeWorld, user: str, state: str = "through", node: str = "ast1"):
    """Two people on one call, at the node named."""
    alone = caller(world, node)
    phone = world.register(user)
    world.dial(world.nodes[node], alone, "a1", user)
    ringing = phone.of(sip.InviteReceived)[-1]
    phone.sip.ring(ringing.leg, world.now)
    phone.sip.answer(ringing.leg, phone.sdp(), world.now)
    world.settle()
    world.say(
        world.nodes[node], link.WantMedia(call=alone.call, epoch=str(alone.epoch), state=state, request=1)
    )
    world.settle()
    assert alone.media.state == state
    return alone


def caller(world: EdgeWorld, node: str = "ast1"):
    """A caller alone at the node named."""
    for other in world.nodes.values():
        world.say(other, link.NodeState(ready=True, asterisk="up", cordoned=other.name != node))
    _, call = world.call_in()
    for other in world.nodes.values():
        world.say(other, link.NodeState(ready=True, asterisk="up"))
    assert call.owner.name == node
    return call


def told(world: EdgeWorld, text: str) -> list[Note]:
    return [note for note in world.notes if note.text == text]


def state(world: EdgeWorld, node: str = "ast1") -> str:
    return world.edge.watch.nodes[node].state


def asked(world: EdgeWorld) -> int:
    return sum(command.command == "query" for command in world.ng)


# --- what it is good for -----------------------------------------------------------


def test_alone_it_connects_two_people_directly_and_takes_that_back(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    assert world.edge.watch.sentinels.view("ast1") == {"rtp": "flows", "sentinels": [call.call]}
    rtp.asterisk(call)
    world.run(0.3)
    assert call.media.state == "hitless" and {("c", "a1"), ("a1", "c")} <= world.hears[call.call]
    assert call.owner.name == "ast1" and state(world) == "up" and world.edge.watch.nodes["ast1"].usable
    assert told(world, "RTP has stopped")[0].subject == "node/ast1"
    world.run(5.0)
    assert call.owner.name == "ast1", "one witness moves nobody"
    rtp.asterisk(call, True)
    world.run(0.2)
    assert call.media.state == "through" and told(world, "RTP flows again")


def test_a_node_whose_rtp_stopped_is_used_last(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    rtp.asterisk(call)
    world.run(0.3)
    for _ in range(4):
        assert world.call_in()[1].owner.name != "ast1"


def test_beside_options_the_node_is_lost_before_the_link_falls_silent(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    struck, world.nodes["ast1"].silent = world.now, True
    rtp.asterisk(call)
    world.run(0.3)
    assert call.media.state == "hitless", "known before OPTIONS are"
    world.run(1.0)
    lost = world.edge.watch.nodes["ast1"]
    assert lost.lost_why == "silent (OPTIONS and RTP)" and call.owner.name != "ast1"
    timings = world.edge.context.timings
    assert lost.lost_at - struck < timings.silence_s + 2 * timings.probe_interval_s


def test_in_hitless_it_is_looked_at_closely_only_when_options_are_late(world, rtp):
    call = talk(world, "1001", "hitless")
    world.run(STEADY_S)
    before, now = asked(world), world.now
    world.run(5.0)
    assert asked(world) - before <= 6
    world.nodes["ast1"].silent = True
    rtp.asterisk(call)
    now = world.now
    world.run(1.0)
    lost = world.edge.watch.nodes["ast1"]
    assert lost.lost_why == "silent (OPTIONS and RTP)" and lost.lost_at - now < 0.6


def test_a_caller_alone_who_hears_music_is_a_witness_beside_options(world, rtp):
    call = caller(world)
    world.run(STEADY_S)
    world.nodes["ast1"].silent = True
    rtp.asterisk(call)
    world.run(1.0)
    assert world.edge.watch.nodes["ast1"].lost_why == "silent (OPTIONS and RTP)"


def test_beside_the_apps_ping_it_loses_a_node_that_still_answers_options(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    rtp.asterisk(call)
    world.say(world.nodes["ast1"], link.NodeState(ready=False, asterisk="silent", reason="ARI ping"))
    world.run(0.3)
    assert state(world) == "up", "as long as OPTIONS would have to be silent"
    world.run(0.4)
    assert world.edge.watch.nodes["ast1"].lost_why == "silent (RTP and app's ARI ping)"
    assert call.owner.name != "ast1"


def test_a_frozen_node_without_calls_still_needs_another_witness(world, rtp):
    world.nodes["ast1"].silent = True
    world.run(3.0)
    assert state(world) == "silent"
    world.post(LinkDown(peer="ast1", clean=False, reason="silence"))
    world.run(0.3)
    assert state(world) == "lost"


# --- what must not fool it ---------------------------------------------------------


def test_all_sentinels_must_have_stopped(world, rtp):
    one, two = talk(world, "1001"), talk(world, "1002")
    world.run(STEADY_S)
    rtp.asterisk(one)
    world.run(3.0)
    assert not told(world, "RTP has stopped") and one.media.state == "through"
    rtp.asterisk(two)
    world.run(0.4)
    assert len(told(world, "RTP has stopped")) == 1 and two.media.state == "hitless"


def test_one_direction_is_enough_to_live(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    rtp.turn(False, call.call, "c@ast1.1")
    world.run(3.0)
    assert not told(world, "RTP has stopped")


def test_phones_that_send_nothing_explain_an_asterisk_that_sends_nothing(world, rtp):
    """Comfort silence: nothing comes in, so nothing goes out."""
    call = talk(world, "1001")
    world.run(STEADY_S)
    rtp.asterisk(call)
    rtp.turn(False, call.call, "c", "a1")
    world.run(3.0)
    assert not told(world, "RTP has stopped")


@pytest.mark.parametrize("what", ["held", "muted", "ended", "moved", "three"])
def test_a_call_that_changed_does_not_count(world, rtp, what):
    """Asterisk falls silent in it at the same instant, and by right."""
    call, other = talk(world, "1001"), talk(world, "1002")
    world.run(STEADY_S)
    rtp.asterisk(other)
    rtp.asterisk(call)
    match what:
        case "held":
            call.legs["a1"].held = True
        case "muted":
            world.edge.calls.mute(call, call.legs["c"], True)
        case "ended":
            world.say(
                world.nodes["ast1"], link.EndLeg(call=call.call, leg="c", epoch=str(call.epoch), cause="16")
            )
        case "moved":
            for node in world.nodes.values():
                node.auto_bridge = False
            world.edge.takeover.move(call, "test")
        case "three":
            world.register("1003")
            world.dial(world.nodes["ast1"], call, "a2", "1003")
            phone = world.phones["1003"]
            phone.sip.answer(phone.of(sip.InviteReceived)[-1].leg, phone.sdp(), world.now)
    rtp.asterisk(other, True)
    world.settle()
    world.run(2.0)
    assert not told(world, "RTP has stopped")
    assert world.edge.watch.sentinels.view("ast1")["sentinels"] == [other.call]


def test_a_caller_alone_may_hear_nothing_by_right(world, rtp):
    """Music that has a pause, in both calls of the node, while Asterisk answers."""
    calls = [caller(world), caller(world)]
    world.run(STEADY_S)
    for call in calls:
        rtp.asterisk(call)
    world.run(3.0)
    assert not told(world, "RTP has stopped")
    assert world.edge.watch.sentinels.view("ast1") == {"rtp": "", "sentinels": []}
    world.nodes["ast1"].silent = True
    world.run(2.0)
    assert state(world) == "silent", "no witness beside OPTIONS"


def test_a_caller_alone_is_no_witness_by_himself(world, rtp):
    """Though he is looked at closely, for those who have just begun to talk through the node."""
    alone = caller(world)
    world.run(STEADY_S)
    new = talk(world, "1001")
    for half in new.halves.values():
        rtp.turn(False, new.call, half.tag)
    world.run(0.5)
    rtp.asterisk(alone)
    world.run(3.0)
    assert not told(world, "RTP has stopped")


def test_who_sends_nothing_makes_room_for_who_does(world, rtp):
    quiet = [caller(world) for _ in range(3)]
    for call in quiet:
        rtp.asterisk(call)
    steady = caller(world)
    world.run(8.0)
    assert steady.call in world.edge.watch.sentinels.view("ast1")["sentinels"]


def test_a_call_just_begun_does_not_count(world, rtp):
    call = talk(world, "1001")
    world.run(0.3)
    rtp.asterisk(call)
    world.run(3.0)
    assert not told(world, "RTP has stopped")


def test_a_new_call_that_flows_speaks_for_its_node(world, rtp):
    old = talk(world, "1001")
    world.run(STEADY_S)
    new = talk(world, "1002")
    for _ in range(60):
        if any((c.command, c.body["call-id"]) == ("query", new.call) for c in world.ng):
            break
        world.run(0.02)
    world.run(0.3)
    assert world.edge.watch.sentinels.view("ast1")["sentinels"] == [old.call], "not believed yet"
    rtp.asterisk(old)
    world.run(0.7)
    assert not told(world, "RTP has stopped")
    rtp.asterisk(new)
    world.run(0.5)
    assert told(world, "RTP has stopped")


def test_a_stalled_edge_does_not_judge(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    rtp.asterisk(call)
    for _ in range(6):
        world.run(0.14)
        world.post(ShellStall(lag_s=0.12))
    assert not told(world, "RTP has stopped") and call.media.state == "through"
    world.run(0.4)
    assert told(world, "RTP has stopped")


def test_a_stall_does_not_unsay_it(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    rtp.asterisk(call)
    world.run(0.4)
    world.post(ShellStall(lag_s=0.5))
    world.run(1.0)
    assert call.media.state == "hitless" and not told(world, "RTP flows again")


def test_a_late_look_starts_anew(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    rtp.asterisk(call)
    world.run(0.12)
    world.now += 0.2  # nobody ran, and no shell noticed
    world.run(0.1)
    assert not told(world, "RTP has stopped")
    world.run(0.4)
    assert told(world, "RTP has stopped")


def test_a_relay_that_does_not_answer_says_nothing(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    world.ng_refuse = lambda command: command.command == "query"
    rtp.asterisk(call)
    world.run(3.0)
    assert not told(world, "RTP has stopped")
    assert world.edge.watch.sentinels.view("ast1")["rtp"] == ""
    world.ng_refuse = lambda command: False
    world.run(0.5)
    assert told(world, "RTP has stopped"), "what it says afterwards counts"
    world.post(MediaReach(reachable=False, why="test"))
    before = asked(world)
    world.run(2.0)
    assert asked(world) == before and told(world, "RTP: nothing known any more")


def test_a_relay_that_began_anew_counts_from_nothing(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    for key in list(rtp.sent):
        rtp.sent[key] = (0.0, world.now, not key[1].endswith("@ast1.1"))
    world.run(3.0)
    assert not told(world, "RTP has stopped")
    assert call.media.state == "through"


def test_one_question_is_open_at_a_time(world, rtp):
    talk(world, "1001"), talk(world, "1002")
    world.run(STEADY_S)
    questions, real = [], world.perform

    def perform(effect):
        if getattr(effect, "command", "") == "query":
            questions.append(effect)
        else:
            real(effect)

    world.perform = perform
    world.run(1.5)
    assert len(questions) == 1
    world.post(OutcomeOf(effect=questions[0], outcome=Unknown("no reply")))
    world.run(0.2)
    assert len(questions) == 2


def test_questions_of_all_nodes_together_are_bounded(world, rtp):
    for n, node in enumerate(world.nodes, 1):
        talk(world, f"100{n}", node=node)
    world.run(STEADY_S)
    context = world.edge.context
    before = asked(world)
    world.run(5.0)
    close = asked(world) - before
    assert close > 5 * 2 * 1 / context.timings.rtp_poll_s, "people talk through: looked at closely"
    context.timings = dataclasses.replace(context.timings, rtp_queries_per_second_max=15.0)
    world.run(1.0)
    before = asked(world)
    world.run(10.0)
    assert asked(world) - before <= 10 * (15 + 3 / context.timings.rtp_idle_poll_s) * 1.1


def test_more_than_half_of_the_nodes_together_lose_nobody(world, rtp):
    calls = [talk(world, f"100{n}", node=node) for n, node in enumerate(world.nodes, 1)]
    world.run(STEADY_S)
    for call in calls:
        rtp.asterisk(call)
    for node in world.nodes.values():
        node.silent = True
    world.run(0.5)
    assert {call.media.state for call in calls} == {"hitless"}, "it costs nothing"
    world.run(2.0)
    assert {state(world, node) for node in world.nodes} == {"silent"}


def test_a_healthy_neighbour_is_not_blamed(world, rtp):
    one, two = talk(world, "1001"), talk(world, "1002", node="ast2")
    world.run(STEADY_S)
    world.nodes["ast1"].silent = True
    rtp.asterisk(one)
    world.run(1.0)
    assert state(world, "ast1") == "lost" and state(world, "ast2") == "up"
    assert {note.subject for note in told(world, "RTP has stopped")} == {"node/ast1"}
    assert two.owner.name == "ast2" and two.media.state == "through"


def test_a_node_that_is_back_is_looked_at_anew(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    world.nodes["ast1"].silent = True
    rtp.asterisk(call)
    world.run(1.0)
    world.nodes["ast1"].silent = False
    world.run(1.0)
    assert state(world) == "up"
    again = talk(world, "1002")
    world.run(STEADY_S)
    assert world.edge.watch.sentinels.view("ast1") == {"rtp": "flows", "sentinels": [again.call]}


def test_it_can_be_left_out(world, rtp):
    config = world.config()
    timings = dataclasses.replace(config.timings, rtp_sentinels_max=0)
    world.config = lambda: dataclasses.replace(config, timings=timings)
    world.boot()
    before = asked(world)
    call = talk(world, "1001")
    world.run(STEADY_S)
    rtp.asterisk(call)
    world.run(2.0)
    assert asked(world) == before and call.media.state == "through"


def test_people_see_what_it_says(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    replies = world.edge.handle(OperatorRequest(request="r", verb="nodes", args={}), world.now)
    rows = {row["node"]: row for row in next(r for r in replies if isinstance(r, OperatorReply)).body}
    assert rows["ast1"]["rtp"] == "flows" and rows["ast1"]["sentinels"] == [call.call]
    assert rows["ast2"]["rtp"] == "" and rows["ast2"]["sentinels"] == []


# --- the parts ---------------------------------------------------------------------


def sample(at: float, node: int, phone: int, took: float = 0.001) -> Sample:
    return Sample(at, at + took, {"c@n.1": node, "c": phone})


def test_a_burst_in_the_middle_of_an_answer_is_one_answer():
    """The relay stood still, and what waited in its sockets is counted one socket after the other."""
    sentinel = Sentinel("k", BY_TALK, (("c@n.1", "c"),))
    for n in range(40):
        sentinel.take(sample(n * 0.05, n, n), 0.2)
    assert sentinel.steady
    sentinel.take(sample(2.3, 39, 51), 0.2)
    assert sentinel.still == 1 < sentinels.STILL_ANSWERS_MIN
    sentinel.take(sample(2.35, 52, 54), 0.2)
    assert sentinel.still == 0 and sentinel.flowing


def test_a_slow_answer_shows_packets_and_no_silence():
    sentinel = Sentinel("k", BY_TALK, (("c@n.1", "c"),))
    sentinel.take(sample(1.0, 10, 10), 0.2)
    sentinel.take(sample(1.1, 10, 15, took=0.2), 0.2)
    assert sentinel.still == 0
    sentinel.take(sample(1.4, 11, 20, took=0.2), 0.2)
    assert sentinel.flowing


def test_a_leg_that_sends_now_and_then_is_not_steady():
    """Comfort noise, one packet a second."""
    sentinel = Sentinel("k", BY_MUSIC, (("c@n.1", "c"),))
    for n in range(100):
        sentinel.take(sample(n * 0.1, n // 10, n * 5), 0.2)
    assert not sentinel.steady and sentinel.failures


def test_fit_knows_whom_asterisk_must_send_to(world, rtp):
    call = talk(world, "1001")
    assert fit(call) == (sentinels.BY_THROUGH, (("c@ast1.1", "a1"), ("a1@ast1.1", "c")))
    call.media.state = "hitless"
    assert fit(call)[0] == BY_TALK
    call.tombstones |= {f"a{n}": "phone" for n in range(2, 20)}
    assert fit(call) is None, "rtpengine's answer would be long"
    alone = caller(world)
    assert fit(alone) == (BY_MUSIC, (("c@ast1.1", "c"),))
    key = world.edge.context.keys.record(alone.call)
    for stage, kind in (("ivr", None), ("queued", BY_MUSIC)):
        record = RecordValue(call=alone.call, epoch=str(alone.epoch), node="ast1", stage=stage)
        world.edge.calls.record_stored(key, encode(record))
        assert (fit(alone) or [None])[0] == kind
    alone.by_dialplan = True
    assert fit(alone) is None


@pytest.mark.parametrize(
    "reply",
    [None, {}, {"tags": {}}, {"tags": {"c": {}}}, {"tags": {"c": {"medias": []}}}, {"tags": []},
     {"tags": {"c": {"medias": [{"streams": []}]}}},
     {"tags": {"c": {"medias": [{"streams": [{"stats": {"packets": "many"}}]}]}}}],
)  # fmt: skip
def test_an_odd_answer_tells_nothing(reply):
    assert packets_from(reply, "c") is None


def test_settings_that_would_cry_wolf_are_refused():
    def settings(**timings):
        base = EdgeSettings(
            cluster="c", edge="e", vip="v", realm="r", etcd=Etcd(endpoints=("a:1",)), public=Public(host="h"),
            core=Core(host="h"), link=Link(ca_file="", cert_file="", key_file=""), header_key_file="",
            nodes={},
        )  # fmt: skip
        return dataclasses.replace(base, timings=dataclasses.replace(base.timings, **timings))

    settings().check()
    settings(rtp_stop_s=0.15, silence_s=0.3).check()
    with pytest.raises(SettingsError, match="rtp_stop_s"):
        settings(rtp_stop_s=0.1).check()
    with pytest.raises(SettingsError, match="rtp_queries_per_second_max"):
        settings(rtp_queries_per_second_max=0.0).check()


def test_an_answer_that_comes_after_the_call_ended_is_dropped(world, rtp):
    call = talk(world, "1001")
    world.run(STEADY_S)
    questions, real = [], world.perform
    world.perform = lambda effect: (
        questions.append(effect) if getattr(effect, "command", "") == "query" else real(effect)
    )
    world.run(0.1)
    world.perform = real
    world.say(world.nodes["ast1"], link.EndLeg(call=call.call, leg="c", epoch=str(call.epoch), cause="16"))
    world.post(OutcomeOf(effect=questions[0], outcome=Done({"result": "ok", "tags": {}})))
    world.run(2.0)
    assert world.edge.watch.sentinels.view("ast1") == {"rtp": "", "sentinels": []}
