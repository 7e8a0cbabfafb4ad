"""Transactions and reads: tried on several members, never applied twice, and after
an unknown attempt looked at again where the compares can tell what happened."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from ari_ha.core.machine import Done, Instant, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.store import KeyValue, Put, StoreRead, StoreTxn, TxnResult
from ari_ha.machines.etcd_lease import Lease
from ari_ha.machines.etcd_members import Calls, EtcdTimings, Members
from ari_ha.wire import etcd as wire
from ari_ha.wire.etcd import MAYBE_DONE, NOT_DONE, Failure, Trouble

ATTEMPTS_MAX = 6
#: How many older values of a key are read to find out what an attempt did.
HISTORY_STEPS_MAX = 8
#: Share of the effect's limit used here, so that our answer is in before the shell's.
LIMIT_SHARE = 0.95


@dataclass(slots=True)
class Operation:
    """One submitted effect on its way to its outcome."""

    ticket: int
    effect: StoreTxn | StoreRead
    ends_at: Instant
    lease: int = 0
    attempts: int = 0
    tried: int = 0
    #: an attempt may have been applied
    maybe: bool = False
    parked: bool = False
    settled: bool = False
    why: str = ""


class Operations:
    """Carries out StoreTxn and StoreRead."""

    def __init__(self, calls: Calls, members: Members, lease: Lease, timings: EtcdTimings) -> None:
        self._calls = calls
        self._members = members
        self._lease = lease
        self._timings = timings
        self._parked: list[Operation] = []
        self._under_way: dict[int, Operation] = {}

    def submit(self, ticket: int, effect: StoreTxn | StoreRead, now: Instant) -> None:
        """Begins an effect; ends in one `Settle`."""
        op = Operation(ticket, effect, now + effect.limit_s * LIMIT_SHARE)
        writes = isinstance(effect, StoreTxn) and bool(effect.puts or effect.deletes)
        verdict = self._members.verdict
        if isinstance(effect, StoreTxn) and any(put.leased for put in effect.puts):
            if not self._lease.held or now >= self._lease.until:
                self._settle(op, Refused("no lease"))
                return
            op.lease = self._lease.id
        if verdict is not None and not verdict.reachable and (writes or not self._members.full):
            self._settle(op, Unreachable(verdict.why))
            return
        if self._members.nameless():
            self._park(op)
        else:
            self._attempt(op, now)

    def _park(self, op: Operation) -> None:
        """Waits until a member is found, none is, or its time is over."""
        if not op.parked:
            op.parked = True
            self._parked.append(op)
            self._under_way[op.ticket] = op

    def _settle(self, op: Operation, outcome: Outcome) -> None:
        if op.settled:
            return
        op.settled = True
        self._under_way.pop(op.ticket, None)
        self._calls.out.append(wire.Settle(ticket=op.ticket, outcome=outcome))

    def _give_up(self, op: Operation) -> None:
        why = op.why or "no time left"
        self._settle(op, Unknown(why) if op.maybe else Unreachable(why))

    # -- attempts

    def _endpoint(self, op: Operation) -> str:
        """The member in use first, then the others in turn."""
        endpoints = self._members.endpoints
        first = endpoints.index(self._members.current) if self._members.current else op.ticket
        return endpoints[(first + op.tried) % len(endpoints)]

    def _attempt(self, op: Operation, now: Instant) -> None:
        left_s = op.ends_at - now
        if op.attempts >= ATTEMPTS_MAX or left_s <= 0:
            self._give_up(op)
            return
        if isinstance(op.effect, StoreTxn):
            method, request = "Txn", wire.txn_request(op.effect, op.lease)
        else:
            method, request = "Range", wire.range_request(op.effect.key, prefix=op.effect.prefix)
        self._ask(op, method, request, self._answered, now)

    def _ask(self, op: Operation, method: str, request: Any, then: Any, now: Instant) -> None:
        endpoint = self._endpoint(op)
        op.attempts += 1
        op.tried += 1
        self._under_way[op.ticket] = op
        limit_s = min(self._timings.call_s, op.ends_at - now)
        self._calls.call(endpoint, method, request, limit_s, partial(then, op, endpoint), self._members.token)

    def _answered(self, op: Operation, endpoint: str, result: Any, now: Instant) -> None:
        if op.settled:
            return
        if isinstance(result, Failure):
            self._failed(op, endpoint, result, now)
            return
        self._members.well(endpoint, now)
        if isinstance(op.effect, StoreRead):
            self._settle(op, Done(tuple(wire.key_value(kv) for kv in result.kvs)))
            return
        answer = wire.txn_result(result)
        if answer.succeeded or not op.maybe:
            self._settle(op, Done(answer))
        else:
            self._decide(op, answer, now)

    def _failed(self, op: Operation, endpoint: str, failure: Failure, now: Instant) -> None:
        op.why = str(failure)
        self._members.trouble(endpoint, failure, now)
        if op.settled:
            return
        if failure.trouble is Trouble.NO_LEASE:
            self._lease.lost(op.lease, now)
            self._settle(op, Unknown(op.why) if op.maybe else Refused("no lease"))
        elif failure.trouble in NOT_DONE:
            self._again(op, now, wait=failure.trouble is Trouble.TOKEN)
        elif failure.trouble not in MAYBE_DONE:
            self._settle(op, Unknown(op.why) if op.maybe else Refused(failure.detail))
        elif isinstance(op.effect, StoreRead):
            self._again(op, now)
        else:
            op.maybe = True
            self._look_again(op, now)

    def _again(self, op: Operation, now: Instant, *, wait: bool = False) -> None:
        """Tries the next member; after all of them waits for one to be found."""
        if not wait and op.tried < len(self._members.endpoints):
            self._attempt(op, now)
            return
        verdict = self._members.verdict
        if verdict is not None and not verdict.reachable:
            self._give_up(op)
        else:
            self._park(op)

    def adopted(self, now: Instant) -> None:
        """A member works (again): go on with what waited for one."""
        parked, self._parked = self._parked, []
        for op in parked:
            op.parked, op.tried = False, 0
            if op.settled:
                continue
            if op.maybe:
                self._look_again(op, now)
            else:
                self._attempt(op, now)

    def away(self, now: Instant) -> None:
        """No member works: whoever waits is told at once."""
        parked, self._parked = self._parked, []
        for op in parked:
            op.parked = False
            if not op.why and self._members.verdict is not None:
                op.why = self._members.verdict.why
            self._give_up(op)

    def stop(self) -> None:
        """Ends everything."""
        for op in list(self._under_way.values()):
            op.why = "closed"
            self._give_up(op)
        self._parked = []

    # -- after an attempt that may have been applied

    def _witnesses(self, op: Operation) -> list[tuple[Put, int]]:
        """Puts of keys whose mod_revision the transaction compares for equality."""
        assert isinstance(op.effect, StoreTxn)
        expected = {c.key: c.mod_revision for c in op.effect.compares if c.op == "="}
        return [(put, expected[put.key]) for put in op.effect.puts if put.key in expected]

    def _cannot_apply_twice(self, op: Operation) -> bool:
        """A mod_revision above 0 never comes back once the transaction changed the key."""
        assert isinstance(op.effect, StoreTxn)
        changed = {put.key for put in op.effect.puts} | {d.key for d in op.effect.deletes if not d.prefix}
        return any(c.op == "=" and c.mod_revision > 0 and c.key in changed for c in op.effect.compares)

    def _look_again(self, op: Operation, now: Instant) -> None:
        if op.ends_at <= now or op.attempts >= ATTEMPTS_MAX:
            self._give_up(op)
        elif self._cannot_apply_twice(op):
            self._again_unknown(op, now)
        elif self._witnesses(op):
            # Created if absent: repeating could create it again after somebody
            # removed it, so only look.
            put, _ = self._witnesses(op)[0]
            self._ask(op, "Range", wire.range_request(put.key), self._read_back, now)
        else:
            self._give_up(op)

    def _again_unknown(self, op: Operation, now: Instant) -> None:
        if op.tried < len(self._members.endpoints):
            self._attempt(op, now)
        else:
            self._again(op, now, wait=True)

    def _read_back(self, op: Operation, endpoint: str, result: Any, now: Instant) -> None:
        if op.settled:
            return
        if isinstance(result, Failure):
            op.why = str(result)
            self._members.trouble(endpoint, result, now)
            if not op.settled:
                if op.tried < len(self._members.endpoints):
                    self._look_again(op, now)
                else:
                    self._again(op, now, wait=True)
            return
        put, expected = self._witnesses(op)[0]
        kv = wire.key_value(result.kvs[0]) if result.kvs else None
        if kv is not None and self._is_ours(op, put, expected, kv):
            self._settle(op, Done(TxnResult(True, kv.mod_revision)))
        elif kv is not None and kv.mod_revision > kv.create_revision:
            answer = TxnResult(False, result.header.revision, (kv,))
            self._walk_back(op, put, expected, kv, answer, now)
        else:
            self._give_up(op)

    @staticmethod
    def _is_ours(op: Operation, put: Put, expected: int, kv: KeyValue) -> bool:
        lease = op.lease if put.leased else 0
        return kv.mod_revision > expected and kv.value == put.value and kv.lease == lease

    def _decide(self, op: Operation, answer: TxnResult, now: Instant) -> None:
        """A repeated transaction found its compares false: was that its own doing?"""
        current = {kv.key: kv for kv in answer.current}
        assert isinstance(op.effect, StoreTxn)
        for put, expected in self._witnesses(op):
            kv = current.get(put.key)
            if kv is None:
                continue
            if self._is_ours(op, put, expected, kv):
                self._settle(op, Done(TxnResult(True, kv.mod_revision)))
                return
            if kv.mod_revision > expected > 0:
                self._walk_back(op, put, expected, kv, answer, now)
                return
        untouched = [
            c
            for c in op.effect.compares
            if c.op == "=" and c.mod_revision > 0 and c.key not in {put.key for put in op.effect.puts}
            if not any(d.key == c.key or (d.prefix and c.key.startswith(d.key)) for d in op.effect.deletes)
        ]
        if any(c.key not in current or current[c.key].mod_revision > c.mod_revision for c in untouched):
            # Something the transaction does not write has moved on: it can never apply
            # any more. That it did not before shows in the keys it would have changed.
            if self._still_as_expected(op, current):
                self._settle(op, Done(answer))
                return
        self._give_up(op)

    def _still_as_expected(self, op: Operation, current: dict[str, KeyValue]) -> bool:
        pairs = [(put.key, expected) for put, expected in self._witnesses(op) if expected > 0]
        return any(key in current and current[key].mod_revision == expected for key, expected in pairs)

    def _walk_back(
        self,
        op: Operation,
        put: Put,
        expected: int,
        kv: KeyValue,
        answer: TxnResult,
        now: Instant,
        step: int = 0,
    ) -> None:
        """Reads older values of the key until ours, or the expected one, appears."""
        if step >= HISTORY_STEPS_MAX or op.ends_at <= now:
            self._give_up(op)
            return

        def older(op: Operation, endpoint: str, result: Any, now: Instant) -> None:
            if isinstance(result, Failure) or not result.kvs:
                self._give_up(op)
                return
            before = wire.key_value(result.kvs[0])
            if self._is_ours(op, put, expected, before):
                self._settle(op, Done(TxnResult(True, before.mod_revision)))
            elif before.mod_revision == expected:
                # The next change was another's, and this mod_revision never returns.
                self._settle(op, Done(answer))
            else:
                self._walk_back(op, put, expected, before, answer, now, step + 1)

        op.tried = 0
        request = wire.range_request(put.key, revision=kv.mod_revision - 1)
        self._ask(op, "Range", request, older, now)

    # -- time

    def deadline(self) -> Instant | None:
        """When `tick` is needed next."""
        return min((op.ends_at for op in self._parked), default=None)

    def tick(self, now: Instant) -> None:
        """Ends what waited too long."""
        late = [op for op in self._parked if op.ends_at <= now]
        if late:
            self._parked = [op for op in self._parked if op.ends_at > now]
            for op in late:
                self._give_up(op)
