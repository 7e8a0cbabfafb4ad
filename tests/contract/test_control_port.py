"""What a caller says to rtpengine's control port, if he may name it in SDP: the reason for `takes_media`."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from containers import why_not
from real_rtpengine import IMAGE, RealRtpengine
from test_fake_rtpengine import RealRig

from ari_ha.adapters.rtpengine import Rtpengine
from ari_ha.sip.sdp import build_audio_sdp, without_address

pytestmark = pytest.mark.lab
PACKETS, BETWEEN_S = 20, 0.02


async def calls(rig: RealRig) -> list[str]:
    return (await rig.perform("list", {"limit": 100})).value.get("calls", [])


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_voice_is_no_command(guarded: bool) -> None:
    if why := why_not(IMAGE):
        pytest.skip(why)
    engine = RealRtpengine()
    adapter = Rtpengine("127.0.0.1", engine.port, lambda event: None)
    rig, other = RealRig(adapter), RealRig(adapter)
    try:
        await adapter.start()
        await other.create("c")
        for tag in ("c", "a1"):
            await rig.create(tag)
        await rig.teach("c")
        sdp = build_audio_sdp(1, 1, "127.0.0.1", engine.port, [(8, "PCMA/8000")], 96)
        answer = without_address(sdp) if guarded else sdp
        await rig.do("create answer", from_tag="a1", sdp=answer)
        await rig.plain("c", "a1")
        name = f"{len(other.call)}:{other.call}"
        await say(rig, f" d7:command6:delete7:call-id{name}12:delete delayi0ee".encode())
        assert (other.call in await calls(rig)) is guarded
    finally:
        for one in (rig, other, adapter):
            one.close()
        engine.remove()


async def say(rig: RealRig, payload: bytes) -> None:
    """RTP (RFC 3550 §5.1) with this in the place of a voice."""
    speaker: Any = rig.sockets[("c", "first")]
    for n in range(PACKETS):
        speaker.sendto(struct.pack("!BBHII", 0x80, 8, n, 160 * n, 7) + payload, rig.ours["c"])
        await asyncio.sleep(BETWEEN_S)
    await rig.counted(PACKETS)
