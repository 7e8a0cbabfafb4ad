"""A pair of database servers as a watcher's adapter sees it: the simulator's, and real ones in containers
with the project's own configuration. Both are asked the same way."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pymysql

from ari_ha.adapters.database import DatabaseAccess, DatabaseServer
from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.database import DatabaseDo, Observation, Observe
from ari_ha.machines.database_config import MARIADB, MYSQL
from ari_ha.simulation.database.fake_server import FakeServer
from ari_ha.simulation.world import Network, World
from tests.contract.etcd_cluster import free_port

NAMES = ("db1", "db2")
ADDRESSES = {"db1": "127.0.0.11", "db2": "127.0.0.12"}
CONFIGURATION = {
    MARIADB: "/etc/mysql/mariadb.conf.d/99-ari-ha.cnf",
    MYSQL: "/etc/mysql/mysql.conf.d/zz-ari-ha.cnf",
}
SERVER = {MARIADB: "mariadbd", MYSQL: "mysqld"}
EXTRA = {MARIADB: "--extra-port=0", MYSQL: "--admin-port={port}"}
INSTALL = {
    MARIADB: "mariadb-install-db --no-defaults --auth-root-authentication-method=socket --user=mysql",
    MYSQL: "mysqld --no-defaults --initialize-insecure --user=mysql",
}
USERS = (
    "SET sql_log_bin = 0; CREATE DATABASE app; CREATE TABLE app.t (id INT AUTO_INCREMENT PRIMARY KEY);"
    " CREATE USER ha@'%' IDENTIFIED BY 'word'; GRANT ALL ON *.* TO ha@'%';"
    " CREATE USER app@'%' IDENTIFIED BY 'word'; GRANT ALL ON app.* TO app@'%';"
)
UP_LIMIT_S, LIMIT_S = 90.0, 60.0
NOT_YET_S = 1.0
"""A write without an answer after this waits."""


def no_image(flavour: str) -> str:
    """Why there is no real server of this flavour here; "" when there can be."""
    try:
        found = subprocess.run(["docker", "image", "inspect", f"ari-ha/{flavour}"], capture_output=True)
    except FileNotFoundError:
        return "no docker here"
    return "" if found.returncode == 0 else f"no image ari-ha/{flavour} (ARI_HA_DB={flavour} docker/build)"


class Write:
    """A write and its answer, when there is one: True, False."""

    def __init__(self) -> None:
        self.answer: bool | None = None


class FakePair:
    """The simulator's."""

    def __init__(self, flavour: str) -> None:
        self.world = World(7)
        network = Network(self.world)
        self.servers = {
            name: FakeServer(self.world, network, name, number, flavour)
            for number, name in enumerate(NAMES, 1)
        }
        for server in self.servers.values():
            server.peers = self.servers
            server.start()
        self.world.run_until(1.0)

    def _settled(self, ask: Callable[[Callable[[Outcome], None]], None]) -> Outcome:
        got: list[Outcome] = []
        ask(got.append)
        self.until(lambda: bool(got))
        return got[0]

    def do(self, name: str, verb: str, **args: Any) -> Outcome:
        return self._settled(lambda settle: self.servers[name].do(verb, args, settle))

    def look(self, name: str) -> Observation:
        outcome = self._settled(self.servers[name].observe)
        assert isinstance(outcome, Done)
        return outcome.value

    def follow(self, name: str, source: str) -> Outcome:
        return self.do(name, "follow", source=source)

    def write(self, name: str) -> Write:
        write = Write()
        self.servers[name].write(uuid.uuid4().hex, lambda ok: setattr(write, "answer", ok))
        self.pause(NOT_YET_S)
        return write

    def errant(self, name: str) -> None:
        self.servers[name].errant()
        self.pause(NOT_YET_S)

    def kill(self, name: str) -> None:
        self.servers[name].kill()
        self.pause(NOT_YET_S)

    def start(self, name: str, truncate: bool = False) -> None:
        self.servers[name].start(truncate)
        self.pause(NOT_YET_S)

    def pause(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

    def until(self, holds: Callable[[], bool]) -> None:
        end = self.world.now + LIMIT_S
        while not holds():
            assert self.world.now < end, "did not happen"
            self.pause(0.05)

    def close(self) -> None: ...


class RealServer:
    """One server in a container of its own, which goes on when the server dies."""

    def __init__(self, flavour: str, name: str, ports: dict[str, int]) -> None:
        self.flavour, self.name, self.ports, self.life = flavour, name, ports, 0
        self.container = f"ari-ha-test-{flavour}-{uuid.uuid4().hex[:8]}"
        run = [
            "docker",
            "run",
            "-d",
            "--init",
            "--network=host",
            f"--name={self.container}",
            "--entrypoint=sleep",
        ]
        subprocess.run([*run, f"ari-ha/{flavour}", "infinity"], check=True, capture_output=True)
        self.shell("mkdir -p /run/mysqld /d && chown mysql: /run/mysqld /d")
        self.shell(f"{INSTALL[flavour]} --datadir=/d && sed '/^ssl/d' {CONFIGURATION[flavour]} > /run/my.cnf")
        try:
            self.start(first=True)
        except BaseException:
            self.remove()
            raise
        access = DatabaseAccess(
            flavour=flavour, host=ADDRESSES[name], port=ports[name], user="ha", password="word",
            repl_user="ha", repl_password="word",
            names={address: server for server, address in ADDRESSES.items()},
        )  # fmt: skip
        self.adapter = DatabaseServer(access, lambda: f"{name}.{self.life}")

    def shell(self, script: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        words = ["docker", "exec", self.container, "bash", "-c", script]
        return subprocess.run(words, check=check, capture_output=True)

    def sql(self, text: str, check: bool = True, user: str = "root") -> bool:
        client = "mariadb" if self.flavour == MARIADB else "mysql"
        where = f"-h {ADDRESSES[self.name]} -P {self.ports[self.name]} --skip-ssl-verify-server-cert"
        if self.flavour == MYSQL:
            where = where.partition(" --skip")[0]
        where = "-S /run/s.sock" if user == "root" else where
        word = f"MYSQL_PWD={'' if user == 'root' else 'word'}"
        return not self.shell(f'{word} {client} -u{user} {where} -e "{text}"', check).returncode

    def start(self, truncate: bool = False, first: bool = False) -> None:
        name, port = self.name, self.ports[self.name]
        number = NAMES.index(name) + 1
        options = [
            "--defaults-file=/run/my.cnf", "--user=mysql", "--datadir=/d", f"--port={port}",
            f"--bind-address={ADDRESSES[name]}", "--socket=/run/s.sock", "--pid-file=/run/mysqld/pid",
            f"--server-id={number}", f"--auto-increment-offset={number}", "--innodb-buffer-pool-size=64M",
            EXTRA[self.flavour].format(port=free_port()), *(["--init-rpl-role=SLAVE"] if truncate else []),
        ]  # fmt: skip
        command = f"chmod 1777 /run; exec {SERVER[self.flavour]} {' '.join(options)} >>/run/server.log 2>&1"
        subprocess.run(["docker", "exec", "-d", self.container, "bash", "-c", command], check=True)
        end = time.monotonic() + UP_LIMIT_S
        while not self.sql("SELECT 1", check=False):
            assert time.monotonic() < end, self.shell("tail -n 20 /run/server.log").stdout.decode()
            time.sleep(0.2)
        self.life += 1
        if first:
            self.sql("SET GLOBAL read_only = 0;" + USERS)
            self.sql("SET GLOBAL read_only = 1")
            if self.flavour == MYSQL:
                self.sql("SET GLOBAL super_read_only = 1")
        for user in (
            "ha",
            "app",
        ):  # MySQL: the password is known to the server's cache then, TLS is not needed
            self.sql("SELECT 1", user=user)

    def kill(self) -> None:
        self.shell("p=$(cat /run/mysqld/pid); kill -9 $p; while kill -0 $p 2>/dev/null; do sleep 0.1; done")
        self.life += 1

    def close(self) -> None:
        self.adapter.close()
        self.remove()

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "-f", self.container], capture_output=True)


