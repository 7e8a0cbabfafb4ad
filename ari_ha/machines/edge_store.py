"""The copy in etcd of an edge's calls: all a standby or a restarted edge needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from ari_ha.core.ids import NodeId
from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.core.ports.store import Compare, Delete, KeyValue, Put, TxnResult
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall
from ari_ha.sip.events import LocalError
from ari_ha.wire.keyspace import (
    OwnerValue,
    SecretDialogsValue,
    Value,
    encode,
)
from ari_ha.wire.media_keys import hide
from ari_ha.wire.unknown_fields import merge_unknown

STORE_RETRY_S = 0.5
CALLS_PER_TXN_MAX = 24
"""Of up to 4 keys each; etcd takes 128 operations in a transaction (--max-txn-ops)."""
ENDS_AT_ONCE_MAX = 50
"""Ended calls whose keys are being deleted; after a while without etcd many more wait for that."""
ENDS_KEPT_MAX = 50_000
"""Of 2 KB each, while etcd is away. Of calls that end later only the keys are deleted, nobody is told."""
REVISIONS_KEPT_MAX = 20_000
"""Of calls, those that ended lately included; the ones written longest ago are forgotten."""
FAREWELLS_PER_TXN_MAX = 12
"""Of two keys each, in a transaction of other calls."""
FAREWELL_LIMIT_S = 0.4
"""What is left of calls whose last BYE has been answered goes with the next write of any call, or
after this."""
TXN_MAX_BYTES = 1_000_000
"""Of values in a transaction of several calls; etcd takes 1.5 MiB (--max-request-bytes)."""


@dataclass(frozen=True, slots=True)
class _Write:
    """One call's part of a transaction."""

    values: dict[str, bytes]
    """All its keys, as they will be"""
    puts: tuple[Put, ...]
    """Those that etcd does not have like this"""
    waiting: list[Callable[[], None]]
    """What goes on when it is answered, whatever the answer, unless that is that another edge is active"""
    confirming: list[Callable[[], None]]
    """What goes on when it is in etcd; else after the next try"""

    @property
    def size(self) -> int:
        return sum(len(put.value) for put in self.puts)


@dataclass(frozen=True, slots=True)
class _Ended:
    """What is left of a call that is over."""

    entry: bytes = b""
    """For the clerk; empty: nothing"""
    kept: tuple[Put, ...] = ()
    """BYEs, or CANCELs, that had no answer when it ended"""
    byes: tuple[str, ...] = ()
    """Their SIP keys"""


