"""Private etcd clusters for tests: from the ``etcd`` binary on PATH, else from the
lab's image. Each member listens on loopback and can be killed or frozen."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

IMAGE = "ari-ha/etcd"
HEARTBEAT_MS, ELECTION_MS = 50, 300


def why_not() -> str:
    """Empty when a cluster can be started; otherwise the reason to skip."""
    if shutil.which("etcd"):
        return ""
    if shutil.which("docker") is None:
        return "neither an etcd binary nor docker here"
    found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True)
    return "" if found.returncode == 0 else f"no etcd binary on PATH and no image {IMAGE}"


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Member:
    """One member: a process, or a container with the host's network."""

    def __init__(self, name: str, data: Path, extra: tuple[str, ...] = (), tls: Path | None = None) -> None:
        self.name = name
        self.data = data / name
        self.scheme = "https" if tls else "http"
        self.tls = tls
        self.extra = extra
        self.client = f"127.0.0.1:{free_port()}"
        self.peer = f"http://127.0.0.1:{free_port()}"
        self.peers = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._container = ""

    def start(self) -> None:
        """Starts (again), with whatever its data directory holds."""
        url = f"{self.scheme}://{self.client}"
        args = [f"--name={self.name}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]
        args += [f"--listen-peer-urls={self.peer}", f"--initial-advertise-peer-urls={self.peer}"]
        args += [f"--initial-cluster={self.peers}", f"--data-dir={self.data}", "--logger=zap"]
        args += [f"--heartbeat-interval={HEARTBEAT_MS}", f"--election-timeout={ELECTION_MS}", *self.extra]
        if self.tls:
            args += [f"--cert-file={self.tls}/server.pem", f"--key-file={self.tls}/server.key"]
            args += [f"--trusted-ca-file={self.tls}/ca.pem", "--client-cert-auth"]
        if shutil.which("etcd"):
            with open(f"{self.data}.log", "ab") as log:
                self._process = subprocess.Popen(["etcd", *args], stdout=log, stderr=log)
            return
        self._container = f"ari-ha-test-etcd-{uuid.uuid4().hex[:8]}"
        command = ["docker", "run", "-d", "--rm", "--network=host", f"--name={self._container}"]
        command += [f"--volume={place}:{place}" for place in (self.data.parent, self.tls) if place]
        command += [IMAGE, *args]
        subprocess.run(command, check=True, capture_output=True)

    def kill(self) -> None:
        """SIGKILL: gone without a word."""
        self._signal(signal.SIGKILL, "kill")
        if self._process is not None:
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: there, and silent."""
        self._signal(signal.SIGSTOP, "pause")

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT, "unpause")

    def _signal(self, number: int, verb: str) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)
        elif self._container:
            subprocess.run(["docker", verb, self._container], capture_output=True)


class Cluster:
    """Some members that know each other."""

    def __init__(
        self, size: int, extra: tuple[str, ...] = (), tls: Path | None = None, started: bool = True
    ) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="ari-ha-etcd-"))
        self.members = [Member(f"m{n}", self.data, extra, tls) for n in range(size)]
        peers = ",".join(f"{member.name}={member.peer}" for member in self.members)
        for member in self.members:
            member.peers = peers
            if started:
                member.start()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the members take clients."""
        return tuple(member.client for member in self.members)

    def at(self, endpoint: str | None) -> Member:
        """The member behind an endpoint."""
        return next(member for member in self.members if member.client == endpoint)

    def close(self) -> None:
        """Kills all and forgets the data."""
        for member in self.members:
            member.thaw()
            member.kill()
        shutil.rmtree(self.data, ignore_errors=True)


class Proxy:
    """A TCP relay in front of a member that can lose either direction."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.endpoint = ""
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = asyncio.Event()
        self._answers = asyncio.Event()
        self.heal()

    async def start(self) -> None:
        """Listens on a port of its own."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.endpoint = f"{host}:{port}"

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._requests.clear()
        self._answers.clear()

    def mute(self) -> None:
        """Requests pass, answers do not."""
        self._answers.clear()

    def heal(self) -> None:
        """Connections of the bad time are reset; new ones work."""
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()
        self._requests.set()
        self._answers.set()

    async def close(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
        self.heal()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        loop = asyncio.get_running_loop()
        for source, sink, gate in (
            (reader, far_writer, self._requests),
            (far_reader, writer, self._answers),
        ):
            task = loop.create_task(self._relay(source, sink, gate, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _relay(self, source, sink, gate, pair) -> None:
        try:
            while data := await source.read(65536):
                await gate.wait()
                sink.write(data)
                await sink.drain()
        except (OSError, ConnectionError):
            pass
        finally:
            self._pairs.discard(pair)
            for writer in pair:
                writer.transport.abort()


def wait_until(holds, limit_s: float) -> None:
    """Polls a synchronous condition."""
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)
