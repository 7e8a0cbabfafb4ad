"""One decision, one transaction: decide, compare, write; lost compares decide anew.

An `Op` is something the ACD wants to be true. Its ``decide`` looks at the view
and answers with a `Plan` or with `Not`; it is asked again before every try, so
it must be idempotent. Ops that share a lock run in the order they came.

While the store is away an op is applied to the view as *dirty* keys, and those
are merged when the store is back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from ari_ha.core.machine import Done, OutcomeOf, Unknown
from ari_ha.core.ports.store import Compare, Delete, KeyValue, Put, StoreRead, StoreTxn, TxnResult
from ari_ha.machines.acd_agents import Not
from ari_ha.machines.acd_desk import Desk
from ari_ha.machines.acd_log import Around, Values, completed
from ari_ha.machines.acd_log import lines as queue_lines
from ari_ha.machines.acd_merge import cut_short, groups, merge_group, ours_to_tell, own_part
from ari_ha.machines.acd_queue import position
from ari_ha.machines.acd_view import Dirty
from ari_ha.wire.keyspace import Value, encode
from ari_ha.wire.outbox import QueueLine, QueueLogValue
from ari_ha.wire.unknown_fields import merge_unknown

TAG = "acd:"
PUMP_ROUNDS_MAX = 10_000
"""More than this for one event is a local mistake."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``writes``: key -> value (None: delete); all are compared. ``reads``: compared
    only. ``text`` is the story's word for it."""

    writes: dict[str, Value | None]
    text: str = ""
    reads: tuple[str, ...] = ()
    cause: str = ""
    """Who ended the conversation that this ends, for the queue log."""
    lines: tuple[QueueLine, ...] | None = None
    """What it means in the queue log; None: what follows from ``writes``."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an op ended. ``revision`` 0 with ``ok``: nothing was written to the store
    (it was so already, or ``local``: kept as dirty keys)."""

    ok: bool
    why: str = ""
    revision: int = 0
    local: bool = False
    already: bool = False
    plan: Plan | None = None
    extras_refused: tuple[KeyValue, ...] | None = None


@dataclass(slots=True, kw_only=True)
class Op:
    name: str
    lock: tuple[str, ...]
    decide: Callable[[], Plan | Not]
    done: Callable[[Result], None]
    away: str = "apply"
    """While the store is away: ``apply`` as dirty keys, ``drop`` (its cause will still
    be there), or ``keep`` until it is back."""
    needs: tuple[str, ...] = ()
    """Families of keys of which a snapshot must have come before it is decided."""
    extra_compares: tuple[Compare, ...] = ()
    extra_puts: tuple[Put, ...] = ()
    give_up: float | None = None
    number: int = 0
    state: str = "waiting"
    """waiting, sent, reading, reread"""
    not_before: float = 0.0
    wait_for_watch: bool = False
    tries: int = 0
    turn: int = 0
    plan: Plan | None = None
    written: dict[str, bytes | None] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    extras_refused: tuple[KeyValue, ...] | None = None


