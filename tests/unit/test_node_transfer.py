"""Transfers, consulting and three people on a node, and taken up in the middle of each."""

from __future__ import annotations

import msgspec
import pytest

from ari_ha.core.ports.ari import AriEvent
from ari_ha.core.ports.link import LinkUp
from ari_ha.core.ports.store import StoreReach
from ari_ha.wire import ari, link
from ari_ha.wire.keyspace import AttemptOfAgent, AttemptValue, LegValue, QueueConfigValue, RecordValue
from ari_ha.wire.transfer import TransferValue
from tests.support.node_bench import EDGE, LOST, UTC0, Bench
from tests.unit.test_node_outbound import agent_dials

E = "7.1"


def bench_with_sales() -> Bench:
    bench = Bench(agents=("1001", "1002"))
    bench.store.put(bench.keys.queue_config("sales"), QueueConfigValue(queue="sales", numbers=["6100"]))
    bench.store_back()
    return bench


def asks(bench: Bench, number: str = "", other: str = "", epoch: str = E, leg: str = "a1") -> None:
    bench.frame(link.TransferAsked("k1", leg, epoch, "t9", number, other))


def talk(bench: Bench) -> tuple[str, str]:
    """Customer and 1001, whoever the queue chose first."""
    customer, agent = bench.talk()
    assert bench.agent("1001").work == "talking" and bench.agent("1002").work == "idle"
    return customer, agent


def second_line(bench: Bench, user: str, number: str, leg: str = "k1") -> str:
    """The agent's phone dials on its second line: the channel of that."""
    token = bench.token("k1", leg, kind="agent", user=user, did=number)
    start = bench.asterisk.enter(f"ari-ha,agent,{token},dial,{number}", number)
    bench.post(AriEvent(event=start))
    return start.channel.id


def consults(bench: Bench, line: str = "k1") -> tuple[str, str]:
    """1001 calls 1002 on a second line, who answers: the two channels."""
    before = bench.dialled()
    bench.frame(link.ConsultAsked("k1", line, E, "a1", "1002"))
    second = second_line(bench, "1001", "1002", leg=line)
    (party,) = [channel for channel in bench.dialled() if channel not in before]
    bench.ring(party)
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", line, E))
    return second, party


def consulting(bench: Bench) -> tuple[str, str, str, str]:
    """1001 holds his caller and talks to 1002: the four channels."""
    customer, agent = talk(bench)
    bench.frame(link.LegHeld("k1", "a1", E, True))
    return customer, agent, *consults(bench)


def types(bench: Bench, channel: str, digits: str) -> None:
    """A phone sends digits."""
    for digit in digits:
        heard = ari.ChannelDtmfReceived(digit=digit, channel=bench.asterisk.channel(channel))
        bench.post(AriEvent(event=heard))


def consulting_in_turn(bench: Bench) -> dict[str, str]:
    """As above, and 1002, who was consulted, holds 1001 and talks to somebody outside: channels by leg."""
    customer, agent, second, party = consulting(bench)
    bench.frame(link.LegHeld("k1", "a2", E, True))
    bench.frame(link.ConsultAsked("k1", "k2", E, "a2", "+4940"))
    third = second_line(bench, "1002", "+4940", leg="k2")
    (outside,) = bench.dialled()
    bench.ring(outside)
    bench.pick_up(outside)
    bench.frame(link.LegAnswered("k1", "k2", E))
    return {"c": customer, "a1": agent, "k1": second, "a2": party, "k2": third, "a3": outside}


def statuses(bench: Bench) -> list[int]:
    return [f.status for f in bench.said(link.TransferIs)]


# --- blind -----------------------------------------------------------------------------


def test_a_blind_transfer_to_a_colleague() -> None:
    bench = Bench()
    customer, _ = talk(bench)
    asks(bench, "1002")
    record = bench.record()
    assert record is not None and record.transfer is not None and record.transfer.party == "a2"
    (party,) = bench.dialled()
    assert bench.target(party) == "device:1002"
    assert bench.hears(customer) == "people", "the asker stays until the target rings"
    bench.ring(party)
    assert statuses(bench) == [200] and bench.said(link.EndLeg, leg="a1")
    assert bench.hears(customer) == "music"
    bench.pick_up(party)
    assert bench.hears(customer) == bench.hears(party) == "people"
    assert bench.agent("1002").work == "talking" and bench.agent("1001").work == "acw"
    bench.gone("k1", "a2")
    assert bench.said(link.EndLeg, leg="c")


@pytest.mark.parametrize("answered", [False, True])
def test_taken_up_with_a_record_older_than_the_transfer(answered: bool) -> None:
    """The target rings, or is there, and the phone's wish is told again: it is dialled once."""
    bench = Bench()
    talk(bench)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    facts = {"c": "up", "a1": "up", "a2": "up" if answered else "ringing"}
    channels = bench.resume("k1", "7.2", facts, head="c", targets={"a2": "number:+4940"})
    asks(bench, "+4940", epoch="7.2")
    assert not bench.dialled() and statuses(bench) == [200] and bench.said(link.EndLeg, leg="a1")
    assert bench.hears(channels["c"]) == ("people" if answered else "music")


def test_the_asker_hangs_up_at_once() -> None:
    bench = Bench()
    customer, _ = talk(bench)
    asks(bench, "1002")
    bench.gone("k1", "a1")
    assert not bench.said(link.EndLeg, leg="c"), "the caller stays"
    (party,) = bench.dialled()
    bench.pick_up(party)
    assert bench.hears(customer) == "people"


def test_into_a_queue() -> None:
    bench = bench_with_sales()
    customer, _ = talk(bench)
    asks(bench, "6100")
    assert statuses(bench) == [200] and bench.said(link.EndLeg, leg="a1")
    assert bench.hears(customer) == "music" and bench.waiting() == ["k1"]
    assert bench.agent("1001").work == "acw"


def handed_over_while_he_consults(bench: Bench) -> tuple[str, str, str]:
    """1001 calls 1002, and hands him into a queue while he calls somebody outside: the channels of 1002, of
    his second line, and of whom that rings."""
    agent_dials(bench, "1002")
    (agent,) = bench.dialled()
    bench.pick_up(agent)
    bench.frame(link.LegHeld("k1", "a1", E, True))
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "+4940"))
    second = second_line(bench, "1002", "+4940")
    (party,) = bench.dialled()
    asks(bench, "6100", leg="c")
    return agent, second, party


def test_into_a_queue_while_one_consults() -> None:
    """1001 hands 1002, whom he had called, over while that one consults: an answer to his second line
    is none to his call, and he has a place like any caller."""
    bench = bench_with_sales()
    agent, second, party = handed_over_while_he_consults(bench)
    assert bench.machine.core.calls["k1"].stage == "queued" and bench.waiting() == ["k1"]
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", "k1", E))
    assert bench.machine.core.calls["k1"].stage == "queued" and bench.waiting() == ["k1"]
    assert bench.hears(second) == bench.hears(party) == "people"
    assert bench.hears(agent) == "music"
    types(bench, second, "*3")
    assert bench.waiting() == ["k1"] and not bench.said(link.EndLeg, leg="a1")
    assert bench.hears(second) == bench.hears(party) == "people", "nobody is there to be joined"
    assert bench.hears(agent) == "music"


def test_taken_up_while_one_who_waits_in_a_queue_consults() -> None:
    """He waits on, on his first line, and whom he consults is nobody whom the queue gave him."""
    bench = bench_with_sales()
    *_, party = handed_over_while_he_consults(bench)
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", "k1", E))
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    facts = {"a1": "held", "k1": "up", "a2": "up"}
    channels = bench.resume(
        "k1", "7.2", facts, ended={"c": "app"}, head="a1", sides={"k1": "k1", "a2": "k1"}, lines={"k1": "a1"},
        targets={"a1": "device:1002", "a2": "number:+4940"},
    )  # fmt: skip
    bench.sleep(0.5)
    assert bench.waiting() == ["k1"] and not bench.said(link.EndLeg, epoch="7.2")
    assert bench.hears(channels["k1"]) == bench.hears(channels["a2"]) == "people"
    assert bench.hears(channels["a1"]) == "music"
    assert bench.agent("1002").work == "idle", "as before"
    assert not [note for note in bench.notes if note.text.startswith("waits again")], "his place is his"


@pytest.mark.parametrize("asterisk_too", [False, True])
def test_a_node_that_takes_up_its_own_call_knows_what_it_could_not_write(asterisk_too: bool) -> None:
    """The transfer was carried out without etcd, and its edge, which had begun to move the call, did not
    hear of it: it is not undone, and nobody is counted twice. Before with the lines it ends, the edge hears
    who belongs to whom: it would end whoever is on them."""
    bench = Bench()
    consulting(bench)
    bench.store_away()
    bench.link_up = False
    asks(bench, other="k1")
    bench.link_up = True
    if asterisk_too:
        bench.asterisk_dies()
        bench.asterisk_back()
    bench.sent.clear()
    facts = {"c": "up", "a1": "held", "k1": "up", "a2": "up"}
    channels = bench.resume("k1", "7.2", facts, head="c", sides={"k1": "k1", "a2": "k1"}, lines={"k1": "a1"})
    told = [f for f in bench.sent if isinstance(f, link.Conversations | link.EndLeg)]
    assert isinstance(told[0], link.Conversations) and "a2" not in told[0].consult
    assert {f.leg for f in told[1:]} == {"a1", "k1"}
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"
    bench.store_back()
    assert bench.agent("1001").work in ("acw", "idle") and bench.agent("1001").handled == 1
    record = bench.record()
    assert record is not None and record.epoch == "7.2" and set(record.ending) == {"a1", "k1"}


