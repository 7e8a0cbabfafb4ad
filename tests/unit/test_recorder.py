"""The recorder's process over real sockets and files."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time

import pytest

from ari_ha.adapters.recorder import DYING_MAX_COUNT, Recorder, RecorderOptions
from ari_ha.adapters.recorder_worker import since_start
from ari_ha.core.machine import Done, Refused, Unreachable
from ari_ha.core.ports.recording import CloseRecording, OpenRecording, RecorderDown, RecordingFailed
from ari_ha.farend.rtp import set_voice, voice_buffer
from ari_ha.machines.node_recorder import OPEN_LIMIT_S
from ari_ha.wire.recording import PartName
from ari_ha.wire.rtpdump import Packet, read

LIMIT_S = 10.0


class Relay:
    """Sends what rtpengine would."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.packet = voice_buffer(1, 77, 400)
        self.number = 0

    def send(self, to: tuple[str, int], payload: int = 8) -> None:
        self.number += 1
        set_voice(self.packet, payload, self.number, self.number * 160, self.number, False)
        self.sock.sendto(self.packet, to)


@pytest.fixture
def relay():
    relay = Relay()
    yield relay
    relay.sock.close()


@pytest.fixture
async def rig(tmp_path):
    events: list = []
    options = RecorderOptions("ast1", str(tmp_path / "spool"), "127.0.0.1", (42_000, 42_998), 1, 3)
    recorder = Recorder(options, events.append)
    yield recorder, events, tmp_path / "spool"
    recorder.close()


def order(relay: Relay, recording: str = "r1", call: str = "k1", host: str = "127.0.0.1") -> OpenRecording:
    port = relay.sock.getsockname()[1]
    return OpenRecording(recording=recording, call=call, leg="c", host=host, port=port, payload=8)


async def until(true, what: str) -> None:
    end = asyncio.get_running_loop().time() + LIMIT_S
    while not true():
        assert asyncio.get_running_loop().time() < end, what
        await asyncio.sleep(0.02)


def written(spool, recording: str = "r1") -> list[Packet]:
    for path in spool.glob("*.rtp"):
        name = PartName.parse(path.name)
        assert name is not None and (name.call, name.leg, name.node) == ("k1", "c", "ast1")
        if name.recording == recording:
            return read(path.read_bytes())[0]
    return []


async def test_what_comes_is_written_as_it_comes(rig, relay) -> None:
    recorder, _, spool = rig
    outcome = await recorder.perform(order(relay))
    assert isinstance(outcome, Done)
    for _ in range(5):
        relay.send(outcome.value)
    relay.send(outcome.value, payload=101)  # a digit
    await until(lambda: len(written(spool)) == 5, "five packets")
    assert [packet.sequence for packet in written(spool)] == [1, 2, 3, 4, 5]
    (path,) = spool.glob("*.rtp")
    assert path.stat().st_mode & 0o777 == 0o600 and spool.stat().st_mode & 0o777 == 0o700
    relay.send(outcome.value)
    await recorder.perform(CloseRecording(recording="r1"))
    await until(lambda: read(path.read_bytes())[1], "the mark of its end")
    assert len(written(spool)) == 6, "what came before it is there"


async def test_others_than_the_relay_are_not_heard(rig, relay) -> None:
    recorder, _, spool = rig
    outcome = await recorder.perform(order(relay))
    stranger = Relay()
    stranger.send(outcome.value)
    relay.send(outcome.value)
    await until(lambda: written(spool), "the relay's packet")
    stranger.sock.close()
    assert len(written(spool)) == 1


async def test_a_process_that_is_killed_leaves_what_it_wrote(rig, relay) -> None:
    recorder, events, spool = rig
    outcome = await recorder.perform(order(relay))
    relay.send(outcome.value)
    await until(lambda: written(spool), "a packet")
    os.kill(recorder.pid, signal.SIGKILL)
    await until(lambda: events, "the news of it")
    assert isinstance(events[0], RecorderDown) and len(written(spool)) == 1
    again = await recorder.perform(order(relay, "r2"))
    assert isinstance(again, Done)
    relay.send(again.value)
    await until(lambda: written(spool, "r2"), "another process writes")


async def test_a_process_that_hangs_is_killed(rig, relay, monkeypatch) -> None:
    monkeypatch.setattr("ari_ha.adapters.recorder.SILENCE_LIMIT_S", 1.5)
    recorder, events, _ = rig
    await recorder.perform(order(relay))
    os.kill(recorder.pid, signal.SIGSTOP)
    await until(lambda: events, "the news of it")
    assert isinstance(events[0], RecorderDown) and "silent" in events[0].reason and recorder.pid is None


async def test_more_than_it_may_is_refused(rig, relay) -> None:
    recorder, _, _ = rig
    for n in range(3):
        assert isinstance(await recorder.perform(order(relay, f"r{n}")), Done)
    assert isinstance(await recorder.perform(order(relay, "r9")), Refused)
    await recorder.perform(CloseRecording(recording="r0"))
    assert isinstance(await recorder.perform(order(relay, "r9")), Done)


