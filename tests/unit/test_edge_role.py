"""Two edges of one address: a standby that has every call at hand, and the end of an owner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ari_ha.core.ids import NodeId
from ari_ha.core.machine import DeadlineReached, Done, OutcomeOf, Unreachable
from ari_ha.core.ports.guard import PairWord, StandDown, TellGuard
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp
from ari_ha.core.ports.probe import WallClock
from ari_ha.core.ports.sip import SendSip
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreReach, StoreTxn, StoreUnwatch, TxnResult
from ari_ha.machines.edge import EdgeMachine
from ari_ha.machines.edge_role import STREAM_WAIT_S
from ari_ha.machines.edge_store import CALLS_PER_TXN_MAX
from ari_ha.sip import events as sip
from ari_ha.wire import link
from ari_ha.wire.beat import RoleWord
from ari_ha.wire.keyspace import OwnerValue, VipValue, decode, encode
from tests.support.edge_world import EdgeWorld
from tests.unit.test_edge_machine import talking


class Pair(EdgeWorld):
    """An edge that serves, and a second one that mirrors what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.add_user("1001")
        self.snapshots()
        self.first = self.edge
        self.said: list[Any] = []
        self.standby = EdgeMachine(
            replace(self.config(), edge="edge2", guarded=True, process="p2"), self.new_id
        )
        self.as_standby(WallClock(utc_s=1_800_000_000 + self.now), StoreReach(reachable=True))
        self.edge = self.standby
        self.snapshots()
        self.edge = self.first

    def as_standby(self, *events: Any) -> list[Any]:
        out = [effect for event in events for effect in self.standby.handle(event, self.now)]
        self.said += out
        return out

    def mirror(self) -> None:
        """etcd's stream: every key as it is now, in the order of the writes."""
        for item in sorted(self.store.values(), key=lambda item: item.mod_revision):
            self.as_standby(StoreChanged(key=item.key, value=item, revision=item.mod_revision))

    def named(self, edge: str, process: str) -> StoreChanged:
        """A guard has written the key of the address."""
        self.revision += 1
        key = self.keys.vip("pair1")
        value = VipValue(edge=edge, since=1.0, process=process)
        self.store[key] = KeyValue(key, encode(value), self.revision)
        return StoreChanged(key=key, value=self.store[key], revision=self.revision)

    def word(self, revision: int, process: str = "p2", after: int = 0) -> PairWord:
        return PairWord(word=RoleWord(edge="edge2", process=process, revision=revision, after=after))

    def take_over(self) -> None:
        """The first edge is gone; everything reaches the second from now on."""
        event = self.named("edge2", "p2")
        self.edge = self.standby
        self.post(event)
        self.settle()


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_standby_says_nothing_and_is_warm(pair: Pair) -> None:
    talking(pair)
    pair.mirror()
    for _ in range(20):
        pair.now += 0.1
        pair.as_standby(DeadlineReached())
    assert pair.standby.warm and not pair.standby.serving
    assert not [effect for effect in pair.said if isinstance(effect, SendSip)]
    words = [effect.word for effect in pair.said if isinstance(effect, TellGuard)]
    assert len(words) >= 5 and words[-1].warm and words[-1].revision == 0


def test_who_stands_by_follows_the_calls_and_who_serves_does_not_read_back_its_own_words(pair: Pair) -> None:
    talking(pair)
    pair.mirror()
    assert not [effect for effect in pair.said if isinstance(effect, StoreUnwatch)]
    said = pair.as_standby(pair.named("edge2", "p2"))
    unwatched = [effect.prefix for effect in said if isinstance(effect, StoreUnwatch)]
    assert pair.standby.serving and unwatched == [pair.keys.prefix("dialogs")]


def test_the_call_goes_on_at_the_second_edge_and_can_be_ended(pair: Pair) -> None:
    caller, call, node, phone, _ = talking(pair)
    pair.mirror()
    before = len(pair.sip_log)
    pair.take_over()
    said = [data for _, _, host, data in pair.sip_log[before:] if host != node.host]
    assert pair.edge.serving and not [data for data in said if not data.startswith(b"OPTIONS")]
    owner = decode(pair.store[pair.keys.owner(call.call)].value, OwnerValue, "")
    assert owner.edge == "edge2"
    pair.carrier.sip.hangup(caller, pair.now)
    pair.settle()
    pair.run(1)
    assert phone.of(sip.LegEnded) and not pair.edge.calls.by_id


