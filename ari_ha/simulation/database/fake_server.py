"""One MySQL or MariaDB server: a binary log, a relay log, commits that wait.

What was measured of the real ones is kept: read-only is refused while commits wait,
turning waiting off says yes to those that wait, MySQL keeps what only its binary log
has after a crash, MariaDB takes it back when told to (and then more than that, when
nothing waited), a relay log is gone with the server's life or with a new source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Done, Outcome, Refused, Unreachable
from ari_ha.core.ports.database import LOCKED, Observation
from ari_ha.simulation.process import DEAD, Process, Settle
from ari_ha.simulation.world import Network, World

MYSQL, MARIADB = "mysql", "mariadb"
NET_TIMEOUT_S = 4.0
CONNECT_RETRY_S = 1.0
STOP_UNREACHABLE_S = {MYSQL: 2.0, MARIADB: 2.3}
"""Stopping the receiver while its source cannot be reached."""
SLOW_COMMIT_MAX_S = 1.0
UNSYNCED_MAX = 3
"""Confirmed transactions MariaDB's truncation took with it where nothing waited."""

Gtid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction."""

    gtid: Gtid
    ident: str
    at_s: float


@dataclass(slots=True)
class Waiting:
    """A commit that waits for a standby."""

    index: int
    reply: Callable[[bool], None] | None


@dataclass
class Disk:
    """What a server keeps when its process ends."""

    log: list[Txn] = field(default_factory=list)
    has: set[Gtid] = field(default_factory=set)
    source: str = ""
    broken: bool = False
    """A copy that was not finished."""


class Feed:
    """One replica's connection to one source: in order, or not at all."""

    def __init__(self, source: FakeServer, replica: FakeServer) -> None:
        self.source, self.replica = source, replica
        self.lives = (source.life, replica.life)
        self.next = 0
        self.under_way: deque[tuple[Txn, int]] = deque()
        self.last_arrival_s = 0.0
        self.stalled_since: float | None = None
        self.closed = False

    def good(self) -> bool:
        """Both ends still are who they were."""
        return not self.closed and self.lives == (self.source.life, self.replica.life)

    def pump(self) -> None:
        """Sends what the replica has not got."""
        source, replica = self.source, self.replica
        while self.good() and self.next < len(source.disk.log):
            index, self.next = self.next, self.next + 1
            txn = source.disk.log[index]
            if txn.gtid in replica.disk.has or txn.gtid in replica.relayed:
                continue
            self.under_way.append((txn, index))
            if len(self.under_way) == 1:
                source.world.after(source.network.delay(), replica.in_life(self._arrive))

    def _arrive(self) -> None:
        """The first of what is under way, then the next."""
        source, replica, world = self.source, self.replica, self.source.world
        if not self.good() or not replica.receiving or not self.under_way:
            return
        if source.network.cut(source.host, replica.host):
            self._stall(self._arrive, replica)
            return
        self.stalled_since = None
        txn, index = self.under_way.popleft()
        replica.relay_in(txn)
        if replica.semi_replica:
            world.after(source.network.delay(), source.in_life(lambda: self.ack(index)))
        if self.under_way:
            world.after(source.network.delay() / 4, replica.in_life(self._arrive))

    def ack(self, index: int) -> None:
        """The replica has everything up to ``index``."""
        if not self.good() or not self.replica.semi_replica:
            return
        if self.source.network.cut(self.replica.host, self.source.host):
            self._stall(lambda: self.ack(index), self.source)
            return
        self.source.confirmed(index)

    def _stall(self, again: Callable[[], None], where: FakeServer) -> None:
        """TCP sends it again, until one end gives up."""
        world = self.source.world
        if self.stalled_since is None:
            self.stalled_since = world.now
        if world.now - self.stalled_since > NET_TIMEOUT_S:
            self.close()
        else:
            world.after(0.2, where.in_life(again))

    def close(self) -> None:
        """The connection is gone."""
        self.closed = True


