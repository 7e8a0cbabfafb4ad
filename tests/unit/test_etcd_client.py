"""The etcd client machine, step by step: what it asks, concludes and says."""

from __future__ import annotations

from random import Random

import pytest

from ari_ha.core.machine import DeadlineReached, Refused, Unreachable
from ari_ha.core.ports.store import (
    LeaseState,
    Put,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
)
from ari_ha.machines.etcd_client import EtcdClient, EtcdTimings
from ari_ha.wire import etcd as wire
from ari_ha.wire.etcd import Failure, Trouble
from ari_ha.wire.etcd_proto import messages as pb

THREE = ("a:1", "b:1", "c:1")


class Bench:
    """Feeds events at a hand-turned clock and keeps what came out."""

    def __init__(self, endpoints=THREE, login=None) -> None:
        self.client = EtcdClient(endpoints, Random(1), EtcdTimings(), login)
        self.now = 0.0
        self.open: list[wire.EtcdCall] = []
        self.told, self.settled, self.sent, self.resets = [], {}, [], []
        self.stream = None
        self.revision = 10

    def feed(self, event):
        for effect in self.client.handle(event, self.now):
            match effect:
                case wire.EtcdCall():
                    self.open.append(effect)
                case wire.Deliver(event=told):
                    self.told.append(told)
                case wire.Settle(ticket=ticket, outcome=outcome):
                    self.settled[ticket] = outcome
                case wire.StreamOpen(stream=stream):
                    self.stream = stream
                case wire.StreamSend(request=request):
                    self.sent.append(request)
                case wire.MemberReset(endpoint=endpoint):
                    self.resets.append(endpoint)

    def answer(self, result, method=None, endpoint=None):
        """Answers the oldest fitting open call."""
        call = next(
            c
            for c in self.open
            if (method is None or c.method == method) and (endpoint is None or c.endpoint == endpoint)
        )
        self.open.remove(call)
        self.feed(wire.EtcdAnswer(call=call.call, result=result))
        return call

    def well(self):
        return pb.RangeResponse(header=pb.ResponseHeader(cluster_id=1, revision=self.revision))

    def adopt(self, endpoint="a:1", version="3.6.1"):
        self.feed(wire.Start())
        self.answer(self.well(), "Range", endpoint)
        self.answer(pb.StatusResponse(version=version), "Status")
        self.answer(pb.MemberListResponse(members=[pb.Member(ID=n) for n in (1, 2, 3)]), "MemberList")
        self.open.clear()
        return self

    def sleep_until_due(self):
        self.now = self.client.deadline()
        self.feed(DeadlineReached())

    def said(self, **fields):
        fields.setdefault("header", pb.ResponseHeader(cluster_id=1, revision=self.revision))
        self.feed(wire.StreamSaid(stream=self.stream, response=pb.WatchResponse(**fields)))

    def mirrored(self):
        """Mirrors /m/ up to the watch's confirmation."""
        self.feed(wire.MirrorWanted(prefix="/m/"))
        self.answer(self.well(), "Range")
        watch_id = self.sent[-1].create_request.watch_id
        self.said(watch_id=watch_id, created=True)
        return watch_id


def failed(trouble, detail=""):
    return Failure(trouble, detail)


def test_all_members_are_asked_and_the_first_good_answer_wins():
    b = Bench()
    b.feed(wire.Start())
    assert sorted(c.endpoint for c in b.open) == sorted(THREE)
    b.answer(b.well(), endpoint="b:1")
    assert b.client.endpoint == "b:1" and b.told == [StoreReach(reachable=True)]
    b.answer(b.well(), "Range", "c:1")
    assert b.client.endpoint == "b:1"


@pytest.mark.parametrize(
    ("troubles", "no_leader"),
    [
        ((Trouble.NO_LEADER, Trouble.NO_LEADER, Trouble.TIMED_OUT), True),
        ((Trouble.NO_LEADER, Trouble.REFUSED_CONNECTION, Trouble.TIMED_OUT), True),
        ((Trouble.NO_LEADER, Trouble.TIMED_OUT, Trouble.TIMED_OUT), False),
        ((Trouble.TIMED_OUT, Trouble.NOT_SENT, Trouble.NOT_SENT), False),
    ],
)
def test_no_leader_is_said_only_when_the_rest_could_not_commit_either(troubles, no_leader):
    b = Bench()
    b.feed(wire.Start())
    for trouble in troubles:
        b.answer(failed(trouble))
    assert [(e.reachable, e.no_leader) for e in b.told] == [(False, no_leader)]


def test_one_configured_member_that_refuses_proves_nothing_about_others():
    b = Bench(("a:1",))
    b.feed(wire.Start())
    b.answer(failed(Trouble.REFUSED_CONNECTION))
    assert not b.told[0].no_leader