class Writes:
    """The ops in progress, in order."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.ops: list[Op] = []
        self._count = 0
        self._pumping = False
        self._told = 0
        """Lines of the queue log that waited for the store, ever"""

    # --- taking ops --------------------------------------------------------------------

    def submit(self, op: Op, first: bool = False) -> bool:
        """Takes ``op``; False (and never done) when there are too many."""
        if len(self.ops) >= self.desk.settings.ops_max:
            self.desk.count("acd_ops_shed")
            return False
        self._count += 1
        op.number = self._count
        if first:
            self.ops.insert(0, op)
        else:
            self.ops.append(op)
        return True

    def held(self) -> set[str]:
        """Locks and keys of every op: nothing else is decided about them meanwhile."""
        held: set[str] = set()
        for op in self.ops:
            held.update(op.lock)
            if op.plan is not None:
                held.update(op.plan.writes)
        return held

    def has(self, lock: str) -> bool:
        return any(lock in op.lock for op in self.ops)

    def forget(self, lock: str) -> None:
        """Drops the ops of ``lock``; the call is another node's. One that has been sent
        is not tried again, and what became of it is only learnt."""
        self.ops = [op for op in self.ops if lock not in op.lock]

    def touched(self, key: str) -> None:
        """``key`` changed: ops waiting for the watch try again now."""
        for op in self.ops:
            if op.wait_for_watch and (key in op.lock or (op.plan and key in op.plan.writes)):
                op.wait_for_watch = False
                op.not_before = 0.0

    # --- running -----------------------------------------------------------------------

    def pump(self) -> None:
        """Starts every op that can start."""
        if self._pumping:
            return
        self._pumping = True
        try:
            for _ in range(PUMP_ROUNDS_MAX):
                if not self._start_next():
                    return
            raise AssertionError("ops keep each other busy")
        finally:
            self._pumping = False

    def _start_next(self) -> bool:
        """Starts or ends one op; False when none can."""
        held: set[str] = set()
        for op in self.ops:
            free = held.isdisjoint(op.lock)
            held.update(op.lock)
            if op.state == "sent":
                assert op.plan is not None
                held.update(op.plan.writes)
            elif free and self._step(op, held.difference(op.lock)):
                return True
        return False

    def _step(self, op: Op, held: set[str]) -> bool:
        """Moves one op on; False when it has to wait."""
        if op.give_up is not None and self.desk.now >= op.give_up:
            self._end(op, Result(False, "the store does not answer"))
            return True
        if not self.desk.view.seen(*op.needs):
            return False
        if self.desk.away:
            return op.away != "keep" and self._run_away(op)
        if op.not_before > self.desk.now:
            return False
        if op.state == "reread":
            self._read(op)
            return True
        if op.state == "reading":
            if not op.unread:
                self._read_back(op)
            return not op.unread
        return self._try(op, held)

    def _try(self, op: Op, held: set[str]) -> bool:
        plan = op.decide()
        if isinstance(plan, Not):
            self._end(op, self._settled(op, plan))
            return True
        if not held.isdisjoint(plan.writes):
            return False
        op.plan = plan
        self._send(op)
        return True

    def _settled(self, op: Op, plan: Not) -> Result:
        return Result(plan.already, plan.why, already=plan.already, extras_refused=self._unwritten(op))

    @staticmethod
    def _unwritten(op: Op) -> tuple[KeyValue, ...] | None:
        """What became of the extra puts of an op that ends without a transaction."""
        return () if op.extra_puts else op.extras_refused

    def _send(self, op: Op) -> None:
        plan, view = op.plan, self.desk.view
        assert plan is not None
        op.written = {key: self._bytes(key, value) for key, value in plan.writes.items()}
        compares = [Compare(key, view.revision(key)) for key in dict.fromkeys((*plan.writes, *plan.reads))]
        puts = [Put(key, data) for key, data in op.written.items() if data is not None]
        deletes = [Delete(key) for key, data in op.written.items() if data is None]
        op.state = "sent"
        op.turn += 1
        self.desk.effects.append(
            StoreTxn(
                compares=(*compares, *op.extra_compares),
                puts=(*puts, *op.extra_puts, *self._log_put(op, plan)),
                deletes=tuple(deletes),
                tag=self._tag(op, "txn"),
                lane=f"acd/{op.number}",
            )
        )

    def _log_put(self, op: Op, plan: Plan) -> tuple[Put, ...]:
        lines = plan.lines
        if lines is None:
            before = {key: self.desk.view.value(key) for key in plan.writes}
            lines = tuple(line for _, line in self._lines(before, plan.writes, plan.cause))
        if not lines:
            return ()
        key = self.desk.log_key(f"{op.number}.{op.turn}")
        return (Put(key, encode(QueueLogValue(lines=list(lines)))),)

    def _lines(
        self, before: Values, after: Values, cause: str, connected: Collection[str] = ()
    ) -> list[tuple[str, QueueLine]]:
        """What the change means in the queue log, if there is one."""
        desk = self.desk
        if not desk.settings.queue_log:
            return []
        around = Around(
            utc=desk.utc, cause=cause, connected=connected,
            position=lambda place: position(place, desk.view.entries(), desk.queue),
        )  # fmt: skip
        return queue_lines(before, after, around)

    def _bytes(self, key: str, value: Value | None) -> bytes | None:
        if value is None:
            return None
        stored = self.desk.view.stored(key)
        data = encode(value)
        return merge_unknown(stored.raw, data, type(value)) if stored is not None and stored.raw else data

    @staticmethod
    def _tag(op: Op, what: str) -> str:
        return f"{TAG}{op.number}:{op.turn}:{what}"

    def _end(self, op: Op, result: Result) -> None:
        self.ops.remove(op)
        if result.plan is not None and result.plan.text:
            where = "kept until the store is back" if result.local else f"revision {result.revision}"
            self.desk.note(op.lock[-1], result.plan.text, op=op.name, at=where)
        self.desk.match_wanted = True
        self.desk.changed.update(op.lock)
        if result.plan is not None:
            self.desk.changed.update(result.plan.writes)
        op.done(result)

    # --- while the store is away -------------------------------------------------------

    def _run_away(self, op: Op) -> bool:
        if op.away == "drop":
            self._end(op, Result(False, "the store is away"))
            return True
        plan = op.decide()
        if isinstance(plan, Not):
            self._end(op, self._settled(op, plan))
            return True
        before = {key: self.desk.view.value(key) for key in plan.writes}
        lines = self._lines(before, plan.writes, plan.cause)
        for key, value in plan.writes.items():
            self._set_dirty(key, value)
        self._keep_lines(lines)
        self._end(op, Result(True, local=True, plan=plan, extras_refused=self._unwritten(op)))
        return True

    def _set_dirty(self, key: str, value: Value | None) -> None:
        view = self.desk.view
        base = view.value(key)
        view.dirty[key] = view.dirty.get(key, Dirty(base, base)).then(value)

    def _keep_lines(self, lines: list[tuple[str, QueueLine]]) -> None:
        """The queue log is told when the store is back, with the keys it is about."""
        dirty = self.desk.view.dirty
        room = self.desk.settings.log_backlog_max - sum(len(value.lines) for value in dirty.values())
        for key, line in lines[: max(0, room)]:
            self._told += 1
            dirty[key] = replace(dirty[key], lines=(*dirty[key].lines, (self._told, line)))
        if len(lines) > room:
            self.desk.count("acd_log_lines_dropped", by=len(lines) - max(0, room))

    def flush(self, holds: Callable[[str], bool]) -> None:
        """The store is back: merges the dirty keys, those of one call together.
        ``holds`` says whether a call is served here."""
        view = self.desk.view
        flushing = {key for op in self.ops if op.name == "flush" for key in op.lock}
        free = [key for key in view.dirty if key not in flushing]
        for group in groups(view, free):
            self._flush_group(group, holds)

    def _flush_group(self, group: tuple[str, ...], holds: Callable[[str], bool]) -> None:
        view = self.desk.view
        planned: dict[str, Dirty] = {}
        alone = self.desk.log_key(f"away{self._count}")

        def decide() -> Plan | Not:
            planned.clear()
            planned.update({key: view.dirty[key] for key in group if key in view.dirty})
            mine, about = own_part(view, planned, str(self.desk.me))
            writes, reads = merge_group(view, mine, holds, self.desk.utc)
            lines = self._merged_lines(mine, writes)
            if not writes and lines:  # what began and ended meanwhile leaves nothing else
                writes[alone], lines = QueueLogValue(lines=list(lines)), ()
            if not writes:
                return Not("stored already", already=True)
            return Plan(writes, "merged after the store was away", (*group, *about, *reads), lines=lines)

        def done(result: Result) -> None:
            again = []
            for key, dirty in planned.items():
                if view.dirty.get(key) is dirty:
                    del view.dirty[key]
                elif key in view.dirty:
                    newer = view.dirty[key]
                    lines = newer.lines[len(dirty.lines) :]
                    view.dirty[key] = replace(newer, base=dirty.value, lines=lines)
                    again.append(key)
            if again:
                self._flush_group(tuple(again), holds)

        self.submit(Op(name="flush", lock=group, decide=decide, done=done, away="keep"), first=True)

    def _merged_lines(
        self, dirty: Mapping[str, Dirty], writes: Mapping[str, Value | None]
    ) -> tuple[QueueLine, ...]:
        """What happened here, as far as nobody else tells it, and what the merge makes of
        the values of which others have told."""
        stored = {key: kv.value if (kv := self.desk.view.stored(key)) else None for key in (*dirty, *writes)}
        ours = {key: ours_to_tell(value, stored[key], key in writes) for key, value in dirty.items()}
        kept = sorted((n, line) for lines in ours.values() for n, line in lines)
        connected = {line.call for _, line in kept if line.event == "CONNECT"}
        done = {key for key, value in dirty.items() if stored[key] == value.base}
        about = {(key, line.call) for key, lines in ours.items() for _, line in lines}
        merged = self._lines(stored, writes, "", connected)
        cut = [
            completed(value.value, Around(utc=self.desk.utc))
            for key, value in dirty.items()
            if cut_short(value, (line for _, line in ours[key]), {**stored, **writes}[key])
        ]
        rest = (line for key, line in merged if not (key in done or (key, line.call) in about))
        return (*(line for _, line in kept), *cut, *rest)

    def next_try(self) -> float | None:
        """When an op that waits for a time wants to be pumped again."""
        times = [op.not_before for op in self.ops if op.state in ("waiting", "reread") and op.not_before > 0]
        times += [op.give_up for op in self.ops if op.give_up is not None]
        return min(times, default=None)

    # --- outcomes ----------------------------------------------------------------------

    def outcome(self, event: OutcomeOf) -> list[str]:
        """Takes an outcome; returns the keys it taught us."""
        effect, outcome = event.effect, event.outcome
        assert isinstance(effect, StoreTxn | StoreRead)
        _, number, turn, what = effect.tag.split(":", 3)
        op = next((op for op in self.ops if op.number == int(number) and op.turn == int(turn)), None)
        if what == "txn" and isinstance(effect, StoreTxn):
            return self._txn_outcome(op, effect, outcome)
        return self._read_outcome(op, effect.key, outcome)

    def _txn_outcome(self, op: Op | None, effect: StoreTxn, outcome: object) -> list[str]:
        learnt: list[str] = []
        if isinstance(outcome, Done) and isinstance(outcome.value, TxnResult):
            learnt = self._learn(effect, outcome.value)
            for key in learnt:
                self.touched(key)
        if op is None or op.state != "sent":
            return learnt
        if isinstance(outcome, Done):
            result = outcome.value
            if result.succeeded:
                self._written(op, result.revision)
            else:
                self._lost(op, result)
        elif isinstance(outcome, Unknown):
            assert op.plan is not None
            op.state = "reread"
        else:
            op.state, op.not_before = "waiting", self.desk.now + self.desk.settings.retry_s
        return learnt

    def _learn(self, effect: StoreTxn, result: TxnResult) -> list[str]:
        view, learnt = self.desk.view, []
        if result.succeeded:
            news = [(p.key, KeyValue(p.key, p.value, result.revision)) for p in effect.puts]
            news += [(d.key, None) for d in effect.deletes]
        else:
            current = {kv.key: kv for kv in result.current}
            news = [(c.key, current.get(c.key)) for c in effect.compares]
        for key, kv in news:
            if view.learn(key, kv, result.revision):
                learnt.append(key)
        return learnt

    def _lost(self, op: Op, result: TxnResult) -> None:
        """The compares did not hold: decide anew on what we were told, a few times."""
        current = {kv.key: kv for kv in result.current}
        if op.plan is not None and any(isinstance(op.plan.writes.get(key), QueueLogValue) for key in current):
            # its key is nobody else's: where it is there, this was written
            self._end(op, Result(True, already=True))
            return
        for compare in op.extra_compares:
            kv = current.get(compare.key)
            if (kv.mod_revision if kv is not None else 0) != compare.mod_revision:
                keys = {c.key for c in op.extra_compares}
                op.extras_refused = tuple(kv for kv in result.current if kv.key in keys)
                op.extra_compares, op.extra_puts = (), ()
                break
        op.state, op.tries = "waiting", op.tries + 1
        self.desk.count("acd_compares_lost", op=op.name)
        if op.tries >= self.desk.settings.tries_max:
            op.tries, op.wait_for_watch = 0, True
            op.not_before = self.desk.now + self.desk.settings.watch_wait_s

    def _read(self, op: Op) -> None:
        assert op.plan is not None
        op.state = "reading"
        op.turn += 1
        op.unread = set(op.plan.writes)
        op.not_before = 0.0
        for key in op.plan.writes:
            self.desk.effects.append(StoreRead(key=key, tag=self._tag(op, "read"), lane=f"acd/{op.number}"))

    def _read_outcome(self, op: Op | None, key: str, outcome: object) -> list[str]:
        learnt: list[str] = []
        view = self.desk.view
        if isinstance(outcome, Done):
            kv = next((kv for kv in outcome.value if kv.key == key), None)
            revision = kv.mod_revision if kv is not None else view.revision(key) + 1
            if view.learn(key, kv, revision):
                learnt.append(key)
        if op is None or op.state != "reading":
            return learnt
        if isinstance(outcome, Done):
            op.unread.discard(key)
        else:
            op.not_before = self.desk.now + self.desk.settings.retry_s
            op.turn += 1
            op.state = "reread"
        return learnt

    def _read_back(self, op: Op) -> None:
        """After an unknown outcome: was it ours? If not, decide anew; should the old
        transaction still come through, ours will lose its compare."""
        view = self.desk.view
        if all(self._is_written(key, data) for key, data in op.written.items()):
            revision = max((view.revision(key) for key in op.written), default=0)
            self._written(op, revision)
        else:
            op.state = "waiting"

    def _written(self, op: Op, revision: int) -> None:
        self._end(op, Result(True, revision=revision, plan=op.plan, extras_refused=op.extras_refused))

    def _is_written(self, key: str, data: bytes | None) -> bool:
        stored = self.desk.view.stored(key)
        return stored is None if data is None else (stored is not None and stored.raw == data)