def test_what_another_node_wrote_under_a_newer_epoch_is_newer_than_what_we_could_not_write() -> None:
    bench = Bench()
    consulting(bench)
    before = bench.record()
    bench.store_away()
    bench.link_up = False
    asks(bench, other="k1")
    bench.link_up = True
    bench.asterisk_dies()
    bench.asterisk_back()
    assert before is not None
    theirs = msgspec.structs.replace(before, epoch="7.2", node="ast2#life1")
    bench.store.put(bench.keys.record("k1"), theirs)
    bench.store_back()
    facts = {"c": "up", "a1": "held", "k1": "up", "a2": "up"}
    bench.resume("k1", "7.3", facts, head="c", sides={"k1": "k1", "a2": "k1"}, lines={"k1": "a1"})
    assert not bench.said(link.EndLeg, epoch="7.3")


def test_a_record_that_could_not_be_written_is_written_when_the_store_is_back() -> None:
    """At once: whoever takes the call up a moment later goes by it."""
    bench = Bench()
    consulting(bench)
    bench.store.up = False  # nobody has said so yet
    asks(bench, other="k1")
    bench.store.up = True
    bench.post(StoreReach(reachable=False, why="away"))
    bench.post(StoreReach(reachable=True))
    record = bench.record()
    assert record is not None and record.transfer is not None


def test_an_end_is_said_again_on_a_new_link_also_when_its_channel_is_gone() -> None:
    """Without a link and without etcd whoever asked was released by the end of his channel alone: the edge
    keeps his phone, and makes the leg again, unless it hears why in time."""
    bench = Bench()
    talk(bench)
    asks(bench, "1002")
    (party,) = bench.dialled()
    bench.store_away()
    bench.link_down()
    bench.post(*bench.asterisk.up(party))
    assert bench.channels_of("k1", "a1", E) == [] and not bench.said(link.EndLeg)
    fact = link.CallAtEdge(
        epoch=E, legs={"c": link.LegAtEdge(state="up"), "a1": link.LegAtEdge(state="up")}, head="c"
    )
    bench.link({"k1": fact})
    assert bench.said(link.EndLeg, leg="a1", epoch=E)


@pytest.mark.parametrize("survivor", [False, True])
def test_whoever_was_to_be_transferred_consults_and_hangs_up(survivor: bool) -> None:
    """Nobody takes a transfer of nobody: whoever asked is not rung again, and the consultation goes on."""
    bench = Bench()
    agent_dials(bench, "1002")
    (agent,) = bench.dialled()
    bench.pick_up(agent)
    asks(bench, "+4930")
    (target,) = bench.dialled()
    bench.ring(target)
    assert bench.said(link.EndLeg, leg="a1")
    bench.frame(link.ConsultAsked("k1", "k1", E, "c", "+4940"))
    second = second_line(bench, "1001", "+4940")
    (party,) = [channel for channel in bench.dialled() if channel != target]
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", "k1", E))
    record = bench.record()
    if survivor:  # the record is older than the end
        bench.asterisk_dies()
        bench.asterisk_back()
        assert record is not None and record.transfer is not None and record.transfer.party == "a2"
        bench.own("k1", epoch="7.2")
        ended = {"a1": "app", "c": "phone", "a2": "edge"}
        facts = {"k1": "up", "a3": "up"}
        channels = bench.resume("k1", "7.2", facts, ended=ended, head="k1", lines={"k1": "c"})
        bench.sleep(1)
        assert bench.hears(channels["k1"]) == bench.hears(channels["a3"]) == "people"
    else:
        bench.gone("k1", "c")
        bench.gone("k1", "a2", by="edge")
        bench.sleep(1)
        assert bench.hears(second) == bench.hears(party) == "people"
    assert not bench.dialled() and not bench.machine.core.calls["k1"].transfers.open


def test_of_two_who_ask_at_once_the_second_is_refused() -> None:
    """Silence would be taken for yes: he would hang up, and leave two people alone."""
    bench = Bench()
    consulting(bench)
    asks(bench, "+4930")
    bench.frame(link.TransferAsked("k1", "c", E, "t10", "1002", ""))
    assert [(f.transfer, f.status) for f in bench.said(link.TransferIs)] == [("t10", 491)]
    assert bench.machine.core.calls["k1"].transfers.now.transfer == "t9"


@pytest.mark.parametrize("told", [False, True])
def test_an_agent_whose_end_was_announced_is_not_in_the_call_again(told: bool) -> None:
    """The last node had released him, and told etcd so or not; its edge has not heard of it."""
    bench = Bench()
    consulting(bench)
    asks(bench, other="k1")
    record, before = bench.record(), bench.agent("1001")
    assert record is not None and set(record.ending) == {"a1", "k1"} and before.handled == 1
    bench.asterisk_dies()
    bench.asterisk_back()
    if not told:
        part = AttemptOfAgent(attempt="t1", call="k1", queue="support", node="ast1#life1", since=UTC0)
        talking = msgspec.structs.replace(before, work="talking", attempt=part, handled=0, acw_deadline=0.0)
        bench.store.put(bench.keys.agent("1001"), talking)
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.own("k1", epoch="7.2")
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up", "a2": "up"}, ended={"k1": "app"}, head="c")
    bench.sleep(0.5)
    assert bench.said(link.EndLeg, leg="a1", epoch="7.2")
    assert bench.agent("1001").work in ("acw", "idle") and bench.agent("1001").handled == 1
    assert bench.agent("1002").work == "talking"
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"


def test_whoever_waits_and_consults_hangs_up_the_line_he_waits_on() -> None:
    """His place goes, and the phone that rings for him; he talks on with whom he consulted."""
    bench = Bench(numbers=["6200"])
    agent_dials(bench, "1002")
    (colleague,) = bench.dialled()
    bench.pick_up(colleague)
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "+4940"))
    second = second_line(bench, "1002", "+4940")
    (party,) = bench.dialled()
    asks(bench, "6200", leg="c")
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", "k1", E))
    bench.sleep(1.5)
    (rung,) = bench.dialled()
    assert bench.target(rung) == "device:1001" and bench.waiting() == ["k1"]
    bench.gone("k1", "a1")
    bench.gone("k1", "a3", by="edge")
    assert bench.waiting() == [] and bench.agent("1001").work == "idle"
    assert bench.machine.core.calls["k1"].stage == "talking"
    assert bench.hears(second) == bench.hears(party) == "people"


def test_three_people_do_not_wait_in_a_queue() -> None:
    bench = bench_with_sales()
    customer, _, second, party = consulting(bench)
    types(bench, second, "*3")
    asks(bench, "6100", leg="a2")
    assert statuses(bench) == [480] and bench.machine.core.calls["k1"].stage == "talking"
    assert bench.hears(customer) == bench.hears(second) == bench.hears(party) == "people"


def test_an_attended_transfer_of_nobody_is_refused() -> None:
    """The caller has gone: whoever consults is in no conversation he could hand over."""
    bench = Bench()
    consulting(bench)
    call = bench.machine.core.calls["k1"]
    call.legs["c"].state = "ended"
    asks(bench, "1002", "k1")
    assert statuses(bench) == [480] and not bench.said(link.EndLeg)


def test_to_a_number_at_a_carrier() -> None:
    bench = Bench()
    talk(bench)
    asks(bench, "+4930")
    assert bench.target(bench.dialled()[0]) == "number:+4930"


def test_asked_and_hung_up_while_the_link_was_down() -> None:
    """The edge says what was asked, then who is left."""
    bench = Bench()
    customer, _, _, party = consulting(bench)
    bench.link_down()
    bench.sleep(0.5)
    bench.link_up = True
    bench.post(LinkUp(peer=EDGE))
    bench.frame(link.EdgeHello(edge=EDGE, vip="v1", edge_revision=7))
    asks(bench, "1002", other="a1", leg="k1")
    legs = {leg: link.LegAtEdge("answered") for leg in ("c", "k1", "a2")}
    fact = link.CallAtEdge(E, legs, ended={"a1": "phone"}, sides={"k1": "k1", "a2": "k1"})
    bench.frame(link.EdgeCalls(calls={"k1": fact}))
    bench.sleep(1.0)
    assert bench.hears(customer) == bench.hears(party) == "people"
    assert bench.agent("1001").work in ("idle", "acw") and bench.agent("1002").work == "talking"


def test_refused_while_the_asker_is_there_they_go_on() -> None:
    bench = Bench()
    customer, agent = talk(bench)
    asks(bench, "1002")
    bench.gone("k1", "a2", status=486, by="failed")
    assert statuses(bench) == [486]
    assert bench.hears(customer) == bench.hears(agent) == "people"
    assert bench.agent("1001").work == "talking"


def test_asked_again_because_his_edge_had_not_heard_that_it_failed_it_is_not_tried_anew() -> None:
    """As after a move: by then the asker's phone knows, and he goes on with his caller."""
    bench = Bench()
    talk(bench)
    asks(bench, "1002")
    bench.gone("k1", "a2", status=486, by="failed")
    asks(bench, "1002")
    assert statuses(bench) == [486, 486] and not bench.dialled()


