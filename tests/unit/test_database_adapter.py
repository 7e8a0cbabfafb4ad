"""The adapters of databases: tables complete, answers read, outcomes honest."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pymysql
import pytest

from ari_ha.adapters import database_sql as sql
from ari_ha.adapters.database import DatabaseAccess, DatabaseServer, read_secret
from ari_ha.adapters.database_checks import DatabaseChecks
from ari_ha.adapters.database_peer import DatabasePeer
from ari_ha.adapters.database_process import ProcessOptions, ServerProcess
from ari_ha.core.machine import Done, Refused, Unknown, Unreachable
from ari_ha.core.ports.database import (
    LOCKED,
    VERBS,
    ArchiveErrant,
    DatabaseDo,
    KillServer,
    Observe,
    PeerSaid,
    Rebuild,
    SendPeer,
    ServerLife,
    StartServer,
)

UUID = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
MYSQL_ANSWERS = {
    "SELECT @@global": [
        {
            "read_only": 1, "executed": f"{UUID}:1-5,\n{UUID[:-1]}3:1", "uuid": UUID, "server_id": 2,
            "version": "9.7.4", "increment": 2, "offset": 2, "semi_source": 0, "semi_replica": 1,
            "connections_max": 151, "datadir": "/var/lib/mysql/",
        }
    ],
    "SHOW REPLICA STATUS": [
        {
            "Source_Host": "10.0.0.41", "Replica_IO_Running": "Yes", "Replica_SQL_Running": "No",
            "Retrieved_Gtid_Set": f"{UUID}:1-9", "Last_IO_Errno": 0, "Last_IO_Error": "",
            "Last_SQL_Errno": 1062, "Last_SQL_Error": "Duplicate entry",
        }
    ],
    "SHOW GLOBAL STATUS": [
        {"Variable_name": "Rpl_semi_sync_source_clients", "Value": "1"},
        {"Variable_name": "Threads_connected", "Value": "7"},
    ],
    "SELECT TIMESTAMPDIFF": [{"lag_s": "0.25"}],
}  # fmt: skip


class FakeConnection:
    """PyMySQL as far as the adapter uses it."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []
        self.open = True
        self._rows: list[Any] = []

    def cursor(self) -> FakeConnection:
        return self

    def __enter__(self) -> FakeConnection:
        return self

    def __exit__(self, *what: object) -> None: ...

    def execute(self, text: str, args: Any = None) -> None:
        self.asked.append((text, args))
        for start, answer in self.answers.items():
            if text.startswith(start):
                if callable(answer):
                    answer = answer()
                if isinstance(answer, Exception):
                    raise answer
                self._rows = answer
                return
        self._rows = []

    def fetchall(self) -> list[Any]:
        return self._rows

    def _force_close(self) -> None:
        self.open = False


def server(answers: dict[str, Any], flavour: str = "mysql") -> tuple[DatabaseServer, FakeConnection]:
    connection = FakeConnection(answers)
    access = DatabaseAccess(flavour=flavour, repl_password="geheim", names={"10.0.0.41": "db1"})
    return DatabaseServer(access, lambda: "77.1", connect=lambda **options: connection), connection


@pytest.mark.parametrize("flavour", sql.FLAVOURS)
def test_both_flavours_have_every_verb(flavour: str) -> None:
    assert set(sql.FLAVOURS[flavour].verbs) == set(VERBS)


async def test_an_observation_is_read() -> None:
    local, _ = server(MYSQL_ANSWERS)
    outcome = await local.perform(Observe(lane="observe"))
    assert isinstance(outcome, Done)
    seen = outcome.value
    assert (seen.life, seen.writable, seen.source, seen.io) == ("77.1", False, "db1", "yes")
    assert seen.received.endswith(":1-9") and "\n" not in seen.position
    assert seen.apply_error == "1062 Duplicate entry" and not seen.follows
    assert (seen.semi_clients, seen.connections, seen.lag_s) == (1, 7, 0.25)
    local.close()


def test_what_mariadb_says_is_read() -> None:
    variables = {
        "read_only": "ON", "binlog_pos": "1-2-80", "slave_pos": "1-1-70", "binlog_state": "1-1-70,1-2-80",
        "server_id": 1, "version": "11.8.9", "uuid": "x", "increment": 2, "offset": 1, "semi_source": 1,
        "semi_replica": 1, "connections_max": 100,
    }  # fmt: skip
    replica = [
        {"Master_Host": "h", "Slave_IO_Running": "Preparing", "Slave_SQL_Running": "Yes", "Gtid_IO_Pos": ""}
    ]
    seen = sql.observation("mariadb", "1.1", variables, [], replica, None, {"h": "db2"}, 0.5)
    assert (seen.position, seen.history) == ("1-2-80", "1-1-70,1-2-80,1-1-70")
    assert (seen.source, seen.io, seen.applying, seen.lag_s) == ("db2", "connecting", True, None)
    rebuilt = sql.observation("mariadb", "1.1", variables | {"binlog_pos": ""}, [], [], None, {}, 1.0)
    assert rebuilt.position == "1-1-70"
    assert sql.was_primary("1-2-80", 2) and not sql.was_primary("1-2-80", 1) and not sql.was_primary("", 1)


