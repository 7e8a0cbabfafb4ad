"""Sets of transactions, as MySQL and MariaDB write them.

MySQL: ``uuid:1-5:7,uuid:tag:1-3`` (every transaction). MariaDB: ``domain-server-n``
(the last of each domain and server; in strict mode all before it are there too).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

TEXT_MAX_CHARS = 200_000
_MARIADB = re.compile(r"^(\d+)-(\d+)-(\d+)$")
_UUID = re.compile(r"^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$")
_INTERVAL = re.compile(r"^(\d+)(?:-(\d+))?$")

Interval = tuple[int, int]


class BadGtids(ValueError):
    """The text is not a GTID set."""


class Gtids:
    """An immutable set of transactions."""

    __slots__ = ("_parts", "_plain")

    def __init__(self, parts: Mapping[str, Iterable[Interval]] = {}, plain: bool = False) -> None:
        self._parts = {name: joined for name, some in parts.items() if (joined := _join(some))}
        self._plain = plain

    @classmethod
    def parse(cls, text: str) -> Gtids:
        """The set a server wrote. Raises `BadGtids`."""
        if len(text) > TEXT_MAX_CHARS:
            raise BadGtids(f"{len(text)} characters")
        parts: dict[str, list[Interval]] = {}
        plain = False
        for item in text.replace("\n", "").split(","):
            item = item.strip()
            if not item:
                continue
            if found := _MARIADB.match(item):
                plain = True
                parts.setdefault(f"{found[1]}-{found[2]}", []).append((1, int(found[3])))
            else:
                _parse_mysql(item, parts)
        return cls(parts, plain)

    def __contains__(self, other: object) -> bool:
        """Whether every transaction of ``other`` is here."""
        return isinstance(other, Gtids) and not other.without(self)

    def __or__(self, other: Gtids) -> Gtids:
        parts = {name: list(some) for name, some in self._parts.items()}
        for name, some in other._parts.items():
            parts.setdefault(name, []).extend(some)
        return Gtids(parts, self._plain or other._plain)

    def without(self, other: Gtids) -> Gtids:
        """What is here and not there."""
        parts = {name: _minus(some, other._parts.get(name, ())) for name, some in self._parts.items()}
        return Gtids(parts, self._plain)

    def count(self) -> int:
        """How many transactions."""
        return sum(last - first + 1 for some in self._parts.values() for first, last in some)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gtids) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._parts.items())))

    def __str__(self) -> str:
        if self._plain:
            return ",".join(f"{name}-{some[-1][1]}" for name, some in sorted(self._parts.items()))
        texts = []
        for name, some in sorted(self._parts.items()):
            spans = (str(first) if first == last else f"{first}-{last}" for first, last in some)
            texts.append(":".join((name, *spans)))
        return ",".join(texts)

    def __repr__(self) -> str:
        return f"Gtids({str(self)!r})"


def _parse_mysql(item: str, parts: dict[str, list[Interval]]) -> None:
    uuid, *spans = item.split(":")
    if not _UUID.match(uuid) or not spans:
        raise BadGtids(item[:80])
    name = uuid = uuid.lower()
    for span in spans:
        span = span.strip()
        found = _INTERVAL.match(span)
        if found:
            first, last = int(found[1]), int(found[2] or found[1])
            if not 0 < first <= last:
                raise BadGtids(item[:80])
            parts.setdefault(name, []).append((first, last))
        elif span.isidentifier():
            name = f"{uuid}:{span.lower()}"
        else:
            raise BadGtids(item[:80])


def _join(some: Iterable[Interval]) -> tuple[Interval, ...]:
    joined: list[Interval] = []
    for first, last in sorted(some):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def _minus(some: Iterable[Interval], other: Iterable[Interval]) -> list[Interval]:
    left = []
    for first, last in some:
        for low, high in other:
            if high < first or low > last:
                continue
            if low > first:
                left.append((first, low - 1))
            first = high + 1
        if first <= last:
            left.append((first, last))
    return left


def extra(mine: str, theirs: str) -> str:
    """What ``mine`` has and ``theirs`` has not; "" when nothing. Raises `BadGtids`."""
    return str(Gtids.parse(mine).without(Gtids.parse(theirs)))


def has_all(theirs: str, mine: str) -> bool:
    """Whether ``theirs`` has everything ``mine`` has. Raises `BadGtids`."""
    return not Gtids.parse(mine).without(Gtids.parse(theirs))
