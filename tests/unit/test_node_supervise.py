"""Supervisors: heard by those they should be, restored by a survivor, in nobody's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ari_ha.core.machine import Done, Refused, Unreachable
from ari_ha.core.ports.ari import AriDown, AriEvent
from ari_ha.core.ports.store import StoreChanged
from ari_ha.machines.node_supervise import RETRY_MAX_S
from ari_ha.wire import ari, link
from ari_ha.wire.keyspace import SupervisorValue, UserValue
from tests.support.node_bench import Bench
from tests.unit.test_node_outbound import agent_dials

MODES = [("listen", "none", "hitless"), ("whisper", "out", "coach"), ("barge", "both", "through")]
"""Mode, into whom the supervisor speaks, and the media that needs."""


def order(bench: Bench, mode: str, since: float = 1.0, call: str = "k1", agent: str = "1001") -> None:
    """Somebody writes the call's key."""
    value = SupervisorValue(call=call, mode=mode, device="1060", by="boss", agent=agent, since=since)
    kv = bench.store.put(bench.keys.supervisor(call), value)
    bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))


def countermand(bench: Bench) -> None:
    key = bench.keys.supervisor("k1")
    del bench.store.data[key]
    bench.store.revision += 1
    bench.post(StoreChanged(key=key, value=None, revision=bench.store.revision))


def supervised(bench: Bench, mode: str) -> tuple[str, str, str]:
    """A conversation with a supervisor: the three channels."""
    customer, agent = bench.talk()
    order(bench, mode)
    (supervisor,) = bench.dialled()
    assert bench.target(supervisor) == "device:1060"
    bench.pick_up(supervisor)
    return customer, agent, supervisor


def snoops(bench: Bench) -> list[tuple[str, str]]:
    """(whom it spies on, into whom it whispers)"""
    return [(c["spies"], c["whisper"]) for c in bench.asterisk.channels.values() if "spies" in c]


def together(bench: Bench) -> list[set[str]]:
    return [members for members in bench.asterisk.bridges.values() if members]


@pytest.mark.parametrize(("mode", "whisper", "media"), MODES)
def test_each_mode_goes_where_it_should(mode: str, whisper: str, media: str) -> None:
    bench = Bench()
    customer, agent, supervisor = supervised(bench, mode)
    assert snoops(bench) == [(agent, whisper)]
    snoop = next(c for c, v in bench.asterisk.channels.items() if "spies" in v)
    assert {customer, agent} in together(bench), "the people's own bridge is as it was"
    assert {supervisor, snoop} in together(bench)
    assert not bench.operations("channels.continueInDialplan"), "a snoop is no stranger's call"
    assert bench.said(link.WantMedia)[-1].state == media


def test_nothing_is_whispered_before_the_edge_is_there() -> None:
    bench = Bench()
    bench.talk()
    bench.answers_media = False
    order(bench, "whisper")
    (supervisor,) = bench.dialled()
    bench.pick_up(supervisor)
    assert not snoops(bench)
    wish = bench.said(link.WantMedia, state="coach")[-1]
    bench.frame(link.MediaIs("k1", "7.1", "coach", wish.request))
    assert snoops(bench)


def test_an_edge_that_doubts_our_rtp_is_not_waited_for() -> None:
    """It lets the two talk without us, says so, and says nothing when it is as asked later on."""
    bench = Bench()
    _, agent = bench.talk()
    bench.answers_media = False
    order(bench, "whisper")
    (supervisor,) = bench.dialled()
    bench.pick_up(supervisor)
    wish = bench.said(link.WantMedia, state="coach")[-1]
    bench.frame(link.MediaIs("k1", "7.1", "hitless", wish.request))
    assert not snoops(bench)
    bench.sleep(1.0)
    assert snoops(bench) == [(agent, "out")]


def test_hold_wins_over_whispering() -> None:
    bench = Bench()
    _, agent, _ = supervised(bench, "whisper")
    bench.frame(link.LegHeld("k1", "a1", "7.1", True))
    assert bench.said(link.WantMedia)[-1].state == "through"
    bench.frame(link.LegHeld("k1", "a1", "7.1", False))
    assert bench.said(link.WantMedia)[-1].state == "coach"


def test_another_mode_makes_another_snoop() -> None:
    bench = Bench()
    _, agent, _ = supervised(bench, "listen")
    order(bench, "barge")
    assert snoops(bench) == [(agent, "both")]
    assert len(bench.operations("channels.create")) == 2, "nobody is rung again"