async def test_outcomes() -> None:
    locked = pymysql.err.OperationalError(LOCKED, "Lock wait timeout exceeded")
    lost = pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")
    local, connection = server({"SET GLOBAL super_read_only = ON": locked, "STOP REPLICA": lost})
    refused = await local.perform(DatabaseDo(verb="close", args={"lock_wait_s": 1}, lane="fence"))
    assert isinstance(refused, Refused) and refused.code == LOCKED and connection.open
    assert connection.asked[0] == ("SET SESSION lock_wait_timeout = %(lock_wait_s)s", {"lock_wait_s": 1})
    unknown = await local.perform(DatabaseDo(verb="follow_stop", lane="steps"))
    assert isinstance(unknown, Unknown) and not connection.open
    local.close()

    def nobody(**options: Any) -> None:
        raise pymysql.err.OperationalError(2003, "Can't connect")

    away = DatabaseServer(DatabaseAccess(flavour="mysql"), lambda: "", connect=nobody)
    assert isinstance(await away.perform(DatabaseDo(verb="open", lane="steps")), Unreachable)
    away.close()


async def test_a_statement_that_hangs_holds_up_no_other_lane() -> None:
    begun, release = threading.Event(), threading.Event()

    def hangs() -> list[Any]:
        begun.set()
        release.wait(60)
        return []

    local, _ = server({"START REPLICA": hangs, **MYSQL_ANSWERS})
    hanging = asyncio.create_task(local.perform(DatabaseDo(verb="follow_start", lane="steps")))
    assert await asyncio.to_thread(begun.wait, 30)
    assert isinstance(await local.perform(Observe(lane="observe")), Done)
    assert not hanging.done()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await hanging
    release.set()
    assert isinstance(await local.perform(DatabaseDo(verb="open", lane="steps")), Done)
    local.close()


async def test_follow_gives_the_password_as_a_parameter() -> None:
    for flavour, word in (("mysql", "SOURCE_PASSWORD"), ("mariadb", "MASTER_PASSWORD")):
        local, connection = server({"SELECT @@global.gtid_binlog_pos": [{"p": "1-2-8", "i": 2}]}, flavour)
        effect = DatabaseDo(verb="follow", args={"source": "db1", "host": "h", "port": 3306}, lane="steps")
        assert isinstance(await local.perform(effect), Done)
        text, args = connection.asked[-1]
        assert word in text and "geheim" not in text and args["password"] == "geheim"
        assert ("DEMOTE" in text) == (flavour == "mariadb")
        assert "geheim" not in repr(DatabaseAccess(flavour=flavour, repl_password="geheim"))
        local.close()


async def test_the_first_heartbeat_makes_its_table() -> None:
    missing = iter([pymysql.err.ProgrammingError(1146, "no table"), []])
    local, connection = server({"INSERT INTO ha_meta": lambda: next(missing)})
    outcome = await local.perform(DatabaseDo(verb="heartbeat", args={"term": 3}, lane="heartbeat"))
    assert isinstance(outcome, Done)
    assert [text.split(" ")[0] for text, _ in connection.asked] == ["INSERT", "CREATE", "CREATE", "INSERT"]
    local.close()


async def test_disconnect_spares_those_who_have_gone() -> None:
    gone = pymysql.err.OperationalError(1094, "Unknown thread id")
    local, connection = server({"SELECT id FROM": [{"id": 5}, {"id": 6}], "KILL": gone})
    outcome = await local.perform(DatabaseDo(verb="disconnect", lane="fence"))
    assert outcome == Done(0) and sum(text.startswith("KILL") for text, _ in connection.asked) == 2
    local.close()


