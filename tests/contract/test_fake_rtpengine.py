"""What a relay does with NG commands: the same cases against the fake and a real rtpengine.

Who hears whom is asked of the fake, and shown by numbered packets through the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from collections import Counter

import pytest
from containers import why_not
from real_rtpengine import IMAGE, INTERFACES, RealRtpengine

from ari_ha.adapters.rtpengine import Rtpengine
from ari_ha.core.machine import Done, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.media import NgCommand
from ari_ha.farend.rtp import VOICE, classify, set_voice, voice_buffer
from ari_ha.machines.edge_audio import AudioSide, narrowed
from ari_ha.machines.edge_rehome import UNKNOWN_CALL
from ari_ha.machines.media import WEB_PORT, local_ports, packets_from, teaching
from ari_ha.simulation.fake_rtpengine import FakeRtpengine
from ari_ha.sip.sdp import SUITES, SessionDescription, build_audio_sdp, build_fax_sdp, usable_crypto
from ari_ha.sip.web_sdp import relay_lines, secured
from tests.support.browser import Browser

CODEC = {"offer": ["PCMA", "telephone-event"]}
DIRECTIONAL = ["directional"]
TAGS = {"c": "public", "a1": "public", "c@ast1.1": "core", "a1@ast1.1": "core"}
RECORDERS = {"c/rec@ast2.1": "core", "a1/rec@ast2.1": "core", "c/rec@ast3.1": "core"}
"""Made by those tests that are about them"""
PARTIES = TAGS | RECORDERS
EARS = ("first", "second")
"""Each far end has two addresses, so that it can move."""
LIMIT_S = 30.0
SUITE = SUITES[0]
ROUND_PACKETS, ROUND_QUIET_S, ROUNDS_ALIKE = 3, 0.1, 2
"""Packets each tag sends in a round, the wait for late ones, and how many rounds must show the same."""


def port_of(outcome: Outcome) -> tuple[str, int]:
    session = SessionDescription.parse(outcome.value["sdp"])
    audio = session.audio()
    return audio.connection or session.connection, audio.port


class Rig:
    """One call of one relay, with a far end behind each tag."""

    def __init__(self) -> None:
        self.call = f"k-{uuid.uuid4().hex[:8]}"
        self.ours: dict[str, tuple[str, int]] = {}

    async def perform(self, command: str, body: dict) -> Outcome:
        raise NotImplementedError

    def ear(self, tag: str, which: str) -> tuple[str, int]:
        """One of a far end's addresses."""
        raise NotImplementedError

    async def heard(self) -> dict[tuple[str, str], list[str]]:
        """(tag, address) -> whose voice arrives there; a doubled one twice."""
        raise NotImplementedError

    async def send(self, tag: str, packets: int) -> None:
        """The far end of ``tag`` sends so many packets."""
        raise NotImplementedError

    async def counted(self, total: int, **body: str) -> dict[str, int | None]:
        """tag -> packets that came from it, by `query`, once there are ``total``."""
        end = time.monotonic() + LIMIT_S
        while True:
            reply = (await self.do("query", **body)).value
            counts = {tag: packets_from(reply, tag) for tag in reply["tags"]}
            if sum(n or 0 for n in counts.values()) >= total:
                return counts
            assert time.monotonic() < end, f"{counts}, not {total}"
            await asyncio.sleep(0.02)

    async def do(self, command: str, **body) -> Outcome:
        """A command about the call; ``from_tag`` for from-tag."""
        return await self.perform(
            command, {"call-id": self.call, **{k.replace("_", "-"): v for k, v in body.items()}}
        )

    async def create(self, tag: str, **body) -> Outcome:
        created = await self.do(
            "create", **{"from_tag": tag, "interface": PARTIES[tag], "codec": CODEC, **body}
        )
        self.ours[tag] = port_of(created)
        return created

    async def teach(self, tag: str, which: str = EARS[0], direction: str = "sendrecv") -> Outcome:
        host, port = self.ear(tag, which)
        sdp = build_audio_sdp(1, 1, host, port, [(8, "PCMA/8000")], 96, direction)
        return await self.do("create answer", from_tag=tag, sdp=sdp)

    async def plus(self, listener: str, speaker: str) -> Outcome:
        return await self.do("connect", from_tag=speaker, to_tag=listener, flags=DIRECTIONAL)

    async def minus(self, listener: str, speaker: str) -> Outcome:
        return await self.do("unsubscribe", from_tag=speaker, to_tag=listener, flags=DIRECTIONAL)

    async def plain(self, one: str, other: str) -> Outcome:
        return await self.do("connect", from_tag=one, to_tag=other)

    async def shows(self, **expected: list[str]) -> None:
        """Everybody hears exactly these, and whoever is not named nobody. ``c_node`` is the tag of c's half
        at the node, ``c_second`` the second address of c."""
        places = {f"{tag.partition('@')[0]}_node" if "@" in tag else tag: tag for tag in TAGS}
        places |= {"c_rec": "c/rec@ast2.1", "a1_rec": "a1/rec@ast2.1", "c_rec3": "c/rec@ast3.1"}
        wanted = {(tag, ear): [] for tag in PARTIES for ear in EARS}
        for name, speakers in expected.items():
            base, _, second = name.partition("_second")
            ear = EARS[1] if name.endswith("_second") else EARS[0]
            wanted[(places[base], ear)] = sorted(places[speaker] for speaker in speakers)
        end, alike, seen = time.monotonic() + LIMIT_S, 0, None
        while alike < ROUNDS_ALIKE:
            assert time.monotonic() < end, f"heard {seen}, not {wanted}"
            seen = await self.heard()
            alike = alike + 1 if seen == wanted else 0