def test_the_supervisor_leaves_and_the_people_talk_on() -> None:
    bench = Bench()
    customer, agent, _ = supervised(bench, "barge")
    before = bench.agent()
    bench.gone("k1", "s1")
    assert not snoops(bench) and {customer, agent} in together(bench)
    assert bench.said(link.WantMedia)[-1].state == "hitless"
    assert bench.keys.supervisor("k1") not in bench.store.data
    assert bench.agent() == before and not bench.said(link.EndLeg)


def test_the_order_goes_and_so_does_the_supervisor() -> None:
    bench = Bench()
    supervised(bench, "listen")
    countermand(bench)
    assert [f.leg for f in bench.said(link.EndLeg)] == ["s1"] and not snoops(bench)


@pytest.mark.parametrize("leg", ["c", "a1"])
def test_the_conversation_ends_and_the_supervisor_with_it(leg: str) -> None:
    bench = Bench()
    supervised(bench, "listen")
    bench.gone("k1", leg)
    if leg == "c":
        bench.gone("k1", "a1", by="edge")
        bench.gone("k1", "s1", by="edge")
    bench.sleep(4)
    assert not bench.asterisk.channels and not together(bench)
    assert "k1" not in bench.machine.core.calls


def test_a_busy_supervisor_is_rung_again_a_few_times() -> None:
    bench = Bench()
    bench.talk()
    order(bench, "listen")
    for _ in range(6):
        ringing = bench.dialled()
        if not ringing:
            break
        bench.gone("k1", ringing[0].split(".")[1], by="edge", status=486)
        bench.sleep(1.1)
    assert len(bench.operations("channels.create")) == 1 + 4
    assert bench.keys.supervisor("k1") not in bench.store.data


@pytest.mark.parametrize(("mode", "whisper", "media"), MODES)
def test_a_survivor_restores_it(mode: str, whisper: str, media: str) -> None:
    bench = Bench()
    supervised(bench, mode)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up", "s1": "up"})
    assert bench.said(link.Bridged, epoch="7.2")
    assert snoops(bench) == [(channels["a1"], whisper)]
    wanted = bench.said(link.WantMedia, epoch="7.2")
    assert (wanted[-1].state if wanted else "hitless") == media
    assert {channels["c"], channels["a1"]} in together(bench)
    assert any(channels["s1"] in members for members in together(bench))
    assert len(bench.operations("channels.create")) == 2, "nobody is rung again"
    bench.sleep(20)
    assert len(snoops(bench)) == 1, "the sweep knows what is ours"


def test_a_supervisor_who_left_meanwhile_is_not_rung_again() -> None:
    bench = Bench()
    supervised(bench, "listen")
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"c": "up", "a1": "up"}, ended={"s1": "phone"})
    bench.sleep(2)
    assert len(bench.operations("channels.create")) == 2 and not snoops(bench)


def test_a_supervisor_is_not_given_the_name_of_one_whose_end_was_announced() -> None:
    """That one was never rung: two takeovers later only his end is in the record."""
    bench = Bench()
    bench.talk()
    record = msgspec.structs.replace(bench.record(), ending={"s1": "16"}, epoch="7.1", node="ast2#x")
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    kv = bench.store.put(bench.keys.record("k1"), record)
    bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))
    bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    order(bench, "listen")
    (supervisor,) = bench.dialled()
    assert supervisor == "k1.s2.7.2" and not set(bench.record().ending) & set(bench.record().legs)


def test_a_restart_of_the_app_keeps_it() -> None:
    bench = Bench()
    _, agent, supervisor = supervised(bench, "listen")
    (old,) = (c for c, v in bench.asterisk.channels.items() if "spies" in v)
    end = ari.StasisEnd(channel=bench.asterisk.channel(old))
    bench.restart_app()
    legs = {leg: link.LegAtEdge(state="answered") for leg in ("c", "a1", "s1")}
    bench.link({"k1": link.CallAtEdge(epoch="7.1", legs=legs)})
    bench.post(AriEvent(event=end))  # told when the next one was made already
    bench.sleep(12)
    assert snoops(bench) == [(agent, "none")] and old not in bench.asterisk.channels
    assert len(bench.operations("channels.snoopChannelWithId")) == 2
    assert any(supervisor in members and len(members) == 2 for members in together(bench))


def test_only_conversations_are_supervised() -> None:
    bench = Bench(agents=())
    bench.trunk()
    order(bench, "listen")
    assert not bench.dialled()