def test_nobody_answers_the_asker_is_rung_again_and_then_the_queue_has_him() -> None:
    bench = Bench()
    customer, _ = talk(bench)
    asks(bench, "1002")
    bench.ring(bench.dialled()[0])
    bench.gone("k1", "a2", status=480, by="failed")
    (back,) = bench.dialled()
    assert bench.target(back) == "device:1001" and bench.hears(customer) == "music"
    bench.gone("k1", "a3", status=480, by="failed")
    bench.sleep(0.1)
    assert bench.waiting() == ["k1"] and not bench.said(link.EndLeg, leg="c")


def test_rung_again_he_answers() -> None:
    bench = Bench()
    customer, _ = talk(bench)
    asks(bench, "1002")
    bench.ring(bench.dialled()[0])
    bench.gone("k1", "a2", status=486, by="failed")
    bench.pick_up(bench.dialled()[0])
    assert bench.hears(customer) == "people" and bench.agent("1001").work == "talking"


def test_asked_twice_is_done_once() -> None:
    bench = Bench()
    talk(bench)
    asks(bench, "1002")
    asks(bench, "1002")
    assert len(bench.dialled()) == 1


@pytest.mark.parametrize("rings", [False, True])
def test_taken_up_in_the_middle_of_a_blind_transfer(rings: bool) -> None:
    bench = Bench()
    talk(bench)
    asks(bench, "1002")
    if rings:
        bench.ring(bench.dialled()[0])
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    facts = {"c": "up", "a2": "ringing"} | ({} if rings else {"a1": "up"})
    channels = bench.resume("k1", "7.2", facts, ended={"a1": "app"} if rings else {})
    assert bench.said(link.Bridged, epoch="7.2") and not bench.dialled()
    assert bench.hears(channels["c"]) == ("music" if rings else "people")
    bench.frame(link.LegAnswered("k1", "a2", "7.2"))
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"
    assert bench.said(link.TransferIs)[-1].status == 200
    assert bench.said(link.EndLeg, leg="a1")


def test_taken_up_before_the_target_was_dialled() -> None:
    bench = Bench()
    talk(bench)
    asks(bench, "1002")
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"c": "up", "a1": "up"})
    assert bench.dialled() == ["k1.a2.7.2"]


@pytest.mark.parametrize("by", ["failed", "phone"])
def test_taken_up_with_a_record_older_than_the_target_who_is_gone(by: str) -> None:
    """He refused, or talked and hung up, and the record knows only that a transfer was asked for: he is not
    called again. Whoever asked is rung again, or it is over."""
    bench = Bench()
    talk(bench)
    bench.asterisk_dies()
    record = bench.record()
    assert record is not None
    transfer = TransferValue(transfer="t9", leg="a1", number="+4940", device="1001")
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(record, transfer=transfer))
    bench.store_back()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"c": "up"}, ended={"a1": "app", "a2": by}, head="c")
    rung, ended = (["device:1001"], []) if by == "failed" else ([], ["c"])
    assert [bench.target(channel) for channel in bench.dialled()] == rung
    assert [frame.leg for frame in bench.said(link.EndLeg, epoch="7.2")] == ended
    assert bench.agent("1001").handled == 1


@pytest.mark.parametrize("asking", [None, [], ["a1"]])
def test_taken_up_with_a_record_older_than_the_end_of_a_transfer(asking: list[str] | None) -> None:
    """The node was without etcd when the target refused, and the phone was told: it is not dialled for it
    again. An edge that does not say whose phones wait is one of an older version."""
    bench = Bench()
    talk(bench)
    bench.asterisk_dies()
    record = bench.record()
    assert record is not None
    transfer = TransferValue(transfer="t9", leg="a1", number="1002", party="a2")
    legs = {**record.legs, "a2": LegValue(leg="a2", role="party", state="trying", target="device:1002")}
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(record, transfer=transfer, legs=legs))
    bench.store_back()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up"}, head="c", asking=asking)
    assert len(bench.dialled()) == (asking != [])
    if asking == []:
        assert bench.hears(channels["c"]) == bench.hears(channels["a1"]) == "people"
        bench.sleep(1)
        assert not bench.said(link.EndLeg, epoch="7.2")
        bench.frame(link.TransferAsked("k1", "a1", "7.2", "t10", "1002", ""))
        assert len(bench.dialled()) == 1, "he may ask anew"


def test_the_asker_hung_up_in_the_gap() -> None:
    bench = Bench()
    talk(bench)
    asks(bench, "1002")
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    channels = bench.resume("k1", "7.2", {"c": "up", "a2": "ringing"}, ended={"a1": "phone"})
    assert not bench.said(link.EndLeg, leg="c") and bench.hears(channels["c"]) == "music"
    bench.frame(link.LegAnswered("k1", "a2", "7.2"))
    assert bench.hears(channels["c"]) == "people"


@pytest.mark.parametrize("party", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
def test_whoever_asked_hung_up_his_first_line_before_any_app_heard_of_his_transfer(
    restarted: bool, party: bool
) -> None:
    """The edge says that his other line waits for one: the caller is kept for it, and sent home only where
    whoever was to have him has gone as well."""
    bench = Bench()
    consulting(bench)
    ended = {"a1": "phone"} if party else {"a2": "phone", "a1": "phone"}
    facts = dict.fromkeys(["c", "k1", *(["a2"] if party else [])], "up")
    sides = {leg: "k1" for leg in facts if leg != "c"}
    epoch = E if restarted else "7.2"
    if restarted:
        bench.restart_app()
        legs = {leg: link.LegAtEdge(state="answered") for leg in facts}
        fact = link.CallAtEdge(
            epoch=E, legs=legs, ended=ended, head="c", sides=sides, lines={"k1": "a1"}, asking=["k1"]
        )
        bench.link({"k1": fact})
        names = {leg: bench.channels_of("k1", leg, E) for leg in facts}
        channels = {leg: ident for leg, idents in names.items() for ident in idents}
    else:
        bench.asterisk_dies()
        bench.asterisk_back()
        bench.own("k1", epoch=epoch)
        channels = bench.resume(
            "k1", epoch, facts, ended=ended, head="c", sides=sides, lines={"k1": "a1"}, asking=["k1"],
            trunk="carrier1",
        )  # fmt: skip
    assert not bench.said(link.EndLeg, leg="c")
    asks(bench, other="a1", leg="k1", epoch=epoch)
    bench.sleep(0.1)
    assert statuses(bench) == [200 if party else 481]
    assert bool(bench.said(link.EndLeg, leg="c")) != party and bench.agent("1001").work == "acw"
    if party:
        assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"


def test_what_a_phone_asked_for_is_heard_also_before_asterisk_has_told_what_it_has() -> None:
    """The app starts anew, and its edge is heard first: it says a transfer once."""
    bench = Bench()
    consulting(bench)
    bench.restart_app(sees_asterisk=False)
    facts = ["c", "a1", "k1", "a2"]
    legs = {leg: link.LegAtEdge(state="answered", held=leg == "a1") for leg in facts}
    fact = link.CallAtEdge(
        epoch=E, legs=legs, head="c", sides={"k1": "k1", "a2": "k1"}, lines={"k1": "a1"}, asking=["k1"]
    )
    bench.link({"k1": fact})
    asks(bench, other="a1", leg="k1")
    assert not statuses(bench)
    bench.post(bench.asterisk.snapshot())
    bench.sleep(0.1)
    assert statuses(bench) == [200]
    (customer,), (party,) = bench.channels_of("k1", "c", E), bench.channels_of("k1", "a2", E)
    assert bench.hears(customer) == bench.hears(party) == "people"


def test_taken_up_with_a_record_older_than_a_transfer_into_a_queue() -> None:
    """The edge says that the app released the agent: the caller was handed over, and waits again."""
    bench = Bench(agents=("1001",))
    bench.talk()
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    channels = bench.resume("k1", "7.2", {"c": "up"}, ended={"a1": "app"}, head="c", trunk="carrier1")
    bench.sleep(0.1)
    assert bench.waiting() == ["k1"] and bench.hears(channels["c"]) == "music"
    assert bench.agent().work == "acw" and not bench.said(link.EndLeg)


def test_a_supervisor_of_an_older_record_is_no_party_who_is_gone() -> None:
    """As above, and a supervisor was on the call."""
    bench = Bench(agents=())
    legs = {
        "c": LegValue(leg="c", role="customer", state="up"),
        "a1": LegValue(leg="a1", role="agent", agent="1001", state="up"),
        "s1": LegValue(leg="s1", role="supervisor", state="up", target="device:1900"),
    }
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="talking", verb=["queue", "support"], queue="support",
        legs=legs,
    )  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.own("k1", epoch="7.2")
    ended = {"a1": "app", "s1": "app"}
    channels = bench.resume("k1", "7.2", {"c": "up"}, ended=ended, head="c", trunk="carrier1")
    bench.sleep(0.1)
    assert bench.hears(channels["c"]) == "music" and not bench.said(link.EndLeg)