class FakeRig(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.relay = FakeRtpengine(INTERFACES)

    async def perform(self, command: str, body: dict) -> Outcome:
        return self.relay.command(command, body)

    def ear(self, tag: str, which: str) -> tuple[str, int]:
        return "192.0.2.9", 4000 + 4 * list(PARTIES).index(tag) + 2 * EARS.index(which)

    async def heard(self) -> dict[tuple[str, str], list[str]]:
        call = self.relay.calls.get(self.call)
        return {
            (tag, ear): self.relay.hears(self.call, tag)
            if call and tag in call.tags and call.tags[tag].remote == self.ear(tag, ear)
            else []
            for tag in PARTIES
            for ear in EARS
        }

    async def send(self, tag: str, packets: int) -> None:
        self.relay.received(self.call, tag, packets)


class RealRig(Rig):
    def __init__(self, adapter: Rtpengine) -> None:
        super().__init__()
        self.adapter = adapter
        self.sockets = {(tag, ear): self._socket() for tag in PARTIES for ear in EARS}
        self.packets = {tag: voice_buffer(n, 1000 + n, 300) for n, tag in enumerate(PARTIES)}
        self.speaks_at = dict.fromkeys(PARTIES, EARS[0])
        self.number = 0

    @staticmethod
    def _socket() -> socket.socket:
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        return ear

    def close(self) -> None:
        for ear in self.sockets.values():
            ear.close()

    async def perform(self, command: str, body: dict) -> Outcome:
        end = time.monotonic() + LIMIT_S
        while True:
            outcome = await self.adapter.perform(
                NgCommand(lane="contract", command=command, body=body, limit_s=5.0)
            )
            if not isinstance(outcome, Unreachable | Unknown) or time.monotonic() > end:
                return outcome
            await asyncio.sleep(0.1)  # it is still starting

    def ear(self, tag: str, which: str) -> tuple[str, int]:
        return self.sockets[(tag, which)].getsockname()

    async def teach(self, tag: str, which: str = EARS[0], direction: str = "sendrecv") -> Outcome:
        self.speaks_at[tag] = which
        return await super().teach(tag, which, direction)

    async def heard(self) -> dict[tuple[str, str], list[str]]:
        first = self.number + 1
        for _ in range(ROUND_PACKETS):
            self.number += 1
            for tag, packet in [(tag, self.packets[tag]) for tag in self.ours]:
                set_voice(packet, 8, self.number & 0xFFFF, self.number * 160, self.number, False)
                self.sockets[(tag, self.speaks_at[tag])].sendto(packet, self.ours[tag])
            await asyncio.sleep(0.02)
        await asyncio.sleep(ROUND_QUIET_S)
        return {place: self._read(ear, first) for place, ear in self.sockets.items()}

    async def send(self, tag: str, packets: int) -> None:
        for _ in range(packets):
            self.number += 1
            set_voice(self.packets[tag], 8, self.number & 0xFFFF, self.number * 160, self.number, False)
            self.sockets[(tag, self.speaks_at[tag])].sendto(self.packets[tag], self.ours[tag])
            await asyncio.sleep(0.005)

    @staticmethod
    def _read(ear: socket.socket, first: int) -> list[str]:
        """The speakers of the packets from number ``first`` on, each as often as its packets came."""
        count: Counter[tuple[str, int]] = Counter()
        while True:
            try:
                data = ear.recv(2000)
            except BlockingIOError:
                break
            kind, source, number, _ = classify(data, len(data), 96)
            if kind == VOICE and number >= first:
                count[(list(PARTIES)[source], number)] += 1
        times = {tag: max(n for (one, _), n in count.items() if one == tag) for tag, _ in count}
        return sorted(tag for tag, n in times.items() for _ in range(n))


@pytest.fixture(scope="module")
def real_relay():
    if why := why_not(IMAGE):
        pytest.skip(why)
    relay = RealRtpengine()
    yield relay
    relay.remove()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.lab)])
