"""Call records against a real etcd and a real MariaDB, written by real clerk processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest

from ari_ha.adapters.call_records import CallRecords, RecordsAccess, migrations
from ari_ha.core.machine import Done, Refused, Unreachable
from ari_ha.core.ports.records import WriteRows
from ari_ha.core.ports.store import Put, StoreTxn
from ari_ha.machines.clerk import row_of
from ari_ha.runtime.etcd import EtcdSettings, get_prefix, txn
from ari_ha.wire.keyspace import Keys, decode, encode
from ari_ha.wire.outbox import CdrValue, ClerkValue
from tests.contract.etcd_cluster import Cluster, free_port, why_not

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "ari-ha/mariadb"
USER, PASSWORD, SCHEMA = "ari_ha_clerk", "clerk", "acd"
START = """
mkdir -p /run/mysqld /d && chown mysql /run/mysqld /d
[ -d /d/mysql ] || mariadb-install-db --user=mysql --datadir=/d >/dev/null 2>&1
exec mariadbd --no-defaults --user=mysql --datadir=/d --port=%d --bind-address=127.0.0.1 \
  --socket=/tmp/s.sock --skip-name-resolve --server-id=1 --log-bin
"""
KEYS = Keys("records")
UP_LIMIT_S, LIMIT_S = 40.0, 60.0


def _no_image() -> str:
    try:
        found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True)
    except FileNotFoundError:
        return "no docker here"
    return "" if found.returncode == 0 else f"no image {IMAGE}"


pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_no_image() or why_not()), reason=_no_image() or why_not() or "-"),
]


class Server:
    """One MariaDB of our own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.name = f"ari-ha-test-mariadb-{uuid.uuid4().hex[:8]}"
        command = ["docker", "run", "-d", "--network=host", f"--name={self.name}", "--entrypoint=sh", IMAGE]
        subprocess.run([*command, "-c", START % self.port], check=True, capture_output=True)
        self.wait()
        self.admin(f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'")
        self.admin(f"GRANT CREATE, INSERT, UPDATE, SELECT ON {SCHEMA}.* TO '{USER}'@'%'")

    def docker(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", *words, self.name], capture_output=True)

    def admin(self, text: str) -> bool:
        command = ["docker", "exec", self.name, "mariadb", "-S", "/tmp/s.sock", "-e", text]
        return subprocess.run(command, capture_output=True).returncode == 0

    def wait(self) -> None:
        until = time.monotonic() + UP_LIMIT_S
        while not self.admin("SELECT 1"):
            assert time.monotonic() < until, "the server does not come up"
            time.sleep(0.3)

    def rows(self, text: str) -> Any:
        with pymysql.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, database=SCHEMA
        ) as connection, connection.cursor() as cursor:  # fmt: skip
            cursor.execute(text)
            return cursor.fetchall()

    def access(self, *before: tuple[str, int]) -> RecordsAccess:
        return RecordsAccess((*before, ("127.0.0.1", self.port)), SCHEMA, USER, PASSWORD)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.docker("rm", "-f")


def ended(call: str, **facts: Any) -> CdrValue:
    return CdrValue(call=call, started=1_800_000_000.25, ended=1_800_000_060.5, **facts)


async def test_the_adapter_and_its_schema(server: Server) -> None:
    """Migrations apply once; a row written twice is one row; bad data, a closed server and
    one that is not there are told apart."""
    records = CallRecords(server.access())
    rows = tuple(row_of(ended(f"k{n}", connected=1_800_000_030.125, caller="\U0001f600")) for n in range(3))
    write = WriteRows(table="calls", key="ha_call_id", rows=rows, limit_s=5.0)
    assert isinstance(await records.perform(write), Unreachable), "no table yet"
    assert await records.migrate() == Done([name for _, name, _ in migrations()])
    assert await records.migrate() == Done([])
    for _ in range(2):
        assert await records.perform(write) == Done(frozenset({"k0", "k1", "k2"}))
    found = server.rows("SELECT ha_call_id, talk_ms, DATE_FORMAT(started, '%T.%f'), caller FROM calls")
    assert sorted(found) == [(f"k{n}", 30_375, "08:00:00.250000", "\U0001f600") for n in range(3)]
    bad = {**rows[0], "ha_call_id": "bad", "cause": "x" * 99}
    outcome = await records.perform(replace(write, rows=(rows[0], bad)))
    assert isinstance(outcome, Refused) and outcome.code == 1406
    server.admin("SET GLOBAL read_only = 1")
    assert isinstance(await records.perform(write), Unreachable)
    assert isinstance(await records.migrate(), Unreachable), "never on a replica"
    server.admin("SET GLOBAL read_only = 0")
    records.close()
    two = CallRecords(server.access(("127.0.0.1", free_port())))
    assert isinstance(await two.perform(write), Unreachable)
    assert await two.perform(write) == Done(frozenset({"k0", "k1", "k2"})), "the next one is asked"
    two.close()


class Clerk:
    """A clerk process with its parent, in a process group of its own."""

    def __init__(self, name: str, place: Path, etcd: tuple[str, ...], port: int) -> None:
        password = place / "password"
        password.write_text(PASSWORD)
        password.chmod(0o600)
        settings = {
            "cluster": "records", "clerk": name,
            "etcd": {"endpoints": list(etcd)},
            "database": {"servers": [f"127.0.0.1:{port}"], "schema": SCHEMA, "user": USER,
                         "password_file": str(password)},
            "http": {"listen": f"127.0.0.1:{free_port()}"},
        }  # fmt: skip
        file = place / f"{name}.json"
        file.write_text(json.dumps(settings))
        with open(place / f"{name}.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sidecars.clerk", str(file)],
                cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, the parent too: nobody restarts it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


async def outbox(etcd: EtcdSettings) -> int:
    outcome = await get_prefix(etcd, KEYS.prefix("outbox"))
    assert isinstance(outcome, Done), outcome
    return len(outcome.value)


async def leader(etcd: EtcdSettings) -> str:
    outcome = await get_prefix(etcd, KEYS.prefix("clerk"))
    assert isinstance(outcome, Done), outcome
    return decode(outcome.value[0].value, ClerkValue).clerk if outcome.value else ""


async def put(etcd: EtcdSettings, first: int, count: int) -> None:
    for start in range(first, first + count, 100):
        puts = tuple(Put(KEYS.cdr(f"k{n}"), encode(ended(f"k{n}"))) for n in range(start, start + 100))

        async def written(puts: tuple[Put, ...] = puts) -> bool:  # not yet while etcd is starting
            return isinstance(await txn(etcd, StoreTxn(puts=puts, limit_s=5.0)), Done)

        await until(written)


async def until(what: Any, limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not await what():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.05)


async def test_each_call_once_whatever_dies(server: Server, tmp_path: Path) -> None:
    """The writing clerk is killed among its batches; then the server is killed, and comes
    back; then it is closed for writing, and opened."""
    cluster = Cluster(1)
    clerks: dict[str, Clerk] = {}
    try:
        etcd = EtcdSettings(endpoints=cluster.endpoints)

        async def empty() -> bool:
            return await outbox(etcd) == 0

        async def led() -> bool:
            return bool(await leader(etcd))

        await put(etcd, 0, 1000)
        for name in ("clerk1", "clerk2"):
            clerks[name] = Clerk(name, tmp_path, cluster.endpoints, server.port)
        await until(led)
        first = await leader(etcd)

        async def begun() -> bool:
            return await outbox(etcd) < 1000

        await until(begun)
        clerks.pop(first).kill()
        left = await outbox(etcd)
        assert left > 0, "it was to die in the middle"
        await until(empty)
        assert await leader(etcd) != first

        server.docker("kill")
        await put(etcd, 1000, 300)
        await asyncio.sleep(3.0)
        assert await outbox(etcd) == 300, "nothing leaves without a database"
        server.docker("start")
        server.wait()
        await until(empty)

        server.admin("SET GLOBAL read_only = 1")
        await put(etcd, 1300, 100)
        await asyncio.sleep(2.0)
        assert await outbox(etcd) == 100
        server.admin("SET GLOBAL read_only = 0")
        await until(empty)
        found = server.rows("SELECT COUNT(*), COUNT(DISTINCT ha_call_id) FROM calls")
        assert found == ((1400, 1400),)
    finally:
        for clerk in clerks.values():
            clerk.kill()
        cluster.close()
