"""Containers of single servers, for contract tests: the lab's images on this machine's own network."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import uuid

COMMAND_LIMIT_S = 60
OWN_PORTS = range(20_000, 30_000)
"""Below what the kernel gives to clients, so that a server that is started again finds its port free."""
PORT_TRIES_MAX = 100
MEDIA_PORT_FIRST, MEDIA_PORTS_EACH, MEDIA_WORKERS_MAX = 30_000, 400, 6


def docker(*arguments: str) -> str:
    """What one docker command prints. Raises RuntimeError with its complaint."""
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=COMMAND_LIMIT_S)
    if result.returncode:
        raise RuntimeError(f"docker {arguments[0]}: {result.stderr.strip()}")
    return result.stdout.strip()


def why_not(image: str) -> str:
    """Empty when a container of the image can run here; otherwise the reason to skip."""
    if not shutil.which("docker"):
        return "no docker command on this machine"
    try:
        docker("image", "inspect", image)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"no image {image} or no Docker: {error}"
    return ""


def free_port() -> int:
    """A port nobody has on loopback, neither for TCP nor for UDP."""
    for _ in range(PORT_TRIES_MAX):
        port = random.choice(OWN_PORTS)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise RuntimeError("no free port")


def media_ports() -> str:
    """rtpengine's own options: ports that no other process of this test run gives to one. Two may be bound
    to the same UDP port at once (SO_REUSEADDR), and one of them would hear nothing."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = MEDIA_PORT_FIRST + MEDIA_PORTS_EACH * (worker % MEDIA_WORKERS_MAX)
    return f"--port-min={first} --port-max={first + MEDIA_PORTS_EACH - 1}"


class Container:
    """One server on the host's network, started by a shell command."""

    def __init__(self, image: str, script: str, *options: str) -> None:
        self.name = f"ari-ha-contract-{uuid.uuid4().hex[:8]}"
        command = ["--detach", "--network=host", "--name", self.name, *options, "--entrypoint", "sh"]
        docker("run", *command, image, "-c", script)

    def start_again(self) -> None:
        """Starts it after its end."""
        docker("start", self.name)

    def remove(self) -> None:
        """Stops it and leaves nothing of it."""
        docker("rm", "--force", "--volumes", self.name)

    def pause(self) -> None:
        """Its processes stand still."""
        docker("pause", self.name)

    def go_on(self) -> None:
        """They run again."""
        docker("unpause", self.name)

    def kill(self) -> None:
        """SIGKILL, and Docker knows that the container is over."""
        docker("kill", self.name)
        docker("wait", self.name)