async def empty(request):
    """A call nothing was said about."""
    if request.param == "fake":
        yield FakeRig()
        return
    adapter = Rtpengine("127.0.0.1", request.getfixturevalue("real_relay").port, lambda event: None)
    await adapter.start()
    rig = RealRig(adapter)
    yield rig
    await rig.do("delete")
    rig.close()
    adapter.close()


@pytest.fixture
async def rig(empty):
    """Two people and their halves at a node; nobody hears anybody."""
    for tag in TAGS:
        assert isinstance(await empty.create(tag), Done)
        assert isinstance(await empty.teach(tag), Done)
    return empty


async def test_create_gives_each_tag_one_port_for_life(rig) -> None:
    first = rig.ours["c"]
    assert first[0] == INTERFACES["public"] and rig.ours["c@ast1.1"][0] == INTERFACES["core"]
    assert port_of(await rig.create("c")) == first
    assert port_of(await rig.create("a1")) != first


async def test_a_tag_has_a_port_on_each_interface_it_was_created_on(rig) -> None:
    public = rig.ours["c"]
    core = port_of(await rig.create("c", interface="core"))
    assert core != public and core[0] == INTERFACES["core"]
    assert port_of(await rig.create("c", interface="public")) == public


@pytest.mark.parametrize("interface", ["", "nowhere"])
async def test_an_interface_nobody_knows_is_the_first(rig, interface: str) -> None:
    assert port_of(await rig.create("c@ast1.1", interface=interface))[0] == INTERFACES["public"]


async def test_create_answers_with_telephone_events_as_96(rig) -> None:
    audio = SessionDescription.parse((await rig.create("c")).value["sdp"]).audio()
    assert audio.payload_types == [8, 96] and audio.telephone_event == 96


async def test_create_answer_moves_the_far_end(rig) -> None:
    await rig.plus("c", "a1")
    await rig.plus("a1", "c")
    await rig.shows(c=["a1"], a1=["c"])
    await rig.teach("c", EARS[1])
    await rig.shows(c_second=["a1"], a1=["c"])


