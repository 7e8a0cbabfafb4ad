"""The database of call records as the clerk sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.machine import Effect

Row = Mapping[str, Any]
"""Column -> value of one row of ``calls``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCalls(Effect):
    """Write these rows, each once however often it is asked, and read them back.

    Outcome: Done(frozenset of the ids that were found after the commit); Refused when
    the database does not take the data as it is; Unreachable when no server is
    writable now; Unknown when a commit may or may not have happened.
    """

    rows: tuple[Row, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateTables(Effect):
    """Bring the tables up to date, never on a read-only server.

    Outcome: Done(list of the files applied); Refused, Unreachable, Unknown: not, or
    perhaps not; asking again is safe.
    """