async def test_a_clone_that_ends_the_server_is_a_success(tmp_path: Path) -> None:
    """ER_CLONE_SHUTDOWN: the copy is there, and we start the server."""
    start = tmp_path / "start"
    start.write_text(f"#!/bin/sh\nsleep 60 >/dev/null 2>&1 &\necho $! > {tmp_path}/pid\n")
    start.chmod(0o755)
    ended = pymysql.err.OperationalError(3707, "Restart server failed")
    state = {"SELECT state FROM": [{"state": "Completed"}]}
    local, connection = server({"CLONE": ended, **state, **MYSQL_ANSWERS})
    options = ProcessOptions(
        flavour="mysql", pid_file=str(tmp_path / "pid"), name="sleep", start=(str(start),),
        donors={"db2": ("10.0.0.42", 3306)}, clone_password="geheim", clone_tls=True,
    )  # fmt: skip
    process = ServerProcess(options, lambda event: None, lambda: local)
    outcome = await process.perform(Rebuild(donor="db2", limit_s=20.0))
    assert isinstance(outcome, Done) and outcome.value == process.life
    (text, args) = next(pair for pair in connection.asked if pair[0].startswith("CLONE"))
    assert text.endswith("REQUIRE SSL") and "geheim" not in text and args["password"] == "geheim"
    assert "geheim" not in repr(options)
    await process.perform(KillServer())
    process.close()
    local.close()


def test_rights_the_application_must_not_have() -> None:
    rows = [{"PRIVILEGE_TYPE": "SELECT"}, {"privilege_type": "READ_ONLY ADMIN"}]
    assert sql.refused_grants("mariadb", rows) == ["READ_ONLY ADMIN"]
    assert sql.refused_grants("mysql", rows) == []


async def test_rights_are_asked_for_by_user() -> None:
    rows = [{"GRANTEE": "'asterisk'@'%'", "PRIVILEGE_TYPE": "CONNECTION_ADMIN"}]
    local, connection = server({"SELECT grantee": rows})
    assert await local.refused_grants(("asterisk",)) == {"asterisk": ["CONNECTION_ADMIN"]}
    assert connection.asked[0][1] == {"grantee": "'asterisk'@%"}
    local.close()


def test_a_password_file_is_private(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("x\n")
    file.chmod(0o644)
    with pytest.raises(ValueError, match="readable by others"):
        read_secret(str(file))
    file.chmod(0o600)
    assert read_secret(str(file)) == "x"


async def test_datagrams_are_authenticated() -> None:
    heard: list[Any] = []
    one = DatabasePeer("db1", {}, b"k" * 16, heard.append)
    await one.start("127.0.0.1", 0)
    addresses = {"db1": ("127.0.0.1", one.port), "db2": ("127.0.0.1", 9)}
    one._peers = addresses
    two = DatabasePeer("db2", addresses, b"k" * 16, heard.append)
    stranger = DatabasePeer("db2", addresses, b"x" * 16, heard.append)
    for sender in (two, stranger):
        await sender.start("127.0.0.1", 0)
        sender.tell_time()
        sender.send(SendPeer(peer="db1", message={"kind": "ask", "n": 1}))
    await asyncio.sleep(0.05)
    assert heard == [PeerSaid(peer="db2", message={"kind": "ask", "n": 1})] and one.refused == 2
    assert abs(one.ahead_s["db2"]) < 1.0, "one machine, one clock"
    for peer in (one, two, stranger):
        peer.close()
    with pytest.raises(ValueError, match="16"):
        DatabasePeer("db1", {}, b"short", heard.append)


async def test_health_checks_need_no_token() -> None:
    good = {"/writable": lambda: (True, ""), "/readable": lambda: (False, "it is 9 s behind")}
    checks = DatabaseChecks("127.0.0.1", 0, good)
    await checks.start()
    async with aiohttp.ClientSession() as http:
        async with http.options(f"http://127.0.0.1:{checks.port}/writable") as answer:
            assert answer.status == 200
        async with http.get(f"http://127.0.0.1:{checks.port}/readable") as answer:
            assert answer.status == 503 and "9 s" in await answer.text()
    await checks.stop()


async def test_a_server_process_lives_and_dies(tmp_path: Path) -> None:
    pid_file, told = tmp_path / "pid", []
    start = tmp_path / "start"
    start.write_text(f"#!/bin/sh\nsleep 60 >/dev/null 2>&1 &\necho $! > {pid_file}\n")
    start.chmod(0o755)
    local, _ = server(MYSQL_ANSWERS)
    options = ProcessOptions(
        flavour="mysql", pid_file=str(pid_file), name="sleep", start=(str(start),), datadir=str(tmp_path)
    )
    process = ServerProcess(options, told.append, lambda: local)
    process.start()
    await asyncio.sleep(0.01)
    assert told == [ServerLife(alive=False)]
    outcome = await process.perform(StartServer(limit_s=5.0))
    assert isinstance(outcome, Done) and outcome.value == process.life != ""
    assert told[-1] == ServerLife(alive=True, life=process.life)
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGSTOP)  # what stands still is killed all the same
    assert await process.perform(KillServer()) == Done()
    assert told[-1] == ServerLife(alive=False) and process.life == ""
    assert await process.perform(KillServer()) == Done()
    nothing = await process.perform(ArchiveErrant(gtids="x"))
    assert isinstance(nothing, Refused) and "binary logs" in nothing.reason
    process.close()
    local.close()
