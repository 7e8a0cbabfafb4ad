"""Asterisk's control socket: what is said there, and what each answer means."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ari_ha.adapters.control_socket import set_maintenance
from ari_ha.core.machine import Done, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.ari import NO_COMMAND, NO_ENDPOINT, NO_PERMISSION, SetMaintenance


class Console:
    """Something that listens there and speaks as Asterisk does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self.answer: Callable[[str], str] = lambda command: ""
        self.silent = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ast1/4711/22.10.1\n")
        command = (await reader.readuntil(b"\0"))[:-1].decode()
        self.told.append(command)
        if self.silent:
            await reader.read()
        for piece in self.answer(command.removeprefix("cli quit after ")).partition(" "):
            writer.write(piece.encode())
            await writer.drain()
        writer.close()


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[Console]:
    console = Console(tmp_path / "asterisk.ctl")
    async with await asyncio.start_unix_server(console.serve, console.path):
        yield console


async def ask(console: Console, *endpoints: str, on: bool = True, limit_s: float = 5.0) -> Outcome:
    effect = SetMaintenance(endpoints=endpoints or ("edge-in-trunk",), on=on, limit_s=limit_s)
    return await set_maintenance(str(console.path), effect)


@pytest.mark.parametrize(
    ("on", "answer", "outcome"),
    [
        (True, "Maintenance mode ENABLED for endpoint 'edge-in-trunk'\n", Done()),
        (True, "Endpoint 'edge-in-trunk' is already in maintenance mode\n", Done()),
        (False, "Maintenance mode DISABLED for endpoint 'edge-in-trunk'\n", Done()),
        (False, "Endpoint 'edge-in-trunk' was not in maintenance mode\n", Done()),
        (True, "Maintenance mode DISABLED for endpoint 'edge-in-trunk'\n", Refused),
        (True, "Failed to enable maintenance mode for endpoint 'edge-in-trunk'\n", Refused),
        (True, "You don't have permissions to run 'pjsip set maintenance' command\n", Refused),
        (True, "", Refused),
    ],
)
async def test_what_asterisk_prints(console, on: bool, answer: str, outcome) -> None:
    console.answer = lambda command: answer
    got = await ask(console, on=on)
    assert got == outcome if outcome == Done() else isinstance(got, outcome)
    assert console.told == [f"cli quit after pjsip set maintenance {'on' if on else 'off'} edge-in-trunk"]


async def test_an_older_asterisk_has_no_such_command(console) -> None:
    console.answer = lambda command: f"No such command '{command}' (type 'core show help' ...)\n"
    got = await ask(console)
    assert isinstance(got, Refused) and got.code == NO_COMMAND


async def test_every_endpoint_is_asked_for_whatever_became_of_the_first(console) -> None:
    console.answer = lambda command: (
        "Maintenance mode ENABLED for endpoint 'b'\n"
        if command.endswith(" b")
        else "Endpoint 'a' not found\n"
    )
    got = await ask(console, "a", "b")
    assert got == Refused("Endpoint 'a' not found", NO_ENDPOINT)
    assert [command[-1] for command in console.told] == ["a", "b"]


async def test_nobody_listens(console, tmp_path) -> None:
    console.path = tmp_path / "other.ctl"
    assert isinstance(await ask(console), Unreachable)
    console.path.write_text("a file that is left, not a socket")
    assert isinstance(await ask(console), Unreachable)


async def test_an_asterisk_that_hangs_may_do_it_later(console) -> None:
    console.silent = True
    assert isinstance(await ask(console, limit_s=0.2), Unknown)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_no_permission(console) -> None:
    console.path.chmod(0o400)
    got = await ask(console)
    assert isinstance(got, Refused) and got.code == NO_PERMISSION
