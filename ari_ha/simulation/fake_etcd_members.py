"""The members of a `FakeEtcd` as the client machine's carrier sees them: calls that
are lost, late, applied without an answer; streams that break, stay silent, split a
revision into pieces. For tests of `ari_ha.machines.etcd_client` itself."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ari_ha.core.machine import Effect, Event, Instant
from ari_ha.core.ports.store import Compare, Delete, KeyValue, Put, StoreTxn
from ari_ha.simulation.fake_etcd import BadRequest, Compacted, FakeEtcd, NoLease
from ari_ha.wire import etcd as wire
from ari_ha.wire.etcd import Failure, Trouble
from ari_ha.wire.etcd_proto import messages as pb

PUMP_S = 0.02
BATCH_MAX_REVISIONS = 5
CLUSTER = 77
VERSION = "3.6.0"
_OPS = {pb.Compare.EQUAL: "=", pb.Compare.NOT_EQUAL: "!=", pb.Compare.GREATER: ">", pb.Compare.LESS: "<"}


@dataclass(slots=True)
class FakeStream:
    """One Watch stream: its watchers and what is on its way to the client."""

    endpoint: str
    watchers: dict[int, list[Any]] = field(default_factory=dict)  # id -> [prefix, next, start]
    last_at: Instant = 0.0


class FakeMembers:
    """Carries the machine's effects to the cluster, and events back, in world time."""

    def __init__(self, etcd: FakeEtcd, endpoints: Sequence[str], rng: Random) -> None:
        self.etcd = etcd
        self.rng = rng
        #: endpoint -> "well", "refuses", "frozen"
        self.state = {endpoint: "well" for endpoint in endpoints}
        #: share of calls whose answer is lost, and whose request arrives too late
        self.lost_odds = 0.0
        self.late_odds = 0.0
        self._due: list[tuple[Instant, int, Callable[[Instant], Event | None]]] = []
        self._last = 0
        self._streams: dict[int, FakeStream] = {}
        self._pump_at: Instant | None = None

    # -- the world's side

    def next_at(self) -> Instant | None:
        """When something happens here next."""
        times = [self._due[0][0]] if self._due else []
        if self._streams and self._pump_at is not None:
            times.append(self._pump_at)
        return min(times, default=None)

    def due(self, now: Instant) -> list[Event]:
        """What reaches the client by ``now``."""
        self.etcd.advance(now)
        if self._pump_at is not None and now >= self._pump_at:
            self._pump_at = now + PUMP_S
            for number in list(self._streams):
                self._pump(number, now)
        events = []
        while self._due and self._due[0][0] <= now:
            _, _, make = heapq.heappop(self._due)
            event = make(now)
            if event is not None:
                events.append(event)
        return events

    def perform(self, effect: Effect, now: Instant) -> None:
        """Takes an effect of the machine."""
        match effect:
            case wire.EtcdCall():
                self._call(effect, now)
            case wire.StreamOpen(stream=number, endpoint=endpoint):
                self._streams[number] = FakeStream(endpoint, last_at=now)
                self._pump_at = self._pump_at or now + PUMP_S
            case wire.StreamSend(stream=number, request=request):
                self._later(now + self._delay_s(), lambda at: self._asked(number, request, at))
            case wire.StreamClose(stream=number):
                self._streams.pop(number, None)

    def _later(self, at: Instant, make: Callable[[Instant], Event | None]) -> None:
        self._last += 1
        heapq.heappush(self._due, (at, self._last, make))

    def _delay_s(self) -> float:
        return self.rng.uniform(0.0003, 0.003)

    # -- calls

    def _call(self, call: wire.EtcdCall, now: Instant) -> None:
        def answer(at: Instant, result: Any) -> None:
            self._later(at, lambda _: wire.EtcdAnswer(call=call.call, result=result))

        state = self.state[call.endpoint]
        if state == "refuses":
            answer(now + self._delay_s(), Failure(Trouble.REFUSED_CONNECTION))
            return
        times_out = now + call.limit_s
        if state == "frozen":
            # Its kernel takes the request; it is carried out if it wakes up in time.
            answer(times_out, Failure(Trouble.TIMED_OUT))
            if self.rng.random() < 0.3:
                self._later(now + self.rng.uniform(0.1, 4.0), lambda at: self._carry_out(call, at)[1])
            return
        if self.rng.random() < self.late_odds:
            answer(times_out, Failure(Trouble.TIMED_OUT))
            self._later(times_out + self.rng.uniform(0.0, 3.0), lambda at: self._carry_out(call, at)[1])
            return
        lost = self.rng.random() < self.lost_odds

        def arrive(at: Instant) -> None:
            result, _ = self._carry_out(call, at)
            if lost:
                broken = self.rng.random() < 0.5
                trouble = Trouble.LOST if broken else Trouble.TIMED_OUT
                answer(min(at + self._delay_s(), times_out) if broken else times_out, Failure(trouble))
            else:
                answer(min(at + self._delay_s(), times_out), result)

        self._later(min(now + self._delay_s(), times_out), arrive)

    def _carry_out(self, call: wire.EtcdCall, now: Instant) -> tuple[Any, None]:
        """What the member does with the request at ``now``: (answer, nothing to tell)."""
        self.etcd.advance(now)
        request = call.request
        if call.method == "Status":
            return pb.StatusResponse(header=self._header(), version=VERSION, leader=1), None
        if call.method == "MemberList":
            members = [pb.Member(ID=number + 1) for number in range(len(self.state))]
            return pb.MemberListResponse(header=self._header(), members=members), None
        if not self.etcd.has_leader(now):
            return Failure(Trouble.NO_LEADER), None
        try:
            return getattr(self, "_do_" + call.method.lower())(request, now), None
        except NoLease:
            return Failure(Trouble.NO_LEASE), None
        except Compacted:
            return Failure(Trouble.COMPACTED), None
        except BadRequest as error:
            return Failure(Trouble.REFUSED, str(error)), None

    def _header(self) -> Any:
        return pb.ResponseHeader(cluster_id=CLUSTER, revision=self.etcd.revision)

    def _do_range(self, request: Any, now: Instant) -> Any:
        key, prefix = request.key.decode(), bool(request.range_end)
        # A page goes on after the key it names: the prefix is what the end tells.
        start = key if not key.endswith("\0") else key[:-1]
        if prefix:
            end = request.range_end
            whole = (end[:-1] + bytes([end[-1] - 1])).decode()
            found = self.etcd.read(whole, prefix=True, revision=request.revision)
            found = tuple(kv for kv in found if kv.key > start or (kv.key == key))
        else:
            found = self.etcd.read(key, revision=request.revision)
        more = bool(request.limit) and len(found) > request.limit
        page = found[: request.limit] if request.limit else found
        kvs = [] if request.count_only else [_kv_message(kv) for kv in page]
        return pb.RangeResponse(header=self._header(), kvs=kvs, more=more, count=len(found))

    def _do_txn(self, request: Any, now: Instant) -> Any:
        puts, deletes, lease = [], [], 0
        for op in request.success:
            if op.HasField("request_put"):
                put = op.request_put
                lease = put.lease or lease
                puts.append(Put(put.key.decode(), put.value, bool(put.lease)))
            else:
                delete = op.request_delete_range
                deletes.append(Delete(delete.key.decode(), bool(delete.range_end)))
        compares = tuple(Compare(c.key.decode(), c.mod_revision, _OPS[c.result]) for c in request.compare)
        result = self.etcd.txn(StoreTxn(compares=compares, puts=(*puts,), deletes=(*deletes,)), now, lease)
        ranges = [
            pb.ResponseOp(response_range=pb.RangeResponse(kvs=[_kv_message(kv)])) for kv in result.current
        ]
        return pb.TxnResponse(header=self._header(), succeeded=result.succeeded, responses=ranges)

    def _do_leasegrant(self, request: Any, now: Instant) -> Any:
        lease = self.etcd.lease_grant(request.TTL, now)
        return pb.LeaseGrantResponse(header=self._header(), ID=lease, TTL=request.TTL)

    def _do_leasekeepalive(self, request: Any, now: Instant) -> Any:
        alive = self.etcd.keepalive(request.ID, now)
        ttl = int(self.etcd.leases[request.ID].ttl_s) if alive else 0
        return pb.LeaseKeepAliveResponse(header=self._header(), ID=request.ID, TTL=ttl)

    def _do_leaserevoke(self, request: Any, now: Instant) -> Any:
        if request.ID not in self.etcd.leases:
            raise NoLease
        self.etcd.revoke(request.ID, now)
        return pb.LeaseRevokeResponse(header=self._header())

    # -- streams

    def break_streams(self, endpoint: str, now: Instant) -> None:
        """Every stream to the member ends with an error."""
        for number, stream in list(self._streams.items()):
            if stream.endpoint == endpoint:
                self._end(number, now, Trouble.LOST)

    def _end(self, number: int, now: Instant, trouble: Trouble) -> None:
        del self._streams[number]
        self._later(now + self._delay_s(), lambda _: wire.StreamEnded(stream=number, why=Failure(trouble)))

    def _say(self, number: int, response: Any, now: Instant) -> None:
        """In order: nothing on a stream overtakes."""
        stream = self._streams[number]
        stream.last_at = max(stream.last_at, now + self._delay_s()) + 1e-9
        self._later(stream.last_at, lambda _: self._heard(number, response))

    def _heard(self, number: int, response: Any) -> Event | None:
        if number not in self._streams:
            return None
        return wire.StreamSaid(stream=number, response=response)

    def _asked(self, number: int, request: Any, now: Instant) -> None:
        stream = self._streams.get(number)
        if stream is None or self.state[stream.endpoint] != "well":
            return
        if request.HasField("create_request"):
            create = request.create_request
            start = create.start_revision
            # It may begin at the very revision of the compaction.
            after = start + 1 if start == self.etcd.compacted else start
            stream.watchers[create.watch_id] = [create.key.decode(), after, start]
            response = pb.WatchResponse(header=self._header(), watch_id=create.watch_id, created=True)
            self._say(number, response, now)
        elif request.HasField("cancel_request"):
            stream.watchers.pop(request.cancel_request.watch_id, None)
        else:
            self._pump(number, now, all_of_it=True)
            # As etcd 3.5: silent while a watch begins in the future.
            ahead = any(start > self.etcd.revision for _, _, start in stream.watchers.values())
            if number in self._streams and stream.watchers and not ahead:
                self._say(number, pb.WatchResponse(header=self._header(), watch_id=-1), now)

    def _pump(self, number: int, now: Instant, *, all_of_it: bool = False) -> None:
        stream = self._streams[number]
        state = self.state[stream.endpoint]
        if state == "refuses" or not self.etcd.has_leader(now):
            self._end(number, now, Trouble.LOST if state == "refuses" else Trouble.NO_LEADER)
            return
        if state == "frozen":
            return
        for watch_id, watcher in list(stream.watchers.items()):
            self._pump_one(number, watch_id, watcher, now, all_of_it)

    def _pump_one(self, number: int, watch_id: int, watcher: list[Any], now: Instant, whole: bool) -> None:
        prefix, position, _ = watcher
        try:
            changes = self.etcd.changes(prefix, position)
        except Compacted:
            del self._streams[number].watchers[watch_id]
            response = pb.WatchResponse(
                header=self._header(),
                watch_id=watch_id,
                canceled=True,
                compact_revision=self.etcd.compacted + 1,
            )
            self._say(number, response, now)
            return
        revisions = sorted({change.revision for change in changes})
        if not whole:
            revisions = revisions[:BATCH_MAX_REVISIONS]
        if not revisions:
            return
        events = [_event_message(change) for change in changes if change.revision <= revisions[-1]]
        watcher[1] = revisions[-1] + 1
        while events:
            some = self.rng.randint(1, len(events))
            piece, events = events[:some], events[some:]
            response = pb.WatchResponse(
                header=self._header(), watch_id=watch_id, events=piece, fragment=bool(events)
            )
            self._say(number, response, now)


def _kv_message(kv: KeyValue) -> Any:
    return pb.KeyValue(
        key=kv.key.encode(),
        value=kv.value,
        mod_revision=kv.mod_revision,
        create_revision=kv.create_revision,
        lease=kv.lease,
    )


def _event_message(change: Any) -> Any:
    if change.value is None:
        gone = pb.KeyValue(key=change.key.encode(), mod_revision=change.revision)
        return pb.Event(type=pb.Event.DELETE, kv=gone)
    return pb.Event(type=pb.Event.PUT, kv=_kv_message(change.value))
