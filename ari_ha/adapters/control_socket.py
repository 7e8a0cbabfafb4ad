"""Asterisk's control socket, which ``asterisk -rx`` uses: for the little ARI cannot do.

The socket says ``host/pid/version`` in a line of its own, takes ``cli quit after`` with a
command and a NUL (Asterisk's main/asterisk.c, netconsole), writes what the command prints
and closes. The command's answer is a sentence; those of ``pjsip set maintenance`` are
Asterisk's res/res_pjsip_maintenance.c."""

from __future__ import annotations

import asyncio
import contextlib

from ari_ha.core.machine import Done, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.ari import NO_COMMAND, NO_ENDPOINT, NO_PERMISSION, SetMaintenance

OUTPUT_MAX_BYTES = 64 * 1024
TEXT_MAX_CHARS = 200
AS_WANTED = {
    True: ("maintenance mode enabled for endpoint", "is already in maintenance mode"),
    False: ("maintenance mode disabled for endpoint", "was not in maintenance mode"),
}
"""In lower case: the endpoint is in maintenance, or out of it, now."""
OWN_SHARE = 0.95
"""Of an effect's limit: a little before the shell's own, so that the outcome can say more."""


async def command(path: str, text: str) -> str:
    """What Asterisk prints when told ``text``. Raises OSError when it cannot be told."""
    reader, writer = await asyncio.open_unix_connection(path, limit=OUTPUT_MAX_BYTES)
    try:
        await reader.readline()
        writer.write(b"cli quit after " + text.encode() + b"\0")
        await writer.drain()
        printed = await reader.read(OUTPUT_MAX_BYTES)
        while len(printed) < OUTPUT_MAX_BYTES and (more := await reader.read(OUTPUT_MAX_BYTES)):
            printed += more
        return printed.decode(errors="replace")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def set_maintenance(path: str, effect: SetMaintenance) -> Outcome:
    """Every endpoint in turn, each whatever became of those before it; the first that is
    not as wanted is the outcome."""
    word, outcome = "on" if effect.on else "off", Done()
    try:
        async with asyncio.timeout(effect.limit_s * OWN_SHARE):
            for name in effect.endpoints:
                said = _read(await command(path, f"pjsip set maintenance {word} {name}"), name, effect.on)
                outcome = outcome if isinstance(outcome, Refused) else said
    except TimeoutError:
        return Unknown(f"{path}: no answer within {effect.limit_s:g} s")
    except PermissionError:
        return Refused(f"{path}: no permission: astctlpermissions in asterisk.conf", NO_PERMISSION)
    except OSError as error:
        return Unreachable(f"{path}: {error.strerror or error}")
    return outcome


def _read(printed: str, endpoint: str, on: bool) -> Outcome:
    said = " ".join(printed.split())[:TEXT_MAX_CHARS]
    if any(words in said.lower() for words in AS_WANTED[on]):
        return Done()
    if said.startswith("No such command"):
        return Refused(said, NO_COMMAND)
    if said.endswith("not found"):
        return Refused(said, NO_ENDPOINT)
    return Refused(f"{endpoint}: {said or 'no answer'}")