class CallStore:
    """Writes the calls of ``calls`` whenever they changed, and deletes those that ended."""

    def __init__(self, context: EdgeContext, calls: Mapping[str, EdgeCall]) -> None:
        self._context = context
        self._calls = calls
        self._dirty: dict[str, None] = {}
        self._writing: set[str] = set()
        self._written: dict[str, dict[str, bytes]] = {}
        self._revisions: dict[str, int] = {}
        """call -> that of our last write of it, its end included"""
        self._deleted: dict[str, _Ended] = {}
        self._ending: set[str] = set()
        self._owed: dict[str, str] = {}
        """SIP key -> call that is over, in etcd only for the BYE that has no answer yet"""
        self._answered: dict[str, None] = {}
        """Calls of which that is not to be kept any more"""
        self._after_write: dict[str, list[Callable[[], None]]] = {}
        self._after_success: dict[str, list[Callable[[], None]]] = {}
        self._held: set[str] = set()
        """Calls whose last write failed: not again before `STORE_RETRY_S` is over"""
        self._refused: set[str] = set()
        """Calls of a transaction that etcd refused: each goes alone until it is taken, or what is wrong
        with one would keep the others out as well"""
        self.on_fenced: Callable[[str, KeyValue | None], None] = lambda key, item: None
        """A write was refused because the key of our address is another: that key, as it is now"""
        self._found: dict[str, dict[str, bytes]] = {}
        """call -> key -> what another process had written there (media keys shown): a newer
        one may say more than this version knows, and that is kept"""

    def found(self, call: str, values: Mapping[str, bytes]) -> None:
        """A call that was read back: its values, as they were."""
        self._found[call] = dict(values)

    def compare(self, there: Mapping[str, bytes]) -> None:
        """All of etcd's ``calls/``, read anew. Calls of which it has something else than was written there
        (it was set back to a copy of it) are written again, whole."""
        calls = self._context.keys.prefix("calls")
        for ident, values in list(self._written.items()):
            if any(key.startswith(calls) and there.get(key) != value for key, value in values.items()):
                del self._written[ident]
                self._dirty[ident] = None

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        """A key of ``calls/`` as etcd's stream tells it. What nobody has answered for in time may be done
        later, after what was written next: that is written, or deleted, again."""
        keys = self._context.keys
        ident = (*keys.split(key), "", "")[1]
        if key not in (keys.owner(ident), keys.media(ident)) or ident in self._writing:
            return
        if revision <= self._revisions.get(ident, revision):
            return
        there = self._written.get(ident)
        if there is not None and there[key] != value:
            del self._written[ident]
            self._dirty[ident] = None
        elif ident not in self._calls and value is not None:
            self._deleted.setdefault(ident, _Ended())

    def ended(self, call: EdgeCall, entry: bytes) -> None:
        """The call is over: its keys go, and ``entry`` comes for the clerk. Where we have ended legs
        ourselves, that stays until it is answered: else a far end whose BYE is lost, and the edge with it,
        would hear of it from its session timer only."""
        self._dirty.pop(call.call, None)
        self._found.pop(call.call, None)
        for act in self._after_write.pop(call.call, []):
            act()
        if entry and len(self._deleted) >= ENDS_KEPT_MAX:
            self._context.count("edge_call_records_dropped")
            entry = b""
        self._deleted[call.call] = _Ended(entry, self._farewell(call), tuple(call.farewells))

    def owes(self, ident: str, keys: Iterable[str]) -> None:
        """Nothing but BYEs is left of the call: of those ``keys``."""
        ending = [key for key in keys if self._context.sip.leg_state(key) != "ended"]
        self._owed |= dict.fromkeys(ending, ident)
        if not ending:
            self._forget_later(ident)

    def farewell(self, key: str) -> None:
        """A leg we had ended is over."""
        ident = self._owed.pop(key, "")
        if ident and ident not in self._owed.values():
            self._forget_later(ident)

    def _forget_later(self, *idents: str) -> None:
        self._answered |= dict.fromkeys(idents)
        if self._answered:
            self._context.at("farewells", self._context.now + FAREWELL_LIMIT_S, self._forget_now)

    def _forget_now(self) -> None:
        if self._answered and self._context.store_ok:
            self._write({})
        self._forget_later()

    def _take_answered(self) -> tuple[list[str], tuple[Delete, ...]]:
        """Calls to be forgotten in the next transaction."""
        idents = list(self._answered)[:FAREWELLS_PER_TXN_MAX]
        for ident in idents:
            del self._answered[ident]
        return idents, tuple(delete for ident in idents for delete in self._dialogs_of(ident))

    def _dialogs_of(self, ident: str) -> tuple[Delete, ...]:
        keys, vip = self._context.keys, self._context.config.vip
        return Delete(keys.dialogs(vip, ident)), Delete(keys.secret_dialog(vip, ident))

    def touch(self, call: EdgeCall, then: Callable[[], None] | None = None) -> None:
        """The call changed: it is written at the end of this event, and again while
        it keeps changing. ``then`` runs when this state is in etcd, or after a limit,
        or at once while etcd is away."""
        call.keep_times(self._context.utc)
        self._dirty[call.call] = None
        if then is None:
            return
        if not self._context.store_ok:
            then()
            return
        once = _once(then)
        self._after_write.setdefault(call.call, []).append(once)
        name = f"persist/{call.call}/{self._context.serial()}"
        self._context.at(name, self._context.now + self._context.timings.persist_limit_s, once)

    def when_written(self, call: EdgeCall | None, then: Callable[[], None], limit_s: float) -> None:
        """``then`` runs when what is about to happen to the call, its end included, is in etcd; not when
        a write has failed, as in `touch`, but after ``limit_s``, or at once while etcd is away."""
        if call is None or not self._context.store_ok:
            then()
            return
        once = _once(then)
        self._dirty[call.call] = None
        self._after_success.setdefault(call.call, []).append(once)
        name = f"persist/{call.call}/{self._context.serial()}"
        self._context.at(name, self._context.now + limit_s, once)

    def flush(self) -> None:
        """Writes what changed; called once at the end of every event."""
        context = self._context
        if not (self._dirty or self._deleted) or not context.store_ok or not context.edge_revision:
            return
        wait = self._writing | self._held
        room = ENDS_AT_ONCE_MAX - len(self._ending)
        for ident in list(islice((ident for ident in self._deleted if ident not in wait), room)):
            self._delete(ident, self._deleted.pop(ident))
        together: dict[str, _Write] = {}
        size = 0
        for ident in [ident for ident in self._dirty if ident not in wait]:
            self._dirty.pop(ident, None)
            call = self._calls.get(ident)
            write = self._prepared(call) if call else None
            if write is None:
                continue
            if ident in self._refused:
                self._write({ident: write})
                continue
            size += write.size
            if len(together) == CALLS_PER_TXN_MAX or (together and size > TXN_MAX_BYTES):
                self._write(together)
                together, size = {}, write.size
            together[ident] = write
        if together:
            self._write(together)

    def _fence(self) -> tuple[Compare, ...]:
        """Writes count only while our vip key is untouched: an edge that was
        replaced writes nothing (design: authority)."""
        context = self._context
        return (Compare(context.keys.vip(context.config.vip), context.edge_revision),)

    def _prepared(self, call: EdgeCall) -> _Write | None:
        """What there is to write of the call; None: all of it is in etcd, and nobody waits."""
        context, keys = self._context, self._context.keys
        dialogs = keys.dialogs(context.config.vip, call.call)
        said: dict[str, Value] = {
            dialogs: call.dialogs_value(self._export, context.config.public_host),
            keys.media(call.call): call.media_value(),
            keys.owner(call.call): self._owner_value(call),
        }
        values = {key: self._bytes(call.call, key, value) for key, value in said.items()}
        values[dialogs], crypto = hide(values[dialogs])
        if crypto:
            secret = SecretDialogsValue(call=call.call, keys=crypto)
            values[keys.secret_dialog(context.config.vip, call.call)] = encode(secret)
        waiting = self._after_write.pop(call.call, [])
        there = self._written.get(call.call, {})
        puts = tuple(Put(key, value) for key, value in values.items() if there.get(key) != value)
        confirming = self._after_success.pop(call.call, [])
        if not puts and not waiting and not confirming:
            return None
        return _Write(values, puts, waiting, confirming)

    def _write(self, together: dict[str, _Write]) -> None:
        """One transaction for calls that changed in the same event: when a node is lost, or
        this edge has taken over, those are many."""
        context, revision = self._context, self._context.edge_revision
        forgotten, deletes = self._take_answered()
        for ident in together:
            self._written.pop(ident, None)  # not known until this write is answered
            self._writing.add(ident)

        def written(outcome: Outcome) -> None:
            result = outcome.value if isinstance(outcome, Done) else None
            ok = isinstance(result, TxnResult) and result.succeeded
            self._writing.difference_update(together)
            if isinstance(outcome, Done):
                self._refused.difference_update(together)
            if not ok:
                self._forget_later(*forgotten)
            if isinstance(outcome, Done) and not ok and not self._still_active(revision, outcome, together):
                return
            for ident, write in together.items():
                if ok:
                    self._written[ident] = write.values
                    self._keep_revision(ident, result.revision)
                else:
                    self._dirty[ident] = None
                    if not isinstance(outcome, Done):
                        self._failed(ident, outcome)
                    self._after_success.setdefault(ident, [])[:0] = write.confirming
                    write.confirming.clear()
            for write in together.values():
                for act in (*write.waiting, *write.confirming):
                    act()

        context.count("edge_store_txns")
        puts = tuple(put for write in together.values() for put in write.puts)
        lane = f"store/{next(iter(together), 'farewells')}"
        context.txn(lane, written, compares=self._fence(), puts=puts, deletes=deletes)

    def _still_active(self, revision: int, refused: Done, idents: Iterable[str]) -> bool:
        """After a write of ``revision`` that the fence refused: whether it was we ourselves who have our
        address by a newer one. Else another has it, and what waited for the write is its to do: a phone that
        has no answer says again to it what we could not write down."""
        context, key = self._context, self._context.keys.vip(self._context.config.vip)
        self.on_fenced(key, next((item for item in refused.value.current if item.key == key), None))
        if context.edge_revision > revision:
            return True
        for ident in idents:
            context.count("edge_writes_fenced")
            context.note(f"call/{ident}", "write refused: another edge is active", level="error")
        return False

    def _keep_revision(self, ident: str, revision: int) -> None:
        self._revisions.pop(ident, None)
        self._revisions[ident] = revision
        if len(self._revisions) > REVISIONS_KEPT_MAX:
            del self._revisions[next(iter(self._revisions))]

    def _failed(self, ident: str, outcome: Outcome) -> None:
        """The call is written again, but not at once: who refuses at once would be asked again in the same
        breath, and in the next."""
        context = self._context
        if isinstance(outcome, Refused) and ident not in self._refused:
            self._refused.add(ident)
            context.note(f"call/{ident}", "etcd refuses the write", level="error", why=outcome.reason)
        if not self._held:
            context.at("flush", context.now + STORE_RETRY_S, self._again)
        self._held.add(ident)

    def _again(self) -> None:
        self._held.clear()
        self.flush()

    def _bytes(self, call: str, key: str, value: Value) -> bytes:
        before = self._found.get(call, {}).get(key)
        return merge_unknown(before, encode(value), type(value)) if before else encode(value)

    def _farewell(self, call: EdgeCall) -> tuple[Put, ...]:
        """What stays of the call where its BYEs, or CANCELs, have no answer yet."""
        context, keys, vip = self._context, self._context.keys, self._context.config.vip
        value = call.dialogs_value(self._export, context.config.public_host)
        if not value.byes or not context.store_ok:
            return ()
        data, crypto = hide(encode(value))
        kept = (Put(keys.dialogs(vip, call.call), data),)
        if crypto:  # of an INVITE that is being cancelled
            secret = SecretDialogsValue(call=call.call, keys=crypto)
            kept += (Put(keys.secret_dialog(vip, call.call), encode(secret)),)
        return kept

    def _delete(self, ident: str, ended: _Ended) -> None:
        """Takes the call out of etcd, and in the same transaction leaves what became of
        it (an empty entry: nothing) for the clerk."""
        context, keys, revision = self._context, self._context.keys, self._context.edge_revision
        self._writing.add(ident)
        self._ending.add(ident)
        confirming = self._after_success.pop(ident, [])
        forgotten, deletes = self._take_answered()
        byes = [key for key in ended.byes if context.sip.leg_state(key) != "ended"]
        kept = ended.kept if byes else ()
        there = {put.key for put in kept}

        def deleted(outcome: Outcome) -> None:
            self._writing.discard(ident)
            self._ending.discard(ident)
            result = outcome.value if isinstance(outcome, Done) else None
            ok = isinstance(result, TxnResult) and result.succeeded
            if isinstance(outcome, Done) and not ok and not self._still_active(revision, outcome, (ident,)):
                self._written.pop(ident, None)
            elif ok:
                self._keep_revision(ident, result.revision)
                self._written.pop(ident, None)
                self._refused.discard(ident)
                if kept:
                    self.owes(ident, byes)
                for act in (*confirming, *self._after_success.pop(ident, [])):
                    act()
            else:
                self._deleted[ident] = ended
                self._forget_later(*forgotten)
                self._after_success[ident] = confirming
                if not isinstance(outcome, Done):
                    self._failed(ident, outcome)

        context.count("edge_store_txns")
        context.txn(
            f"store/{ident}",
            deleted,
            compares=self._fence(),
            puts=((Put(keys.cdr(ident), ended.entry), *kept) if ended.entry else kept),
            deletes=(
                Delete(keys.call(ident), prefix=True),
                *(delete for delete in self._dialogs_of(ident) if delete.key not in there),
                *deletes,
            ),
        )

    def _export(self, key: str) -> dict[str, object] | None:
        try:
            return self._context.sip.export_leg(key)
        except LocalError:
            return None

    def _owner_value(self, call: EdgeCall) -> OwnerValue:
        """Who serves the call, as nodes and monitoring read it."""
        node = call.owner or (call.move.to if call.move else NodeId("", ""))
        return OwnerValue(
            call=call.call,
            node=str(node),
            epoch=str(call.newest),
            edge=self._context.config.edge,
            vip=self._context.config.vip,
            since=call.started_utc,
            moving=call.move is not None,
            moving_from=str(call.owner) if call.move and call.owner else "",
            why=call.lost,
            by_dialplan=call.by_dialplan,
        )


def _once(then: Callable[[], None]) -> Callable[[], None]:
    """``then``, however often it is called."""
    done = [False]

    def once() -> None:
        if not done[0]:
            done[0] = True
            then()

    return once
