"""The store on a real cluster of three while members die, freeze and come back."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time

import pytest
from etcd_cluster import Cluster, why_not

from ari_ha.core.machine import DEFAULT_EFFECT_LIMIT_S, Done, Refused, Unknown, Unreachable
from ari_ha.core.ports.store import (
    Compare,
    LeaseState,
    Put,
    StoreChanged,
    StoreReach,
    StoreRead,
    StoreSnapshot,
    StoreTxn,
)
from ari_ha.runtime.etcd import EtcdSettings, get_prefix, open_store, txn

pytestmark = [pytest.mark.lab, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]

LEASE_TTL_S = 5


class Watcher:
    """A process with a mirror and a lease; checks what it is told as it comes."""

    def __init__(self, endpoints, **settings) -> None:
        self.events, self.seen, self.gaps_s = [], [], []
        self.last_at = time.monotonic()
        self.store = open_store(EtcdSettings(tuple(endpoints), **settings), self.take)
        self.store.mirror("/m/")
        self.store.lease(LEASE_TTL_S)
        self.store.start()

    def take(self, event) -> None:
        self.events.append(event)
        if isinstance(event, StoreChanged):
            now = time.monotonic()
            self.gaps_s.append(now - self.last_at)
            self.last_at = now
            self.seen.append((event.key, event.value.value))

    def of(self, kind):
        return [e for e in self.events if isinstance(e, kind)]

    async def until(self, holds, limit_s=15.0):
        end = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < end, "did not happen in time"
            await asyncio.sleep(0.01)

    async def ready(self):
        await self.until(lambda: self.of(StoreSnapshot) and self.of(LeaseState))
        return self


class Writer:
    """Compare-and-swaps one counter again and again; knows what was committed."""

    def __init__(self, store) -> None:
        self.store, self.committed, self.unsure, self.slowest_s = store, [], 0, 0.0
        self.task = asyncio.create_task(self.run())
        self.revision, self.n = 0, 0

    async def run(self):
        while True:
            self.n += 1
            value = str(self.n).encode()
            put = StoreTxn(compares=(Compare("/m/counter", self.revision),), puts=(Put("/m/counter", value),))
            began = time.monotonic()
            outcome = await self.store.perform(put)
            while isinstance(outcome, Unknown | Unreachable):
                self.unsure += isinstance(outcome, Unknown)
                await asyncio.sleep(0.05)
                found = await self.store.perform(StoreRead(key="/m/counter"))
                if not isinstance(found, Done):
                    continue
                kv = found.value[0] if found.value else None
                if kv is not None and kv.value == value:
                    self.revision = kv.mod_revision
                    break
                outcome = await self.store.perform(put)
            else:
                assert outcome.value.succeeded, outcome
                self.revision = outcome.value.revision
            self.committed.append(("/m/counter", value))
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            await asyncio.sleep(0.01)

    async def stop(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
def cluster():
    cluster = Cluster(3)
    yield cluster
    cluster.close()


async def leader(endpoints):
    """The endpoint of the member that leads."""
    import grpc.aio

    from ari_ha.wire.etcd_proto import messages as pb

    path, asks, answers, _ = pb.METHODS["Status"]
    for endpoint in endpoints:
        async with grpc.aio.insecure_channel(endpoint) as channel:
            call = channel.unary_unary(path, asks.SerializeToString, answers.FromString)
            status = await call(asks(), timeout=2, wait_for_ready=True)
            if status.header.member_id == status.leader:
                return endpoint
    raise AssertionError("no leader")


@pytest.mark.parametrize("fault", ["kill connected", "kill leader", "freeze connected", "freeze leader"])
async def test_losing_one_member_loses_no_event_and_no_lease(cluster, fault):
    watcher = await Watcher(cluster.endpoints).ready()
    writing = await Watcher(cluster.endpoints).ready()
    writer = Writer(writing.store)
    await asyncio.sleep(1)
    assert writer.committed
    connected = watcher.store._client.endpoint
    victim = cluster.at(connected if "connected" in fault else await leader(cluster.endpoints))
    victim.kill() if "kill" in fault else victim.freeze()
    await asyncio.sleep(6)
    during = len(writer.committed)
    for party in (watcher, writing):
        assert all(state.held for state in party.of(LeaseState)), party.of(LeaseState)
    victim.start() if "kill" in fault else victim.thaw()
    await asyncio.sleep(2)
    assert len(writer.committed) > during
    await writer.stop()
    await watcher.until(lambda: len(watcher.seen) >= len(writer.committed))
    # The last write may have been committed without its sender having learnt of it.
    assert watcher.seen[: len(writer.committed)] == writer.committed
    assert len(watcher.seen) <= len(writer.committed) + 1
    for party in (watcher, writing):
        assert party.of(LeaseState)[-1].held
        if "kill" in fault:
            # A leader that wakes up may revoke leases renewed at its successor (seen
            # with etcd 3.4.23). It is told, and the lease is taken anew.
            assert len({state.lease for state in party.of(LeaseState)}) == 1
        assert len(party.of(StoreSnapshot)) == 1
        await party.store.close()
        assert party.store.faults == 0
    print(
        f"\n{fault}: watch gap {max(watcher.gaps_s):.2f} s, slowest write {writer.slowest_s:.2f} s, "
        f"unknown {writer.unsure}, reach {[(e.reachable, e.no_leader) for e in watcher.of(StoreReach)]}"
    )


async def test_a_quiet_time_is_not_taken_for_a_fault(cluster):
    watcher = await Watcher(cluster.endpoints).ready()
    notes = []
    watcher.store._note = lambda note: notes.append((note.text, note.facts))
    await asyncio.sleep(6)
    assert notes == []
    assert isinstance(await watcher.store.perform(StoreTxn(puts=(Put("/m/x", b"1"),))), Done)
    await watcher.until(lambda: watcher.seen == [("/m/x", b"1")])
    await watcher.store.close()


async def test_without_a_majority_it_says_no_leader_and_comes_back(cluster):
    watcher = await Watcher(cluster.endpoints).ready()
    for member in cluster.members[:2]:
        member.kill()
    await watcher.until(lambda: not watcher.of(StoreReach)[-1].reachable)
    await watcher.until(lambda: watcher.store._client._members.verdict.no_leader)
    began = time.monotonic()
    outcome = await watcher.store.perform(StoreTxn(puts=(Put("/m/x", b"1"),)))
    assert isinstance(outcome, Unreachable)
    assert time.monotonic() - began < DEFAULT_EFFECT_LIMIT_S / 2, "answered without trying"
    await watcher.until(lambda: not watcher.of(LeaseState)[-1].held)
    leased = await watcher.store.perform(StoreTxn(puts=(Put("/m/x", b"1", leased=True),)))
    assert leased == Refused("no lease")
    for member in cluster.members[:2]:
        member.start()
    await watcher.until(lambda: watcher.of(StoreReach)[-1].reachable)
    await watcher.until(lambda: watcher.of(LeaseState)[-1].held)
    assert isinstance(await watcher.store.perform(StoreTxn(puts=(Put("/m/x", b"2"),))), Done)
    await watcher.until(lambda: watcher.seen == [("/m/x", b"2")])
    await watcher.store.close()


async def test_all_members_frozen_is_not_called_leaderless(cluster):
    watcher = await Watcher(cluster.endpoints).ready()
    for member in cluster.members:
        member.freeze()
    await watcher.until(lambda: not watcher.of(StoreReach)[-1].reachable)
    assert not watcher.of(StoreReach)[-1].no_leader
    for member in cluster.members:
        member.thaw()
    await watcher.until(lambda: watcher.of(StoreReach)[-1].reachable)
    await watcher.store.close()


async def test_starting_before_etcd_does():
    cluster = Cluster(1, started=False)
    try:
        watcher = Watcher(cluster.endpoints)
        await watcher.until(lambda: watcher.of(StoreReach))
        await asyncio.sleep(1)
        assert [e.reachable for e in watcher.of(StoreReach)] == [False]
        cluster.members[0].start()
        await watcher.ready()
        assert [e.reachable for e in watcher.of(StoreReach)][-2:] == [False, True]
        await watcher.store.close()
    finally:
        cluster.close()


async def test_a_full_database_counts_as_away():
    cluster = Cluster(1, extra=("--quota-backend-bytes=3000000",))
    try:
        watcher = await Watcher(cluster.endpoints).ready()
        block = b"x" * 400_000
        for n in range(200):
            outcome = await watcher.store.perform(StoreTxn(puts=(Put(f"/big/{n}", block),)))
            if not isinstance(outcome, Done):
                break
            await asyncio.sleep(0.02)  # etcd counts its size at each of its commits
        assert isinstance(outcome, Unreachable)
        assert watcher.of(StoreReach)[-1] == StoreReach(reachable=False, why="no space")
        read = await watcher.store.perform(StoreRead(key="/big/0"))
        assert isinstance(read, Done) and len(read.value[0].value) == 400_000
        assert watcher.of(LeaseState)[-1].held
        await watcher.store.close()
    finally:
        cluster.close()


async def test_a_process_without_room_is_told_everything_again(cluster):
    told, room = [], [True]

    def post(event):
        if not room[0] and isinstance(event, StoreChanged | StoreSnapshot):
            return False
        told.append(event)
        return True

    store = open_store(EtcdSettings(cluster.endpoints), post)
    store.mirror("/m/")
    store.start()
    while not isinstance(await store.perform(StoreTxn(puts=(Put("/m/1", b"1"),))), Done):
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.3)
    room[0] = False
    await store.perform(StoreTxn(puts=(Put("/m/2", b"2"),)))
    await asyncio.sleep(0.3)
    room[0] = True
    await asyncio.sleep(1.5)
    assert sorted(told[-1].items) == ["/m/1", "/m/2"]
    await store.perform(StoreTxn(puts=(Put("/m/3", b"3"),)))
    await asyncio.sleep(0.3)
    assert isinstance(told[-1], StoreChanged) and told[-1].key == "/m/3"
    await store.close()
    assert store.faults == 0


def make_certificates(where):
    """A small authority, a server's and a client's certificate."""

    def openssl(*args):
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=where)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=test-ca", "-keyout", "ca.key", "-out", "ca.pem")
    (where / "ext").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(*sign, "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="no etcdctl here")
async def test_mutual_tls_and_a_user_whose_token_is_forgotten(tmp_path):
    make_certificates(tmp_path)
    cluster = Cluster(1, tls=tmp_path)
    tls = {
        "ca_file": f"{tmp_path}/ca.pem",
        "cert_file": f"{tmp_path}/client.pem",
        "key_file": f"{tmp_path}/client.key",
    }

    def ctl(*args):
        base = ["etcdctl", f"--endpoints=https://{cluster.endpoints[0]}", f"--cacert={tls['ca_file']}"]
        base += [f"--cert={tls['cert_file']}", f"--key={tls['key_file']}", "--command-timeout=10s"]
        subprocess.run([*base, *args], check=True, capture_output=True, timeout=30, env={"ETCDCTL_API": "3"})

    try:
        anonymous = EtcdSettings(cluster.endpoints, ca_file=tls["ca_file"])
        refused = await txn(anonymous, StoreTxn(puts=(Put("/m/0", b"0"),)))
        assert isinstance(refused, Unreachable)
        for command in (
            ("user", "add", "root:pw"),
            ("user", "grant-role", "root", "root"),
            ("auth", "enable"),
        ):
            ctl(*command)
        wrong = await get_prefix(EtcdSettings(cluster.endpoints, user="root", password="no", **tls), "/m/")
        assert isinstance(wrong, Unreachable) and "login" in wrong.reason
        watcher = await Watcher(cluster.endpoints, user="root", password="pw", **tls).ready()
        assert isinstance(await watcher.store.perform(StoreTxn(puts=(Put("/m/1", b"1"),))), Done)
        cluster.members[0].kill()  # tokens live in its memory
        cluster.members[0].start()
        end = time.monotonic() + 10
        while not isinstance(await watcher.store.perform(StoreTxn(puts=(Put("/m/2", b"2"),))), Done):
            assert time.monotonic() < end, "no write after the restart"
            await asyncio.sleep(0.05)
        await watcher.until(lambda: watcher.seen == [("/m/1", b"1"), ("/m/2", b"2")])
        await watcher.store.close()
        assert watcher.store.faults == 0
    finally:
        cluster.close()