async def test_who_does_not_listen_hears_nobody_and_is_heard(rig) -> None:
    await rig.plus("c", "a1")
    await rig.plus("a1", "c")
    await rig.teach("c", direction="sendonly")
    await rig.shows(a1=["c"])
    await rig.teach("c")
    await rig.shows(c=["a1"], a1=["c"])


async def test_directional_subscriptions_are_added_and_taken_one_by_one(rig) -> None:
    await rig.plus("c", "a1")
    await rig.plus("c", "c@ast1.1")
    await rig.shows(c=["a1", "c_node"])
    await rig.minus("c", "a1")
    await rig.shows(c=["c_node"])
    await rig.plus("c", "a1")
    await rig.shows(c=["a1", "c_node"])


async def test_a_repeated_plus_or_minus_does_nothing(rig) -> None:
    for _ in range(2):
        assert isinstance(await rig.plus("c", "a1"), Done)
    await rig.shows(c=["a1"])
    for _ in range(2):
        assert isinstance(await rig.minus("c", "a1"), Done)
    await rig.shows()


async def test_from_through_to_hitless_and_back(rig) -> None:
    """The commands of `machines.media`, in their order."""
    for listener, speaker in (("c", "c@ast1.1"), ("c@ast1.1", "c"), ("a1", "a1@ast1.1"), ("a1@ast1.1", "a1")):
        await rig.plus(listener, speaker)
    through = {"c": ["c_node"], "c_node": ["c"], "a1": ["a1_node"], "a1_node": ["a1"]}
    await rig.shows(**through)
    await rig.plus("c", "a1")
    await rig.plus("a1", "c")
    await rig.minus("c", "c@ast1.1")
    await rig.minus("a1", "a1@ast1.1")
    await rig.shows(c=["a1"], c_node=["c"], a1=["c"], a1_node=["a1"])
    await rig.plus("c", "c@ast1.1")
    await rig.plus("a1", "a1@ast1.1")
    await rig.minus("c", "a1")
    await rig.minus("a1", "c")
    await rig.shows(**through)


async def recorders(rig) -> None:
    """Two nodes record the caller, one of them the agent as well."""
    for tag in RECORDERS:
        assert isinstance(await rig.create(tag), Done)
        assert isinstance(await rig.teach(tag, direction="recvonly"), Done)
        assert isinstance(await rig.plus(tag, tag.partition("/")[0]), Done)


async def test_recorders_hear_beside_the_forks_and_are_heard_by_nobody(rig) -> None:
    """In hitless and through, and over a takeover that moves everything else."""
    for listener, speaker in (("c", "a1"), ("a1", "c"), ("c@ast1.1", "c"), ("a1@ast1.1", "a1")):
        await rig.plus(listener, speaker)
    await recorders(rig)
    copies = {"c_rec": ["c"], "a1_rec": ["a1"], "c_rec3": ["c"]}
    await rig.shows(c=["a1"], a1=["c"], c_node=["c"], a1_node=["a1"], **copies)
    for one, node in (("c", "c@ast1.1"), ("a1", "a1@ast1.1")):
        await rig.plus(one, node)
    await rig.minus("c", "a1")
    await rig.minus("a1", "c")
    await rig.shows(c=["c_node"], a1=["a1_node"], c_node=["c"], a1_node=["a1"], **copies)
    for one, node in (("c", "c@ast1.1"), ("a1", "a1@ast1.1")):
        await rig.minus(one, node)
        await rig.minus(node, one)
    await rig.shows(**copies)


async def test_one_recorder_is_lost_and_another_begun(rig) -> None:
    await rig.plus("a1", "c")
    await recorders(rig)
    await rig.minus("c/rec@ast2.1", "c")
    await rig.shows(a1=["c"], a1_rec=["a1"], c_rec3=["c"])
    await rig.create("c/rec@ast2.1")
    await rig.teach("c/rec@ast2.1", EARS[1], "recvonly")
    await rig.plus("c/rec@ast2.1", "c")
    await rig.shows(a1=["c"], a1_rec=["a1"], c_rec3=["c"], c_rec_second=["c"])