@pytest.mark.parametrize("known", [False, True])
def test_a_party_who_hands_the_caller_on_is_no_party_who_is_gone(known: bool) -> None:
    """Whom an agent had transferred his caller to transferred him into a queue; ``known``: the record says
    that he had asked."""
    bench = Bench(agents=())
    legs = {
        "c": LegValue(leg="c", role="customer", state="up"),
        "a1": LegValue(leg="a1", role="agent", agent="1001", state="ended", ended_by="app"),
        "a2": LegValue(leg="a2", role="party", agent="1002", state="up", target="device:1002"),
    }
    first = TransferValue(transfer="t1", leg="a1", number="1002", party="a2", state="over", left=True)
    second = TransferValue(transfer="t2", leg="a2", number="6999")
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="talking", verb=["queue", "support"], queue="support",
        legs=legs, transfer=second if known else first,
    )  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.own("k1", epoch="7.2")
    ended = {"a1": "app", "a2": "phone" if known else "app"}
    channels = bench.resume("k1", "7.2", {"c": "up"}, ended=ended, head="c", trunk="carrier1")
    bench.sleep(0.1)
    assert bench.hears(channels["c"]) == "music" and not bench.said(link.EndLeg)


def test_whoever_took_a_transfer_handed_the_caller_on_and_the_record_says_that_he_rings() -> None:
    """The next one declined, and an app that has been started again reads none of it: he waits first."""
    bench = Bench(agents=("1001",))
    bench.talk()
    asks(bench, "1002")
    (party,) = bench.dialled()
    bench.ring(party)
    record = bench.record()
    assert record is not None and record.transfer is not None and record.transfer.state == "ringing"
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    ended = {"a1": "app", "a2": "app", "a3": "failed"}
    channels = bench.resume("k1", "7.2", {"c": "up"}, ended=ended, head="c", trunk="carrier1")
    bench.sleep(0.1)
    assert bench.waiting() == ["k1"] and bench.hears(channels["c"]) == "music"
    assert not bench.said(link.EndLeg, epoch="7.2") and len(bench.dialled()) == 0


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("queue", ["support", ""])
def test_whoever_was_consulted_hands_on_who_called_him_and_the_record_says_that_he_rings(
    queue: str, older: bool
) -> None:
    """The main conversation is over, of which an ``older`` record does not know either. He who had consulted
    waits in the queue of the call, a caller there and no agent; where there is none he is sent home."""
    bench = bench_with_sales()
    legs = {
        "k1": LegValue(leg="k1", role="user", state="up" if older else "ringing", of="a1", consult="k1"),
        "a2": LegValue(leg="a2", role="party", state="ringing", target="device:1002", consult="k1"),
        "c": LegValue(leg="c", role="customer", state="up"),
        "a1": LegValue(leg="a1", role="agent", agent="1001", state="up"),
    }
    if not older:
        legs = {name: msgspec.structs.replace(legs[name], consult="", agent="") for name in ("k1", "a2")}
        legs["k1"] = msgspec.structs.replace(legs["k1"], agent="1001")
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="talking" if older else "dialing",
        verb=["queue", "support"] if queue else ["dial", "1002"], queue=queue, legs=legs,
        head="c" if older else "k1",
    )  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.own("k1", epoch="7.2")
    ended = {"a1": "edge", "c": "phone", "a2": "app"}
    channels = bench.resume(
        "k1", "7.2", {"k1": "up"}, ended=ended, head="k1", lines={"k1": "a1"}, trunk="carrier1"
    )
    bench.sleep(0.1)
    assert [f.leg for f in bench.said(link.EndLeg)] == ([] if queue else ["k1"])
    if queue:
        assert bench.waiting() == ["k1"] and bench.hears(channels["k1"]) == "music"
        assert bench.agent("1001").work != "talking" and not bench.machine.core.calls["k1"].legs["k1"].agent


def test_whoever_hung_up_on_him_handed_nobody_over() -> None:
    bench = Bench()
    talk(bench)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"c": "up"}, ended={"a1": "phone"}, head="c", trunk="carrier1")
    bench.sleep(0.1)
    assert bench.said(link.EndLeg, leg="c") and not bench.waiting()


@pytest.mark.parametrize("consults", [False, True])
def test_a_colleague_who_was_handed_over_nobody_knows_where(consults: bool) -> None:
    """He is sent home; whom he consults stays with him."""
    bench = bench_with_sales()
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="talking", verb=["agent", "dial", "1002"], did="1002",
        legs={"c": LegValue(leg="c", role="user", agent="1001"),
              "a1": LegValue(leg="a1", role="party", state="up", agent="1002", target="device:1002")},
    )  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.own("k1", epoch="7.2")
    more = {"k1": "up", "a2": "up"} if consults else {}
    channels = bench.resume(
        "k1", "7.2", {"a1": "up", **more}, ended={"c": "app"}, head="a1",
        sides=dict.fromkeys(more, "k1"), lines={"k1": "a1"} if consults else {},
    )  # fmt: skip
    bench.sleep(0.1)
    assert [f.leg for f in bench.said(link.EndLeg)] == ["a1"]
    if consults:
        assert bench.hears(channels["k1"]) == bench.hears(channels["a2"]) == "people"


@pytest.mark.parametrize("consults", [False, True])
def test_whoever_was_called_is_alone_and_the_record_is_older_than_the_transfer(consults: bool) -> None:
    """1001 handed +4930, whom he had called, over to somebody who has hung up since; the record says
    that the number still rings. He is sent home, and his conversation was counted when it was ended; whom
    he consults stays with him."""
    bench = Bench()
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="dialing", verb=["agent", "dial", "1002"], did="1002",
        legs={"c": LegValue(leg="c", role="user", agent="1001"),
              "a1": LegValue(leg="a1", role="party", state="ringing", target="device:1002")},
    )  # fmt: skip
    bench.store.put(bench.keys.record("k1"), record)
    bench.store_back()
    bench.own("k1", epoch="7.2")
    more = {"k1": "up", "a3": "up"} if consults else {}
    channels = bench.resume(
        "k1", "7.2", {"a1": "up", **more}, ended={"c": "app", "a2": "phone"}, head="a1",
        sides=dict.fromkeys(more, "k1"), lines={"k1": "a1"} if consults else {},
    )  # fmt: skip
    bench.sleep(0.1)
    assert [f.leg for f in bench.said(link.EndLeg)] == ["a1"]
    if consults:
        assert bench.hears(channels["k1"]) == bench.hears(channels["a3"]) == "people"
    else:
        bench.sleep(4)
        assert "k1" not in bench.machine.core.calls
        assert bench.agent("1002").handled == 0


@pytest.mark.parametrize("head", ["up", "ringing"])
@pytest.mark.parametrize("answered", [False, True])
def test_taken_up_without_a_record_while_somebody_rings_for_him(head: str, answered: bool) -> None:
    """A caller who was handed over, or a phone that dials: no caller of a queue."""
    bench = Bench()
    bench.own("k1", epoch="7.2")
    facts, trunk = {"c": head, "a2": "ringing"}, "carrier1" if head == "up" else ""
    channels = bench.resume("k1", "7.2", facts, head="c", trunk=trunk, targets={"a2": "number:+4940"})
    assert bench.waiting() == [] and bench.said(link.Bridged, epoch="7.2")
    if not answered:
        bench.gone("k1", "a2", "7.2", by="failed", status=486)
        went = bench.operations("channels.continueInDialplan")
        assert bool(went) == (head == "up") and bool(bench.said(link.EndLeg, leg="c")) == (head != "up")
        return
    bench.frame(link.LegAnswered("k1", "a2", "7.2"))
    bench.frame(link.LegAnswered("k1", "c", "7.2"))
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"


def test_nobody_takes_a_caller_of_whom_no_record_says_what_he_wants() -> None:
    """A survivor without etcd: the dialplan knows where his number leads."""
    bench = Bench()
    bench.own("k1", epoch="7.2")
    channels = bench.resume("k1", "7.2", {"c": "up", "a1": "up"}, head="c", trunk="carrier1")
    asks(bench, "+4940", epoch="7.2")
    (party,) = bench.dialled()
    bench.ring(party)
    bench.gone("k1", "a2", "7.2", by="failed", status=486)
    assert not bench.said(link.EndLeg, leg="c")
    (sent,) = bench.operations("channels.continueInDialplan")
    assert (sent["channelId"], sent["extension"]) == (channels["c"], "6000")


@pytest.mark.parametrize("recorded", [False, True])
def test_an_agent_who_was_called_by_his_number_came_by_no_queue(recorded: bool) -> None:
    """Also for a survivor whose mirror does not show him in the call yet: of a caller's queue he
    would else be a second agent."""
    bench = bench_with_sales()
    record = RecordValue(
        call="k1", epoch="7.1", node="ast2#x", stage="talking", verb=["queue", "support"], did="6000",
        queue="support", legs={"c": LegValue(leg="c", role="customer"),
        "a2": LegValue(leg="a2", role="party", state="up", agent="1002", target="device:1002")},
    )  # fmt: skip
    if recorded:
        bench.store.put(bench.keys.record("k1"), record)
        bench.store_back()
    bench.own("k1", epoch="7.2")
    targets = {"a2": "device:1002"}
    channels = bench.resume("k1", "7.2", {"c": "up", "a2": "up"}, head="c", trunk="x", targets=targets)
    part = bench.agent("1002").attempt
    assert bench.agent("1002").work == "talking" and part is not None
    assert (part.attempt, part.queue) == ("k1", "") and bench.waiting() == []
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"


