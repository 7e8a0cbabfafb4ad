"""The client machine over random faults: whatever happens on the way to etcd, what it
says about transactions, changes and its lease is true."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ari_ha.core.machine import DeadlineReached, Done, Refused, Unreachable
from ari_ha.core.ports.store import (
    Compare,
    Delete,
    LeaseState,
    Put,
    StoreChanged,
    StoreReach,
    StoreSnapshot,
    StoreTxn,
)
from ari_ha.machines.etcd_client import EtcdClient, EtcdTimings
from ari_ha.simulation.fake_etcd import FakeEtcd
from ari_ha.simulation.fake_etcd_members import FakeMembers
from ari_ha.wire import etcd as wire

ENDPOINTS = ("a:1", "b:1", "c:1")
PREFIX = "/m/"
TTL_S = 5
FAULTY_S, CALM_S = 30.0, 12.0


class World:
    """One process's client, three members, one other writer, and a clock."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 1000.0
        self.etcd = FakeEtcd(Random(seed + 1))
        self.log = []
        write = self.etcd._write

        def logged(change):
            self.log.append(change)
            write(change)

        self.etcd._write = logged
        self.members = FakeMembers(self.etcd, ENDPOINTS, Random(seed + 2))
        timings = EtcdTimings(list_page_keys=3)
        self.client = EtcdClient(ENDPOINTS, Random(seed + 3), timings)
        self.told, self.outcomes, self.submitted = [], {}, {}
        self.lease = LeaseState(held=False)
        self.known: dict[str, bytes] | None = None
        self.revision = 0
        self.refuse_odds = 0.0

    def feed(self, event):
        for effect in self.client.handle(event, self.now):
            match effect:
                case wire.Settle(ticket=ticket, outcome=outcome):
                    assert ticket not in self.outcomes
                    self.outcomes[ticket] = outcome
                case wire.Deliver(event=told):
                    if self.rng.random() < self.refuse_odds:
                        self.feed_later = [*getattr(self, "feed_later", []), wire.DeliveryRefused(event=told)]
                    else:
                        self.take(told)
                case _:
                    self.members.perform(effect, self.now)
        self.client.check()
        for later in self.__dict__.pop("feed_later", []):
            self.feed(later)

    def take(self, event):
        self.told.append((self.now, event))
        match event:
            case StoreSnapshot(items=items, revision=revision):
                assert revision >= self.revision
                self.known = {key: kv.value for key, kv in items.items()}
                self.revision = revision
                expected = {}
                for change in self.log:
                    if change.revision <= revision and change.key.startswith(PREFIX):
                        expected.pop(change.key, None)
                        if change.value is not None:
                            expected[change.key] = change.value.value
                assert self.known == expected
            case StoreChanged(key=key, value=value, revision=revision):
                if not self.refuse_odds:
                    self.expect_next(event)
                self.revision = revision
                assert self.known is not None
                if value is None:
                    self.known.pop(key, None)
                else:
                    self.known[key] = value.value
            case LeaseState():
                self.lease = event

    def expect_next(self, event):
        """Every change is told, in order, once: the next one of the log is this one."""
        told = [e for _, e in self.told if isinstance(e, StoreChanged | StoreSnapshot)]
        before = told[-2]
        if isinstance(before, StoreSnapshot):
            done = [c for c in self.log if c.revision <= before.revision]
        else:
            index = next(
                n for n, c in enumerate(self.log) if (c.revision, c.key) == (before.revision, before.key)
            )
            done = self.log[: index + 1]
        following = next(c for c in self.log[len(done) :] if c.key.startswith(PREFIX))
        assert (following.revision, following.key) == (event.revision, event.key)

    def submit(self):
        ticket = len(self.submitted) + 1
        key = f"{PREFIX}{self.rng.randrange(4)}"
        other = f"{PREFIX}{self.rng.randrange(4)}x"
        current = self.etcd.keys.get(key)
        compares = ()
        if self.rng.random() < 0.9:
            compares = (Compare(key, current.mod_revision if current else 0),)
        if self.rng.random() < 0.3:
            around = self.etcd.keys.get(other)
            compares += (Compare(other, around.mod_revision if around else 0),)
        value = f"op{ticket}".encode()
        leased = self.rng.random() < 0.2
        deletes = (Delete(other),) if self.rng.random() < 0.3 else ()
        effect = StoreTxn(compares=compares, puts=(Put(key, value, leased),), deletes=deletes)
        self.submitted[ticket] = (self.now, effect)
        self.feed(wire.Submitted(ticket=ticket, effect=effect))

    def other_writer(self):
        if not self.etcd.has_leader(self.now):
            return
        key = f"{PREFIX}{self.rng.randrange(4)}"
        if self.rng.random() < 0.3:
            self.etcd.txn(StoreTxn(deletes=(Delete(key),)), self.now)
        else:
            two = f"{PREFIX}{self.rng.randrange(4)}x"
            value = f"other{len(self.log)}".encode()
            self.etcd.txn(StoreTxn(puts=(Put(key, value), Put(two, value))), self.now)

    def run_until(self, end):
        while True:
            wanted = self.client.deadline()
            times = [end] + [
                t for t in (wanted, self.members.next_at(), self.etcd.next_at()) if t is not None
            ]
            self.now = max(self.now, min(times))
            for event in self.members.due(self.now):
                self.feed(event)
            wanted = self.client.deadline()
            if wanted is not None and wanted <= self.now:
                self.feed(DeadlineReached())
                again = self.client.deadline()
                assert again is None or again > self.now, "a deadline that does not move"
            if self.lease.held and self.now < self.lease.until:
                assert self.lease.lease in self.etcd.leases, "authority without a lease"
            if self.now >= end:
                return

    def one_fault(self):
        pick = self.rng.randrange(7)
        endpoint = self.rng.choice(ENDPOINTS)
        if pick == 0:
            self.members.state[endpoint] = self.rng.choice(["refuses", "frozen"])
        elif pick == 1:
            self.members.state[endpoint] = "well"
        elif pick == 2:
            self.etcd.lose_leader(self.now + self.rng.uniform(0.1, 3.0))
        elif pick == 3:
            self.members.break_streams(endpoint, self.now)
        elif pick == 4:
            self.etcd.compact()
        elif pick == 5:
            self.members.lost_odds = self.rng.choice([0.0, 0.2, 0.6])
        else:
            self.members.late_odds = self.rng.choice([0.0, 0.2, 0.5])

    def run(self):
        self.feed(wire.MirrorWanted(prefix=PREFIX))
        self.feed(wire.LeaseWanted(ttl_s=TTL_S))
        self.feed(wire.Start())
        end = self.now + FAULTY_S
        while self.now < end:
            self.run_until(self.now + self.rng.uniform(0.01, 0.4))
            if self.rng.random() < 0.25:
                self.one_fault()
            for _ in range(self.rng.randrange(3)):
                self.rng.choice([self.submit, self.submit, self.other_writer])()
        self.members.lost_odds = self.members.late_odds = 0.0
        for endpoint in ENDPOINTS:
            self.members.state[endpoint] = "well"
        self.run_until(self.now + CALM_S)
        self.refuse_odds = 0.0
        self.other_writer()
        self.run_until(self.now + CALM_S)

    def judge(self):
        assert set(self.outcomes) == set(self.submitted)
        applied = {}
        for change in self.log:
            if change.value is not None and change.value.value.startswith(b"op"):
                applied.setdefault(change.value.value, []).append(change.revision)
        for ticket in self.submitted:
            revisions = applied.get(f"op{ticket}".encode(), [])
            assert len(revisions) <= 1, "applied twice"
            outcome = self.outcomes[ticket]
            if isinstance(outcome, Done) and outcome.value.succeeded:
                assert revisions == [outcome.value.revision]
            elif isinstance(outcome, Done | Refused | Unreachable):
                assert revisions == [], outcome
        wanted = {k: kv.value for k, kv in self.etcd.keys.items() if k.startswith(PREFIX)}
        assert self.known == wanted
        assert self.lease.held
        reach = [event for _, event in self.told if isinstance(event, StoreReach)]
        assert reach[-1].reachable
        for before, after in pairwise(reach):
            assert (before.reachable, before.no_leader) != (after.reachable, after.no_leader)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_what_the_client_says_is_true(seed):
    world = World(seed)
    world.run()
    world.judge()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_a_process_without_room_ends_up_with_the_same_state(seed):
    world = World(seed)
    world.refuse_odds = 0.2
    world.run()
    assert world.known == {k: kv.value for k, kv in world.etcd.keys.items() if k.startswith(PREFIX)}
    assert world.lease.held


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_is_the_same_run(seed):
    one, two = World(seed), World(seed)
    one.run()
    two.run()
    assert one.told == two.told and one.outcomes == two.outcomes
