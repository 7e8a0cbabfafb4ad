"""The process's one lease: taken, renewed, and known to be lost in time."""

from __future__ import annotations

from functools import partial
from typing import Any

from ari_ha.core.machine import Instant
from ari_ha.core.ports.store import LeaseState
from ari_ha.machines.etcd_members import Calls, EtcdTimings, Members
from ari_ha.wire.etcd import Failure, Trouble
from ari_ha.wire.etcd_proto import messages as pb


class Lease:
    """Authority by the lease lasts until ``sent + ttl - margin`` on our own clock."""

    def __init__(self, calls: Calls, members: Members, timings: EtcdTimings) -> None:
        self._calls = calls
        self._members = members
        self._timings = timings
        self._ttl_s = 0
        self._next_at: Instant | None = None
        self._under_way = False
        self.held = False
        self.until: Instant = 0.0
        self.id = 0
        self._repost_at: Instant | None = None

    def want(self, ttl_s: int, now: Instant) -> None:
        """Keep a lease of ``ttl_s`` from now on."""
        if ttl_s <= self._timings.lease_margin_s + self._timings.call_s:
            raise ValueError(f"a lease of {ttl_s} s is shorter than one renewal and its margin")
        self._ttl_s = ttl_s
        self._next_at = now

    def adopted(self, now: Instant) -> None:
        """A member is in use: renew there at once."""
        if self._ttl_s and not self._under_way:
            self._next_at = now

    def stop(self, revoke: bool) -> None:
        """Keeps it no more."""
        self._next_at = self._repost_at = None
        self._ttl_s = 0
        if revoke and self.id and self._members.current is not None:
            self._ask(self._members.current, "LeaseRevoke", pb.LeaseRevokeRequest(ID=self.id), _ignored)
        self.held = False

    def _ask(self, endpoint: str, method: str, request: Any, then: Any) -> None:
        self._calls.call(endpoint, method, request, self._timings.call_s, then, self._members.token)

    def _renew(self, endpoint: str, now: Instant) -> None:
        self._under_way = True
        self._next_at = None
        then = partial(self._renewed, endpoint, self.id, now)
        if self.id:
            self._ask(endpoint, "LeaseKeepAlive", pb.LeaseKeepAliveRequest(ID=self.id), then)
        else:
            self._ask(endpoint, "LeaseGrant", pb.LeaseGrantRequest(TTL=self._ttl_s), then)

    def _renewed(self, endpoint: str, lease: int, sent: Instant, result: Any, now: Instant) -> None:
        self._under_way = False
        if not self._ttl_s:
            return
        if isinstance(result, Failure) and result.trouble is not Trouble.NO_LEASE:
            self._next_at = now + self._timings.retry_s
            self._members.trouble(endpoint, result, now)
            return
        if lease != self.id:
            self._next_at = now
        elif isinstance(result, Failure) or result.TTL <= 0:
            self.lost(lease, now)
        else:
            self._members.well(endpoint, now)
            self.id = result.ID
            self._next_at = max(now, sent + result.TTL / self._timings.lease_renewals_per_ttl)
            until = sent + result.TTL - self._timings.lease_margin_s
            if until > now:
                self.held, self.until = True, max(until, self.until)
                self._say()
            else:
                self._next_at = now

    def lost(self, lease: int, now: Instant) -> None:
        """etcd says this lease does not exist: take a new one."""
        if lease == 0 or lease != self.id:
            return
        self._calls.note("lease lost", lease=f"{lease:x}")
        if self.held:
            self.held = False
            self._say()
        self.id, self.until = 0, 0.0
        if self._ttl_s and not self._under_way:
            self._next_at = now

    def _say(self) -> None:
        self._repost_at = None
        until = self.until if self.held else 0.0
        self._calls.deliver(LeaseState(held=self.held, until=until, lease=self.id))

    def not_taken(self, now: Instant) -> None:
        """The process had no room for the state: say it again later."""
        self._repost_at = now + self._timings.repost_s

    def deadline(self) -> Instant | None:
        """When `tick` is needed next."""
        times = [self._repost_at] if self._repost_at is not None else []
        if self.held:
            times.append(self.until)
        if self._next_at is not None and self._members.current is not None:
            times.append(self._next_at)
        return min(times) if times else None

    def tick(self, now: Instant) -> None:
        """Does what is due."""
        if self.held and now >= self.until:
            self.held = False
            self._calls.note("lease not renewed in time", lease=f"{self.id:x}")
            self._say()
        if self._repost_at is not None and now >= self._repost_at:
            self._say()
        if self._next_at is not None and now >= self._next_at and self._members.current is not None:
            self._renew(self._members.current, now)


def _ignored(result: Any, now: Instant) -> None:
    """The lease ends by itself if this did not work."""
