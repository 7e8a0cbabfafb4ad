"""Mirrored prefixes: read whole once, then follow every change, across members,
broken streams and compaction. One Watch stream carries all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ari_ha.core.machine import Instant
from ari_ha.core.ports.store import KeyValue, StoreChanged, StoreSnapshot
from ari_ha.machines.etcd_members import Calls, EtcdTimings, Members
from ari_ha.wire import etcd as wire
from ari_ha.wire.etcd import Failure, Trouble
from ari_ha.wire.etcd_proto import messages as pb

#: The watch id of a progress response that speaks for the whole stream.
WHOLE_STREAM = -1


@dataclass(slots=True)
class Mirror:
    """One prefix and how far it is known."""

    prefix: str
    #: the first revision not yet delivered; 0: to be read whole
    position: int = 0
    watch_id: int = 0
    created: bool = False
    fragments: list[Any] = field(default_factory=list)
    items: dict[str, KeyValue] = field(default_factory=dict)
    #: distinguishes this reading of the prefix from abandoned ones
    listing: int = 0
    retry_at: Instant | None = None


class Mirrors:
    """Follows the wanted prefixes on the member in use."""

    def __init__(self, calls: Calls, members: Members, timings: EtcdTimings) -> None:
        self._calls = calls
        self._members = members
        self._timings = timings
        self._mirrors: dict[str, Mirror] = {}
        self._watched: dict[int, Mirror] = {}
        self._stream = 0
        self._open = False
        self._last_watch_id = 0
        self._last_listing = 0
        self._heard_at: Instant = 0.0
        self._asked_at: Instant | None = None
        self._cluster = 0

    # -- what is wanted, and where

    def want(self, prefix: str, now: Instant) -> None:
        """Mirrors ``prefix`` from now on."""
        if prefix not in self._mirrors:
            mirror = self._mirrors[prefix] = Mirror(prefix)
            if self._members.current is not None:
                self._open_stream(now)
                self._begin(mirror, now)

    def unwant(self, prefix: str) -> None:
        """Ends every mirror under ``prefix``; what of it is under way is not told any more."""
        for mirror in [m for m in self._mirrors.values() if m.prefix.startswith(prefix)]:
            del self._mirrors[mirror.prefix]
            self._unwatch(mirror)
            self._unhook(mirror)

    def adopted(self, header: Any, now: Instant) -> None:
        """A member is in use: go on where each mirror stands."""
        if header is not None:
            self._compare(header)
        if self._mirrors:
            self._open_stream(now)
        for mirror in self._mirrors.values():
            self._begin(mirror, now)

    def left(self, now: Instant) -> None:
        """The member is given up; positions stay."""
        if self._open:
            self._calls.out.append(wire.StreamClose(stream=self._stream))
        self._open = False
        self._asked_at = None
        self._watched.clear()
        for mirror in self._mirrors.values():
            self._unhook(mirror)

    def _compare(self, header: Any) -> None:
        """Another cluster, or one set back in time (restored): nothing known holds."""
        behind = any(mirror.position > header.revision + 1 for mirror in self._mirrors.values())
        other = self._cluster not in (0, header.cluster_id)
        self._cluster = header.cluster_id
        if other or behind:
            self._calls.note("etcd is not what it was: reading everything again")
            for mirror in self._mirrors.values():
                mirror.position = 0

    def _open_stream(self, now: Instant) -> None:
        if self._open:
            return
        assert self._members.current is not None
        self._stream += 1
        self._open = True
        self._heard_at = now
        self._asked_at = None
        self._calls.out.append(
            wire.StreamOpen(stream=self._stream, endpoint=self._members.current, token=self._members.token)
        )

    # -- one mirror

    @staticmethod
    def _unhook(mirror: Mirror) -> None:
        mirror.watch_id = 0
        mirror.created = False
        mirror.fragments = []
        mirror.items = {}
        mirror.listing = 0
        mirror.retry_at = None

    def _begin(self, mirror: Mirror, now: Instant) -> None:
        if mirror.position:
            self._watch(mirror, now)
            return
        self._last_listing += 1
        self._unhook(mirror)
        mirror.listing = self._last_listing
        self._list(mirror, wire.range_request(mirror.prefix, prefix=True), 0)

    def _list(self, mirror: Mirror, request: Any, revision: int) -> None:
        endpoint = self._members.current
        assert endpoint is not None
        request.limit = self._timings.list_page_keys
        request.revision = revision
        then = partial(self._listed, mirror, mirror.listing, endpoint, revision)
        self._calls.call(endpoint, "Range", request, self._timings.call_s * 2, then, self._members.token)

    def _listed(
        self, mirror: Mirror, listing: int, endpoint: str, revision: int, result: Any, now: Instant
    ) -> None:
        if listing != mirror.listing:
            return
        if isinstance(result, Failure):
            self._calls.note("cannot read prefix", prefix=mirror.prefix, why=str(result))
            mirror.retry_at = now + self._timings.retry_s
            self._members.trouble(endpoint, result, now)
            return
        self._members.well(endpoint, now)
        revision = revision or result.header.revision
        for kv in result.kvs:
            value = wire.key_value(kv)
            mirror.items[value.key] = value
        if result.more:
            rest = wire.range_request(mirror.prefix, prefix=True)
            rest.key = result.kvs[-1].key + b"\0"
            self._list(mirror, rest, revision)
            return
        self._calls.deliver(StoreSnapshot(prefix=mirror.prefix, revision=revision, items=mirror.items))
        self._unhook(mirror)
        mirror.position = revision + 1
        self._watch(mirror, now)

    def _watch(self, mirror: Mirror, now: Instant) -> None:
        self._unhook(mirror)
        self._last_watch_id += 1
        mirror.watch_id = self._last_watch_id
        if not self._watched:
            # Until now the stream had nothing to say: its silence begins here.
            self._heard_at, self._asked_at = now, None
        self._watched[mirror.watch_id] = mirror
        # From the last known revision, not the one after it (known changes are dropped):
        # etcd answers no progress request while a watch begins in the future.
        request = wire.watch_create(mirror.prefix, max(mirror.position - 1, 1), mirror.watch_id)
        self._calls.out.append(wire.StreamSend(stream=self._stream, request=request))

    def _unwatch(self, mirror: Mirror) -> None:
        if mirror.watch_id:
            del self._watched[mirror.watch_id]
            cancel = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=mirror.watch_id))
            self._calls.out.append(wire.StreamSend(stream=self._stream, request=cancel))

    # -- what the stream says

    def said(self, event: wire.StreamSaid, now: Instant) -> None:
        """A response of the stream."""
        if not self._open or event.stream != self._stream:
            return
        self._heard_at, self._asked_at = now, None
        response = event.response
        if response.watch_id == WHOLE_STREAM:
            if wire.progress_is_sound(self._members.version):
                for mirror in self._watched.values():
                    self._progress(mirror, response.header.revision)
            return
        mirror = self._watched.get(response.watch_id)
        if mirror is None:
            return
        if response.canceled:
            self._canceled(mirror, response, now)
        elif response.created:
            mirror.created = True
        elif response.events:
            self._changed(mirror, response)
        else:
            self._progress(mirror, response.header.revision)

    def _changed(self, mirror: Mirror, response: Any) -> None:
        mirror.fragments.extend(response.events)
        if response.fragment:
            return  # one revision may go on in the next piece: resume must not split it
        events, mirror.fragments = mirror.fragments, []
        known = mirror.position
        for message in events:
            key, value, revision = wire.change(message)
            if revision < known:
                continue
            mirror.position = revision + 1
            self._calls.deliver(StoreChanged(key=key, value=value, revision=revision))

    @staticmethod
    def _progress(mirror: Mirror, revision: int) -> None:
        """Everything up to ``revision`` has been delivered."""
        if mirror.created and not mirror.fragments:
            mirror.position = max(mirror.position, revision + 1)

    def _canceled(self, mirror: Mirror, response: Any, now: Instant) -> None:
        del self._watched[mirror.watch_id]
        self._unhook(mirror)
        if response.compact_revision:
            self._calls.note(
                "compacted: reading prefix again",
                prefix=mirror.prefix,
                position=str(mirror.position),
                compacted=str(response.compact_revision),
            )
            mirror.position = 0
            self._begin(mirror, now)
            return
        self._calls.note("watch canceled", prefix=mirror.prefix, why=response.cancel_reason)
        mirror.retry_at = now + self._timings.retry_s
        self._members.trouble(
            self._members.current or "", wire.failure("FAILED_PRECONDITION", response.cancel_reason), now
        )

    def ended(self, event: wire.StreamEnded, now: Instant) -> None:
        """The stream is gone."""
        if self._open and event.stream == self._stream:
            if event.why.trouble is Trouble.TOKEN and self._members.current is not None:
                self._members.trouble(self._members.current, event.why, now)
            else:
                self._members.leave(f"watch: {event.why}", now)

    def not_taken(self, key_or_prefix: str, now: Instant) -> None:
        """The process had no room for a change: its prefix must be told anew."""
        for mirror in self._mirrors.values():
            if not key_or_prefix.startswith(mirror.prefix) or mirror.retry_at is not None:
                continue
            self._unwatch(mirror)
            self._unhook(mirror)
            mirror.position = 0
            mirror.retry_at = now + self._timings.repost_s

    # -- time

    def deadline(self) -> Instant | None:
        """When `tick` is needed next."""
        times = [m.retry_at for m in self._mirrors.values() if m.retry_at is not None]
        if self._open and self._watched:
            if self._asked_at is None:
                times.append(self._heard_at + self._timings.watch_silence_s)
            else:
                times.append(self._asked_at + self._timings.watch_patience_s)
        return min(times) if times else None

    def tick(self, now: Instant) -> None:
        """Does what is due."""
        for mirror in self._mirrors.values():
            if mirror.retry_at is not None and now >= mirror.retry_at:
                mirror.retry_at = None
                if self._members.current is not None:
                    self._open_stream(now)
                    self._begin(mirror, now)
        if not self._open or not self._watched:
            return
        if self._asked_at is None:
            if now >= self._heard_at + self._timings.watch_silence_s:
                self._asked_at = now
                self._calls.out.append(wire.StreamSend(stream=self._stream, request=wire.watch_progress()))
        elif now >= self._asked_at + self._timings.watch_patience_s:
            self._members.leave("watch silent", now, reset=True)