async def test_every_recorder_gets_the_same_packets(rig) -> None:
    """Same SSRC, sequence number, timestamp and payload: by these the parts are joined."""
    if not isinstance(rig, RealRig):
        pytest.skip("the fake has no packets")
    await rig.plus("a1", "c")
    await recorders(rig)
    await rig.shows(a1=["c"], a1_rec=["a1"], c_rec=["c"], c_rec3=["c"])
    await rig.send("c", 5)
    ears = [rig.sockets[tag, EARS[0]] for tag in ("c/rec@ast2.1", "c/rec@ast3.1")]
    got: list[list[bytes]] = [[], []]
    end = time.monotonic() + LIMIT_S
    while any(len(packets) < 5 for packets in got):
        assert time.monotonic() < end, f"{[len(packets) for packets in got]} packets"
        for ear, packets in zip(ears, got, strict=True):
            try:
                packets.append(ear.recv(2000))
            except BlockingIOError:
                await asyncio.sleep(0.01)
    assert got[0][-5:] == got[1][-5:]
    assert got[0][-1][1:] == bytes(rig.packets["c"])[1:], "as the phone sent it"


async def test_a_plain_connect_replaces_in_both_directions(rig) -> None:
    await rig.plain("c", "c@ast1.1")
    await rig.shows(c=["c_node"], c_node=["c"])
    await rig.plain("c", "a1")
    await rig.shows(c=["a1"], a1=["c"])
    await rig.plain("a1@ast1.1", "a1")
    await rig.shows(a1=["a1_node"], a1_node=["a1"])


async def test_a_plain_connect_leaves_forks_alone(rig) -> None:
    await rig.plus("c@ast1.1", "c")
    await rig.plain("c", "a1")
    await rig.shows(c=["a1"], a1=["c"], c_node=["c"])


async def test_a_plain_connect_onto_a_fork_is_not_taken_away_by_the_next(rig) -> None:
    await rig.plus("a1", "c")
    await rig.plain("c", "a1")
    await rig.shows(c=["a1"], a1=["c"])
    await rig.plain("c", "c@ast1.1")
    await rig.shows(c=["a1", "c_node"], c_node=["c"], a1=["c"])


async def test_a_plus_onto_a_plain_connect_goes_with_it(rig) -> None:
    await rig.plain("c", "a1")
    await rig.plus("a1", "c")
    await rig.plain("c", "c@ast1.1")
    await rig.shows(c=["c_node"], c_node=["c"])


async def test_half_a_plain_connect_is_not_taken_away_by_the_next(rig) -> None:
    await rig.plain("c", "a1")
    await rig.minus("a1", "c")
    await rig.shows(c=["a1"])
    await rig.plain("c", "c@ast1.1")
    await rig.shows(c=["a1", "c_node"], c_node=["c"])


@pytest.mark.parametrize("left_out", ["from_tag", "flags"])
async def test_unsubscribe_without_its_words_destroys_the_listener(rig, left_out: str) -> None:
    """Nothing is said about it, and nothing is heard until it is made anew."""
    for listener, speaker in (("c", "a1"), ("a1", "c"), ("a1", "a1@ast1.1")):
        await rig.plus(listener, speaker)
    body = {"from_tag": "a1", "to_tag": "c", "flags": DIRECTIONAL}
    del body[left_out]
    assert isinstance(await rig.do("unsubscribe", **body), Done)
    await rig.shows(a1=["a1_node"])
    for listener, speaker in (("c", "a1"), ("a1", "c")):
        assert isinstance(await rig.plus(listener, speaker), Done)
    await rig.shows(a1=["a1_node"])
    assert isinstance(await rig.create("c"), Done)
    await rig.teach("c")
    await rig.shows(a1=["a1_node"])
    await rig.plus("c", "a1")
    await rig.shows(c=["a1"], a1=["a1_node"])