def test_being_away_is_said_once_and_operations_are_answered_at_once():
    b = Bench(("a:1",))
    b.feed(wire.Start())
    b.feed(wire.Submitted(ticket=1, effect=StoreTxn(puts=(Put("/k", b"v"),))))
    b.answer(failed(Trouble.TIMED_OUT), "Range")
    b.feed(wire.Submitted(ticket=2, effect=StoreTxn(puts=(Put("/k", b"v"),))))
    assert isinstance(b.settled[2], Unreachable)
    b.sleep_until_due()
    b.answer(failed(Trouble.TIMED_OUT), "Range")
    assert len(b.told) == 1


def test_a_member_that_does_not_answer_its_pulse_is_left_and_its_connection_dropped():
    b = Bench().adopt()
    b.sleep_until_due()
    assert b.now == pytest.approx(1.0)
    b.answer(failed(Trouble.TIMED_OUT), "Range", "a:1")
    assert b.client.endpoint is None and b.resets == ["a:1"]
    # The one just left is taken again only when no other will do.
    b.answer(b.well(), "Range", "a:1")
    assert b.client.endpoint is None
    b.answer(b.well(), "Range", "c:1")
    assert b.client.endpoint == "c:1"


def test_silence_of_the_watch_is_asked_about_and_then_ends_the_member():
    b = Bench().adopt()
    b.mirrored()
    b.sent.clear()
    b.sleep_until_due()
    b.answer(b.well(), "Range")  # the pulse
    assert [r.WhichOneof("request_union") for r in b.sent] == ["progress_request"]
    b.now = 1.5
    b.said(watch_id=-1)
    b.now = 2.4
    b.feed(DeadlineReached())
    b.answer(b.well(), "Range")
    assert b.client.endpoint == "a:1"
    b.now = 2.5
    b.feed(DeadlineReached())
    assert len(b.sent) == 2
    b.now = 3.49
    b.feed(DeadlineReached())
    b.answer(b.well(), "Range")
    b.now = 3.5
    b.feed(DeadlineReached())
    assert b.client.endpoint is None and b.resets == ["a:1"]


@pytest.mark.parametrize(("version", "resumes_at"), [("3.6.1", 50), ("3.4.23", 10)])
def test_progress_moves_the_resume_point_only_where_it_is_sound(version, resumes_at):
    b = Bench().adopt(version=version)
    b.mirrored()
    b.revision = 50
    b.said(watch_id=-1)
    b.feed(wire.StreamEnded(stream=b.stream, why=failed(Trouble.LOST)))
    b.answer(b.well(), "Range", "b:1")
    assert b.sent[-1].create_request.start_revision == resumes_at


def test_a_resumed_watch_begins_at_a_known_revision_and_tells_nothing_twice():
    b = Bench().adopt()
    watch_id = b.mirrored()
    kv = pb.KeyValue(key=b"/m/a", value=b"1", mod_revision=11)
    b.revision = 12
    b.said(watch_id=watch_id, events=[pb.Event(kv=kv)])
    b.feed(wire.StreamEnded(stream=b.stream, why=failed(Trouble.LOST)))
    b.answer(b.well(), "Range", "b:1")
    create = b.sent[-1].create_request
    assert create.start_revision == 11
    later = pb.KeyValue(key=b"/m/b", value=b"2", mod_revision=12)
    b.said(watch_id=create.watch_id, created=True)
    b.said(watch_id=create.watch_id, events=[pb.Event(kv=kv), pb.Event(kv=later)])
    assert [e.key for e in b.told if isinstance(e, StoreChanged)] == ["/m/a", "/m/b"]


def test_a_prefix_that_is_not_wanted_any_more_is_not_followed_or_read_again():
    b = Bench().adopt()
    watch_id = b.mirrored()
    b.feed(wire.MirrorWanted(prefix="/other/"))
    b.feed(wire.MirrorUnwanted(prefix="/m"))
    assert b.sent[-1].cancel_request.watch_id == watch_id
    kv = pb.KeyValue(key=b"/m/a", value=b"1", mod_revision=11)
    b.said(watch_id=watch_id, events=[pb.Event(kv=kv)])
    b.said(watch_id=watch_id, canceled=True)
    b.answer(b.well(), "Range")  # of the other, which goes on
    assert [e.prefix for e in b.told if isinstance(e, StoreSnapshot)] == ["/m/", "/other/"]
    assert not [e for e in b.told if isinstance(e, StoreChanged)]
    b.feed(wire.StreamEnded(stream=b.stream, why=failed(Trouble.LOST)))
    b.sent.clear()
    b.answer(b.well(), "Range", "b:1")
    assert [bytes(r.create_request.key) for r in b.sent] == [b"/other/"]