def nodes_are_heard(pair: Pair) -> None:
    """The standby has links to every node's app."""
    for node in pair.nodes.values():
        pair.as_standby(LinkUp(peer=node.name))
        says(pair, node.name, link.NodeHello(node=node.name, incarnation=f"{node.name}-1"))
        says(pair, node.name, link.NodeState(ready=True, asterisk="up"))


def says(pair: Pair, node: str, frame: Any) -> None:
    pair.as_standby(LinkReceived(peer=node, frame=frame))


def test_a_node_that_was_lost_while_we_stood_by_is_not_waited_for(pair: Pair) -> None:
    """The active edge and a node's Asterisk go in one moment; the standby hears of the second one before it
    serves, and the node says nothing more."""
    _, call, node, phone, _ = talking(pair)
    pair.mirror()
    nodes_are_heard(pair)
    says(pair, node.name, link.AsteriskGone(incarnation=f"{node.name}-1", reason="process gone"))
    node.gone = True
    pair.take_over()
    pair.run(1)
    (moved,) = pair.edge.calls.by_id.values()
    assert moved.call == call.call and moved.owner.name != node.name and not moved.lost
    assert not phone.of(sip.ReinviteReceived) and not phone.of(sip.LegEnded)


@pytest.mark.parametrize("said", [True, False, None])
def test_what_a_node_serves_since_it_was_lost_stays_there(pair: Pair, said: bool | None) -> None:
    """``said``: its app had told that Asterisk is gone; else only that it is another one. None: it was not
    heard any more when it had told that."""
    nodes_are_heard(pair)
    for node in pair.nodes.values():
        if said is not False:
            says(pair, node.name, link.AsteriskGone(incarnation=f"{node.name}-1", reason="process gone"))
        if said is None:
            pair.as_standby(LinkDown(peer=node.name, reason="silence", clean=False))
            pair.post_link(node, f"{node.name}-2")
            continue
        says(pair, node.name, link.NodeHello(node=node.name, incarnation=f"{node.name}-2"))
        says(pair, node.name, link.NodeState(ready=True, asterisk="up"))
        pair.post_link(node, f"{node.name}-2")
    pair.run(1)
    _, call, node, *_ = talking(pair)
    assert call.owner == NodeId(node.name, f"{node.name}-2")
    pair.mirror()
    pair.take_over()
    pair.run(1)
    (same,) = pair.edge.calls.by_id.values()
    assert same.owner == call.owner and not same.moves and not same.lost


def test_who_takes_over_writes_many_calls_in_few_transactions(pair: Pair) -> None:
    for _ in range(CALLS_PER_TXN_MAX + 6):
        pair.now += 0.5
        assert pair.call_in()[1]
    pair.mirror()

    def writes(said: list[Any]) -> list[StoreTxn]:
        return [
            effect for effect in said if isinstance(effect, StoreTxn) and effect.lane.startswith("store/")
        ]

    def owners(txns: list[StoreTxn]) -> list[str]:
        return [put.key for txn in txns for put in txn.puts if put.key.endswith("/owner")]

    first = writes(pair.as_standby(pair.named("edge2", "p2")))
    calls = sorted(pair.keys.owner(call) for call in pair.standby.calls.by_id)
    assert len(first) == 2 and sorted(owners(first)) == calls
    # one did not get through: its calls, and only those, are written again
    said = pair.as_standby(
        OutcomeOf(effect=first[0], outcome=Unreachable("no member")),
        OutcomeOf(effect=first[1], outcome=Done(TxnResult(True, pair.revision + 1))),
    )
    pair.now += 1.0
    again = writes(said + pair.as_standby(DeadlineReached()))
    assert len(again) == 1 and owners(again) == owners(first[:1])


def test_an_agents_end_reaches_the_app_from_the_second_edge(pair: Pair) -> None:
    _, call, node, phone, leg = talking(pair)
    pair.mirror()
    pair.take_over()
    pair.link_up(node)
    node.frames.clear()
    phone.sip.hangup(leg, pair.now)
    pair.settle()
    gone = [frame for frame in node.frames if isinstance(frame, link.LegGone)]
    assert [(frame.leg, frame.by) for frame in gone] == [("a1", "phone")]
    assert pair.edge.calls.by_id[call.call].tombstones == {"a1": "phone"}