async def test_without_room_nothing_is_recorded(tmp_path, relay) -> None:
    events: list = []
    options = RecorderOptions("ast1", str(tmp_path), "127.0.0.1", (42_000, 42_998), 10**9, 3)
    recorder = Recorder(options, events.append)
    outcome = await recorder.perform(order(relay))
    assert isinstance(outcome, Refused) and "MB free" in outcome.reason
    recorder.close()


async def test_a_disk_that_fills_up_ends_it_and_keeps_what_there_is(tmp_path, relay, monkeypatch) -> None:
    """RLIMIT_FSIZE stands for the disk: a write beyond it fails as one on a full disk does."""
    import resource

    events: list = []
    recorder = Recorder(
        RecorderOptions("ast1", str(tmp_path), "127.0.0.1", (42_000, 42_998), 1, 3), events.append
    )
    outcome = await recorder.perform(order(relay))
    resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (1_000, 1_000))
    for _ in range(20):
        relay.send(outcome.value)
    await until(lambda: events, "the news of it")
    recorder.close()
    assert isinstance(events[0], RecordingFailed) and events[0].recording == "r1"
    assert [packet.sequence for packet in written(tmp_path)] == [1, 2, 3, 4, 5]


async def test_all_recordings_of_a_lost_node_are_taken_over_at_once(tmp_path, relay) -> None:
    """While it records: the machine waits no longer than its limit for any of them."""
    options = RecorderOptions("ast1", str(tmp_path), "127.0.0.1", (42_000, 42_998), 1, 300)
    recorder = Recorder(options, lambda event: True)
    try:
        assert isinstance(await recorder.perform(order(relay)), Done)
        many = [recorder.perform(order(relay, f"r{n}")) for n in range(2, 202)]
        outcomes = await asyncio.wait_for(asyncio.gather(*many), OPEN_LIMIT_S)
        assert all(isinstance(outcome, Done) for outcome in outcomes)
    finally:
        recorder.close()


async def test_what_it_has_to_say_waits_for_an_app_that_stands_still(rig, relay) -> None:
    """More than the socket between them holds."""
    recorder, _, _ = rig
    for n in range(3):
        await recorder.perform(order(relay, f"r{n}"))
    asked = []
    for batch in range(4):
        asked += [asyncio.create_task(recorder.perform(order(relay, f"x{batch}.{n}"))) for n in range(150)]
        await asyncio.sleep(0)
        time.sleep(0.3)
    outcomes = await asyncio.wait_for(asyncio.gather(*asked), LIMIT_S)
    assert all(isinstance(outcome, Refused) for outcome in outcomes)


async def test_what_is_no_name_of_a_file_or_no_address_is_refused(rig, relay) -> None:
    recorder, events, spool = rig
    for call in ("../k1", "k.1", "k\0"):
        outcome = await recorder.perform(order(relay, call=call))
        assert isinstance(outcome, Refused) and "no name of a file" in outcome.reason
    assert isinstance(await recorder.perform(order(relay, host="localhost")), Refused)
    assert isinstance(await recorder.perform(order(relay)), Done)
    assert not events and len(list(spool.parent.rglob("*.rtp"))) == 1


async def test_nobody_waits_for_a_process_that_does_not_die(rig, relay, monkeypatch) -> None:
    """One that hangs in its disk does not, SIGKILL or not; no more of them than a few are begun."""

    class Undying(subprocess.Popen):
        def poll(self) -> None:
            return None

        def wait(self, timeout=None) -> int:
            raise AssertionError("who waits for it hangs as well")

    monkeypatch.setattr(subprocess, "Popen", Undying)
    recorder, _, _ = rig
    for n in range(DYING_MAX_COUNT):
        assert isinstance(await recorder.perform(order(relay, f"r{n}")), Done)
        recorder.close()
    outcome = await recorder.perform(order(relay, "r9"))
    assert isinstance(outcome, Unreachable) and "do not end" in outcome.reason


async def test_news_that_the_app_has_no_room_for_are_told_again(tmp_path, relay) -> None:
    told: list = []
    options = RecorderOptions("ast1", str(tmp_path), "127.0.0.1", (42_000, 42_998), 1, 3)
    recorder = Recorder(options, lambda event: told.append(event) or len(told) > 1)
    await recorder.perform(order(relay))
    os.kill(recorder.pid, signal.SIGKILL)
    await until(lambda: len(told) == 2, "the news, again")
    assert all(isinstance(event, RecorderDown) for event in told)


@pytest.mark.parametrize(
    ("arrived", "at"),
    [(103.5, 3.5), (102.9, 3.0), (-3500.0, 3.0), (7300.0, 4.0)],
    ids=["as it is", "older than the last", "the wall clock went ahead", "the wall clock went back"],
)
def test_a_wall_clock_that_steps_moves_no_packet(arrived: float, at: float) -> None:
    assert since_start(arrived, began=100.0, last=3.0, limit=104.0) == at