async def test_who_speaks_must_be_there_and_who_listens_need_not(rig) -> None:
    assert isinstance(await rig.plus("c", "nobody"), Refused)
    assert isinstance(await rig.minus("c", "nobody"), Refused)
    assert isinstance(await rig.minus("nobody", "c"), Refused)
    assert isinstance(await rig.plus("somebody", "c"), Done)
    assert isinstance(await rig.plus("c", "somebody"), Done)
    await rig.plus("c", "a1")
    await rig.shows(c=["a1"])


async def test_unknown_calls_and_commands_are_refused(empty) -> None:
    sdp = build_audio_sdp(1, 1, "127.0.0.1", 4000, [(8, "PCMA/8000")], 96)
    assert isinstance(await empty.plus("c", "a1"), Refused)
    assert isinstance(await empty.minus("c", "a1"), Refused)
    assert isinstance(await empty.do("create answer", from_tag="c", sdp=sdp), Refused)
    assert isinstance(await empty.do("query"), Refused)
    assert isinstance(await empty.do("mesh"), Refused)


async def test_packets_are_counted_also_those_nobody_hears(rig) -> None:
    """In hitless nobody hears what Asterisk sends: its legs show all the same that it lives."""
    assert await rig.counted(0) == dict.fromkeys(TAGS, 0)
    await rig.send("c@ast1.1", 7)
    assert await rig.counted(7) == {**dict.fromkeys(TAGS, 0), "c@ast1.1": 7}
    await rig.plus("a1", "c")
    await rig.send("c", 5)
    await rig.plus("c", "c@ast1.1")
    await rig.send("c@ast1.1", 3)
    await rig.minus("c", "c@ast1.1")
    await rig.send("c@ast1.1", 2)
    assert await rig.counted(17) == {"c": 5, "a1": 0, "c@ast1.1": 12, "a1@ast1.1": 0}


async def test_a_far_end_that_does_not_listen_is_counted(rig) -> None:
    await rig.teach("c", direction="sendonly")
    await rig.send("c", 4)
    assert (await rig.counted(4))["c"] == 4


async def test_query_with_a_tag_tells_of_it_and_of_those_it_hears(rig) -> None:
    await rig.plus("c@ast1.1", "c")
    await rig.send("c", 2)
    assert await rig.counted(2, from_tag="c@ast1.1") == {"c@ast1.1": 0, "c": 2}
    assert set(await rig.counted(0, from_tag="a1")) == {"a1"}


async def test_a_query_tells_the_ports_there_are(rig, empty) -> None:
    await rig.plus("somebody", "c")
    asked = await rig.do("query")
    ports = local_ports(asked.value)
    assert set(ports) == set(rig.ours), "who is only named has no port"
    assert all(port in ports[tag] for tag, (_, port) in rig.ours.items())
    empty.call = "nobody knows it"
    unknown = await empty.do("query")
    assert isinstance(unknown, Refused) and unknown.reason.lower().startswith(UNKNOWN_CALL)


async def test_delete_ends_the_call_and_may_be_repeated(rig) -> None:
    await rig.plus("c", "a1")
    for _ in range(2):
        assert isinstance(await rig.do("delete"), Done)
    await rig.shows()
    assert isinstance(await rig.plus("c", "a1"), Refused)


async def test_delete_with_one_tag_ends_the_whole_call(rig) -> None:
    await rig.plus("a1", "a1@ast1.1")
    assert isinstance(await rig.do("delete", from_tag="nobody"), Done)
    await rig.shows(a1=["a1_node"])
    assert isinstance(await rig.do("delete", from_tag="c"), Done)
    await rig.shows()
    assert isinstance(await rig.plus("a1", "a1@ast1.1"), Refused)