def test_a_leg_that_was_to_ring_an_agent_is_somebody_else_now() -> None:
    """A record with an intent; a survivor without etcd dialled a number under the same name."""
    bench = Bench(agents=("1001",))
    bench.talk()
    record = bench.record()
    assert record is not None
    attempt = AttemptValue(attempt="t5", agent="1002", device="1002", leg="a2", state="intent")
    legs = {"c": record.legs["c"], "a2": LegValue(leg="a2", role="agent", agent="1002", state="trying")}
    old = msgspec.structs.replace(record, stage="queued", attempts={"t5": attempt}, legs=legs)
    bench.asterisk_dies()
    bench.store.put(bench.keys.record("k1"), old)
    bench.store_back()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    targets = {"a2": "number:+4940"}
    channels = bench.resume("k1", "7.2", {"c": "up", "a2": "up"}, head="c", trunk="x", targets=targets)
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"
    call = bench.machine.core.calls["k1"]
    assert (call.legs["a2"].target, call.legs["a2"].agent, call.attempts["t5"].state) == (
        "number:+4940", "", "ended",
    )  # fmt: skip
    bench.gone("k1", "a2", "7.2")
    assert bench.said(link.EndLeg, leg="c")


def test_without_a_record_the_dialplan_serves_no_party() -> None:
    """Who was called by us has no number of his own to be served by."""
    bench = Bench()
    bench.own("k1", epoch="7.2")
    bench.resume("k1", "7.2", {"a1": "up"}, ended={"c": "app"}, head="a1", trunk="carrier1")
    assert bench.said(link.EndLeg, leg="a1") and not bench.operations("channels.continueInDialplan")


# --- consulting ------------------------------------------------------------------------


def test_consulting_the_caller_hears_music_and_two_talk() -> None:
    bench = Bench()
    customer, agent, second, party = consulting(bench)
    assert bench.hears(customer) == "music"
    assert bench.hears(second) == bench.hears(party) == "people"
    members = [sorted(m) for m in bench.asterisk.bridges.values() if m]
    assert sorted(members) == sorted([sorted([customer, agent]), sorted([second, party])])
    assert bench.agent("1001").work == "consult" and bench.agent("1002").work == "talking"


def test_whoever_has_answered_consults_before_the_caller_is_his() -> None:
    """The store is silent: for a second nobody knows that he has him."""
    bench = Bench()
    bench.trunk()
    (agent,) = bench.dialled()
    bench.ring(agent)
    bench.store.perform = lambda effect: (LOST, [])  # type: ignore[method-assign]
    bench.pick_up(agent)
    assert bench.machine.core.calls["k1"].stage == "queued"
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "+4940"))
    bench.sleep(1.5)
    (party,) = bench.dialled()
    assert bench.target(party) == "number:+4940"


def test_what_a_second_line_was_beside_has_ended_before_its_number_is_known() -> None:
    bench = Bench()
    talk(bench)
    second = second_line(bench, "1001", "+4940")
    bench.frame(link.LegGone("k1", "c", E, cause="16", by="phone"))
    bench.frame(link.LegGone("k1", "a1", E, cause="16", by="edge"))
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "+4940"))
    (party,) = bench.dialled()
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", "k1", E))
    assert bench.hears(second) == bench.hears(party) == "people"
    bench.gone("k1", "k1")
    bench.sleep(5.0)
    assert not bench.machine.core.calls and not bench.asterisk.bridges


def test_the_consulting_leg_is_not_answered_before_its_party() -> None:
    bench = Bench()
    talk(bench)
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "1002"))
    second = second_line(bench, "1001", "1002")
    assert bench.asterisk.channels[second]["state"] == "Ring"
    bench.gone("k1", "a2", status=486, by="failed")
    assert [f.cause for f in bench.said(link.EndLeg, leg="k1")] == ["486"]
    assert bench.agent("1001").work == "talking"


def test_the_consulted_one_hangs_up() -> None:
    bench = Bench()
    customer, agent, _, _ = consulting(bench)
    bench.gone("k1", "a2")
    assert bench.said(link.EndLeg, leg="k1") and not bench.said(link.EndLeg, leg="c")
    bench.frame(link.LegHeld("k1", "a1", E, False))
    assert bench.hears(customer) == bench.hears(agent) == "people"
    assert bench.agent("1001").work == "talking" and bench.agent("1002").work in ("acw", "idle")


def test_the_caller_hangs_up_meanwhile() -> None:
    bench = Bench()
    _, _, second, party = consulting(bench)
    bench.frame(link.LegGone("k1", "c", E, cause="16", by="phone"))
    bench.frame(link.LegGone("k1", "a1", E, cause="16", by="edge"))
    assert bench.hears(second) == bench.hears(party) == "people"
    assert bench.agent("1001").work == "talking"
    bench.gone("k1", "k1")
    bench.sleep(4)
    assert {bench.agent(a).work for a in ("1001", "1002")} <= {"idle", "acw"}
    assert "k1" not in bench.machine.core.calls


def test_an_attended_transfer() -> None:
    bench = Bench()
    customer, _, _, party = consulting(bench)
    asks(bench, "1002", "k1")
    assert statuses(bench) == [200]
    (said,) = bench.said(link.Conversations)
    assert (said.head, said.consult) == ("c", {"k1": "k1"})
    order = [type(f).__name__ for f in bench.sent if isinstance(f, link.Conversations | link.EndLeg)]
    assert order == ["Conversations", "EndLeg", "EndLeg"], "first who belongs to whom, then the ends"
    assert bench.hears(customer) == bench.hears(party) == "people"
    assert bench.agent("1001").work == "acw" and bench.agent("1002").work == "talking"


@pytest.mark.parametrize("asks_in", ["a1", "k1"])
def test_whoever_asked_for_an_attended_transfer_hangs_up_before_it_is_stored(asks_in: str) -> None:
    bench = Bench()
    customer, _, _, party = consulting(bench)
    perform, bench.store.perform = bench.store.perform, lambda effect: (LOST, [])
    asks(bench, "1002", "k1" if asks_in == "a1" else "a1", leg=asks_in)
    bench.gone("k1", "a1")
    bench.store.perform = perform
    bench.sleep(1.0)
    assert not bench.said(link.EndLeg, leg="c") and not bench.said(link.EndLeg, leg="a2")
    assert bench.hears(customer) == bench.hears(party) == "people"


def test_an_attended_transfer_to_somebody_who_still_rings() -> None:
    bench = Bench()
    customer, _ = talk(bench)
    bench.frame(link.LegHeld("k1", "a1", E, True))
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "1002"))
    (party,) = bench.dialled()
    asks(bench, "1002", "k1")
    assert bench.hears(customer) == "music"
    bench.pick_up(party)
    assert bench.hears(customer) == bench.hears(party) == "people"


@pytest.mark.parametrize("asked", [False, True])
def test_taken_up_while_consulting(asked: bool) -> None:
    bench = Bench()
    consulting(bench)
    bench.asterisk_dies()
    if asked:  # the intent was stored, nothing had happened yet
        record = bench.record()
        assert record is not None
        transfer = TransferValue(transfer="t9", leg="a1", number="1002", other="k1")
        bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(record, transfer=transfer))
        bench.store_back()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    facts = {"c": "up", "a1": "held", "k1": "up", "a2": "up"}
    channels = bench.resume("k1", "7.2", facts)
    if asked:
        assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"
        return
    assert bench.hears(channels["k1"]) == bench.hears(channels["a2"]) == "people"
    assert bench.hears(channels["c"]) == "music"
    asks(bench, "1002", "k1", "7.2")
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people"


def test_a_transfer_that_a_restarted_app_is_told_of_before_it_has_the_call() -> None:
    """The edge says it with its list of calls, once, and the record is not there yet."""
    bench = Bench()
    customer, _, _, party = consulting(bench)
    bench.store.up = False
    bench.restart_app()
    legs = {leg: link.LegAtEdge(state="answered", held=leg == "a1") for leg in ("c", "a1", "k1", "a2")}
    bench.link(calls={"k1": link.CallAtEdge(epoch=E, legs=legs, sides={"k1": "k1", "a2": "k1"})})
    asks(bench, "1002", "k1")
    assert not bench.machine.core.calls
    bench.store_back()
    assert statuses(bench) == [200] and bench.said(link.EndLeg, leg="a1")
    assert bench.hears(customer) == bench.hears(party) == "people"


@pytest.mark.parametrize("given_up", [False, True])
def test_a_consultation_that_a_restarted_app_is_told_of_before_it_has_the_call(given_up: bool) -> None:
    """And whose line is over before it has it: nobody is called for it."""
    bench = Bench()
    talk(bench)
    bench.store.up = False
    bench.restart_app()
    legs = {leg: link.LegAtEdge(state="answered", held=leg == "a1") for leg in ("c", "a1")}
    bench.link(calls={"k1": link.CallAtEdge(epoch=E, legs=legs)})
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "1002"))
    if given_up:
        bench.frame(link.LegGone("k1", "k1", E, cause="", status=503, by="edge"))
    bench.store_back()
    assert bool(bench.dialled()) != given_up


