"""The ARI adapter against a real Asterisk, in a container of the lab's image.

Asterisk runs with the repository's own configuration; only its HTTP server
listens beyond loopback. Skipped where there is no Docker or no such image.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from ari_ha.adapters.ari import AriAdapter
from ari_ha.adapters.ari_config import AriSettings
from ari_ha.core.machine import Done, Refused, Unknown, Unreachable
from ari_ha.core.ports.ari import AriCall, AriDown, AriEvent, AriRefusedUs, AriSnapshot
from ari_ha.wire import ari

IMAGE = "ari-ha/asterisk"
CONFIGURATION = Path(__file__).parents[2] / "asterisk-conf"
GENERATOR = Path(__file__).parents[2] / "tools" / "generate-ari"
PASSWORD = "contract"
BOOT_LIMIT_S = 30
DIALPLAN = """
[contract]
exten => stasis,1,Answer()
 same => n,Stasis(ari-ha,queue,sales)
 same => n,Hangup()
exten => echo,1,Answer()
 same => n,Echo()
"""

pytestmark = pytest.mark.lab


def docker(*arguments: str) -> str:
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60)
    if result.returncode:
        raise RuntimeError(f"docker {arguments[0]}: {result.stderr.strip()}")
    return result.stdout.strip()


class Asterisk:
    """One container; ``pid_file`` names Asterisk's process as this machine sees it."""

    def __init__(self, directory: Path) -> None:
        self.name = f"ari-ha-contract-{uuid.uuid4().hex[:8]}"
        self.pid_file = directory / "asterisk.pid"
        configuration = directory / "conf"
        render(configuration)
        script = "mkdir -p /run/asterisk /var/spool/asterisk/recording && exec asterisk -f"
        docker("run", "--detach", "--name", self.name, "--volume", f"{configuration}:/etc/asterisk:ro",
               "--entrypoint", "sh", IMAGE, "-c", script)  # fmt: skip
        self.note_pid()

    def note_pid(self) -> None:
        form = "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        self.pid, self.host = docker("inspect", "--format", form, self.name).split()[:2]
        self.pid_file.write_text(self.pid)

    def signal(self, number: int) -> None:
        os.kill(int(self.pid), number)

    def start_again(self) -> None:
        docker("wait", self.name)  # Docker learns of the death later than we do
        docker("start", self.name)
        self.note_pid()

    def remove(self) -> None:
        docker("rm", "--force", self.name)


def render(target: Path) -> None:
    """The node configuration with the names of this test filled in."""
    names = {
        "@NODE@": "contract", "@SIP_ADDRESS@": "0.0.0.0", "@ARI_PASSWORD@": PASSWORD, "@EDGE@": "192.0.2.1",
        "@EDGES_TRUNK@": "192.0.2.1:5070/32", "@EDGES_AGENT@": "192.0.2.1:5072/32",
        "@EDGES_RESUME@": "192.0.2.1:5074/32", "bindaddr = 127.0.0.1": "bindaddr = 0.0.0.0",
    }  # fmt: skip
    target.mkdir()
    for file in CONFIGURATION.glob("*.conf"):
        text = file.read_text()
        for name, value in names.items():
            text = text.replace(name, value)
        (target / file.name).write_text(text + (DIALPLAN if file.name == "extensions.conf" else ""))


@pytest.fixture(scope="module")
def asterisk(tmp_path_factory):
    if not shutil.which("docker"):
        pytest.skip("no docker command on this machine")
    try:
        docker("image", "inspect", IMAGE)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no image {IMAGE} or no Docker: {error}")
    container = Asterisk(tmp_path_factory.mktemp("asterisk"))
    yield container
    container.remove()