async def test_list_names_the_calls_there_are_up_to_a_limit(rig) -> None:
    listed = await rig.perform("list", {"limit": 1000})
    assert isinstance(listed, Done) and rig.call in listed.value["calls"]
    assert isinstance(await rig.do("delete"), Done)
    listed = await rig.perform("list", {"limit": 1000})
    assert isinstance(listed, Done) and rig.call not in listed.value["calls"]
    assert (await rig.perform("list", {"limit": 0})).value["calls"] == []


# --- fax -------------------------------------------------------------------------------


FAX = {"medias": [{"type": "image", "codecs": ["t38"]}], "transport_protocol": "UDPTL", "ICE": "remove"}
FAX_TAGS = ("c/fax", "a1/fax", "c/fax")
IFP = [bytes([n >> 8, n & 255, 1, 6, 0x80, 0, 0, n & 255]) for n in range(40)]
"""Packets that no reader of RTP would take for such."""


async def test_a_fax_has_a_port_of_its_own_beside_the_audio(rig) -> None:
    made = [await rig.do("create", from_tag=tag, interface="public", **FAX) for tag in FAX_TAGS]
    ports = [SessionDescription.parse(outcome.value["sdp"]) for outcome in made]
    first, second, again = (session.media for session in ports)
    assert [(m.kind, m.proto, m.formats) for m in first] == [("image", "udptl", [])], "it names no format"
    assert first[0].port == again[0].port != second[0].port
    await rig.plus("c", "a1")
    await rig.shows(c=["a1"])


SAVP = {"transport_protocol": "RTP/SAVP", "SDES": [f"only-{SUITE}"], "DTLS": "off", "ICE": "remove"}
THEIRS = "inline:" + "A" * 40


async def test_another_crypto_tag_is_another_key_and_another_interface_another_port(empty) -> None:
    def ours(outcome: Outcome):
        audio = SessionDescription.parse(outcome.value["sdp"]).audio()
        crypto = usable_crypto(audio)
        assert crypto and crypto.suite == SUITE and len(audio.crypto) == 1
        return crypto.tag, crypto.key, audio.port

    async def told(tag: int, interface: str):
        host, port = empty.ear("c", EARS[0])
        far = build_audio_sdp(1, 1, host, port, [(8, "PCMA/8000")], 96, crypto=f"{tag} {SUITE} {THEIRS}")
        published, answered = [
            await empty.do(command, **{key.replace("-", "_"): value for key, value in body.items()})
            for command, body in teaching("c", far, interface)
        ]
        assert isinstance(answered, Done)
        return ours(published)

    made = ours(await empty.create("c", **SAVP))
    assert made[0] == 1 and made == ours(await empty.create("c", **SAVP)) == await told(1, "public")
    renewed = await told(2, "public")
    assert renewed[0] == 2 and renewed[1] != made[1] and renewed[2] == made[2]
    assert renewed == await told(2, "public") == ours(await empty.create("c", **SAVP)), "it stays"
    moved = await told(3, "core")
    assert moved[0] == 3 and moved[1] not in (made[1], renewed[1]) and moved[2] != made[2]
    assert moved == await told(3, "core")
    ports = local_ports((await empty.do("query")).value)
    assert moved[2] in ports["c"] and made[2] not in ports["c"]


