"""What a process may expect of etcd: the same cases against the fake and the real one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from random import Random

import pytest
from etcd_cluster import Cluster, Proxy, why_not

from ari_ha.core.machine import DEFAULT_EFFECT_LIMIT_S, Done, Refused, Unknown, Unreachable
from ari_ha.core.ports.store import (
    Compare,
    Delete,
    KeyValue,
    LeaseState,
    Put,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
    TxnResult,
)
from ari_ha.runtime.etcd import EtcdSettings, open_store
from ari_ha.simulation.fake_etcd import FakeEtcd
from ari_ha.wire import etcd as wire
from ari_ha.wire.etcd_proto import messages as pb

READ_TRIES_MAX = 5
LANE = "test"
NOISE_S = 5.0
"""How late a loaded machine may run this test's own loop."""


class Party:
    """One process that uses etcd, with all it was told."""

    def __init__(self, rig, link) -> None:
        self.rig, self.link, self.events = rig, link, []
        self.told_at: list[float] = []

    def take(self, event) -> None:
        self.events.append(event)
        self.told_at.append(self.rig.now())

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def changes(self, prefix=""):
        return [(e.key, e.value and e.value.value) for e in self.of(StoreChanged) if e.key.startswith(prefix)]

    def state(self, prefix):
        """What the process knows, from snapshots and changes alone."""
        known = {}
        for event in self.events:
            if isinstance(event, StoreSnapshot) and event.prefix == prefix:
                known = {key: kv.value for key, kv in event.items.items()}
            elif isinstance(event, StoreChanged) and event.key.startswith(prefix):
                if event.value is None:
                    known.pop(event.key, None)
                else:
                    known[event.key] = event.value.value
        return known

    async def until(self, holds, limit_s=30.0):
        await self.rig.until(holds, limit_s)

    async def ready(self):
        await self.until(lambda: self.of(StoreReach) and self.of(StoreReach)[-1].reachable)
        return self

    async def txn(self, *puts, compares=(), deletes=(), limit_s=2.0):
        return await self.rig.do(
            self, StoreTxn(lane=LANE, puts=puts, compares=compares, deletes=deletes, limit_s=limit_s)
        )

    async def put(self, key, value, leased=False):
        outcome = await self.txn(Put(key, value, leased))
        assert isinstance(outcome, Done) and outcome.value.succeeded, outcome
        return outcome.value.revision

    async def read(self, key, prefix=False):
        for _ in range(READ_TRIES_MAX):  # a connection that was just cut may still be found out
            outcome = await self.rig.do(self, StoreRead(lane=LANE, key=key, prefix=prefix))
            if not isinstance(outcome, Unreachable):
                break
            await self.ready()
        assert isinstance(outcome, Done), outcome
        return outcome.value


class FakeRig:
    """Simulated time in steps of 5 ms."""

    real = False

    def __init__(self) -> None:
        self.etcd = FakeEtcd(Random(7))
        self._now, self.parties = 0.0, []

    def now(self):
        return self._now

    async def party(self):
        party = Party(self, self.etcd.client(f"p{len(self.parties)}"))
        self.parties.append(party)
        return party

    def step(self, seconds=0.005):
        self._now += seconds
        for party in self.parties:
            for event in party.link.poll(self._now):
                party.take(event)

    async def until(self, holds, limit_s):
        end = self._now + limit_s
        while not holds():
            assert self._now < end, "did not happen in time"
            self.step()

    async def do(self, party, effect):
        at, outcome = party.link.submit(effect, self._now)
        assert at <= self._now + effect.limit_s
        await self.until(lambda: self._now >= at, effect.limit_s + 1)
        return outcome

    async def cut(self, party):
        self.etcd.cut(party.link.name, float("inf"))

    async def heal(self, party):
        party.link.cut_until = 0.0

    async def compact(self):
        self.etcd.compact()

    async def revoke(self, party):
        self.etcd.wrongful_revoke(party.link.name, self._now)

    @contextlib.asynccontextmanager
    async def losing_answers(self, party):
        self.etcd.unknown_odds = 1.0
        yield
        self.etcd.unknown_odds = 0.0