@pytest.mark.parametrize("gone", [False, True])
def test_whoever_consults_while_a_restarted_app_waits_for_the_record_in_vain(gone: bool) -> None:
    """The dialplan has him then: a second line is none of its business, and one that is over of nobody's."""
    bench = Bench()
    talk(bench)
    bench.store.up = False
    bench.restart_app()
    bench.link(calls={"k1": link.CallAtEdge(epoch=E, legs={"c": link.LegAtEdge(state="answered")})})
    bench.frame(link.ConsultAsked("k1", "k1", E, "c", "1002"))
    if gone:
        bench.frame(link.LegGone("k1", "k1", E, cause="16", by="edge"))
    bench.sleep(4)
    call = bench.machine.core.calls["k1"]
    assert call.stage == "dialplan" and [leg.leg for leg in call.living()] == ["c"]
    second = second_line(bench, "1001", "1002", leg="k2")
    assert second not in bench.asterisk.channels and not bench.dialled()


def test_the_caller_hung_up_while_the_call_moved() -> None:
    bench = Bench()
    consulting(bench)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    channels = bench.resume("k1", "7.2", {"k1": "up", "a2": "up"}, ended={"c": "phone", "a1": "edge"})
    assert bench.hears(channels["k1"]) == bench.hears(channels["a2"]) == "people"
    bench.sleep(0.5)
    assert bench.agent("1001").work == "talking"
    bench.gone("k1", "a2", "7.2")
    bench.sleep(4)
    assert bench.said(link.EndLeg, leg="k1") and {bench.agent(a).work for a in ("1001", "1002")} == {"idle"}


def test_the_caller_hung_up_before_the_consulted_one_was_called() -> None:
    """The survivor calls him for whoever leads the call now, once, though the edge asks for it again."""
    bench = Bench()
    talk(bench)
    bench.frame(link.LegHeld("k1", "a1", E, True))
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "1002"))
    assert len(bench.dialled()) == 1
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    ended = {"c": "phone", "a1": "edge"}
    lines = {"head": "k1", "lines": {"k1": "a1"}}
    second = bench.resume("k1", "7.2", {"k1": "ringing"}, ended=ended, **lines)["k1"]
    bench.frame(link.ConsultAsked("k1", "k1", "7.2", "a1", "1002"))
    (party,) = bench.dialled()
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", "k1", "7.2"))
    assert bench.hears(second) == bench.hears(party) == "people"


@pytest.mark.parametrize("answered", [False, True])
def test_taken_up_while_a_second_line_leads_the_call_and_its_party_rings(answered: bool) -> None:
    """The caller hung up while the call moved, and it moves again: his agent's line is no ring of the
    queue's, though it rings, and is not ended when nobody has answered it for a while, or the queue knows
    nothing of it."""
    bench = Bench(ring_timeout_ms=30_000)
    bench.trunk()
    (agent,) = bench.dialled()
    bench.ring(agent)
    if answered:
        bench.pick_up(agent)
    for epoch, facts in (("7.2", {"k1": "ringing"}), ("7.3", {"k1": "ringing", "a2": "ringing"})):
        bench.asterisk_dies()
        bench.asterisk_back()
        bench.own("k1", epoch=epoch)
        ended = {"c": "phone", "a1": "edge"}
        lines = {"head": "k1", "lines": {"k1": "a1"}}
        channels = bench.resume("k1", epoch, facts, ended=ended, **lines)
        bench.frame(link.ConsultAsked("k1", "k1", epoch, "a1", "1002"))
    bench.sleep(8)
    assert not bench.said(link.EndLeg)
    bench.frame(link.LegAnswered("k1", "a2", "7.3"))
    bench.frame(link.LegAnswered("k1", "k1", "7.3"))
    assert bench.hears(channels["k1"]) == bench.hears(channels["a2"]) == "people"
    bench.sleep(0.5)
    assert {bench.agent(a).work for a in ("1001", "1002")} == {"talking"}


def test_a_second_line_of_a_call_that_is_not_here() -> None:
    """It has moved on, or is over: the edge hears a refusal."""
    bench = Bench()
    token = bench.token("k7", "k1", kind="agent", user="1001", did="1002")
    start = bench.asterisk.enter(f"ari-ha,agent,{token},dial,1002", "1002")
    bench.post(AriEvent(event=start))
    assert start.channel.id not in bench.asterisk.channels and not bench.machine.core.calls


def test_the_wrong_line_is_hung_up() -> None:
    """Of the two lines of a phone the one with the caller: he is not left alone with music."""
    bench = Bench()
    _, _, second, party = consulting(bench)
    bench.gone("k1", "a1")
    assert bench.said(link.EndLeg, leg="c") and not bench.said(link.EndLeg, leg="k1")
    bench.frame(link.LegGone("k1", "c", E, cause="16", by="edge"))
    assert bench.hears(second) == bench.hears(party) == "people"
    assert bench.agent("1001").work == "talking"
    bench.gone("k1", "k1")
    bench.sleep(4)
    assert {bench.agent(a).work for a in ("1001", "1002")} <= {"idle", "acw"}
    assert "k1" not in bench.machine.core.calls


def test_the_caller_hangs_up_while_the_consulted_one_rings() -> None:
    """The second line is not answered before its party is, whoever leads the call meanwhile."""
    bench = Bench()
    talk(bench)
    bench.frame(link.LegHeld("k1", "a1", E, True))
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "1002"))
    second = second_line(bench, "1001", "1002")
    (party,) = bench.dialled()
    bench.ring(party)
    bench.frame(link.LegGone("k1", "c", E, cause="16", by="phone"))
    bench.frame(link.LegGone("k1", "a1", E, cause="16", by="edge"))
    assert bench.asterisk.channels[second]["state"] == "Ring"
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", "k1", E))
    assert bench.hears(second) == bench.hears(party) == "people"


def test_both_consult_the_caller_hangs_up_and_his_party_is_there_first() -> None:
    """The other one's second line is answered by its own party only, and that one's refusal is no
    end of the conversation beside it."""
    bench = Bench()
    agent_dials(bench, "1002")
    bench.pick_up(bench.dialled()[0])
    seconds = {}
    for line, of, number in (("k1", "a1", "+4940"), ("k2", "c", "+4941")):
        bench.frame(link.LegHeld("k1", of, E, True))
        bench.frame(link.ConsultAsked("k1", line, E, of, number))
        seconds[line] = second_line(bench, "1001" if of == "c" else "1002", number, leg=line)
    refuses, answers = bench.dialled()
    bench.ring(refuses)
    bench.gone("k1", "c")
    bench.gone("k1", "a1", by="edge")
    bench.pick_up(answers)
    bench.frame(link.LegAnswered("k1", "k2", E))
    assert bench.asterisk.channels[seconds["k1"]]["state"] == "Ring"
    assert bench.hears(seconds["k2"]) == bench.hears(answers) == "people"
    bench.gone("k1", "a2", by="failed", status=603)
    assert [(f.leg, f.cause) for f in bench.said(link.EndLeg)] == [("k1", "603")]
    assert bench.hears(seconds["k2"]) == bench.hears(answers) == "people"
    assert bench.machine.core.calls["k1"].stage == "talking"


@pytest.mark.parametrize("first", ["c", "a1"])
def test_whoever_dialled_is_free_when_the_other_ones_consultation_is_all_that_is_left(first: str) -> None:
    """At once: no queue gave him the call, and the reconciler would be the next to see it."""
    bench = Bench()
    agent_dials(bench, "1002")
    bench.pick_up(bench.dialled()[0])
    bench.frame(link.LegHeld("k1", "a1", E, True))
    bench.frame(link.ConsultAsked("k1", "k1", E, "a1", "+4940"))
    second = second_line(bench, "1002", "+4940")
    (party,) = bench.dialled()
    bench.pick_up(party)
    bench.frame(link.LegAnswered("k1", "k1", E))
    assert bench.agent("1001").work == "talking" and bench.agent("1002").work == "consult"
    bench.gone("k1", first)
    bench.gone("k1", {"c": "a1", "a1": "c"}[first], by="edge")
    assert bench.hears(second) == bench.hears(party) == "people"
    assert bench.agent("1001").work in ("idle", "acw") and bench.agent("1002").work == "talking"


def test_who_consults_on_a_line_of_his_own_is_there_still_when_the_main_conversation_is_over() -> None:
    bench = Bench()
    agent_dials(bench, "1002")
    bench.pick_up(bench.dialled()[0])
    for line, of, number in (("k1", "a1", "+4940"), ("k2", "c", "+4941")):
        bench.frame(link.LegHeld("k1", of, E, True))
        bench.frame(link.ConsultAsked("k1", line, E, of, number))
        token = bench.token("k1", line, kind="agent", user="1001" if of == "c" else "1002", did=number)
        start = bench.asterisk.enter(f"ari-ha,agent,{token},dial,{number}", number)
        bench.post(AriEvent(event=start))
        (party,) = bench.dialled()
        bench.pick_up(party)
        bench.frame(link.LegAnswered("k1", line, E))
    bench.gone("k1", "c")
    bench.gone("k1", "a1", by="edge")
    bench.sleep(12.0)
    assert {bench.agent(a).work for a in ("1001", "1002")} <= {"talking", "consult"}
    bench.gone("k1", "k2")
    assert bench.agent("1001").work in ("idle", "acw") and bench.agent("1002").work == "talking"


def test_the_wrong_line_was_hung_up_while_the_call_moved() -> None:
    bench = Bench()
    consulting(bench)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    facts = {"c": "up", "k1": "up", "a2": "up"}
    channels = bench.resume("k1", "7.2", facts, ended={"a1": "phone"})
    assert bench.said(link.EndLeg, leg="c") and not bench.said(link.EndLeg, leg="a2")
    bench.frame(link.LegGone("k1", "c", "7.2", cause="16", by="edge"))
    assert bench.hears(channels["k1"]) == bench.hears(channels["a2"]) == "people"
    bench.sleep(0.5)
    assert bench.agent("1001").work == "talking"