async def test_a_browsers_tag_keeps_its_ice_and_its_certificate(empty) -> None:
    told = [(await empty.create("c", **WEB_PORT)).value["sdp"] for _ in range(2)]
    lines = [relay_lines(SessionDescription.parse(sdp).audio()) for sdp in told]
    assert lines[0] == lines[1] and "a=crypto" not in told[0] and "a=setup:actpass" in told[0]
    host, port = empty.ear("c", EARS[0])
    far = [
        "ice-ufrag:them", "ice-pwd:" + "p" * 24, f"candidate:1 1 udp 2122260223 {host} {port} typ host",
        "fingerprint:sha-256 " + ":".join(["AB"] * 32), "setup:active", "rtcp-mux",
    ]  # fmt: skip
    sdp = secured(build_audio_sdp(1, 1, host, port, [(8, "PCMA/8000")], 96), far)
    for command, body in teaching("c", sdp, TAGS["c"]):
        answer = await empty.do(command, **{key.replace("-", "_"): value for key, value in body.items()})
        assert isinstance(answer, Done)
        if command == "publish":
            assert relay_lines(SessionDescription.parse(answer.value["sdp"]).audio()) == lines[0]
            assert port_of(answer) == empty.ours["c"] and "a=setup:passive" in answer.value["sdp"]
    again = (await empty.create("c", **WEB_PORT)).value["sdp"]
    assert relay_lines(SessionDescription.parse(again).audio()) == lines[0]


@pytest.mark.lab
async def test_a_browser_and_a_phone_hear_each_other(real_relay) -> None:
    adapter = Rtpengine("127.0.0.1", real_relay.port, lambda event: None)
    await adapter.start()
    rig, browser = RealRig(adapter), Browser(stream=77, networks=())
    talking = None
    try:
        answer = await browser.answer((await rig.create("c", **WEB_PORT)).value["sdp"])
        side = AudioSide.of(answer, prefer=8)
        for command, body in teaching("c", narrowed(answer, side), TAGS["c"]):
            await rig.do(command, **{key.replace("-", "_"): value for key, value in body.items()})
        await rig.create("a1")
        await rig.teach("a1")
        await rig.plus("c", "a1")
        await rig.plus("a1", "c")
        await browser.connected(LIMIT_S)
        talking = asyncio.ensure_future(browser.talk())
        end, heard = time.monotonic() + LIMIT_S, 0
        while heard < 20 or len(browser.heard.voice) < 20:
            assert time.monotonic() < end, (heard, browser.heard)
            await rig.send("a1", 5)
            ear = rig.sockets[("a1", EARS[0])]
            with contextlib.suppress(BlockingIOError):
                while True:
                    data = ear.recv(2000)
                    heard += classify(data, len(data), 96)[:2] == (VOICE, 77)
        assert browser.handshakes == 1 and not browser.heard.unreadable
    finally:
        if talking:
            talking.cancel()
        await browser.close()
        await rig.do("delete")
        rig.close()
        adapter.close()


@pytest.mark.lab
async def test_a_fax_passes_unread(real_relay) -> None:
    adapter = Rtpengine("127.0.0.1", real_relay.port, lambda event: None)
    await adapter.start()
    rig = RealRig(adapter)
    far = {tag: RealRig._socket() for tag in ("c/fax", "a1/fax")}
    try:
        for tag in ("c", "a1"):
            await rig.create(tag)
        ours = {}
        for tag, socket_ in far.items():
            sdp = (await rig.do("create", from_tag=tag, interface="public", **FAX)).value["sdp"]
            ours[tag] = (INTERFACES["public"], SessionDescription.parse(sdp).media[0].port)
            here = build_fax_sdp(1, *socket_.getsockname())
            assert isinstance(await rig.do("create answer", from_tag=tag, sdp=here), Done)
        await rig.plus("c/fax", "a1/fax")
        await rig.plus("a1/fax", "c/fax")
        for speaker, listener in (("c/fax", "a1/fax"), ("a1/fax", "c/fax")):
            got: list[bytes] = []
            for packet in IFP:
                far[speaker].sendto(packet, ours[speaker])
                await asyncio.sleep(0.01)
            end = time.monotonic() + LIMIT_S
            while len(got) < len(IFP) and time.monotonic() < end:
                try:
                    got.append(far[listener].recv(2000))
                except BlockingIOError:
                    await asyncio.sleep(0.02)
            assert got == IFP
    finally:
        await rig.do("delete")
        rig.close()
        adapter.close()
        for socket_ in far.values():
            socket_.close()
