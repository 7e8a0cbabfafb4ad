"""What recording costs: processor time of rtpengine and of two recorders, for the same conversations
recorded and not, in one run. Nobody else takes part: the copies that Asterisk gets in hitless go to
sockets nobody reads.
Run: python -m tests.bench.bench_recording [calls [rounds]]"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from containers import docker
from real_rtpengine import RealRtpengine

from ari_ha import __version__
from ari_ha.adapters.recorder import Recorder, RecorderOptions
from ari_ha.adapters.rtpengine import Rtpengine
from ari_ha.core.machine import Done
from ari_ha.core.ports.media import NgCommand
from ari_ha.core.ports.recording import CloseRecording, OpenRecording
from ari_ha.farend.media import Media
from ari_ha.machines.edge_audio import AudioSide
from ari_ha.machines.edge_recorder import RecorderLeg
from ari_ha.sip.sdp import SessionDescription, build_audio_sdp

CALLS, ROUNDS, SAMPLE_S, SETTLE_S = 20, 2, 10.0, 1.0
LEGS = ("c", "a1")
TICKS = os.sysconf("SC_CLK_TCK")


def spent_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Bench:
    """The conversations and who forwards and records them."""

    def __init__(self, relay: Rtpengine, relay_pid: int, spool: str) -> None:
        self.relay, self.relay_pid = relay, relay_pid
        self.recorders = {
            node: Recorder(
                RecorderOptions(node, f"{spool}/{node}", "127.0.0.1", (42_000, 49_998), 1, 1000),
                lambda event: None,
            )
            for node in ("ast1", "ast2")
        }
        self.media = Media(port_first=20_000, port_last=29_998)
        self.sinks: list[socket.socket] = []
        self.copies: list[tuple[str, str, RecorderLeg]] = []

    async def ng(self, call: str, command: str, **body: Any) -> Any:
        said = {"call-id": call, **{name.replace("_", "-"): value for name, value in body.items()}}
        outcome = await self.relay.perform(NgCommand(lane=call, command=command, body=said, limit_s=5.0))
        assert isinstance(outcome, Done), (command, body, outcome)
        return outcome.value

    async def party(self, call: str, tag: str, interface: str, far: tuple[str, int]) -> tuple[str, int]:
        codec = {"offer": ["PCMA", "telephone-event"]}
        reply = await self.ng(call, "create", from_tag=tag, interface=interface, codec=codec)
        sdp = build_audio_sdp(1, 1, *far, [(8, "PCMA/8000")], 101, "sendrecv")
        await self.ng(call, "create answer", from_tag=tag, sdp=sdp)
        session = SessionDescription.parse(reply["sdp"])
        audio = session.audio()
        assert audio is not None
        return audio.connection or session.connection or "", audio.port

    async def hears(self, call: str, listener: str, speaker: str, command: str = "connect") -> None:
        await self.ng(call, command, from_tag=speaker, to_tag=listener, flags=["directional"])

    async def talk(self, call: str) -> None:
        """Hitless: the two directly, and Asterisk gets both."""
        for leg in LEGS:
            stream = self.media.open("127.0.0.1", 400)
            host, port = await self.party(call, leg, "public", (stream.host, stream.port))
            stream.aim(host, port, 8, 101, 101)
            stream.talk(True)
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.bind(("127.0.0.1", 0))
            self.sinks.append(sink)
            await self.party(call, f"{leg}@ast1.1", "core", sink.getsockname())
            await self.hears(call, f"{leg}@ast1.1", leg)
        await self.hears(call, "c", "a1")
        await self.hears(call, "a1", "c")

    async def record(self, call: str, round_: int) -> None:
        for node, recorder in self.recorders.items():
            for leg in LEGS:
                one = RecorderLeg(f"{call}{leg}{node}{round_}", leg, node, f"{leg}/rec@{node}.1", AudioSide())
                one.host, one.port = await self.party(call, one.tag, "core", ("127.0.0.1", 9))
                order = OpenRecording(
                    recording=one.recording, call=call, leg=leg, host=one.host, port=one.port, payload=8
                )
                outcome = await recorder.perform(order)
                assert isinstance(outcome, Done), outcome
                one.at = outcome.value
                await self.ng(call, "create answer", from_tag=one.tag, sdp=one.remote_sdp())
                await self.hears(call, one.tag, leg)
                self.copies.append((call, leg, one))

    async def end(self) -> None:
        for call, leg, one in self.copies:
            await self.hears(call, one.tag, leg, "unsubscribe")
            await self.recorders[one.node].perform(CloseRecording(recording=one.recording))
        self.copies.clear()

    def _spent(self) -> tuple[float, float]:
        pids = [recorder.pid for recorder in self.recorders.values() if recorder.pid]
        return spent_s(self.relay_pid), sum(spent_s(pid) for pid in pids)

    async def sample(self) -> dict[str, float]:
        """Percent of one core over the sample."""
        await asyncio.sleep(SETTLE_S)
        begin, before = time.monotonic(), self._spent()
        await asyncio.sleep(SAMPLE_S)
        share = 100 / (time.monotonic() - begin)
        relay, recorders = ((after - b) * share for after, b in zip(self._spent(), before, strict=True))
        return {"rtpengine": round(relay, 2), "recorders": round(recorders, 2)}


async def measure(calls: int, rounds: int) -> dict[str, Any]:
    """Not recorded and recorded in turn."""
    container = RealRtpengine()
    relay = Rtpengine("127.0.0.1", container.port, lambda event: None)
    await relay.start()
    with tempfile.TemporaryDirectory() as spool:
        pid = int(docker("inspect", "--format", "{{.State.Pid}}", container.name))
        bench = Bench(relay, pid, spool)
        ping = NgCommand(lane="p", command="ping", body={}, limit_s=1.0)
        while not isinstance(await relay.perform(ping), Done):
            pass
        names = [f"k{n}" for n in range(calls)]
        for name in names:
            await bench.talk(name)
        rows = []
        for round_ in range(rounds):
            off = await bench.sample()
            for name in names:
                await bench.record(name, round_)
            on = await bench.sample()
            await bench.end()
            rows.append({"not recorded": off, "recorded": on})
        bench.media.close()
        for recorder in bench.recorders.values():
            recorder.close()
    relay.close()
    container.remove()
    off_s = sum(row["not recorded"]["rtpengine"] for row in rows)
    on = [row["recorded"] for row in rows]
    return {
        "calls": calls,
        "percent of a core": rows,
        "rtpengine, recorded to not": round(sum(r["rtpengine"] for r in on) / off_s, 2),
        "two recorders to rtpengine not recorded": round(sum(r["recorders"] for r in on) / off_s, 2),
        "version": __version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    calls, rounds = [*given, *(CALLS, ROUNDS)[len(given) :]]
    print(json.dumps(asyncio.run(measure(calls, rounds)), indent=2))