def test_taken_up_with_a_record_older_than_the_consultation() -> None:
    """The survivor has been without etcd: it knows neither the second line nor its party."""
    bench = Bench()
    talk(bench)
    old = bench.record()
    consulting_leg = {"sides": {"k1": "k1", "a2": "k1"}, "lines": {"k1": "a1"}, "head": "c"}
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    assert old is not None and set(old.legs) == {"c", "a1"}
    facts = {"c": "up", "a1": "held", "k1": "up", "a2": "up"}
    channels = bench.resume("k1", "7.2", facts, **consulting_leg)
    bench.sleep(0.5)
    assert bench.hears(channels["k1"]) == bench.hears(channels["a2"]) == "people"
    assert bench.hears(channels["c"]) == "music" and not bench.said(link.EndLeg)


def test_taken_up_with_a_record_older_than_the_conference() -> None:
    """The edge knows that the three were brought together, and that one has left since."""
    bench = Bench()
    consulting(bench)
    old = bench.record()
    assert old is not None and old.legs["k1"].consult == "k1"
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    ended = {"a1": "app", "a2": "phone"}
    channels = bench.resume("k1", "7.2", {"c": "up", "k1": "up"}, ended=ended, head="c", lines={"k1": "a1"})
    bench.sleep(0.5)
    assert bench.hears(channels["c"]) == bench.hears(channels["k1"]) == "people"
    assert not bench.said(link.EndLeg)
    bench.sleep(12.0)
    assert bench.agent("1001").work in ("talking", "consult"), "he is on his other line"
    bench.gone("k1", "k1", "7.2")
    assert bench.agent("1001").work in ("acw", "idle")


@pytest.mark.parametrize("rung", [True, False])
def test_taken_up_with_the_record_of_a_conference_that_the_node_between_did_not_know(rung: bool) -> None:
    """Of the agent's two lines the first was to be ended; the next node, which took them for a consultation,
    ended the second when the party had hung up. It was lost before it had written that."""
    bench = Bench()
    _, _, second, _ = consulting(bench)
    types(bench, second, "*3")
    record = bench.record()
    assert record is not None and record.ending == {"a1": "16"}
    (attempt,) = record.attempts
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.3")
    facts, ended = {"c": "up", "a1": "held"}, {"a2": "phone", "k1": "app"}
    by = {"a1": link.Rung(attempt, "1001", "1001", "support")} if rung else {}
    channels = bench.resume("k1", "7.3", facts, ended=ended, head="c", rung=by)
    bench.sleep(0.5)
    assert not [end for end in bench.said(link.EndLeg) if end.epoch == "7.3"]
    assert bench.hears(channels["c"]) != bench.hears(channels["a1"]), "he is on hold still"
    bench.sleep(12.0)
    assert bench.agent("1001").work in ("talking", "hold")
    bench.gone("k1", "a1", "7.3")
    assert bench.agent("1001").work in ("acw", "idle")


def test_the_line_that_is_left_is_found_also_after_an_earlier_consultation() -> None:
    """As above, but he had consulted before, by a line that is over."""
    bench = Bench()
    consulting(bench)
    bench.gone("k1", "a2")
    bench.sleep(0.1)
    second, _ = consults(bench, "k2")
    types(bench, second, "*3")
    assert (record := bench.record()) is not None and {"k1", "a1"} <= set(record.ending)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.3")
    ended = {"a2": "phone", "k1": "app", "a3": "phone", "k2": "app"}
    bench.resume("k1", "7.3", {"c": "up", "a1": "held"}, ended=ended, head="c")
    bench.sleep(12.0)
    assert not [end for end in bench.said(link.EndLeg) if end.epoch == "7.3"]
    assert bench.agent("1001").work in ("talking", "hold")


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("by", ["app", "phone", ""])
@pytest.mark.parametrize(
    "had", ["his queue", "his number", "his number, rings", "a colleague", "a colleague, rings"]
)
def test_a_phone_rings_on_for_a_caller_of_whom_the_record_does_not_know_that_he_was_handed_on(
    had: str, by: str, store: bool
) -> None:
    """Whoever had him handed him on into a queue, and the node was lost before it had written that. ``had``:
    how somebody had him; ``by``: who ended that one's leg, as the edge says; ``store``: it is there."""
    bench = Bench(("1001", "1002", "1003"))
    if had == "his queue":
        talk(bench)
    else:
        _ = agent_dials(bench, "1003") if "colleague" in had else bench.trunk(verb="dial,1001")
        if "rings" not in had:
            bench.pick_up(bench.dialled()[0])
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    if not store:
        bench.store_away()
    channels = bench.resume(
        "k1", "7.2", {"c": "up", "a2": "ringing"}, ended={"a1": by} if by else {}, head="c",
        rung={"a2": link.Rung("t2", "1002", "1002", "second")},
        trunk="" if "colleague" in had else "carrier1",
    )  # fmt: skip
    bench.sleep(0.5)
    if not store:
        bench.store_back()
    assert not bench.said(link.EndLeg) and bench.waiting() == ["k1"] and not bench.dialled()
    rings = bench.agent("1002")
    assert rings.work == "ringing" and rings.attempt is not None
    assert (rings.attempt.attempt, rings.attempt.queue) == ("t2", "second")
    bench.frame(link.LegAnswered("k1", "a2", "7.2"))
    bench.sleep(1.0)
    assert bench.hears(channels["c"]) == bench.hears(channels["a2"]) == "people" and not bench.waiting()
    assert [bench.agent(name).work for name in ("1001", "1002", "1003")] == ["idle", "talking", "idle"]
    bench.gone("k1", "a2", "7.2")
    talked = {"his queue": [1, 1, 0], "his number": [1, 1, 0], "a colleague": [1, 1, 1]}.get(had, [0, 1, 0])
    assert [bench.agent(name).handled for name in ("1001", "1002", "1003")] == talked


def test_who_was_handed_into_a_queue_is_a_caller_also_where_no_record_knows_who_answered() -> None:
    """His caller had left while he consulted; whom he consulted handed him on, and two nodes were lost since:
    the third one goes by a record in which he leads a conversation of his own."""
    bench = Bench(("1001", "1002", "1003"))
    consulting(bench)
    bench.gone("k1", "c")
    assert (
        (record := bench.record()) is not None and record.head == "k1" and record.legs["k1"].agent == "1001"
    )
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.3")
    channels = bench.resume(
        "k1", "7.3", {"k1": "up", "a3": "up"}, ended={"c": "phone", "a1": "edge", "a2": "app"}, head="k1",
        lines={"k1": "a1"}, rung={"a3": link.Rung("t3", "1003", "1003", "second")}, trunk="carrier1",
    )  # fmt: skip
    bench.sleep(0.5)
    assert not bench.said(link.EndLeg, leg="k1") and not bench.said(link.EndLeg, leg="a3")
    assert bench.hears(channels["k1"]) == bench.hears(channels["a3"]) == "people"
    bench.sleep(12.0)
    assert [bench.agent(name).work for name in ("1001", "1003")] == ["idle", "talking"]
    bench.gone("k1", "a3", "7.3")
    assert [bench.agent(name).handled for name in ("1001", "1003")] == [1, 1]


@pytest.mark.parametrize("other", ["up", "ringing"])
def test_whose_first_line_is_ended_when_he_is_taken_up_is_on_his_second_one(other: str) -> None:
    """He had dialled, was left while he consulted, and his node was lost. He was counted twice."""
    bench = Bench()
    agent_dials(bench, "+4940")
    bench.pick_up(bench.dialled()[0])
    bench.frame(link.LegHeld("k1", "c", E, True))
    bench.frame(link.ConsultAsked("k1", "k1", E, "c", "+4941"))
    second_line(bench, "1001", "+4941")
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    facts = {"c": "held", "k1": other, "a2": other}
    sides = {"k1": "k1", "a2": "k1"}
    bench.resume("k1", "7.2", facts, ended={"a1": "phone"}, head="c", lines={"k1": "c"}, sides=sides)
    assert bench.said(link.EndLeg, leg="c")
    bench.sleep(0.5)
    assert bench.agent("1001").handled == 0 and bench.agent("1001").work in ("talking", "dialling")


def test_taken_up_with_a_record_older_than_the_end_of_the_main_conversation() -> None:
    bench = Bench()
    talk(bench)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    ended = {"c": "phone", "a1": "edge"}
    channels = bench.resume("k1", "7.2", {"k1": "up", "a2": "up"}, ended=ended, head="k1", lines={"k1": "a1"})
    bench.sleep(0.5)
    assert bench.hears(channels["k1"]) == bench.hears(channels["a2"]) == "people"
    assert not bench.said(link.EndLeg)


# --- three people ----------------------------------------------------------------------


def test_a_conference_keeps_the_dialog_that_is_not_on_hold() -> None:
    bench = Bench()
    customer, agent, second, party = consulting(bench)
    types(bench, second, "*3")
    assert bench.said(link.EndLeg, leg="a1") and not bench.said(link.EndLeg, leg="k1")
    assert {bench.hears(c) for c in (customer, second, party)} == {"people"}
    assert any(m >= {customer, second, party} for m in bench.asterisk.bridges.values())
    assert bench.said(link.WantMedia)[-1].state == "through"
    assert bench.agent("1001").work == "talking"
    bench.gone("k1", "a2")
    assert bench.hears(customer) == bench.hears(second) == "people"
    assert bench.said(link.WantMedia)[-1].state == "hitless"