def test_a_held_call_is_taken_off_hold_at_the_second_edge(pair: Pair) -> None:
    _, call, _, phone, leg = talking(pair)
    phone.sip.reinvite(leg, phone.sdp().replace("a=sendrecv", "a=sendonly"), pair.now)
    pair.settle()
    assert call.legs["a1"].held
    pair.mirror()
    pair.take_over()
    phone.heard.clear()
    phone.sip.reinvite(leg, phone.sdp(), pair.now)
    pair.settle()
    pair.run(0.2)
    assert phone.of(sip.ReinviteAnswered) and not phone.of(sip.ReinviteFailed)
    assert not pair.edge.calls.by_id[call.call].legs["a1"].held


def test_the_guards_word_waits_for_etcds_stream_but_not_for_long(pair: Pair) -> None:
    pair.mirror()
    revision = pair.named("edge2", "p2").revision
    pair.as_standby(pair.word(revision))
    assert not pair.standby.serving
    pair.now += STREAM_WAIT_S + 0.01
    pair.as_standby(DeadlineReached())
    assert pair.standby.serving and pair.standby.context.edge_revision == revision


def test_a_word_to_another_life_is_not_heard(pair: Pair) -> None:
    pair.as_standby(pair.word(99, process="p1"))
    pair.now += 1
    pair.as_standby(DeadlineReached())
    assert not pair.standby.serving


@pytest.mark.parametrize("how", ["etcd", "guard"])
def test_who_is_replaced_says_nothing_any_more(pair: Pair, how: str) -> None:
    pair.mirror()
    pair.as_standby(pair.named("edge2", "p2"))
    assert pair.standby.serving
    newer = pair.named("edge1", "p1")
    out = pair.as_standby(newer if how == "etcd" else pair.word(0, after=newer.revision))
    assert [effect for effect in out if isinstance(effect, StandDown)]
    pair.now += 5
    assert pair.as_standby(DeadlineReached(), pair.word(newer.revision + 1)) == []


def test_an_older_word_does_not_end_a_newer_role(pair: Pair) -> None:
    pair.mirror()
    pair.as_standby(pair.named("edge2", "p2"))
    pair.as_standby(pair.word(0, after=pair.standby.context.edge_revision - 1))
    assert pair.standby.serving and not pair.standby.role.down


@pytest.mark.parametrize("who", ["phone", "carrier"])
def test_who_hears_from_a_refused_write_that_another_is_active_stands_down_and_answers_nobody(
    pair: Pair, who: str
) -> None:
    """A BYE that it could not write down is the other one's to answer: the phone says it again."""
    caller, _, _, phone, leg = talking(pair)
    pair.mirror()
    pair.take_over()
    pair.named("edge1", "p1")  # neither guard nor stream has told it yet
    before = len(pair.sip_log)
    end, what = (phone, leg) if who == "phone" else (pair.carrier, caller)
    end.sip.hangup(what, pair.now)
    pair.settle()
    assert pair.standby.role.down
    pair.run(2)
    said = [data for _, by, _, data in pair.sip_log[before:] if by == "edge"]
    assert not [data for data in said if data.startswith(b"SIP/2.0 200")]


@pytest.mark.parametrize("who", ["phone", "carrier"])
def test_what_the_fence_refuses_is_written_again_where_it_is_our_own_newer_revision(
    pair: Pair, who: str
) -> None:
    caller, call, _, phone, leg = talking(pair)
    pair.mirror()
    pair.take_over()
    newer = pair.named("edge2", "p2")  # its guard has claimed the address anew, and not said so yet
    end, what = (phone, leg) if who == "phone" else (pair.carrier, caller)
    before = len(pair.sip_log)
    end.sip.hangup(what, pair.now)
    pair.settle()
    pair.run(0.2)
    assert pair.standby.serving and not pair.standby.role.down
    assert pair.standby.context.edge_revision == newer.revision
    assert [
        data for _, by, _, data in pair.sip_log[before:] if by == "edge" and data.startswith(b"SIP/2.0 200")
    ]
    owner = pair.keys.owner(call.call)
    if who == "carrier":
        assert owner not in pair.store, "its end is written down"
    else:
        assert pair.store[owner].mod_revision > newer.revision