class RealPair:
    """Two of them."""

    def __init__(self, flavour: str) -> None:
        self.ports = {name: free_port() for name in NAMES}
        self.servers: dict[str, RealServer] = {}
        self._runner = asyncio.Runner()
        try:
            for name in NAMES:
                self.servers[name] = RealServer(flavour, name, self.ports)
        except BaseException:
            self.close()
            raise

    def do(self, name: str, verb: str, **args: Any) -> Outcome:
        effect = DatabaseDo(verb=verb, args=args, lane="steps", limit_s=20.0)
        return self._runner.run(self.servers[name].adapter.perform(effect))

    def look(self, name: str) -> Observation:
        outcome = self._runner.run(self.servers[name].adapter.perform(Observe(lane="observe", limit_s=20.0)))
        assert isinstance(outcome, Done), outcome
        return outcome.value

    def follow(self, name: str, source: str) -> Outcome:
        return self.do(name, "follow", source=source, host=ADDRESSES[source], port=self.ports[source])

    def write(self, name: str) -> Write:
        write = Write()

        def act() -> None:
            try:
                with pymysql.connect(
                    host=ADDRESSES[name], port=self.ports[name], user="app", password="word", database="app",
                    autocommit=True, read_timeout=120,
                ) as connection, connection.cursor() as cursor:  # fmt: skip
                    cursor.execute("INSERT INTO t VALUES ()")
                write.answer = True
            except (pymysql.err.MySQLError, OSError):
                write.answer = False

        threading.Thread(target=act, daemon=True).start()
        end = time.monotonic() + NOT_YET_S * 3
        while write.answer is None and time.monotonic() < end:
            time.sleep(0.05)
        return write

    def errant(self, name: str) -> None:
        server = self.servers[name]
        if server.flavour == MYSQL:
            server.sql(
                "SET GLOBAL super_read_only = 0; INSERT INTO app.t VALUES (); SET GLOBAL super_read_only = 1"
            )
        else:
            server.sql("INSERT INTO app.t VALUES ()")

    def kill(self, name: str) -> None:
        self.servers[name].kill()

    def start(self, name: str, truncate: bool = False) -> None:
        self.servers[name].start(truncate)

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < end, "did not happen"
            time.sleep(0.1)

    def close(self) -> None:
        for server in self.servers.values():
            server.close()
        self._runner.close()