def test_whoever_was_consulted_consults_in_turn_and_brings_his_three_together() -> None:
    """Not the caller's: that one waits, and whoever consulted first keeps his line."""
    bench = Bench()
    legs = consulting_in_turn(bench)
    types(bench, legs["k2"], "*3")
    assert [f.leg for f in bench.said(link.EndLeg)] == ["a2"]
    assert any(m == {legs["k1"], legs["k2"], legs["a3"]} for m in bench.asterisk.bridges.values())
    assert bench.hears(legs["c"]) == "music"


def test_of_three_in_a_consultation_one_hangs_up() -> None:
    bench = Bench()
    legs = consulting_in_turn(bench)
    types(bench, legs["k2"], "*3")
    bench.gone("k1", "a3")
    assert [f.leg for f in bench.said(link.EndLeg)] == ["a2"]
    assert bench.hears(legs["k1"]) == bench.hears(legs["k2"]) == "people"


def test_whoever_was_consulted_is_left_and_talks_on_with_whom_he_consults() -> None:
    """He is in the call until that is over too, and is counted once."""
    bench = Bench()
    consulting_in_turn(bench)
    bench.gone("k1", "k1")
    bench.gone("k1", "a2", by="edge")
    bench.sleep(12.0)
    assert bench.agent("1002").work in ("talking", "consult") and bench.agent("1002").handled == 0
    bench.gone("k1", "k2")
    assert (bench.agent("1002").work in ("acw", "idle"), bench.agent("1002").handled) == (True, 1)


def test_whoever_transfers_his_caller_while_he_consults_is_in_the_call_still() -> None:
    bench = Bench()
    consulting(bench)
    asks(bench, "+4930")
    (target,) = bench.dialled()
    bench.ring(target)
    assert bench.said(link.EndLeg, leg="a1")
    bench.sleep(12.0)
    assert {bench.agent(a).work for a in ("1001", "1002")} <= {"talking", "consult"}
    bench.gone("k1", "k1")
    bench.sleep(3.0)
    assert {bench.agent(a).work for a in ("1001", "1002")} <= {"acw", "idle"}
    assert bench.agent("1001").handled == 1


def test_whoever_was_consulted_transfers_whoever_consulted_him() -> None:
    bench = Bench()
    legs = consulting_in_turn(bench)
    asks(bench, "+4940", "k2", leg="a2")
    assert statuses(bench) == [200] and {f.leg for f in bench.said(link.EndLeg)} == {"a2", "k2"}
    assert any(m == {legs["k1"], legs["a3"]} for m in bench.asterisk.bridges.values())
    assert bench.hears(legs["c"]) == "music"


def test_the_caller_hung_up_before_the_edge_heard_of_the_conference() -> None:
    """For the edge the consultation goes on without him: nobody's leg is left to be lost."""
    bench = Bench()
    _, _, second, party = consulting(bench)
    types(bench, second, "*3")
    bench.frame(link.LegGone("k1", "c", E, cause="16", by="phone", head="k1"))
    bench.sleep(5.0)
    assert bench.hears(second) == bench.hears(party) == "people"
    assert bench.agent("1001").work == bench.agent("1002").work == "talking"
    bench.gone("k1", "k1")
    bench.sleep(5.0)
    assert not bench.asterisk.channels


def test_a_conference_is_said_again_before_the_end_of_the_line_that_it_replaces() -> None:
    """Else that line still leads the others for the edge, which ends them with it."""
    bench = Bench()
    _, _, second, _ = consulting(bench)
    bench.link_down()
    types(bench, second, "*3")
    bench.sent.clear()
    bench.link()
    words = [frame for frame in bench.sent if isinstance(frame, link.Conversations | link.EndLeg)]
    assert [type(frame) for frame in words] == [link.Conversations, link.EndLeg]
    assert (words[0].head, words[0].consult, words[1].leg) == ("c", {}, "a1")


def test_of_three_one_transfers_and_leaves_and_nobody_takes_it() -> None:
    """The other two talk on: neither waits for an agent again."""
    bench = Bench()
    customer, _, second, _ = consulting(bench)
    types(bench, second, "*3")
    asks(bench, "+4940", leg="a2")
    (target,) = bench.dialled()
    bench.ring(target)
    assert bench.said(link.EndLeg, leg="a2")
    bench.gone("k1", "a3", by="failed", status=603)
    (asker,) = bench.dialled()
    assert bench.target(asker) == "device:1002", "whoever asked is rung again"
    bench.gone("k1", "a4", by="failed", status=486)
    assert bench.machine.core.calls["k1"].stage == "talking" and not bench.waiting()
    assert bench.hears(customer) == bench.hears(second) == "people"
    assert bench.agent("1001").work == "talking"
    bench.gone("k1", "k1")
    assert bench.said(link.EndLeg, leg="c")


def of_three_one_consults(bench: Bench) -> None:
    """1002, whom 1001 has brought together with his caller, talks to somebody outside meanwhile."""
    _, _, second, _ = consulting(bench)
    types(bench, second, "*3")
    bench.frame(link.LegHeld("k1", "a2", E, True))
    bench.frame(link.ConsultAsked("k1", "k2", E, "a2", "+4940"))
    token = bench.token("k1", "k2", kind="agent", user="1002", did="+4940")
    bench.post(AriEvent(event=bench.asterisk.enter(f"ari-ha,agent,{token},dial,+4940", "+4940")))
    (outside,) = bench.dialled()
    bench.pick_up(outside)
    bench.frame(link.LegAnswered("k1", "k2", E))


def test_of_three_one_consults_and_hangs_up_the_line_to_the_others() -> None:
    bench = Bench()
    of_three_one_consults(bench)
    bench.gone("k1", "a2")
    bench.sleep(12.0)
    assert {bench.agent(a).work for a in ("1001", "1002")} <= {"talking", "consult"}
    bench.gone("k1", "k2")
    assert (bench.agent("1002").work in ("acw", "idle"), bench.agent("1002").handled) == (True, 1)


def test_whom_a_colleague_called_comes_by_no_queue_on_his_other_line_either() -> None:
    """The node before let him go when he hung up the line to the others."""
    bench = Bench()
    idle = bench.agent("1002")
    of_three_one_consults(bench)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.store.put(bench.keys.agent("1002"), idle)
    bench.read("agents")
    bench.own("k1", epoch="7.2")
    bench.resume(
        "k1", "7.2", {"c": "up", "k1": "up", "k2": "up", "a3": "up"}, ended={"a1": "app", "a2": "phone"},
        head="c", sides={"k2": "k2", "a3": "k2"}, lines={"k1": "a1", "k2": "a2"},
        targets={"a3": "number:+4940"},
    )  # fmt: skip
    part = bench.agent("1002").attempt
    assert part is not None and (part.attempt, part.queue) == ("k1", "")
    assert bench.agent("1001").work in ("talking", "consult")


def test_a_conference_is_taken_up_with_all_three() -> None:
    bench = Bench()
    _, _, second, _ = consulting(bench)
    types(bench, second, "*3")
    bench.sleep(0.1)
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    channels = bench.resume("k1", "7.2", {"c": "up", "k1": "up", "a2": "up"}, ended={"a1": "app"})
    assert any(m >= set(channels.values()) for m in bench.asterisk.bridges.values())
    assert bench.agent("1001").work == "talking"


# --- another phone takes a leg over ------------------------------------------------------


def taken(bench: Bench, leg: str = "a1", device: str = "1002") -> None:
    bench.frame(link.LegTaken("k1", leg, E, f"device:{device}"))


@pytest.mark.parametrize("times", [1, 2])
def test_a_colleague_takes_the_call_over(times: int) -> None:
    bench = Bench(agents=("1001", "1002"))
    customer, agent = talk(bench)
    for _ in range(times):
        taken(bench)
    assert bench.agent("1002").work == "talking" and bench.agent("1001").work == "acw"
    assert bench.hears(customer) == bench.hears(agent) == "people"
    leg = bench.record().legs["a1"]
    assert (leg.agent, leg.target) == ("1002", "device:1002")
    bench.gone("k1", "a1")
    assert bench.agent("1002").work == "idle", "no queue gave him the call"
    assert bench.said(link.EndLeg, leg="c")


def test_a_colleague_picks_up_what_rings() -> None:
    bench = Bench(agents=("1001", "1002", "1003"))
    customer, _ = talk(bench)
    asks(bench, "1003")
    (party,) = bench.dialled()
    bench.ring(party)
    taken(bench, "a2", "1002")
    bench.pick_up(party)
    assert bench.agent("1002").work == "talking" and bench.agent("1003").work == "idle"
    assert bench.hears(customer) == bench.hears(party) == "people"


def test_a_phone_where_nobody_is_logged_in_takes_the_call_over() -> None:
    bench = Bench(agents=("1001", "1002"))
    talk(bench)
    taken(bench, device="1050")
    assert bench.agent("1001").work == "acw" and bench.record().legs["a1"].agent == ""
    bench.gone("k1", "a1")
    assert bench.said(link.EndLeg, leg="c")