class RealRig:
    """A cluster of one, each party behind a relay of its own."""

    real = True

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.parties, self.proxies = cluster, [], {}

    def now(self):
        return time.monotonic()

    async def party(self):
        proxy = Proxy(self.cluster.endpoints[0])
        await proxy.start()
        party = Party(self, None)
        store = open_store(EtcdSettings((proxy.endpoint,)), party.take)
        party.link = store
        store.start()
        self.parties.append(party)
        self.proxies[id(party)] = proxy
        return party

    async def until(self, holds, limit_s):
        end = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < end, "did not happen in time"
            await asyncio.sleep(0.005)

    async def do(self, party, effect):
        began = time.monotonic()
        outcome = await party.link.perform(effect)
        assert time.monotonic() - began < effect.limit_s + NOISE_S
        return outcome

    async def cut(self, party):
        self.proxies[id(party)].cut()

    async def heal(self, party):
        self.proxies[id(party)].heal()

    async def raw(self, method, request):
        """A call past the store, as another program would make it."""
        import grpc.aio

        path, asks, answers, _ = pb.METHODS[method]
        async with grpc.aio.insecure_channel(self.cluster.endpoints[0]) as channel:
            call = channel.unary_unary(path, asks.SerializeToString, answers.FromString)
            return await call(request, timeout=5)

    async def compact(self):
        status = await self.raw("Range", wire.range_request("x"))
        await self.raw("Compact", pb.CompactionRequest(revision=status.header.revision, physical=True))

    async def revoke(self, party):
        await self.raw("LeaseRevoke", pb.LeaseRevokeRequest(ID=party.link.lease_state.lease))

    @contextlib.asynccontextmanager
    async def losing_answers(self, party):
        proxy = self.proxies[id(party)]
        proxy.mute()
        healing = asyncio.get_running_loop().call_later(0.5, proxy.heal)
        yield
        healing.cancel()
        proxy.heal()

    async def close(self):
        for party in self.parties:
            await party.link.close()
            assert party.link.faults == 0
        for proxy in self.proxies.values():
            await proxy.close()


@pytest.fixture(scope="module")
def one_member():
    if why_not():
        pytest.skip(why_not())
    cluster = Cluster(1)
    yield cluster
    cluster.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.lab)])
async def rig(request):
    if request.param == "fake":
        yield FakeRig()
        return
    rig = RealRig(request.getfixturevalue("one_member"))
    wiper = await (await rig.party()).ready()
    await wiper.txn(deletes=(Delete("/", prefix=True),))
    yield rig
    await rig.close()


async def test_create_if_absent_and_compare_and_swap(rig):
    p = await (await rig.party()).ready()
    first = await p.txn(Put("/a", b"1"), compares=(Compare("/a", 0),))
    assert first.value.succeeded
    revision = first.value.revision
    again = await p.txn(Put("/a", b"2"), compares=(Compare("/a", 0),))
    kv = KeyValue("/a", b"1", revision, revision)
    assert again == Done(TxnResult(False, revision, (kv,)))
    swapped = await p.txn(Put("/a", b"2"), compares=(Compare("/a", revision),))
    assert swapped == Done(TxnResult(True, revision + 1))
    assert await p.read("/a") == (KeyValue("/a", b"2", revision + 1, revision),)
    assert await p.read("/none") == ()


async def test_failed_compares_tell_the_compared_keys_and_leave_absent_ones_out(rig):
    p = await (await rig.party()).ready()
    one, two = await p.put("/k1", b"1"), await p.put("/k2", b"2")
    outcome = await p.txn(
        Put("/new", b"x"), compares=(Compare("/k1", one), Compare("/k2", one), Compare("/none", 0))
    )
    assert not outcome.value.succeeded
    assert [(kv.key, kv.mod_revision) for kv in outcome.value.current] == [("/k1", one), ("/k2", two)]
    assert await p.read("/new") == ()


@pytest.mark.parametrize(
    ("op", "offset", "holds"),
    [("=", 0, True), ("<", 1, True), ("<", 0, False), (">", -1, True), (">", 0, False), ("!=", 0, False)],
)
async def test_relations(rig, op, offset, holds):
    p = await (await rig.party()).ready()
    revision = await p.put("/k", b"1")
    outcome = await p.txn(Put("/k", b"2"), compares=(Compare("/k", revision + offset, op),))
    assert outcome.value.succeeded is holds