class FakeServer(Process):
    """One server. ``told`` hears of the process's life (the watcher's process watch)."""

    def __init__(
        self, world: World, network: Network, name: str, number: int, flavour: str, own_domain: bool = False
    ) -> None:
        super().__init__(world, name, name)
        self.own_domain = own_domain
        """MariaDB, circular: each server numbers its transactions by itself."""
        self.network = network
        self.number = number
        self.flavour = flavour
        self.disk = Disk()
        self.peers: dict[str, FakeServer] = {}
        self.told: Callable[[bool, str], None] = lambda alive, life: None
        self.on_open: Callable[[FakeServer], None] = lambda server: None
        self.on_rebuild: Callable[[FakeServer, FakeServer], None] = lambda server, donor: None
        self.archived: set[Gtid] = set()
        self.apply_s = 0.003
        self.commit_max_s = 0.005
        self.slow_commits = 0.0
        """Share of commits a slow disk takes up to `SLOW_COMMIT_MAX_S` for."""
        self.errant_count = 0
        self.offset, self.increment = number, 2
        self._forget()

    def _forget(self) -> None:
        """What a process does not keep."""
        self.writable = False
        self.semi_source = False
        self.semi_replica = True
        self.semi_acked = 0
        self.committed = 0
        self.waiting: list[Waiting] = []
        self.relay: list[Txn] = []
        self.relayed: set[Gtid] = set()
        self.receiving = self.applying = False
        self.feed: Feed | None = None
        self.feeds: list[Feed] = []
        self.apply_error = ""
        self._applying_now = False
        self._texts: tuple[tuple[int, int], str, str] = ((-1, -1), "", "")

    # -- the process

    @property
    def life_name(self) -> str:
        """One life."""
        return f"{self.name}.{self.life}"

    def start(self, truncate: bool = False) -> None:
        """It recovers and comes up read-only."""
        truncated = self.committed if truncate and self.flavour == MARIADB else None
        waited = self.semi_source
        self.begin()
        disk = self.disk
        if disk.broken:
            self.disk = disk = Disk()
        if truncated is not None:
            if not waited:
                truncated = max(truncated - self.world.rng.randint(0, UNSYNCED_MAX), 0)
            for txn in disk.log[truncated:]:
                disk.has.discard(txn.gtid)
            del disk.log[truncated:]
        self._forget()
        self.committed = len(disk.log)
        life = self.life_name
        self.world.after(0.002, lambda: self.told(True, life))

    def kill(self) -> None:
        if self.state == DEAD:
            return
        super().kill()
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            if one.reply:
                one.reply(False)
        for feed in self.feeds:
            feed.close()
        if self.feed:
            self.feed.close()
        life = self.life_name
        self.world.after(self.world.between(0.001, 0.01), lambda: self.told(False, life))

    # -- writing

    def write(self, ident: str, reply: Callable[[bool], None]) -> None:
        """An application's transaction; ``reply`` is called once, unless nobody answers."""
        if self.state == DEAD or not self.writable:
            reply(False)
            return
        self._append(ident, reply)

    def _append(self, ident: str, reply: Callable[[bool], None] | None) -> None:
        txn = Txn(self._next_gtid(), ident, self.world.now)
        self.disk.log.append(txn)
        self.disk.has.add(txn.gtid)
        self.waiting.append(Waiting(len(self.disk.log) - 1, reply))
        self._pump()
        if not self.semi_source:
            # It will not wait any more, whatever is turned on meanwhile.
            index, world = len(self.disk.log) - 1, self.world
            took_s = world.between(0.0, self.commit_max_s)
            if world.chance(self.slow_commits):
                took_s = world.between(0.0, SLOW_COMMIT_MAX_S)
            world.after(took_s, self.in_life(lambda: self._commit(index)))

    def _next_gtid(self) -> Gtid:
        if self._one_domain:
            return self.number, 1 + max((n for _, n in self.disk.has), default=0)
        return self.number, 1 + max((n for number, n in self.disk.has if number == self.number), default=0)

    @property
    def _one_domain(self) -> bool:
        return self.flavour == MARIADB and not self.own_domain

    def _commit(self, index: int) -> None:
        self.committed = max(self.committed, index + 1)
        while self.waiting and self.waiting[0].index <= index:
            one = self.waiting.pop(0)
            if one.reply:
                one.reply(True)

    def confirmed(self, index: int) -> None:
        """A standby has received everything up to here."""
        if self.semi_source and index >= self.committed:
            self.semi_acked += 1
            self._commit(index)

    def errant(self) -> None:
        """Somebody with all rights writes here."""
        self.errant_count += 1
        self._append(f"errant-{self.name}-{self.errant_count}", None)
        self._commit(len(self.disk.log) - 1)

    # -- replication

    def _pump(self) -> None:
        self.feeds = [feed for feed in self.feeds if feed.good()]
        for feed in self.feeds:
            feed.pump()

    def _connect(self) -> None:
        """The receiver's loop."""
        if not self.receiving:
            return
        self.world.after(CONNECT_RETRY_S, self.in_life(self._connect))
        if self.feed is not None and self.feed.good():
            self._idle_check()
            return
        source = self.peers.get(self.disk.source)
        cut = self.network.cut
        if source is None or not source.running or cut(self.host, source.host) or cut(source.host, self.host):
            return
        self.feed = feed = Feed(source, self)
        source.feeds.append(feed)
        self.world.after(0.01, source.in_life(feed.pump))
        have = 0
        while have < len(source.disk.log) and (
            source.disk.log[have].gtid in self.disk.has or source.disk.log[have].gtid in self.relayed
        ):
            have += 1
        if have:
            self.world.after(0.02, source.in_life(lambda: feed.ack(have - 1)))

    def _idle_check(self) -> None:
        """Heartbeats of the connection stop when it is cut, and it is given up."""
        feed = self.feed
        assert feed is not None
        cut = self.network.cut(feed.source.host, self.host) or not feed.source.running
        if not cut and not feed.stalled_since:
            return
        if feed.stalled_since is None:
            feed.stalled_since = self.world.now
        elif self.world.now - feed.stalled_since > NET_TIMEOUT_S:
            feed.close()
        elif not cut:
            feed.stalled_since = None

    def relay_in(self, txn: Txn) -> None:
        """Received, and on disk."""
        if txn.gtid in self.relayed or txn.gtid in self.disk.has:
            return
        self.relay.append(txn)
        self.relayed.add(txn.gtid)
        self._apply_soon()

    def _apply_soon(self) -> None:
        if self.applying and self.relay and not self._applying_now:
            self._applying_now = True
            self.world.after(self.apply_s, self.in_life(self._apply))

    def _apply(self) -> None:
        self._applying_now = False
        if not self.applying or not self.relay:
            return
        txn = self.relay[0]
        if self._one_domain and self.disk.log and txn.gtid[1] <= self.disk.log[-1].gtid[1]:
            # gtid_strict_mode: somebody wrote here, the numbers are taken.
            self.applying, self.apply_error = False, "1950 out-of-order sequence number"
            return
        del self.relay[0]
        self.relayed.discard(txn.gtid)
        if txn.gtid not in self.disk.has:
            self.disk.log.append(txn)
            self.disk.has.add(txn.gtid)
            self.committed = len(self.disk.log)
            self._pump()
        self._apply_soon()

    def drop_relay(self) -> None:
        """RESET or CHANGE: what was not applied is gone."""
        self.relay, self.relayed = [], set()

    # -- what a watcher does

    def observe(self, settle: Settle) -> None:
        """Answers, unless it stands still."""
        if self.state == DEAD:
            settle(Unreachable("connection refused"))
            return
        self.world.after(0.003, self.in_life(lambda: settle(Done(self.observation()))))

    def observation(self) -> Observation:
        """Everything it says of itself."""
        position, history = self._gtid_texts()
        relay = ",".join(self._text([txn.gtid for txn in self.relay]))
        connected = self.feed is not None and self.feed.good()
        beats = [txn.at_s for txn in reversed(self.disk.log) if txn.ident.startswith("beat")][:1]
        return Observation(
            life=self.life_name,
            uuid=_uuid(self.number),
            server_id=self.number,
            version=self.flavour,
            writable=self.writable,
            position=position,
            history=history,
            received=",".join(text for text in (history, relay) if text),
            source=self.disk.source,
            io="yes" if self.receiving and connected else "connecting" if self.receiving else "no",
            applying=self.applying,
            apply_error=self.apply_error,
            semi_source=self.semi_source,
            semi_clients=sum(feed.good() and feed.replica.semi_replica for feed in self.feeds),
            semi_waiting=len(self.waiting),
            semi_acked=self.semi_acked,
            semi_replica=self.semi_replica,
            lag_s=self.world.now - beats[0] if beats else None,
            increment=self.increment,
            offset=self.offset,
        )

    def _gtid_texts(self) -> tuple[str, str]:
        key = (len(self.disk.log), self.committed)
        if self._texts[0] != key:
            if self._one_domain:
                last = self.disk.log[-1].gtid if self.disk.log else None
                position = f"1-{last[0]}-{last[1]}" if last else ""
                history = ",".join(self._text([txn.gtid for txn in self.disk.log]))
            else:
                known = self.disk.log if self.flavour == MARIADB else self.disk.log[: self.committed]
                position = history = ",".join(self._text([txn.gtid for txn in known]))
            self._texts = (key, position, history)
        return self._texts[1], self._texts[2]

    def _text(self, gtids: list[Gtid]) -> list[str]:
        """GTIDs as the server writes them."""
        by_server: dict[int, list[int]] = {}
        for number, n in gtids:
            by_server.setdefault(number, []).append(n)
        if self.flavour == MARIADB:
            domain = 10 if self.own_domain else 1
            return [
                f"{domain + number * self.own_domain}-{number}-{max(some)}"
                for number, some in sorted(by_server.items())
            ]
        found = []
        for number, some in sorted(by_server.items()):
            some.sort()
            spans, first = [], some[0]
            for one, after in zip(some, [*some[1:], -1], strict=True):
                if after != one + 1:
                    spans.append(f"{first}-{one}")
                    first = after
            found.append(":".join((_uuid(number), *spans)))
        return found

    def do(self, verb: str, args: Mapping[str, Any], settle: Settle) -> None:
        """A verb; it happens even when nobody waits for it any more."""
        if self.state == DEAD:
            settle(Unreachable("connection refused"))
            return
        act = getattr(self, f"_do_{verb}")
        delay_s = self.world.between(0.001, 0.006)
        if verb in ("receive_stop", "follow_stop") and self._source_away():
            delay_s += STOP_UNREACHABLE_S[self.flavour]
        self.world.after(delay_s, self.in_life(lambda: act(args, settle)))

    def _source_away(self) -> bool:
        source = self.peers.get(self.disk.source)
        if source is None or not self.receiving or self.feed is None or not self.feed.good():
            return False
        return not source.running or self.network.cut(self.host, source.host)

    def _do_close(self, args: Mapping[str, Any], settle: Settle, tries: int = 0) -> None:
        if not self.waiting:
            self.writable = False
            settle(Done())
        elif tries * 0.1 >= args.get("lock_wait_s", 1):
            settle(Refused("Lock wait timeout exceeded", LOCKED))
        else:
            again = self.in_life(lambda: self._do_close(args, settle, tries + 1))
            self.world.after(0.1, again)

    def _do_disconnect(self, args: Mapping[str, Any], settle: Settle) -> None:
        for one in self.waiting:
            if one.reply:
                one.reply(False)
                one.reply = None
        if self.flavour == MARIADB and self.waiting:
            self._commit(self.waiting[-1].index)
        settle(Done())

    def _do_open(self, args: Mapping[str, Any], settle: Settle) -> None:
        if not self.writable:
            self.writable = True
            self.on_open(self)
        settle(Done())

    def _do_semi_on(self, args: Mapping[str, Any], settle: Settle) -> None:
        self.semi_source = True
        settle(Done())

    def _do_semi_off(self, args: Mapping[str, Any], settle: Settle) -> None:
        self.semi_source = False
        if self.waiting:
            self._commit(self.waiting[-1].index)
        settle(Done())

    def _do_receive_stop(self, args: Mapping[str, Any], settle: Settle) -> None:
        self.receiving = False
        if self.feed:
            self.feed.close()
        settle(Done())

    def _do_apply_start(self, args: Mapping[str, Any], settle: Settle) -> None:
        self.applying, self.apply_error = True, ""
        self._apply_soon()
        settle(Done())

    def _do_follow_stop(self, args: Mapping[str, Any], settle: Settle) -> None:
        self.applying = False
        self._do_receive_stop(args, settle)

    def _do_follow_forget(self, args: Mapping[str, Any], settle: Settle) -> None:
        if self.receiving or self.applying:
            settle(Refused("This operation cannot be performed with a running replica", 3081))
            return
        self.drop_relay()
        self.disk.source = ""
        settle(Done())

    def _do_follow(self, args: Mapping[str, Any], settle: Settle) -> None:
        if self.receiving or self.applying:
            settle(Refused("This operation cannot be performed with a running replica", 3081))
            return
        self.drop_relay()
        self.disk.source = args["source"]
        settle(Done())

    def _do_follow_start(self, args: Mapping[str, Any], settle: Settle) -> None:
        if not self.receiving:
            self.receiving = True
            self._connect()
        self._do_apply_start(args, settle)

    def _do_tolerate(self, args: Mapping[str, Any], settle: Settle) -> None:
        settle(Done())  # rows have no keys here: none is there twice

    def _do_heartbeat(self, args: Mapping[str, Any], settle: Settle) -> None:
        if not self.writable:
            settle(Refused("read-only", 1290))
            return

        def reply(ok: bool) -> None:
            settle(Done() if ok else Unreachable("connection lost"))

        self._append(f"beat-{self.name}", reply)

    def _do_number(self, args: Mapping[str, Any], settle: Settle) -> None:
        self.increment, self.offset = args["increment"], args["offset"]
        settle(Done())

    def _do_checksum(self, args: Mapping[str, Any], settle: Settle) -> None:
        settle(Done({"log": hash(tuple(sorted(self.disk.has)))}))

    def archive(self, settle: Settle) -> None:
        """The binary log as text, out of its files: the server need not run."""

        def act() -> None:
            self.archived |= self.disk.has
            settle(Done(f"/var/lib/ari-ha/errant/{self.name}.sql"))

        self.world.after(0.05, act)

    def rebuild(self, donor_name: str, alive: Callable[[], bool], settle: Callable[[Outcome], None]) -> None:
        """A copy of the donor; half of one is worth nothing."""
        donor = self.peers[donor_name]
        if not donor.running:
            settle(Unreachable("the donor does not answer"))
            return
        self.on_rebuild(self, donor)
        self.kill()
        self.disk.broken = True
        life, mine = donor.life, self.life
        self.world.after(self.world.between(1.0, 4.0), lambda: self._copied(donor, life, mine, alive, settle))

    def _copied(
        self, donor: FakeServer, life: int, mine: int, alive: Callable[[], bool], settle: Settle
    ) -> None:
        cut = self.network.cut(self.host, donor.host) or self.network.cut(donor.host, self.host)
        if not donor.running or donor.life != life or cut or not alive() or self.life != mine:
            settle(Refused("the copy broke off", 3862))
            return
        log = donor.disk.log[: donor.committed]
        self.disk = Disk(log=list(log), has={txn.gtid for txn in log})
        self.start()
        settle(Done(self.life_name))


def _uuid(number: int) -> str:
    return f"{number:08d}-0000-0000-0000-000000000000"