class Mail(list):
    def all(self, kind: type) -> list:
        return [event for event in self if isinstance(event, kind)]

    async def until(self, kind: type, number: int = 1, limit_s: float = BOOT_LIMIT_S):
        end = time.monotonic() + limit_s
        while len(self.all(kind)) < number:
            assert time.monotonic() < end, f"no {kind.__name__} number {number} in {self[-10:]}"
            await asyncio.sleep(0.001)
        return self.all(kind)[number - 1]

    async def event(self, kind: type, channel: str = "", limit_s: float = 30):
        """The first ARI event of ``kind`` about ``channel``."""
        end = time.monotonic() + limit_s
        while True:
            for event in (item.event for item in self.all(AriEvent)):
                if isinstance(event, kind) and (not channel or event.channel.id == channel):
                    return event
            assert time.monotonic() < end, (
                f"no {kind.__name__} in {[type(e.event).__name__ for e in self.all(AriEvent)]}"
            )
            await asyncio.sleep(0.005)


@pytest.fixture
async def connect(asterisk):
    adapters = []

    async def run(**changes):
        values = {
            "url": f"http://{asterisk.host}:8088",
            "password": PASSWORD,
            "pid_file": str(asterisk.pid_file),
        }
        mail = Mail()
        adapter = AriAdapter(AriSettings(**{**values, **changes}), mail.append)
        adapters.append(adapter)
        await adapter.start()
        return adapter, mail

    yield run
    for adapter in adapters:
        await adapter.stop()


async def perform(adapter: AriAdapter, operation: str, **params):
    return await adapter.perform(AriCall(operation=operation, params=params))


async def enter_stasis(adapter: AriAdapter, mail: Mail, name: str) -> None:
    """A Local channel ``name`` in our application; its other half hears an echo."""
    made = await perform(
        adapter,
        "channels.originateWithId",
        channelId=name,
        endpoint="Local/echo@contract",
        app="ari-ha",
        appArgs="queue,sales",
        variables={"HA_CALL": "k1"},
    )
    assert isinstance(made, Done), made
    await mail.event(ari.StasisStart, name)