async def test_one_transaction_is_one_revision_and_is_told_in_order(rig):
    p = await rig.party()
    p.link.mirror("/t/")
    await p.ready()
    await p.put("/t/old", b"x")
    outcome = await p.txn(Put("/t/b", b"1"), Put("/t/a", b"2"), deletes=(Delete("/t/old"),))
    await p.until(lambda: len(p.changes("/t/")) >= 4 or p.state("/t/") == {"/t/b": b"1", "/t/a": b"2"})
    told = [e for e in p.of(StoreChanged) if e.revision == outcome.value.revision]
    if told:
        assert [(e.key, e.value and e.value.value) for e in told] == [
            ("/t/b", b"1"),
            ("/t/a", b"2"),
            ("/t/old", None),
        ]


async def test_writing_a_key_twice_in_one_transaction_is_refused(rig):
    p = await (await rig.party()).ready()
    assert isinstance(await p.txn(Put("/k", b"1"), Put("/k", b"2")), Refused)
    assert isinstance(await p.txn(Put("/k", b"1"), deletes=(Delete("/", prefix=True),)), Refused)
    assert await p.read("/k") == ()


async def test_deleting_a_prefix_and_nothing(rig):
    p = await (await rig.party()).ready()
    for n in range(3):
        await p.put(f"/d/{n}", b"x")
    last = await p.put("/dx", b"y")
    gone = await p.txn(deletes=(Delete("/d/", prefix=True),))
    assert gone == Done(TxnResult(True, last + 1))
    assert await p.txn(deletes=(Delete("/d/", prefix=True),)) == Done(TxnResult(True, last + 1))
    assert [kv.key for kv in await p.read("/d", prefix=True)] == ["/dx"]


async def test_a_mirror_tells_all_first_and_then_every_change_once_in_order(rig):
    writer = await (await rig.party()).ready()
    for n in range(5):
        await writer.put(f"/m/{n}", b"old")
    p = await rig.party()
    p.link.mirror("/m/")
    await p.ready()
    await p.until(lambda: p.of(StoreSnapshot))
    snapshot = p.of(StoreSnapshot)[0]
    assert sorted(snapshot.items) == [f"/m/{n}" for n in range(5)]
    revisions = [await writer.put(f"/m/{n % 7}", str(n).encode()) for n in range(300)]
    await p.until(lambda: len(p.changes()) >= 300)
    assert p.changes() == [(f"/m/{n % 7}", str(n).encode()) for n in range(300)]
    assert [e.revision for e in p.of(StoreChanged)] == revisions
    assert next(type(e) for e in p.events if isinstance(e, StoreSnapshot | StoreChanged)) is StoreSnapshot


async def test_a_mirror_goes_on_after_a_cut_without_losing_or_repeating(rig):
    writer = await (await rig.party()).ready()
    p = await rig.party()
    p.link.mirror("/m/")
    await p.ready()
    await p.until(lambda: p.of(StoreSnapshot))
    for n in range(20):
        await writer.put(f"/m/{n}", b"before")
    await rig.cut(p)
    for n in range(20, 60):
        await writer.put(f"/m/{n}", b"during")
    await p.until(lambda: not p.of(StoreReach)[-1].reachable)
    await rig.heal(p)
    await p.until(lambda: len(p.changes()) >= 60)
    assert [key for key, _ in p.changes()] == [f"/m/{n}" for n in range(60)]
    assert len(p.of(StoreSnapshot)) == 1
    assert [e.reachable for e in p.of(StoreReach)] == [True, False, True]


