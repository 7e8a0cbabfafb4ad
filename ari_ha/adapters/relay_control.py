"""What a guard does to the rtpengine beside it: take over its calls, and start it anew
with an empty store (rtpengine-ctl's text protocol; RESP to valkey)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ari_ha.adapters.commands import run_command
from ari_ha.core.machine import Done, Outcome, Refused, Unreachable

ANSWER_MAX_BYTES = 64 * 1024
STEP_LIMIT_S = 2.0
NOTIFICATIONS_NEEDED = frozenset("Kg$xe")
"""valkey's notify-keyspace-events: without them the peer's rtpengine learns of no call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayControlSettings:
    """Where the relay and its store are."""

    cli: tuple[str, int]
    """rtpengine's --listen-cli."""
    store: tuple[str, int] | None
    """The local valkey; None: rtpengine keeps nothing outside itself."""
    password: str
    database: int
    restart: Sequence[str]
    """Command that kills rtpengine and has its supervisor start it again."""


class RelayControl:
    """rtpengine and valkey of this host."""

    def __init__(self, settings: RelayControlSettings) -> None:
        self._settings = settings

    async def active(self) -> Outcome:
        """All calls rtpengine follows become its own."""
        try:
            async with asyncio.timeout(STEP_LIMIT_S):
                reader, writer = await asyncio.open_connection(*self._settings.cli)
                try:
                    writer.write(b"active\n")
                    await writer.drain()
                    answer = await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            return Unreachable(f"rtpengine's control port: {error!r}")
        text = answer.decode("utf-8", "replace").strip()
        return Done(text) if text.startswith("Ok") else Refused(text or "no answer")

    async def clean(self) -> Outcome:
        """Empties the store, then kills rtpengine: while it stands by it writes nothing,
        so the store stays empty, and a life that begins finds only the peer's calls."""
        if self._settings.store:
            emptied = await self.store("FLUSHDB")
            if not isinstance(emptied, Done):
                return emptied
        try:
            return await run_command(self._settings.restart, STEP_LIMIT_S)
        except (OSError, TimeoutError) as error:
            return Unreachable(f"{self._settings.restart[0]}: {error!r}")

    async def complaint(self) -> str:
        """What is wrong with the store's settings; empty: nothing, or it is away (then
        calls go on, unwatched by the peer, and it is asked again)."""
        answer = await self.store("CONFIG", "GET", "notify-keyspace-events")
        if not isinstance(answer, Done):
            return ""
        has = set(str(answer.value)) | (set("g$lshzxetd") if "A" in str(answer.value) else set())
        missing = NOTIFICATIONS_NEEDED - has
        return f"valkey's notify-keyspace-events lacks {''.join(sorted(missing))}" if missing else ""

    async def store(self, *words: str) -> Outcome:
        """One command to valkey in the relay's database; Done(the last line it answered)."""
        settings = self._settings
        if settings.store is None:
            return Refused("there is no store")
        commands = [("AUTH", settings.password)] if settings.password else []
        commands += [("SELECT", str(settings.database)), words]  # type: ignore[list-item]
        try:
            async with asyncio.timeout(STEP_LIMIT_S):
                reader, writer = await asyncio.open_connection(*settings.store)
                try:
                    answer = ""
                    for command in commands:
                        writer.write(_resp(command))
                        answer = await _answer(reader)
                        if answer.startswith("-"):
                            return Refused(answer)
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError) as error:
            return Unreachable(f"valkey: {error!r}")
        return Done(answer)


def _resp(words: Sequence[str]) -> bytes:
    """A command as an array of bulk strings (RESP)."""
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        data = word.encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


async def _answer(reader: asyncio.StreamReader) -> str:
    """The answer's text; of an array its last element."""
    line = (await reader.readuntil(b"\r\n")).decode("utf-8", "replace").strip()
    if line.startswith("*"):
        last = ""
        for _ in range(min(int(line[1:]), 16)):
            last = await _answer(reader)
        return last
    if line.startswith("$"):
        length = int(line[1:])
        if not 0 <= length <= ANSWER_MAX_BYTES:
            return ""
        return (await reader.readexactly(length + 2))[:-2].decode("utf-8", "replace")
    return line