def test_an_order_by_http_and_its_end() -> None:
    bench = Bench()
    bench.talk()
    assert bench.ask("supervise", agent="1001", mode="listen", device="1060").status == 200
    (supervisor,) = bench.dialled()
    bench.pick_up(supervisor)
    assert snoops(bench)
    assert bench.ask("supervise", agent="1001", mode="stop").status == 200
    assert not snoops(bench)


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ({"agent": "1002", "mode": "listen", "device": "1060"}, 409),
        ({"agent": "nobody", "mode": "listen", "device": "1060"}, 404),
        ({"agent": "1001", "mode": "shout", "device": "1060"}, 422),
        ({"agent": "1001", "mode": "barge"}, 422),
    ],
)
def test_orders_that_make_no_sense(args: dict[str, str], status: int) -> None:
    bench = Bench()
    bench.talk()
    assert bench.ask("supervise", **args).status == status


@pytest.mark.parametrize(("roles", "rung"), [(["device"], False), (["device", "supervisor"], True)])
def test_a_code_of_a_supervisors_phone(roles: list[str], rung: bool) -> None:
    bench = Bench()
    bench.store.put(bench.keys.user("1060"), UserValue(user="1060", aor="1060", roles=roles))
    bench.store_back()
    bench.talk()
    token = bench.token("k2", did="*321001", user="1060", kind="agent")
    bench.own("k2")
    bench.post(AriEvent(event=bench.asterisk.enter(f"ari-ha,agent,{token},", "*321001")))
    assert bool(bench.dialled()) == rung
    assert (bench.keys.supervisor("k1") in bench.store.data) == rung


def test_a_snoop_that_ends_while_it_is_joined_is_made_again() -> None:
    """Its end is heard before the answer to the request that joins it with the supervisor."""
    bench = Bench()
    _, agent = bench.talk()
    order(bench, "listen")
    (supervisor,) = bench.dialled()
    add = bench.asterisk._bridges_addChannel

    def joins(params: Any, ident: str) -> Any:
        outcome, events = add(params, ident)
        spies = [c for c, v in bench.asterisk.channels.items() if "spies" in v and c in params["channel"]]
        for snoop in spies:
            bench.asterisk._bridges_addChannel = add
            events = [*events, *bench.asterisk.destroy(snoop)]
        for event in events:
            bench.machine.handle(event, bench.now)
        return outcome, []

    bench.asterisk._bridges_addChannel = joins
    bench.pick_up(supervisor)
    bench.sleep(1.0)
    (again,) = (c for c, v in bench.asterisk.channels.items() if "spies" in v)
    assert {supervisor, again} in together(bench) and snoops(bench) == [(agent, "none")]


def test_a_snoop_that_ends_is_made_again() -> None:
    """The last that is heard of one is that it left Stasis."""
    bench = Bench()
    _, agent, supervisor = supervised(bench, "listen")
    (snoop,) = (c for c, v in bench.asterisk.channels.items() if "spies" in v)
    bench.post(*bench.asterisk.destroy(snoop))
    (again,) = (c for c, v in bench.asterisk.channels.items() if "spies" in v)
    assert again != snoop and {supervisor, again} in together(bench) and snoops(bench) == [(agent, "none")]


def test_whoever_has_left_may_be_asked_again() -> None:
    bench = Bench()
    _, agent, _ = supervised(bench, "listen")
    bench.gone("k1", "s1")
    order(bench, "barge", since=2.0)
    (again,) = bench.dialled()
    bench.pick_up(again)
    assert snoops(bench) == [(agent, "both")]


def supervised_and_lost(bench: Bench) -> Callable[[], None]:
    """A whispering supervisor's Asterisk died, and whoever takes the call up has nothing of his order in its
    mirror: until what is returned is called."""
    supervised(bench, "whisper")
    key = bench.keys.supervisor("k1")
    kv = bench.store.data[key]
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.post(StoreChanged(key=key, value=None, revision=kv.mod_revision))
    bench.own("k1", epoch="7.2")
    return lambda: bench.post(StoreChanged(key=key, value=kv, revision=kv.mod_revision))


def test_a_supervisor_stays_where_his_order_is_not_read_yet() -> None:
    """The mirror of whoever takes the call up may be behind."""
    bench = Bench()
    order_read = supervised_and_lost(bench)
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up", "s1": "up"})
    bench.sleep(1.0)
    assert not bench.said(link.EndLeg) and not snoops(bench)
    order_read()
    assert snoops(bench) == [(channels["a1"], "out")]


def test_a_supervisor_stays_while_nothing_can_be_read_of_his_order() -> None:
    """etcd is away for longer than its news may be late."""
    bench = Bench()
    order_read = supervised_and_lost(bench)
    bench.store_away()
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up", "s1": "up"})
    bench.sleep(10.0)
    assert not bench.said(link.EndLeg)
    bench.store_back()
    order_read()
    assert not bench.said(link.EndLeg) and snoops(bench) == [(channels["a1"], "out")]