async def test_a_mirror_behind_compaction_is_told_anew(rig):
    writer = await (await rig.party()).ready()
    p = await rig.party()
    p.link.mirror("/m/")
    await p.ready()
    await p.until(lambda: p.of(StoreSnapshot))
    await writer.put("/m/gone", b"1")
    await p.until(lambda: p.changes())
    await rig.cut(p)
    await writer.txn(Put("/m/new", b"2"), deletes=(Delete("/m/gone"),))
    await writer.put("/m/new", b"3")
    await rig.compact()
    await p.until(lambda: not p.of(StoreReach)[-1].reachable)
    await rig.heal(p)
    await p.until(lambda: len(p.of(StoreSnapshot)) == 2)
    await writer.put("/m/after", b"4")
    await p.until(lambda: "/m/after" in p.state("/m/"))
    assert p.state("/m/") == {"/m/new": b"3", "/m/after": b"4"}


async def test_authority_by_a_lease_ends_before_others_see_its_keys_gone(rig):
    watcher = await rig.party()
    watcher.link.mirror("/l/")
    await watcher.ready()
    p = await rig.party()
    p.link.lease(3)
    await p.ready()
    await p.until(lambda: p.of(LeaseState))
    assert p.of(LeaseState)[0].held and p.of(LeaseState)[0].until > rig.now()
    await p.put("/l/me", b"here", leased=True)
    renewals = len(p.of(LeaseState))
    await p.until(lambda: len(p.of(LeaseState)) >= renewals + 4)
    assert watcher.state("/l/") == {"/l/me": b"here"}
    await rig.cut(p)
    await p.until(lambda: not p.of(LeaseState)[-1].held)
    ended = p.told_at[p.events.index(p.of(LeaseState)[-1])]
    assert abs(ended - p.of(LeaseState)[-2].until) < 0.1
    await watcher.until(lambda: watcher.state("/l/") == {})
    gone = watcher.told_at[watcher.events.index(watcher.of(StoreChanged)[-1])]
    assert gone > ended
    await rig.heal(p)
    await p.until(lambda: p.of(LeaseState)[-1].held)
    leases = {e.lease for e in p.of(LeaseState) if e.held}
    assert len(leases) == 2
    await p.put("/l/me", b"again", leased=True)


async def test_a_lease_taken_away_is_told_and_taken_anew(rig):
    p = await (await rig.party()).ready()
    assert await p.txn(Put("/l", b"x", leased=True)) == Refused("no lease")
    p.link.lease(4)
    await p.until(lambda: p.of(LeaseState))
    first = p.of(LeaseState)[0].lease
    await p.put("/l", b"x", leased=True)
    await rig.revoke(p)
    await p.until(lambda: [e.held for e in p.of(LeaseState)][-2:] == [False, True])
    assert p.of(LeaseState)[-1].lease != first
    assert await p.read("/l") == ()


async def test_away_is_said_once_and_then_answered_at_once(rig):
    p = await (await rig.party()).ready()
    await rig.cut(p)
    await p.until(lambda: not p.of(StoreReach)[-1].reachable)
    began = rig.now()
    assert isinstance(await p.txn(Put("/k", b"1")), Unreachable)
    assert rig.now() - began < DEFAULT_EFFECT_LIMIT_S / 2, "answered without trying"
    await asyncio.sleep(0 if not rig.real else 1.5)
    assert [e.reachable for e in p.of(StoreReach)] == [True, False]
    await rig.heal(p)
    await p.ready()
    assert await p.read("/k") == ()


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_lost_answer_never_ends_in_a_wrong_one(rig, fresh):
    p = await (await rig.party()).ready()
    for n in range(1 if rig.real else 30):
        key = f"/u/{n}"
        expected = 0 if fresh else await p.put(key, b"before")
        async with rig.losing_answers(p):
            outcome = await p.txn(Put(key, b"mine"), compares=(Compare(key, expected),), limit_s=4)
        now = await p.read(key)
        if isinstance(outcome, Done):
            assert outcome.value.succeeded
            assert now[0].value == b"mine" and now[0].mod_revision == outcome.value.revision
        else:
            assert isinstance(outcome, Unknown)
        if rig.real:
            assert isinstance(outcome, Done), "the real client reads back"


async def test_a_lost_answer_without_a_compare_is_unknown(rig):
    p = await (await rig.party()).ready()
    async with rig.losing_answers(p):
        outcome = await p.txn(Put("/k", b"mine"), limit_s=4)
    assert isinstance(outcome, Unknown)
