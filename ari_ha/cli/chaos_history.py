"""Chaos, reading along: every commit of the lab's etcd while it is made. Afterwards would be too late where
history is compacted on purpose, and nobody could say when a commit was made."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ari_ha.cli.cluster import Cluster, ClusterError

QUIET_MAX_S = 2.0
"""A member from which nothing came for so long may be gone: the next one is asked."""
CATCH_UP_LIMIT_S = 15.0
EVERY_KEY = "AA=="
"""As key and as end of a range: with all of etcd's keys every revision has an event, so none can be missed
unnoticed."""

Changes = Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision: key -> value, None when deleted."""

    revision: int
    utc: float
    """When it was read"""
    changes: Changes
    anew: bool = False
    """The changes are all there was at this revision: what came before it was compacted away"""


class Reader:
    """Reads commits while they are made, from whichever member answers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.next = 0
        """The revision to be read next"""
        self.before: dict[str, bytes] = {}
        """What was there when it began"""
        self.commits: list[Commit] = []
        self.not_seen = 0
        """Revisions that nobody can tell of any more"""

    def begin(self) -> None:
        """Reads from now on. Raises ClusterError."""
        self.next, self.before = self._all()
        self._thread.start()

    def end(self) -> None:
        """Has read everything that was written until now, or counts what is missing. The second time it
        does nothing."""
        if self._over.is_set() or not self.next:
            return
        until = time.monotonic() + CATCH_UP_LIMIT_S
        try:
            last = self._cluster.revision()
        except ClusterError:
            last = self.next
        while self.next <= last and time.monotonic() < until:
            time.sleep(0.05)
        self._over.set()
        self.not_seen += max(0, last + 1 - self.next)

    def _all(self) -> tuple[int, dict[str, bytes]]:
        revision, items = self._cluster.snapshot(self._cluster.keys.root)
        return revision + 1, {item.key: item.value for item in items}

    def _read(self) -> None:
        turn = 0
        while not self._over.is_set():
            endpoints = self._cluster.settings.endpoints
            wanted = {"key": EVERY_KEY, "range_end": EVERY_KEY, "start_revision": str(self.next)}
            lines = self._cluster.stream(
                endpoints[turn % len(endpoints)], "watch", {"create_request": wanted}, QUIET_MAX_S
            )
            turn += 1
            for line in lines:
                try:
                    said = json.loads(line)
                except ValueError:
                    break  # the member died in the middle of it
                self.take(said.get("result") or {}, time.time())
                if self._over.is_set():
                    return
            self._over.wait(0.05)

    def take(self, said: Mapping[str, Any], utc: float) -> None:
        """One message of the watch."""
        if int(said.get("compact_revision", 0)) > self.next:
            self._begin_anew(utc)
        by_revision: dict[int, dict[str, bytes | None]] = {}
        for event in said.get("events", ()):
            raw = event["kv"]
            value = None if event.get("type") == "DELETE" else base64.b64decode(raw.get("value", ""))
            changes = by_revision.setdefault(int(raw["mod_revision"]), {})
            changes[base64.b64decode(raw["key"]).decode(errors="replace")] = value
        for revision, changes in sorted(by_revision.items()):
            if revision >= self.next:
                self.commits.append(Commit(revision, utc, changes))
                self.next = revision + 1

    def _begin_anew(self, utc: float) -> None:
        """Nobody can tell what was written meanwhile: what is there now is all that is known."""
        try:
            following, items = self._all()
        except ClusterError:
            return  # asked again with the next attempt to watch
        self.not_seen += following - self.next
        self.next = following
        self.commits.append(Commit(following - 1, utc, items, anew=True))