def test_a_supervisor_whom_nobody_wants_any_more_does_not_stay() -> None:
    bench = Bench()
    supervised(bench, "listen")
    bench.asterisk_dies()
    bench.asterisk_back()
    countermand(bench)
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"c": "up", "a1": "up", "s1": "up"})
    bench.sleep(3.5)
    assert [f.leg for f in bench.said(link.EndLeg)] == ["s1"]


def test_a_snoop_that_came_while_nobody_listened_is_found() -> None:
    """Its event was lost with the connection, and Asterisk does not repeat it."""
    bench = Bench()
    bench.talk()
    order(bench, "listen")
    (supervisor,) = bench.dialled()
    bench.asterisk.fail.append(Done(None))
    bench.pick_up(supervisor)
    (asked,) = bench.operations("channels.snoopChannelWithId")
    bench.asterisk._channels_snoopChannelWithId(asked, asked["channelId"])
    assert not any(supervisor in members for members in together(bench))
    bench.post(AriDown(reason="silence", process_gone=False), bench.asterisk.snapshot())
    (snoop,) = (c for c, v in bench.asterisk.channels.items() if "spies" in v)
    assert {supervisor, snoop} in together(bench)


def test_a_snoop_that_could_not_be_ended_is_swept() -> None:
    bench = Bench()
    _, agent, _ = supervised(bench, "listen")
    bench.asterisk.fail.append(Unreachable("away"))
    order(bench, "barge")
    assert len(snoops(bench)) == 2
    bench.sleep(40)
    assert snoops(bench) == [(agent, "both")]


def test_tries_go_on_ever_more_slowly() -> None:
    bench = Bench()
    bench.talk()
    order(bench, "listen")
    (supervisor,) = bench.dialled()
    bench.asterisk.fail.extend([Refused("Allocation failed", 500)] * 100)
    bench.pick_up(supervisor)
    bench.sleep(15.5)
    tries = len(bench.operations("channels.snoopChannelWithId"))
    assert 5 <= tries <= 7
    bench.asterisk.fail.clear()
    bench.sleep(RETRY_MAX_S)
    assert snoops(bench)


def test_whispering_to_an_agent_on_his_second_line_reaches_him_alone() -> None:
    """His caller has hung up, whom he consulted is still there, and no record says whose line it is."""
    bench = Bench()
    bench.own("k1", epoch="7.2")
    order(bench, "whisper")
    more = {"head": "k1", "lines": {"k1": "a1"}, "targets": {"a2": "number:+4930", "s1": "device:1060"}}
    facts = {"k1": "up", "a2": "up", "s1": "up"}
    channels = bench.resume("k1", "7.2", facts, ended={"c": "phone", "a1": "edge"}, **more)
    bench.sleep(1.0)
    assert snoops(bench) == [(channels["k1"], "out")]


def test_whispering_to_an_agent_who_has_dialled_reaches_him_alone() -> None:
    bench = Bench()
    bench.own("k1")
    token = bench.token("k1", kind="agent", user="1001", did="+4930", caller="1001")
    start = bench.asterisk.enter(f"ari-ha,agent,{token},dial,+4930", "+4930")
    bench.post(AriEvent(event=start))
    (party,) = bench.dialled()
    bench.pick_up(party)
    assert bench.ask("supervise", agent="1001", mode="whisper", device="1060").status == 200
    (supervisor,) = bench.dialled()
    bench.pick_up(supervisor)
    assert snoops(bench) == [(start.channel.id, "out")]
    assert bench.said(link.WantMedia)[-1].state == "through", "coach would be for the other one"


def test_whispering_to_an_agent_who_waited_in_the_queue_reaches_him_alone() -> None:
    """A colleague, whom he talked to, handed him over: he is the caller now, and speaks to an agent or, when
    that one hands him on, to somebody outside."""
    bench = Bench(numbers=["6200"])
    agent_dials(bench, "1002")
    (asked,) = bench.dialled()
    bench.pick_up(asked)
    bench.frame(link.TransferAsked("k1", "c", "7.1", "t9", "6200", ""))
    bench.sleep(1.5)
    (other,) = bench.dialled()
    assert bench.target(other) == "device:1001"
    bench.pick_up(other)
    order(bench, "whisper", agent="1002")
    (supervisor,) = bench.dialled()
    bench.pick_up(supervisor)
    assert snoops(bench) == [(asked, "out")]
    assert bench.said(link.WantMedia)[-1].state == "through"