def test_generated_files_are_those_of_this_asterisk(asterisk, tmp_path):
    docker("cp", f"{asterisk.name}:/usr/share/asterisk/rest-api", str(tmp_path))
    command = [sys.executable, str(GENERATOR), str(tmp_path / "rest-api"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


async def test_snapshot_and_nothing_missing(connect):
    adapter, mail = await connect()
    snapshot = await mail.until(AriSnapshot)
    # an Asterisk that is still loading answers, and does not know the question yet
    assert all(isinstance(event, AriDown | AriRefusedUs) for event in mail[: mail.index(snapshot)])
    assert snapshot.missing_modules == ()
    assert snapshot.incarnation == adapter.incarnation != ""


async def test_a_call_from_its_first_event_to_its_last(connect):
    adapter, mail = await connect()
    await mail.until(AriSnapshot)
    await enter_stasis(adapter, mail, "k1-c")
    start = await mail.event(ari.StasisStart, "k1-c")
    assert start.args == ["queue", "sales"] and start.application == "ari-ha"
    assert start.channel.channelvars.get("HA_CALL") == "k1"
    made = await perform(adapter, "bridges.createWithId", bridgeId="k1.7.1", type="mixing,dtmf_events")
    assert isinstance(made.value, ari.Bridge) and made.value.id == "k1.7.1"
    assert await perform(adapter, "bridges.addChannel", bridgeId="k1.7.1", channel=["k1-c"]) == Done(None)
    await mail.event(ari.ChannelEnteredBridge, "k1-c")
    variable = await perform(
        adapter, "channels.setChannelVar", channelId="k1-c", variable="X", value="a b+c&ü%"
    )
    assert variable == Done(None)
    read = await perform(adapter, "channels.getChannelVar", channelId="k1-c", variable="X")
    assert read.value == ari.Variable(value="a b+c&ü%")
    moh = await perform(adapter, "channels.startMoh", channelId="k1-c")
    assert isinstance(moh, Done | Refused)
    assert await perform(adapter, "channels.hangup", channelId="k1-c", reason_code="16") == Done(None)
    gone = await mail.event(ari.ChannelDestroyed, "k1-c")
    assert gone.cause == 16
    assert await perform(adapter, "bridges.destroy", bridgeId="k1.7.1") == Done(None)
    unfit = [e.event for e in mail.all(AriEvent) if isinstance(e.event, ari.RawEvent)]
    assert unfit == []


async def test_refusals(connect):
    adapter, mail = await connect()
    await mail.until(AriSnapshot)
    assert await perform(adapter, "channels.answer", channelId="nobody") == Refused("Channel not found", 404)
    refused = await perform(adapter, "channels.originate", endpoint="Nothing/x", app="ari-ha")
    assert isinstance(refused, Refused) and refused.code >= 400


async def test_channels_stay_when_the_app_is_started_again(connect):
    first, mail = await connect()
    await mail.until(AriSnapshot)
    await enter_stasis(first, mail, "k2-c")
    await first.stop()
    second, again = await connect()
    snapshot = await again.until(AriSnapshot)
    channel = next(channel for channel in snapshot.channels if channel.id == "k2-c")
    assert channel.channelvars.get("HA_CALL") == "k1"
    assert isinstance(await perform(second, "channels.hangup", channelId="k2-c"), Done)
    await again.event(ari.StasisEnd, "k2-c")


async def test_wrong_password_is_401_with_advice(connect):
    _, mail = await connect(password="wrong")
    assert (await mail.until(AriRefusedUs)).status == 401


async def test_a_second_app_takes_the_events(connect):
    _, first = await connect(retry_last_ms=60_000)
    await first.until(AriSnapshot)
    await connect(retry_last_ms=60_000)
    assert "another process" in (await first.until(AriDown)).reason


async def test_websocket_pings_are_answered(connect):
    _, mail = await connect(ping_every_ms=50, silence_limit_ms=2_000)
    await mail.until(AriSnapshot)
    told = len(mail.all(AriDown))  # an Asterisk that still starts may have been told of before
    await asyncio.sleep(4)  # twice the limit: only answers keep the connection that long
    assert len(mail.all(AriDown)) == told


def visible(asterisk: Asterisk) -> None:
    try:
        name = Path(f"/proc/{asterisk.pid}/comm").read_text().strip()
    except OSError:
        name = ""
    if name != "asterisk":
        pytest.skip("the container's processes are not visible from here")


async def test_frozen_asterisk_is_silent_and_not_gone(asterisk, connect):
    visible(asterisk)
    adapter, mail = await connect()
    await mail.until(AriSnapshot)
    began = time.monotonic()
    asterisk.signal(signal.SIGSTOP)
    try:
        down = await mail.until(AriDown)
        took_s = time.monotonic() - began
        assert not down.process_gone and took_s > 0.7
        assert isinstance(await adapter.perform(AriCall(operation="asterisk.ping", limit_s=0.3)), Unknown)
    finally:
        asterisk.signal(signal.SIGCONT)
    await mail.until(AriSnapshot, 2)
    print(f"\nfrozen: silent after {took_s * 1000:.0f} ms")


async def test_killed_asterisk_is_gone_at_once_and_another_one_when_back(asterisk, connect):
    visible(asterisk)
    took_ms = []
    for _ in range(5):
        adapter, mail = await connect()
        snapshot = await mail.until(AriSnapshot)
        mail.clear()  # what was said while it booted
        began = time.monotonic()
        asterisk.signal(signal.SIGKILL)
        down = await mail.until(AriDown)
        took_ms.append((time.monotonic() - began) * 1000)
        assert down.process_gone
        assert isinstance(await perform(adapter, "asterisk.ping"), Unreachable | Unknown)
        await asyncio.sleep(0.5)
        assert len(mail.all(AriDown)) == 1
        asterisk.start_again()
        again = await mail.until(AriSnapshot)
        assert again.incarnation != snapshot.incarnation and again.missing_modules == ()
        await adapter.stop()
    median_ms = statistics.median(took_ms)
    print(f"\nkilled: known after {median_ms:.1f} ms (median of 5), {max(took_ms):.1f} ms at most")


async def test_stopped_asterisk_is_gone(asterisk, connect):
    visible(asterisk)
    _, mail = await connect()
    await mail.until(AriSnapshot)
    asterisk.signal(signal.SIGTERM)
    while not mail.all(AriDown) or not mail.all(AriDown)[-1].process_gone:
        await asyncio.sleep(0.01)
    asterisk.start_again()
    await mail.until(AriSnapshot, 2)
