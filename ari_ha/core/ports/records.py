"""The database of call records as the clerk sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Effect

Row = Mapping[str, Any]
"""Column -> value of one row. Times are UTC seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRows(Effect):
    """Write these rows of ``table`` in their order, each once however often it is asked, and
    read them back. ``key`` is the column that names a row.

    Outcome: Done(frozenset of the keys that were found after the commit); Refused when
    the database does not take the data as it is; Unreachable when no server is
    writable now; Unknown when a commit may or may not have happened.
    """

    table: str
    key: str
    rows: tuple[Row, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateTables(Effect):
    """Bring the tables up to date, never on a read-only server.

    Outcome: Done(list of the files applied); Refused, Unreachable, Unknown: not, or
    perhaps not; asking again is safe.
    """