def test_a_prefix_given_up_while_it_is_read_is_not_told():
    b = Bench().adopt()
    b.feed(wire.MirrorWanted(prefix="/m/"))
    b.feed(wire.MirrorUnwanted(prefix="/m/"))
    b.answer(b.well(), "Range")
    assert not [e for e in b.told if isinstance(e, StoreSnapshot)] and not b.sent


def test_compaction_reads_the_prefix_again():
    b = Bench().adopt()
    watch_id = b.mirrored()
    b.said(watch_id=watch_id, canceled=True, compact_revision=30)
    b.revision = 40
    b.answer(b.well(), "Range")
    assert [e.revision for e in b.told if isinstance(e, StoreSnapshot)] == [10, 40]
    assert b.sent[-1].create_request.start_revision == 40


def test_another_cluster_behind_the_same_address_is_noticed():
    b = Bench().adopt()
    b.mirrored()
    b.feed(wire.StreamEnded(stream=b.stream, why=failed(Trouble.LOST)))
    b.answer(pb.RangeResponse(header=pb.ResponseHeader(cluster_id=2, revision=99)), "Range", "b:1")
    b.answer(b.well(), "Range", "b:1")
    assert len([e for e in b.told if isinstance(e, StoreSnapshot)]) == 2


def test_authority_of_a_lease_counts_from_the_sending_and_ends_before_the_ttl():
    b = Bench().adopt()
    b.feed(wire.LeaseWanted(ttl_s=10))
    b.now = 0.4
    b.answer(pb.LeaseGrantResponse(ID=7, TTL=10), "LeaseGrant")
    assert b.told[-1] == LeaseState(held=True, until=9.5, lease=7)
    while b.now < 9.4:
        b.sleep_until_due()
        for call in list(b.open):
            b.answer(b.well() if call.method == "Range" else failed(Trouble.BUSY), call.method)
    b.now = 9.5
    b.feed(DeadlineReached())
    assert b.told[-1] == LeaseState(held=False, lease=7)
    b.feed(wire.Submitted(ticket=1, effect=StoreTxn(puts=(Put("/k", b"v", leased=True),))))
    assert b.settled[1] == Refused("no lease")
    b.open.clear()
    b.sleep_until_due()


def test_a_lease_etcd_does_not_know_is_taken_anew_at_once():
    b = Bench().adopt()
    b.feed(wire.LeaseWanted(ttl_s=10))
    b.answer(pb.LeaseGrantResponse(ID=7, TTL=10), "LeaseGrant")
    b.now = 2.5
    b.feed(DeadlineReached())
    b.answer(pb.LeaseKeepAliveResponse(ID=7, TTL=0), "LeaseKeepAlive")
    assert b.told[-1] == LeaseState(held=False, lease=7)
    b.answer(pb.LeaseGrantResponse(ID=8, TTL=10), "LeaseGrant")
    assert b.told[-1].held and b.told[-1].lease == 8


def test_a_lease_shorter_than_its_renewal_is_a_local_mistake():
    with pytest.raises(ValueError):
        Bench().adopt().feed(wire.LeaseWanted(ttl_s=1))


def test_with_a_user_nothing_is_sent_before_the_login():
    b = Bench(("a:1",), login=("u", "p"))
    b.feed(wire.Start())
    b.feed(wire.Submitted(ticket=1, effect=StoreRead(key="/k")))
    assert [c.method for c in b.open] == ["Range"]  # the probe alone
    b.answer(b.well(), "Range")
    b.answer(pb.AuthenticateResponse(token="t1"), "Authenticate")
    assert {c.token for c in b.open} == {"t1"}
    read = b.answer(failed(Trouble.TOKEN), "Range")
    assert read.token == "t1"
    b.answer(pb.AuthenticateResponse(token="t2"), "Authenticate")
    assert b.answer(b.well(), "Range").token == "t2"
    assert b.settled[1].value == ()


def test_a_user_where_authentication_is_off():
    b = Bench(("a:1",), login=("u", "p"))
    b.feed(wire.Start())
    b.answer(b.well(), "Range")
    b.answer(failed(Trouble.REFUSED, "etcdserver: authentication is not enabled"), "Authenticate")
    b.answer(b.well(), "Range")
    assert b.told == [StoreReach(reachable=True)]


def test_stopping_revokes_the_lease_and_ends_what_is_under_way():
    b = Bench().adopt()
    b.feed(wire.LeaseWanted(ttl_s=10))
    b.answer(pb.LeaseGrantResponse(ID=7, TTL=10), "LeaseGrant")
    b.feed(wire.Submitted(ticket=1, effect=StoreRead(key="/k")))
    b.feed(wire.Stop(revoke=True))
    assert isinstance(b.settled[1], Unreachable)
    assert b.open[-1].method == "LeaseRevoke" and b.open[-1].request.ID == 7
    assert b.client.deadline() is None
