"""The etcd client's decisions: members, mirrors, lease, transactions.

Sans-IO: `ari_ha.adapters.etcd` (or a test) carries its calls and its one stream.
Events in and effects out are those of `ari_ha.wire.etcd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ari_ha.core.machine import DeadlineReached, Effect, Event, Instant, InvariantBroken
from ari_ha.core.ports.store import LeaseState, StoreChanged, StoreReach, StoreSnapshot
from ari_ha.machines.etcd_lease import Lease
from ari_ha.machines.etcd_members import Calls, EtcdTimings, Members, Random
from ari_ha.machines.etcd_mirrors import Mirrors
from ari_ha.machines.etcd_operations import Operations
from ari_ha.wire import etcd as wire

__all__ = ["EtcdClient", "EtcdTimings"]


class EtcdClient:
    """A `Machine`. ``login``: etcd user and password, where authentication is on."""

    def __init__(
        self,
        endpoints: Sequence[str],
        rng: Random,
        timings: EtcdTimings | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        timings = timings or EtcdTimings()
        self._calls = Calls()
        self._members = Members(self._calls, endpoints, timings, rng, login)
        self._mirrors = Mirrors(self._calls, self._members, timings)
        self._lease = Lease(self._calls, self._members, timings)
        self._operations = Operations(self._calls, self._members, self._lease, timings)
        self._members.on_adopt = self._adopted
        self._members.on_leave = self._mirrors.left
        self._members.on_away = self._operations.away

    def handle(self, event: Event, now: Instant) -> Sequence[Effect]:
        """What to do about ``event``."""
        match event:
            case wire.EtcdAnswer():
                self._calls.answered(event, now)
            case wire.StreamSaid():
                self._mirrors.said(event, now)
            case wire.StreamEnded():
                self._mirrors.ended(event, now)
            case wire.Submitted(ticket=ticket, effect=effect):
                self._operations.submit(ticket, effect, now)
            case DeadlineReached():
                pass
            case wire.Start():
                self._members.start(now)
            case wire.MirrorWanted(prefix=prefix):
                self._mirrors.want(prefix, now)
            case wire.MirrorUnwanted(prefix=prefix):
                self._mirrors.unwant(prefix)
            case wire.LeaseWanted(ttl_s=ttl_s):
                self._lease.want(ttl_s, now)
            case wire.DeliveryRefused(event=refused):
                self._not_taken(refused, now)
            case wire.Stop(revoke=revoke):
                self._stop(revoke, now)
            case _:
                raise TypeError(f"not for the etcd client: {type(event).__name__}")
        self._tick(now)
        out, self._calls.out = self._calls.out, []
        return out

    def deadline(self) -> Instant | None:
        """When `DeadlineReached` is wanted next."""
        parts: tuple[Any, ...] = (self._members, self._mirrors, self._lease, self._operations)
        times = [at for part in parts if (at := part.deadline()) is not None]
        return min(times) if times else None

    def check(self) -> None:
        """The lease may not be held without an id."""
        if self._lease.held and not self._lease.id:
            raise InvariantBroken("a lease without an id is held")

    @property
    def endpoint(self) -> str | None:
        """The member in use."""
        return self._members.current

    @property
    def version(self) -> str:
        """What etcd calls the version of the member in use ("" until it told)."""
        return self._members.version

    def _tick(self, now: Instant) -> None:
        self._members.tick(now)
        self._mirrors.tick(now)
        self._lease.tick(now)
        self._operations.tick(now)

    def _adopted(self, header: Any, now: Instant) -> None:
        self._mirrors.adopted(header, now)
        self._lease.adopted(now)
        self._operations.adopted(now)

    def _not_taken(self, event: Event, now: Instant) -> None:
        match event:
            case StoreSnapshot(prefix=prefix):
                self._mirrors.not_taken(prefix, now)
            case StoreChanged(key=key):
                self._mirrors.not_taken(key, now)
            case StoreReach():
                self._members.not_taken(now)
            case LeaseState():
                self._lease.not_taken(now)

    def _stop(self, revoke: bool, now: Instant) -> None:
        self._operations.stop()
        self._lease.stop(revoke)
        self._mirrors.left(now)
        self._members.stop()
